"""Which course an effect belongs to, and what counts (clinical rules §3; the edge cases are named by their ids)."""

from dataclasses import replace

import pytest
from story import WINDOW, expect, figure, rows_of, tell

ADALIMUMAB = "source|agent|start|end\nMedicationStatement/1|adalimumab|2005-01-01|2006-01-01"


def judged(cohort):
    (row,) = cohort.tables["assessments"].to_dict("records")
    return row["attribution"], row["reason"]


@pytest.mark.parametrize(
    ("day", "attribution", "reason"),
    [
        ("2005-07-01", "window", None),
        ("2006-01-31", "window", None),
        ("2006-02-01", "unattributed", "in no course's window"),
        ("2004-12-31", "unattributed", "in no course's window"),
    ],
    ids=["inside", "30 d after stop", "31 d after stop", "before start"],
)
def test_e23_without_a_link_the_window_decides(day, attribution, reason):
    cohort = tell(exposure=ADALIMUMAB, observed=f"value|date\nsufficient|{day}")
    assert judged(cohort) == (attribution, reason)


@pytest.mark.parametrize(
    ("day", "attribution", "reason"),
    [
        ("2006-06-30", "link", None),
        ("2006-07-01", "unattributed", "late: long after the stop"),
        ("2004-12-31", "unattributed", "before the start of the course it is linked to"),
    ],
    ids=["180 d after stop", "181 d after stop", "before start"],
)
@pytest.mark.parametrize("link", ["part_of", "focus"])
def test_e23_a_link_decides_up_to_180_days_after_the_stop(link, day, attribution, reason):
    cohort = tell(exposure=ADALIMUMAB, observed=f"value|date|{link}\nsufficient|{day}|MedicationStatement/1")
    assert judged(cohort) == (attribution, reason)


def test_part_of_goes_before_focus():
    cohort = tell(
        exposure="""
        source                | agent        | start      | end
        MedicationStatement/1 | naproxen     | 2005-01-01 | 2006-01-01
        MedicationStatement/2 | methotrexate | 2005-06-01 | 2007-01-01
        """,
        observed="""
        value      | date       | part_of               | focus
        sufficient | 2005-12-01 | MedicationStatement/1 | MedicationStatement/2
        """,
    )
    assert cohort.tables["assessments"]["course"].tolist() == ["Patient/A/NSAID-1"]


@pytest.mark.parametrize("begun", ["methotrexate", "adalimumab", "pamidronic acid", "sulfasalazine", "anakinra"])
def test_e23_an_escalation_ends_the_window(begun):
    cohort = tell(
        exposure=f"agent|start|end\nnaproxen|2005-01-01|2006-01-01\n{begun}|2005-06-01|2007-01-01",
        observed="value|date\nsufficient|2005-07-01",
    )
    (row,) = cohort.tables["assessments"].to_dict("records")
    assert row["course"] != "Patient/A/NSAID-1"


@pytest.mark.parametrize("begun", ["naproxen", "prednisolone"])
def test_a_later_nsaid_or_glucocorticoid_ends_nothing(begun):
    cohort = tell(
        exposure=f"agent|start|end\nmethotrexate|2005-01-01|2006-01-01\n{begun}|2005-06-01|2007-01-01",
        observed="value|date\nsufficient|2005-07-01",
    )
    assert cohort.tables["assessments"]["course"].tolist() == ["Patient/A/MTX-1"]


def test_e23_the_day_of_a_switch_judges_the_earlier_course():
    cohort = tell(
        exposure="agent|start|end\netanercept|2005-01-01|2005-06-01\nadalimumab|2005-06-01|2007-01-01",
        observed="value|date\ninsufficient|2005-06-01",
    )
    assert cohort.tables["assessments"]["course"].tolist() == ["Patient/A/TNF-1"]


