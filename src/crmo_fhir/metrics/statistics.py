"""Statistics: plain numbers in, plain numbers out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import exp, isfinite, log, sqrt
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.95
SEED = 1
"""Of the bootstrap: the same cohort gives the same interval."""
NO_VARIANCE = 1e-12
"""A variance that is 0 but for rounding."""
EXACT_UP_TO = 5000
"""Beyond so many units an exact interval of an odds ratio costs minutes and is the large-sample one to three digits."""


class Interval(NamedTuple):
    """An estimate with its interval; an end is None where it cannot be computed."""

    value: float
    low: float | None = None
    high: float | None = None


class Point(NamedTuple):
    """One step of a curve: the day, how many were at risk just before it, and the value from that day on."""

    time: int
    at_risk: int
    value: float
    low: float | None
    high: float | None


def wilson(n: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The Wilson score interval of n/total as fractions (Wilson 1927, J Am Stat Assoc 22:209).

    Raises ValueError unless 0 <= n <= total and total > 0.
    """
    _check(n, total)
    z = _z(confidence)
    p = n / total
    scale = 1 + z * z / total
    centre = (p + z * z / (2 * total)) / scale
    half = z * sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / scale
    return (0.0 if n == 0 else centre - half), (1.0 if n == total else centre + half)


