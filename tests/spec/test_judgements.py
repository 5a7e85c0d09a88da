"""What a review asks and which course an answer is of, told as tables (step `review`)."""

from dataclasses import replace
from datetime import date
from io import BytesIO

import pytest
from openpyxl import load_workbook
from story import WINDOW, expect, figure, tell

from crmo_fhir.cohort.review import derive_questions, read_answers
from crmo_fhir.export.worksheet import read_worksheet, write_worksheet
from crmo_fhir.metrics import compute_analysis
from crmo_fhir.model.review import Judgement

TNF = "source|agent|start|end\nMedicationStatement/1|adalimumab|2005-01-01|2006-01-01"
BOTH = """
    source                | agent        | start      | end
    MedicationStatement/1 | methotrexate | 2005-01-01 | 2007-01-01
    MedicationStatement/2 | adalimumab   | 2006-01-01 | 2008-01-01
    """
JUDGED = Judgement(
    review=1,
    row=2,
    person="Patient/A",
    drug_class="TNF",
    agent="adalimumab",
    start=date(2005, 1, 1),
    sources=("MedicationStatement/1",),
    kind="clinical",
    answer="sufficient",
    judged_on=date(2005, 6, 1),
    reviewer="Dr A",
    reviewed_on=date(2012, 1, 1),
)
REVIEWED = replace(WINDOW, effect_source="reviewed")
EITHER = replace(WINDOW, effect_source="judged-or-reviewed")


def asked(cohort, *, everything=False):
    return [
        (q.cells["course"].removeprefix("Patient/A/"), q.kind)
        for q in derive_questions(cohort.tables, WINDOW, "study", everything=everything)
    ]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("sufficient", []), ("not-evaluable", [("TNF-1", "clinical")])],
    ids=["judged", "judged as not evaluable"],
)
def test_asked_is_for_the_courses_without_a_judged_effect(value, wanted):
    assert asked(tell(exposure=TNF, observed=f"value|date\n{value}|2005-06-01")) == wanted
    assert asked(tell(exposure=TNF)) == [("TNF-1", "clinical")]


@pytest.mark.parametrize("agent", ["prednisolone", "pamidronic acid", "sulfasalazine", "anakinra"])
def test_courses_of_other_classes_and_out_of_the_figures_are_not_asked_for(agent):
    exposure = (
        f"agent|start|end|indications\n{agent}|2005-01-01|2006-01-01|crmo\nadalimumab|2006-06-01|2007-01-01|other"
    )
    assert asked(tell(exposure=exposure), everything=True) == []


@pytest.mark.parametrize(
    ("baseline", "followup", "wanted"),
    [
        ("2004-07-05", "2005-03-26", True),
        ("2005-01-15", "2006-03-02", True),
        ("2004-07-04", "2005-06-01", False),
        ("2005-01-16", "2005-06-01", False),
        ("2005-01-01", "2005-03-25", False),
        ("2005-01-01", "2006-03-03", False),
    ],
    ids=[
        "first days",
        "last days",
        "baseline too old",
        "baseline too late",
        "follow-up too early",
        "follow-up too late",
    ],
)
def test_the_mri_is_asked_for_where_baseline_and_follow_up_stand_in_their_windows(baseline, followup, wanted):
    cohort = tell(exposure=TNF, imaging=f"date\n{baseline}\n{followup}")
    assert (("TNF-1", "mri") in asked(cohort)) is wanted


def test_a_follow_up_after_the_start_of_a_tnf_inhibitor_is_not_methotrexates():
    cohort = tell(exposure=BOTH, imaging="date\n2005-01-01\n2006-01-10\n2007-01-01")
    assert [one for one in asked(cohort) if one[1] == "mri"] == [("TNF-1", "mri")]


