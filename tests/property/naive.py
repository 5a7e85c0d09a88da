"""A slow, plain oracle: the counts of results.csv from an abstract cohort, written from the clinical rules alone.

It knows nothing of FHIR and nothing of the program. Where the rules leave a case open, `Reading` names the choice; the
generator keeps only children whose figures are the same under every reading (`decided`).
"""

import calendar
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

ESCALATION = {"MTX", "TNF", "BP", "SSZ", "CSDMARD", "IL1", "IL6", "IL12-23", "IL17", "IL23", "COSTIM", "JAK", "IL"}
RUNGS = ("administration", "dispense", "statement", "order")  # strongest first
FAR = date(9000, 1, 1)


@dataclass(frozen=True)
class When:
    """A partial date: first and last day possible."""

    low: date
    high: date

    def at(self, which: str) -> date:
        if which == "low" or self.low == self.high:
            return self.low
        if which == "high":
            return self.high
        return self.low.replace(day=15) if (self.high - self.low).days < 31 else self.low.replace(month=7, day=1)


def on(day: date) -> When:
    return When(day, day)


@dataclass
class Diagnosis:
    diseases: set[str]  # crmo, sapho
    verification: str  # confirmed, provisional, refuted, entered-in-error
    when: When | None
    text_only: bool = False
    sites: list[tuple[str, str | None]] = field(default_factory=list)
    name: str = ""


@dataclass
class Exposure:
    name: str
    agent: str
    drug_class: str
    rung: str  # one of RUNGS; a Procedure with a drug code is an administration
    taken: str  # yes, no, on-hold
    start: When
    end: When | None
    once: bool = False
    indications: set[str] = field(default_factory=set)  # crmo, other
    reasons: set[str] = field(default_factory=set)
    adverse: list[date] = field(default_factory=list)
    joint: bool = False
    procedure: bool = False
    request: str | None = None
    plan: bool = False  # an order that is only a plan or proposal
    product: str = ""  # a brand or biosimilar


@dataclass
class Scan:
    name: str
    day: date
    counts: bool = True
    covers: frozenset[str] = frozenset()  # bones, or `all` for the whole body; nothing: not recorded


@dataclass
class Assessment:
    name: str
    kind: str  # clinical, mri
    value: str  # good, bad, open
    day: date
    counts: bool = True
    part_of: list[str] = field(default_factory=list)
    focus: list[str] = field(default_factory=list)
    scans: list[str] = field(default_factory=list)


@dataclass
class Child:
    name: str
    sex: str
    birth: When | None
    diagnoses: list[Diagnosis] = field(default_factory=list)
    lesions: list[tuple[str, str | None, bool]] = field(default_factory=list)  # bone, side, counts
    exposures: list[Exposure] = field(default_factory=list)
    assessments: list[Assessment] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    died: date | None = None
    last_seen: date | None = None


@dataclass(frozen=True)
class Reading:
    """One choice for each case the documents leave open; the defaults are the most literal reading."""

    partial: str = "point"  # which day of a partial date of exposure
    escalation_day_counts: bool = False  # an assessment on the very day of an escalation is still the earlier course's
    latest_course: bool = True  # of two courses whose windows hold an assessment, the one begun last
    out_captures: bool = True  # unlinked assessments can fall to a course that is out of the figures
    minor_classes_capture: bool = True  # unlinked assessments can fall to a course of a class without figures
    nsaid_switch_ends: bool = True  # a second NSAID ends the window of the first ("next agent of the class")
    mri_min_exposure: bool = False  # the 84 days hold for MRI too
    mri_on_observation: bool = False  # the follow-up is the day of the judgement, not that of the study
    year_inclusive: bool = True  # an escalation on the very day 12 months later is within them
    year_both_sides: bool = False  # "within 12 months" also before the assessment, even of one that is over
    ended_last_course: bool = False  # the line ended at is that of the last course, not the highest
    early_link_counts: bool = True  # a linked effect may be older than its course
    return_splits: bool = False  # A, B, A within 90 days: the return to A is a course of its own
    open_skipped: bool = False  # a last assessment that says "not evaluable" leaves the one before it primary
    last_reason: bool = False  # only the record that ends a course tells why it ended
    unnamed_regions: bool = True  # the study on the day of an MRI judgement that names none is its follow-up
    steroid_total: bool = False  # 28 days of glucocorticoid in all, not in one course


