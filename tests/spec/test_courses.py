"""Courses and lines (clinical rules §2; the edge cases are named by their ids)."""

from dataclasses import replace
from datetime import date, timedelta

import pytest
from story import WINDOW, expect, figure, tell


def test_one_record_is_one_course():
    cohort = tell(
        exposure="""
        agent        | start      | end        | stop_reasons
        methotrexate | 2005-01-10 | 2006-02-01 | inefficacy
        """
    )
    expect(
        cohort.tables["courses"],
        """
        drug_class | agent        | course_no | line_no | start      | end        | exposure_days | stop_reason | indication
        MTX        | methotrexate | 1         | 1       | 2005-01-10 | 2006-02-01 | 387           | inefficacy  | crmo
        """,
    )


def test_e01_overlapping_records_of_one_agent_merge():
    cohort = tell(
        exposure="""
        agent        | start      | end
        methotrexate | 2005-01-10 | 2005-09-01
        methotrexate | 2005-06-01 | 2006-02-01
        methotrexate | 2005-07-01 | 2005-08-01
        """
    )
    expect(
        cohort.tables["courses"],
        """
        start      | end        | sources
        2005-01-10 | 2006-02-01 | MedicationStatement/1, MedicationStatement/2, MedicationStatement/3
        """,
    )


@pytest.mark.parametrize(
    ("restart", "courses"), [("2005-09-27", 1), ("2005-09-28", 2), ("2005-09-29", 2)], ids=["89 d", "90 d", "91 d"]
)
def test_e04_e05_gap_of_90_days_begins_a_new_course_of_the_same_line(restart, courses):
    cohort = tell(
        exposure=f"""
        agent      | start      | end
        infliximab | 2005-01-01 | 2005-06-30
        infliximab | {restart} | 2006-06-30
        """
    )
    assert cohort.tables["courses"]["course_no"].tolist() == list(range(1, courses + 1))
    assert set(cohort.tables["courses"]["line_no"]) == {1}


@pytest.mark.parametrize("pause", ["2005-06-10", "2005-09-15"], ids=["short trial of B", "long trial of B"])
def test_e06_return_to_an_earlier_agent_is_a_third_course_and_no_new_line(pause):
    cohort = tell(
        exposure=f"""
        agent      | start      | end
        etanercept | 2005-01-01 | 2005-05-31
        adalimumab | 2005-06-01 | {pause}
        etanercept | {pause} | 2006-06-30
        """
    )
    expect(
        cohort.tables["courses"],
        """
        agent      | course_no | line_no
        etanercept | 1         | 1
        adalimumab | 2         | 2
        etanercept | 3         | 1
        """,
    )


@pytest.mark.parametrize(
    ("end_of_first", "shown_end", "flagged"),
    [("2005-06-20", "2005-06-01", False), ("2005-07-01", "2005-06-01", False), ("2005-07-02", "2005-07-02", True)],
    ids=["19 d", "30 d", "31 d"],
)
def test_e02_overlap_of_two_tnf_agents(end_of_first, shown_end, flagged):
    first, second = (
        tell(
            exposure=f"""
        agent      | start      | end
        etanercept | 2005-01-01 | {end_of_first}
        adalimumab | 2005-06-01 | 2006-06-30
        """
        )
        .tables["courses"]
        .to_dict("records")
    )
    assert first["end"].isoformat() == shown_end
    assert [("overlaps another TNF inhibitor" in c["flags"]) for c in (first, second)] == [flagged, flagged]
    assert (first["line_no"], second["line_no"]) == (1, 2)


def test_e03_methotrexate_beside_a_tnf_inhibitor_keeps_both_courses():
    expect(
        tell(
            exposure="""
            agent        | start      | end
            methotrexate | 2005-01-01 | 2007-01-01
            adalimumab   | 2006-01-01 | 2008-01-01
            """
        ).tables["courses"],
        """
        drug_class | start      | end        | co_mtx
        MTX        | 2005-01-01 | 2007-01-01 | no
        TNF        | 2006-01-01 | 2008-01-01 | yes
        """,
    )


