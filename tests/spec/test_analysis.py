"""What is no n of N, told by hand: survival, response, switches, readings, comparison, sensitivity, timelines."""

import pytest
from story import WINDOW, rows_of, tell

from crmo_fhir.metrics import compute_analysis
from crmo_fhir.model.results import ANALYSES, Bar, Timeline, Trend

THREE_LINES = """
agent      | start      | end        | stop_reasons
etanercept | 2005-01-01 | 2005-04-11 | inefficacy
adalimumab | 2005-05-01 | 2006-05-01 | remission
infliximab | 2007-01-01 |            |
"""
JUDGED = """
value        | date
insufficient | 2005-04-01
sufficient   | 2005-11-01
sufficient   | 2005-12-01
"""


def expect(cohort, analysis, group, text, *, varied=()):
    """The estimates of one analysis and group, without medians and marks of curves, are exactly these, in these columns."""
    found, carried = [], {}
    for e in compute_analysis(cohort.tables, WINDOW, varied).estimates:
        if (e.analysis, e.group) == (analysis, group) and e.statistic != "median":
            if e.time is None or carried.get((e.statistic, e.stratum)) != e.value:
                found.append(e)
            carried[e.statistic, e.stratum] = e.value
    names = [name.strip() for name in text.strip().splitlines()[0].split("|")]
    if "stratum" not in names:
        found = [e for e in found if not e.stratum]
    shown = [{name: cell for name in names if (cell := show(getattr(e, name)))} for e in found]
    assert shown == rows_of(text)


def show(value):
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def find(cohort, analysis, group, statistic, stratum=""):
    (found,) = [
        e
        for e in compute_analysis(cohort.tables, WINDOW, ()).estimates
        if (e.analysis, e.group, e.statistic, e.stratum) == (analysis, group, statistic, stratum) and not e.time
    ]
    return found


# ------------------------------------------------------------------------------------------------- survival and response


def test_a_stop_for_failure_is_the_event_and_remission_competes():
    cohort = tell(exposure=THREE_LINES)
    expect(
        cohort,
        "survival",
        "tnfi",
        """
        statistic | time | n | N | value
        retained  | 0    | 3 | 3 | 1
        retained  | 100  | 3 | 3 | 0.6667
        """,
    )
    expect(
        cohort,
        "incidence",
        "tnfi",
        """
        statistic | time | n | N | value
        failure   | 0    | 3 | 3 | 0
        failure   | 100  | 3 | 3 | 0.3333
        remission | 0    | 3 | 3 | 0
        remission | 365  | 2 | 3 | 0.3333
        """,
    )


def test_a_curve_tells_how_many_are_left_each_half_year_and_on_the_last_day():
    found = [
        (e.time, e.n, show(e.value))
        for e in compute_analysis(tell(exposure=THREE_LINES).tables, WINDOW, ()).estimates
        if (e.analysis, e.group, e.statistic, e.stratum) == ("survival", "tnfi", "retained", "")
    ]
    assert found[:6] == [
        (0, 3, "1"),
        (100, 3, "0.6667"),
        (182, 2, "0.6667"),
        (365, 2, "0.6667"),
        (547, 1, "0.6667"),
        (730, 1, "0.6667"),
    ]
    assert found[-1] == (2192, 1, "0.6667")
    assert len({time for time, _, _ in found}) == len(found)


@pytest.mark.parametrize(
    ("reason", "failures"),
    [("inefficacy", 1), ("adverse_event", 1), ("inefficacy, adverse_event", 1)]
    + [(reason, 0) for reason in ("remission", "patient_choice", "other", "none")],
)
def test_only_inefficacy_and_adverse_events_are_failures(reason, failures):
    cohort = tell(exposure=f"agent|start|end|stop_reasons\nmethotrexate|2005-01-01|2005-08-01|{reason}")
    found = find(cohort, "survival", "mtx", "median")
    assert (found.n, found.N) == (failures, 1)
    assert found.value == (212 if failures else None)
    assert bool(found.note)


def test_what_goes_on_is_censored_at_the_last_contact():
    exposure = "agent|start|end|stop_reasons\netanercept|2012-12-02||\nadalimumab|2005-01-01|2005-03-02|inefficacy"
    cohort = tell(exposure=exposure)
    # 30 days until the last contact, so only one was at risk when the other failed after 60
    expect(cohort, "survival", "tnfi", "time | n | value\n0 | 2 | 1\n60 | 1 | 0")


