"""Statistics to the golden values of the rules (clinical rules §5), to textbooks, and to a second library or a slow way."""

from fractions import Fraction
from math import comb, exp, inf, log, sqrt
from random import Random
from warnings import catch_warnings

import pytest

from crmo_fhir.metrics.statistics import (
    aalen_johansen,
    bootstrap_difference,
    clopper_pearson,
    fisher,
    kaplan_meier,
    kappa,
    median_time,
    newcombe,
    odds_ratio,
    risk_ratio,
    wilson,
)

GOLDEN = """
n  | N  | wilson      | clopper-pearson
3  | 18 | 5.8–39.2    | 3.6–41.4
18 | 31 | 40.8–73.6   | 39.1–75.5
4  | 9  | 18.9–73.3   | 13.7–78.8
11 | 13 | 57.8–95.7   | 54.6–98.1
"""


@pytest.mark.parametrize("row", GOLDEN.strip().splitlines()[1:])
def test_golden_intervals(row):
    n, total, by_wilson, by_clopper = (cell.strip() for cell in row.split("|"))
    for compute, wanted in ((wilson, by_wilson), (clopper_pearson, by_clopper)):
        assert "–".join(f"{100 * limit:.1f}" for limit in compute(int(n), int(total))) == wanted


@pytest.mark.parametrize("compute", [wilson, clopper_pearson])
def test_the_ends_are_exact_and_nothing_is_computed_from_nothing(compute):
    assert compute(0, 5)[0] == 0.0
    assert compute(5, 5)[1] == 1.0
    with pytest.raises(ValueError, match="N > 0"):
        compute(0, 0)
    with pytest.raises(ValueError, match="n <= N"):
        compute(3, 2)


# --------------------------------------------------------------------------------------- one proportion against another

COMPARED = """
n  | N  | other | of | difference          | p
18 | 31 | 3     | 18 | 0.414 (0.130–0.603) | 0.0069
11 | 13 | 4     | 9  | 0.402 (0.007–0.680) | 0.0743
"""
TABLES = [(18, 31, 3, 18), (11, 13, 4, 9), (1, 40, 7, 9), (5, 9, 5, 9), (0, 6, 2, 7), (7, 7, 2, 7), (60, 90, 41, 70)]


@pytest.mark.parametrize("row", COMPARED.strip().splitlines()[1:])
def test_golden_differences(row):
    *counts, difference, p = (cell.strip() for cell in row.split("|"))
    given = tuple(map(int, counts))
    found = newcombe(*given)
    assert f"{found.value:.3f} ({found.low:.3f}–{found.high:.3f})" == difference
    assert f"{fisher(*given):.4f}" == p


@pytest.mark.parametrize("table", TABLES)
def test_differences_and_ratios_are_those_of_another_library(table):
    from statsmodels.stats.proportion import confint_proportions_2indep

    n, total, other, of = table
    low, high = confint_proportions_2indep(n, total, other, of, compare="diff", method="newcomb")
    assert newcombe(*table)[1:] == pytest.approx((low, high), abs=1e-9)
    ratio = risk_ratio(*table)
    if n and (n, other) != (total, of):
        ends = confint_proportions_2indep(n, total, other, of, compare="ratio", method="log")
        assert ratio.value == pytest.approx(n * of / total / other)
        assert ratio[1:] == pytest.approx(ends, rel=1e-9)


def test_newcombe_of_the_paper():
    # Newcombe 1998, Stat Med 17:873, table II, method 10: 56/70 - 48/80, 9/10 - 3/10, 0/10 - 0/20
    for given, wanted in (
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
    ):
        assert newcombe(*given)[1:] == pytest.approx(wanted, abs=5e-5)


@pytest.mark.parametrize("table", TABLES)
def test_fisher_is_the_sum_of_the_tables_that_are_no_more_likely(table):
    n, total, other, of = table
    margin = n + other
    ways = {k: comb(total, k) * comb(of, margin - k) for k in range(max(0, margin - of), min(total, margin) + 1)}
    wanted = sum(way for way in ways.values() if way <= ways[n]) / sum(ways.values())
    assert fisher(*table) == pytest.approx(wanted, rel=1e-9)