def test_e10_infusions_run_to_the_last_one_plus_the_nominal_interval():
    expect(
        tell(
            exposure="""
            agent      | rung           | given_once | start
            infliximab | administration | yes        | 2005-01-01
            infliximab | administration | yes        | 2005-01-15
            infliximab | administration | yes        | 2005-02-12
            """
        ).tables["courses"],
        """
        start      | end        | exposure_days | rung
        2005-01-01 | 2005-04-09 | 98            | administration
        """,
    )


def test_e10_a_single_infusion_is_a_course_of_its_interval():
    expect(
        tell(
            exposure="""
            agent      | rung           | given_once | start
            infliximab | administration | yes        | 2005-01-01
            """
        ).tables["courses"],
        """
        start      | end        | exposure_days
        2005-01-01 | 2005-02-26 | 56
        """,
    )


def test_e11_the_strongest_evidence_of_an_agent_is_used_alone():
    expect(
        tell(
            exposure="""
            agent        | rung           | start      | end
            methotrexate | order          | 2005-01-01 | 2009-01-01
            methotrexate | statement      | 2005-02-01 | 2006-01-01
            adalimumab   | order          | 2006-02-01 | 2007-01-01
            naproxen     | dispense       | 2005-01-05 |
            naproxen     | statement      | 2005-01-01 | 2008-01-01
            """
        ).tables["courses"],
        """
        drug_class | agent        | rung      | start      | end
        MTX        | methotrexate | statement | 2005-02-01 | 2006-01-01
        NSAID      | naproxen     | dispense  | 2005-01-05 | 2005-01-05
        """,
    )


def test_e11_orders_make_courses_only_where_the_source_holds_nothing_stronger():
    orders = """
        agent        | rung  | status | start      | end
        methotrexate | order | active | 2005-01-01 | 2006-01-01
        """
    expect(
        tell(exposure=orders, type_counts={"MedicationRequest": 1}).tables["courses"],
        "agent|rung|flags\nmethotrexate|order|from orders",
    )
    assert tell(exposure=orders, type_counts={"MedicationRequest": 1, "MedicationStatement": 1}).tables["courses"].empty


def test_e12_records_that_were_not_taken_leave_with_a_count():
    cohort = tell(
        type_counts={"MedicationStatement": 3},
        exposure="""
        agent        | taken | status           | start      | end
        methotrexate | no    | entered-in-error | 2005-01-01 | 2006-01-01
        methotrexate | no    | not-taken        | 2005-01-01 | 2006-01-01
        methotrexate | yes   | completed        | 2005-03-01 | 2006-01-01
        """,
    )
    assert cohort.tables["courses"]["start"].astype(str).tolist() == ["2005-03-01"]
    attrition = cohort.tables["attrition"]
    rows = attrition[attrition["step"] == "records: MedicationStatement"]
    assert rows[["reason", "kept", "dropped"]].to_numpy().tolist() == [
        ["status entered-in-error", 2, 1],
        ["status not-taken", 1, 1],
    ]


def test_e13_on_hold_is_a_gap():
    expect(
        tell(
            exposure="""
            agent        | taken   | status    | start      | end
            methotrexate | yes     | completed | 2005-01-01 | 2006-12-31
            methotrexate | on-hold | on-hold   | 2005-06-01 | 2005-10-01
            """
        ).tables["courses"],
        """
        start      | end        | course_no
        2005-01-01 | 2005-06-01 | 1
        2005-10-01 | 2006-12-31 | 2
        """,
    )