def test_the_first_sufficient_judgement_is_the_response():
    expect(
        tell(exposure=THREE_LINES, observed=JUDGED),
        "response",
        "tnfi",
        """
        statistic  | stratum    | time | n | N | value
        sufficient |            | 0    | 3 | 3 | 0
        sufficient |            | 184  | 2 | 3 | 0.5
        sufficient | adalimumab | 0    | 1 | 1 | 0
        sufficient | adalimumab | 184  | 1 | 1 | 1
        sufficient | etanercept | 0    | 1 | 1 | 0
        sufficient | infliximab | 0    | 1 | 1 | 0
        """,
    )


def test_an_agent_of_which_only_the_class_is_known_is_unknown():
    cohort = tell(exposure="agent|drug_class|start\ntnf-unspecified|TNF|2005-01-01")
    assert find(cohort, "survival", "tnfi", "retained", "unknown").N == 1


def test_no_course_is_a_row_with_its_reason():
    cohort = tell()
    for analysis, statistic in (("survival", "retained"), ("incidence", "remission"), ("response", "sufficient")):
        found = find(cohort, analysis, "mtx", statistic)
        assert (found.N, found.value, found.note) == (0, None, "no course")
    assert find(cohort, "switch", "tnfi", "none").note == "no course of a TNF-α inhibitor"


# ------------------------------------------------------------------------------------------------- switches and readings


def test_each_line_leads_somewhere_for_a_reason():
    expect(
        tell(exposure=THREE_LINES),
        "switch",
        "tnfi",
        """
        statistic  | stratum   | n | N | value
        inefficacy | 1>2       | 1 | 1 | 1
        remission  | 2>3       | 1 | 1 | 1
        ongoing    | 3>ongoing | 1 | 1 | 1
        """,
    )


A_B_A_A = """
agent      | start      | end        | stop_reasons
etanercept | 2005-01-01 | 2005-12-01 | inefficacy
adalimumab | 2006-01-01 | 2006-12-01 | adverse_event
etanercept | 2007-01-01 | 2007-12-01 | remission
etanercept | 2009-01-01 | 2009-12-01 | none
"""


def test_a_return_and_a_restart_are_no_new_line():
    cohort = tell(exposure=A_B_A_A)
    expect(
        cohort,
        "switch",
        "tnfi",
        """
        statistic     | stratum   | n | N | value
        remission     | 1>1       | 1 | 3 | 0.3333
        inefficacy    | 1>2       | 1 | 3 | 0.3333
        unknown       | 1>stopped | 1 | 3 | 0.3333
        adverse_event | 2>1       | 1 | 1 | 1
        """,
    )
    expect(
        cohort,
        "reading",
        "tnfi",
        """
        statistic           | stratum | n | N
        children            |         | 1 | 1
        courses             |         | 4 | 4
        lines               |         | 2 | 2
        reached             | 1       | 1 | 1
        reached             | 2       | 1 | 1
        reached             | 3       | 0 | 1
        ended-at            | 1       | 0 | 1
        ended-at            | 2       | 1 | 1
        ended-at            | 3       | 0 | 1
        re-starts           |         | 1 | 4
        returns             |         | 1 | 4
        judged              |         | 0 | 4
        evaluable           |         | 0 | 4
        mri                 |         | 0 | 4
        mri-children        |         | 0 | 1
        changes             |         | 2 | 4
        changes-for-failure |         | 2 | 2
        """,
    )
    readings = [e for e in compute_analysis(cohort.tables, WINDOW, ()).estimates if e.analysis == "reading"]
    assert all(e.note for e in readings), "each says in words how it counts"


# ------------------------------------------------------------------------------------------------ comparison, agreement

BOTH = """
source                | agent        | start      | end
MedicationStatement/1 | methotrexate | 2005-01-01 | 2005-12-01
MedicationStatement/2 | etanercept   | 2006-01-01 | 2006-12-01
MedicationStatement/3 | adalimumab   | 2007-01-01 | 2007-12-01
"""


