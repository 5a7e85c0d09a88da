"""Who is in the cohort (clinical rules §4; the edge cases are named by their ids)."""

from dataclasses import replace
from datetime import date
from itertools import pairwise

import pytest
from story import WINDOW, figure, tell

from crmo_fhir.errors import IncompleteError
from crmo_fhir.metrics import compute_results


def attrition(cohort, step):
    frame = cohort.tables["attrition"]
    return frame[frame["step"] == step][["reason", "kept", "dropped"]].to_numpy().tolist()


def children(cohort):
    return cohort.tables["patients"]["person"].tolist()


@pytest.mark.parametrize(
    ("diagnosed", "inside"),
    [
        ("2001-12-31", False),
        ("2002-01-01", True),
        ("2011-12-31", True),
        ("2012-01-01", False),
        ("2005", True),
        ("2005-03", True),
    ],
)
def test_e37_the_window_includes_both_ends(diagnosed, inside):
    cohort = tell(condition=f"date\n{diagnosed}")
    assert children(cohort) == (["Patient/A"] if inside else [])


def test_e15_a_partial_date_the_window_cannot_decide_is_undetermined_and_apart():
    window = replace(WINDOW, since=date(2002, 6, 1))
    cohort = tell(window, condition="date\n2002")
    assert attrition(cohort, "diagnosis in window") == [["undetermined: partial date of diagnosis", 0, 1]]


@pytest.mark.parametrize(
    ("born", "diagnosed", "inside"),
    [
        ("1990-05-10", "2006-05-09", True),
        ("1990-05-10", "2006-05-10", False),
        ("1988-02-29", "2004-02-28", True),
        ("1988-02-29", "2004-02-29", False),
        ("1992-02-29", "2008-02-28", True),
    ],
)
def test_e36_strictly_under_16_at_diagnosis(born, diagnosed, inside):
    cohort = tell(patient=f"birth\n{born}", condition=f"date\n{diagnosed}")
    assert children(cohort) == (["Patient/A"] if inside else [])


def test_e36_a_leap_day_birthday_falls_on_1_march_in_common_years():
    limit = replace(WINDOW, max_age_years=15)
    assert children(tell(limit, patient="birth\n1992-02-29", condition="date\n2007-02-28")) == ["Patient/A"]
    assert children(tell(limit, patient="birth\n1992-02-29", condition="date\n2007-03-01")) == []


def test_e15_a_partial_birth_date_that_cannot_decide_is_undetermined():
    assert children(tell(patient="birth\n1990", condition="date\n2005-12-31")) == ["Patient/A"]
    cohort = tell(patient="birth\n1990", condition="date\n2006-06-01")
    assert attrition(cohort, "under 16 at diagnosis") == [["undetermined: partial date of birth or diagnosis", 0, 1]]
    assert children(tell(patient="birth\n1990", condition="date\n2007-01-01")) == []


def test_e35_turning_16_later_does_not_exclude():
    cohort = tell(
        patient="birth\n1989-01-01",
        condition="date\n2004-12-01",
        exposure="agent|start|end\nadalimumab|2009-01-01|2010-01-01",
    )
    assert figure(cohort, "tnfi-clinical-treated") == (1, 1)


def test_e37_the_earliest_confirmed_condition_of_the_whole_history_dates_the_diagnosis():
    cohort = tell(condition="date\n2001-06-01\n2004-06-01")
    assert attrition(cohort, "diagnosis in window") == [["diagnosed before the window", 0, 1]]


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ("confirmed 2004-12-01", None),
        ("refuted 2004-12-01", "refuted"),
        ("entered-in-error 2004-12-01", "entered-in-error"),
        ("provisional 2004-12-01", "unconfirmed"),
        ("differential 2004-12-01", "unconfirmed"),
        ("provisional 2004-12-01, confirmed 2005-02-01", None),
        ("confirmed 2004-12-01, refuted 2006-01-01", "refuted"),
        ("confirmed 2004-12-01, refuted 2004-12-01", "refuted"),
        ("refuted 2004-01-01, confirmed 2004-12-01", None),
        ("confirmed 2004-12-01, entered-in-error 2006-01-01", None),
        ("confirmed 2004-12-01, refuted 2004", "undetermined"),
    ],
)
def test_e40_what_stands_is_confirmed_and_not_refuted_later(conditions, reason):
    rows = "\n".join("|".join(c.split()) for c in conditions.split(", "))
    cohort = tell(condition="verification|date\n" + rows)
    assert attrition(cohort, "confirmed") == ([[reason, 0, 1]] if reason else [["", 1, 0]])


