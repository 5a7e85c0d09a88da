"""The effect of a course by its numbers, beside the judged one (clinical rules §3; the edge cases are named by their ids)."""

from dataclasses import replace
from datetime import date

import pytest
from story import WINDOW, expect, figure, tell

from crmo_fhir.cohort.courses import Course
from crmo_fhir.cohort.effect import Attributed, derive_effect
from crmo_fhir.export.observations import build_attributed_effects
from crmo_fhir.metrics import compute_members, compute_results
from crmo_fhir.model.parameters import EFFECT_SOURCES, Parameters

COURSE = "source|agent|start|end\nMedicationStatement/1|adalimumab|2005-01-01|2006-01-01"
LAB = "analyte|date|value|unit|comparator|status|studies"


def scores(*lines: str, before: str = "2004-12-20", after: str = "2005-07-01") -> str:
    """The table `lab` of lines such as `esr 40 12`: a value before the course and one in it, each perhaps with its unit."""
    rows = [LAB]
    for line in lines:
        analyte, *values = line.split()
        for day, text in zip((before, after), values, strict=True):
            number, _, unit = text.partition("@")
            if number != "-":
                sign = number[0] if number[0] in "<>" else ""
                rows.append(f"{analyte}|{day}|{number.lstrip('<>')}|{unit}|{sign}||none")
    return "\n".join(rows)


def course_of(parameters=WINDOW, exposure=COURSE, **given):
    rows = tell(parameters, exposure=exposure, **given).tables["courses"].to_dict("records")
    return next(row for row in rows if row["drug_class"] == "TNF")


def pedcno(*lines, **given):
    return course_of(lab=scores(*lines), **given)["pedcno"]


@pytest.mark.parametrize(
    ("after", "level", "effect"),
    [
        ("70.1", 0, "insufficient"),
        ("70", 30, "insufficient"),
        ("50.1", 30, "insufficient"),
        ("50", 50, "insufficient"),
        ("30.1", 50, "insufficient"),
        ("30", 70, "sufficient"),
        ("10.1", 70, "sufficient"),
        ("10", 90, "sufficient"),
        ("0", 90, "sufficient"),
        ("130", 0, "insufficient"),
    ],
)
def test_pedcno_at_each_level(after, level, effect):
    course = course_of(
        lab=scores(f"esr 100 {after}", f"physician-global 100@mm {after}@mm", f"chaq 1 {float(after) / 100}")
    )
    assert (course["pedcno"], course["derived"]) == (level, effect)


def test_the_limit_is_met_where_the_numbers_are_no_binary_fractions():
    assert pedcno("esr 1.1 0.77", "chaq 0.3 0.21", "patient-global 4.7 3.29") == 30


@pytest.mark.parametrize(
    ("lines", "level"),
    [
        (("physician-global 4 5.2", "chaq 1 1.3"), 70),
        (("physician-global 4 5.3", "chaq 1 1.3"), 70),
        (("physician-global 4 5.3", "chaq 1 1.375"), 0),
        (("physician-global 4 4", "chaq 1 1.375"), 70),
        ((), 70),
    ],
    ids=["none beyond 30 %", "one worse", "two worse", "one worse, one alike", "no others"],
)
def test_pedcno_lets_one_of_the_others_be_worse(lines, level):
    assert pedcno("esr 40 12", "lesion-count 10 3", "patient-global 6 1.8", *lines) == level


@pytest.mark.parametrize(
    ("lines", "level"),
    [
        (("esr 40 4", "chaq 1 0"), None),
        (("esr 40 4", "chaq 1 0", "physician-global 6 -"), None),
        (("esr 40 4", "chaq 1 0", "physician-global - 0"), None),
        (("esr 40 4", "chaq 1 0", "crp 40 4", "hb 80 120", "esr-2h 60 6"), None),
        (("esr 40 4", "chaq 1 0", "physician-global 6 5"), 0),
        (("esr 40 4", "chaq 1 0", "physician-global 6 0"), 90),
    ],
    ids=["two items", "no follow-up", "no baseline", "other analytes", "three, two better", "three better"],
)
def test_pedcno_needs_three_items_at_both_times(lines, level):
    course = course_of(lab=scores(*lines))
    assert (course["pedcno"], course["derived"] is None) == (level, level is None)


