# ruff: noqa: T201
"""How long the figures of a large cohort take: its tables read, counted, compared, followed.

python tests/bench/metrics.py [NUMBER OF COURSES] [SECONDS ALLOWED]
"""

import gc
import random
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

from crmo_fhir.metrics import compute_analysis, compute_results
from crmo_fhir.model.parameters import SENSITIVITY, Parameters
from crmo_fhir.model.tables import COHORT

AGENTS = {
    "NSAID": ("naproxen", "ibuprofen"),
    "MTX": ("methotrexate",),
    "TNF": ("etanercept", "adalimumab", "infliximab", "tnf-unspecified"),
    "GC": ("prednisolone",),
    "BP": ("pamidronic acid",),
}
REASONS = ("inefficacy", "adverse_event", "both", "remission", "patient_choice", "other", "unknown")
LOCK = date(2024, 12, 31)
Row = dict[str, Any]


def children(luck: random.Random, number: int) -> Iterator[Row]:
    """Children diagnosed from 2002 to 2022."""
    for n in range(number):
        day = date(2002, 1, 1) + timedelta(days=luck.randrange(7600))
        yield {
            "person": f"Patient/{n:06}",
            "sex": luck.choice(("female", "male")),
            "birth_low": day - timedelta(days=4000),
            "birth_high": day - timedelta(days=4000),
            "diagnosis_low": day,
            "diagnosis_high": day,
            "diagnosis_source": "recordedDate",
            "age_at_diagnosis": 4000 / 365.25,
            "sapho": luck.random() < 0.2,
            "sapho_at_diagnosis": "no",
            "focus_count": 1,
            "focality": luck.choice(("unifocal", "multifocal")),
            "focality_at_diagnosis": "unknown",
            "last_contact": LOCK,
            "censored": LOCK,
            "censored_by": "data lock",
            "sources": [f"Patient/{n:06}", f"Condition/{n:06}"],
        }


def courses(luck: random.Random, child: Row) -> Iterator[Row]:
    """About five courses of a child one after the other, most of them judged."""
    start, numbers, lines = child["diagnosis_low"], dict.fromkeys(AGENTS, 0), {name: [] for name in AGENTS}
    for drug_class in luck.choices(list(AGENTS), weights=(2, 2, 4, 1, 1), k=luck.randrange(2, 9)):
        agent = luck.choice(AGENTS[drug_class])
        numbers[drug_class] += 1
        if agent not in lines[drug_class]:
            lines[drug_class].append(agent)
        end = start + timedelta(days=luck.randrange(1200))
        ongoing = end > LOCK
        effect = luck.choice(("sufficient", "insufficient", "insufficient", None))
        name = f"{child['person']}/{drug_class}-{numbers[drug_class]}"
        yield {
            "course": name,
            "person": child["person"],
            "drug_class": drug_class,
            "agent": agent,
            "course_no": numbers[drug_class],
            "line_no": lines[drug_class].index(agent) + 1,
            "start": start,
            "end": None if ongoing else end,
            "exposure_days": max((min(end, LOCK) - start).days, 0),
            "stop_reason": "ongoing" if ongoing else luck.choice(REASONS),
            "indication": luck.choice(("crmo", "crmo", "crmo", "missing")),
            "rung": "statement",
            "co_mtx": False,
            "flags": [],
            "effect": effect,
            "effect_low": effect and start + timedelta(days=180),
            "judged": effect,
            "derived": luck.choice((effect, "sufficient")),
            "exposure_enough": True,
            "evaluable": effect is not None,
            "not_evaluable_reason": None if effect else "no assessment",
            "mri": luck.choice(("regression", "no-regression", None)),
            "doses": [],
            "products": [],
            "sources": [f"MedicationStatement/{name}"],
            "assessments": [f"Observation/{name}"] if effect else [],
        }
        start = min(end + timedelta(days=luck.randrange(200)), LOCK)


def assessment(course: Row) -> Row:
    """The judgement of a course."""
    return {
        "assessment": course["assessments"][0],
        "person": course["person"],
        "kind": "clinical",
        "origin": "judged",
        "value": course["effect"],
        "date": course["effect_low"],
        "course": course["course"],
        "attribution": "link",
        "primary": True,
        "sources": [],
    }


def make(number: int, seed: int = 1) -> dict[str, bytes]:
    """The tables of a cohort with about that many courses, as Parquet."""
    luck = random.Random(seed)
    patients = list(children(luck, number // 5))
    treated = [course for child in patients for course in courses(luck, child)]
    rows = {
        "patients": patients,
        "foci": [
            {"person": p["person"], "bone": luck.choice(("tibia", "femur", "clavicle")), "sources": p["sources"]}
            for p in patients
        ],
        "courses": treated,
        "assessments": [assessment(c) for c in treated if c["effect"]],
        "labs": [
            {
                "lab": f"Observation/{p['person']}-{n}",
                "patient": p["person"],
                "analyte": "crp",
                "status": "final",
                "date_low": p["diagnosis_low"] + timedelta(days=90 * n),
                "date_high": p["diagnosis_low"] + timedelta(days=90 * n),
                "value": luck.random() * 50,
                "unit": "mg/L",
            }
            for p in patients
            for n in range(5)
        ],
        "imaging": [
            {
                "imaging": f"ImagingStudy/{p['person']}",
                "patient": p["person"],
                "whole_body": True,
                "regions": [],
                "date_low": p["diagnosis_low"],
                "date_high": p["diagnosis_low"],
            }
            for p in patients
        ],
        "reports": [],
    }
    return {name: table.to_parquet(table.frame(rows[name])) for name, table in COHORT.items()}


def main(number: int, allowed: float) -> None:
    """Print a line a step; stop with exit code 1 where it took longer than allowed."""
    gc.set_threshold(100_000)  # as the program does
    content = make(number)
    varied = [
        {"parameter": name, "value": str(value), "group": group, "n": 1, "N": 2}
        for name, values in SENSITIVITY.items()
        for value in values
        for group in ("nsaid-clinical", "mtx-clinical", "tnfi-clinical", "mtx-mri", "tnfi-mri")
    ]
    begun, cpu = time.perf_counter(), time.process_time()

    def took(step: str) -> None:
        print(f"{step:<32}{time.perf_counter() - begun:8.1f} s{time.process_time() - cpu:8.1f} s of a core", flush=True)

    tables = {name: table.from_parquet(content[name]) for name, table in COHORT.items()}
    took(f"read, {len(tables['courses'])} courses")
    results = compute_results(tables, Parameters())
    took(f"counted, {len(results)} rows")
    analysis = compute_analysis(tables, Parameters(), varied)
    took(f"analysed, {len(analysis.estimates)} rows")
    if time.perf_counter() - begun > allowed:
        sys.exit(f"more than {allowed:g} s")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int(arguments[0]) if arguments else 100_000, float(arguments[1]) if len(arguments) > 1 else 10.0)
