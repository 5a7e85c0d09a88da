"""What is computed of a cohort, before any output: n of N (`results.csv`), and what is no n of N (`statistics.csv`)."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """n of N in one stratum of one group.

    `proportion` is n/N as an unrounded fraction, None for 0/0 or where n/N is no proportion; `note` then says why.
    The overall row of a group has empty `stratifier` and `stratum`. In a release a masked count is None, and a row with
    one has no proportion and no interval (`note`: MASKED).
    """

    group: str
    unit: str
    n: int | None
    N: int | None
    stratifier: str = ""
    stratum: str = ""
    proportion: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_method: str = ""
    note: str = ""

    @property
    def masked(self) -> bool:
        """Whether a count of the row is held back."""
        return self.n is None or self.N is None


MASKED = "masked"
"""Note of a row whose counts are not all shown."""
COLUMNS = (
    "group",
    "stratifier",
    "stratum",
    "unit",
    "n",
    "N",
    "proportion",
    "ci_low",
    "ci_high",
    "ci_method",
    "note",
)


@dataclass(frozen=True, slots=True)
class Member:
    """One thing that a group counts (a child, a course or a focus), the child it is of, and the resources it rests on.

    It is in the initial population; in the denominator where `evaluable`, in the numerator where `effect`. `strata` are its
    values by stratifier, `sources` the keys (`Type/id`) of the resources.
    """

    group: str
    person: str
    evaluable: bool
    effect: bool
    strata: Mapping[str, str]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """One statistic that is no n of N: a row of `statistics.csv`.

    `analysis` is one of ANALYSES, `group` what it is of (`clinical`, `tnfi`, `mtx-mri`, ...), `statistic` its name and
    `stratum` a further cut (agent, line, parameter). `time` is in days since the start of the course (curves). `n` of `N` are
    the units behind it, where that says something. `value`, `low` and `high` are unrounded; where it cannot be computed,
    `value` is None and `note` says why.
    """

    analysis: str
    group: str
    statistic: str
    stratum: str = ""
    time: int | None = None
    n: int | None = None
    N: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = ""
    note: str = ""


ANALYSES = {
    "comparison": "methotrexate against TNF-α inhibitors, descriptive: the same children one after the other",
    "survival": "drug survival: courses not yet stopped for inefficacy or an adverse event (Kaplan-Meier)",
    "incidence": "courses stopped by then, by cause, remission competing (Aalen-Johansen)",
    "response": "courses with a sufficient effect by then (Kaplan-Meier)",
    "switch": "what followed a line of TNF-α inhibitors, and why",
    "agreement": "how far two sources of the effect agree (Cohen's kappa)",
    "sensitivity": "a headline figure with one rule changed",
    "reading": "a way to count the TNF-α treatments of the published n",
    "mentioned": "children with what the source mentions without a figure",
    "flag": "courses with what a reader should know of them",
}
"""The analyses of `statistics.csv`, in order."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One course in a timeline; `start` and `end` in days since the diagnosis."""

    drug_class: str
    agent: str
    line: int | None
    start: int
    end: int
    ongoing: bool
    effect: str | None
    stop_reason: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The treatment of one child, who is named by a number; days since the diagnosis.

    `marks` are (day, kind, value): judged effects and MR studies; `followed` is the last day of observation.
    """

    label: str
    followed: int
    bars: tuple[Bar, ...]
    marks: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Trend:
    """The values of one analyte, score or lesion count in one child by days since the first TNF-α inhibitor (else MTX)."""

    label: str
    analyte: str
    unit: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that is computed beside the result rows. A release has none of it: its small counts cannot be protected."""

    estimates: tuple[Estimate, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    trends: tuple[Trend, ...] = ()


NO_ANALYSIS = Analysis()
