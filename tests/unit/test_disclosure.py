"""Disclosure control, rule by rule: what goes in, and what may be shown of it (`.` for a masked count)."""

from dataclasses import replace

import pytest

from crmo_fhir.errors import PrivacyError
from crmo_fhir.export.disclosure import Release, count_shown, filter_published, filter_results
from crmo_fhir.export.measure_report import _population, _score
from crmo_fhir.export.results import read_results, results_csv
from crmo_fhir.export.table1 import CONFIDENTIAL, Figures, percent, shown
from crmo_fhir.metrics.statistics import wilson
from crmo_fhir.model.results import MASKED, Result
from crmo_fhir.model.study import Disclosure


def rows(text: str) -> list[Result]:
    """Results from lines such as `mtx-clinical sex=male 3/18`; a group that is only counted has one number."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        *name, figures = line.split()
        group, cut = name[0], name[1] if len(name) > 1 else "="
        n, _, whole = figures.partition("/")
        counts = int(n), int(whole or n)
        made = Result(group, "patient", *counts, *cut.split("="))
        if whole and counts[1]:
            low, high = wilson(*counts)
            made = replace(
                made, proportion=counts[0] / counts[1], ci_low=low, ci_high=high, ci_method="wilson", note=""
            )
        found.append(made)
    return found


def told(released: list[Result]) -> list[str]:
    """The figures of the rows, as the lines above write them."""
    return [
        ("." if row.n is None else str(row.n)) + (f"/{'.' if row.N is None else row.N}" if row.stratifier else "")
        for row in released
    ]


def release(text: str, threshold: int = 5, rounding: int = 0, earlier: tuple[Release, ...] = ()) -> list[str]:
    return told(filter_results(rows(text), Disclosure(threshold, rounding), wilson, earlier))


def before(text: str, threshold: int = 5) -> Release:
    """A release of these figures."""
    disclosure = Disclosure(threshold)
    made = rows(text)
    return Release(tuple(made), tuple(filter_results(made, disclosure, wilson)), disclosure, "2026-01-31")


SEXES = """
cohort {}
cohort sex=female {}/{}
cohort sex=male {}/{}
cohort sex=other {}/{}
cohort sex=unknown {}/{}
"""


def sexes(*counts: int) -> str:
    total = sum(counts)
    return SEXES.format(total, *(part for count in counts for part in (count, total)))


@pytest.mark.parametrize(
    ("counts", "threshold", "expected"),
    [
        ((16, 9, 0, 0), 5, ["25", "16/25", "9/25", "0/25", "0/25"]),  # nothing small: all is shown, zero too
        ((20, 5, 0, 0), 5, ["25", "20/25", "5/25", "0/25", "0/25"]),  # the threshold itself is shown
        ((20, 5, 0, 0), 7, ["25", "./25", "./25", "0/25", "0/25"]),  # one masked alone would follow from the others
        ((21, 4, 0, 0), 5, ["25", "./25", "./25", "0/25", "0/25"]),
        ((20, 2, 3, 0), 5, ["25", "20/25", "./25", "./25", "0/25"]),  # 2 + 3 = 5: each can be 0 to 5
        ((20, 2, 2, 0), 5, ["24", "./24", "./24", "./24", "0/24"]),  # 2 + 2 = 4: not enough to hide behind
        ((12, 8, 1, 0), 5, ["21", "12/21", "./21", "./21", "0/21"]),  # the smaller is the cheaper, being as good
    ],
)
def test_e53_strata_of_a_cohort(counts, threshold, expected):
    released = release(sexes(*counts), threshold)
    masked = [cell for row in released for cell in row.split("/")].count(".")
    assert masked == [cell for row in expected for cell in row.split("/")].count(".")
    assert released[0] == expected[0]
    if counts != (12, 8, 1, 0):
        assert released == expected


def test_e53_the_rest_of_a_whole_is_a_count_too():
    text = "cohort 40\nmtx-clinical 18/20\nmtx-clinical sex=female 18/20"
    released = filter_results(rows(text), Disclosure(5), wilson)
    assert released[1].masked, "2 of 20 are as few as 18 of 20 are many"
    assert [row.n for row in released[1:]].count(None) in (0, 2), "one stratum is the whole group"


def test_e53_a_count_is_masked_under_all_its_names():
    text = """
    cohort 30
    mtx-clinical 3/18
    mtx-clinical-treated 20
    mtx-clinical-not-evaluable 2/20
    mtx-clinical-worst-case 3/20
    mtx-clinical-best-case 5/20
    mtx-clinical-itt 3/18
    """
    by_group = {row.group: row for row in filter_results(rows(text), Disclosure(5), wilson)}
    for reading in ("", "-worst-case", "-itt"):
        assert by_group[f"mtx-clinical{reading}"].n is None
    assert by_group["mtx-clinical-not-evaluable"].n is None
    treated, judged = by_group["mtx-clinical-treated"].n, by_group["mtx-clinical"].N
    assert None in (treated, judged), "20 treated, 18 judged: 2 are not"


def test_readings_of_another_source_or_time_are_in_no_release():
    others = ("judged", "reviewed", "judged-or-reviewed", "derived", "best-ever", "6-months")
    plain = "cohort 40\nmtx-clinical 9/20\ntnfi-mri 6/12"
    beside = "\n".join(f"{group}-{name} 3/10" for group in ("mtx-clinical", "tnfi-mri") for name in others)
    released = filter_results(rows(f"{plain}\n{beside}"), Disclosure(5), wilson)
    assert released == rows(plain)
    earlier = Release(tuple(rows(f"{plain}\n{beside}")), tuple(released), Disclosure(5), "2026-01-31")
    changed = rows(f"{plain}\n{beside.replace('3/10', '4/10')}")
    assert filter_results(changed, Disclosure(5), wilson, (earlier,)) == released, (
        "what is not released changes nothing"
    )


def test_what_a_masked_row_says():
    text = "cohort 30\nmtx-clinical 3/18\nnsaid-clinical 12/30"
    made = [replace(row, note="from orders") if row.group == "mtx-clinical" else row for row in rows(text)]
    _, masked, whole = filter_results(made, Disclosure(5), wilson)
    assert (masked.n, masked.N) == (None, 18)
    assert (masked.proportion, masked.ci_low, masked.ci_high, masked.ci_method) == (None, None, None, "")
    assert masked.note == "masked; from orders"
    assert whole == made[2]
    assert count_shown([masked, whole]) == (3, 4)
    assert read_results(results_csv([masked, whole])) == [masked, whole]
    assert results_csv([masked]).splitlines()[1] == "mtx-clinical,,,patient,,18,,,,,masked; from orders"
    assert (percent(masked), shown(masked.n)) == ("", CONFIDENTIAL)
    score = {"code": {"coding": [{"code": "numerator"}]}, "id": "numerator"}
    population = _population("group.population", score, masked, 18)
    assert "count" not in population
    assert population["_count"]["extension"][0]["valueCode"] == "masked"
    assert _score(masked, proportion=True) == {}


def test_the_mean_goes_with_its_counts():
    rows_ = [Result("foci", "focus", None, None, note=MASKED), Result("cohort", "patient", 25, 25)]
    (mean_row,) = [Figures(tuple(rows_)).find("foci-per-patient", "", "")]
    assert mean_row.masked
    assert mean_row.note == MASKED


def test_rounded_counts_and_what_is_made_of_them():
    text = "cohort 31\nnsaid-clinical 12/31"
    seen = []

    def interval(n: int, whole: int) -> tuple[float, float]:
        seen.append((n, whole))
        return wilson(n, whole)

    cohort, nsaid = filter_results(rows(text), Disclosure(5, 5), interval)
    assert (cohort.n, cohort.N, nsaid.n, nsaid.N) == (30, 30, 10, 30)
    assert nsaid.proportion == 10 / 30
    assert (nsaid.ci_low, nsaid.ci_high) == wilson(10, 30)
    assert set(seen) == {(10, 30)}, "the exact counts are in no interval"


def test_rounding_hides_what_exact_counts_would_tell():
    assert release(sexes(21, 4, 0, 0), 5, 10) == ["30", "20/30", "./30", "0/30", "0/30"]


@pytest.mark.parametrize("counts", [(2, 1, 0, 0), (1, 0, 0, 0), (2, 2, 2, 0)])
def test_too_few_to_show_anything(counts):
    with pytest.raises(PrivacyError, match="no figure can be shown"):
        release(sexes(*counts), 7)


def test_nobody_at_all_may_be_said():
    assert release(sexes(0, 0, 0, 0)) == ["0", "0/0", "0/0", "0/0", "0/0"]


def test_one_more_child_is_not_told():
    earlier = before(sexes(16, 9, 0, 0))
    with pytest.raises(PrivacyError, match="the release of 2026-01-31"):
        release(sexes(17, 9, 0, 0), earlier=(earlier,))


def test_enough_more_children_are_told_but_not_of_which_few():
    earlier = before(sexes(16, 9, 0, 0))
    assert release(sexes(22, 9, 0, 0), earlier=(earlier,)) == ["31", "22/31", "9/31", "0/31", "0/31"]
    assert release(sexes(20, 12, 0, 0), earlier=(earlier,)) == ["32", "./32", "./32", "0/32", "0/32"]


def test_every_earlier_release_counts():
    first, second = before(sexes(16, 9, 0, 0)), before(sexes(22, 9, 0, 0))
    with pytest.raises(PrivacyError):
        release(sexes(22, 11, 0, 0), earlier=(first, second))


def test_the_same_figures_are_masked_alike_or_not_at_all():
    earlier = before(sexes(20, 3, 4, 0))
    assert release(sexes(20, 3, 4, 0), earlier=(earlier,)) == told(list(earlier.released))
    for threshold, rounding in ((3, 0), (5, 5)):
        with pytest.raises(PrivacyError, match="--threshold 5 --rounding 0"):
            release(sexes(20, 3, 4, 0), threshold, rounding, (earlier,))


def test_published_figures_beside_what_is_shown():
    text = "cohort 30\nmtx-clinical 3/18\nnsaid-clinical 12/30"
    released = filter_results(rows(text), Disclosure(5), wilson)
    printed = [
        {"group": group, "stratifier": "", "stratum": "", "printed": printed, "note": "15 + 12 + 3"}
        for group, printed in (("mtx-clinical", "3"), ("nsaid-clinical", "12"), ("", "text"))
    ]
    (kept,) = filter_published(printed, released, Disclosure(5))
    assert (kept["group"], kept["printed"], kept["note"]) == ("nsaid-clinical", "12", "")
    assert filter_published(printed, released, Disclosure(5, 5)) == [], "exact figures beside rounded ones"