def test_e13_a_pause_did_not_end_for_the_reason_of_the_later_stop():
    cohort = tell(
        exposure="""
        agent        | taken   | status  | start      | end        | stop_reasons
        methotrexate | yes     | stopped | 2005-01-01 | 2006-12-31 | inefficacy
        methotrexate | on-hold | on-hold | 2005-06-01 | 2005-10-01 |
        """
    )
    expect(cohort.tables["courses"], "end | stop_reason\n2005-06-01 | unknown\n2006-12-31 | inefficacy")


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        ("2006-01-01", "2005-01-01", "end before start"),
        ("1995-06-01", "2005-01-01", "start before birth"),
        ("2030-01-01", "2031-01-01", "start in the future"),
    ],
)
def test_e16_a_record_that_contradicts_itself_is_refused_and_listed(start, end, reason):
    cohort = tell(exposure=f"agent|start|end\nmethotrexate|{start}|{end}")
    assert cohort.tables["courses"].empty
    assert reason in cohort.tables["attrition"]["reason"].tolist()


def test_e17_no_end_is_ongoing_and_counts_to_the_last_contact():
    expect(
        tell(
            contact="source|date\nEncounter/1|2006-01-01",
            exposure="agent|status|start\nadalimumab|active|2005-01-01",
        ).tables["courses"],
        """
        start      | end | exposure_days | stop_reason
        2005-01-01 |     | 365           | ongoing
        """,
    )


def test_e17_a_child_silent_for_more_than_a_year_is_flagged_stale():
    cohort = tell(
        patient="patient|birth\nPatient/A|1996-01-01\nPatient/B|1996-01-01",
        condition="patient\nPatient/A\nPatient/B",
        contact="patient|source|date\nPatient/A|Encounter/1|2006-01-01\nPatient/B|Encounter/2|2007-06-01",
        exposure="patient|agent|status|start\nPatient/A|adalimumab|active|2005-01-01\nPatient/B|adalimumab|active|2005-01-01",
    )
    assert cohort.tables["courses"]["flags"].tolist() == [["stale"], []]


@pytest.mark.parametrize(
    ("start", "left_out", "flags"),
    [
        ("2004-09-02", None, ["begun shortly before the diagnosis"]),
        ("2004-09-01", "begun before the diagnosis", []),
    ],
    ids=["90 d before", "91 d before"],
)
def test_e18_a_course_long_before_the_diagnosis_is_out(start, left_out, flags):
    (course,) = tell(exposure=f"agent|start|end\nnaproxen|{start}|2006-01-01").tables["courses"].to_dict("records")
    assert (course["left_out"], course["flags"]) == (left_out, flags)


@pytest.mark.parametrize(
    ("indications", "indication", "left_out"),
    [
        ("crmo", "crmo", None),
        ("other", "other", "other disease"),
        ("crmo, other", "both", None),
        ("none", "missing", None),
    ],
)
def test_e19_a_drug_for_another_disease_only_is_out(indications, indication, left_out):
    (course,) = (
        tell(exposure=f"agent|start|end|indications\nmethotrexate|2005-01-01|2006-01-01|{indications}")
        .tables["courses"]
        .to_dict("records")
    )
    assert (course["indication"], course["left_out"]) == (indication, left_out)
    assert ("indication not recorded" in course["flags"]) == (indication == "missing")
    assert ("also for another disease" in course["flags"]) == (indication == "both")


def test_e19_whether_a_missing_indication_counts_is_a_parameter():

    story = (
        "agent|start|end|indications\nmethotrexate|2005-01-01|2006-01-01|none\nadalimumab|2005-01-01|2006-01-01|crmo"
    )
    strict = tell(replace(WINDOW, require_indication=True), exposure=story)
    expect(
        strict.tables["courses"],
        """
        drug_class | course_no | left_out
        MTX        |           | indication not recorded
        TNF        | 1         |
        """,
    )
    assert tell(exposure=story).tables["courses"]["left_out"].tolist() == [None, None]