def test_one_child_in_sequence():
    cohort = tell(
        exposure=BOTH,
        observed="value|date\ninsufficient|2005-07-01\nsufficient|2006-07-01\ninsufficient|2007-07-01",
    )
    expect(
        cohort,
        "comparison",
        "clinical",
        """
        statistic                | stratum | n | N | value
        proportion               | tnfi    | 1 | 2 | 0.5
        proportion               | mtx     | 0 | 1 | 0
        risk-difference          |         |   | 3 | 0.5
        risk-difference-by-child |         |   | 3 | 0.5
        risk-ratio               |         |   | 3 |
        odds-ratio               |         |   | 3 |
        fisher-p                 |         |   | 3 | 1
        """,
    )
    assert "nothing to divide by" in find(cohort, "comparison", "clinical", "risk-ratio").note
    assert "infinite" in find(cohort, "comparison", "clinical", "odds-ratio").note
    # the one child is drawn again and again: its difference is the same each time, which measures nothing
    again = find(cohort, "comparison", "clinical", "risk-difference-by-child")
    assert (again.low, again.high) == (None, None)
    assert "the children do not differ" in again.note


@pytest.mark.parametrize(("exposure", "missing"), [(THREE_LINES, "methotrexate"), ("", "methotrexate or a TNF-α")])
def test_a_zero_in_a_denominator_is_a_row_with_its_reason(exposure, missing):
    cohort = tell(exposure=exposure, observed=JUDGED) if exposure else tell()
    rows = [e for e in compute_analysis(cohort.tables, WINDOW, ()).estimates if e.analysis == "comparison"]
    assert len(rows) == 14
    for one in rows:
        assert one.note.startswith("descriptive: the same children in sequence")
        if one.statistic != "proportion":
            assert (one.value, one.low, one.high) == (None, None, None)
            assert "0 in the denominator" in one.note
            assert all(name in one.note for name in missing.split(" or "))


def test_sources_of_the_effect_are_held_against_one_another():
    from crmo_fhir.metrics.comparison import compute_agreement

    def course(judged, derived):
        nothing = dict.fromkeys(("reviewed", "mri_judged", "mri_reviewed", "mri_derived"))
        return {"judged": judged, "derived": derived, **nothing}

    yes, no = "sufficient", "insufficient"
    pairs = [(yes, yes)] * 4 + [(yes, no)] * 1 + [(no, yes)] * 2 + [(no, no)] * 3 + [(yes, None), ("not-evaluable", no)]
    rows = compute_agreement({"tnfi": [course(*pair) for pair in pairs]})
    found = {(e.group, e.stratum, e.statistic): e for e in rows}
    same, kappa = (found["tnfi-clinical", "judged-derived", name] for name in ("agreement", "kappa"))
    assert (same.n, same.N, same.value) == (7, 10, 0.7)
    assert kappa.value == pytest.approx((0.7 - 0.5) / 0.5)
    assert kappa.low < kappa.value < kappa.high
    assert found["tnfi-mri", "judged-reviewed", "kappa"].note == "no course has both"


# ---------------------------------------------------------------------------------------------------------- sensitivity


def test_bounds_and_rules_stand_beside_the_figure_as_used():
    cohort = tell(
        exposure="""
        agent      | start      | end        | indications
        etanercept | 2005-01-01 | 2005-12-01 | crmo
        adalimumab | 2006-01-01 | 2006-12-01 | none
        infliximab | 2007-01-01 | 2007-12-01 | crmo
        """,
        observed="value|date\nsufficient|2005-07-01\ninsufficient|2006-07-01",
    )
    varied = [{"parameter": "gap_days", "value": "30", "group": "tnfi-clinical", "n": 1, "N": 3}]
    expect(
        cohort,
        "sensitivity",
        "tnfi-clinical",
        """
        statistic  | stratum              | n | N | value
        proportion |                      | 1 | 2 | 0.5
        proportion | gap_days=30          | 1 | 3 | 0.3333
        proportion | evaluability=worst   | 1 | 3 | 0.3333
        proportion | evaluability=best    | 2 | 3 | 0.6667
        """,
        varied=varied,
    )
    expect(
        cohort,
        "sensitivity",
        "nsaid-clinical",
        """
        statistic  | stratum             | n | N | value
        proportion |                     | 0 | 1 | 0
        proportion | evaluability=worst  | 0 | 1 | 0
        proportion | evaluability=best   | 0 | 1 | 0
        """,
    )


def test_the_unjudged_nsaid_children_are_in_the_denominator_already():
    cohort = tell(exposure="agent|start|end\nnaproxen|2005-01-01|2005-12-01")
    best = find(cohort, "sensitivity", "nsaid-clinical", "proportion", "evaluability=best")
    assert (best.n, best.N) == (1, 1)


