"""Intervals to the published golden values (clinical rules §5), in percent with one decimal."""

import pytest

from crmo_fhir.metrics.statistics import clopper_pearson, wilson

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