@pytest.mark.parametrize(
    ("reasons", "stop_reason"),
    [
        ("inefficacy", "inefficacy"),
        ("adverse_event, inefficacy", "both"),
        ("remission", "remission"),
        ("other, patient_choice", "other"),
        ("remission, adverse_event", "remission"),
    ],
)
def test_e29_e30_stop_reasons(reasons, stop_reason):
    (course,) = (
        tell(exposure=f"agent|start|end|stop_reasons\nadalimumab|2005-01-01|2006-01-01|{reasons}")
        .tables["courses"]
        .to_dict("records")
    )
    assert course["stop_reason"] == stop_reason
    rest = set(reasons.split(", ")) - {stop_reason} if stop_reason != "both" else set()
    assert course["flags"] == sorted(f"another stop reason: {reason}" for reason in rest)


def test_e29_of_two_records_the_reason_recorded_first_stands():
    cohort = tell(
        exposure="""
        agent      | start      | end        | stop_reasons   | reason
        adalimumab | 2005-01-01 | 2006-01-01 | patient_choice | 2006-03-01
        adalimumab | 2005-03-01 | 2006-01-01 | remission      | 2006-02-01
        """
    )
    expect(cohort.tables["courses"], "stop_reason | flags\nremission | another stop reason: patient_choice")


def test_e29_nothing_recorded_is_unknown_never_failure():
    (course,) = tell(exposure="agent|start|end\nadalimumab|2005-01-01|2006-01-01").tables["courses"].to_dict("records")
    assert course["stop_reason"] == "unknown"


@pytest.mark.parametrize(
    ("day", "reason"), [("2006-06-30", "adverse_event"), ("2006-07-01", "unknown")], ids=["180 d", "181 d"]
)
def test_e29_an_adverse_event_counts_up_to_180_days_after_the_stop(day, reason):
    (course,) = (
        tell(
            exposure="agent|start|end\nadalimumab|2005-01-01|2006-01-01",
            adverse_event=f"suspect|date\nMedicationStatement/1|{day}",
        )
        .tables["courses"]
        .to_dict("records")
    )
    assert course["stop_reason"] == reason


def test_e10_infusions_stop_for_the_reason_of_their_order():
    (course,) = (
        tell(
            exposure="""
        source                      | agent      | rung           | given_once | start      | status    | request             | stop_reasons
        MedicationAdministration/1  | infliximab | administration | yes        | 2005-01-01 | completed | MedicationRequest/1 |
        MedicationAdministration/2  | infliximab | administration | yes        | 2005-02-12 | completed | MedicationRequest/1 |
        MedicationRequest/1         | infliximab | order          |            | 2004-12-20 | stopped   |                     | adverse_event
        """
        )
        .tables["courses"]
        .to_dict("records")
    )
    assert (course["stop_reason"], course["rung"]) == ("adverse_event", "administration")


def test_e05_e06_lines_reached_and_ended_at():
    cohort = tell(
        patient="patient\nPatient/A\nPatient/B\nPatient/C",
        condition="patient\nPatient/A\nPatient/B\nPatient/C",
        exposure="""
        patient   | agent      | start      | end
        Patient/A | etanercept | 2005-01-01 | 2005-12-31
        Patient/A | adalimumab | 2006-01-01 | 2006-12-31
        Patient/A | infliximab | 2007-01-01 | 2007-12-31
        Patient/B | etanercept | 2005-01-01 | 2005-12-31
        Patient/B | etanercept | 2007-01-01 | 2007-12-31
        Patient/C | naproxen   | 2005-01-01 | 2005-12-31
        """,
    )
    assert figure(cohort, "tnfi-lines") == (2, 2)
    assert [figure(cohort, "tnfi-lines", "line-reached", str(n)) for n in (1, 2, 3)] == [(2, 2), (1, 2), (1, 2)]
    assert [figure(cohort, "tnfi-lines", "line-ended", str(n)) for n in (1, 2, 3)] == [(1, 2), (0, 2), (1, 2)]


def test_e04_dispenses_run_for_their_days_of_supply():
    expect(
        tell(
            exposure="""
            agent    | rung     | start      | supply_days
            naproxen | dispense | 2005-01-01 | 90
            naproxen | dispense | 2005-04-15 | 90
            """
        ).tables["courses"],
        """
        start      | end
        2005-01-01 | 2005-07-14
        """,
    )