@pytest.mark.parametrize(
    ("zero", "level"),
    [
        (("chaq 0 0",), 70),
        (("chaq 0 0.12", "physician-global 0 0.9"), 70),
        (("chaq 0 0.125", "physician-global 0 0.9"), 70),
        (("chaq 0 0.125", "physician-global 0 1"), 0),
        (("chaq 0 0.125", "physician-global 0@mm 9@mm"), 70),
        (("chaq 0 0.125", "physician-global 0@mm 10@mm"), 0),
    ],
    ids=["stays", "below the steps", "one step", "two steps", "0-100, below the step", "0-100, a step"],
)
def test_a_baseline_of_0_is_never_better_and_is_worse_by_a_declared_step(zero, level):
    assert pedcno("esr 40 12", "lesion-count 10 3", "patient-global 6 1.8", *zero) == level
    assert pedcno("esr 40 12", "lesion-count 10 3", *zero) == 0


def test_the_steps_and_limits_are_parameters():
    lab = scores("esr 40 12", "lesion-count 10 3", "patient-global 6 1.8", "chaq 0 0.1", "physician-global 4 5.3")
    assert course_of(lab=lab)["pedcno"] == 70
    assert course_of(replace(WINDOW, pedcno_zero_steps={"chaq": 0.1}), lab=lab)["pedcno"] == 0
    assert course_of(replace(WINDOW, pedcno_percent=90), lab=lab)["derived"] == "insufficient"
    assert course_of(replace(WINDOW, pedcno_items=4), lab=lab)["pedcno"] == 0
    worse = replace(WINDOW, pedcno_worse_percent=33, pedcno_zero_steps={"chaq": 0.1})
    assert course_of(worse, lab=lab)["pedcno"] == 70


THREE = ("esr 40 12", "chaq 1 0.25", "patient-global 6 1.8")


@pytest.mark.parametrize(
    ("before", "after", "known"),
    [
        ("2004-10-03", "2005-07-01", True),
        ("2004-10-02", "2005-07-01", False),
        ("2005-01-15", "2005-07-01", True),
        ("2005-01-16", "2005-07-01", False),
        ("2004-12-20", "2006-01-31", True),
        ("2004-12-20", "2006-02-01", False),
        ("2005-01-15", "2005-01-16", True),
        ("2004-12-20", "2005-01-15", False),
    ],
    ids=["-90 d", "-91 d", "+14 d", "+15 d", "stop +30 d", "stop +31 d", "the day after", "both baselines"],
)
def test_baseline_and_follow_up_windows(before, after, known):
    course = course_of(lab=scores(*THREE, before=before, after=after))
    assert (course["pedcno"] is not None) is known


def test_the_last_values_of_the_windows_count():
    lab = "\n".join(
        [
            scores(*THREE, before="2004-11-01", after="2005-03-01"),
            *scores("esr 40 40", "chaq 1 1", "patient-global 6 6").splitlines()[1:],
        ]
    )
    assert course_of(lab=lab)["pedcno"] == 0


def test_of_two_values_of_one_day_the_less_favourable_counts():
    lab = "\n".join([scores(*THREE), *scores("esr 40 30", "chaq 0.25 0.25").splitlines()[1:]])
    assert course_of(lab=lab)["pedcno"] == 0


def test_an_escalation_ends_the_window_and_the_value_goes_to_one_course():
    exposure = "agent|start|end\netanercept|2005-01-01|2005-06-01\nadalimumab|2005-06-01|2006-06-01"
    cohort = tell(exposure=exposure, lab=scores(*THREE))
    expect(cohort.tables["courses"], "agent|pedcno\netanercept|\nadalimumab|")
    cohort = tell(exposure=exposure, lab=scores(*THREE, after="2005-06-01"))
    expect(cohort.tables["courses"], "agent|pedcno\netanercept|70\nadalimumab|")