def clopper_pearson(n: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of n/total as fractions (Clopper & Pearson 1934, Biometrika 26:404).

    Raises ValueError unless 0 <= n <= total and total > 0.
    """
    from scipy.special import betaincinv

    _check(n, total)
    tail = (1 - confidence) / 2
    low = 0.0 if n == 0 else float(betaincinv(n, total - n + 1, tail))
    high = 1.0 if n == total else float(betaincinv(n + 1, total - n, 1 - tail))
    return low, high


INTERVALS = {"wilson": wilson, "clopper-pearson": clopper_pearson}


def newcombe(n: int, total: int, other_n: int, other_total: int, confidence: float = CONFIDENCE) -> Interval:
    """The difference n/total - other_n/other_total with its hybrid score interval (Newcombe 1998, Stat Med 17:873, method 10).

    It is built of two Wilson intervals. Raises ValueError as `wilson` does.
    """
    p, q = n / max(total, 1), other_n / max(other_total, 1)
    (low, high), (other_low, other_high) = wilson(n, total, confidence), wilson(other_n, other_total, confidence)
    return Interval(
        p - q,
        p - q - sqrt((p - low) ** 2 + (other_high - q) ** 2),
        p - q + sqrt((high - p) ** 2 + (q - other_low) ** 2),
    )


def risk_ratio(n: int, total: int, other_n: int, other_total: int, confidence: float = CONFIDENCE) -> Interval | None:
    """n/total divided by other_n/other_total, with the interval on the log scale (Katz 1978, Biometrics 34:469).

    None where the divisor is 0. Without an interval where n is 0, or where both shares are 1: the log has no variance then.
    """
    _check(n, total)
    _check(other_n, other_total)
    if other_n == 0:
        return None
    ratio = (n * other_total) / (other_n * total)
    if n == 0 or (n == total and other_n == other_total):
        return Interval(ratio)
    half = _z(confidence) * sqrt(1 / n - 1 / total + 1 / other_n - 1 / other_total)
    return Interval(ratio, ratio * exp(-half), ratio * exp(half))


def odds_ratio(n: int, total: int, other_n: int, other_total: int, confidence: float = CONFIDENCE) -> Interval | None:
    """The conditional maximum likelihood odds ratio with its exact interval (Cornfield 1956; as R's fisher.test).

    None where a margin is 0: every ratio fits such a table. An end without limit is None, a value without limit infinite.
    Of more than EXACT_UP_TO units the sample odds ratio with Woolf's interval, which is the same to three digits.
    """
    from scipy.stats.contingency import odds_ratio as conditional

    _check(n, total)
    _check(other_n, other_total)
    table = [[n, total - n], [other_n, other_total - other_n]]
    if n + other_n == 0 or n + other_n == total + other_total:
        return None
    cells = [cell for row in table for cell in row]
    if total + other_total > EXACT_UP_TO and min(cells) > 0:
        ratio = (cells[0] * cells[3]) / (cells[1] * cells[2])
        half = _z(confidence) * sqrt(sum(1 / cell for cell in cells))
        return Interval(ratio, ratio * exp(-half), ratio * exp(half))
    found = conditional(table, kind="conditional")
    low, high = (float(end) for end in found.confidence_interval(confidence))
    return Interval(float(found.statistic), low, high if isfinite(high) else None)


def fisher(n: int, total: int, other_n: int, other_total: int) -> float:
    """The two-sided p of Fisher's exact test, by the sum of the tables that are no more likely."""
    from scipy.stats import fisher_exact

    _check(n, total)
    _check(other_n, other_total)
    return float(fisher_exact([[n, total - n], [other_n, other_total - other_n]])[1])


def kappa(pairs: Mapping[tuple[str, str], int], confidence: float = CONFIDENCE) -> Interval | None:
    """Cohen's kappa of how often two sources gave each pair of answers (Cohen 1960; interval of Fleiss, Cohen & Everitt 1969).

    None where nothing was answered twice, or where chance alone makes both agree (each gave one and the same answer only).
    Without spread (they agree throughout) the variance is 0, which says nothing of chance: then there is no interval.
    """
    total = sum(pairs.values())
    answers = sorted({answer for pair in pairs for answer in pair})
    if total == 0:
        return None
    share = {(a, b): pairs.get((a, b), 0) / total for a in answers for b in answers}
    row = {a: sum(share[a, b] for b in answers) for a in answers}
    column = {b: sum(share[a, b] for a in answers) for b in answers}
    agreed, chance = sum(share[a, a] for a in answers), sum(row[a] * column[a] for a in answers)
    if chance >= 1:
        return None
    value = (agreed - chance) / (1 - chance)
    same = sum(share[a, a] * (1 - (row[a] + column[a]) * (1 - value)) ** 2 for a in answers)
    other = sum(share[a, b] * (column[a] + row[b]) ** 2 for a in answers for b in answers if a != b) * (1 - value) ** 2
    variance = (same + other - (value - chance * (1 - value)) ** 2) / ((1 - chance) ** 2 * total)
    if variance <= NO_VARIANCE:
        return Interval(value)
    half = _z(confidence) * sqrt(variance)
    return Interval(value, max(value - half, -1.0), min(value + half, 1.0))


def bootstrap_difference(
    children: Sequence[tuple[int, int, int, int]], samples: int, confidence: float = CONFIDENCE
) -> tuple[float | None, float | None, int]:
    """The percentile interval of a difference of proportions when children are drawn anew with all that is theirs.

    `children` holds (n, total, other n, other total) of each child. A sample with 0 in a denominator has no difference; the
    third value is how many there were, and the ends are None where no sample has one (Efron & Tibshirani 1993, chapter 13), or
    where all have the same one: drawing children who are alike shows no spread, however few they are.
    Children who are alike are drawn together, so that neither their order nor their number costs anything.
    """
    import numpy as np

    alike = sorted(Counter(children).items())
    if not alike or samples < 1:
        return None, None, 0
    kinds = np.array([kind for kind, _ in alike], dtype=np.int64)
    counts = np.array([count for _, count in alike], dtype=np.int64)
    drawn = np.random.default_rng(SEED).multinomial(len(children), counts / len(children), size=samples) @ kinds
    whole = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
    if len(whole) == 0:
        return None, None, samples
    differences = whole[:, 0] / whole[:, 1] - whole[:, 2] / whole[:, 3]
    if np.ptp(differences) < NO_VARIANCE:
        return None, None, samples - len(whole)
    tail = (1 - confidence) / 2
    low, high = (float(end) for end in np.quantile(differences, [tail, 1 - tail]))
    return low, high, samples - len(whole)


def kaplan_meier(times: Sequence[int], events: Sequence[bool]) -> list[Point]:
    """The share without the event by time: a point at 0 and one at each time of an event (Kaplan & Meier 1958).

    The interval is Greenwood's on the log-log scale; there is none where the curve has come to 0.
    """
    import numpy as np
    from statsmodels.duration.survfunc import SurvfuncRight

    if not times:
        return []
    found = SurvfuncRight(np.asarray(times), np.asarray(events, dtype=int))
    steps = zip(found.surv_times, found.n_risk, found.surv_prob, found.surv_prob_se, strict=True)
    return _curve(1.0, len(times), [(int(t), int(n), float(p), float(se)) for t, n, p, se in steps])


def aalen_johansen(times: Sequence[int], causes: Sequence[int], cause: int) -> list[Point]:
    """The share that has had the event of one cause by time, the others competing (Aalen & Johansen 1978, Scand J Stat 5:141).

    `causes` are 1, 2, …, and 0 where the time is censored. A point at 0 and one at each time of the cause; the interval is
    on the log-log scale, of the variance by the delta method (Marubini & Valsecchi 1995), which ends with the last at risk.
    """
    import numpy as np
    from statsmodels.duration.survfunc import CumIncidenceRight

    if not times:
        return []
    when, why = np.asarray(times), np.asarray(causes)
    steps = []
    if (why == cause).any():
        with np.errstate(divide="ignore", invalid="ignore"):
            found = CumIncidenceRight(when, why)
        of_cause = np.isin(found.times, when[why == cause])
        at_risk = len(when) - np.searchsorted(np.sort(when), found.times)
        columns = (found.times, at_risk, found.cinc[cause - 1], found.cinc_se[cause - 1])
        steps = [
            (int(t), int(n), float(p), float(se)) for t, n, p, se in zip(*(c[of_cause] for c in columns), strict=True)
        ]
    return _curve(0.0, len(times), steps)


def median_time(curve: Sequence[Point]) -> Interval | None:
    """The first time at which no more than half are left, with the times at which the ends of the interval come there.

    An end that never does is None; so is the whole where the curve stays above a half (Brookmeyer & Crowley 1982).
    """

    def first(values: Sequence[float | None]) -> int | None:
        return next((p.time for p, v in zip(curve, values, strict=True) if v is not None and v <= 0.5 + 1e-9), None)

    value = first([p.value for p in curve])
    if value is None:
        return None
    return Interval(value, first([p.low for p in curve]), first([p.high for p in curve]))


def _curve(begin: float, total: int, steps: Sequence[tuple[int, int, float, float]]) -> list[Point]:
    points = [Point(time, at_risk, share, *_log_log(share, error)) for time, at_risk, share, error in steps]
    return points if points and points[0].time == 0 else [Point(0, total, begin, begin, begin), *points]


def _log_log(share: float, error: float) -> tuple[float | None, float | None]:
    if not 0 < share < 1 or not isfinite(error):
        return None, None
    half = _z(CONFIDENCE) * error / (share * log(share))
    low, high = sorted((share ** exp(half), share ** exp(-half)))
    return low, high


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check(n: int, total: int) -> None:
    if not 0 <= n <= total or total == 0:
        raise ValueError("an interval needs 0 <= n <= N and N > 0")
