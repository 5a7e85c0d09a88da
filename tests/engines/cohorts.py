"""Cohorts in the default encoding, which the CQL of the Measure reads.

One MedicationStatement a course, one Condition a focus, judged effects as Observations that point at the course.
`generated(seed)` invents one at random, with every rule of the CQL met on both sides and at its limit; `published` tells
the published cohort (`fixtures/published`) in this encoding, `surroundings` are the other children of the demonstration as
they are. Nothing of the program is used; one seed gives one cohort on every machine.
"""

import csv
import json
import random
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from servers.records import Resource, resources
from support import DEMONSTRATION, ROOT

ICD10 = "http://hl7.org/fhir/sid/icd-10"
ICD10CM = "http://hl7.org/fhir/sid/icd-10-cm"
SKS = "urn:oid:1.2.208.176.2.4.12"
SNOMED = "http://snomed.info/sct"
ORPHA = "https://www.orpha.net"
ATC = "http://www.whocc.no/atc"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
OWN = "https://crmo-fhir.org/CodeSystem"
ASSESSMENT = f"{OWN}/assessment"
HL7 = "http://terminology.hl7.org/CodeSystem"

Pair = tuple[str, str]

CRMO: list[Pair] = [
    (ICD10, "M86.3"),
    (ICD10, "M86.36"),
    (ICD10, "DM863"),
    (ICD10CM, "M86.39"),
    (SKS, "DM863"),
    (SNOMED, "240151005"),
    (ORPHA, "324964"),
    ("http://id.who.int/icd/release/11/mms", "FB84.3"),
]
SAPHO: list[Pair] = [(SNOMED, "60684003"), (ORPHA, "793")]
OTHER_DISEASE: list[Pair] = [(ICD10, "M08.0"), (ICD10, "K50.9"), (ICD10, "M86.4"), (SKS, "DL405")]
NEUTRAL: list[Pair] = [(ICD10, "M25.5"), (ICD10, "M86.6")]
AGENTS: dict[str, dict[str, list[Pair]]] = {
    "NSAID": {
        "naproxen": [(ATC, "M01AE02"), (SNOMED, "372588000"), (RXNORM, "7258")],
        "ibuprofen": [(ATC, "M01AE01")],
        "celecoxib": [(ATC, "M01AH01")],
    },
    "MTX": {"methotrexate": [(ATC, "L04AX03"), (ATC, "L01BA01"), (SNOMED, "387381009")]},
    "TNF": {
        "etanercept": [(ATC, "L04AB01"), (RXNORM, "214555")],
        "infliximab": [(ATC, "L04AB02"), (SNOMED, "386891004")],
        "adalimumab": [(ATC, "L04AB04"), (RXNORM, "327361")],
        "certolizumab pegol": [(ATC, "L04AB05")],
        "golimumab": [(ATC, "L04AB06")],
        "some inhibitor": [(ATC, "L04AB")],
    },
    "BP": {"pamidronic acid": [(ATC, "M05BA03")], "zoledronic acid": [(SNOMED, "395926009")]},
    "GC": {"prednisolone": [(ATC, "H02AB06")], "methylprednisolone": [(ATC, "H02AB04")]},
    "SSZ": {"sulfasalazine": [(ATC, "A07EC01")]},
    "NONE": {"paracetamol": [(ATC, "N02BE01")]},
}
BONES = {
    "tibia": ["12611008", "64605006"],
    "femur": ["71341001", "310652005"],
    "clavicle": ["51299004"],
    "fibula": ["87342007"],
    "vertebra": ["51282000", "122495006"],
    "sternum": ["56873002"],
    "pelvis": ["118645006"],
    "mandible": ["91609006"],
}
NO_BONE = "38266002"  # entire body
SIDES = {"left": "7771000", "right": "24028007"}
ANSWERS: dict[str, dict[bool | None, list[Pair]]] = {
    "treatment-effect": {
        True: [(ASSESSMENT, "sufficient")] * 3 + [(SNOMED, "268910001"), (SNOMED, "103338009")],
        False: [(ASSESSMENT, "insufficient")] * 3 + [(SNOMED, "359746009"), (SNOMED, "271299001")],
        None: [(ASSESSMENT, "not-evaluable"), (SNOMED, "709137006"), (SNOMED, "260385009")],
    },
    "mri-change": {
        True: [(ASSESSMENT, "regression")] * 3 + [(SNOMED, "268910001")],
        False: [(ASSESSMENT, "no-regression")] * 3 + [(SNOMED, "359746009")],
        None: [(ASSESSMENT, "not-evaluable"), (SNOMED, "709137006")],
    },
}
FAILURE: list[Pair] = [
    (f"{OWN}/stop-reason", "inefficacy"),
    (f"{OWN}/stop-reason", "adverse_event"),
    (SNOMED, "266721009"),
    (SNOMED, "281647001"),
    (f"{HL7}/medicationrequest-status-reason", "sintol"),
]
NO_FAILURE: list[Pair] = [(f"{OWN}/stop-reason", "remission"), (SNOMED, "105480006")]