@pytest.mark.parametrize("link", ["", "MedicationStatement/1"], ids=["window", "link"])
def test_e03_nothing_seen_after_a_tnf_start_is_credited_to_methotrexate(link):
    cohort = tell(
        exposure="""
        source                | agent        | start      | end
        MedicationStatement/1 | methotrexate | 2005-01-01 | 2007-01-01
        MedicationStatement/2 | adalimumab   | 2006-01-01 | 2008-01-01
        """,
        observed=f"value|date|part_of\ninsufficient|2005-06-01|MedicationStatement/1\nsufficient|2006-07-01|{link or 'none'}",
    )
    assert figure(cohort, "mtx-clinical") == (0, 1)
    assert figure(cohort, "tnfi-clinical") == ((0, 0) if link else (1, 1))


def test_e25_the_last_judgement_in_the_window_is_primary():
    cohort = tell(
        exposure=ADALIMUMAB,
        observed="value|date\nsufficient|2005-06-20\ninsufficient|2005-12-01\nnot-evaluable|2005-12-20",
    )
    expect(
        cohort.tables["courses"],
        "effect       | effect_best | effect_6_months\ninsufficient | sufficient  | sufficient",
    )
    assert figure(cohort, "tnfi-clinical") == (0, 1)


@pytest.mark.parametrize(
    ("agent", "days_end", "reason", "evaluable"),
    [
        ("naproxen", "2005-01-28", "remission", False),
        ("naproxen", "2005-01-29", "remission", True),
        ("adalimumab", "2005-03-25", "remission", False),
        ("adalimumab", "2005-03-26", "remission", True),
        ("adalimumab", "2005-01-20", "inefficacy", True),
        ("adalimumab", "2005-01-20", "adverse_event", True),
        ("adalimumab", "2005-01-20", "other", False),
    ],
    ids=["NSAID 27 d", "NSAID 28 d", "TNF 83 d", "TNF 84 d", "failed early", "AE early", "other early"],
)
def test_e24_minimum_exposure_unless_it_failed(agent, days_end, reason, evaluable):
    (course,) = (
        tell(
            exposure=f"agent|start|end|stop_reasons\n{agent}|2005-01-01|{days_end}|{reason}",
            observed=f"value|date|part_of\ninsufficient|{days_end}|MedicationStatement/1",
        )
        .tables["courses"]
        .to_dict("records")
    )
    assert course["evaluable"] is evaluable


def test_e26_e27_the_unjudged_have_their_own_column_and_bounds():
    cohort = tell(
        exposure="""
        source                | agent      | start      | end        | stop_reasons
        MedicationStatement/1 | etanercept | 2005-01-01 | 2005-12-31 | inefficacy
        MedicationStatement/2 | adalimumab | 2006-01-01 | 2006-06-30 | adverse_event
        MedicationStatement/3 | infliximab | 2006-07-01 | 2007-06-30 |
        """,
        observed="value|date|part_of\nsufficient|2005-06-01|MedicationStatement/1",
    )
    figures = {
        name: figure(cohort, f"tnfi-clinical{name}")
        for name in ("", "-treated", "-not-evaluable", "-worst-case", "-best-case", "-itt")
    }
    assert figures == {
        "": (1, 1),
        "-treated": (3, 3),
        "-not-evaluable": (2, 3),
        "-worst-case": (1, 3),
        "-best-case": (3, 3),
        "-itt": (1, 2),
    }


def test_e28_a_sufficient_course_may_still_end_in_a_switch():
    cohort = tell(
        exposure="""
        source                | agent      | start      | end        | stop_reasons
        MedicationStatement/1 | etanercept | 2005-01-01 | 2005-12-31 | inefficacy
        MedicationStatement/2 | adalimumab | 2006-01-01 | 2006-12-31 |
        """,
        observed="value|date|part_of\nsufficient|2005-06-01|MedicationStatement/1\ninsufficient|2006-06-01|MedicationStatement/2",
    )
    assert figure(cohort, "tnfi-clinical") == (1, 2)
    assert figure(cohort, "tnfi-clinical", "agent", "etanercept") == (1, 1)
    assert figure(cohort, "tnfi-clinical", "line", "2") == (0, 1)