LITERAL = Reading()


@dataclass
class Course:
    agent: str
    drug_class: str
    start: date
    end: date | None
    records: list[Exposure]
    out: bool = False
    other: bool = False  # for another disease alone
    line: int = 0
    clinical: list[tuple[date, str]] = field(default_factory=list)
    mri: list[tuple[date, str]] = field(default_factory=list)

    def last(self, censored: date) -> date:
        return self.end or censored


def birthday(birth: date, years: int) -> date:
    leap = calendar.isleap(birth.year + years)
    if (birth.month, birth.day) == (2, 29) and not leap:
        return date(birth.year + years, 3, 1)
    return birth.replace(year=birth.year + years)


def a_year_later(day: date, years: int = 1) -> date:
    if (day.month, day.day) == (2, 29):
        return date(day.year + years, 2, 28)
    return day.replace(year=day.year + years)


# --- criteria ------------------------------------------------------------------------------------------------------


def diagnosed(child: Child) -> When | None:
    """Earliest qualifying confirmed Condition over the whole history; None where there is none, or no date."""
    crmo = [d for d in child.diagnoses if "crmo" in d.diseases and not d.text_only]
    if any(d.verification == "refuted" for d in crmo):
        return None
    dates = [d.when for d in crmo if d.verification == "confirmed"]
    if not dates or None in dates:
        return None
    return When(min(d.low for d in dates), min(d.high for d in dates))


def eligible(child: Child, since: date, until: date, max_age: int = 16) -> bool:
    when = diagnosed(child)
    if when is None or child.birth is None:
        return False
    in_window = since <= when.low and when.high <= until
    young = when.high < birthday(child.birth.low, max_age)
    return in_window and young


def sapho(child: Child) -> tuple[str, str]:
    """Ever, and at diagnosis."""
    found = [
        d.when for d in child.diagnoses if "sapho" in d.diseases and d.verification == "confirmed" and not d.text_only
    ]
    if not found:
        return "no", "no"
    diagnosis = diagnosed(child)
    assert diagnosis is not None
    if any(w.high <= diagnosis.low for w in found):
        return "yes", "yes"
    if all(w.low > diagnosis.high for w in found):
        return "yes", "no"
    return "yes", "unknown"


def foci(child: Child) -> set[tuple[str, str | None]]:
    named: set[tuple[str, str | None]] = set()
    for diagnosis in child.diagnoses:
        if "crmo" in diagnosis.diseases and diagnosis.verification == "confirmed":
            named |= set(diagnosis.sites)
    named |= {(bone, side) for bone, side, counts in child.lesions if counts}
    split: set[tuple[str, str | None]] = set()
    for bone, side in named:
        split |= {(bone, "left"), (bone, "right")} if side == "both" else {(bone, side)}
    return {(b, s) for b, s in split if s is not None or not any(b == b2 and s2 for b2, s2 in split)}


# --- courses -------------------------------------------------------------------------------------------------------


