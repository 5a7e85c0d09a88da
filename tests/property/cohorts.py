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
OTHER_DISEASE = [
    (ICD10, "M08.0"),
    (ICD10, "L40.0"),
    (ICD10, "K50.9"),
    (ICD10, "H20.9"),
    (SKS_D, "DM080"),
    (SKS_D, "DK509"),
]


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
MR_CODES = {  # what a study covers, and the codes that say so; the first is also told by the site of its series
    frozenset(["all"]): [(SKS, "UXMH00"), (SNOMED, "426252008"), (LOINC, "46358-8")],
    frozenset(["femur"]): [(SKS, "UXMG20")],
    frozenset(["clavicle"]): [(SKS, "UXMC20")],
    frozenset(["tibia", "fibula"]): [(SKS, "UXMG30")],
    frozenset(): [(SNOMED, "113091000"), (LOINC, "25056-3"), ("http://example.org/local", "MR9")],
}
COVERED = [
    *[frozenset[str]()] * 4,
    *[frozenset(["all"])] * 4,
    frozenset(["femur"]),
    frozenset(["clavicle"]),
    frozenset(["tibia", "fibula"]),
    frozenset(["femur", "clavicle"]),
]
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
    stranger: bool  # somebody without CRMO who took a drug: the source holds more than orders
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
            pieces = 1 if length is None or length < 60 or rng.random() < 0.6 else rng.randint(2, 3)
            at = start
            for piece in range(pieces):
                final = piece == pieces - 1
                stop = (
                    None if length is None else start + days(length if final else (piece + 1) * (length // pieces) - 14)
                )
                made.append(self.record(agent, rung, at, stop, joint=joint))
                if not final:
                    at = stop + days(rng.choice([-4, 0, 1, 1, 14]))
        elif rung == "dispense":
            at, left = start, 400 if length is None else length
            while left > 0:
                supply = min(left, rng.choice([28, 30, 84, 90]))
                made.append(self.record(agent, rung, at, at + days(supply)))
                left -= supply
                gap = rng.choice([0, 0, 0, 7, 60, 89, 100, -3, -14, -25]) if left > 0 else 0
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
            if any(
                e.taken == "yes" and (e.end is None or e.end.high > last.end.low) and e.start.low < again for e in own
            ):
                child.exposures.pop()  # the documents do not say whether a pause cuts what another record says was taken
            elif again not in line.starts:
                line.starts.add(again)
                line.record(
                    agent,
                    "statement",
                    again,
                    again + days(rng.choice([30, 100, 300])),
                    indications=set(last.indications),
                    joint=last.joint,
                )
    if rng.random() < 0.1 and not line.orders_only:  # an agent that was only ever ordered
        never = [a for c in ("TNF", "MTX", "NSAID") for a in BY_CLASS[c] if all(e.agent != a for e in base)]
        if never:
            line.record(rng.choice(never), "order", diagnosis + days(50), diagnosis + days(400))
    if line.orders_only and rng.random() < 0.2:
        never = [a for c in ("TNF", "MTX", "NSAID") for a in BY_CLASS[c] if all(e.agent != a for e in base)]
        if never:
            line.record(rng.choice(never), "order", diagnosis + days(50), diagnosis + days(400)).plan = True
    for one in base:
        paused = any(e.agent == one.agent and e.taken == "on-hold" for e in child.exposures)
        plain = one.rung == "statement" and not one.once and not paused
        if plain and rng.random() < 0.06:
            one.start = month_of(one.start.low)
        if plain and one.end and rng.random() < 0.06:
            one.end = rng.choice([month_of, month_of, year_of])(one.end.low)
        if (
            plain
            and one.end
            and rng.random() < 0.08
            and max(e.end.high for e in base if e.agent == one.agent and e.end) == one.end.low
        ):
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
                options = [
                    day_between(
                        rng, course.start + days(90), max(course.start + days(91), stop or course.start + days(400))
                    )
                ] * 4
                options += [course.start + days(rng.choice([83, 84, 85]))]
                if stop:
                    options += [stop + days(rng.choice([59, 60, 61]))]
                if limit < FAR:
                    options += [limit - days(1), limit + days(1)]
                follow = rng.choice(options)
                if follow <= baseline:
                    continue
                first, second = (
                    Scan(f"{child.name}.scan{len(child.scans) + i}", d) for i, d in enumerate((baseline, follow))
                )
                if rng.random() < 0.06:
                    first.counts = False
                first.covers, second.covers = rng.choice(COVERED), rng.choice(COVERED)
                child.scans += [first, second]
                scans = [first.name, second.name] if first.counts and rng.random() < 0.7 else []
                add(
                    "mri",
                    rng.choice(["good", "good", "bad", "bad", "open"]),
                    follow + days(rng.choice([0, 0, 0, 3])),
                    scans=scans,
                    **how,
                )
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
        seen += [d.when.high for d in child.diagnoses if d.when] + [
            e.start.high + days(60) for e in child.exposures if e.start.low.year < 2060
        ]
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
    return any(frozenset({"other"}) in kinds and len(kinds) > 1 for kinds in mixed.values())


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
    windows = [(date(2002, 1, 1), date(2011, 12, 31))] * 3 + [
        (date(2004, 2, 29), date(2008, 2, 29)),
        (date(2000, 3, 15), date(2013, 7, 1)),
    ]
    since, until = rng.choice(windows)
    orders_only = rng.random() < 0.12
    stranger = not orders_only or rng.random() < 0.3
    cohort = Cohort(seed, since, until, [], not stranger, orders_only, rng.choice([0.0, 0.0, 0.0, 1.0, 0.3]), stranger)
    cohort.children = [
        make_child(rng, f"c{n}", cohort, allow) for n in range(size or rng.choice([1, 2, 5, 10, 20, 30, 40, 60]))
    ]
    return cohort


# --- from facts to records ---------------------------------------------------------------------------------------


class Encoder:
    """Writes one child as FHIR resources; references name the target (`@name`) until the resources have a place."""

    def __init__(self, rng: random.Random, child: Child, *, r5: bool) -> None:
        self.rng, self.child, self.r5 = rng, child, r5
        self.resources: list[Json] = []
        self.patients: list[str] = []
        self.medications: dict[str, str] = {}

    # ... parts

    def add(self, kind: str, name: str, **elements: object) -> Json:
        resource = {"resourceType": kind, "_name": name, **{k: v for k, v in elements.items() if v is not None}}
        self.resources.append(resource)
        return resource

    def subject(self) -> Json:
        return {"reference": "@" + self.rng.choice(self.patients)}

    def system(self, uri: str) -> str:
        rng = self.rng
        uri = rng.choice(ALIASES.get(uri, [uri])) if rng.random() < 0.3 else uri
        if uri.startswith("http") and "|" not in uri:
            kind = rng.random()
            if kind < 0.06:
                uri = (
                    uri.replace("http://", "https://", 1)
                    if uri.startswith("http://")
                    else uri.replace("https://", "http://", 1)
                )
            elif kind < 0.1:
                uri = uri.rstrip("/") + "/"
        return uri

    def coding(self, system: str | None, code: str) -> Json:
        made: Json = {"code": code}
        if system:
            made["system"] = self.system(system)
        if code in DISPLAYS:
            made["display"] = DISPLAYS[code]
        return made

    def concept(self, pair: tuple[str | None, str], *more: Json) -> Json:
        codings = [self.coding(*pair), *more]
        if self.rng.random() < 0.2:
            local = {"system": "http://example.org/local", "code": "X1"}
            if self.rng.random() < 0.5:
                local["display"] = "lokal kode"
            codings.insert(self.rng.randint(0, 1), local)
        made: Json = {"coding": codings}
        if self.rng.random() < 0.15:
            made["text"] = "se journal"
        return made

    def day(self, when: When | date) -> str:
        """A dateTime that is that day in Copenhagen."""
        rng = self.rng
        if isinstance(when, When):
            if when.low != when.high:
                return f"{when.low:%Y-%m}" if (when.high - when.low).days < 31 else f"{when.low:%Y}"
            when = when.low
        if rng.random() < 0.75:
            return when.isoformat()
        hour, minute = rng.choice([(0, 0), (0, 10), (0, 50), (12, 0), (23, 10), (23, 59)])
        local = datetime(when.year, when.month, when.day, hour, minute, tzinfo=COPENHAGEN)
        zone = rng.choice(
            [
                None,
                UTC,
                timezone(timedelta(hours=9)),
                timezone(timedelta(hours=-5)),
                timezone(timedelta(hours=5, minutes=30)),
            ]
        )
        text = local.astimezone(zone or COPENHAGEN).isoformat(timespec=rng.choice(["seconds", "milliseconds"]))
        return text.replace("+00:00", "Z") if zone is UTC else text

    def period(self, start: When, end: When | None) -> Json:
        return {"start": self.day(start), **({"end": self.day(end)} if end else {})}

    # ... resources

    def person(self) -> None:
        rng, child = self.rng, self.child
        count = rng.choice([1] * 9 + [2, 3])
        self.patients = [f"{child.name}.patient{n}" for n in range(count)]
        ways = [rng.choice(["replaced-by", "replaces", "both"]) for _ in range(count - 1)]
        for n, name in enumerate(self.patients):
            links = []
            if n < count - 1 and ways[n] != "replaces":
                links.append({"other": {"reference": "@" + self.patients[n + 1]}, "type": "replaced-by"})
            if n > 0 and ways[n - 1] != "replaced-by":
                links.append({"other": {"reference": "@" + self.patients[n - 1]}, "type": "replaces"})
            gender = None if child.sex == "unknown" and rng.random() < 0.5 else child.sex
            birth = None
            if child.birth:
                low, high = child.birth.low, child.birth.high
                birth = low.isoformat() if low == high else f"{low:%Y-%m}" if (high - low).days < 31 else f"{low:%Y}"
            patient = self.add(
                "Patient", name, gender=gender, birthDate=birth, link=links or None, active=n == count - 1
            )
            if rng.random() < 0.1:
                patient["_birthDate"] = (
                    {
                        "extension": [
                            {
                                "url": "http://hl7.org/fhir/StructureDefinition/patient-birthTime",
                                "valueDateTime": f"{birth}T11:30:00+01:00",
                            }
                        ]
                    }
                    if birth and len(birth) == 10
                    else {
                        "extension": [
                            {
                                "url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
                                "valueCode": "unknown",
                            }
                        ]
                    }
                )
            if child.died:
                patient["deceasedDateTime"] = child.died.isoformat()

    def site(self, bone: str, side: str | None) -> Json:
        made = self.concept((SNOMED, self.rng.choice(BONES[bone])))
        if side:
            made["coding"].insert(self.rng.randint(0, len(made["coding"])), self.coding(SNOMED, SIDES[side]))
        return made

    def conditions(self) -> None:
        rng, child = self.rng, self.child
        for diagnosis in child.diagnoses:
            subject = self.subject()
            codings: list[Json] = []
            sites = list(diagnosis.sites)
            body: list[Json] | None = None
            text = None
            if diagnosis.text_only:
                text = rng.choice(TEXTS)
                codings = [self.coding(*rng.choice(SHADOWS))] if rng.random() < 0.5 else []
            else:
                if "crmo" in diagnosis.diseases:
                    pair = rng.choice(CRMO)
                    if len(sites) == 1 and sites[0][1] and rng.random() < 0.5:
                        bone, side = sites[0]
                        if (bone, side) in CM_SIDED and rng.random() < 0.5:
                            pair, body = (ICD10CM, CM_SIDED[bone, side]), [self.site(bone, None)]
                        else:
                            pair, body = (rng.choice([SKS, SKS_D]), "DM863" + SUFFIX[side]), [self.site(bone, None)]
                    codings.append(self.coding(*pair))
                if "sapho" in diagnosis.diseases:
                    codings.append(self.coding(*rng.choice(SAPHO)))
                if not diagnosis.diseases or rng.random() < 0.15:
                    codings.append(self.coding(*rng.choice(SHADOWS)))
                rng.shuffle(codings)
            code = {**({"coding": codings} if codings else {}), **({"text": text} if text else {})}
            status: Json | None = {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/condition-ver-status",
                        "code": diagnosis.verification,
                    }
                ]
            }
            if diagnosis.verification == "confirmed" and rng.random() < 0.3:
                status = None
            made = self.add("Condition", diagnosis.name, code=code, subject=subject, verificationStatus=status)
            made["clinicalStatus"] = {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/condition-clinical",
                        "code": rng.choice(["active", "remission", "resolved"]),
                    }
                ]
            }
            if diagnosis.verification == "entered-in-error":
                del made["clinicalStatus"]
            if sites:
                made["bodySite"] = body or [self.site(b, s) for b, s in sites]
            if diagnosis.when is None:
                continue
            source = rng.choice(["recordedDate", "recordedDate", "encounter", "onset"])
            earlier = on(diagnosis.when.low - days(rng.randint(1, 700)))
            place = source if source != "recordedDate" else None
            if source == "recordedDate":
                made["recordedDate"] = self.day(diagnosis.when)
                place = rng.choice([None, "encounter", "onset"])
            visit = earlier if source == "recordedDate" else diagnosis.when
            if place == "encounter":
                name = diagnosis.name + ".visit"
                self.add("Encounter", name, status="finished", subject=subject, period={"start": self.day(visit), "end": self.day(visit)},
                         **{"class": [{"coding": [{"code": "AMB"}]}] if self.r5 else {"code": "AMB"}})  # fmt: skip
                made["encounter"] = {"reference": "@" + name}
                if source == "encounter" and rng.random() < 0.5:
                    made["onsetDateTime"] = self.day(earlier)
            elif place == "onset":
                if rng.random() < 0.7:
                    made["onsetDateTime"] = self.day(visit)
                else:
                    made["onsetPeriod"] = {"start": self.day(visit)}

    def lesions(self) -> None:
        for number, (bone, side, counts) in enumerate(self.child.lesions):
            code = self.concept(self.rng.choice([(HPO, "HP:6000917"), (SNOMED, "169083003")]))
            status = (
                self.rng.choice(["final", "amended", "corrected"])
                if counts
                else self.rng.choice(["entered-in-error", "cancelled"])
            )
            when = self.child.last_seen or date(2006, 6, 6)
            self.add("Observation", f"{self.child.name}.lesion{number}", status=status, code=code, subject=self.subject(),
                     bodySite=self.site(bone, side), effectiveDateTime=self.day(min(when, date(2006, 6, 6))))  # fmt: skip

    def drug(self, record: Exposure, holder: Json) -> None:
        """The drug of a medication resource: a code, a reference or a contained Medication."""
        rng, drug = self.rng, DRUGS[record.agent]
        atc = rng.choice(drug.atc)
        forms: list[tuple[str, str]] = [(ATC, atc)] * 3 + [(SKS, "M" + atc)]
        forms += [(SNOMED, drug.snomed)] if drug.snomed else []
        forms += [(RXNORM, drug.rxnorm)] if drug.rxnorm else []
        forms += [(SKS, drug.sks)] if drug.sks and record.agent != "triamcinolone" else []
        pair = rng.choice(forms)
        way = 0.0 if record.product else rng.random()
        if way < 0.6:
            concept = self.concept(pair)
            if record.product:
                concept["text"] = record.product
            holder.update({"medication": {"concept": concept}} if self.r5 else {"medicationCodeableConcept": concept})
            return
        if drug.snomed and rng.random() < 0.4:
            item = self.concept((SNOMED, drug.snomed))
            inside: Json = {"ingredient": [{"item": {"concept": item}} if self.r5 else {"itemCodeableConcept": item}]}
            if rng.random() < 0.5:
                inside["code"] = {"text": "et præparat"}
        else:
            inside = {"code": self.concept(pair)}
        if way < 0.8:
            holder["contained"] = [{"resourceType": "Medication", "id": "med1", **inside}]
            reference = {"reference": "#med1"}
        else:
            name = f"{self.child.name}.medication.{record.agent}"
            if name not in self.medications:
                self.medications[name] = name
                self.add("Medication", name, **inside)
            reference = {"reference": "@" + name}
        holder.update({"medication": {"reference": reference}} if self.r5 else {"medicationReference": reference})

    def why(self, record: Exposure, holder: Json) -> None:
        rng = self.rng
        concepts, references = [], []
        for kind in sorted(record.indications):
            if kind == "crmo" and rng.random() < 0.5:
                able = [
                    d
                    for d in self.child.diagnoses
                    if d.verification == "confirmed" and d.diseases == {"crmo"} and not d.text_only
                ]
                if able:
                    references.append({"reference": "@" + rng.choice(able).name})
                    continue
            if kind == "other" and rng.random() < 0.4:
                name = f"{self.child.name}.otherdisease"
                if all(r["_name"] != name for r in self.resources):
                    self.add("Condition", name, code=self.concept(rng.choice(OTHER_DISEASE)), subject=self.subject())
                references.append({"reference": "@" + name})
                continue
            concepts.append(self.concept(rng.choice(CRMO if kind == "crmo" else OTHER_DISEASE)))
        if self.r5:
            both = [{"concept": c} for c in concepts] + [{"reference": r} for r in references]
            if both:
                holder["reason"] = both
            return
        if concepts:
            holder["reasonCode"] = concepts
        if references:
            holder["reasonReference"] = references

    def stops(self, reasons: set[str]) -> list[Json]:
        return [self.concept(self.rng.choice(REASONS[r])) for r in sorted(reasons)]

    def exposures(self) -> None:
        rng = self.rng
        requests: dict[str, set[str]] = {}
        for record in self.child.exposures:
            if record.rung == "statement":
                self.statement(record)
            elif record.rung == "dispense":
                self.dispense(record)
            elif record.rung == "order":
                self.order(record)
            elif record.procedure:
                self.procedure(record)
            else:
                self.administration(record)
                if record.request:
                    requests[record.request] = requests.get(record.request, set()) | record.reasons
            for number, day in enumerate(record.adverse):
                event = self.add(
                    "AdverseEvent", f"{record.name}.event{number}", actuality="actual", subject=self.subject()
                )
                event["occurrenceDateTime" if self.r5 else "date"] = self.day(day)
                target = {"reference": "@" + record.name}
                event["suspectEntity"] = [{"instanceReference": target} if self.r5 else {"instance": target}]
                if self.r5:
                    event["status"] = "completed"
        for name, reasons in requests.items():
            first = next(r for r in self.child.exposures if r.request == name)
            made = self.add(
                "MedicationRequest",
                name,
                status="stopped" if reasons else "active",
                intent="order",
                subject=self.subject(),
                authoredOn=self.day(first.start),
            )
            self.drug(first, made)
            if reasons:
                made["statusReason"] = (
                    self.stops(reasons)[0]
                    if len(reasons) == 1
                    else {"coding": [c for s in self.stops(reasons) for c in s["coding"]]}
                )
        rng.shuffle(self.resources)

    def statement(self, record: Exposure) -> None:
        rng = self.rng
        made = self.add(
            "MedicationStatement",
            record.name,
            subject=self.subject(),
            effectivePeriod=self.period(record.start, record.end),
        )
        self.drug(record, made)
        self.why(record, made)
        stops = self.stops(record.reasons)
        if self.r5:
            made["status"] = "recorded"
            adherence: Json = {}
            if record.taken == "no":
                way = rng.choice(["entered-in-error", "draft", "not-taking"])
                if way == "not-taking":
                    adherence["code"] = {
                        "coding": [
                            {
                                "system": "http://hl7.org/fhir/CodeSystem/medication-statement-adherence",
                                "code": "not-taking",
                            }
                        ]
                    }
                else:
                    made["status"] = way
            elif record.taken == "on-hold":
                adherence["code"] = {
                    "coding": [
                        {"system": "http://hl7.org/fhir/CodeSystem/medication-statement-adherence", "code": "on-hold"}
                    ]
                }
            elif rng.random() < 0.5 or stops:
                adherence["code"] = {
                    "coding": [
                        {
                            "system": "http://hl7.org/fhir/CodeSystem/medication-statement-adherence",
                            "code": rng.choice(["taking", "taking-as-directed"]),
                        }
                    ]
                }
            if stops:
                adherence["reason"] = (
                    stops[0] if len(stops) == 1 else {"coding": [c for s in stops for c in s["coding"]]}
                )
            if adherence:
                made["adherence"] = adherence
        else:
            taken = ["active"] if record.end is None else ["completed", "stopped", "active"]
            made["status"] = rng.choice(
                {"yes": taken, "no": ["entered-in-error", "not-taken", "intended"], "on-hold": ["on-hold"]}[
                    record.taken
                ]
            )
            if stops:
                made["statusReason"] = stops
        if record.joint:
            made["dosage"] = [{"route": self.concept((SNOMED, "12130007"))}]

    def administration(self, record: Exposure) -> None:
        rng = self.rng
        status = (
            rng.choice(["completed", "completed", "in-progress"])
            if record.taken == "yes"
            else rng.choice(["not-done", "entered-in-error"])
        )
        made = self.add("MedicationAdministration", record.name, status=status, subject=self.subject())
        self.drug(record, made)
        self.why(record, made)
        stem = "occurence" if self.r5 else "effective"
        if record.once and rng.random() < 0.8:
            made[stem + "DateTime"] = self.day(record.start)
        else:
            made[stem + "Period"] = self.period(record.start, record.start if record.once else record.end)
        if record.once and stem + "Period" in made:
            noon = record.start.low.isoformat()
            made[stem + "Period"] = {"start": noon + "T09:00:00+02:00", "end": noon + "T11:00:00+02:00"}
        if record.request:
            made["request"] = {"reference": "@" + record.request}

    def dispense(self, record: Exposure) -> None:
        status = "completed" if record.taken == "yes" else self.rng.choice(["cancelled", "entered-in-error"])
        made = self.add("MedicationDispense", record.name, status=status, subject=self.subject())
        self.drug(record, made)
        made["whenHandedOver"] = self.day(record.start)
        if record.end:
            made["daysSupply"] = {
                "value": (record.end.low - record.start.low).days,
                "unit": "day",
                "system": "http://unitsofmeasure.org",
                "code": "d",
            }

    def order(self, record: Exposure) -> None:
        status = self.rng.choice(["active"] if record.end is None else ["active", "completed", "stopped"])
        if record.taken != "yes":
            status = self.rng.choice(["draft", "cancelled", "entered-in-error"])
        made = self.add(
            "MedicationRequest",
            record.name,
            status=status,
            intent="order",
            subject=self.subject(),
            authoredOn=self.day(record.start),
        )
        if record.plan:
            made["intent"] = self.rng.choice(["plan", "proposal"])
        period = self.period(record.start, record.end)
        made["dosageInstruction"] = [{"timing": {"repeat": {"boundsPeriod": period}}}]
        made["dispenseRequest"] = {"validityPeriod": period}
        self.drug(record, made)
        self.why(record, made)
        stops = self.stops(record.reasons)
        if stops:
            made["statusReason"] = {"coding": [c for s in stops for c in s["coding"]]}

    def procedure(self, record: Exposure) -> None:
        rng = self.rng
        drug = DRUGS[record.agent]
        status = (
            rng.choice(["completed", "in-progress"])
            if record.taken == "yes"
            else rng.choice(["not-done", "entered-in-error"])
        )
        pair = (SKS, drug.sks) if rng.random() < 0.7 else (SKS, "M" + rng.choice(drug.atc))
        made = self.add("Procedure", record.name, status=status, subject=self.subject(), code=self.concept(pair))
        self.why(record, made)
        stem = "occurrence" if self.r5 else "performed"
        if record.once:
            made[stem + "DateTime"] = self.day(record.start)
        else:
            made[stem + "Period"] = self.period(record.start, record.end)

    def imaging(self) -> None:
        rng = self.rng
        for scan in self.child.scans:
            mr = {"system": self.rng.choice([DCM, DCM, "urn:oid:1.2.840.10008.2.16.4"]), "code": "MR"}
            if not scan.counts and rng.random() < 0.5:
                mr["code"], status = "CT", "available"
            else:
                status = "available" if scan.counts else rng.choice(["entered-in-error", "cancelled"])
            made = self.add(
                "ImagingStudy", scan.name, status=status, subject=self.subject(), started=self.day(scan.day)
            )
            modality: Json = {"coding": [mr]} if self.r5 else mr
            self.cover(scan, made)
            if rng.random() < 0.5:
                made["modality"] = [modality]
            else:
                made.setdefault("series", []).append({"uid": f"1.2.3.{rng.randint(1, 10**9)}", "modality": modality})
            for series in made.get("series", []):
                series.setdefault("modality", modality)

    def cover(self, scan: Scan, study: Json) -> None:
        """What a study covers, by its code, or bone by bone on its series."""
        rng = self.rng
        if scan.covers in MR_CODES and (len(scan.covers) != 1 or "all" in scan.covers or rng.random() < 0.5):
            if not scan.covers and rng.random() < 0.5:
                return
            concept = self.concept(rng.choice(MR_CODES[scan.covers]))
            study.update({"procedure": [{"concept": concept}]} if self.r5 else {"procedureCode": [concept]})
            return
        codings = [self.coding(SNOMED, rng.choice(BONES[bone])) for bone in sorted(scan.covers)]
        study["series"] = [
            {"uid": f"1.2.4.{rng.randint(1, 10**9)}", "bodySite": {"concept": {"coding": [one]}} if self.r5 else one}
            for one in codings
        ]

    def assessments(self) -> None:
        rng = self.rng
        for seen in self.child.assessments:
            answers = (CLINICAL if seen.kind == "clinical" else MRI)[seen.value]
            status = (
                rng.choice(["final", "final", "amended", "corrected"])
                if seen.counts
                else rng.choice(["entered-in-error", "cancelled"])
            )
            made = self.add(
                "Observation",
                seen.name,
                status=status,
                subject=self.subject(),
                valueCodeableConcept=self.concept(rng.choice(answers)),
            )
            made["code"] = self.concept((OWN, "treatment-effect" if seen.kind == "clinical" else "mri-change"))
            stamp = self.day(seen.day)
            made["effectiveInstant" if "T" in stamp and rng.random() < 0.3 else "effectiveDateTime"] = stamp
            part_of, focus = list(seen.part_of), list(seen.focus)
            if seen.kind == "mri" and seen.scans and rng.random() < 0.2:
                part_of.append(seen.scans[-1])
            if not focus and rng.random() < 0.3 and self.child.diagnoses:
                focus.append(self.child.diagnoses[0].name)
            for element, names in (("partOf", part_of), ("focus", focus), ("derivedFrom", seen.scans)):
                if names:
                    made[element] = [{"reference": "@" + n} for n in names]

    def all(self) -> list[Json]:
        self.person()
        self.conditions()
        self.lesions()
        self.imaging()
        self.assessments()
        self.exposures()
        if self.child.last_seen:
            self.add("Encounter", f"{self.child.name}.lastseen", status="finished", subject=self.subject(),
                     period={"start": self.day(self.child.last_seen), "end": self.day(self.child.last_seen)},
                     **{"class": [{"coding": [{"code": "AMB"}]}] if self.r5 else {"code": "AMB"}})  # fmt: skip
        return self.resources


