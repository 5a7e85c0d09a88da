"""What became of the TNF-α courses, line by line, and the ways to count them (clinical rules §1, §2)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from crmo_fhir.metrics.response import Courses, Row
from crmo_fhir.model.results import Estimate
from crmo_fhir.model.tables import FAILURES

ONGOING, STOPPED = "ongoing", "stopped"


def compute_switches(tnfi: Mapping[str, Sequence[Row]]) -> list[Estimate]:
    """From each line where to, and why: n of the N courses of the line; `tnfi` are the courses that count, by child.

    `stratum` is `1>2` (`1>1` a re-start, `2>1` back to an earlier agent), `1>ongoing` or `1>stopped` where no further course
    came; `statistic` is the class of the reason of the stop.
    """
    flows: Counter[tuple[int, str, str]] = Counter()
    for own in tnfi.values():
        for one, two in pairwise([*own, None]):
            assert one is not None
            last = ONGOING if one["stop_reason"] == "ongoing" else STOPPED
            flows[one["line_no"], str(two["line_no"]) if two else last, one["stop_reason"]] += 1
    lines: Counter[int] = Counter()
    for (line, _, _), count in flows.items():
        lines[line] += count
    if not flows:
        return [Estimate("switch", "tnfi", "none", N=0, note="no course of a TNF-α inhibitor")]
    return [
        Estimate(
            *("switch", "tnfi", reason, f"{line}>{to}", None, count, lines[line], count / lines[line]),
            note="the earlier agent goes on beside the next" if reason == ONGOING and to != ONGOING else "",
        )
        for (line, to, reason), count in sorted(flows.items())
    ]


def compute_readings(tnfi: Mapping[str, Sequence[Row]]) -> Iterator[Estimate]:
    """Every way to count the treatments with a TNF-α inhibitor, each said in words; `tnfi` as for the switches."""
    every = [course for own in tnfi.values() for course in own]
    last = [max(c["line_no"] for c in own) for own in tnfi.values()]
    pairs = [pair for own in tnfi.values() for pair in pairwise(own)]
    changes = [(one, two) for one, two in pairs if two["agent"] != one["agent"]]
    ahead = [(one, two) for one, two in changes if two["line_no"] > one["line_no"]]
    failed = sum(one["stop_reason"] in FAILURES for one, _ in changes)
    children, courses, lines = len(tnfi), len(every), sum(last)

    def reading(statistic: str, n: int, whole: int, note: str, stratum: str = "") -> Estimate:
        return Estimate("reading", "tnfi", statistic, stratum, n=n, N=whole, note=note)

    yield reading("children", children, children, "children with at least one course")
    yield reading(
        "courses", courses, courses, "courses: a re-start after a break, or a return to an agent, counts again"
    )
    yield reading("lines", lines, lines, "lines reached, added up over the children: each agent of a child once")
    for number in range(1, max([3, *last]) + 1):
        note = "children who came to this line, or beyond it"
        yield reading("reached", sum(n >= number for n in last), children, note, str(number))
    for number in range(1, max([3, *last]) + 1):
        note = "children whose last line this is: the readings exclude one another"
        yield reading("ended-at", sum(n == number for n in last), children, note, str(number))
    restarts = len(pairs) - len(changes)
    yield reading("re-starts", restarts, courses, "courses of the same agent as the course before, after a break")
    yield reading(
        "returns", len(changes) - len(ahead), courses, "courses of an agent of an earlier line, after another agent"
    )
    yield reading("judged", sum(c["effect"] is not None for c in every), courses, "courses with a clinical judgement")
    yield reading(
        "evaluable", sum(bool(c["evaluable"]) for c in every), courses, "courses evaluable for clinical effect"
    )
    yield reading("mri", sum(c["mri"] is not None for c in every), courses, "courses evaluated by MRI")
    with_mri = sum(any(c["mri"] is not None for c in own) for own in tnfi.values())
    yield reading("mri-children", with_mri, children, "children with a course evaluated by MRI")
    yield reading("changes", len(changes), courses, "courses begun after a course of another agent")
    yield reading(
        "changes-for-failure", failed, len(changes), "changes of agent after a stop for inefficacy or an adverse event"
    )


def compute_mentioned(patients: Sequence[Row], courses: Courses, labs: Sequence[Row]) -> Iterator[Estimate]:
    """Children with what the source mentions without a figure."""
    for group, drug_class in (("glucocorticoid", "GC"), ("bisphosphonate", "BP")):
        treated, note = len(courses.of_class(drug_class)), "children with at least one course"
        yield Estimate("mentioned", group, "children", n=treated, N=len(patients), note=note)
    for analyte in ("esr", "crp"):
        tested, note = (
            len({lab["patient"] for lab in labs if lab["analyte"] == analyte}),
            "children with at least one value",
        )
        yield Estimate("mentioned", "laboratory", "children", analyte, n=tested, N=len(patients), note=note)