def noncentral(n, total, other, of, odds):
    """The chance of each first cell by a given odds ratio, all margins fixed."""
    margin = n + other
    ways = {
        k: comb(total, k) * comb(of, margin - k) * odds**k for k in range(max(0, margin - of), min(total, margin) + 1)
    }
    return {k: way / sum(ways.values()) for k, way in ways.items()}


@pytest.mark.parametrize("table", [*TABLES[:4], TABLES[6], (3, 4, 1, 4)])
def test_the_odds_ratio_is_the_conditional_one(table):
    """What is found is the mean by the estimate, and 2.5 % in each tail by the ends (Cornfield's equations)."""
    n, found = table[0], odds_ratio(*table)
    assert sum(k * p for k, p in noncentral(*table, found.value).items()) == pytest.approx(n, abs=1e-6)
    assert sum(p for k, p in noncentral(*table, found.low).items() if k >= n) == pytest.approx(0.025, rel=1e-5)
    assert sum(p for k, p in noncentral(*table, found.high).items() if k <= n) == pytest.approx(0.025, rel=1e-5)


def test_an_odds_ratio_without_limit():
    assert odds_ratio(0, 5, 0, 5) is None
    assert odds_ratio(5, 5, 5, 5) is None
    assert odds_ratio(0, 5, 2, 5)[:2] == (0.0, 0.0)
    infinite = odds_ratio(5, 5, 2, 5)
    assert (infinite.value, infinite.high) == (inf, None)


def test_of_many_units_the_odds_ratio_is_the_large_sample_one():
    exact, large = odds_ratio(1500, 2500, 1000, 2500), odds_ratio(1501, 2501, 1000, 2500)
    assert large.value == 1501 * 1500 / (1000 * 1000)
    assert large == pytest.approx(exact, rel=5e-3)


def test_a_ratio_without_divisor_or_variance():
    assert risk_ratio(2, 5, 0, 5) is None
    assert risk_ratio(0, 5, 2, 5) == (0.0, None, None)
    assert risk_ratio(5, 5, 3, 3) == (1.0, None, None)


# ---------------------------------------------------------------------------------------------------------------- kappa


def test_kappa_of_the_textbook():
    # Fleiss, Levin & Paik 2003, Statistical Methods for Rates and Proportions, table 18.1: kappa 0.68
    counts = {("p", "p"): 75, ("p", "n"): 1, ("p", "o"): 4, ("n", "p"): 5, ("n", "n"): 4, ("n", "o"): 1}
    counts |= {("o", "o"): 10}
    assert kappa(counts).value == pytest.approx(0.6765, abs=5e-4)


@pytest.mark.parametrize("cells", [(20, 5, 10, 15), (3, 0, 1, 9), (0, 4, 5, 0), (7, 7, 7, 7)])
def test_kappa_is_that_of_another_library(cells):
    from statsmodels.stats.inter_rater import cohens_kappa

    a, b, c, d = cells
    found = kappa({("y", "y"): a, ("y", "n"): b, ("n", "y"): c, ("n", "n"): d})
    other = cohens_kappa([[a, b], [c, d]])
    assert found.value == pytest.approx(other.kappa, abs=1e-9)
    if other.std_kappa < 1e-6:  # all agree, or none: no spread to make an interval of
        assert (found.low, found.high) == (None, None)
        return
    limits = max(other.kappa_low, -1), min(other.kappa_upp, 1)  # of ours, which cannot be more than full agreement
    assert (found.low, found.high) == pytest.approx(limits, abs=1e-9)


def test_no_kappa_where_there_is_nothing_to_agree_on():
    assert kappa({}) is None
    assert kappa({("y", "y"): 4}) is None