def test_a_tnf_inhibitor_of_no_known_name_is_in_the_stratum_unknown_of_agent_and_line():
    cohort = tell(
        exposure="""
        source                | agent           | drug_class | start      | end
        MedicationStatement/1 | tnf-unspecified | TNF        | 2005-01-01 | 2005-12-31
        MedicationStatement/2 | adalimumab      | TNF        | 2006-01-01 | 2006-12-31
        """,
        observed="value|date|part_of\nsufficient|2005-06-01|MedicationStatement/1\ninsufficient|2006-06-01|MedicationStatement/2",
    )
    assert figure(cohort, "tnfi-clinical", "agent", "unknown") == (1, 1)
    assert figure(cohort, "tnfi-clinical", "line", "unknown") == (1, 1)
    assert figure(cohort, "tnfi-clinical", "line", "2") == (0, 1)


def test_the_stratum_unknown_of_the_tnf_courses_is_there_when_it_holds_none():
    cohort = tell(exposure=ADALIMUMAB, observed="value|date\nsufficient|2005-06-01")
    for group in ("tnfi-clinical", "tnfi-mri"):
        assert figure(cohort, group, "agent", "unknown") == (0, 0)
        assert figure(cohort, group, "line", "unknown") == (0, 0)


def test_several_methotrexate_courses_count_as_one_child():
    cohort = tell(
        exposure="agent|start|end\nmethotrexate|2005-01-01|2005-12-31\nmethotrexate|2007-01-01|2007-12-31",
        observed="value|date\ninsufficient|2005-06-01\nsufficient|2007-06-01",
    )
    assert figure(cohort, "mtx-clinical") == (1, 1)


@pytest.mark.parametrize(
    ("start", "counts"),
    [("2006-06-01", False), ("2006-07-01", False), ("2006-07-02", True)],
    ids=["11 months later", "12 months later", "a day after 12 months"],
)
@pytest.mark.parametrize("agent", ["methotrexate", "adalimumab", "pamidronic acid"])
def test_e20_nsaid_sufficient_only_without_escalation_within_12_months(agent, start, counts):
    cohort = tell(
        exposure=f"agent|start|end\nnaproxen|2005-01-01|2006-05-01\n{agent}|{start}|2009-01-01",
        observed="value|date\nsufficient|2005-07-01",
    )
    assert figure(cohort, "nsaid-clinical") == (int(counts), 1)


@pytest.mark.parametrize(("end", "counts"), [("2005-10-29", True), ("2005-10-30", False)], ids=["28 d", "29 d"])
def test_e20_a_short_glucocorticoid_burst_is_no_escalation(end, counts):
    cohort = tell(
        exposure=f"agent|start|end\nnaproxen|2005-01-01|2006-05-01\nprednisolone|2005-10-01|{end}",
        observed="value|date|part_of\nsufficient|2005-07-01|MedicationStatement/1",
    )
    assert figure(cohort, "nsaid-clinical") == (int(counts), 1)


def test_nsaid_counts_all_children_and_the_exposed_beside_them():
    cohort = tell(
        patient="patient\nPatient/A\nPatient/B\nPatient/C",
        condition="patient\nPatient/A\nPatient/B\nPatient/C",
        exposure="patient|agent|start|end\nPatient/A|naproxen|2005-01-01|2006-01-01\nPatient/B|naproxen|2005-01-01|2006-01-01",
        observed="patient|value|date\nPatient/A|sufficient|2005-07-01",
    )
    assert figure(cohort, "nsaid-clinical") == (1, 3)
    assert figure(cohort, "nsaid-clinical-exposed") == (1, 2)


MRI = "source|agent|start|end\nMedicationStatement/1|adalimumab|2005-01-01|2006-01-01"


