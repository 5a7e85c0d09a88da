"""Random cohorts from a seed: abstract children (`naive.Child`) and a folder of FHIR records that tells of them.

`make(seed)` gives the cohort, `write(cohort, folder)` the records. One seed gives one cohort on every machine. Each fact
is written in one of the ways the documents name, chosen at random; nothing of the program is used.
"""

import copy
import gzip
import json
import random
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

from naive import (
    FAR,
    LITERAL,
    Assessment,
    Child,
    Diagnosis,
    Exposure,
    Scan,
    When,
    courses_of,
    diagnosed,
    eligible,
    escalation,
    on,
    undecided,
)

Json = dict
COPENHAGEN = ZoneInfo("Europe/Copenhagen")
BASE = "https://fhir.example.org/r4"

# --- terminology: every form the documents name ------------------------------------------------------------------

ICD10 = "http://hl7.org/fhir/sid/icd-10"
ICD10CM = "http://hl7.org/fhir/sid/icd-10-cm"
ICD10GM = "http://fhir.de/CodeSystem/bfarm/icd-10-gm"
SKS, SKS_D = "urn:oid:1.2.208.176.2.4", "urn:oid:1.2.208.176.2.4.12"
SNOMED = "http://snomed.info/sct"
ORPHA = "https://www.orpha.net"
ICD11 = "http://id.who.int/icd/release/11/mms"
ATC = "http://www.whocc.no/atc"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
LOINC = "http://loinc.org"
HPO = "http://human-phenotype-ontology.org"
OWN = "https://crmo-fhir.org/CodeSystem/assessment"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
ALIASES = {
    ICD10: [ICD10, "http://terminology.hl7.org/CodeSystem/icd10", "urn:oid:2.16.840.1.113883.6.3"],
    ICD10CM: [ICD10CM, "urn:oid:2.16.840.1.113883.6.90"],
    ICD10GM: [ICD10GM, "http://fhir.de/CodeSystem/dimdi/icd-10-gm"],
    SNOMED: [SNOMED, "urn:oid:2.16.840.1.113883.6.96", "http://snomed.info/sct|http://snomed.info/sct/554471000005108"],
    ORPHA: [ORPHA, "http://www.orpha.net", "http://www.orpha.net/ORDO"],
    ATC: [ATC, "urn:oid:2.16.840.1.113883.6.73", "http://fhir.de/CodeSystem/bfarm/atc"],
}
CRMO = (
    [(ICD10, c) for c in ("M86.3", "M863", "M86.30", "M8630", "M86.35", "M86.36", "M86.39", "DM863")]
    + [(ICD10GM, c) for c in ("M86.30", "M86.36", "M86.39")]
    + [(ICD10CM, c) for c in ("M86.3", "M86.30", "M8630", "M86.38", "M86.39")]
    + [(SKS_D, "DM863")] * 4
    + [(SKS, "DM863")] * 3
    + [(SNOMED, "240151005")] * 5
    + [(ORPHA, "324964")] * 2
    + [(ICD11, "FB84.3"), (ICD11, "4A61")]
)
CM_SIDED = {  # ICD-10-CM codes that hold a side, with a bone of that region
    ("femur", "right"): "M86.351",
    ("femur", "left"): "M86.352",
    ("tibia", "right"): "M86.361",
    ("tibia", "left"): "M86.362",
    ("fibula", "right"): "M86.361",
    ("fibula", "left"): "M86362",
    ("humerus", "right"): "M86.321",
    ("humerus", "left"): "M86.322",
    ("radius", "left"): "M86.332",
}
SAPHO = [(SNOMED, "60684003"), (SNOMED, "60684003"), (ORPHA, "793")]
SHADOWS = [  # near CRMO, and not CRMO
    (ICD10, "M86.6"),
    (ICD10, "M08.0"),
    (SKS_D, "DM865"),
    (SKS_D, "DM869"),
    (ICD11, "FB84.2"),
    (SNOMED, "60168000"),
    (SNOMED, "240151006"),
    (None, "M86.3"),
    (None, "240151005"),
    (ICD10CM, "M86.4"),
    (ICD10, "M86"),
    ("http://example.org/local", "M86.3"),
]
TEXTS = ["CRMO", "cno", "Chronic recurrent multifocal osteomyelitis", "Kronisk rekurrent multifokal osteomyelitis",
         "Chronic non-bacterial osteomyelitis", "kronisk multifokal osteomyelitis", "Nonbakteriel osteitis"]  # fmt: skip
