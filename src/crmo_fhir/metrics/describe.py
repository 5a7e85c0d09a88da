"""Who the children are: counts of children, foci and TNF-α lines."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from crmo_fhir.metrics.statistics import INTERVALS
from crmo_fhir.model.results import Estimate, Result
from crmo_fhir.model.tables import FOCALITIES, SEXES

Row = dict[str, Any]


def share(
    group: str, unit: str, n: int, total: int, interval: str, *, stratifier: str = "", stratum: str = "", note: str = ""
) -> Result:
    """Give n of N as a row with its interval; 0/0 has neither."""
    if total == 0:
        why = note or "no proportion: nothing to count (0/0)"
        return Result(group, unit, n, total, stratifier=stratifier, stratum=stratum, note=why)
    low, high = INTERVALS[interval](n, total)
    return Result(group, unit, n, total, stratifier, stratum, n / total, low, high, interval, note)


def count(group: str, unit: str, n: int, note: str = "a count: everything counted is in it") -> Result:
    """A group that is only counted (n = N)."""
    return Result(group, unit, n, n, proportion=1.0 if n else None, note=note if n else "nothing to count (0/0)")


def strata(
    group: str, unit: str, stratifier: str, values: Iterable[str], counts: Counter[str], total: int, interval: str
) -> list[Result]:
    """One row a value: how many of all have it."""
    return [share(group, unit, counts[v], total, interval, stratifier=stratifier, stratum=v) for v in values]


def sapho_of(patient: Row) -> str:
    """SAPHO ever, as a stratum."""
    return "yes" if patient["sapho"] else "no"


def compute_cohort(patients: Sequence[Row], interval: str) -> list[Result]:
    """The cohort, overall and by sex, focality and SAPHO (ever and at diagnosis)."""
    total = len(patients)
    cuts = (
        ("sex", SEXES, Counter(p["sex"] for p in patients)),
        ("focality", FOCALITIES, Counter(p["focality"] for p in patients)),
        ("sapho", ("yes", "no"), Counter(sapho_of(p) for p in patients)),
        ("sapho-at-diagnosis", ("yes", "no", "unknown"), Counter(p["sapho_at_diagnosis"] for p in patients)),
    )
    rows = [count("cohort", "patient", total)]
    for stratifier, values, counts in cuts:
        rows += strata("cohort", "patient", stratifier, values, counts, total, interval)
    return rows


def compute_foci(patients: Sequence[Row], foci: Sequence[Row], interval: str) -> list[Result]:
    """Distinct foci, by bone; and the children with a focus in each bone (the two readings of "foci in the tibia")."""
    by_bone = Counter(f["bone"] for f in foci)
    children = Counter(bone for _, bone in {(f["person"], f["bone"]) for f in foci})
    bones = sorted(by_bone)
    return [
        count("foci", "focus", len(foci)),
        *strata("foci", "focus", "bone", bones, by_bone, len(foci), interval),
        *strata("foci", "patient", "bone-patients", bones, children, len(patients), interval),
    ]


def compute_flags(courses: Sequence[Row]) -> Iterator[Estimate]:
    """How many courses, those out of the figures too, hold each flag of the table `courses`."""
    counts = Counter(flag for course in courses for flag in course["flags"])
    for flag, n in sorted(counts.items()):
        yield Estimate("flag", "courses", flag, n=n, N=len(courses), note="courses with this flag")
    if not counts:
        yield Estimate("flag", "courses", "none", n=0, N=len(courses), note="no course has a flag")


def compute_lines(courses: Sequence[Row], interval: str) -> list[Result]:
    """Children treated with a TNF-α inhibitor, by the lines they reached and the line they ended at."""
    lines: dict[str, int] = defaultdict(int)
    for course in courses:
        if course["drug_class"] == "TNF" and course["left_out"] is None:
            lines[course["person"]] = max(lines[course["person"]], course["line_no"])
    total, most = len(lines), max(lines.values(), default=0)
    numbers = [str(number) for number in range(1, max(most, 3) + 1)]
    reached = Counter(str(n) for last in lines.values() for n in range(1, last + 1))
    ended = Counter(str(last) for last in lines.values())
    return [
        count("tnfi-lines", "patient", total, "children treated with a TNF inhibitor"),
        *strata("tnfi-lines", "patient", "line-reached", numbers, reached, total, interval),
        *strata("tnfi-lines", "patient", "line-ended", numbers, ended, total, interval),
    ]