def test_a_score_of_two_treatments_is_credited_to_the_one_that_a_judgement_would_be():
    exposure = "agent|start|end\nmethotrexate|2005-01-01|2006-01-01\nnaproxen|2005-01-01|2006-01-01"
    cohort = tell(exposure=exposure, lab=scores(*THREE))
    expect(cohort.tables["courses"], "agent|pedcno\nmethotrexate|70\nnaproxen|")


def test_e03_no_score_after_a_tnf_start_is_credited_to_methotrexate():
    exposure = "agent|start|end\nadalimumab|2003-01-01|2004-12-25\nmethotrexate|2005-01-01|2006-01-01"
    cohort = tell(
        exposure=exposure,
        lab=scores(*THREE),
        condition="disease|date\ncrmo|2002-12-01",
        contact="source|date\nEncounter/1|2013-01-01",
    )
    expect(cohort.tables["courses"], "agent|pedcno\nmethotrexate|\nadalimumab|")


@pytest.mark.parametrize(
    ("line", "compared"),
    [
        ("patient-global 6 1", True),
        ("patient-global 60@mm 10@mm", True),
        ("patient-global 60@{score}/100 10@{score}/100", True),
        ("patient-global 6 10@mm", False),
        ("patient-global 60@{score}/100 1", False),
        ("patient-global 6@cm 10@mm", False),
        ("patient-global 60@% 10@mm", False),
    ],
)
def test_scales_are_not_mixed(line, compared):
    assert (pedcno("esr 40 4", "chaq 1 0", line) is not None) is compared


def test_of_two_scales_the_one_followed_up_last_counts():
    lab = "\n".join(
        [
            scores("esr 40 12", "chaq 1 0", "patient-global 6 1"),
            *scores("patient-global 60@mm 60@mm", after="2005-09-01").splitlines()[1:],
        ]
    )
    assert course_of(lab=lab)["pedcno"] == 0


@pytest.mark.parametrize(
    ("line", "level"),
    [("esr 40 <4", 90), ("esr <40 4", None), ("esr >40 4", 90), ("esr 40 >4", None)],
    ids=["follow-up below", "baseline below", "baseline above", "follow-up above"],
)
def test_a_bound_counts_only_where_it_overstates_nothing(line, level):
    assert pedcno(line, "chaq 1 0", "patient-global 6 0") == level


CDAS = ("pain-nrs 7 2", "patient-global 6 3", "clinical-lesion-count 4 1")


@pytest.mark.parametrize(
    ("lines", "change"),
    [
        (CDAS, -11.0),
        (("pain-vas 7@cm 2@cm", *CDAS[1:]), -11.0),
        (("pain-vas 7 6", *CDAS), -11.0),
        (("pain-nrs 7 -", "pain-vas 7 6", *CDAS[1:]), -7.0),
        (("pain-vas 70@mm 20@mm", *CDAS[1:]), None),
        ((CDAS[0], "patient-global 60@mm 30@mm", CDAS[2]), None),
        ((*CDAS[:2], "lesion-count 4 1"), None),
        (CDAS[:2], None),
        (CDAS[1:], None),
        ((CDAS[0], CDAS[2]), None),
        (("pain-nrs 0 2", "patient-global 0 0.5", "clinical-lesion-count 0 1"), 3.5),
    ],
    ids=[
        "all three",
        "centimetres",
        "two kinds of pain",
        "one kind of pain twice",
        "pain 0-100",
        "global 0-100",
        "lesions on MRI",
        "no lesions",
        "no pain",
        "no global",
        "worse from 0",
    ],
)
def test_cdas_is_pain_and_global_and_clinical_lesions(lines, change):
    assert course_of(lab=scores(*lines))["cdas_change"] == change


