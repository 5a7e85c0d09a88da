"""What a clinician is asked, and which course an answer is of (step `review`).

Out come the courses that need judgement, each with its evidence; in come answers, held against the cohort as it is now.
A judgement then takes part like an assessment that is linked to its course (clinical rules §3), with an origin of its own.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from crmo_fhir.cohort.courses import FOREVER, Course
from crmo_fhir.cohort.criteria import AFTER_LOCK, Row, partial
from crmo_fhir.cohort.effect import Attributed, compute_escalation, is_locked
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.review import ANSWERS, ASKED, DATES, Judgement
from crmo_fhir.model.tables import one_line, rows_of

if TYPE_CHECKING:
    import pandas as pd

CLASSES = {"clinical": ("NSAID", "MTX", "TNF"), "mri": ("MTX", "TNF")}
"""Treatment classes whose courses are asked about, by kind."""
CELL_CHARACTERS = 30_000
"""So much goes into one cell; a spreadsheet takes 32,767."""
COMMENT_CHARACTERS = 2000
EXPOSED_TOO_SHORT = "too short an exposure to count"
Cells = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One row of the worksheet: the course (as a row of `courses`), the kind, the cells, and the keys of the evidence."""

    course: Row
    kind: str
    cells: dict[str, str]
    evidence: tuple[str, ...]


def derive_questions(
    tables: "Mapping[str, pd.DataFrame]", parameters: Parameters, study: str, *, everything: bool = False
) -> list[Question]:
    """The questions of the worksheet, by child, class, course and kind.

    `tables` are those of STUDY/cohort, `study` is the mark of the study. Asked is for every course in the figures without a
    judgement of the clinical effect, and for every one with MR studies to compare and without a judgement of these, unless
    a review has answered; `everything` asks for all courses in the figures.
    """
    values, imaging, reports = (_by_person(tables[name]) for name in ("labs", "imaging", "reports"))
    answered = {(row["course"], row["kind"]) for row in rows_of(tables["assessments"]) if row["origin"] == "reviewed"}
    everyone: dict[str, list[Row]] = defaultdict(list)
    for row in rows_of(tables["courses"]):
        everyone[row["person"]].append(row)
    questions = []
    for person, rows in everyone.items():
        own = [_course(row) for row in rows]
        for row, course in zip(rows, own, strict=True):
            if row["left_out"] is not None:
                continue
            evidence = _Evidence(course, own, parameters)
            before, after = evidence.values(values.get(person, []))
            mr_before, mr_after = evidence.imaging(imaging.get(person, []))
            texts = evidence.reports(reports.get(person, []))
            for kind, classes in CLASSES.items():
                judged = row["judged"] if kind == "clinical" else row["mri_judged"]
                asked = judged is None and (row["course"], kind) not in answered
                if kind == "mri":
                    asked = asked and bool(mr_before and mr_after)
                if course.drug_class not in classes or not (asked or everything):
                    continue
                shown = [*before, *after] if kind == "clinical" else [*mr_before, *mr_after]
                cells = {
                    "course": row["course"],
                    "child": person,
                    "kind": kind,
                    "class": row["drug_class"],
                    "agent": row["agent"],
                    "line": str(row["line_no"]),
                    "start": row["start"].isoformat(),
                    "end": row["end"].isoformat() if row["end"] else "",
                    "exposure_days": str(row["exposure_days"]),
                    "stop_reason": row["stop_reason"],
                    "flags": "; ".join([*row["flags"], *([] if row["exposure_enough"] else [EXPOSED_TOO_SHORT])]),
                    "values_before": "; ".join(before.values()),
                    "values_after": "; ".join(after.values()),
                    "mri_before": "; ".join(mr_before.values()),
                    "mri_after": "; ".join(mr_after.values()),
                    "mri_reports": " | ".join(texts),
                    "fingerprint": compute_fingerprint(row, kind),
                    "study": study,
                }
                cells = {name: defused(one_line(text)[:CELL_CHARACTERS]) for name, text in cells.items()}
                questions.append(Question(row, kind, cells, tuple(sorted(shown))))
    return questions


def compute_fingerprint(course: Row, kind: str) -> str:
    """The SHA-256 of a course as it is asked about; another one means that the data have changed since."""
    end = course["end"].isoformat() if course["end"] else None
    told = [course["course"], course["agent"], course["start"].isoformat(), end, sorted(course["sources"]), kind]
    return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode("utf-8")).hexdigest()