def test_thresholds_are_parameters():

    story = "agent|start|end\ninfliximab|2005-01-01|2005-06-30\ninfliximab|2005-08-15|2006-06-30"
    assert len(tell(exposure=story).tables["courses"]) == 1
    assert len(tell(replace(WINDOW, gap_days=30), exposure=story).tables["courses"]) == 2


def test_a_glucocorticoid_into_a_joint_is_no_systemic_treatment():
    cohort = tell(exposure="agent|start|end|intra_articular\nprednisolone|2005-01-01|2005-06-01|yes")
    assert cohort.tables["courses"].empty
    assert "glucocorticoid given into a joint, not systemic" in cohort.tables["attrition"]["reason"].tolist()


def test_e19_a_drug_for_another_disease_neither_cuts_nor_splits_a_course():
    cohort = tell(
        exposure="""
        agent              | drug_class | start      | end        | indications
        adalimumab         | TNF        | 2005-04-01 | 2005-07-01 | crmo
        adalimumab         | TNF        | 2005-08-01 | 2006-01-01 | crmo
        certolizumab pegol | TNF        | 2005-07-10 | 2005-10-01 | other
        infliximab         | TNF        | 2005-12-20 | 2006-06-01 | other
        """
    )
    (course,) = [c for c in cohort.tables["courses"].to_dict("records") if c["left_out"] is None]
    assert (course["start"].isoformat(), course["end"].isoformat(), course["line_no"]) == (
        "2005-04-01",
        "2006-01-01",
        1,
    )


@pytest.mark.parametrize(
    ("second", "supply", "end", "courses"),
    [
        ("2005-04-01", "90", "2005-06-30", 1),
        ("2005-03-02", "90", "2005-06-30", 1),
        ("2005-01-02", "90", "2005-06-30", 1),
        ("2005-01-01", "60", "2005-05-31", 1),
        ("2005-06-29", "90", "2005-09-27", 1),
        ("2005-06-30", "90", "2005-09-28", 2),
    ],
    ids=["none left", "30 d left", "89 d left", "all left", "89 d without", "90 d without"],
)
def test_e51_stock_is_carried_over(second, supply, end, courses):
    cohort = tell(
        exposure=f"""
        agent    | rung     | start      | supply_days
        naproxen | dispense | 2005-01-01 | 90
        naproxen | dispense | {second} | {supply}
        """
    )
    ends = [e.isoformat() for e in cohort.tables["courses"]["end"]]
    assert (len(ends), ends[-1]) == (courses, end)


def test_e51_at_most_90_days_of_stock_and_nothing_for_the_same_dispense_twice():
    hoard = tell(
        exposure="""
        agent    | rung     | start      | supply_days
        naproxen | dispense | 2005-01-01 | 200
        naproxen | dispense | 2005-01-11 | 30
        naproxen | dispense | 2005-01-11 | 30
        """
    )
    expect(hoard.tables["courses"], "start | end\n2005-01-01 | 2005-07-20")
    capped = tell(
        exposure="""
        agent    | rung     | start      | supply_days
        naproxen | dispense | 2005-01-01 | 200
        naproxen | dispense | 2005-01-11 | 200
        """
    )
    expect(capped.tables["courses"], "start | end\n2005-01-01 | 2005-10-28")


@pytest.mark.parametrize(
    ("start", "flagged"),
    [("2006-06-01", True), ("2007-03-01", True), ("2007-03-02", False), ("2005-01-01", False)],
    ids=["3 months after", "12 months after", "a day more", "before"],
)
def test_e22_what_begins_within_12_months_after_a_bisphosphonate_is_flagged(start, flagged):
    cohort = tell(exposure=f"agent|start|end\npamidronic acid|2005-03-01|2006-03-01\nadalimumab|{start}|2009-01-01")
    flags = dict(cohort.tables["courses"][["drug_class", "flags"]].to_numpy().tolist())
    assert ("bisphosphonate carry-over" in flags["TNF"]) is flagged
    assert "bisphosphonate carry-over" not in flags["BP"]