def test_e40_a_provisional_diagnosis_does_not_date_it():
    cohort = tell(condition="verification|date\nprovisional|2004-12-01\nconfirmed|2005-02-01")
    assert cohort.tables["patients"]["diagnosis_low"].tolist() == [date(2005, 2, 1)]


def test_a_diagnosis_in_free_text_is_shown_apart_and_enters_only_on_demand():
    text = "evidence\ntext"
    assert attrition(tell(condition=text), "diagnosis coded") == [["found by text only, shown apart", 0, 1]]
    assert children(tell(replace(WINDOW, text_diagnosis=True), condition=text)) == ["Patient/A"]


def test_e39_sapho_never_replaces_crmo():
    cohort = tell(condition="disease\nsapho")
    assert attrition(cohort, "diagnosis coded") == [["no qualifying diagnosis", 0, 1]]


def test_e39_two_conditions_of_one_child_are_one_child_with_all_foci():
    cohort = tell(
        condition="condition|disease|date\nCondition/1|crmo|2005-02-01\nCondition/2|crmo|2004-12-01\nCondition/2|sapho|2004-12-01",
        site="source|bone|side\nCondition/1|tibia|left\nCondition/2|femur|right",
    )
    (child,) = cohort.tables["patients"].to_dict("records")
    assert (child["diagnosis_low"], child["focus_count"], child["sapho"]) == (date(2004, 12, 1), 2, True)


@pytest.mark.parametrize(
    ("sapho", "ever", "at_diagnosis"),
    [("", "no", "no"), ("2004-12-01", "yes", "yes"), ("2004-12-02", "yes", "no"), ("2004", "yes", "unknown")],
)
def test_e39_sapho_ever_and_at_diagnosis(sapho, ever, at_diagnosis):
    cohort = tell(condition="disease|date\ncrmo|2004-12-01" + (f"\nsapho|{sapho}" if sapho else ""))
    assert figure(cohort, "cohort", "sapho", ever) == (1, 1)
    assert figure(cohort, "cohort", "sapho-at-diagnosis", at_diagnosis) == (1, 1)


def test_e42_merged_records_are_one_person():
    cohort = tell(
        patient="patient | birth\nPatient/old | 1996-01-01\nPatient/new | 1996-01-01",
        patient_link="patient | other\nPatient/old | Patient/new",
        condition="patient | date\nPatient/old | 2003-05-01\nPatient/new | 2004-12-01",
        exposure="patient | agent | start | end\nPatient/old | methotrexate | 2005-01-01 | 2006-01-01",
    )
    assert children(cohort) == ["Patient/new"]
    assert cohort.tables["patients"]["diagnosis_low"].tolist() == [date(2003, 5, 1)]
    assert cohort.tables["courses"]["person"].tolist() == ["Patient/new"]
    assert attrition(cohort, "one person") == [["merged records", 1, 1]]


def test_e42_a_cycle_of_merges_is_an_error():
    with pytest.raises(IncompleteError, match="cycle"):
        tell(
            patient="patient\nPatient/A\nPatient/B",
            patient_link="patient | other\nPatient/A | Patient/B\nPatient/B | Patient/A",
        )


def test_e44_unknown_sex_is_its_own_row_and_percentages_are_of_all():
    cohort = tell(
        patient="patient | sex\nPatient/A | female\nPatient/B | unknown",
        condition="patient\nPatient/A\nPatient/B",
    )
    assert figure(cohort, "cohort", "sex", "female") == (1, 2)
    assert figure(cohort, "cohort", "sex", "unknown") == (1, 2)


def test_e52_nobody_is_an_honest_empty_result():
    cohort = tell(condition="date\n1999-01-01")
    assert figure(cohort, "cohort") == (0, 0)
    assert figure(cohort, "tnfi-clinical") == (0, 0)
    empty = [row for row in compute_results(cohort.tables, WINDOW) if row.N == 0]
    assert len(empty) > 30
    assert {(row.proportion, row.ci_low, row.ci_high) for row in empty} == {(None, None, None)}


def test_every_row_of_the_attrition_adds_up():
    cohort = tell(
        patient="patient | birth\nPatient/A | 1996-01-01\nPatient/B | 1980-01-01\nPatient/C | 1996-01-01",
        condition="patient | verification\nPatient/A | confirmed\nPatient/B | confirmed\nPatient/C | refuted",
    )
    frame = cohort.tables["attrition"]
    persons = frame[~frame["step"].isin(["courses", "assessments"])]
    kept = persons["kept"].tolist()
    assert [before - after for before, after in pairwise(kept)] == persons["dropped"].tolist()[1:]
    assert kept[-1] == len(children(cohort)) == 1