# --- from records to files ---------------------------------------------------------------------------------------


def mapped(node: object, change: Callable[[str], str]) -> object:
    """A copy with every `@name` reference changed, and no private element."""
    if isinstance(node, dict):
        return {
            k: change(v[1:]) if k == "reference" and isinstance(v, str) and v.startswith("@") else mapped(v, change)
            for k, v in node.items()
            if k != "_name"
        }
    return [mapped(v, change) for v in node] if isinstance(node, list) else node


class Writer:
    """Gives the records ids, places and files."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.rng, self.folder = rng, folder
        self.pool: list[Json] = []  # records of no named base
        self.bundles: list[Json] = []
        self.keys: dict[str, str] = {}  # name of a fact -> Type/id
        self.number = 0
        self.file_number = 0

    def fresh_id(self) -> str:
        self.number += 1
        n = self.number
        style = self.rng.randint(0, 5)
        if style == 0:
            return str(n)
        if style == 1:
            return f"Ab-{n // 2}" if n % 2 else f"aB-{n // 2}"
        if style == 2:
            return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
        if style == 3:
            return f"x.{n}." + "z" * 40
        return f"rec-{n:05d}"

    def place(self, resources: list[Json]) -> None:
        rng = self.rng
        mode = rng.choice(["plain"] * 5 + ["absolute", "uuid", "uuid", "url-no-id"])
        types = {r["_name"]: r["resourceType"] for r in resources}
        ids = {name: self.fresh_id() for name in types}
        uuids = {name: f"urn:uuid:{uuid.UUID(int=rng.getrandbits(128), version=4)}" for name in types}

        has_id = {name: mode in ("plain", "absolute") or (mode == "uuid" and rng.random() < 0.5) for name in types}
        for name, kind in types.items():
            own_id = ids[name] if has_id[name] or mode == "url-no-id" else uuids[name].removeprefix("urn:uuid:")
            self.keys[name] = f"{kind}/{own_id}"

        def relative(name: str) -> str:
            tail = f"/_history/{rng.randint(1, 9)}" if rng.random() < 0.1 else ""
            return f"{types[name]}/{ids[name]}{tail}"

        def change(name: str) -> str:
            if mode == "uuid":
                return uuids[name]
            if mode in ("absolute", "url-no-id") and rng.random() < 0.7:
                return f"{BASE}/{relative(name)}"
            return relative(name)

        entries = []
        for resource in resources:
            name = resource["_name"]
            made = mapped(resource, change)
            assert isinstance(made, dict)
            if has_id[name]:
                made = {"resourceType": made.pop("resourceType"), "id": ids[name], **made}
            if mode == "plain":
                self.pool.append(made)
                if rng.random() < 0.03:  # the same once more, or an older version of it
                    self.pool.append(copy.deepcopy(made))
                continue
            url = uuids[name] if mode == "uuid" else f"{BASE}/{types[name]}/{ids[name]}"
            entries.append({"fullUrl": url, "resource": made})
        if not entries:
            return
        rng.shuffle(entries)
        kind = rng.choice(["transaction", "collection", "collection"] + (["searchset"] if mode != "uuid" else []))
        parts = [entries] if mode == "uuid" else [entries[0::2], entries[1::2]]
        for part in parts:
            self.bundles.append(self.bundle(kind, part))

    def bundle(self, kind: str, entries: list[Json]) -> Json:
        for entry in entries:
            if kind == "transaction":
                entry["request"] = {"method": "POST", "url": entry["resource"]["resourceType"]}
            elif kind == "searchset":
                entry["search"] = {"mode": "match"}
        if kind == "searchset" and self.rng.random() < 0.5:
            outcome = {
                "resourceType": "OperationOutcome",
                "issue": [{"severity": "information", "code": "informational"}],
            }
            entries = [*entries, {"resource": outcome, "search": {"mode": "outcome"}}]
        return {"resourceType": "Bundle", "type": kind, "entry": entries}

    def path(self, suffix: str) -> Path:
        self.file_number += 1
        folder = self.folder / self.rng.choice(["", "", "a", "a/b", "År 2005"])
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"part{self.file_number}{suffix}"

    def dump(self, value: Json) -> str:
        if self.rng.random() < 0.3:
            value = dict(self.rng.sample(list(value.items()), len(value)))
        return json.dumps(
            value, ensure_ascii=self.rng.random() < 0.5, separators=self.rng.choice([(",", ":"), (", ", ": ")])
        )

    def ndjson(self, resources: list[Json]) -> None:
        rng = self.rng
        newline = rng.choice(["\n", "\n", "\r\n"])
        text = newline.join(self.dump(r) for r in resources) + rng.choice([newline, ""])
        data = rng.choice([b"", b"", b"\xef\xbb\xbf"]) + text.encode()
        if rng.random() < 0.3:
            self.path(".ndjson.gz").write_bytes(gzip.compress(data, mtime=0))
        else:
            self.path(".ndjson").write_bytes(data)

    def files(self) -> None:
        rng = self.rng
        resources = list(self.pool)
        rng.shuffle(resources)
        if rng.random() < 0.3:
            resources.append({"resourceType": "Unheard", "id": "u1", "note": "of"})
        style = rng.choice(["mixed", "by-type", "everything"])
        while resources:
            count = len(resources) if style == "by-type" else rng.randint(1, max(3, len(resources) // 2))
            now, resources = resources[:count], resources[count:]
            if style == "by-type":
                for kind in sorted({r["resourceType"] for r in now}):
                    self.ndjson([r for r in now if r["resourceType"] == kind])
                continue
            way = rng.random()
            if len(now) <= 3 and way < 0.5:
                for one in now:
                    self.path(".json").write_text(json.dumps(one, indent=rng.choice([None, 2])), encoding="utf-8")
            elif way < 0.35:
                # without fullUrl: beside records that name no base, one base would be foreign to the others
                self.bundles.append(
                    self.bundle(rng.choice(["collection", "searchset"]), [{"resource": r} for r in now])
                )
            else:
                self.ndjson(now)
        for bundle in self.bundles:
            self.path(".json").write_text(json.dumps(bundle, indent=rng.choice([None, None, 2])), encoding="utf-8")


def write(cohort: Cohort, folder: Path) -> dict[str, str]:
    """The cohort as a folder of FHIR records; gives the Type/id of every named resource."""
    rng = random.Random(cohort.seed + 1)
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(rng, folder)
    children = list(cohort.children)
    if cohort.stranger:
        stranger = Child(
            "stranger",
            "female",
            on(date(1999, 1, 1)),
            diagnoses=[Diagnosis(set(), "confirmed", on(date(2005, 1, 1)), name="stranger.condition0")],
        )
        stranger.exposures = [
            Exposure(
                "stranger.drug1", "naproxen", "NSAID", "statement", "yes", on(date(2005, 2, 1)), on(date(2005, 6, 1))
            )
        ]
        children.append(stranger)
    for child in children:
        writer.place(Encoder(rng, child, r5=rng.random() < cohort.r5).all())
    writer.files()
    return writer.keys
