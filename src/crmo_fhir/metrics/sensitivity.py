"""How much a headline figure hangs on each rule: one rule changed at a time, and the bounds of what nobody judged."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crmo_fhir.metrics.response import Courses, Row, Unit, derive_children
from crmo_fhir.metrics.statistics import INTERVALS
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.results import Estimate

_AS_USED = "the rules as used"
_UNJUDGED = {"worst": "whoever nobody judged counted as no effect", "best": "whoever nobody judged counted as effect"}


def compute_counts(units: Mapping[str, Sequence[Unit]]) -> dict[str, tuple[int, int]]:
    """Numerator and denominator of each headline group."""
    return {
        group: (sum(u.effect is True for u in own), sum(u.effect is not None for u in own))
        for group, own in units.items()
    }


def compute_sensitivity(
    units: Mapping[str, Sequence[Unit]],
    patients: Sequence[Row],
    courses: Courses,
    varied: Sequence[Mapping[str, Any]],
    parameters: Parameters,
) -> Iterator[Estimate]:
    """Each headline figure as used (empty stratum), with a rule changed (`gap_days=30`), and at its bounds.

    `varied` are the rows of STUDY/cohort/sensitivity.csv: the rules that need the records. The bounds are computed here.
    """

    def row(group: str, stratum: str, n: int, total: int, note: str = "") -> Estimate:
        low, high = INTERVALS[parameters.interval](n, total) if total else (None, None)
        note = note if total else "; ".join(filter(None, (note, "no proportion: nothing to count (0/0)")))
        value = n / total if total else None
        method = parameters.interval if total else ""
        return Estimate("sensitivity", group, "proportion", stratum, None, n, total, value, low, high, method, note)

    used = compute_counts(units)
    unjudged = {group: sum(u.effect is None for u in own) for group, own in units.items()}
    treated = derive_children("NSAID", patients, courses, parameters)
    for group, (n, total) in used.items():
        yield row(group, "", n, total, _AS_USED)
        for one in varied:
            if one["group"] == group:
                yield row(group, f"{one['parameter']}={one['value']}", one["n"], one["N"])
        # the unjudged NSAID children are in the denominator of the whole cohort already
        extra = unjudged[group]
        more = sum(u.effect is None for u in treated) if group == "nsaid-clinical" else extra
        yield row(group, "evaluability=worst", n, total + extra, _UNJUDGED["worst"])
        yield row(group, "evaluability=best", n + more, total + extra, _UNJUDGED["best"])
