"""Methotrexate against TNF-α inhibitors, and one source of the effect against another (clinical rules §5).

The same children come first to the one and then to the other drug, so whoever got a TNF-α inhibitor is mostly whoever
methotrexate failed: every row is a description, none a comparison of treatments.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isfinite

from crmo_fhir.metrics.response import Row, Unit
from crmo_fhir.metrics.statistics import (
    EXACT_UP_TO,
    INTERVALS,
    Interval,
    bootstrap_difference,
    fisher,
    kappa,
    newcombe,
    odds_ratio,
    risk_ratio,
)
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.results import Estimate

DESCRIPTIVE = "descriptive: the same children in sequence"
_NAIVE = "every unit taken as independent, although courses cluster in children"
_CLUSTERED = "children drawn anew with all their courses; units weigh the same (independence working correlation)"
_NAMES = {"mtx": "methotrexate", "tnfi": "a TNF-α inhibitor"}
_SOURCES = {"clinical": ("judged", "reviewed", "derived"), "mri": ("mri_judged", "mri_reviewed", "mri_derived")}
_GOOD = {"sufficient": "yes", "regression": "yes", "insufficient": "no", "no-regression": "no"}


def compute_comparison(units: Mapping[str, Sequence[Unit]], parameters: Parameters) -> list[Estimate]:
    """The clinical and the MRI effect of TNF-α inhibitors beside that of methotrexate; `units` by headline group."""
    return [
        row
        for kind in ("clinical", "mri")
        for row in _compare(kind, units[f"tnfi-{kind}"], units[f"mtx-{kind}"], parameters)
    ]


def _compare(group: str, tnfi: Sequence[Unit], mtx: Sequence[Unit], parameters: Parameters) -> list[Estimate]:
    counts = [(sum(u.effect is True for u in units), sum(u.effect is not None for u in units)) for units in (tnfi, mtx)]
    (n, total), (other_n, other_total) = counts
    empty = [_NAMES[drug] for drug, (_, judged) in zip(("tnfi", "mtx"), counts, strict=True) if judged == 0]
    why = f"0 in the denominator: nothing evaluable under {' or '.join(empty)}"

    def row(statistic: str, found: Interval | None, method: str, note: str, reason: str = "") -> Estimate:
        value, low, high = found or (None, None, None)
        if value is not None and not isfinite(value):
            value, reason = None, "infinite: no failure among the one, or no success among the other"
        said = "; ".join(filter(None, (DESCRIPTIVE, note, why if empty else reason)))
        both = total + other_total
        return Estimate("comparison", group, statistic, "", None, None, both, value, low, high, method, said)

    shares = [
        _share(group, drug, good, judged, parameters.interval)
        for drug, (good, judged) in zip(("tnfi", "mtx"), counts, strict=True)
    ]
    if empty:
        return [*shares, *(row(statistic, None, "", "") for statistic in STATISTICS)]
    naive = newcombe(n, total, other_n, other_total)
    low, high, left_out = bootstrap_difference(_by_child(tnfi, mtx), parameters.bootstrap_samples)
    clustered = f"{_CLUSTERED}; {left_out} samples without a denominator left out" if left_out else _CLUSTERED
    if low is None:
        clustered += "; no interval: the children do not differ"
    ratio = risk_ratio(n, total, other_n, other_total)
    odds = odds_ratio(n, total, other_n, other_total)
    unbound = "" if odds else "all succeeded or all failed: every odds ratio fits"
    exact = "conditional, exact" if total + other_total <= EXACT_UP_TO else "sample odds ratio, Woolf"
    p = fisher(n, total, other_n, other_total)
    found = (
        row("risk-difference", naive, "Newcombe", _NAIVE),
        row(
            *("risk-difference-by-child", Interval(naive.value, low, high)),
            *(f"percentile bootstrap of {parameters.bootstrap_samples} samples", clustered),
        ),
        row(
            *("risk-ratio", ratio, "log", _NAIVE),
            "no success under methotrexate: nothing to divide by"
            if ratio is None
            else "no interval: without a success, or without a failure, the log has no variance"
            if ratio.low is None
            else "",
        ),
        row("odds-ratio", odds, exact, _NAIVE, unbound),
        row("fisher-p", Interval(p), "Fisher exact, two-sided", _NAIVE),
    )
    return [*shares, *found]


def _share(group: str, drug: str, n: int, total: int, interval: str) -> Estimate:
    if total == 0:
        why = f"{DESCRIPTIVE}; 0 in the denominator: nothing evaluable under {_NAMES[drug]}"
        return Estimate("comparison", group, "proportion", drug, n=n, N=total, note=why)
    ends = INTERVALS[interval](n, total)
    return Estimate("comparison", group, "proportion", drug, None, n, total, n / total, *ends, interval, DESCRIPTIVE)


STATISTICS = ("risk-difference", "risk-difference-by-child", "risk-ratio", "odds-ratio", "fisher-p")
"""Of TNF-α inhibitors against methotrexate, in order."""


def _by_child(tnfi: Sequence[Unit], mtx: Sequence[Unit]) -> list[tuple[int, int, int, int]]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for place, units in ((0, tnfi), (2, mtx)):
        for unit in units:
            if unit.effect is not None:
                counts[unit.person][place] += unit.effect
                counts[unit.person][place + 1] += 1
    return [(a, b, c, d) for a, b, c, d in counts.values()]


def compute_agreement(classes: Mapping[str, Sequence[Row]]) -> list[Estimate]:
    """How far the sources of the effect agree on the courses that two of them judge; `classes` are courses by group."""
    rows = []
    for group, courses in classes.items():
        for kind, columns in _SOURCES.items():
            for one, other in combinations(columns, 2):
                pairs = Counter(
                    (_GOOD[c[one]], _GOOD[c[other]]) for c in courses if c[one] in _GOOD and c[other] in _GOOD
                )
                total, same = pairs.total(), sum(count for (a, b), count in pairs.items() if a == b)
                found = kappa(pairs)
                value, low, high = found or (None, None, None)
                reason = "one and the same answer throughout" if total else "no course has both"
                if found:
                    reason = "" if low is not None else "no interval: without spread, the variance is 0"
                names = f"{one.removeprefix('mri_')}-{other.removeprefix('mri_')}"
                rows += [
                    Estimate(
                        *("agreement", f"{group}-{kind}", "agreement", names, None, same, total),
                        same / total if total else None,
                        note="" if total else reason,
                    ),
                    Estimate(
                        *("agreement", f"{group}-{kind}", "kappa", names, None, None, total, value, low, high),
                        "Cohen's kappa, large-sample interval" if low is not None else "",
                        reason,
                    ),
                ]
    return rows