def courses_of(child: Child, orders_count: bool, reading: Reading) -> list[Course]:
    diagnosis = diagnosed(child)
    assert diagnosis is not None
    records = []
    for record in child.exposures:
        start, end = record.start.at(reading.partial), record.end.at(reading.partial) if record.end else None
        if record.taken != "yes" or record.plan:
            continue
        if reading.partial == "point" and record.start.low <= diagnosis.at("point") <= record.start.high:
            start = max(start, diagnosis.at("point"))  # a partial date is capped by the diagnosis (E15)
            end = end and max(start, end)
        if end is not None and end < start:
            continue
        if end is not None and child.died and end > child.died:
            end = None  # observed to the death
        if child.birth and start < child.birth.low:
            continue
        if start > date(2026, 1, 1) or (end and end > date(2026, 12, 31)):
            continue
        if record.rung == "order" and not orders_count:
            continue
        if record.once:
            end = start + timedelta(days=56 if record.agent == "infliximab" else 0)
        records.append((start, end, record))
    courses: list[Course] = []
    records = stocked(records)
    everything = records
    for agent in {r.agent for _, _, r in records}:
        own = [(s, e, r) for s, e, r in records if r.agent == agent]
        strongest = min(RUNGS.index(r.rung) for _, _, r in own)
        own = sorted(((s, e, r) for s, e, r in own if RUNGS.index(r.rung) == strongest), key=lambda x: x[0])
        merged: list[Course] = []
        for start, end, record in own:
            between = (
                bool(merged)
                and merged[-1].end is not None
                and start > merged[-1].end
                and any(
                    r.drug_class == record.drug_class
                    and r.agent != agent
                    and merged[-1].start < s <= start
                    and (e or FAR) > merged[-1].end
                    for s, e, r in everything
                )
            )
            if reading.return_splits and between:
                merged.append(Course(agent, record.drug_class, start, end, [record]))
            elif merged and (merged[-1].end is None or (start - merged[-1].end).days < 90):
                now = merged[-1]
                now.end = None if now.end is None or end is None else max(now.end, end)
                now.records.append(record)
            else:
                merged.append(Course(agent, record.drug_class, start, end, [record]))
        courses += merged
    for course in courses:
        given_for = set().union(*(r.indications for r in course.records))
        prevalent = (diagnosis.at(reading.partial) - course.start).days > 90
        course.other = given_for == {"other"}
        course.out = course.other or prevalent
    courses.sort(key=lambda c: (c.start, c.agent))
    tnf = [c for c in courses if c.drug_class == "TNF" and not c.out]
    for number, later in enumerate(tnf):
        for earlier in tnf[:number]:
            if earlier.agent != later.agent and earlier.end and later.start < earlier.end:
                together = (min(earlier.end, later.end or FAR) - later.start).days
                if together <= 30:
                    earlier.end = later.start
    for drug_class in {c.drug_class for c in courses}:
        agents: list[str] = []
        for course in courses:
            if course.drug_class == drug_class and not course.out:
                if course.agent not in agents:
                    agents.append(course.agent)
                course.line = agents.index(course.agent) + 1
    return courses


def stocked(records: list[tuple[date, date | None, Exposure]]) -> list[tuple[date, date | None, Exposure]]:
    """Dispenses last as long as the stock at home: what was left, at most 90 days of it, and the new supply (E51)."""
    found = [r for r in records if r[2].rung != "dispense"]
    for agent in {r.agent for _, _, r in records}:
        stock, day = 0, date.min
        bought: set[tuple[date, int]] = set()
        for start, end, record in sorted(
            (r for r in records if r[2].agent == agent), key=lambda r: (r[0], r[1] or FAR)
        ):
            if record.rung != "dispense":
                continue
            assert end is not None
            supply = (end - start).days
            if (start, supply) not in bought:  # the same twice is one purchase
                bought.add((start, supply))
                stock = min(max(stock - (start - day).days, 0), 90) + supply
                day = start
            found.append((start, start + timedelta(days=stock), record))
    return found


def escalation(course: Course, courses: list[Course], reading: Reading) -> date:
    """The day on which the attribution window of a course ends because something stronger began."""
    days = [FAR]
    for other in courses:
        if other.out or other is course or other.start <= course.start:
            continue
        next_agent = other.drug_class == course.drug_class and other.agent != course.agent
        if next_agent and course.drug_class == "NSAID" and not reading.nsaid_switch_ends:
            next_agent = False
        if next_agent or (other.drug_class in ESCALATION and other.agent != course.agent):
            days.append(other.start)
    return min(days)


def before(day: date, limit: date, reading: Reading) -> bool:
    return day < limit or (reading.escalation_day_counts and day == limit)


def clinical_window(course: Course, day: date, courses: list[Course], reading: Reading) -> bool:
    stop = course.end or FAR
    return course.start <= day <= min(FAR, stop + timedelta(days=30)) and before(
        day, escalation(course, courses, reading), reading
    )


