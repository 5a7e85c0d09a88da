"""Statistics: plain numbers in, plain numbers out."""

from math import sqrt
from statistics import NormalDist

CONFIDENCE = 0.95


def wilson(n: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The Wilson score interval of n/total as fractions (Wilson 1927, J Am Stat Assoc 22:209).

    Raises ValueError unless 0 <= n <= total and total > 0.
    """
    _check(n, total)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
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


def _check(n: int, total: int) -> None:
    if not 0 <= n <= total or total == 0:
        raise ValueError("an interval needs 0 <= n <= N and N > 0")


INTERVALS = {"wilson": wilson, "clopper-pearson": clopper_pearson}
