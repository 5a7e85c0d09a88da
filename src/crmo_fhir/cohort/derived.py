"""The effect of a course by its numbers: PedCNO, CNO CDAS and the change of the lesions (clinical rules §3).

A derived answer stands beside the judged one and never enters it. Each names the values it was made of.

**PedCNO 30/50/70/90.** At least so many percent better in at least three of ESR, number of radiological lesions, physician
global, patient global and C-HAQ, with at most one of the others more than 30 % worse. The rule is **provisional**: it stands as
clinical-rules.md hands it down from Beck et al. 2010 (Arthritis Res Ther 12:R74, doi 10.1186/ar2992), of which only the abstract
was seen, which does not define it. Seen besides: the abstract of Reiser et al. 2025 (ACR Open Rheumatol, doi 10.1002/acr2.70061),
where the score documents relative changes in analogy to the paediatric ACR score and gets its level 90; and a wording of that
ACR score (Br J Clin Pharmacol 2015;79:379, table 1), in which the limit for the worse item rises with the level. Here it is
30 % at every level.

**CNO CDAS.** Patient pain + patient global + number of clinically active lesions: these are its "key variables" in the
abstract of Wu et al. 2023 (J Rheumatol 50:1333), and Reiser 2025 names the same three. That they are added up without
weights, pain and global on 0-10 each, is **provisional**: the full text was not seen.

**MRI.** The number of radiological lesions; without it RAI-CROMRIS (Capponi et al. 2021, Pediatr Rheumatol 19:123: 0 to 7 for
each bone unit, summed up), else RINBO (Arnoldi et al. 2017, Eur Radiol 27:2391: number and greatest size of the active
lesions, extramedullary and spinal involvement); abstracts seen.

Rules of ours, where the sources say nothing:

* The baseline is the last value in the baseline window, the follow-up the last one in the course's own window and after the
  baseline. Of several values of one day the less favourable one counts: the lowest baseline, the highest follow-up.
* A follow-up belongs to one course, to the one that a judgement of that day without a link would belong to.
* Both values are of one analyte in one unit: 0-10 and 0-100 are never compared. Of several units or kinds of pain the first of
  those listed that has both counts, of several units the one with the later follow-up.
* An item without both values is missing: neither better nor worse. With fewer than `pedcno_items` items there is no PedCNO.
* From a baseline of 0 nothing gets better; it is worse where it rises by at least its step (`pedcno_zero_steps`).
* A baseline below some value (`<4`) or a follow-up above one (`>60`) can be anything from there on, and is missing; the other
  way round the bound itself counts, so that an improvement is never overstated.
* Counts on a whole-body and on a regional MRI are not compared, nor those of other regions, as far as these are recorded (edge
  case E34), and a preliminary count is none (E32).
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from crmo_fhir.cohort.courses import ESCALATIONS, Course
from crmo_fhir.cohort.criteria import Row, partial
from crmo_fhir.cohort.effect import NO_READING, Attributed, _claim, _window_end, is_locked
from crmo_fhir.model.parameters import CHOICES, Parameters

PEDCNO_ITEMS = ("esr", "lesion-count", "physician-global", "patient-global", "chaq")
PEDCNO_LEVELS = (30, 50, 70, 90)
PAIN = ("pain-nrs", "pain-vas", "pain-severity", "pain-faces")
"""The scales of pain; the first that has both values counts."""
ON_MRI = ("lesion-count", "rai-cromris", "rinbo")
"""What the change on MRI is read from; the first that has both values counts."""
OF_10 = {"{score}", "cm"}
OF_100 = {"{score}/100", "mm", "%"}
"""Units of a score on 0-10, and on 0-100."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value of one analyte; `study` is the row of the MR study it was counted on, None where not one alone is named."""

    day: date
    number: Decimal
    comparator: str
    study: Row | None
    source: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Baseline and follow-up of one analyte in one unit."""

    analyte: str
    unit: str
    before: Value
    after: Value

    @property
    def change(self) -> Decimal:
        """Follow-up minus baseline; every analyte here is better the lower it is."""
        return self.after.number - self.before.number

    def is_better(self, percent: int) -> bool:
        """Whether the follow-up is that much better, the limit itself included."""
        return self.before.number > 0 and -self.change * 100 >= percent * self.before.number

    def is_worse(self, parameters: Parameters) -> bool:
        """Whether the follow-up is more than the limit worse; from 0, whether it rose by its step."""
        if self.before.number > 0:
            return self.change * 100 > parameters.pedcno_worse_percent * self.before.number
        step = Decimal(str(parameters.pedcno_zero_steps.get(self.analyte, 0)))
        return self.change > 0 and self.change >= step * (10 if self.unit in OF_100 else 1)


@dataclass(frozen=True, slots=True)
class _Windows:
    """Where the baseline and the follow-up of a course may lie, in days."""

    before: int
    after: int
    earliest: int
    grace: int
    needs_baseline: bool


class _Series:
    """The values of one analyte in one unit of one child, in order of day, number and the rest."""

    def __init__(self, values: Iterable[Value]) -> None:
        self._values = sorted(values, key=lambda v: (v.day, v.number, v.comparator, v.source))
        self._days = [v.day for v in self._values]

    def last(self, low: date, high: date) -> Value | None:
        """The last value in [low, high]; of several on that day the lowest."""
        place = bisect_right(self._days, high) - 1
        if place < 0 or self._days[place] < low:
            return None
        return self._values[bisect_left(self._days, self._days[place])]

    def after(self, day: date) -> Iterator[Value]:
        """The values after a day, the last ones first; of several on one day the highest first."""
        return reversed(self._values[bisect_right(self._days, day) :])


Series = Mapping[tuple[str, str], _Series]
"""The values of one child, by analyte and unit."""


class _Scores:
    """The values of one child by analyte and unit, and the courses they are follow-ups of."""

    def __init__(self, series: Series, courses: list[Course], windows: _Windows) -> None:
        self._series, self._courses, self._windows = series, courses, windows
        self._units: dict[str, list[str]] = defaultdict(list)
        for analyte, unit in sorted(series):
            self._units[analyte].append(unit)
        self._spans = {
            course.name: (course.start + timedelta(days=windows.earliest), _window_end(course, courses, windows.grace))
            for course in courses
            if course.left_out is None and course.drug_class in ESCALATIONS | {"NSAID", "GC"}
        }
        self._owners: dict[tuple[str, str, date], Course | None] = {}

    def pair(self, course: Course, *analytes: str, units: Container[str] | None = None) -> Pair | None:
        """Baseline and follow-up of a course: of the first of these analytes that has both, in one of these units."""
        if course.name not in self._spans:
            return None
        for analyte in analytes:
            keys = [(analyte, unit) for unit in self._units.get(analyte, ()) if units is None or unit in units]
            if pairs := [pair for key in keys if (pair := self._in_unit(course, key))]:
                return max(pairs, key=lambda pair: pair.after.day)
        return None

    def _in_unit(self, course: Course, key: tuple[str, str]) -> Pair | None:
        before = self._baseline(course, self._series[key])
        if before is None:
            return None
        later = self._series[key].after(before.day)
        after = next((v for v in later if self._owner(key, v.day) is course), None)
        if after is None or before.comparator.startswith("<") or after.comparator.startswith(">"):
            return None
        if before.study and after.study and not _shows_the_same(after.study, before.study):
            return None
        return Pair(*key, before, after)

    def _baseline(self, course: Course, series: _Series) -> Value | None:
        low = course.start - timedelta(days=self._windows.before)
        return series.last(low, course.start + timedelta(days=self._windows.after))

    def _owner(self, key: tuple[str, str], day: date) -> Course | None:
        """The one course that a value of that day is a follow-up of."""
        if (*key, day) not in self._owners:
            fitting = [c for c in self._courses if self._fits(c, key, day)]
            self._owners[*key, day] = max(fitting, key=lambda c: _claim(c, day), default=None)
        return self._owners[*key, day]

    def _fits(self, course: Course, key: tuple[str, str], day: date) -> bool:
        first, last = self._spans.get(course.name, (date.max, date.min))
        return (
            first <= day <= last
            and not is_locked(course, self._courses, day)
            and (not self._windows.needs_baseline or self._baseline(course, self._series[key]) is not None)
        )


def derive_answers(
    courses: Mapping[str, list[Course]], series: Mapping[str, Mapping[str, Series]], parameters: Parameters
) -> tuple[list[Attributed], dict[str, dict[str, Any]]]:
    """The derived answers of all courses, and by course name the columns `pedcno`, `cdas_change` and `lesion_change`.

    `series` are those of `derive_series`. A column is None where it cannot be computed, and then there is no answer.
    """
    clinical = _Windows(
        parameters.score_baseline_before_days,
        parameters.score_baseline_after_days,
        earliest=0,
        grace=parameters.clinical_grace_days,
        needs_baseline=False,
    )
    mri = _Windows(
        parameters.mri_baseline_before_days,
        parameters.mri_baseline_after_days,
        earliest=parameters.mri_followup_min_days,
        grace=parameters.mri_grace_days,
        needs_baseline=True,
    )
    answers: list[Attributed] = []
    changes: dict[str, dict[str, Any]] = {}
    for person, own in sorted(courses.items()):
        values = series.get(person, {}).get(parameters.partial_dates)
        if not values:
            continue
        clinically, on_mri = _Scores(values, own, clinical), _Scores(values, own, mri)
        for course in own:
            items = [pair for item in PEDCNO_ITEMS if (pair := clinically.pair(course, item))]
            pedcno, lesions = compute_pedcno(items, parameters), on_mri.pair(course, "lesion-count")
            changes[course.name] = {
                "pedcno": pedcno,
                "cdas_change": compute_cdas_change(
                    clinically.pair(course, *PAIN, units=OF_10),
                    clinically.pair(course, "patient-global", units=OF_10),
                    clinically.pair(course, "clinical-lesion-count"),
                ),
                "lesion_change": float(lesions.change) if lesions else None,
            }
            if pedcno is not None:
                effect = "sufficient" if pedcno >= parameters.pedcno_percent else "insufficient"
                answers.append(_answer(course, "clinical", effect, items))
            if image := on_mri.pair(course, *ON_MRI):
                answers.append(_answer(course, "mri", "regression" if image.change < 0 else "no-regression", [image]))
    return answers, changes


def compute_pedcno(items: Sequence[Pair], parameters: Parameters) -> int | None:
    """The highest PedCNO level reached, in percent; 0 for none, None with too few items."""
    if len(items) < parameters.pedcno_items:
        return None
    if sum(item.is_worse(parameters) for item in items) > 1:
        return 0
    reached = [p for p in PEDCNO_LEVELS if sum(item.is_better(p) for item in items) >= parameters.pedcno_items]
    return max(reached, default=0)


def compute_cdas_change(pain: Pair | None, patient_global: Pair | None, lesions: Pair | None) -> float | None:
    """Follow-up minus baseline of the CNO CDAS, in its points; None unless all three parts are there."""
    if pain is None or patient_global is None or lesions is None:
        return None
    return float(pain.change + patient_global.change + lesions.change)


def _shows_the_same(one: Row, other: Row) -> bool:
    """Whether two MR studies show the same part of the body, so that counts on them can be compared."""
    if one["whole_body"] or other["whole_body"]:
        return bool(one["whole_body"] and other["whole_body"])
    return not one["regions"] or not other["regions"] or set(one["regions"]) == set(other["regions"])


def derive_series(scores: Mapping[str, list[Row]], imaging: Mapping[str, list[Row]]) -> dict[str, dict[str, Series]]:
    """The values that can be read of each child, from rows of the tables `lab` and `imaging` by child.

    By child, then by the day that stands for a partial date (`middle`, `earliest`, `latest`).
    """
    found = {}
    for person, rows in scores.items():
        days = [str(day) for day in CHOICES["partial_dates"]]
        studies = imaging.get(person, ())
        if all(row["date_low"] == row["date_high"] for row in rows):
            found[person] = dict.fromkeys(days, _series(rows, studies, days[0]))
        else:
            found[person] = {day: _series(rows, studies, day) for day in days}
    return found


def _series(scores: Iterable[Row], imaging: Iterable[Row], day: str) -> Series:
    studies = {row["imaging"]: row for row in imaging}
    read = {*PEDCNO_ITEMS, *PAIN, *ON_MRI, "clinical-lesion-count"}
    found: dict[tuple[str, str], list[Value]] = defaultdict(list)
    for row in scores:
        when = partial(row, "date")
        status = NO_READING["mri" if row["analyte"] in ON_MRI else "clinical"]
        if when is None or row["analyte"] not in read or row["status"] in status:
            continue
        named = [studies[key] for key in dict.fromkeys(row["studies"] or ()) if key in studies]
        study = named[0] if len(named) == 1 else None
        value = Value(when.at(day), Decimal(str(row["value"])), row["comparator"] or "", study, row["lab"])
        found[row["analyte"], row["unit"]].append(value)
    return {key: _Series(values) for key, values in found.items()}


def _answer(course: Course, kind: str, value: str, evidence: Sequence[Pair]) -> Attributed:
    return Attributed(
        assessment=f"derived/{course.name}/{kind}",
        person=course.person,
        kind=kind,
        value=value,
        when=max(pair.after.day for pair in evidence),
        course=course,
        attribution="window",
        reason=None,
        origin="derived",
        sources=tuple(sorted({v.source for pair in evidence for v in (pair.before, pair.after)})),
    )