def compared(child: Child, seen: Assessment) -> list[Scan]:
    """The MR studies an assessment compares, in order of time."""
    by_name = {s.name: s for s in child.scans}
    return sorted((by_name[n] for n in seen.scans if by_name[n].counts), key=lambda s: s.day)


def shows(later: Scan, earlier: Scan) -> bool:
    """Whether the later study shows all that the earlier did, where both say what they cover (E34)."""
    if not later.covers or not earlier.covers or "all" in later.covers:
        return True
    return "all" not in earlier.covers and earlier.covers <= later.covers


def observed(child: Child, seen: Assessment, reading: Reading) -> date:
    """The day of an effect: for MRI that of the last study compared."""
    scans = compared(child, seen)
    return scans[-1].day if scans and not reading.mri_on_observation else seen.day


def mri_window(child: Child, course: Course, seen: Assessment, courses: list[Course], reading: Reading) -> bool:
    scans = compared(child, seen)
    stop = course.end or FAR
    follow_up = observed(child, seen, reading)
    baselines = scans[:1] if len(scans) >= 2 else [s for s in child.scans if s.counts]
    afterwards = scans[-1:]
    if not scans and reading.unnamed_regions:
        afterwards = [s for s in child.scans if s.counts and s.day == follow_up]
    good_baseline = any(
        -180 <= (b.day - course.start).days <= 14 and (not afterwards or any(shows(a, b) for a in afterwards))
        for b in baselines
    )
    good_follow_up = (follow_up - course.start).days >= 84 and follow_up <= stop + timedelta(days=60)
    return good_baseline and good_follow_up and before(follow_up, escalation(course, courses, reading), reading)


def attribute(child: Child, courses: list[Course], reading: Reading) -> None:
    def blocked(course: Course, day: date) -> bool:
        if course.drug_class != "MTX":
            return False
        starts = [c.start for c in courses if c.drug_class == "TNF" and not c.other]  # before MTX and diagnosis too
        return any(day > s or (day == s and not reading.escalation_day_counts) for s in starts)

    known = {r.name for r in child.exposures}
    for seen in child.assessments:
        if not seen.counts:
            continue
        scans = compared(child, seen)
        if seen.kind == "mri" and len(scans) >= 2 and not shows(scans[-1], scans[0]):
            continue
        day = observed(child, seen, reading)
        linked = [n for n in seen.part_of if n in known] or [n for n in seen.focus if n in known]
        found: Course | None = None
        if linked:
            of = [c for c in courses if any(r.name in linked for r in c.records)]
            if of and day <= (of[0].end or FAR - timedelta(days=200)) + timedelta(days=180):
                found = of[0] if day >= of[0].start or reading.early_link_counts else None
        else:
            able = [c for c in courses if reading.minor_classes_capture or c.drug_class in ("NSAID", "MTX", "TNF")]
            able = [c for c in able if reading.out_captures or not c.out]
            if seen.kind == "clinical":
                able = [c for c in able if clinical_window(c, day, courses, reading)]
            else:
                able = [c for c in able if mri_window(child, c, seen, courses, reading)]
            if reading.escalation_day_counts and any(c.start < day for c in able):
                able = [c for c in able if c.start < day]
            if able:
                found = able[-1] if reading.latest_course else able[0]
        if found and not blocked(found, day):
            (found.clinical if seen.kind == "clinical" else found.mri).append((day, seen.value))


def judged(course: Course, censored: date, reading: Reading) -> tuple[date, str] | None:
    """Primary clinical effect of an evaluable course, or None."""
    if not course.clinical or course.out:
        return None
    told = primary(course.clinical, reading)
    if told is None:
        return None
    last = max(course.records, key=lambda r: (r.end.high if r.end else FAR, r.start.high))
    reasons = set().union(*(r.reasons for r in ([last] if reading.last_reason else course.records)))
    if course.end and any(e <= course.end + timedelta(days=180) for r in course.records for e in r.adverse):
        reasons.add("adverse_event")
    minimum = 28 if course.drug_class == "NSAID" else 84
    exposure = (course.last(censored) - course.start).days
    if exposure < minimum and not (course.end and reasons & {"inefficacy", "adverse_event"}):
        return None
    return told