def test_a_judgement_is_linked_to_its_course_and_counts_by_the_source_that_is_asked_for():
    story = {"exposure": TNF, "observed": "value|date\ninsufficient|2005-05-01"}
    cohort = tell(reviews=[JUDGED], **story)
    expect(
        cohort.tables["assessments"],
        """
        assessment    | origin   | value        | date       | course            | attribution | primary
        Observation/1 | judged   | insufficient | 2005-05-01 | Patient/A/TNF-1   | window      | yes
        review/0001/2 | reviewed | sufficient   | 2005-06-01 | Patient/A/TNF-1   | link        | yes
        """,
    )
    expect(cohort.tables["courses"], "effect|judged|reviewed\ninsufficient|insufficient|sufficient")
    assert figure(cohort, "tnfi-clinical") == (0, 1)
    assert figure(tell(REVIEWED, reviews=[JUDGED], **story), "tnfi-clinical") == (1, 1)
    assert figure(tell(EITHER, reviews=[JUDGED], **story), "tnfi-clinical") == (0, 1)
    assert figure(tell(EITHER, reviews=[JUDGED], exposure=TNF), "tnfi-clinical") == (1, 1)
    assert figure(tell(REVIEWED, observed=story["observed"], exposure=TNF), "tnfi-clinical") == (0, 0)


def test_judgements_of_two_sources_are_never_mixed():
    later = replace(JUDGED, judged_on=date(2005, 9, 1), answer="insufficient")
    cohort = tell(EITHER, reviews=[later], exposure=TNF, observed="value|date\nsufficient|2005-05-01")
    expect(
        cohort.tables["courses"],
        "effect|effect_low|effect_best|effect_6_months|reviewed\nsufficient|2005-05-01|sufficient|sufficient|insufficient",
    )


def test_a_judgement_as_not_evaluable_leaves_the_course_out_of_the_denominator():
    cohort = tell(REVIEWED, reviews=[replace(JUDGED, answer="not-evaluable")], exposure=TNF)
    assert figure(cohort, "tnfi-clinical") == (0, 0)
    assert asked(cohort) == []


@pytest.mark.parametrize(
    ("change", "exposure", "reason"),
    [
        ({}, TNF, None),
        ({"sources": ("MedicationStatement/9",)}, TNF, None),
        ({"start": date(2004, 12, 1)}, TNF, None),
        (
            {"start": date(2004, 12, 1), "sources": ("MedicationStatement/9",)},
            TNF,
            "the course reviewed is no longer there",
        ),
        ({"agent": "etanercept"}, TNF, "the course reviewed is no longer there"),
        ({"person": "Patient/B"}, TNF, "the course reviewed is no longer there"),
        ({"judged_on": date(2006, 6, 30)}, TNF, None),
        ({"judged_on": date(2006, 7, 1)}, TNF, "late: long after the stop"),
        ({"judged_on": date(2004, 12, 31)}, TNF, "before the start of the course it is linked to"),
        (
            {"agent": "methotrexate", "drug_class": "MTX", "judged_on": date(2006, 1, 2)},
            BOTH,
            "after the start of a TNF inhibitor",
        ),
        ({"agent": "methotrexate", "drug_class": "MTX", "judged_on": date(2006, 1, 1)}, BOTH, None),
    ],
    ids=[
        "as it was",
        "by its start",
        "by its sources",
        "neither",
        "another agent",
        "another child",
        "180 days after the stop",
        "181 days after the stop",
        "before the start",
        "methotrexate after a TNF start",
        "methotrexate on the day of a TNF start",
    ],
)
def test_a_judgement_finds_its_course_or_is_listed(change, exposure, reason):
    cohort = tell(reviews=[replace(JUDGED, **change)], exposure=exposure)
    (row,) = cohort.tables["assessments"].to_dict("records")
    assert row["reason"] == reason
    assert (row["attribution"], row["course"] is None) == ("unattributed" if reason else "link", reason is not None)
    told = cohort.tables["attrition"]["reason"].tolist()
    assert (f"unattributed: {reason}" in told) is (reason is not None)