@pytest.mark.parametrize("cells", [{("y", "n"): 1}, {("y", "y"): 3, ("n", "n"): 2}], ids=["one pair", "all agree"])
def test_no_interval_of_kappa_without_spread(cells):
    found = kappa(cells)
    assert found is not None
    assert (found.low, found.high) == (None, None)


# ------------------------------------------------------------------------------------------------------------ bootstrap

CHILDREN = [(2, 3, 0, 1), (0, 1, 1, 1), (1, 1, 0, 0), (0, 2, 0, 1), (1, 2, 1, 2), (0, 0, 0, 1)] * 4


def test_the_bootstrap_draws_children_whole():
    """Against a plain loop over children with a generator of its own: the ends agree within the noise of 20,000 samples."""
    luck, drawn = Random(3), []
    for _ in range(20_000):
        a, b, c, d = (sum(column) for column in zip(*luck.choices(CHILDREN, k=len(CHILDREN)), strict=True))
        drawn.append(a / b - c / d)
    drawn.sort()
    low, high, left_out = bootstrap_difference(CHILDREN, 20_000)
    assert (low, high) == pytest.approx((drawn[500], drawn[19_499]), abs=0.02)
    assert left_out == 0


def test_the_bootstrap_depends_on_nothing_but_the_children():
    shuffled = Random(5).sample(CHILDREN, len(CHILDREN))
    assert bootstrap_difference(shuffled, 2000) == bootstrap_difference(CHILDREN, 2000)
    assert bootstrap_difference(CHILDREN * 2000, 2000)[1] < bootstrap_difference(CHILDREN, 2000)[1]


def test_a_sample_without_a_denominator_is_left_out_and_counted():
    low, high, left_out = bootstrap_difference([(1, 1, 0, 0), (0, 0, 1, 2), (0, 0, 0, 2)], 2000)
    assert (low, high) == (0.5, 1.0)
    assert 600 < left_out < 733
    assert bootstrap_difference([(1, 1, 0, 0)], 50) == (None, None, 50)
    assert bootstrap_difference([], 50) == (None, None, 0)


@pytest.mark.parametrize("children", [[(1, 1, 0, 1)], [(1, 2, 0, 1)] * 9, [(1, 1, 0, 0), (0, 0, 1, 2)]])
def test_children_who_are_alike_give_no_interval(children):
    low, high, _ = bootstrap_difference(children, 2000)
    assert (low, high) == (None, None)


# --------------------------------------------------------------------------------------------------------------- curves

# Freireich 1963, Blood 21:699: weeks in remission under 6-mercaptopurine (+: censored) and under placebo
MERCAPTOPURINE = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"
PLACEBO = "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"


def lives(text):
    times = [int(word.rstrip("+")) for word in text.split()]
    return times, [not word.endswith("+") for word in text.split()]


def test_the_textbook_curve():
    """Kaplan-Meier of 6-MP as printed (Cox & Oakes 1984; log-log interval as R's survfit, conf.type="log-log")."""
    curve = kaplan_meier(*lives(MERCAPTOPURINE))
    assert [(p.time, p.at_risk, f"{p.value:.3f}") for p in curve] == [
        (0, 21, "1.000"),
        (6, 21, "0.857"),
        (7, 17, "0.807"),
        (10, 15, "0.753"),
        (13, 12, "0.690"),
        (16, 11, "0.627"),
        (22, 7, "0.538"),
        (23, 6, "0.448"),
    ]
    assert [(f"{p.low:.3f}", f"{p.high:.3f}") for p in curve[1:3]] == [("0.620", "0.952"), ("0.563", "0.923")]
    assert median_time(curve) == (23, 13, None)
    placebo = kaplan_meier(*lives(PLACEBO))
    assert median_time(placebo) == (8, 4, 11)
    assert placebo[-1] == (23, 1, 0.0, None, None)