def primary(seen: list[tuple[date, str]], reading: Reading) -> tuple[date, str] | None:
    """The last assessment, or None where it leaves the effect open."""
    told = [s for s in seen if s[1] != "open"] if reading.open_skipped else seen
    return max(told) if told and max(told)[1] != "open" else None


def scanned(course: Course, censored: date, reading: Reading) -> str | None:
    if not course.mri or course.out:
        return None
    told = primary(course.mri, reading)
    if reading.mri_min_exposure and (course.last(censored) - course.start).days < 84:
        return None
    return told[1] if told else None


def escalated(courses: list[Course], day: date, censored: date, reading: Reading) -> bool:
    """Whether an escalation falls within 12 months of an NSAID assessment."""
    year, past = a_year_later(day), a_year_later(day, -1)
    steroids = [c for c in courses if c.drug_class == "GC" and not c.out]
    total = sum((c.last(censored) - c.start).days for c in steroids)
    for course in courses:
        if course.out:
            continue
        if course.drug_class == "GC":
            if course.records[0].joint:
                continue
            days = total if reading.steroid_total else (course.last(censored) - course.start).days
            if days <= 28:
                continue
        elif course.drug_class not in ("MTX", "TNF", "BP"):
            continue
        if reading.year_inclusive and day <= course.start <= year:
            return True
        if day < course.start < year:
            return True
        if reading.year_both_sides and course.start <= day and course.last(censored) >= past:
            return True
    return False


# --- counting ------------------------------------------------------------------------------------------------------

Counts = Counter  # (group, stratifier, stratum, "n" or "N") -> number


def count_child(child: Child, since: date, until: date, orders_count: bool, reading: Reading = LITERAL) -> Counts:
    """What one child adds to every figure; empty for a child outside the cohort."""
    counts: Counts = Counter()
    if not eligible(child, since, until):
        return counts
    bones = foci(child)
    focality = "unknown" if not bones else "unifocal" if len(bones) == 1 else "multifocal"
    ever, at_diagnosis = sapho(child)
    strata = {"sex": child.sex, "focality": focality, "sapho": ever}

    def add(
        group: str, hit: bool, own: dict[str, set[str]] | None = None, good: dict[str, set[str]] | None = None
    ) -> None:
        """One unit of a group with the child's strata, and the strata of its own (agent, line)."""
        for stratifier, stratum in (("", ""), *strata.items()):
            counts[group, stratifier, stratum, "N"] += 1
            counts[group, stratifier, stratum, "n"] += hit
        for stratifier, values in (own or {}).items():
            for value in values:
                counts[group, stratifier, value, "N"] += 1
                counts[group, stratifier, value, "n"] += hit if good is None else value in good[stratifier]

    counts["cohort", "", "", "N"] += 1
    counts["cohort", "", "", "n"] += 1
    for stratifier, stratum in (*strata.items(), ("sapho-at-diagnosis", at_diagnosis)):
        counts["cohort", stratifier, stratum, "n"] += 1
    for bone, _ in bones:
        counts["foci", "", "", "n"] += 1
        counts["foci", "bone", bone, "n"] += 1
    for bone in {b for b, _ in bones}:
        counts["foci", "bone-patients", bone, "n"] += 1

    courses = courses_of(child, orders_count, reading)
    attribute(child, courses, reading)
    censored = min(d for d in (child.died, child.last_seen, FAR) if d)
    mine = [c for c in courses if not c.out]

    def agents(some: list[Course]) -> dict[str, set[str]]:
        return {"agent": {c.agent for c in some}, "line": {str(c.line) for c in some}}

    nsaid = [c for c in mine if c.drug_class == "NSAID"]
    good = []
    for course in nsaid:
        effect = judged(course, censored, reading)
        if effect and effect[1] == "good" and not escalated(courses, effect[0], censored, reading):
            good.append(course)
    add("nsaid-clinical", bool(good), agents(nsaid), agents(good))
    if nsaid:
        add("nsaid-clinical-exposed", bool(good), agents(nsaid), agents(good))
    if len({(c.agent, c.line) for c in nsaid}) > 1:
        counts["several NSAIDs", "", "", "n"] += 1

    for drug_class, name in (("MTX", "mtx"), ("TNF", "tnfi")):
        own = [c for c in mine if c.drug_class == drug_class]
        effects = {id(c): e[1] for c in own if (e := judged(c, censored, reading))}
        evaluable = [c for c in own if id(c) in effects]
        best = [c for c in evaluable if effects[id(c)] == "good"]
        if name == "mtx" and evaluable:
            add("mtx-clinical", bool(best), agents(evaluable), agents(best))
        if name == "tnfi":
            for course in evaluable:
                add("tnfi-clinical", any(course is b for b in best), agents([course]))
            if evaluable:
                add("tnfi-clinical-patients", bool(best), agents(evaluable), agents(best))
        for course in own:
            change = scanned(course, censored, reading)
            if change:
                add(f"{name}-mri", change == "good", agents([course]))
    tnf = [c for c in mine if c.drug_class == "TNF"]
    if tnf:
        counts["tnfi-lines", "", "", "n"] += 1
        reached = max(c.line for c in tnf)
        for line in range(1, reached + 1):
            counts["tnfi-lines", "line-reached", str(line), "n"] += 1
        ended = tnf[-1].line if reading.ended_last_course else reached
        counts["tnfi-lines", "line-ended", str(ended), "n"] += 1
    return Counter({k: v for k, v in counts.items() if v})