def test_of_several_reviews_of_a_course_the_latest_counts():
    later = replace(JUDGED, review=2, answer="insufficient", judged_on=date(2005, 3, 1))
    cohort = tell(reviews=[later, JUDGED], exposure=TNF)
    expect(
        cohort.tables["assessments"],
        """
        assessment    | attribution  | reason
        review/0001/2 | unattributed | replaced by a later review
        review/0002/2 | link         |
        """,
    )
    expect(cohort.tables["courses"], "reviewed\ninsufficient")


def test_a_judgement_goes_with_the_child_when_records_are_merged():
    cohort = tell(
        patient="patient\nPatient/A\nPatient/B",
        patient_link="patient|other\nPatient/A|Patient/B",
        exposure=TNF,
        reviews=[JUDGED],
    )
    expect(cohort.tables["courses"], "person|reviewed\nPatient/B|sufficient")


@pytest.mark.parametrize("name", ["w.xlsx", "w.csv"])
@pytest.mark.parametrize("first", ["=", "+", "-", "@"])
def test_no_text_of_a_record_is_a_formula_in_the_worksheet(name, first):
    agent = f"{first}cmd('calc')"
    cohort = tell(exposure=f"agent|drug_class|start|end\n{agent}|TNF|2005-01-01|2006-01-01")
    (question,) = derive_questions(cohort.tables, WINDOW, "study")
    content = write_worksheet(name, [question.cells])
    if name == "w.xlsx":
        sheet = load_workbook(BytesIO(content))["review"]
        assert {cell.data_type for line in sheet.iter_rows() for cell in line} <= {"s", "n"}
        assert [cell.value for cell in sheet[2]].count(f"'{agent}") == 1
    ((number, cells),) = read_worksheet(name, content)
    assert cells["agent"] == f"'{agent}"
    assert not any(str(cell).startswith(("=", "+", "-", "@")) for cell in cells.values())
    cells |= {"answer": "sufficient", "judged_on": "2005-06-01", "reviewer": "Dr A", "reviewed_on": "2012-01-01"}
    read = read_answers([(number, cells)], [question], "study", 1, date(2012, 1, 2))
    assert read.faults == []
    assert [one.agent for one in read.judgements] == [agent]


def test_a_review_stays_with_the_piece_of_its_course_that_had_begun_by_its_day():
    exposure = """
    source                | agent      | start      | end
    MedicationStatement/1 | adalimumab | 2005-01-01 | 2005-06-01
    MedicationStatement/2 | adalimumab | 2005-08-15 | 2006-01-01
    MedicationStatement/3 | adalimumab | 2006-01-01 | 2006-06-01
    """
    given = replace(JUDGED, sources=tuple(f"MedicationStatement/{n}" for n in (1, 2, 3)), judged_on=date(2005, 5, 1))
    for gap in (90, 60):
        cohort = tell(replace(REVIEWED, gap_days=gap), reviews=[given], exposure=exposure)
        assert cohort.tables["courses"]["reviewed"].tolist()[0] == "sufficient"


def test_time_to_response_follows_the_source_that_counts():
    cohort = tell(REVIEWED, reviews=[JUDGED], exposure=TNF)
    found = {
        source: next(
            e.value
            for e in compute_analysis(cohort.tables, replace(WINDOW, effect_source=source), ()).estimates
            if (e.analysis, e.group, e.statistic, e.stratum) == ("response", "tnfi", "median", "")
        )
        for source in ("judged", "reviewed")
    }
    assert found == {"judged": None, "reviewed": 151}


def test_a_review_of_a_child_that_is_no_longer_in_the_cohort_is_on_no_timeline():
    cohort = tell(REVIEWED, reviews=[replace(JUDGED, person="Patient/gone")], exposure=TNF)
    assert cohort.tables["assessments"]["attribution"].tolist() == ["unattributed"]
    (timeline,) = compute_analysis(cohort.tables, REVIEWED, ()).timelines
    assert timeline.marks == ()