@pytest.mark.parametrize(
    ("line", "change", "answer"),
    [
        ("lesion-count 6 2", -4.0, "regression"),
        ("lesion-count 6 5", -1.0, "regression"),
        ("lesion-count 6 6", 0.0, "no-regression"),
        ("lesion-count 6 8", 2.0, "no-regression"),
        ("lesion-count 0 0", 0.0, "no-regression"),
        ("rai-cromris 17 12", None, "regression"),
        ("rai-cromris 12 17", None, "no-regression"),
        ("rinbo 6 4", None, "regression"),
        ("clinical-lesion-count 6 2", None, None),
        ("lesion-count 6 -", None, None),
    ],
)
def test_mri_derived(line, change, answer):
    course = course_of(lab=scores(line))
    assert (course["lesion_change"], course["mri_derived"], course["mri"]) == (change, answer, None)


def test_lesions_go_before_the_indices():
    lines = ("rinbo 6 4", "rai-cromris 17 12", "lesion-count 6 6")
    assert course_of(lab=scores(*lines))["mri_derived"] == "no-regression"
    assert course_of(lab=scores("rinbo 6 7", "rai-cromris 17 12"))["mri_derived"] == "regression"


@pytest.mark.parametrize(
    ("before", "after", "known"),
    [
        ("2004-07-05", "2005-06-01", True),
        ("2004-07-04", "2005-06-01", False),
        ("2005-01-15", "2005-06-01", True),
        ("2005-01-16", "2005-06-01", False),
        ("2004-12-20", "2005-03-26", True),
        ("2004-12-20", "2005-03-25", False),
        ("2004-12-20", "2006-03-02", True),
        ("2004-12-20", "2006-03-03", False),
    ],
    ids=["-180 d", "-181 d", "+14 d", "+15 d", "+84 d", "+83 d", "stop +60 d", "stop +61 d"],
)
def test_e31_derived_mri_has_the_windows_of_the_judged(before, after, known):
    course = course_of(lab=scores("lesion-count 6 2", before=before, after=after))
    assert (course["mri_derived"] is not None) is known


def test_e33_a_pair_of_mri_serves_the_course_begun_last():
    exposure = "agent|start|end\nnaproxen|2005-01-01|2006-01-01\nnaproxen|2004-12-20|2005-02-01\nadalimumab|2005-01-05|2006-01-01"
    cohort = tell(exposure=exposure, lab=scores("lesion-count 6 2"))
    expect(cohort.tables["courses"], "agent|mri_derived\nnaproxen|\nadalimumab|regression")


@pytest.mark.parametrize(
    ("baseline", "followup", "answer"),
    [("yes", "yes", "regression"), ("no", "no", "regression"), ("yes", "no", None), ("no", "yes", None)],
)
def test_e34_whole_body_and_regional_are_not_compared(baseline, followup, answer):
    course = course_of(
        imaging=f"imaging|date|whole_body\nImagingStudy/1|2004-12-20|{baseline}\nImagingStudy/2|2005-07-01|{followup}",
        lab=f"{LAB}\nlesion-count|2004-12-20|6|||final|ImagingStudy/1\nlesion-count|2005-07-01|2|||final|ImagingStudy/2",
    )
    assert course["mri_derived"] == answer


@pytest.mark.parametrize(
    ("baseline", "followup", "answer"),
    [
        ("femur, tibia", "femur, tibia", "regression"),
        ("femur, tibia", "tibia", None),
        ("tibia", "femur, tibia", None),
        ("tibia", "none", "regression"),
    ],
    ids=["the same", "less", "more", "not recorded"],
)
def test_e34_counts_in_other_regions_are_not_compared(baseline, followup, answer):
    course = course_of(
        imaging=f"date|whole_body|regions\n2004-12-20|no|{baseline}\n2005-07-01|no|{followup}",
        lab=f"{LAB}\nlesion-count|2004-12-20|5||||ImagingStudy/1\nlesion-count|2005-07-01|2||||ImagingStudy/2",
    )
    assert course["mri_derived"] == answer


@pytest.mark.parametrize("status", ["preliminary", "registered", "entered-in-error", "cancelled"])
def test_e32_a_count_that_is_not_final_is_none(status):
    lab = f"{LAB}\nlesion-count|2004-12-20|6|||final|none\nlesion-count|2005-07-01|2|||{status}|none"
    assert course_of(lab=lab)["mri_derived"] is None