def days(count: int) -> timedelta:
    """So many days."""
    return timedelta(days=count)


def concept(*pairs: Pair) -> dict[str, Any]:
    """A CodeableConcept of these codings."""
    return {"coding": [{"system": system, "code": code} for system, code in pairs]}


def years_before(day: date, years: int) -> date:
    """The same day of an earlier year; 1 March for a 29 February that is not there."""
    try:
        return day.replace(year=day.year - years)
    except ValueError:
        return date(day.year - years, 3, 1)


class Chart:
    """The records of one child."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.resources: list[Resource] = []

    def add(self, kind: str, **elements: Any) -> Resource:
        """Add a record about the child; elements that are None are left out."""
        number = sum(r["resourceType"] == kind for r in self.resources)
        subject = {} if kind == "Patient" else {"subject": {"reference": f"Patient/{self.name}"}}
        made: Resource = {
            "resourceType": kind,
            "id": self.name if kind == "Patient" else f"{self.name}-{kind.lower()}-{number}",
            **subject,
            **{name: value for name, value in elements.items() if value is not None},
        }
        self.resources.append(made)
        return made

    def condition(self, code: Pair, verification: str | None, bone: str = "", side: str = "", **dates: Any) -> Resource:
        """A Condition; `bone` is a code."""
        site = [*([(SNOMED, bone)] if bone else []), *([(SNOMED, SIDES[side])] if side in SIDES else [])]
        return self.add(
            "Condition",
            verificationStatus=concept((f"{HL7}/condition-ver-status", verification)) if verification else None,
            code=concept(code),
            bodySite=[concept(*site)] if bone else None,
            **dates,
        )

    def statement(self, code: Pair, status: str, start: date | None, end: date | None, **more: Any) -> Resource:
        """A MedicationStatement of one course."""
        period = {k: v.isoformat() for k, v in (("start", start), ("end", end)) if v}
        return self.add(
            "MedicationStatement",
            status=status,
            medicationCodeableConcept=concept(code),
            effectivePeriod=period or None,
            **more,
        )

    def judgement(self, kind: str, answer: Pair, day: date, **more: Any) -> Resource:
        """A judged effect; `partOf` or `focus` in `more` points at the course."""
        links = {
            element: [{"reference": f"{r['resourceType']}/{r['id']}"} for r in more.pop(element)]
            for element in ("partOf", "focus")
            if element in more
        }
        return self.add(
            "Observation",
            status=more.pop("status", "final"),
            code=concept((ASSESSMENT, kind)),
            effectiveDateTime=day.isoformat(),
            valueCodeableConcept=concept(answer),
            **links,
        )


# ------------------------------------------------------------------------------------------------------------ demonstration


def published() -> list[Resource]:
    """The published cohort in the default encoding."""
    tables = {
        name: list(csv.DictReader((ROOT / "fixtures" / "published" / f"{name}.csv").read_text("utf-8").splitlines()))
        for name in ("patients", "foci", "courses")
    }
    return [resource for row in tables["patients"] for resource in _published(row, tables).resources]


def surroundings(candidates: frozenset[str], cohort: frozenset[str]) -> list[Resource]:
    """The records of the demonstration's `candidates` outside its `cohort` (Patient ids), with what they refer to."""
    known = ((patient_of(r), r) for r in resources(DEMONSTRATION))
    return [r for about, r in known if about not in cohort and (about in candidates or not about)]


def patient_of(resource: Resource) -> str:
    """The id of the Patient a record is about, empty for a record about nobody."""
    if resource["resourceType"] == "Patient":
        return str(resource["id"])
    about = resource.get("subject") or resource.get("patient") or {}
    return str(about.get("reference", "")).partition("/_history/")[0].rpartition("/")[2]


