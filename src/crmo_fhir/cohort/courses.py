"""From exposures to courses and lines (clinical rules §2).

A course is one agent's merged exposure in one child; a line counts the distinct agents of a class in order of first
start. Effect and retention are independent: nothing here looks at an effect.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

from crmo_fhir.cohort.criteria import Child, Row, compute_contradiction, partial
from crmo_fhir.fhir.dates import PartialDate, add_months
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.tables import REASONS, RUNGS, type_of

ESCALATIONS = frozenset(
    {
        "MTX",
        "TNF",
        "BP",
        "SSZ",
        "CSDMARD",
        "IL1",
        "IL6",
        "IL12-23",
        "IL17",
        "IL23",
        "IL",
        "BIOLOGIC",
        "COSTIM",
        "JAK",
        "PDE4",
        "RANKL",
    }
)
"""Classes whose later start ends the attribution window of an earlier course (clinical rules §3)."""

FOREVER = date.max
OVER = frozenset({"stopped", "completed", "ended"})
"""Status of a record of exposure that says it is over."""
NO_INDICATION = "indication not recorded"
"""Why a course without a recorded indication is out of the figures, where the study asks for one."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """One usable record of exposure; `end` is None for ongoing or not recorded."""

    source: str
    rung: str
    agent: str
    drug_class: str
    taken: str
    status: str
    start: date
    end: date | None
    began: PartialDate
    ended: PartialDate | None
    given_once: bool
    indications: tuple[str, ...]
    stop_reasons: tuple[str, ...]
    stated: date | None
    dose: str | None
    product: str | None
    request: str | None

    @property
    def exact(self) -> bool:
        """Whether both ends are days, not partial dates."""
        return self.began.exact and (self.ended is None or self.ended.exact)

    @property
    def last(self) -> date:
        """The end, or the far future for an exposure without one."""
        return self.end or FOREVER

    @property
    def told_last(self) -> date:
        """The last day that the record tells of."""
        return self.end or self.start


@dataclass(slots=True)
class Course:
    """One course of one child; `end` is None while ongoing."""

    person: str
    agent: str
    drug_class: str
    start: date
    end: date | None
    rung: str
    members: list[Exposure]
    context: list[Exposure] = field(default_factory=list)
    course_no: int | None = None
    line_no: int | None = None
    exposure_days: int = 0
    stop_reason: str = "unknown"
    indication: str = "missing"
    left_out: str | None = None
    co_mtx: bool = False
    flags: set[str] = field(default_factory=set)

    @property
    def last(self) -> date:
        """The end, or the far future for an ongoing course."""
        return self.end or FOREVER

    @property
    def name(self) -> str:
        """Child, class and number; a course out of the figures is named by its agent and start."""
        tail = str(self.course_no) if self.course_no else f"{self.agent}-{self.start.isoformat()}"
        return f"{self.person}/{self.drug_class}-{tail}"


def filter_exposures(
    rows: Iterable[Row], child: Child, as_of: date, parameters: Parameters
) -> tuple[list[Exposure], list[Row]]:
    """The usable exposures of one child, and what was refused with its reason (edge cases E12, E15, E16, E43).

    A record whose status says it was not taken is left out; one that contradicts itself (end before start, start before
    birth, in the future, after death; ended, it says, on a day to come) or begins after the data lock is refused and listed,
    never swapped. An end that was only planned when the data end is none: the exposure goes on.
    """
    usable, listed = [], []
    for row in rows:
        start, end = partial(row, "start"), partial(row, "end")
        reason = "status " + row["status"] if row["taken"] == "no" else _contradiction(row, child, as_of, parameters)
        if row["drug_class"] == "GC" and row["intra_articular"]:
            reason = reason or "glucocorticoid given into a joint, not systemic"
        if reason or start is None:
            listed.append({**_named(row), "reason": reason or "no start date"})
            continue
        first = _first_day(start, child, parameters)
        stated = partial(row, "reason")
        known = stated is None or parameters.data_lock is None or stated.low <= parameters.data_lock
        usable.append(
            Exposure(
                source=row["source"],
                rung=row["rung"],
                agent=row["agent"],
                drug_class=row["drug_class"],
                taken=row["taken"],
                status=row["status"],
                start=first,
                end=_end(row, first, end, child, as_of, parameters),
                began=start,
                ended=end,
                given_once=row["given_once"],
                indications=tuple(row["indications"]),
                stop_reasons=tuple(row["stop_reasons"]) if known else (),
                stated=stated.low if stated else None,
                dose=row["dose"],
                product=row["product"],
                request=row["request"],
            )
        )
    return usable, listed


def _named(row: Row) -> Row:
    return {"source": row["source"], "resource_type": type_of(row["source"]), "patient": row["patient"]}


def _contradiction(row: Row, child: Child, as_of: date, parameters: Parameters) -> str | None:
    start, end = partial(row, "start"), partial(row, "end")
    if start is None:
        return "no start date"
    if end is not None and end.high < start.low:
        return "end before start"
    if reason := compute_contradiction(start, child, as_of, parameters.data_lock):
        return f"start {reason}"
    told_over = row["status"] in OVER and row["rung"] != "order"
    return "ended in the future" if told_over and end is not None and _is_given(end) and end.low > as_of else None


def _is_given(end: PartialDate) -> bool:
    """Whether an end is one: the year 9999 is how some systems say that there is none."""
    return end.high.year < FOREVER.year


def _first_day(start: PartialDate, child: Child, parameters: Parameters) -> date:
    """The day that stands for the start, not before birth, nor before a diagnosis within the same interval (E15)."""
    day = start.at(parameters.partial_dates)
    limits = [child.birth.low] if child.birth else []
    if parameters.partial_dates == "middle":
        limits.append(child.diagnosis.point)
    return max([day, *(limit for limit in limits if start.low <= limit <= start.high)])


def _end(
    row: Row, start: date, end: PartialDate | None, child: Child, as_of: date, parameters: Parameters
) -> date | None:
    """The day that stands for the end: as recorded, if the data reach it, else by the supply."""
    if end is not None and _is_given(end):
        day = end.at(parameters.partial_dates)
        last = min(as_of, parameters.data_lock or as_of)
        if end.low <= last <= end.high:
            day = min(day, last)
        if child.death and end.low <= child.death.high <= end.high:
            day = min(day, child.death.high)
        return max(day, start) if day <= last else None
    if row["supply_days"]:
        return start + timedelta(days=int(row["supply_days"]))
    return start if row["rung"] == "dispense" or row["given_once"] else None


def derive_courses(
    exposures: Mapping[str, list[Exposure]],
    adverse_events: Mapping[str, list[Row]],
    children: Mapping[str, Child],
    censored: Mapping[str, date],
    parameters: Parameters,
    *,
    orders_count: bool,
) -> dict[str, list[Course]]:
    """The courses of every child, in order of start; those out of the figures keep `left_out` and have no ordinal.

    `orders_count` says that the whole source holds nothing stronger than orders, so that orders make courses.
    """
    courses = {}
    for person, child in children.items():
        own = _merge(person, exposures.get(person, []), parameters, orders_count=orders_count)
        _resolve_switch_overlap(own, parameters)
        for course in own:
            if child.death and course.last > child.death.high:
                course.end = None  # whatever was planned or supplied: it is observed to the death (edge case E43)
            _describe(course, child, adverse_events.get(person, []), censored[person], parameters)
        _number(own)
        _flag_methotrexate(own, censored[person], parameters)
        _flag_carry_over(own, censored[person], parameters)
        courses[person] = sorted(own, key=lambda c: (c.start, c.drug_class, c.agent, c.last))
    return courses


def _merge(person: str, exposures: list[Exposure], parameters: Parameters, *, orders_count: bool) -> list[Course]:
    by_agent: dict[str, list[Exposure]] = defaultdict(list)
    for exposure in exposures:
        by_agent[exposure.agent].append(exposure)
    used = {}
    for agent, own in by_agent.items():
        strongest = min((RUNGS.index(e.rung) for e in own if e.taken == "yes"), default=None)
        if strongest is None or (RUNGS[strongest] == "order" and not orders_count):
            continue
        holds = [e for e in own if e.taken == "on-hold"]
        taken = [e for e in own if e.taken == "yes" and e.rung == RUNGS[strongest]]
        used[agent] = _interrupt(_carry_stock(taken, parameters), holds, parameters)
    courses = []
    for agent, spans in used.items():
        others = [
            (start, end)
            for other, theirs in used.items()
            if other != agent and theirs[0][2].drug_class == spans[0][2].drug_class
            for start, end, exposure in theirs
            if exposure.indications != ("other",)
        ]
        merged = _join(person, spans, others, parameters)
        for course in merged:
            members = {e.source for e in course.members}
            course.context = [e for e in by_agent[agent] if e.source not in members and _concerns(e, course, merged)]
            course.indication = _indication(course)
        courses.extend(merged)
    return courses


def _carry_stock(taken: list[Exposure], parameters: Parameters) -> list[Exposure]:
    """Dispenses with what is left of the one before added to their supply, up to a limit (edge case E51).

    Two dispenses of one day and one supply are one that is recorded twice.
    """
    carried: list[Exposure] = []
    last, seen = date.min, dict[tuple[date, date], date]()
    for exposure in sorted(taken, key=lambda e: (e.start, e.last, e.source)):
        if exposure.rung != "dispense" or exposure.end is None:
            carried.append(exposure)
            continue
        own = (exposure.start, exposure.end)
        if own not in seen:
            left = min(max((last - exposure.start).days, 0), parameters.hoarding_days)
            seen[own] = exposure.end + timedelta(days=left)
            last = max(last, seen[own])
        carried.append(replace(exposure, end=seen[own]))
    return carried


Span = tuple[date, date, Exposure]


def _interrupt(taken: list[Exposure], holds: list[Exposure], parameters: Parameters) -> list[Span]:
    """Exposures as spans of days, with the time on hold cut out (edge case E13)."""
    spans: list[Span] = []
    for exposure in taken:
        end = exposure.last
        if exposure.given_once:
            end = exposure.start + timedelta(days=parameters.infusion_interval_days.get(exposure.agent, 0))
        pieces = [(exposure.start, end)]
        for hold in holds:
            pieces = [
                piece
                for start, stop in pieces
                for piece in (
                    [(start, stop)]
                    if hold.start >= stop or hold.last <= start
                    else [(a, b) for a, b in ((start, hold.start), (hold.last, stop)) if a < b]
                )
            ]
        spans.extend((start, stop, exposure) for start, stop in pieces)
    return sorted(spans, key=lambda s: (s[0], s[1], s[2].source))


def _join(person: str, spans: list[Span], others: list[tuple[date, date]], parameters: Parameters) -> list[Course]:
    courses: list[Course] = []
    last, ended = date.min, None
    for start, stop, exposure in spans:
        gap = (start - last).days if courses else 0
        unsure = bool(courses) and _is_gap_undetermined(ended, exposure.began, parameters)
        switched = gap > 0 and any(a > courses[-1].start and a <= start and b > last for a, b in others)
        if courses and gap < parameters.gap_days and not switched:
            courses[-1].members.append(exposure)
            last, ended = max((last, ended), (stop, exposure.ended), key=lambda end: end[0])
        else:
            courses.append(Course(person, exposure.agent, exposure.drug_class, start, None, exposure.rung, [exposure]))
            last, ended = stop, exposure.ended
        courses[-1].end = None if last == FOREVER else last
        if unsure:
            courses[-1].flags.add("undetermined by partial dates: gap")
    return courses


def _is_gap_undetermined(ended: PartialDate | None, began: PartialDate, parameters: Parameters) -> bool:
    """Whether partial dates leave open if a gap begins a new course (edge case E15)."""
    if ended is None or (ended.exact and began.exact):
        return False
    least, most = (began.low - ended.high).days, (began.high - ended.low).days
    return least < parameters.gap_days <= most


def _concerns(exposure: Exposure, course: Course, siblings: list[Course]) -> bool:
    """Whether a record of weaker evidence speaks of this course: the last one begun by its end, else the first."""
    begun = [c for c in siblings if c.start <= (exposure.end or exposure.start)]
    return course is (begun[-1] if begun else siblings[0])


def _resolve_switch_overlap(courses: list[Course], parameters: Parameters) -> None:
    """Two TNF-α agents at once: a short overlap is a switch, a long one stays and is flagged (edge case E02)."""
    tnf = sorted(
        (c for c in courses if c.drug_class == "TNF" and c.indication != "other"),
        key=lambda c: (c.start, c.last, c.agent),
    )
    for index, earlier in enumerate(tnf):
        for later in tnf[index + 1 :]:
            if later.agent == earlier.agent or later.start >= earlier.last:
                continue
            overlap = (min(earlier.last, later.last) - later.start).days
            if overlap <= parameters.switch_overlap_days and earlier.last <= later.last:
                earlier.end = later.start
            elif overlap > parameters.switch_overlap_days:
                earlier.flags.add("overlaps another TNF inhibitor")
                later.flags.add("overlaps another TNF inhibitor")


def _indication(course: Course) -> str:
    """What a course was given for, from all its records: crmo, other, both, or missing (edge case E19)."""
    told = {i for e in course.members + course.context for i in e.indications}
    return "both" if {"crmo", "other"} <= told else told.pop() if told else "missing"


def _describe(course: Course, child: Child, events: list[Row], censored: date, parameters: Parameters) -> None:
    course.exposure_days = max(((course.end or max(censored, course.start)) - course.start).days, 0)
    course.stop_reason = _stop_reason(course, events, parameters)
    if course.end is not None and course.end > censored and course.stop_reason == "unknown":
        course.stop_reason = "ongoing"  # supplied or infused beyond the last contact: nothing says that it stopped
    if course.indication == "other":
        course.left_out = "other disease"
    elif course.indication == "missing" and parameters.require_indication:
        course.left_out = NO_INDICATION
    elif (child.diagnosis.point - course.start).days > parameters.prevalent_days:
        course.left_out = "begun before the diagnosis"
    elif course.start < child.diagnosis.point:
        course.flags.add("begun shortly before the diagnosis")
    if course.indication == "missing":
        course.flags.add("indication not recorded")
    if course.indication == "both":
        course.flags.add("also for another disease")
    if not all(e.exact for e in course.members):
        course.flags.add("partial date")
    course.flags |= _undetermined(course, child, censored, parameters)
    if len(_history(course, "product")) > 1:
        course.flags.add("non-medical switch")
    if course.rung == "order":
        course.flags.add("from orders")
    if course.end is None:
        if any(e.ended is None and e.end is None and e.status in OVER for e in course.members):
            course.flags.add("stopped without a date")
        elif any(e.ended and _is_given(e.ended) and e.ended.low > censored for e in course.members):
            course.flags.add("to end after the last day of data")
        elif (censored - max(e.start for e in course.members)).days < 0:
            course.flags.add("begun after the last contact")


def _undetermined(course: Course, child: Child, censored: date, parameters: Parameters) -> set[str]:
    """The tests of a course that its partial dates leave open; the point estimate then decides (edge case E15)."""
    first = min(course.members, key=lambda e: (e.start, e.began)).began
    final = max(course.members, key=lambda e: (e.last, e.began))
    last = final.ended if final.ended and course.end == final.end else None
    end_low, end_high = (last.low, last.high) if last else (course.end or censored, course.end or censored)
    needed = parameters.min_exposure(course.drug_class)
    tests = {
        "begun before the diagnosis": (
            (child.diagnosis.low - first.high).days > parameters.prevalent_days,
            (child.diagnosis.high - first.low).days > parameters.prevalent_days,
        ),
        "minimum exposure": ((end_low - first.high).days >= needed, (end_high - first.low).days >= needed),
    }
    return {f"undetermined by partial dates: {name}" for name, (least, most) in tests.items() if least != most}


def _history(course: Course, name: str) -> list[tuple[date, str]]:
    """What was recorded of a course over time (`dose`, `product`): each change with its day."""
    told: list[tuple[date, str]] = []
    for day, value in sorted(
        {(max(e.start, course.start), str(getattr(e, name))) for e in course.members if getattr(e, name)}
    ):
        if not told or told[-1][1] != value:
            told.append((day, value))
    return told


def _stop_reason(course: Course, events: list[Row], parameters: Parameters) -> str:
    """The class of the reason a course ended for; a missing reason is `unknown`, never failure (edge case E29)."""
    if course.end is None:
        return "ongoing"
    records = course.members + course.context
    final = max(e.told_last for e in course.members)
    asked = {e.request for e in course.members if e.told_last == final} - {None}
    told = (
        _told_reasons([e for e in records if e.told_last >= final or e.source in asked], course, parameters)
        or _told_reasons(course.context, course, parameters)
        or _told_reasons(_last_with_reason(course.members), course, parameters)
    )
    known = {e.source for e in records}
    grace = timedelta(days=parameters.reason_days)
    if any(
        event["suspect"] in known
        and (when := partial(event, "date"))
        and course.end - grace <= when.point <= course.end + grace
        for event in events
    ):
        told = ["adverse_event", *told]
    reasons = set(told)
    first = "both" if {"adverse_event", "inefficacy"} <= reasons else next(iter(told), "unknown")
    rest = reasons - ({"adverse_event", "inefficacy"} if first == "both" else {first})
    course.flags |= {f"another stop reason: {reason}" for reason in rest}
    return first


def _last_with_reason(records: list[Exposure]) -> list[Exposure]:
    """Those that end last of the records with a reason in the last stretch without a break, however many tell of it."""
    if not any(e.stop_reasons for e in records):
        return []
    began = last = date.min
    for start, stop in sorted((e.start, e.told_last) for e in records):
        began, last = (start, stop) if start > last else (began, max(last, stop))
    given = [e for e in records if e.stop_reasons and e.told_last >= began]
    return [e for e in given if e.told_last == max(one.told_last for one in given)]


def _told_reasons(records: list[Exposure], course: Course, parameters: Parameters) -> list[str]:
    """The reasons that records give, the first recorded first (edge case E29).

    One stated too long after the stop is none, nor is that of a record that runs on long after it (a pause cut it).
    """
    end, told = course.last, []
    for record in records:
        stated = record.stated or (record.end if record.rung == course.rung else None)
        if stated is not None and (stated - end).days > parameters.reason_days:
            continue
        when = max(record.stated or date.min, record.end or end)
        told += [(when, place, REASONS.index(reason), reason) for place, reason in enumerate(record.stop_reasons)]
    return list(dict.fromkeys(reason for *_, reason in sorted(told)))


def _number(courses: list[Course]) -> None:
    by_class: dict[str, list[Course]] = defaultdict(list)
    for course in courses:
        if course.left_out is None:
            by_class[course.drug_class].append(course)
    for own in by_class.values():
        own.sort(key=lambda c: (c.start, c.last, c.agent))
        agents = list(dict.fromkeys(c.agent for c in own))
        for number, course in enumerate(own, start=1):
            course.course_no = number
            course.line_no = agents.index(course.agent) + 1
        for one, two in pairwise(own):
            if two.agent == one.agent:
                two.flags.add("re-start of the same agent")


def _flag_methotrexate(courses: list[Course], censored: date, parameters: Parameters) -> None:
    methotrexate = [c for c in courses if c.drug_class == "MTX" and c.left_out is None]
    for course in courses:
        if course.drug_class == "TNF":
            course.co_mtx = any(
                (min(m.end or censored, course.end or censored) - max(m.start, course.start)).days
                >= parameters.co_mtx_days
                for m in methotrexate
            )


def _flag_carry_over(courses: list[Course], censored: date, parameters: Parameters) -> None:
    """A bisphosphonate stays in the bone: what begins soon after it may be credited with its effect (edge case E22)."""
    given = [c for c in courses if c.drug_class == "BP"]
    for course in courses:
        since = add_months(course.start, -parameters.carry_over_months)
        if course.drug_class != "BP" and any(
            c.start < course.start and (c.end or max(censored, c.start)) >= since for c in given
        ):
            course.flags.add("bisphosphonate carry-over")


def course_rows(courses: Mapping[str, list[Course]], judged: Mapping[str, dict[str, Any]]) -> list[Row]:
    """Rows of the table `courses`; `judged` adds the columns of effect by course name."""
    return [
        {
            "course": c.name,
            "person": c.person,
            "drug_class": c.drug_class,
            "agent": c.agent,
            "course_no": c.course_no,
            "line_no": c.line_no,
            "start": c.start,
            "end": c.end,
            "exposure_days": c.exposure_days,
            "stop_reason": c.stop_reason,
            "indication": c.indication,
            "rung": c.rung,
            "left_out": c.left_out,
            "co_mtx": c.co_mtx,
            "flags": sorted(c.flags),
            "doses": [f"{day.isoformat()}: {dose}" for day, dose in _history(c, "dose")],
            "products": list(dict.fromkeys(product for _, product in _history(c, "product"))),
            "sources": sorted({e.source for e in c.members}),
            **judged[c.name],
        }
        for own in courses.values()
        for c in own
    ]
