"""Who is in the cohort: the criteria in their order, each a row of the attrition (clinical rules §4).

confirmed CRMO → one person → date of diagnosis in the window → under the age limit → cohort. A test that a partial date
cannot decide puts the child apart (`undetermined`), never in or out by guess.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from crmo_fhir.errors import IncompleteError
from crmo_fhir.fhir.dates import PartialDate, birthday, earliest
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.tables import rows_of

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
AFTER_LOCK = "after the data lock"


@dataclass(frozen=True, slots=True)
class Child:
    """One child of the cohort, merged records taken together."""

    person: str
    records: tuple[str, ...]
    sex: str
    birth: PartialDate | None
    deceased: bool
    death: PartialDate | None
    diagnosis: PartialDate
    diagnosis_source: str
    onset: PartialDate | None
    conditions: tuple[str, ...]
    sapho: bool
    sapho_at_diagnosis: str


@dataclass(slots=True)
class Attrition:
    """Rows of the attrition, filled from the first step to the last."""

    kept: int
    rows: list[Row]

    def drop(self, step: str, reasons: Mapping[str, int]) -> None:
        """One row a reason (sorted), or a single row for a step that dropped nobody."""
        for reason, dropped in sorted(reasons.items()):
            self.kept -= dropped
            self.rows.append({"step": step, "reason": reason, "kept": self.kept, "dropped": dropped})
        if not reasons:
            self.rows.append({"step": step, "reason": "", "kept": self.kept, "dropped": 0})


def partial(row: Row, name: str) -> PartialDate | None:
    """The partial date in the columns `name_low`, `name_high`."""
    return PartialDate(row[f"{name}_low"], row[f"{name}_high"]) if row[f"{name}_low"] is not None else None


def compute_contradiction(when: PartialDate | None, child: Child, as_of: date, data_lock: date | None) -> str | None:
    """Why a record of what was seen in a child does not count: it cannot be, or it is later than the study's data.

    It is refused and listed, never moved (edge cases E16, E17, E43).
    """
    if when is None:
        return None
    if when.low > as_of:
        return "in the future"
    if data_lock is not None and when.low > data_lock:
        return AFTER_LOCK
    if child.birth is not None and when.high < child.birth.low:
        return "before birth"
    if child.death is not None and when.low > child.death.high:
        return "after death"
    return None


def derive_persons(patients: Iterable[str], links: Iterable[Row]) -> dict[str, str]:
    """Each Patient key → the key of the record that survives (edge case E42).

    Raises IncompleteError where `replaced-by` forms a cycle: then nobody can say which record stands.
    """
    known = set(patients)
    parent = {key: key for key in known}
    replaced: dict[str, set[str]] = defaultdict(set)

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for link in links:
        one, other = link["patient"], link["other"]
        if one not in known or other not in known or one == other:
            continue
        if link["type"] == "replaced-by":
            replaced[one].add(other)
        elif link["type"] == "replaces":
            replaced[other].add(one)
        parent[max(root(one), root(other))] = min(root(one), root(other))
    _refuse_cycles(replaced)
    groups: dict[str, list[str]] = defaultdict(list)
    for key in known:
        groups[root(key)].append(key)
    return {key: min([k for k in group if not replaced[k]] or group) for group in groups.values() for key in group}


def _refuse_cycles(replaced: Mapping[str, set[str]]) -> None:
    done: set[str] = set()
    for start in sorted(replaced):
        path: list[str] = []
        stack = [(start, False)]
        while stack:
            key, leaving = stack.pop()
            if leaving:
                path.pop()
                done.add(key)
            elif key in path:
                raise IncompleteError(
                    "Patient.link: 'replaced-by' forms a cycle of merged records; correct the merge in the source"
                )
            elif key not in done:
                path.append(key)
                stack.append((key, True))
                stack.extend((other, False) for other in sorted(replaced.get(key, ())))


def compute_verdict(conditions: Iterable[Row]) -> tuple[str, list[Row]]:
    """Whether a disease stands, from all its Conditions in one person, and the confirmed ones it stands on.

    Returns (`confirmed` | `refuted` | `unconfirmed` | `entered-in-error` | `undetermined`, confirmed Conditions). A
    refutation counts when it is later than every confirmation, or on the same day (edge case E40); where the dates
    cannot tell, the answer is undetermined.
    """
    stated = [c for c in conditions if c["verification"] != "entered-in-error"]
    if not stated:
        return "entered-in-error", []
    confirmed = [c for c in stated if c["verification"] == "confirmed"]
    refuted = [c for c in stated if c["verification"] == "refuted"]
    if not confirmed:
        return ("refuted" if refuted else "unconfirmed"), []
    if not refuted:
        return "confirmed", confirmed
    confirmations = [partial(c, "date") for c in confirmed]
    refutations = [partial(c, "date") for c in refuted]
    if all(r and any(c and r.high < c.low for c in confirmations) for r in refutations):
        return "confirmed", confirmed
    if any(r and all(c and c.high <= r.low for c in confirmations) for r in refutations):
        return "refuted", []
    return "undetermined", []


def filter_cohort(
    facts: Mapping[str, "pd.DataFrame"], parameters: Parameters, as_of: date
) -> tuple[list[Child], list[Row]]:
    """The children of the cohort and the attrition's rows about persons.

    `as_of` is the day of the extraction: a diagnosis dated later is refused. Counts are Patient records up to the step
    `one person`, persons from there on.
    """
    patients = {row["patient"]: row for row in rows_of(facts["patient"])}
    person_of = derive_persons(patients, rows_of(facts["patient_link"]))
    records: dict[str, list[str]] = defaultdict(list)
    for key in sorted(patients):
        records[person_of[key]].append(key)
    crmo: dict[str, list[Row]] = defaultdict(list)
    sapho: dict[str, list[Row]] = defaultdict(list)
    for row in rows_of(facts["condition"]):
        if (person := person_of.get(row["patient"])) is None:
            continue
        when = partial(row, "date")
        in_future = when is not None and when.low > as_of
        condition = {**row, "date_low": None, "date_high": None} if in_future else row
        if row["disease"] == "crmo":
            crmo[person].append(condition)
        elif row["disease"] == "sapho" and row["evidence"] == "code":
            sapho[person].append(condition)

    attrition = Attrition(len(patients), [])
    attrition.rows.append(
        {
            "step": "candidates",
            "reason": "a Patient with a qualifying code or text",
            "kept": len(patients),
            "dropped": 0,
        }
    )
    remaining = dict(records)

    def drop(step: str, failed: Mapping[str, str], *, in_records: bool) -> None:
        attrition.drop(
            step,
            Counter(reason for person, reason in failed.items() for _ in (remaining[person] if in_records else [0])),
        )
        for person in failed:
            del remaining[person]

    def evidence(person: str) -> list[Row]:
        return [c for c in crmo[person] if parameters.text_diagnosis or c["evidence"] == "code"]

    drop(
        "diagnosis coded",
        {
            p: "found by text only, shown apart" if crmo[p] else "no qualifying diagnosis"
            for p in remaining
            if not evidence(p)
        },
        in_records=True,
    )
    verdicts = {p: compute_verdict(evidence(p)) for p in remaining}
    drop("confirmed", {p: v for p, (v, _) in verdicts.items() if v != "confirmed"}, in_records=True)
    merged = sum(len(r) - 1 for r in remaining.values())
    attrition.drop("one person", {"merged records": merged} if merged else {})

    dated = {p: [c for c in verdicts[p][1] if c["date_low"] is not None] for p in remaining}
    diagnosis = {p: earliest([PartialDate(c["date_low"], c["date_high"]) for c in cs]) for p, cs in dated.items() if cs}
    drop(
        "diagnosis in window",
        {p: r for p in remaining if (r := _outside(diagnosis.get(p), parameters))},
        in_records=False,
    )

    births = {p: _birth(p, records[p], patients) for p in remaining}
    drop(
        f"under {parameters.max_age_years} at diagnosis",
        {p: r for p in remaining if (r := _too_old(births[p], diagnosis[p], parameters.max_age_years))},
        in_records=False,
    )
    attrition.rows.append({"step": "cohort", "reason": "", "kept": len(remaining), "dropped": 0})

    children = []
    for person in sorted(remaining):
        first = min(dated[person], key=lambda c: (c["date_low"], c["date_high"], c["date_source"] or ""))
        deaths = [d for k in records[person] if (d := partial(patients[k], "death"))]
        has_sapho, at_diagnosis = _sapho(sapho[person], diagnosis[person])
        children.append(
            Child(
                person=person,
                records=tuple(records[person]),
                sex=_sex(person, records[person], patients),
                birth=births[person],
                deceased=any(patients[k]["deceased"] for k in records[person]),
                death=earliest(deaths) if deaths else None,
                diagnosis=diagnosis[person],
                diagnosis_source=first["date_source"] or "",
                onset=_onset(verdicts[person][1], diagnosis[person]),
                conditions=tuple(sorted(c["condition"] for c in verdicts[person][1])),
                sapho=has_sapho,
                sapho_at_diagnosis=at_diagnosis,
            )
        )
    return children, attrition.rows


def _outside(diagnosis: PartialDate | None, parameters: Parameters) -> str | None:
    if diagnosis is None:
        return "undetermined: no date of diagnosis"
    if parameters.data_lock is not None and diagnosis.low > parameters.data_lock:
        return "diagnosed " + AFTER_LOCK
    match diagnosis.within(parameters.since, parameters.until):
        case True:
            return None
        case None:
            return "undetermined: partial date of diagnosis"
    return (
        "diagnosed before the window"
        if parameters.since and diagnosis.high < parameters.since
        else "diagnosed after the window"
    )


def _too_old(birth: PartialDate | None, diagnosis: PartialDate, limit: int) -> str | None:
    if birth is None:
        return "undetermined: no date of birth"
    if diagnosis.high < birth.low:
        return "contradiction: diagnosed before birth"
    if diagnosis.high < birthday(birth.low, limit):
        return None
    if diagnosis.low >= birthday(birth.high, limit):
        return f"{limit} or older at diagnosis"
    return "undetermined: partial date of birth or diagnosis"


def _onset(conditions: list[Row], diagnosis: PartialDate) -> PartialDate | None:
    """The earliest onset recorded by the confirmed Conditions; one after the diagnosis is none (edge case E38)."""
    told = [when for c in conditions if (when := partial(c, "onset")) and when.low <= diagnosis.high]
    return earliest(told) if told else None


def _survivor_first(person: str, records: list[str]) -> list[str]:
    return [person, *[key for key in records if key != person]]


def _birth(person: str, records: list[str], patients: Mapping[str, Row]) -> PartialDate | None:
    return next((b for key in _survivor_first(person, records) if (b := partial(patients[key], "birth"))), None)


def _sex(person: str, records: list[str], patients: Mapping[str, Row]) -> str:
    found = (patients[key]["sex"] for key in _survivor_first(person, records))
    return next((sex for sex in found if sex != "unknown"), "unknown")


def _sapho(conditions: list[Row], diagnosis: PartialDate) -> tuple[bool, str]:
    """SAPHO ever, and by the date of diagnosis (two figures: fhir-input, row SAPHO)."""
    if not conditions or compute_verdict(conditions)[0] != "confirmed":
        return False, "no"
    dates = [d for c in compute_verdict(conditions)[1] if (d := partial(c, "date"))]
    if not dates:
        return True, "unknown"
    first = earliest(dates)
    if first.high <= diagnosis.low:
        return True, "yes"
    return True, "no" if first.low > diagnosis.high else "unknown"