@pytest.mark.parametrize(
    ("start", "shown"),
    [("2005-03", "2005-03-15"), ("2005", "2005-07-01"), ("2004-12", "2004-12-15"), ("2004", "2004-12-01")],
    ids=["month", "year", "month of the diagnosis", "year of the diagnosis"],
)
def test_e15_the_middle_stands_for_a_partial_date_but_not_before_the_diagnosis(start, shown):
    (course,) = tell(exposure=f"agent|start|end\nadalimumab|{start}|2008-01-01").tables["courses"].to_dict("records")
    assert course["start"].isoformat() == shown
    assert "partial date" in course["flags"]


@pytest.mark.parametrize(
    ("start", "end", "undetermined"),
    [
        ("2004", "2007-01-01", ["begun before the diagnosis"]),
        ("2004-09", "2007-01-01", ["begun before the diagnosis"]),
        ("2004-10", "2007-01-01", []),
        ("2005-02", "2005-05-10", ["minimum exposure"]),
        ("2005-02", "2005-06-01", []),
        ("2005-02-01", "2005", ["minimum exposure"]),
    ],
)
def test_e15_a_test_that_a_partial_date_leaves_open_is_flagged(start, end, undetermined):
    (course,) = tell(exposure=f"agent|start|end\nadalimumab|{start}|{end}").tables["courses"].to_dict("records")
    told = [f for f in course["flags"] if f.startswith("undetermined")]
    assert told == [f"undetermined by partial dates: {name}" for name in undetermined]


def test_e15_a_partial_date_of_diagnosis_leaves_open_what_began_before_it():
    cohort = tell(condition="date\n2005", exposure="agent|start|end\nnaproxen|2004-11-01|2006-01-01")
    (course,) = cohort.tables["courses"].to_dict("records")
    assert course["left_out"] == "begun before the diagnosis"
    assert course["flags"] == ["undetermined by partial dates: begun before the diagnosis"]


@pytest.mark.parametrize(
    ("start", "seen", "flags"),
    [
        ("2005-03", "2005-03-20", ["partial date", "undetermined by partial dates: clinical effect"]),
        ("2005-03", "2005-04-20", ["partial date"]),
        ("2005-03-10", "2005-03-20", []),
    ],
)
def test_e15_an_answer_that_hangs_on_a_partial_date_is_flagged(start, seen, flags):
    (course,) = (
        tell(
            exposure=f"agent|start|end\nadalimumab|{start}|2006-01-01",
            observed=f"value|date\nsufficient|{seen}",
        )
        .tables["courses"]
        .to_dict("records")
    )
    assert (course["effect"], course["flags"]) == ("sufficient", flags)


@pytest.mark.parametrize(("baseline", "flagged"), [("2004-07", True), ("2004-08", False)])
def test_e15_an_mri_change_that_hangs_on_the_day_of_a_study_is_flagged(baseline, flagged):
    (course,) = (
        tell(
            exposure="agent|start|end\nadalimumab|2005-01-10|2006-01-01",
            imaging=f"date\n{baseline}\n2005-06-01",
            observed="kind|value|date\nmri|regression|2005-06-01",
        )
        .tables["courses"]
        .to_dict("records")
    )
    assert course["mri"] == "regression"
    assert ("undetermined by partial dates: MRI change" in course["flags"]) == flagged


def test_e15_a_gap_that_partial_dates_leave_open_is_flagged_and_the_ends_are_a_sensitivity():

    story = "agent|start|end\ninfliximab|2005-01-01|2005-06\ninfliximab|2005-09-10|2006-06-30"
    (course,) = tell(exposure=story).tables["courses"].to_dict("records")
    assert "undetermined by partial dates: gap" in course["flags"]
    counts = {
        ends: len(tell(replace(WINDOW, partial_dates=ends), exposure=story).tables["courses"])
        for ends in ("earliest", "middle", "latest")
    }
    assert counts == {"earliest": 2, "middle": 1, "latest": 1}