OTHER_DISEASE = [(ICD10, "M08.0"), (ICD10, "L40.0"), (ICD10, "K50.9"), (ICD10, "H20.9"), (SKS_D, "DM080"), (SKS_D, "DK509")]


@dataclass(frozen=True)
class Drug:
    """One agent and its codes."""

    drug_class: str
    atc: tuple[str, ...]
    snomed: str = ""
    rxnorm: str = ""
    sks: str = ""


DRUGS = {
    "naproxen": Drug("NSAID", ("M01AE02",), "372588000", "7258"),
    "ibuprofen": Drug("NSAID", ("M01AE01",), "387207008", "5640"),
    "indometacin": Drug("NSAID", ("M01AB01",), "373513008", "5781"),
    "piroxicam": Drug("NSAID", ("M01AC01",), "387153005", "8356"),
    "celecoxib": Drug("NSAID", ("M01AH01",), "116081000", "140587"),
    "methotrexate": Drug("MTX", ("L04AX03", "L01BA01"), "387381009", "6851", "BWHA115"),
    "etanercept": Drug("TNF", ("L04AB01",), "387045004", "214555", "BOHJ18A2"),
    "infliximab": Drug("TNF", ("L04AB02",), "386891004", "191831", "BOHJ18A1"),
    "adalimumab": Drug("TNF", ("L04AB04",), "407317001", "327361", "BOHJ18A3"),
    "certolizumab pegol": Drug("TNF", ("L04AB05",), "430306004", "709271", "BOHJ18A5"),
    "golimumab": Drug("TNF", ("L04AB06",), "442435002", "819300", "BOHJ18A4"),
    "prednisolone": Drug("GC", ("H02AB06",), "116601002", "8638"),
    "methylprednisolone": Drug("GC", ("H02AB04",), "116593003", "6902"),
    "triamcinolone": Drug("GC", ("H02AB08",), "116594009", "", "BLHN0"),
    "pamidronic acid": Drug("BP", ("M05BA03",), "420442001", "", "BWHB40C"),
    "zoledronic acid": Drug("BP", ("M05BA08",), "395926009", "", "BWHB40A"),
    "alendronic acid": Drug("BP", ("M05BA04",), "391730008", "46041"),
    "sulfasalazine": Drug("SSZ", ("A07EC01",), "387248006", "9524"),
    "leflunomide": Drug("CSDMARD", ("L04AK01", "L04AA13"), "386981009", "27169"),
    "azathioprine": Drug("CSDMARD", ("L04AX01",), "372574004", "1256"),
    "anakinra": Drug("IL1", ("L04AC03",), "385549000", "", "BOHJ18B1"),
    "tocilizumab": Drug("IL6", ("L04AC07",), "444648007", "", "BOHJ18B2"),
    "tofacitinib": Drug("JAK", ("L04AF01", "L04AA29"), "704313003", "1357536"),
    "baricitinib": Drug("JAK", ("L04AF02", "L04AA37"), "", "2047232"),
    "glucosamine": Drug("NONE", ("M01AX05",)),
}
BY_CLASS: dict[str, list[str]] = {}
for _agent, _drug in DRUGS.items():
    BY_CLASS.setdefault(_drug.drug_class, []).append(_agent)

BONES = {
    "tibia": ["12611008", "64605006", "52687003"],
    "femur": ["71341001", "310652005", "310651003"],
    "clavicle": ["51299004"],
    "fibula": ["87342007"],
    "humerus": ["85050009", "119524001"],
    "radius": ["62413002"],
    "sternum": ["56873002"],
    "mandible": ["91609006"],
    "vertebra": ["51282000", "122495006"],
    "calcaneus": ["80144004"],
    "sacrum": ["54735007"],
}
SIDES = {"left": "7771000", "right": "24028007", "both": "51440002"}
SUFFIX = {"right": "+TUL1", "left": "+TUL2", "both": "+TUL3"}
CLINICAL = {
    "good": [(OWN, "sufficient")] * 3 + [(SNOMED, "268910001"), (SNOMED, "103338009")],
    "bad": [(OWN, "insufficient")] * 3 + [(SNOMED, "359746009"), (SNOMED, "271299001"), (SNOMED, "103337004")],
    "open": [(SNOMED, "709137006")],
}
MRI = {
    "good": [(OWN, "regression")] * 3 + [(SNOMED, "268910001"), (SNOMED, "103338009")],
    "bad": [(OWN, "no-regression")] * 3 + [(SNOMED, "359746009"), (SNOMED, "271299001"), (SNOMED, "103337004")],
    "open": [(SNOMED, "709137006")],
}
REASONS = {
    "inefficacy": [(SNOMED, "266721009"), (SNOMED, "58848006"), (SNOMED, "182841002")],
    "adverse_event": [(SNOMED, "407563006"), (SNOMED, "281647001"), (SNOMED, "62014003"), (SNOMED, "59037007")],
    "patient_choice": [(SNOMED, "105480006")],
    "other": [("http://terminology.hl7.org/CodeSystem/medicationrequest-status-reason", "altchoice")],
}
DISPLAYS = {"182841002": "Doctor stopped drugs - ineffective (situation)", "58848006": "Lack of drug action (finding)"}