def defused(text: str) -> str:
    """A text that a spreadsheet could run as a formula, made harmless (OWASP CSV injection)."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\0") and text else text


def _by_person(frame: "pd.DataFrame") -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows_of(frame):
        found[row["patient"]].append(row)
    return found


def _course(row: Row) -> Course:
    return Course(
        row["person"],
        row["agent"],
        row["drug_class"],
        row["start"],
        row["end"],
        row["rung"],
        [],
        course_no=row["course_no"],
        left_out=row["left_out"],
    )


class _Evidence:
    """The windows of one course (clinical rules §3), and what was seen in them."""

    def __init__(self, course: Course, courses: list[Course], parameters: Parameters) -> None:
        """The windows of a course among all of its child."""

        def day(days: int) -> date:
            return course.start + timedelta(days=days)

        def end(grace: int) -> date:
            stop = FOREVER if course.end is None else course.end + timedelta(days=grace)
            return min(stop, compute_escalation(course, courses) or FOREVER)

        self.values_before = day(-parameters.score_baseline_before_days), day(parameters.score_baseline_after_days)
        self.values_after = self.values_before[1] + timedelta(days=1), end(parameters.clinical_grace_days)
        self.mri_before = day(-parameters.mri_baseline_before_days), day(parameters.mri_baseline_after_days)
        self.mri_after = day(parameters.mri_followup_min_days), end(parameters.mri_grace_days)

    def values(self, rows: list[Row]) -> tuple[dict[str, str], dict[str, str]]:
        """The last value of each analyte in either window, by key: `crp 12 mg/L (2005-01-31)`."""
        found = []
        for window in (self.values_before, self.values_after):
            last = {row["analyte"]: (row, day) for row, day in _within(rows, window)}
            found.append(
                {row["lab"]: f"{analyte} {_value(row)} ({day})" for analyte, (row, day) in sorted(last.items())}
            )
        return found[0], found[1]

    def imaging(self, rows: list[Row]) -> tuple[dict[str, str], dict[str, str]]:
        """The MR studies of either window, by key."""
        found = [
            {row["imaging"]: f"{day}{' whole body' if row['whole_body'] else ''}" for row, day in _within(rows, window)}
            for window in (self.mri_before, self.mri_after)
        ]
        return found[0], found[1]

    def reports(self, rows: list[Row]) -> list[str]:
        """The reports from the first day of a baseline to the last of a follow-up."""
        return [
            f"{day}{'' if row['status'] in FINAL else ' (' + row['status'] + ')'}: {row['text']}"
            for row, day in _within(rows, (self.mri_before[0], self.mri_after[1]))
        ]


FINAL = {"final", "amended", "corrected", "appended"}


def _within(rows: list[Row], window: tuple[date, date]) -> list[tuple[Row, date]]:
    """The rows dated in a window (both ends included), the oldest first."""
    dated = [(row, when.point) for row in rows if (when := partial(row, "date")) is not None]
    return sorted(((r, d) for r, d in dated if window[0] <= d <= window[1]), key=lambda one: (one[1], str(one[0])))


def _value(row: Row) -> str:
    unit = "" if row["unit"] == "{score}" else f" {row['unit']}"
    return f"{row['comparator'] or ''}{round(row['value'], 1):g}{unit}"


@dataclass(frozen=True, slots=True)
class Read:
    """What a worksheet holds: judgements, how many rows were left open, and what is wrong, by row."""

    judgements: list[Judgement]
    left_open: int
    faults: list[tuple[int, str]]


def read_answers(
    rows: Sequence[tuple[int, Cells]], questions: Iterable[Question], study: str, review: int, today: date
) -> Read:
    """The judgements in the rows of a worksheet, each row given with its number.

    A cell is a text, a date or a datetime. `questions` are those of every course now, `study` and `review` the mark of the
    study and the number of this review. Where there is a fault, nothing is to be taken in.
    """
    known = {(q.cells["course"], q.kind): q for q in questions}
    found: dict[tuple[str, str], Judgement] = {}
    faults: list[tuple[int, str]] = []
    left_open = 0
    for number, cells in rows:
        if _text(cells["study"]) != study:
            faults.append((number, "of another study"))
            continue
        key = _text(cells["course"]), _text(cells["kind"])
        question = known.get(key)
        if question is None:
            courses = {course for course, _ in known}
            faults.append((number, "unknown kind of answer" if key[0] in courses else "unknown course"))
            continue
        if _text(cells["fingerprint"]) != question.cells["fingerprint"]:
            faults.append((number, "the course has changed since the worksheet was written"))
            continue
        if any(_text(cells[name]) != question.cells[name] for name in ("child", "class", "agent")):
            faults.append((number, "what is known about the course was changed in the worksheet"))
            continue
        if not _text(cells["answer"]):
            left_open += 1
            continue
        if formulas := [name for name in ASKED if _text(cells[name])[:1] == "="]:
            faults.append((number, f"{formulas[0]} holds a formula"))
            continue
        given = _judgement(cells, question, review, number, today)
        if isinstance(given, str):
            faults.append((number, given))
            continue
        first = found.setdefault(key, given)
        if replace(given, row=first.row) != first:
            faults.append((number, f"contradicts row {first.row}, which is of the same course"))
    return Read(list(found.values()), left_open, faults)


def _judgement(cells: Cells, question: Question, review: int, number: int, today: date) -> Judgement | str:
    """The judgement of one row, or what is wrong with it."""
    answer, reviewer = _text(cells["answer"]), _text(cells["reviewer"])
    if answer not in ANSWERS[question.kind]:
        return f"unknown answer; {', '.join(ANSWERS[question.kind][:-1])} or {ANSWERS[question.kind][-1]}"
    if not reviewer:
        return "an answer without a reviewer"
    days = {}
    for name in DATES:
        if not _text(cells[name]):
            return f"an answer without {name}"
        day = _day(cells[name])
        if day is None:
            return f"{name} is no date; write it as 2026-01-31"
        if day > today:
            return f"{name} lies in the future"
        days[name] = day
    if days["judged_on"] < question.course["start"]:
        return "judged before the start of the course"
    if days["reviewed_on"] < days["judged_on"]:
        return "reviewed before the day that is judged"
    course = question.course
    return Judgement(
        review=review,
        row=number,
        person=course["person"],
        drug_class=course["drug_class"],
        agent=course["agent"],
        start=course["start"],
        sources=tuple(course["sources"]),
        kind=question.kind,
        answer=answer,
        reviewer=reviewer,
        comment=_text(cells["comment"])[:COMMENT_CHARACTERS],
        evidence=question.evidence,
        **days,
    )


def _text(cell: object) -> str:
    return "" if cell is None else one_line(str(cell))


def _day(cell: object) -> date | None:
    """A date cell, or a text that is an ISO date; nothing else, for nobody knows what 01-02-2006 means."""
    if isinstance(cell, datetime):
        return cell.date()
    if isinstance(cell, date):
        return cell
    try:
        return date.fromisoformat(text) if len(text := _text(cell)) == len("2026-01-31") else None
    except ValueError:
        return None


def attribute_reviews(
    reviews: Iterable[Judgement],
    courses: Mapping[str, list[Course]],
    person_of: Mapping[str, str],
    parameters: Parameters,
) -> list[Attributed]:
    """Every judgement of every review, attributed by link to the course it names; of several the latest review's.

    The course is the one of that child, class and agent that shares a medication resource with it, or begins on the same day.
    """
    latest: dict[tuple[str, str], int] = {}
    matched = []
    for judgement in sorted(reviews, key=lambda j: (j.review, j.row)):
        person = person_of.get(judgement.person, judgement.person)
        course = _match(judgement, courses.get(person, []))
        matched.append((judgement, person, course))
        if course is not None:
            latest[course.name, judgement.kind] = judgement.review
    found = []
    for judgement, person, course in matched:
        reason = None
        if course is None:
            reason = "the course reviewed is no longer there"
        elif judgement.review != latest[course.name, judgement.kind]:
            reason = "replaced by a later review"
        elif parameters.data_lock is not None and judgement.judged_on > parameters.data_lock:
            reason = AFTER_LOCK
        elif judgement.judged_on < course.start:
            reason = "before the start of the course it is linked to"
        elif (judgement.judged_on - course.last).days > parameters.link_days:
            reason = "late: long after the stop"
        elif is_locked(course, courses[person], judgement.judged_on):
            reason = "after the start of a TNF inhibitor"
        found.append(
            Attributed(
                judgement.name,
                person,
                judgement.kind,
                judgement.answer,
                judgement.judged_on,
                course if reason is None else None,
                "link" if reason is None else "unattributed",
                reason,
                origin="reviewed",
            )
        )
    return found


def _match(judgement: Judgement, courses: Iterable[Course]) -> Course | None:
    """The course a judgement is of: of several, one begun by its day, that shares most, then the one begun on the same day."""

    def shared(course: Course) -> int:
        return len({e.source for e in course.members} & set(judgement.sources))

    own = [
        c
        for c in courses
        if (c.drug_class, c.agent) == (judgement.drug_class, judgement.agent)
        and (shared(c) or c.start == judgement.start)
    ]
    return max(
        own,
        key=lambda c: (c.start <= judgement.judged_on, shared(c), c.start == judgement.start, c.start),
        default=None,
    )