def test_e17_e43_a_child_is_observed_to_the_first_of_death_last_contact_and_data_lock():

    story = {
        "patient": "patient|death\nPatient/A|2006-01-01\nPatient/B|\nPatient/C|",
        "condition": "patient\nPatient/A\nPatient/B\nPatient/C",
        "contact": """
        patient   | source      | date
        Patient/A | Encounter/1 | 2005-12-01
        Patient/A | Encounter/2 | 2006-02-01
        Patient/B | Encounter/3 | 2007-01-01
        Patient/C | Encounter/4 | 2012-01-01
        """,
        "exposure": "patient|agent|start\nPatient/A|adalimumab|2005-01-01\nPatient/B|adalimumab|2005-01-01\nPatient/C|adalimumab|2005-01-01",
    }
    cohort = tell(replace(WINDOW, data_lock=date(2010, 1, 1)), **story)
    expect(
        cohort.tables["patients"],
        """
        person    | last_contact | censored   | censored_by
        Patient/A | 2005-12-01   | 2005-12-01 | last contact
        Patient/B | 2007-01-01   | 2007-01-01 | last contact
        Patient/C |              | 2010-01-01 | data lock
        """,
    )
    assert cohort.tables["courses"]["exposure_days"].tolist() == [334, 730, 1826]


def test_e17_nothing_after_the_data_lock_counts():
    cohort = tell(
        replace(WINDOW, data_lock=date(2007, 12, 31)),
        patient="patient\nPatient/A\nPatient/B",
        condition="patient|date\nPatient/A|2004-12-01\nPatient/B|2008-03-01",
        exposure="""
        patient   | agent      | start      | end        | stop_reasons | reason
        Patient/A | naproxen   | 2005-01-01 | 2006-01-01 | inefficacy   | 2006-02-01
        Patient/A | adalimumab | 2007-01-01 | 2009-01-01 | inefficacy   |
        Patient/A | infliximab | 2008-02-01 | 2009-01-01 |              |
        """,
        observed="""
        value        | date
        sufficient   | 2007-06-01
        insufficient | 2008-01-20
        """,
        imaging="date\n2006-12-01\n2008-01-10",
        lab="lab|date\nObservation/8|2007-01-01\nObservation/9|2008-01-10",
        site="bone|source|date\ntibia|Observation/5|2005-01-01\nfemur|Observation/6|2008-05-01",
        contact="source|date\nEncounter/1|2007-12-31",
    )
    expect(
        cohort.tables["courses"],
        """
        agent      | start      | end        | exposure_days | stop_reason | effect     | flags
        naproxen   | 2005-01-01 | 2006-01-01 | 365           | inefficacy  |            |
        adalimumab | 2007-01-01 |            | 364           | ongoing     | sufficient | to end after the last day of data
        """,
    )
    assert [len(cohort.tables[name]) for name in ("assessments", "imaging", "labs", "foci")] == [1, 1, 1, 1]
    attrition = cohort.tables["attrition"]
    refused = attrition[attrition["reason"].str.contains("after the data lock")]
    assert dict(refused[["step", "dropped"]].to_numpy().tolist()) == {
        "diagnosis in window": 1,
        "records: ImagingStudy": 1,
        "records: MedicationStatement": 1,
        "records: Observation": 3,
    }


@pytest.mark.parametrize(
    ("status", "end", "shown"),
    [("active", "2031-01-01", "ongoing"), ("completed", "2031-01-01", None), ("stopped", "2031", None)],
    ids=["planned", "completed", "stopped"],
)
def test_e16_a_planned_end_is_none_yet_and_an_end_told_of_a_day_to_come_is_refused(status, end, shown):
    cohort = tell(exposure=f"agent|status|start|end\nadalimumab|{status}|2012-01-01|{end}")
    assert cohort.tables["courses"]["stop_reason"].tolist() == ([shown] if shown else [])
    assert ("ended in the future" in cohort.tables["attrition"]["reason"].tolist()) == (shown is None)
    if shown:
        (course,) = cohort.tables["courses"].to_dict("records")
        assert (course["end"], course["exposure_days"]) == (None, 366)