@pytest.mark.parametrize(
    ("baseline", "followup", "counts"),
    [
        ("2004-12-20", "2005-06-01", True),
        ("2004-07-05", "2005-06-01", True),
        ("2004-07-04", "2005-06-01", False),
        ("2005-01-15", "2005-06-01", True),
        ("2005-01-16", "2005-06-01", False),
        ("2004-12-20", "2005-03-26", True),
        ("2004-12-20", "2005-03-25", False),
        ("2004-12-20", "2006-03-02", True),
        ("2004-12-20", "2006-03-03", False),
    ],
    ids=["inside", "-180 d", "-181 d", "+14 d", "+15 d", "+84 d", "+83 d", "stop +60 d", "stop +61 d"],
)
def test_e31_mri_windows(baseline, followup, counts):
    cohort = tell(
        exposure=MRI,
        imaging=f"imaging|date\nImagingStudy/1|{baseline}\nImagingStudy/2|{followup}",
        observed=f"kind|value|date|derived_from\nmri|regression|{followup}|ImagingStudy/1, ImagingStudy/2",
    )
    assert figure(cohort, "tnfi-mri") == ((1, 1) if counts else (0, 0))


def test_mri_regression_does_not_need_a_clinical_effect():
    cohort = tell(
        exposure=MRI,
        observed="""
        kind     | value        | date       | part_of
        clinical | insufficient | 2005-07-01 | MedicationStatement/1
        mri      | regression   | 2005-07-01 | MedicationStatement/1
        """,
    )
    assert (figure(cohort, "tnfi-clinical"), figure(cohort, "tnfi-mri")) == ((0, 1), (1, 1))


def test_e32_a_preliminary_or_cancelled_reading_does_not_count():
    cohort = tell(
        exposure=MRI,
        observed="""
        kind | value      | date       | part_of               | status
        mri  | regression | 2005-07-01 | MedicationStatement/1 | preliminary
        mri  | regression | 2005-08-01 | MedicationStatement/1 | entered-in-error
        """,
    )
    assert figure(cohort, "tnfi-mri") == (0, 0)
    assert {"status preliminary", "status entered-in-error"} <= set(cohort.tables["attrition"]["reason"])


def test_e19_an_effect_linked_to_a_drug_for_another_disease_counts_for_nothing():
    cohort = tell(
        exposure="source|agent|start|end|indications\nMedicationStatement/1|methotrexate|2005-01-01|2006-01-01|other",
        observed="value|date|part_of\nsufficient|2005-07-01|MedicationStatement/1",
    )
    assert figure(cohort, "mtx-clinical") == (0, 0)


@pytest.mark.parametrize(
    ("given", "flagged"),
    [
        ("2005-05-20|2005-05-31", False),
        ("2005-05-20|2005-06-01", True),
        ("2005-06-25|2005-07-20", True),
        ("2005-01-01|2006-01-01", True),
        ("2005-07-02|2005-07-20", False),
    ],
    ids=["31 d before", "30 d before", "6 d before", "all the time", "a day after"],
)
def test_e21_a_glucocorticoid_within_30_days_before_a_judgement_is_flagged(given, flagged):
    cohort = tell(
        exposure=f"source|agent|start|end\nMedicationStatement/1|adalimumab|2005-01-01|2006-01-01\nMedicationStatement/2|prednisolone|{given}",
        observed="value|date|part_of\nsufficient|2005-07-01|MedicationStatement/1",
    )
    flags = dict(cohort.tables["courses"][["drug_class", "flags"]].to_numpy().tolist())
    assert flags == {"GC": [], "TNF": ["judged under a glucocorticoid"] if flagged else []}
    assert figure(cohort, "tnfi-clinical") == (1, 1)


@pytest.mark.parametrize(
    ("values", "flags"),
    [("sufficient insufficient", ["judgements differ"]), ("sufficient sufficient", [])],
    ids=["they differ", "unanimous"],
)
def test_e25_judgements_that_differ_are_flagged(values, flags):
    first, second = values.split()
    cohort = tell(exposure=ADALIMUMAB, observed=f"value|date\n{first}|2005-06-20\n{second}|2005-12-01")
    assert cohort.tables["courses"]["flags"].tolist() == [flags]


