"""The Result row: one statistic, before any output (`results.csv` is exactly these rows)."""

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