@pytest.mark.parametrize("seed", range(8))
def test_curves_are_those_of_another_library(seed):
    from scipy.stats import CensoredData, ecdf

    luck = Random(seed)
    times = [luck.randrange(1, 40) for _ in range(luck.randrange(2, 60))]
    events = [luck.random() < 0.6 for _ in times]
    curve = kaplan_meier(times, events)
    pairs = list(zip(times, events, strict=True))
    right = [t for t, event in pairs if not event]
    other = ecdf(CensoredData(uncensored=[t for t, event in pairs if event], right=right)).sf
    with catch_warnings(action="ignore"):  # of the last step, where nobody is left
        ends = other.confidence_interval(method="log-log")
    for point in curve[1:]:
        assert point.value == pytest.approx(float(other.evaluate(point.time)), abs=1e-12)
        if point.low is not None:
            found = tuple(float(end.evaluate(point.time)) for end in (ends.low, ends.high))
            assert point[3:] == pytest.approx(found, abs=1e-9)
    assert [p.time for p in curve[1:]] == sorted({t for t, event in pairs if event})


def slow_incidence(times, causes, cause):
    """Aalen-Johansen with fractions, a time at a time; and its variance by the delta method, term by term."""
    left, share, steps = Fraction(1), Fraction(0), []
    for t in sorted(set(times)):
        n = sum(other >= t for other in times)
        d = {k: sum(o == t and c == k for o, c in zip(times, causes, strict=True)) for k in (1, 2)}
        share += left * Fraction(d[cause], n)
        steps.append((t, n, d[1] + d[2], d[cause], left, share))
        left *= 1 - Fraction(d[1] + d[2], n)
    found = {}
    for t, _, _, own, _, at in steps:
        if own == 0:
            continue
        variance = Fraction(0)
        for u, n, both, one, before, then in steps:
            if u > t:
                continue
            rest = at - then
            variance += (rest**2 * Fraction(both, n * (n - both))) if n > both else 0
            variance += before**2 * Fraction((n - one) * one, n**3)
            variance -= 2 * rest * before * Fraction(one, n**2)
        found[t] = at, variance
    return found


@pytest.mark.parametrize("seed", range(12))
def test_incidence_is_that_of_a_slow_computation(seed):
    luck = Random(seed)
    times = [luck.randrange(1, 25) for _ in range(luck.randrange(2, 50))]
    causes = [luck.choice((0, 0, 1, 1, 2)) for _ in times]
    for cause in (1, 2):
        wanted = slow_incidence(times, causes, cause)
        curve = aalen_johansen(times, causes, cause)
        assert [p.time for p in curve] == [0, *wanted]
        assert curve[0][2:] == (0.0, 0.0, 0.0)
        for point in curve[1:]:
            share, variance = wanted[point.time]
            assert point.value == pytest.approx(float(share), abs=1e-12)
            assert point.at_risk == sum(t >= point.time for t in times)
            if point.low is not None:
                half = 1.959963984540054 * sqrt(variance) / float(share) / log(float(share))
                assert (point.low, point.high) == pytest.approx(
                    sorted((float(share) ** exp(half), float(share) ** exp(-half))), abs=1e-9
                )
    everyone = kaplan_meier(times, [c > 0 for c in causes])[-1].value
    both = sum((aalen_johansen(times, causes, cause)[-1].value for cause in (1, 2)), start=0.0)
    assert both == pytest.approx(1 - everyone, abs=1e-12), "what competes adds up to all that stopped"


def test_curves_of_nothing_and_of_nobody_with_the_event():
    assert kaplan_meier([], []) == []
    assert aalen_johansen([], [], 1) == []
    assert kaplan_meier([3, 4], [False, False]) == [(0, 2, 1.0, 1.0, 1.0)]
    assert aalen_johansen([3, 4], [0, 2], 1) == [(0, 2, 0.0, 0.0, 0.0)]
    assert median_time(kaplan_meier([3, 4], [False, False])) is None


def test_an_event_on_the_first_day_takes_the_place_of_the_beginning():
    assert [(p.time, p.at_risk, round(p.value, 3)) for p in kaplan_meier([0, 0, 4], [True, False, True])] == [
        (0, 3, 0.667),
        (4, 1, 0.0),
    ]