# ------------------------------------------------------------------------------------------------ timelines and trends

TWO = {
    "patient": "patient|sex\nPatient/A|female\nPatient/B|male",
    "condition": "patient|disease|date\nPatient/A|crmo|2005-01-01\nPatient/B|crmo|2004-01-01",
}


def test_children_are_numbered_in_order_of_their_diagnosis():
    cohort = tell(
        **TWO,
        contact="source|patient|date\nEncounter/1|Patient/A|2006-01-01\nEncounter/2|Patient/B|2005-01-01",
        exposure="""
        patient   | agent        | start      | end        | indications | stop_reasons
        Patient/A | methotrexate | 2005-01-11 | 2005-04-11 | crmo        | inefficacy
        Patient/A | etanercept   | 2005-05-01 |            | crmo        |
        Patient/A | adalimumab   | 2005-06-01 |            | other       |
        """,
        observed="patient|value|date\nPatient/A|sufficient|2005-10-28",
        imaging="patient|date|whole_body\nPatient/A|2004-12-22|yes",
    )
    first, second = compute_analysis(cohort.tables, WINDOW, ()).timelines
    assert first == Timeline("1", 366, ())
    assert second == Timeline(
        "2",
        365,
        (
            Bar("MTX", "methotrexate", 1, 10, 100, ongoing=False, effect=None, stop_reason="inefficacy"),
            Bar("TNF", "etanercept", 1, 120, 365, ongoing=True, effect="sufficient", stop_reason="ongoing"),
        ),
        ((-10, "imaging", "whole-body"), (300, "clinical", "sufficient")),
    )


LABS = """
lab           | patient   | analyte | status | date       | value | unit
Observation/1 | Patient/A | crp     | final  | 2005-04-21 | 40    | mg/L
Observation/2 | Patient/A | crp     | final  | 2005-05-11 | 8     | mg/L
Observation/3 | Patient/A | esr     | final  | 2005-05-01 | 30    | mm/h
Observation/4 | Patient/B | crp     | final  | 2005-05-01 | 3     | mg/L
"""


@pytest.mark.parametrize(
    ("agents", "begin"), [("methotrexate, etanercept", 0), ("methotrexate", -110), ("naproxen", None)]
)
def test_values_are_told_from_the_first_tnf_inhibitor_else_methotrexate(agents, begin):
    starts = {"methotrexate": "2005-01-11", "etanercept": "2005-05-01", "naproxen": "2005-01-01"}
    rows = "\n".join(f"Patient/A|{agent}|{starts[agent]}" for agent in agents.split(", "))
    cohort = tell(**TWO, exposure=f"patient|agent|start\n{rows}", lab=LABS)
    trends = compute_analysis(cohort.tables, WINDOW, ()).trends
    if begin is None:
        assert trends == ()
        return
    assert trends == (
        Trend("2", "crp", "mg/L", ((-10 - begin, 40.0), (10 - begin, 8.0))),
        Trend("2", "esr", "mm/h", ((-begin, 30.0),)),
    )


def test_flags_count_the_courses_out_of_the_figures_too():
    cohort = tell(
        exposure="""
        agent        | start      | end        | indications
        adalimumab   | 2005-01    | 2006-01-01 | none
        methotrexate | 2005-02-01 | 2006-01-01 | other
        """
    )
    flags = {
        e.statistic: (e.n, e.N) for e in compute_analysis(cohort.tables, WINDOW, ()).estimates if e.analysis == "flag"
    }
    assert flags == {"indication not recorded": (1, 2), "partial date": (1, 2)}


def test_every_estimate_is_of_a_declared_analysis_and_says_why_it_has_no_value():
    for cohort in (tell(), tell(exposure=THREE_LINES, observed=JUDGED)):
        rows = compute_analysis(cohort.tables, WINDOW, ()).estimates
        assert {e.analysis for e in rows} == set(ANALYSES)
        assert len({(e.analysis, e.group, e.statistic, e.stratum, e.time) for e in rows}) == len(rows)
        for one in rows:
            assert one.value is not None or one.note, one
            ends = [end for end in (one.low, one.value, one.high) if end is not None]
            assert ends == sorted(ends), one
            assert one.n is None or one.N is None or 0 <= one.n <= one.N, one