def test_a_derived_answer_names_what_it_was_made_of():
    cohort = tell(
        exposure=COURSE,
        observed="value|date|assessment\nsufficient|2005-06-01|Observation/judged",
        lab=scores("esr 40 12", "chaq 1 0.25", "lesion-count 6 2"),
    )
    expect(
        cohort.tables["assessments"],
        """
        assessment                         | kind     | origin  | value      | date       | course          | primary | sources
        Observation/judged                 | clinical | judged  | sufficient | 2005-06-01 | Patient/A/TNF-1 | yes     |
        derived/Patient/A/TNF-1/clinical   | clinical | derived | insufficient | 2005-07-01 | Patient/A/TNF-1 | yes   | Observation/1, Observation/2, Observation/3, Observation/4, Observation/5, Observation/6
        derived/Patient/A/TNF-1/mri        | mri      | derived | regression | 2005-07-01 | Patient/A/TNF-1 | yes     | Observation/5, Observation/6
        """,
    )
    expect(cohort.tables["courses"], "assessments\nObservation/judged")
    (row,) = [r for r in cohort.tables["attrition"].to_dict("records") if r["step"] == "assessments"]
    assert (row["kept"], row["dropped"]) == (1, 0), "a derived answer is no record"


def test_a_derived_answer_is_not_written_as_a_judgement():
    tables = tell(
        exposure=COURSE, observed="value|date\nsufficient|2005-06-01", lab=scores(*THREE, "lesion-count 6 2")
    ).tables
    assert {"judged", "derived"} == set(tables["assessments"]["origin"])
    (written,) = build_attributed_effects(tables)
    assert written["derivedFrom"] == [{"reference": "Observation/1"}]


JUDGED_BAD = "kind|value|date\nclinical|insufficient|2005-06-01"


@pytest.mark.parametrize(
    ("source", "effect", "mri"),
    [
        ("judged", "insufficient", None),
        ("derived", "sufficient", "regression"),
        ("reviewed", None, None),
        ("judged-or-reviewed", "insufficient", None),
    ],
)
def test_the_figures_follow_the_source_that_the_study_counts(source, effect, mri):
    parameters = replace(WINDOW, effect_source=source)
    cohort = tell(parameters, exposure=COURSE, observed=JUDGED_BAD, lab=scores(*THREE, "lesion-count 6 2"))
    (course,) = cohort.tables["courses"].to_dict("records")
    assert (course["effect"], course["mri"]) == (effect, mri)
    assert (course["judged"], course["derived"], course["reviewed"]) == ("insufficient", "sufficient", None)
    assert (course["mri_judged"], course["mri_derived"]) == (None, "regression")
    assert (course["evaluable"], course["not_evaluable_reason"]) == (
        effect is not None,
        None if effect else "no assessment",
    )
    rows = {r.group: (r.n, r.N) for r in compute_results(cohort.tables, parameters) if not r.stratifier}
    assert rows["tnfi-clinical"] == ((int(effect == "sufficient"), 1) if effect else (0, 0))
    assert rows["tnfi-mri"] == ((1, 1) if mri else (0, 0))
    assert rows["tnfi-clinical-derived"] == (1, 1)
    assert rows["tnfi-clinical-reviewed"] == (0, 0)
    assert rows.get("tnfi-clinical-judged", (0, 1)) == (0, 1)
    counted = [m for m in compute_members(cohort.tables, parameters) if m.group == "tnfi-clinical"]
    assert [(m.evaluable, m.effect) for m in counted] == [(effect is not None, effect == "sufficient")]
    assert (len(counted[0].sources) > 2) is (source == "derived"), "the scores are what a derived effect rests on"


def answer(origin: str, value: str, day: int, kind: str = "clinical") -> Attributed:
    name = f"{origin}/{kind}/{day}"
    return Attributed(
        name,
        "Patient/A",
        kind,
        value,
        date(2005, 6, day),
        ADALIMUMAB,
        "window",
        None,
        origin=origin,
        sources=("Task/1",),
    )


ADALIMUMAB = Course(
    "Patient/A",
    "adalimumab",
    "TNF",
    date(2005, 1, 1),
    date(2006, 1, 1),
    "statement",
    [],
    course_no=1,
    exposure_days=365,
)