def other_readings() -> dict[str, Reading]:
    """Each open case answered the other way, one at a time."""
    others = {f"partial={which}": replace(LITERAL, partial=which) for which in ("low", "high")}
    for name in Reading.__dataclass_fields__:
        if name != "partial":
            others[name] = replace(LITERAL, **{name: not getattr(LITERAL, name)})
    return others


READINGS = other_readings()


def mixed_readings(count: int) -> list[Reading]:
    """Several open cases answered the other way at once."""
    rng = random.Random(0)
    flags = [n for n in Reading.__dataclass_fields__ if n != "partial"]
    return [replace(LITERAL, **{n: getattr(LITERAL, n) != (rng.random() < 0.4) for n in flags}) for _ in range(count)]


MIXED = mixed_readings(24)


def undecided(
    child: Child, since: date, until: date, orders_count: bool, allow: frozenset[str] = frozenset()
) -> str | None:
    """The name of an open case on which this child's figures depend, or None."""
    literal = count_child(child, since, until, orders_count)
    for name, reading in READINGS.items():
        if name not in allow and count_child(child, since, until, orders_count, reading) != literal:
            return name
    for reading in MIXED:
        kept = replace(reading, **{name: getattr(LITERAL, name) for name in allow if "=" not in name})
        if count_child(child, since, until, orders_count, kept) != literal:
            return "several"
    return None


def figures(
    children: list[Child], since: date, until: date, orders_count: bool
) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(group, stratifier, stratum) -> (n, N), as in results.csv; strata of nothing are not named."""
    total: Counts = Counter()
    for child in children:
        total.update(count_child(child, since, until, orders_count))
    cohort, focus, treated = (total[g, "", "", "n"] for g in ("cohort", "foci", "tnfi-lines"))
    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    several = total.pop(("several NSAIDs", "", "", "n"), 0)
    for group, stratifier, stratum, _ in total:
        if several and group.startswith("nsaid") and stratifier in ("agent", "line"):
            continue  # the documents do not say in which stratum a child with several NSAIDs is
        key = (group, stratifier, stratum)
        n = total[*key, "n"]
        if group == "cohort" or stratifier == "bone-patients":
            whole = cohort
        elif group == "foci":
            whole = focus
        elif group == "tnfi-lines":
            whole = treated
        else:
            whole = total[*key, "N"]
        found[key] = (n, whole)
    for group in (
        "cohort",
        "foci",
        "nsaid-clinical",
        "nsaid-clinical-exposed",
        "mtx-clinical",
        "tnfi-clinical",
        "tnfi-clinical-patients",
        "mtx-mri",
        "tnfi-mri",
        "tnfi-lines",
    ):
        found.setdefault((group, "", ""), (0, 0))
    return found