def _published(row: dict[str, str], tables: dict[str, list[dict[str, str]]]) -> Chart:
    chart = Chart(row["patient"])
    chart.add("Patient", gender={"F": "female", "M": "male"}[row["sex"]], birthDate=row["birth_date"])
    when = {"recordedDate": row["diagnosis_date"]}
    for focus in tables["foci"]:
        if focus["patient"] == row["patient"]:
            chart.condition(CRMO[0], "confirmed", BONES_OF_PUBLISHED[focus["bone"]], focus["laterality"], **when)
    if row["sapho"] == "1":
        chart.condition(SAPHO[0], "confirmed", **when)
    for course in tables["courses"]:
        if course["patient"] == row["patient"]:
            _published_course(chart, course)
    return chart


BONES_OF_PUBLISHED = {**{bone: codes[0] for bone, codes in BONES.items()}, "humerus": "85050009", "ulna": "23416004",
                      "calcaneus": "80144004"}  # fmt: skip


def _published_course(chart: Chart, course: dict[str, str]) -> None:
    code = AGENTS[course["drug_class"]][course["agent"]][0]
    start, end = (date.fromisoformat(course[c]) if course[c] else None for c in ("start", "end"))
    reason = None if end is None else [concept((f"{OWN}/stop-reason", course["stop_reason"]))]
    taken = chart.statement(code, "completed" if end else "active", start, end, statusReason=reason)
    for kind, value, when, positive in (
        ("treatment-effect", course["clinical_effect"], course["effect_date"], "sufficient"),
        ("mri-change", course["mri"], course["mri_followup_date"], "regression"),
    ):
        if when:
            answer = ANSWERS[kind][value == positive][0]
            chart.judgement(kind, answer, date.fromisoformat(when), partOf=[taken])


# ---------------------------------------------------------------------------------------------------------------- generated


SINCE, UNTIL = date(2002, 1, 1), date(2011, 12, 31)
"""The dates of diagnosis that a generated cohort is about."""


def generated(seed: int, children: int = 50) -> list[Resource]:
    """A random cohort, with children around it that must not enter."""
    rng = random.Random(seed)
    return [r for number in range(children) for r in _Child(rng, f"c{seed}-{number:03d}").told()]