# --- abstract children -------------------------------------------------------------------------------------------


@dataclass
class Cohort:
    """A generated cohort: the children, the window, and what the writer must know."""

    seed: int
    since: date
    until: date
    children: list[Child]
    orders_count: bool
    orders_only: bool
    r5: float
    rejected: Counter = field(default_factory=Counter)


def days(count: int) -> timedelta:
    return timedelta(days=count)


def day_between(rng: random.Random, low: date, high: date) -> date:
    return low + days(rng.randint(0, max(0, (high - low).days)))


def years_before(day: date, years: int) -> date:
    try:
        return day.replace(year=day.year - years)
    except ValueError:
        return date(day.year - years, 3, 1)


def month_of(day: date) -> When:
    last = (day.replace(day=28) + days(4)).replace(day=1) - days(1)
    return When(day.replace(day=1), last)


def year_of(day: date) -> When:
    return When(date(day.year, 1, 1), date(day.year, 12, 31))


def coarse(rng: random.Random, day: date, chance: float) -> When:
    if rng.random() >= chance:
        return on(day)
    return month_of(day) if rng.random() < 0.6 else year_of(day)


class Timeline:
    """Builds the exposures of one child; no two drugs begin on one day (the documents do not order such a pair)."""

    def __init__(self, rng: random.Random, child: Child, diagnosis: date, orders_only: bool) -> None:
        self.rng, self.child, self.diagnosis, self.orders_only = rng, child, diagnosis, orders_only
        self.starts: set[date] = set()
        self.rung: dict[str, str] = {}
        self.number = 0

    def name(self) -> str:
        self.number += 1
        return f"{self.child.name}.drug{self.number}"

    def fresh(self, day: date) -> date:
        while day in self.starts:
            day += days(1)
        self.starts.add(day)
        return day

    def record(self, agent: str, rung: str, start: date, end: date | None, **more: object) -> Exposure:
        kind = "administration" if rung in ("infusions", "procedure", "procedures") else rung
        made = Exposure(
            self.name(), agent, DRUGS[agent].drug_class, kind, "yes", on(start), on(end) if end else None, **more
        )
        made.procedure = rung in ("procedure", "procedures")
        self.child.exposures.append(made)
        return made

    def choose_rung(self, agent: str) -> str:
        if self.orders_only:
            return "order"
        if agent not in self.rung:
            drug = DRUGS[agent]
            options = ["statement"] * 8 + ["dispense"] * 2
            if drug.drug_class in ("TNF", "BP", "IL1", "IL6"):
                options += ["infusions"] * 2
            if agent == "infliximab":
                options += ["infusions"] * 10 + ["procedures"] * 3
            if drug.sks and agent != "triamcinolone":
                options += ["procedure"] * 2
            self.rung[agent] = self.rng.choice(options)
        return self.rung[agent]

    def segment(
        self,
        agent: str,
        start: date,
        length: int | None,
        indications: set[str] | None = None,
        reasons: set[str] | None = None,
        *,
        joint: bool = False,
    ) -> date | None:
        """Records of one stretch of one agent; gives its last day, None for ongoing."""
        rng, rung = self.rng, self.choose_rung(agent)
        start = self.fresh(start)
        indications = indications or set()
        if not indications and start < self.diagnosis + days(1):
            indications = {"crmo"}
        if rung == "dispense":
            if "other" in indications or start < self.diagnosis + days(1) or joint:
                rung = self.rung[agent] = "statement" if self.is_new(agent, "dispense") else "dispense"
            if rung == "dispense":
                indications = set()
        made: list[Exposure] = []
        if rung in ("statement", "order", "procedure"):
            pieces = 1 if length is None or length < 20 or rng.random() < 0.6 else rng.randint(2, 3)
            at = start
            for piece in range(pieces):
                final = piece == pieces - 1
                stop = None if length is None else start + days(length) if final else at + days(max(5, length // pieces))
                if stop is not None and stop < at:
                    stop = at
                made.append(self.record(agent, rung, at, stop, joint=joint))
                if not final:
                    gap = rng.choice([-4, 0, 1, 1, 14])
                    at = self.fresh(stop + days(gap)) if False else stop + days(gap)  # noqa: SIM210, B015
            if rung == "procedure" and length is None:
                made[-1].end = None
        elif rung == "dispense":
            at, left = start, 400 if length is None else length
            while left > 0:
                supply = min(left, rng.choice([28, 30, 84, 90]))
                made.append(self.record(agent, rung, at, at + days(supply)))
                left -= supply
                gap = rng.choice([0, 0, 0, 7, 60, 89]) if left > 0 else 0
                at += days(supply + gap)
        else:
            nominal = 56 if agent == "infliximab" else 0
            at, stop = start, start + days((400 if length is None else length) - nominal)
            request = f"{self.child.name}.request{self.number}" if rung == "infusions" and rng.random() < 0.5 else None
            while True:
                made.append(self.record(agent, rung, at, None, once=True, request=request))
                at += days(rng.choice([14, 28, 42, 56, 56, 60, 88 + nominal, 89 + nominal]))
                if at > stop or len(made) > 12:
                    break
            if request is None and rung == "infusions":
                reasons = set()  # only the order of an infusion tells why it was stopped
        for one in made:
            one.indications = set(indications)
        if reasons and rung not in ("dispense", "procedure", "procedures"):
            for one in made if made[0].request else made[-1:]:
                one.reasons = set(reasons)
        last = made[-1]
        if last.once:
            return last.start.low + days(56 if agent == "infliximab" else 0)
        ends = [m.end.low for m in made if m.end]
        return None if last.end is None else max(ends)

    def is_new(self, agent: str, rung: str) -> bool:
        return not any(e.agent == agent and e.rung == rung for e in self.child.exposures)


def some_reasons(rng: random.Random) -> set[str]:
    kind = rng.random()
    if kind < 0.5:
        return set()
    if kind < 0.55:
        return {"inefficacy", "adverse_event"}
    return {rng.choice(["inefficacy", "inefficacy", "adverse_event", "patient_choice", "other"])}


def treat(rng: random.Random, child: Child, diagnosis: date, orders_only: bool) -> None:
    line = Timeline(rng, child, diagnosis, orders_only)

    def why() -> set[str]:
        return rng.choice([set(), set(), {"crmo"}, {"crmo"}, {"crmo", "other"}])

    at = diagnosis
    if rng.random() < 0.85:  # NSAIDs
        agent = rng.choice(BY_CLASS["NSAID"])
        start = diagnosis + days(rng.choice([-91, -90, -30, 0, 1, 7, 14, 30, 60, 90]))
        length = rng.choice([20, 27, 28, 29, 60, 120, 300, 500, 700])
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            end = line.segment(agent, start, length, why(), some_reasons(rng))
            if end is None:
                break
            at = end
            if rng.random() < 0.5:
                start = end + days(rng.choice([30, 88, 89, 90, 91, 200]))
            else:
                agent = rng.choice(BY_CLASS["NSAID"])
                start = end + days(rng.choice([1, 5, 40, 120]))
            length = rng.choice([20, 28, 60, 120, 300])
    when = max(diagnosis, at) + days(rng.choice([-60, -10, 1, 30, 100, 200, 362, 368, 500]))
    if rng.random() < 0.6:  # methotrexate
        for _ in range(rng.choice([1, 1, 1, 2])):
            length = rng.choice([40, 83, 84, 85, 150, 200, 400, 900, None])
            end = line.segment("methotrexate", max(when, diagnosis + days(1)), length, why(), some_reasons(rng))
            if end is None:
                when = when + days(rng.choice([100, 200, 400]))
                break
            when = end + days(rng.choice([30, 88, 89, 90, 91, 120, 300]))
        when += days(rng.choice([-300, -150, -120, -60, 0, 1, 5, 40]))
    if rng.random() < 0.55:  # TNF-α inhibitors
        when = max(when, diagnosis + days(2))
        used: list[str] = []
        agent = rng.choice(BY_CLASS["TNF"])
        for _ in range(rng.choice([1, 1, 2, 2, 3, 4])):
            length = rng.choice([40, 83, 84, 85, 120, 200, 250, 400, 700, None])
            end = line.segment(agent, when, length, why(), some_reasons(rng))
            used.append(agent)
            if end is None:
                break
            kind = rng.random()
            if kind < 0.3:  # the same again
                when = end + days(rng.choice([20, 88, 89, 90, 91, 150]))
            elif kind < 0.5 and len(used) > 1 and used[-2] != agent:  # back to an earlier one
                agent = used[-2]
                when = end + days(rng.choice([1, 20, 100]))
            else:
                agent = rng.choice([a for a in BY_CLASS["TNF"] if a != agent])
                when = end + days(rng.choice([-32, -31, -30, -29, -10, 0, 1, 20, 100, 200]))
            if when <= line_start(child, used[-1]):
                when = line_start(child, used[-1]) + days(1)
    for classes, chance in (
        (("BP",), 0.15),
        (("SSZ",), 0.08),
        (("CSDMARD", "IL1", "IL6", "JAK"), 0.12),
        (("GC",), 0.25),
        (("NONE",), 0.1),
    ):
        if rng.random() < chance:
            agent = rng.choice([a for a in BY_CLASS[rng.choice(classes)] if a != "triamcinolone"])
            start = diagnosis + days(rng.choice([5, 40, 100, 300, 500, 800]))
            line.segment(agent, start, rng.choice([10, 27, 28, 29, 60, 200]), why() - {"other"}, some_reasons(rng))
    if rng.random() < 0.08 and not orders_only:
        line.segment("triamcinolone", diagnosis + days(rng.randint(5, 700)), rng.choice([1, 60]), joint=True)
    free = [a for c in ("TNF", "TNF", "MTX", "NSAID", "GC", "BP") for a in BY_CLASS[c] if a != "triamcinolone"]
    free = [a for a in free if all(e.agent != a for e in child.exposures)]
    if rng.random() < 0.12:  # for another disease only
        line.segment(rng.choice(free), diagnosis + days(rng.randint(2, 900)), rng.choice([100, 300, None]), {"other"})
    spoil(rng, line, diagnosis)


def line_start(child: Child, agent: str) -> date:
    return max(e.start.low for e in child.exposures if e.agent == agent)


def spoil(rng: random.Random, line: Timeline, diagnosis: date) -> None:
    """Records that must change nothing, or change only what the rules say: orders, refused and unused records."""
    child = line.child
    base = list(child.exposures)
    for agent in sorted({e.agent for e in base}):
        own = [e for e in base if e.agent == agent]
        first = own[0].start.low
        if rng.random() < 0.15:  # not taken at all
            line.record(agent, own[0].rung, first - days(200), first + days(900)).taken = "no"
        if rng.random() < 0.15 and not line.orders_only:  # an order beside what was taken
            line.record(agent, "order", max(first - days(5), diagnosis - days(80)), first + days(700))
        if rng.random() < 0.1 and own[0].rung in ("administration", "dispense") and not own[0].procedure:
            line.record(agent, "statement", first + days(3), first + days(900))  # weaker evidence
        if rng.random() < 0.06 and not own[0].once and own[0].rung != "dispense":  # refused
            bad = rng.choice(["backwards", "unborn", "future"])
            if bad == "backwards":
                line.record(agent, own[0].rung, first + days(900), first - days(1))
            elif bad == "unborn" and child.birth:
                line.record(agent, own[0].rung, child.birth.low - days(30), first + days(800))
            else:
                line.record(agent, own[0].rung, date(2091, 1, 5), date(2091, 5, 5))
            child.exposures[-1].procedure = own[0].procedure
        statements = [e for e in own if e.rung == "statement" and e.end]
        if statements and rng.random() < 0.1:  # on hold after the last, then on again
            last = max(statements, key=lambda e: e.end.low)
            pause = rng.choice([30, 88, 89, 90, 91])
            line.record(agent, "statement", last.end.low, last.end.low + days(pause)).taken = "on-hold"
            again = last.end.low + days(pause)
            if again not in line.starts:
                line.starts.add(again)
                line.record(agent, "statement", again, again + days(rng.choice([30, 100, 300])), indications=set(last.indications))
    if rng.random() < 0.1 and not line.orders_only:  # an agent that was only ever ordered
        never = [a for c in ("TNF", "MTX", "NSAID") for a in BY_CLASS[c] if all(e.agent != a for e in base)]
        if never:
            line.record(rng.choice(never), "order", diagnosis + days(50), diagnosis + days(400))
    if line.orders_only and rng.random() < 0.2:
        never = [a for c in ("TNF", "MTX", "NSAID") for a in BY_CLASS[c] if all(e.agent != a for e in base)]
        if never:
            line.record(rng.choice(never), "order", diagnosis + days(50), diagnosis + days(400)).plan = True
    for one in base:
        plain = one.rung == "statement" and not one.once
        if plain and rng.random() < 0.06:
            one.start = month_of(one.start.low)
        if plain and one.end and rng.random() < 0.06:
            one.end = rng.choice([month_of, month_of, year_of])(one.end.low)
        if plain and one.end and rng.random() < 0.08 and max(e.end.high for e in base if e.agent == one.agent and e.end) == one.end.low:
            one.adverse = [one.end.low + days(rng.choice([-3, 0, 5, 179, 180, 181, 200]))]


def judge(rng: random.Random, child: Child, orders_count: bool) -> None:
    """Assessments and MR studies, many on the edges of their windows."""
    courses = courses_of(child, orders_count, LITERAL)
    taken: set[tuple[str, date]] = set()
    number = 0

    def add(kind: str, value: str, day: date, **more: object) -> None:
        nonlocal number
        if (kind, day) in taken:
            return
        taken.add((kind, day))
        number += 1
        child.assessments.append(Assessment(f"{child.name}.{kind}{number}", kind, value, day, **more))

    def link(course: object) -> dict[str, list[str]]:
        able = [r.name for r in course.records if r.rung != "order"]
        chosen = rng.choice(["none", "none", "part_of", "focus"])
        if chosen == "part_of" and able:
            return {"part_of": rng.sample(able, min(len(able), rng.choice([1, 1, 2])))}
        if chosen == "none":
            return {}
        return {"focus": [rng.choice([r.name for r in course.records])]}

    for course in courses:
        chance = 0.9 if course.drug_class in ("NSAID", "MTX", "TNF") else 0.15
        stop = course.end
        limit = escalation(course, courses, LITERAL)
        if rng.random() < chance:
            single = rng.random() < 0.7
            for _ in range(1 if single else rng.randint(2, 3)):
                how = link(course)
                middle = day_between(rng, course.start + days(1), (stop or course.start + days(500)))
                options = [middle] * 5 + [course.start + days(rng.choice([0, 10, 27, 28, 83, 84, 180]))]
                if stop:
                    options += [stop, stop + days(rng.choice([29, 30, 31]))]
                    if how:
                        options += [stop + days(rng.choice([60, 179, 180, 181, 200]))]
                if limit < FAR:
                    options += [limit - days(1), limit + days(1), limit + days(1)]
                if not how:
                    options += [course.start - days(1)]
                day = rng.choice(options)
                if how and day < course.start:
                    continue
                value = rng.choice(["good", "good", "bad", "bad", "open"] if single else ["good", "bad"])
                add("clinical", value, day, **how)
                if rng.random() < 0.05:
                    add("clinical", rng.choice(["good", "bad"]), day + days(1), counts=False, **how)
        if rng.random() < 0.55 and course.drug_class in ("NSAID", "MTX", "TNF"):
            for _ in range(rng.choice([1, 1, 1, 2])):
                how = link(course)
                baseline = course.start + days(rng.choice([-181, -180, -179, -60, -20, -5, 0, 13, 14, 15]))
                options = [day_between(rng, course.start + days(90), max(course.start + days(91), stop or course.start + days(400)))] * 4
                options += [course.start + days(rng.choice([83, 84, 85]))]
                if stop:
                    options += [stop + days(rng.choice([59, 60, 61]))]
                if limit < FAR:
                    options += [limit - days(1), limit + days(1)]
                follow = rng.choice(options)
                if follow <= baseline:
                    continue
                first, second = (Scan(f"{child.name}.scan{len(child.scans) + i}", d) for i, d in enumerate((baseline, follow)))
                if rng.random() < 0.06:
                    first.counts = False
                child.scans += [first, second]
                scans = [first.name, second.name] if first.counts and rng.random() < 0.7 else []
                add("mri", rng.choice(["good", "good", "bad", "bad", "open"]), follow + days(rng.choice([0, 0, 0, 3])), scans=scans, **how)
    if child.assessments and rng.random() < 0.1:
        add("clinical", "good", min(a.day for a in child.assessments) + days(17))


SITUATIONS = ["plain"] * 14 + ["window"] * 3 + ["age"] * 3 + ["partial"] * 3 + ["leap"] + [
    "refuted", "refuted-later", "provisional", "provisional-then-confirmed", "error-only", "error-copy", "text-only",
    "text-then-code", "sapho-only", "healthy", "unborn-date", "twice", "undated",
]  # fmt: skip


def diagnose(rng: random.Random, name: str, since: date, until: date) -> Child:
    """A child with its Conditions, by one of the situations of the criteria."""
    situation = rng.choice(SITUATIONS)
    child = Child(name, rng.choice(["female", "female", "male", "male", "other", "unknown"]), None)
    day = day_between(rng, since, until)
    if situation == "window":
        day = rng.choice([since, since - days(1), until, until + days(1), since - days(400), until + days(400)])
    birth = years_before(day, rng.randint(2, 15)) - days(rng.randint(0, 300))
    if situation == "age":
        birth = years_before(day, 16) + days(rng.choice([-1, 0, 1, 1]))
    elif situation == "leap":
        year = rng.choice([1988, 1992])
        birth = date(year, 2, 29)
        day = rng.choice([date(year + 16, 2, 28), date(year + 16, 3, 1), date(year + 15, 2, 28), date(year + 15, 3, 1)])
    child.birth = on(birth)
    when = on(day)
    if situation == "partial":
        when = rng.choice([month_of(day), year_of(day), on(day)])
        child.birth = rng.choice([month_of(birth), year_of(birth), on(birth)])
    main = Diagnosis({"crmo"}, "confirmed", when)
    child.diagnoses = [main]
    if situation == "refuted":
        main.verification = "refuted"
    elif situation == "refuted-later":
        child.diagnoses.append(Diagnosis({"crmo"}, "refuted", on(day + days(rng.randint(30, 900)))))
    elif situation == "provisional":
        main.verification = "provisional"
    elif situation == "provisional-then-confirmed":
        child.diagnoses.insert(0, Diagnosis({"crmo"}, "provisional", on(day - days(rng.randint(1, 900)))))
    elif situation == "error-only":
        main.verification = "entered-in-error"
    elif situation == "error-copy":
        child.diagnoses.append(Diagnosis({"crmo"}, "entered-in-error", on(day - days(rng.randint(0, 3000)))))
    elif situation == "text-only":
        main.text_only = True
    elif situation == "text-then-code":
        child.diagnoses.append(Diagnosis({"crmo"}, "confirmed", on(day - days(rng.randint(1, 3000))), text_only=True))
    elif situation == "sapho-only":
        main.diseases = {"sapho"}
    elif situation == "healthy":
        main.diseases = set()
    elif situation == "unborn-date":
        child.birth = None
    elif situation == "undated":
        main.when = None
    elif situation == "twice":
        child.diagnoses.append(Diagnosis({"crmo"}, "confirmed", on(day + days(rng.randint(0, 2500)))))
    if rng.random() < 0.25 and situation not in ("sapho-only", "healthy"):
        if rng.random() < 0.3 and not main.text_only:
            main.diseases = {"crmo", "sapho"}
        else:
            later = day + days(rng.choice([-1, 0, 1, -400, 400, 10]))
            verification = rng.choice(["confirmed"] * 4 + ["provisional", "entered-in-error"])
            child.diagnoses.append(Diagnosis({"sapho"}, verification, coarse(rng, later, 0.15)))
    bones = rng.sample(sorted(BONES), rng.choice([0, 1, 1, 1, 2, 3, 4]))
    carriers = [d for d in child.diagnoses if "crmo" in d.diseases and d.verification == "confirmed"]
    for bone in bones:
        side = rng.choice(["left", "right", "both", None, None])
        if carriers and not carriers[0].text_only and rng.random() < 0.6:
            rng.choice([c for c in carriers if not c.text_only]).sites.append((bone, side))
        else:
            child.lesions.append((bone, side, rng.random() > 0.1))
        if rng.random() < 0.3:
            child.lesions.append((bone, rng.choice(["left", "right", None, side]), True))
    for number, diagnosis in enumerate(child.diagnoses):
        diagnosis.name = f"{name}.condition{number}"
    return child


def make_child(rng: random.Random, name: str, cohort: Cohort, allow: frozenset[str]) -> Child:
    """A child whose figures hang on no open case of the documents."""
    for _ in range(60):
        child = diagnose(rng, name, cohort.since, cohort.until)
        day = next((d.when.low for d in child.diagnoses if d.when), date(2005, 5, 5))
        if rng.random() < 0.92:
            treat(rng, child, day, cohort.orders_only)
        if eligible(child, cohort.since, cohort.until) or (diagnosed(child) and child.birth):
            judge(rng, child, cohort.orders_count)
        ongoing = [e for e in child.exposures if e.end is None and not e.once]
        seen = [a.day for a in child.assessments] + [s.day for s in child.scans]
        seen += [(e.end or e.start).high for e in child.exposures if e.start.low.year < 2060]
        seen += [d for e in child.exposures for d in e.adverse]
        seen += [d.when.high for d in child.diagnoses if d.when] + [e.start.high + days(60) for e in child.exposures if e.start.low.year < 2060]
        if ongoing or rng.random() < 0.3:
            child.last_seen = max([*seen, day]) + days(rng.choice([0, 10, 100, 600]))
        if rng.random() < 0.04:
            child.died = (child.last_seen or max([*seen, day])) + days(rng.choice([0, 1, 30]))
        if contradictory(child):
            cohort.rejected["contradictory"] += 1
            continue
        why = undecided(child, cohort.since, cohort.until, cohort.orders_count, allow)
        if why is None:
            return child
        cohort.rejected[why] += 1
    return Child(name, "female", None)


def contradictory(child: Child) -> bool:
    """Histories on which the documents are silent in a way no reading can name."""
    starts: dict[date, str] = {}
    for one in child.exposures:
        if one.taken != "yes" or one.rung == "order" or one.start.low.year > 2060:
            continue
        if starts.setdefault(one.start.low, one.agent) != one.agent and one.drug_class != "NONE":
            return True
    tnf: dict[str, list[tuple[date, date]]] = {}
    for one in child.exposures:
        if one.drug_class == "TNF" and one.taken == "yes":
            end = one.start.low + days(56) if one.once else one.end.high if one.end else FAR
            tnf.setdefault(one.agent, []).append((one.start.low, end))
    spans = sorted((s, e, a) for a, own in tnf.items() for s, e in merged(own))
    for number, (start, end, agent) in enumerate(spans):
        for start2, end2, agent2 in spans[number + 1 :]:
            if agent2 != agent and start2 < end and (end2 <= end or start2 == start):
                return True  # one TNF-α inhibitor wholly inside another: which of them ends?
    mixed: dict[str, set[frozenset[str]]] = {}
    for one in child.exposures:
        if one.taken == "yes":
            mixed.setdefault(one.agent, set()).add(frozenset(one.indications))
    for agent, kinds in mixed.items():
        if frozenset({"other"}) in kinds and len(kinds) > 1:
            return True
    return False


def merged(spans: list[tuple[date, date]]) -> list[tuple[date, date]]:
    done: list[tuple[date, date]] = []
    for start, end in sorted(spans):
        if done and (start - done[-1][1]).days < 90:
            done[-1] = (done[-1][0], max(done[-1][1], end))
        else:
            done.append((start, end))
    return done


def make(seed: int, allow: frozenset[str] = frozenset(), size: int | None = None) -> Cohort:
    """The cohort of a seed; `allow` lets children in whose figures hang on the named readings."""
    rng = random.Random(seed)
    windows = [(date(2002, 1, 1), date(2011, 12, 31))] * 3 + [(date(2004, 2, 29), date(2008, 2, 29)), (date(2000, 3, 15), date(2013, 7, 1))]
    since, until = rng.choice(windows)
    orders_only = rng.random() < 0.12
    cohort = Cohort(seed, since, until, [], not orders_only or rng.random() < 0.7, orders_only, rng.choice([0.0, 0.0, 0.0, 1.0, 0.3]))
    if not orders_only:
        cohort.orders_count = False
    cohort.children = [make_child(rng, f"c{n}", cohort, allow) for n in range(size or rng.choice([1, 2, 5, 10, 20, 30, 40, 60]))]
    taken = [e for c in cohort.children for e in c.exposures if e.rung != "order" and e.taken == "yes"]
    if not orders_only and not taken:
        cohort.orders_count = None  # the writer adds a stranger who took something
    return cohort