@pytest.mark.parametrize(
    ("source", "judged", "effect"),
    [
        ("judged", "sufficient", "sufficient"),
        ("judged", None, None),
        ("judged", "not-evaluable", None),
        ("reviewed", "sufficient", "insufficient"),
        ("judged-or-reviewed", "sufficient", "sufficient"),
        ("judged-or-reviewed", None, "insufficient"),
        ("judged-or-reviewed", "not-evaluable", "insufficient"),
        ("derived", "sufficient", "sufficient"),
    ],
)
def test_a_judgement_goes_before_a_review_which_fills_in(source, judged, effect):
    given = [
        answer("reviewed", "sufficient", 1),
        answer("reviewed", "insufficient", 2),
        answer("derived", "sufficient", 3),
    ]
    given += [answer("judged", judged, 1)] if judged else []
    columns, rows = derive_effect({"Patient/A": [ADALIMUMAB]}, given, Parameters(effect_source=source))
    course = columns["Patient/A/TNF-1"]
    assert (course["effect"], course["evaluable"]) == (effect, effect is not None)
    assert (course["reviewed"], course["derived"]) == ("insufficient", "sufficient")
    assert course["judged"] == (None if judged == "not-evaluable" else judged)
    assert {r["assessment"] for r in rows if r["primary"]} - {"judged/clinical/1"} == {
        "reviewed/clinical/2",
        "derived/clinical/3",
    }
    assert all(r["origin"] == r["assessment"].partition("/")[0] for r in rows)


def test_every_source_has_a_row_and_one_that_holds_nothing_says_so():
    cohort = tell(exposure=COURSE, observed=JUDGED_BAD)
    rows = {r.group: r for r in compute_results(cohort.tables, WINDOW) if not r.stratifier}
    for group in ("nsaid-clinical", "mtx-clinical", "tnfi-clinical", "mtx-mri", "tnfi-mri"):
        for source in set(EFFECT_SOURCES) - {"judged"}:
            row = rows[f"{group}-{source}"]
            known = (group, source) == ("tnfi-clinical", "judged-or-reviewed")
            assert (row.n, row.N, row.proportion is None) == (0, int(known), not known)
            assert ("nothing of this reading" in row.note) is not known
        assert f"{group}-judged" not in rows


def test_e25_best_ever_and_six_months_are_readings():
    cohort = tell(
        exposure="agent|start|end\nmethotrexate|2005-01-01|2006-01-01\nadalimumab|2006-06-01|2007-06-01",
        observed="""
        value        | date
        insufficient | 2005-03-01
        sufficient   | 2005-07-01
        insufficient | 2005-12-01
        sufficient   | 2006-08-01
        insufficient | 2006-12-01
        """,
    )
    for group in ("tnfi-clinical", "mtx-clinical"):
        figures = {name: figure(cohort, f"{group}{name}") for name in ("", "-best-ever", "-6-months")}
        assert figures == {"": (0, 1), "-best-ever": (1, 1), "-6-months": (int(group == "mtx-clinical"), 1)}


def test_e24_a_reading_counts_no_course_too_short_to_be_judged():
    exposure = "source|agent|start|end\nMedicationStatement/1|adalimumab|2005-01-01|2005-03-01"
    cohort = tell(exposure=exposure, lab=scores(*THREE, after="2005-02-20"))
    expect(cohort.tables["courses"], "derived|exposure_enough\nsufficient|no")
    assert figure(cohort, "tnfi-clinical-derived") == (0, 0)


@pytest.mark.parametrize(("start", "counts"), [("2006-07-01", 0), ("2006-07-02", 1)])
def test_e20_a_derived_nsaid_effect_is_annulled_by_an_escalation_within_12_months_too(start, counts):
    cohort = tell(
        exposure=f"agent|start|end\nnaproxen|2005-01-01|2006-05-01\nmethotrexate|{start}|2009-01-01",
        lab=scores(*THREE),
    )
    assert figure(cohort, "nsaid-clinical-derived") == (counts, 1)