@pytest.mark.parametrize(
    "exposure",
    [
        "agent|start|end|stop_reasons\nadalimumab|2005-01-01|2006-06-01|inefficacy",
        "agent|rung|start|supply_days\nadalimumab|dispense|2005-01-01|500",
        "agent|rung|start|given_once\ninfliximab|administration|2005-11-01|yes\ninfliximab|administration|2005-12-20|yes",
    ],
    ids=["recorded end", "supply", "infusions"],
)
def test_e43_no_course_outlives_the_child(exposure):
    story = {"patient": "deceased|death\nyes|2006-01-01", "contact": "source|date\nEncounter/1|2006-01-01"}
    (course,) = tell(exposure=exposure, **story).tables["courses"].to_dict("records")
    assert (course["end"], course["stop_reason"]) == (None, "ongoing")
    assert course["start"] + timedelta(days=course["exposure_days"]) == date(2006, 1, 1)


def test_e43_death_ends_the_observation_and_what_is_dated_later_is_refused():
    cohort = tell(
        patient="deceased|death\nyes|2006-01-01",
        contact="source|date\nEncounter/1|2006-01-01\nEncounter/2|2006-03-01",
        exposure="agent|start|end\nadalimumab|2005-01-01|2005-12-31\ninfliximab|2006-02-01|2006-12-31",
        observed="value|date\nsufficient|2005-07-01\ninsufficient|2006-01-20",
        imaging="date\n2005-01-01\n2006-01-02",
        lab="lab|date\nObservation/8|2005-01-01\nObservation/9|2006-01-02",
    )
    expect(cohort.tables["patients"], "last_contact | censored | censored_by\n2006-01-01 | 2006-01-01 | death")
    assert len(cohort.tables["courses"]) == len(cohort.tables["imaging"]) == len(cohort.tables["labs"]) == 1
    assert cohort.tables["assessments"]["value"].tolist() == ["sufficient"]
    attrition = cohort.tables["attrition"]
    refused = attrition[attrition["reason"].isin(["after death", "start after death"])]
    assert dict(refused[["step", "dropped"]].to_numpy().tolist()) == {
        "records: Encounter": 1,
        "records: ImagingStudy": 1,
        "records: MedicationStatement": 1,
        "records: Observation": 2,
    }


def test_e43_a_death_without_a_date_is_observed_to_the_last_contact():
    cohort = tell(patient="deceased\nyes", contact="source|date\nEncounter/1|2006-01-01")
    expect(cohort.tables["patients"], "censored | death_low\n2006-01-01 |")


@pytest.mark.parametrize(("day", "reason"), [("2030-01-01", "in the future"), ("1995-01-01", "before birth")])
def test_e16_a_judgement_that_cannot_be_is_refused_and_listed(day, reason):
    cohort = tell(
        exposure="agent|start|end\nadalimumab|2005-01-01|2006-01-01", observed=f"value|date\nsufficient|{day}"
    )
    assert cohort.tables["assessments"].empty
    assert reason in cohort.tables["attrition"]["reason"].tolist()


def test_e07_e09_dose_and_route_do_not_split():
    expect(
        tell(
            exposure="""
            agent        | start      | end        | dose  | product
            methotrexate | 2005-01-01 | 2005-03-01 | 10 mg | Metex
            methotrexate | 2005-03-01 | 2005-06-01 | 10 mg | Metex
            methotrexate | 2005-06-01 | 2005-09-01 | 15 mg | Ebetrex
            """
        ).tables["courses"],
        """
        course_no | line_no | doses                                | products       | flags
        1         | 1       | 2005-01-01: 10 mg, 2005-06-01: 15 mg | Metex, Ebetrex | non-medical switch
        """,
    )