@pytest.mark.parametrize(
    ("day", "attribution", "reason"),
    [
        ("2005-07", "window", None),
        ("2006-02", "unattributed", "in no course's window"),
        ("2006-01", "window", None),
        ("2006", "unattributed", "undetermined: partial date"),
        ("2005", "window", None),
        ("2004", "unattributed", "in no course's window"),
    ],
)
def test_e15_a_judgement_of_a_month_or_year_counts_where_each_day_of_it_would(day, attribution, reason):
    cohort = tell(exposure=ADALIMUMAB, observed=f"value|date\nsufficient|{day}")
    assert judged(cohort) == (attribution, reason)


@pytest.mark.parametrize(
    ("day", "attribution", "reason"),
    [
        ("2005", "link", None),
        ("2006", "link", None),
        ("2004", "unattributed", "before the start of the course it is linked to"),
        ("2007", "unattributed", "late: long after the stop"),
    ],
)
def test_e15_a_link_says_in_which_part_of_the_year_a_judgement_was(day, attribution, reason):
    cohort = tell(exposure=ADALIMUMAB, observed=f"value|date|part_of\nsufficient|{day}|MedicationStatement/1")
    assert judged(cohort) == (attribution, reason)


def test_e15_methotrexate_is_not_credited_with_what_may_have_been_seen_after_a_tnf_start():
    cohort = tell(
        exposure="""
        source                | agent        | start      | end
        MedicationStatement/1 | methotrexate | 2005-01-01 | 2007-01-01
        MedicationStatement/2 | adalimumab   | 2006-06-15 | 2008-01-01
        """,
        observed="value|date|part_of\nsufficient|2006|MedicationStatement/1\nsufficient|2005|MedicationStatement/1",
    )
    expect(
        cohort.tables["assessments"],
        """
        attribution  | reason
        unattributed | undetermined: partial date
        link         |
        """,
    )


def test_e20_a_judgement_after_the_escalation_is_not_the_nsaids():
    cohort = tell(
        exposure="agent|start|end\nnaproxen|2005-01-01|2006-01-01\nadalimumab|2005-06-01|2007-01-01",
        observed="value|date\nsufficient|2005-10-01",
    )
    assert cohort.tables["assessments"]["course"].tolist() == ["Patient/A/TNF-1"]
    assert figure(cohort, "nsaid-clinical") == (0, 1)


def test_e31_the_follow_up_lies_before_the_next_escalation():
    cohort = tell(
        exposure="agent|start|end\netanercept|2005-01-01|2006-01-01\nadalimumab|2005-12-01|2007-01-01",
        imaging="imaging|date\nImagingStudy/1|2004-12-20\nImagingStudy/2|2005-12-15",
        observed="kind|value|date|derived_from\nmri|regression|2005-12-15|ImagingStudy/1, ImagingStudy/2",
    )
    assert cohort.tables["assessments"]["attribution"].tolist() == ["unattributed"]


@pytest.mark.parametrize(
    ("readings", "mri", "flags"),
    [
        (["no-regression 2005-07-02", "regression 2005-07-20"], "regression", ["readers disagree"]),
        (["regression 2005-07-02", "no-regression 2005-07-20"], "no-regression", ["readers disagree"]),
        (["regression 2005-07-02", "no-regression 2005-07-02"], "no-regression", ["readers disagree"]),
        (["regression 2005-07-02", "regression 2005-07-20"], "regression", []),
    ],
    ids=["addendum", "addendum the other way", "two readers", "one opinion"],
)
@pytest.mark.parametrize("order", [1, -1])
def test_e32_of_several_readings_the_one_issued_last_counts(readings, mri, flags, order):
    rows = "\n".join("mri|" + "|".join(r.split()) + "|2005-07-01|MedicationStatement/1" for r in readings[::order])
    cohort = tell(exposure=MRI, observed="kind|value|issued|date|part_of\n" + rows)
    (course,) = cohort.tables["courses"].to_dict("records")
    assert (course["mri"], course["flags"]) == (mri, flags)