class _Child:
    """Invents one child. No two treatments begin on one day, and none of one class overlap: the rules do not order them."""

    def __init__(self, rng: random.Random, name: str) -> None:
        self.rng, self.chart = rng, Chart(name)
        self.starts: set[date] = set()
        self.free_from: dict[str, date] = {}
        edge = (SINCE, UNTIL, SINCE - days(1), UNTIL + days(1))
        self.diagnosis = rng.choice(edge) if rng.random() < 0.12 else date(2001, 6, 1) + days(rng.randint(0, 4100))

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def told(self) -> list[Resource]:
        self.patient()
        self.conditions()
        self.treatments()
        if self.chance(0.7):
            seen = self.diagnosis + days(self.rng.randint(0, 1500))
            status = self.rng.choice(["finished", "finished", "planned", "cancelled"])
            period = {"start": seen.isoformat(), "end": seen.isoformat()}
            self.chart.add("Encounter", status=status, period=period, **{"class": {"code": "AMB"}})
        return self.chart.resources

    def patient(self) -> None:
        rng = self.rng
        if self.chance(0.2):
            birth = years_before(self.diagnosis, 16) + days(rng.choice([-1, 0, 1]))
        else:
            birth = self.diagnosis - days(rng.randint(700, 16 * 365))
        self.birth = birth
        died = self.diagnosis + days(rng.randint(200, 1500)) if self.chance(0.04) else None
        self.chart.add(
            "Patient",
            gender=rng.choice(["female"] * 10 + ["male"] * 7 + ["other", "unknown", None]),
            birthDate=None if self.chance(0.03) else birth.isoformat(),
            deceasedDateTime=died.isoformat() if died else None,
        )

    def dated(self, day: date) -> dict[str, Any]:
        """A date of diagnosis, in one of the ways a record gives it."""
        rng = self.rng
        later = (day + days(rng.randint(1, 300))).isoformat()
        way = rng.random()
        if way < 0.6:
            earlier = (day - days(rng.randint(1, 300))).isoformat()
            onset = {"onsetDateTime": earlier} if self.chance(0.3) else {}
            return {"recordedDate": rng.choice([day.isoformat(), f"{day.isoformat()}T12:30:00+01:00"]), **onset}
        if way < 0.75:
            status = rng.choice(["finished", "finished", "finished", "cancelled"])
            visit = self.chart.add(
                "Encounter", status=status, period={"start": day.isoformat()}, **{"class": {"code": "AMB"}}
            )
            return {"encounter": {"reference": f"Encounter/{visit['id']}"}, "onsetDateTime": later}
        if way < 0.9:
            return {"onsetDateTime": day.isoformat()}
        return {"onsetPeriod": {"start": day.isoformat(), "end": later}}

    def conditions(self) -> None:
        rng, chart = self.rng, self.chart
        self.crmo = []
        first = rng.choice(
            ["confirmed"] * 14 + [None, None, "provisional", "refuted", "entered-in-error", "differential"]
        )
        for number in range(rng.choice([1, 1, 1, 2, 2, 3, 4, 5])):
            status = first if number == 0 else rng.choice(["confirmed"] * 8 + [None, "provisional", "entered-in-error"])
            bone = rng.choice(BONES[rng.choice(list(BONES))]) if self.chance(0.85) else rng.choice(["", "", NO_BONE])
            side = rng.choice(["", "left", "left", "right", "right"]) if bone and bone != NO_BONE else ""
            day = self.diagnosis + days(0 if number == 0 else rng.choice([0, 0, 30, 400, -10]))
            code = rng.choice(CRMO)
            if bone in BONES["tibia"] and not side and self.chance(0.5):
                code = (ICD10CM, rng.choice(["M86.361", "M86.362"]))  # the side stands in the diagnosis
            dates = {} if number and self.chance(0.1) else self.dated(day)
            self.crmo.append(chart.condition(code, status, bone, side, **dates))
        if self.chance(0.12):
            day = self.diagnosis + days(rng.choice([-200, 0, 1, 500]))
            chart.condition(rng.choice(CRMO), "refuted", recordedDate=day.isoformat())
        self.sapho = None
        if self.chance(0.35):
            status = rng.choice(["confirmed", "confirmed", "confirmed", None, "provisional"])
            self.sapho = chart.condition(rng.choice(SAPHO), status, recordedDate=self.diagnosis.isoformat())
            if self.chance(0.2):
                day = self.diagnosis + days(rng.choice([-100, 100]))
                chart.condition(rng.choice(SAPHO), "refuted", recordedDate=day.isoformat())
        self.other = chart.condition(
            rng.choice(OTHER_DISEASE), "confirmed", recordedDate=(self.diagnosis - days(400)).isoformat()
        )

    def treatments(self) -> None:
        rng = self.rng
        if self.chance(0.85):
            for _ in range(rng.choice([1, 1, 2, 3])):
                self.course("NSAID", rng.choice([-91, -90, -20, 0, 5, 30, 30]))
        if self.chance(0.65):
            for _ in range(rng.choice([1, 1, 1, 2])):
                self.course("MTX", rng.choice([-120, 0, 40, 200, 600, 900, 1200]))
        if self.chance(0.6):
            tnf = rng.sample(list(AGENTS["TNF"]), 3)
            for agent in rng.choice([tnf[:1], tnf[:2], tnf, [*tnf[:2], tnf[0]], [tnf[0], tnf[0]], [*tnf, tnf[1]]]):
                self.course("TNF", rng.choice([60, 300, 700, 1000, 1300]), agent)
        for drug_class, probability in (("BP", 0.12), ("GC", 0.35), ("SSZ", 0.1), ("NONE", 0.2)):
            if self.chance(probability):
                self.course(drug_class, rng.choice([0, 100, 300, 420, 700]))

    def course(self, drug_class: str, after: int, agent: str = "") -> None:
        """One course of a class, begun so many days after the diagnosis, or after the class's last one and a gap."""
        rng = self.rng
        agent = agent or rng.choice(list(AGENTS[drug_class]))
        start = self.diagnosis + days(after)
        if drug_class in self.free_from:
            start = max(start, self.free_from[drug_class] + days(rng.choice([1, 1, 14, 90])))
        if (drug_class, agent) in self.free_from:
            start = max(start, self.free_from[drug_class, agent] + days(rng.choice([90, 91, 200])))
        while start in self.starts:
            start += days(1)
        if start.year > 2020:
            return
        self.starts.add(start)
        short = [27, 28, 29] if drug_class in ("NSAID", "GC") else [83, 84, 85]
        length: int | None = rng.choice([*short, 120, 200, 200, 300, 300, 500, 700])
        last = start + days(length or 0)
        status = "completed"
        if self.chance(0.15):
            length, last, status = None, date(2100, 1, 1), "active"
        end = None if length is None else last
        self.free_from[drug_class] = max(last, self.free_from.get(drug_class, date.min))
        self.free_from[drug_class, agent] = last
        fault = rng.random()
        if fault < 0.04:
            status = rng.choice(["entered-in-error", "not-taken", "intended", "on-hold"])
        elif fault < 0.055 and end:
            end = start - days(rng.randint(1, 50))
        elif fault < 0.07:
            start, end = self.birth - days(10), self.birth + days(300)
        elif fault < 0.08:
            start = None
        elif fault < 0.1:
            status = "unknown"
        more: dict[str, Any] = {"reasonCode": None}
        self.reason(more)
        if end and self.chance(0.5):
            more["statusReason"] = [concept(rng.choice(FAILURE if self.chance(0.5) else NO_FAILURE))]
        if drug_class == "GC" and self.chance(0.3):
            more["dosage"] = [{"route": concept((SNOMED, "12130007"))}]
        taken = self.chart.statement(rng.choice(AGENTS[drug_class][agent]), status, start, end, **more)
        if start and drug_class in ("NSAID", "MTX", "TNF"):
            self.judgements(taken, start, end, favourable=9 if drug_class == "NSAID" else 5)

    def reason(self, more: dict[str, Any]) -> None:
        """What a drug was given for: nothing said, CRMO or SAPHO, another disease, both, or a mere symptom."""
        rng = self.rng
        crmo, other = rng.choice(self.crmo), self.other
        way = rng.choice(["", "", "", "crmo", "crmo", "code", "sapho", "neutral", "other", "other-code", "both"])
        if way in ("crmo", "other", "both"):
            named = {"crmo": [crmo], "other": [other], "both": [other, crmo]}[way]
            version = rng.choice(["", "", "/_history/1"])
            more["reasonReference"] = [{"reference": f"Condition/{c['id']}{version}"} for c in named]
        elif way == "sapho" and self.sapho:
            more["reasonReference"] = [{"reference": f"Condition/{self.sapho['id']}"}]
        elif way in ("code", "neutral", "other-code"):
            pairs = {"code": CRMO + SAPHO, "neutral": NEUTRAL, "other-code": OTHER_DISEASE}[way]
            more["reasonCode"] = [concept(rng.choice(pairs))]

    def judgements(self, taken: Resource, start: date, end: date | None, favourable: int) -> None:
        rng = self.rng
        until = end or start + days(400)
        for kind in ("treatment-effect", "mri-change"):
            for _ in range(rng.choice([0, 1, 1, 2, 2, 3] if kind == "treatment-effect" else [0, 0, 1, 1, 2])):
                inside = start + days(rng.randint(0, max((until - start).days, 0)))
                near = [inside] * 12 + [start, start - days(1), until + days(180), until + days(181), until]
                near += [s + days(n) for s in sorted(self.starts) for n in (0, 1) if s > start][:4]
                day = rng.choice(near)
                for _ in range(2 if self.chance(0.1) else 1):
                    answer = rng.choice(ANSWERS[kind][rng.choice([True] * favourable + [False] * 4 + [None])])
                    status = rng.choice(["final"] * 8 + ["amended", "preliminary", "registered", "entered-in-error"])
                    self.chart.judgement(kind, answer, day, status=status, **self.links(taken))

    def links(self, taken: Resource) -> dict[str, Any]:
        """Mostly partOf, else focus; sometimes both, which then disagree, or focus names the disease too."""
        rng = self.rng
        statements = [r for r in self.chart.resources if r["resourceType"] == "MedicationStatement"]
        way = rng.random()
        if way < 0.55:
            return {"partOf": [taken]}
        if way < 0.8:
            return {"focus": [taken]}
        if way < 0.9:
            return {"focus": [self.crmo[0], taken]}
        return {"partOf": [taken], "focus": [rng.choice(statements)]}


def write(resources: Iterable[Resource], folder: Path) -> Path:
    """The records as a folder of NDJSON."""
    folder.mkdir(parents=True, exist_ok=True)
    by_type: dict[str, list[str]] = {}
    for resource in resources:
        by_type.setdefault(resource["resourceType"], []).append(json.dumps(resource, ensure_ascii=False) + "\n")
    for kind, lines in by_type.items():
        (folder / f"{kind}.ndjson").write_text("".join(lines), encoding="utf-8")
    return folder