def test_e33_one_pair_of_mris_is_evaluated_in_the_course_begun_last_and_in_no_other():
    cohort = tell(
        exposure="""
        source                | agent        | start      | end
        MedicationStatement/1 | methotrexate | 2005-01-01 | 2007-01-01
        MedicationStatement/2 | adalimumab   | 2005-01-10 | 2007-01-01
        """,
        imaging="imaging|date\nImagingStudy/1|2004-12-20\nImagingStudy/2|2005-07-01",
        observed="kind|value|date|derived_from\nmri|regression|2005-07-01|ImagingStudy/1, ImagingStudy/2",
    )
    assert cohort.tables["assessments"]["course"].tolist() == ["Patient/A/TNF-1"]
    assert (figure(cohort, "mtx-mri"), figure(cohort, "tnfi-mri")) == ((0, 0), (1, 1))


REGIONS = """
baseline     | followup     | counts
all          | all          | yes
all          | femur        | no
femur        | all          | yes
femur        | femur        | yes
femur        | clavicle     | no
femur, tibia | femur        | no
femur        | femur, tibia | yes
             | femur        | yes
all          |              | yes
"""


@pytest.mark.parametrize("row", rows_of(REGIONS), ids=lambda row: f"{row.get('baseline')} > {row.get('followup')}")
@pytest.mark.parametrize("how", ["link", "window", "day"])
def test_e34_a_follow_up_must_show_what_the_baseline_showed(row, how):
    def study(number, day, covered):
        whole = "yes" if covered == "all" else "no"
        return f"ImagingStudy/{number}|{day}|{whole}|{'none' if covered == 'all' else covered or 'none'}"

    named = "none" if how == "day" else "ImagingStudy/1, ImagingStudy/2"
    cohort = tell(
        exposure=MRI,
        imaging="imaging|date|whole_body|regions\n"
        + study(1, "2004-12-20", row.get("baseline"))
        + "\n"
        + study(2, "2005-07-01", row.get("followup")),
        observed="kind|value|date|derived_from|part_of\nmri|regression|2005-07-01|"
        f"{named}|{'MedicationStatement/1' if how == 'link' else 'none'}",
    )
    assert figure(cohort, "tnfi-mri") == ((1, 1) if row["counts"] == "yes" else (0, 0))


def test_e03_e19_a_tnf_inhibitor_without_an_indication_locks_methotrexate_even_where_one_is_asked_for():
    cohort = tell(
        replace(WINDOW, require_indication=True),
        exposure="""
        source                | agent        | start      | end        | indications
        MedicationStatement/1 | methotrexate | 2005-01-01 | 2008-01-01 | crmo
        MedicationStatement/2 | etanercept   | 2006-01-01 | 2008-01-01 | none
        """,
        observed="value|date|part_of\nsufficient|2007-01-01|MedicationStatement/1",
    )
    assert cohort.tables["assessments"]["reason"].tolist() == ["after the start of a TNF inhibitor"]


def test_e03_a_tnf_inhibitor_begun_long_before_the_diagnosis_locks_methotrexate_too():
    story = """
    agent        | start      | end        | indications
    adalimumab   | 2003-01-01 | 2003-12-01 | {}
    methotrexate | 2005-01-01 | 2006-01-01 | crmo
    """
    judged = {"observed": "value|date|part_of\nsufficient|2005-09-01|MedicationStatement/2"}
    for indication, effect in (("crmo", None), ("none", None), ("other", "sufficient")):
        courses = tell(exposure=story.format(indication), **judged).tables["courses"].to_dict("records")
        assert [c["effect"] for c in courses if c["drug_class"] == "MTX"] == [effect]


@pytest.mark.parametrize(("strict", "evaluable"), [(False, True), (True, False)])
def test_e24_whether_a_judgement_before_the_minimum_exposure_counts_is_a_parameter(strict, evaluable):
    (course,) = (
        tell(
            replace(WINDOW, judged_when_exposed=strict),
            exposure="agent|start|end\nmethotrexate|2005-01-01|2006-01-01",
            observed="value|date\ninsufficient|2005-03-25",
        )
        .tables["courses"]
        .to_dict("records")
    )
    assert course["evaluable"] == evaluable
    assert course["not_evaluable_reason"] == (None if evaluable else "judged before the minimum exposure")
