"""The parts of the report beside its tables of n of N: charts, each with its figures as a table, and what follows of them.

From estimates, timelines and trends (`model.results.Analysis`) to what the template prints.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil, isfinite
from statistics import median, quantiles

from markupsafe import Markup

from crmo_fhir.export import charts
from crmo_fhir.export.table1 import (
    PERCENT_DECIMALS,
    STRATIFIERS,
    TREATMENT_GROUPS,
    Figures,
    interval,
    percent,
    round_half_away,
)
from crmo_fhir.export.texts import Texts, readable
from crmo_fhir.model.results import Bar, Estimate, Result, Timeline, Trend

YEAR = 365.25
MONTH = YEAR / 12
CHILDREN_SHOWN = 30
"""So many timelines stay legible on one page; of more children, as many are picked evenly by length of follow-up."""
LINES_SHOWN = 60
"""So many lines of single children in a chart of values; the medians are of all."""
PERIODS = ((-6, 0), (0, 3), (3, 6), (6, 12), (12, 18), (18, 24), (24, 36))
"""Months since the start of treatment; a median stands for the last value of each child in (from, to]."""
CLASSES = {
    "NSAID": "NSAID",
    "GC": "Glucocorticoid",
    "MTX": "Methotrexate",
    "TNF": "TNF-α inhibitor",
    "BP": "Bisphosphonate",
    "SSZ": "Sulfasalazine",
    "CSDMARD": "Other conventional DMARD",
    "IL1": "Interleukin-1 inhibitor",
    "IL6": "Interleukin-6 inhibitor",
    "IL12-23": "Interleukin-12/23 inhibitor",
    "IL17": "Interleukin-17 inhibitor",
    "IL23": "Interleukin-23 inhibitor",
    "IL": "Interleukin inhibitor",
    "BIOLOGIC": "Other biologic",
    "COSTIM": "Co-stimulation blocker",
    "JAK": "JAK inhibitor",
    "PDE4": "PDE4 inhibitor",
    "RANKL": "RANKL inhibitor",
    "OTHER": "Other treatment",
}
"""Treatment classes by name."""
STOPS = {
    "inefficacy": ("inefficacy", "I"),
    "adverse_event": ("adverse event", "A"),
    "both": ("inefficacy and adverse event", "I+A"),
    "remission": ("remission", "R"),
    "patient_choice": ("patient's choice", "P"),
    "other": ("another reason", "O"),
    "unknown": ("reason not recorded", "?"),
    "ongoing": ("ongoing", ""),
}
"""Why a course stopped: in words, and as a letter in the chart."""
FLAGS = {
    "also for another disease": "Given for another disease too",
    "begun after the last contact": "Begun after the last contact",
    "begun shortly before the diagnosis": "Begun shortly before the diagnosis",
    "bisphosphonate carry-over": "A bisphosphonate given before may still work",
    "from orders": "Known from prescriptions only",
    "indication not recorded": "Indication not recorded",
    "judged under a glucocorticoid": "Judged soon after a systemic glucocorticoid",
    "judgements differ": "Several judgements, which differ",
    "non-medical switch": "Change to another product of the same drug",
    "overlaps another TNF inhibitor": "Longer beside another TNF-α inhibitor than a switch takes",
    "partial date": "Incomplete date of start or stop",
    "re-start of the same agent": "Re-start of the same drug",
    "readers disagree": "Readings of one MRI that differ",
    "stale": "Ongoing, but nothing recorded of the child for long",
    "stopped without a date": "Stopped, the day not recorded",
    "to end after the last day of data": "Planned to end after the last day of data",
    "undetermined by partial dates: MRI change": "Hangs on an incomplete date: change on MRI",
    "undetermined by partial dates: begun before the diagnosis": "Hangs on an incomplete date: begun before the diagnosis",
    "undetermined by partial dates: clinical effect": "Hangs on an incomplete date: clinical effect",
    "undetermined by partial dates: course": "Hangs on an incomplete date: which records make the course",
    "undetermined by partial dates: gap": "Hangs on an incomplete date: one course or two",
    "undetermined by partial dates: minimum exposure": "Hangs on an incomplete date: minimum exposure",
    **{
        f"another stop reason: {reason}": f"A further reason of the stop: {words}"
        for reason, (words, _) in STOPS.items()
    },
}
"""What the flags of a course say."""
EFFECTS = {
    "sufficient": "sufficient clinical effect",
    "insufficient": "insufficient clinical effect",
    "regression": "regression on MRI",
    "no-regression": "no regression on MRI",
    "not-evaluable": "not evaluable",
}
ANALYTES = {
    "esr": "ESR",
    "esr-2h": "ESR after 2 hours",
    "crp": "CRP",
    "hb": "Haemoglobin",
    "lesion-count": "Lesions on MRI",
    "clinical-lesion-count": "Lesions on examination",
    "physician-global": "Physician global",
    "patient-global": "Patient global",
    "chaq": "C-HAQ",
    "pain-vas": "Pain, VAS",
    "pain-nrs": "Pain, NRS",
    "pain-faces": "Pain, faces scale",
    "pain-severity": "Pain severity",
    "cdas": "CNO CDAS",
    "rai-cromris": "RAI-CROMRIS",
    "rinbo": "RINBO",
}
"""Laboratory values, scores and lesion counts, in the order of their charts."""
UNITS = {"{score}": "score", "mm/h": "mm/h", "mg/L": "mg/L", "g/L": "g/L", "{lesions}": "lesions", "{count}": "number"}
GROUPS = {
    **TREATMENT_GROUPS,
    "nsaid": "NSAID",
    "mtx": "Methotrexate",
    "tnfi": "TNF-α inhibitors",
    "clinical": "Sufficient clinical effect",
    "mri": "Regression on MRI",
}
"""What an estimate is of."""
STATISTICS = {
    "proportion": "Proportion",
    "risk-difference": "Risk difference",
    "risk-difference-by-child": "Risk difference, bootstrap by child",
    "risk-ratio": "Risk ratio",
    "odds-ratio": "Odds ratio",
    "fisher-p": "p by Fisher's exact test",
    "agreement": "Same answer",
    "kappa": "Kappa",
    "median": "Median, days",
    "retained": "on the drug",
    "failure": "stopped for inefficacy or an adverse event",
    "remission": "stopped in remission",
    "sufficient": "sufficient effect",
}
"""Statistics by name."""
MENTIONED = {
    "glucocorticoid": "Systemic glucocorticoid",
    "bisphosphonate": "Bisphosphonate",
    "laboratory": "Blood tests",
}
INTERVALS = {"wilson": "Wilson", "clopper-pearson": "Clopper–Pearson"}
SAID = {
    **INTERVALS,
    "descriptive: the same children in sequence": "",
    "every unit taken as independent, although courses cluster in children": "units taken as independent",
    "children drawn anew with all their courses": "children drawn with all their courses",
    "units weigh the same (independence working correlation)": "units weigh the same",
    "Cohen's kappa, large-sample interval": "large-sample interval",
    "not reached: more than half are left at the end": "not reached",
}
"""Methods and notes of statistics.csv that are said shorter here, or by the text of their section."""
SOURCES = {"judged": "judged", "reviewed": "reviewed", "derived": "derived"}
SHORT = {
    "etanercept": "ETN",
    "infliximab": "IFX",
    "adalimumab": "ADA",
    "golimumab": "GOL",
    "certolizumab pegol": "CZP",
}
"""TNF-α inhibitors as rheumatologists abbreviate them."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: caption, heads, and rows in parts that may have a name; `numeric` columns stand to the right."""

    caption: str
    heads: tuple[str, ...]
    parts: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure: its SVG, what to know of it, and the same figures as a table."""

    name: str
    svg: Markup
    caption: str
    grid: Grid | None = None
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page: heading, paragraphs before, charts, tables."""

    name: str
    title: str
    intro: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    grids: tuple[Grid, ...] = field(default=())


Draw = Callable[[str, str, str], str]


def _chart(
    name: str, title: str, description: str, caption: str, draw: Draw, grid: Grid | None = None, heading: str = ""
) -> Chart:
    """Draw a chart; its SVG is escaped where it was made."""
    charts.load()
    return Chart(name, Markup(readable(draw(name, title, description))), caption, grid, heading)  # noqa: S704


def _grid(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> Grid:
    return Grid(caption, tuple(heads), (("", tuple(tuple(row) for row in rows)),), frozenset(numeric))


def _share(t: Texts, value: float | None) -> str:
    return "–" if value is None else t.number(round_half_away(100 * value, PERCENT_DECIMALS))


def _limits(t: Texts, low: float | None, high: float | None, scale: float = 100, decimals: int = 1) -> str:
    if low is None or high is None:
        return "–"
    ends = [_rounded(scale * end, decimals) for end in (low, high)]
    return t.number(t("{low} to {high}", low=ends[0], high=ends[1]) if ends[0][0] == "-" else "–".join(ends))


def _rounded(value: float, decimals: int) -> str:
    return round_half_away(value, decimals) if isfinite(value) else ("∞" if value > 0 else "-∞")


# ---- attrition ----


def attrition_chart(t: Texts, parts: Mapping[str, Sequence[tuple[str, str, int, int]]]) -> Chart | None:
    """The way of the patients: steps in order, each with who was left out. The table of all steps stands beside it."""
    rows = parts.get("Patients", ())
    steps: list[charts.Step] = []
    for name, reason, dropped, kept in rows:
        gone = (f"{t(reason)}: {dropped}",) if dropped else ()
        if steps and steps[-1].name == t(name):
            steps[-1] = charts.Step(t(name), str(kept), (*steps[-1].dropped, *gone))
        else:
            steps.append(charts.Step(t(name), str(kept), gone))
    if not steps:
        return None
    said = "; ".join(f"{step.name} {step.kept}" for step in steps)
    return _chart(
        "chart-attrition",
        t("From the records to the cohort"),
        t("Flow of patients through the criteria, from top to bottom: {steps}.", steps=said),
        t("How many remained at each step, and on the right who was left out and why."),
        partial(charts.draw_flow, steps=steps),
    )


# ---- effects ----


def _effect(t: Texts, name: str, row: Result, *, strong: bool = False) -> charts.Effect:
    share = percent(row)
    ends = interval(row)
    return charts.Effect(
        name,
        f"{row.n}/{row.N}",
        t.number(f"{share} % ({ends})") if share and ends else "–",
        100 * row.proportion if row.proportion is not None and ends else None,
        100 * (row.ci_low or 0.0),
        100 * (row.ci_high or 0.0),
        row.N or 0,
        strong,
    )


def _heads(t: Texts) -> tuple[str, str, str]:
    return "n/N", t("% (95 % CI)"), t("percent with the effect")


def effects_chart(t: Texts, figures: Figures) -> Chart | None:
    """Forest plot of the treatment table; only of rows that are shown in full."""
    units = {"patient": "patients", "course": "courses", "MRI-evaluated course": "courses with MRI"}
    rows = [(name, row) for group, name in TREATMENT_GROUPS.items() if (row := figures.overall(group))]
    effects = [
        _effect(t, f"{t(name)}\n({t(units.get(row.unit, row.unit))})", row) for name, row in rows if not row.masked
    ]
    if not any(one.point is not None for one in effects):
        return None
    said = "; ".join(f"{one.name}: {one.counts}, {one.share}" for one in effects).replace("\n", " ")
    return _chart(
        "chart-effects",
        t("Treatment effect with confidence intervals"),
        said,
        t(
            "Squares: proportion with the effect, larger where more were counted. Lines: 95 % confidence interval. The rows do not compare treatments: one child may stand in several of them."
        ),
        partial(charts.draw_forest, effects=effects, heads=_heads(t)),
    )


def strata_charts(t: Texts, figures: Figures, stratum: Callable[[str, str], str]) -> Iterator[Chart]:
    """One forest plot a treatment group, by all that divides it; `stratum` gives the name of a stratum."""
    for group, name in TREATMENT_GROUPS.items():
        whole = figures.overall(group)
        if whole is None or whole.masked or not whole.N:
            continue
        effects = [_effect(t, t("All"), whole, strong=True)]
        for key in figures.stratifiers(group):
            rows = [row for row in figures.strata(group, key) if row.N and not row.masked]
            if len(rows) > 1:
                effects.append(charts.Effect(t(STRATIFIERS.get(key, key)), strong=True))
                effects += [_effect(t, stratum(key, row.stratum), row) for row in rows]
        if len(effects) > 1:
            said = "; ".join(f"{one.name} {one.counts} {one.share}" for one in effects if one.counts)
            yield _chart(
                f"chart-strata-{group}",
                t(name),
                said,
                "",
                partial(charts.draw_forest, effects=effects, heads=_heads(t)),
                heading=t(name),
            )


# ---- estimates as they are ----


def _of(estimates: Iterable[Estimate], analysis: str) -> list[Estimate]:
    return [one for one in estimates if one.analysis == analysis]


def _value(t: Texts, one: Estimate) -> tuple[str, str]:
    """Value and interval of an estimate, in the unit that its statistic has."""
    if one.value is None:
        return "–", "–"
    match one.statistic:
        case "fisher-p":
            return t.number(round_half_away(one.value, 4) if one.value >= 5e-5 else "< 0.0001"), "–"
        case "risk-difference" | "risk-difference-by-child":
            return t.number(_rounded(100 * one.value, 1)), _limits(t, one.low, one.high)
        case "risk-ratio" | "odds-ratio" | "kappa":
            return t.number(_rounded(one.value, 2)), _limits(t, one.low, one.high, 1, 2)
        case "median":
            return _rounded(one.value, 0), _limits(t, one.low, one.high, 1, 0)
    return _share(t, one.value), _limits(t, one.low, one.high)


def _counts(one: Estimate) -> str:
    if one.n is None:
        return "–" if one.N is None else str(one.N)
    return str(one.n) if one.N is None else f"{one.n}/{one.N}"


def _estimates(t: Texts, caption: str, rows: Sequence[Estimate]) -> Grid:
    """Estimates as a table, in parts by what they are of; what is to be said of every row is said once."""
    parts: dict[str, list[tuple[str, ...]]] = {}
    notes = [
        [t(said) for part in (one.method, *one.note.split("; ")) if (said := SAID.get(part, part))] for one in rows
    ]
    shared = [part for part in notes[0] if all(part in own for own in notes)] if len(notes) > 1 else []
    if shared:
        caption = t("{caption} All rows: {notes}.", caption=caption, notes="; ".join(shared))
    for one, own in zip(rows, notes, strict=True):
        value, ends = _value(t, one)
        name = t(STATISTICS.get(one.statistic, one.statistic))
        if one.stratum:
            name += f": {_stratum(t, one.stratum)}"
        about = "; ".join(part for part in own if part not in shared)
        parts.setdefault(t(GROUPS.get(one.group, one.group)), []).append((name, _counts(one), value, ends, about))
    return Grid(
        caption,
        (t("Statistic"), "n/N", t("Value"), t("95 % CI"), t("Method and note")),
        tuple((part, tuple(lines)) for part, lines in parts.items()),
        frozenset((1, 2, 3)),
    )


def _stratum(t: Texts, stratum: str) -> str:
    """An agent, a class, or two sources of the effect."""
    pair = stratum.split("-")
    if len(pair) == 2 and set(pair) <= set(SOURCES):
        return t("{one} and {other}", one=t(SOURCES[pair[0]]), other=t(SOURCES[pair[1]]))
    return t(GROUPS.get(stratum, stratum))


def comparison_section(t: Texts, estimates: Sequence[Estimate]) -> Section | None:
    """Methotrexate against TNF-α inhibitors, as what it is: a description."""
    rows = _of(estimates, "comparison")
    if not rows:
        return None
    return Section(
        "comparison",
        t("Methotrexate and TNF-α inhibitors side by side"),
        (
            t(
                "Descriptive only, no estimate of a causal effect: the same children had first the one and then the other, and a TNF-α inhibitor was given to those in whom methotrexate did not suffice. Methotrexate is counted by patient, TNF-α inhibitors by course."
            ),
        ),
        grids=(
            _estimates(
                t,
                t(
                    "TNF-α inhibitors against methotrexate. Proportions in percent, risk differences in percentage points; a difference above 0 and a ratio above 1 are in favour of TNF-α inhibitors."
                ),
                rows,
            ),
        ),
    )


def agreement_section(t: Texts, estimates: Sequence[Estimate]) -> Section | None:
    """How far the sources of the effect agree, where two of them judge the same course."""
    rows = _of(estimates, "agreement")
    if not rows:
        return None
    both = [row for row in rows if row.N]
    none = t("No course is judged by more than one source.")
    caption = t(
        "Judged: in the records. Reviewed: in the review worksheet. Derived: from scores and MRI. Agreement in percent; kappa: 1 is full agreement, 0 what chance alone would give."
    )
    title = t("Agreement between the sources of the effect")
    return Section("agreement", title, () if both else (none,), grids=(_estimates(t, caption, both),) if both else ())


# ---- curves ----


def _named(t: Texts, one: Estimate, *, statistics: bool) -> str:
    if statistics:
        return t(STATISTICS.get(one.statistic, one.statistic))
    return t(one.stratum) if one.stratum else t(GROUPS.get(one.group, one.group))


def _ticks(t: Texts, last: int) -> dict[int, str]:
    """The days at which a curve is told, by year: of short curves every half year, of long ones every other."""
    step = 0.5 if last <= 2 * YEAR else 1 if last <= 8 * YEAR else 2
    years = [step * i for i in range(max(1, ceil(last / YEAR / step)) + 1)]
    return {round(year * YEAR): t.number(f"{year:g}") for year in years}


def _curve(name: str, rows: Sequence[Estimate], ticks: Iterable[int]) -> charts.Curve:
    points = tuple(
        (
            row.time or 0,
            100 * (row.value or 0.0),
            None if row.low is None else 100 * row.low,
            None if row.high is None else 100 * row.high,
        )
        for row in rows
        if row.value is not None
    )
    at_risk = [(tick, found) for tick in ticks if (found := _at_risk(rows, tick)) is not None]
    return charts.Curve(name, points, tuple(at_risk))


def _at_risk(rows: Sequence[Estimate], tick: int) -> int | None:
    """How many are still followed at a day: at risk at the next row of the curve; None beyond the last one."""
    return next((row.n for row in rows if (row.time or 0) >= tick), None)


def _at(rows: Sequence[Estimate], tick: int) -> Estimate | None:
    return next((row for row in reversed(rows) if (row.time or 0) <= tick), None)


def curves_section(
    t: Texts,
    estimates: Sequence[Estimate],
    analysis: str,
    title: str,
    intro: Sequence[str],
    axis: str,
    *,
    from_zero: bool,
) -> Section | None:
    """Curves of one analysis: by class, and by whatever else they are cut by; the rest of its rows as a table."""
    rows = _of(estimates, analysis)
    series: dict[tuple[str, str, str], list[Estimate]] = defaultdict(list)
    for row in rows:
        if row.time is not None:
            series[row.group, row.stratum, row.statistic].append(row)
    several = len({row.statistic for row in rows if row.time is not None}) > 1
    found: list[Chart] = []
    panels: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for key, own in series.items():
        own.sort(key=lambda row: row.time or 0)
        panel = _panel(key, several=several)
        if panel is not None and any(row.value is not None for row in own):
            panels[panel].append(key)
    for number, (panel, keys) in enumerate(panels.items(), start=1):
        found.append(
            _curves_chart(
                t,
                f"chart-{analysis}-{number}",
                title,
                panel,
                {key: series[key] for key in keys},
                axis,
                several=several,
                from_zero=from_zero,
            )
        )
    strata = {(row.group, row.stratum) for row in rows}
    alone = {group for group, _ in strata if sum(g == group for g, _ in strata) <= 2}  # one agent is its whole class
    rest = [row for row in rows if row.time is None and not (row.stratum and row.group in alone)]
    if not found and not rest:
        return None
    grids = (
        (_estimates(t, t("Median time to the event of the curve. n: courses with the event, N: all courses."), rest),)
        if rest
        else ()
    )
    return Section(analysis, title, tuple(intro), tuple(found), grids)


def _panel(key: tuple[str, str, str], *, several: bool) -> str | None:
    """Which curves stand in one chart: all classes together, the agents of TNF-α inhibitors apart, causes by class."""
    group, stratum, _ = key
    if stratum:
        return group if group == "tnfi" and not several else None
    return group if several else ""


def _curves_chart(
    t: Texts,
    name: str,
    title: str,
    panel: str,
    series: Mapping[tuple[str, str, str], Sequence[Estimate]],
    axis: str,
    *,
    several: bool,
    from_zero: bool,
) -> Chart:
    ticks = _ticks(t, max((rows[-1].time or 0) for rows in series.values()))
    curves = [_curve(_named(t, rows[0], statistics=several), rows, ticks) for rows in series.values()]
    lines = []
    for curve, rows in zip(curves, series.values(), strict=True):
        for tick, risk in curve.at_risk:
            at = _at(rows, tick)
            value = (0.0 if from_zero else 1.0) if at is None else at.value
            ends = "–" if at is None or at.low == at.high else _limits(t, at.low, at.high)  # before any event
            lines.append((curve.name, ticks[tick], str(risk), _share(t, value), ends))
    head = t(GROUPS.get(panel, panel)) if panel else ""
    if head and not several:
        head = t("{name} by agent", name=head)
    full = f"{title}: {head}" if head else title
    said = "; ".join(t("{name}, year {year}: {share} %", name=n, year=y, share=s) for n, y, _, s, _ in lines)
    return _chart(
        name,
        full,
        said,
        "",
        partial(
            charts.draw_curves,
            curves=curves,
            axes_names=(t("years since the start of the course"), axis),
            at_risk=t("At risk"),
            ticks=ticks,
            from_zero=from_zero,
        ),
        _grid(full, (t("Curve"), t("Year"), t("At risk"), "%", t("95 % CI")), lines, (1, 2, 3, 4)),
        heading=head,
    )


# ---- timelines ----


def timelines_section(t: Texts, timelines: Sequence[Timeline]) -> Section | None:
    """One row a child; of many children, some, picked evenly by length of follow-up."""
    if not timelines:
        return None
    ordered = sorted(timelines, key=lambda child: (_class_order(child), -child.followed, child.label))
    chosen = ordered
    if len(ordered) > CHILDREN_SHOWN:
        picked = [ordered[i * len(ordered) // CHILDREN_SHOWN] for i in range(CHILDREN_SHOWN)]
        chosen = picked
    lanes = [_lane(t, child) for child in chosen]
    looks = {_look(bar.drug_class) for child in chosen for bar in child.bars}
    legend = {look: t(CLASSES[look] if look else "Other treatment") for look in charts.LOOKS if look in looks}
    kinds = {kind for lane in lanes for _, _, kind in lane.marks}
    names = {**EFFECTS, "mri": "MRI study"}
    legend |= {kind: t(names[kind]) for kind in charts.MARKS if kind in kinds}
    drawn = {span.stop for lane in lanes for span in lane.spans}
    letters = ", ".join(f"{t(letter)} {t(words)}" for words, letter in STOPS.values() if letter and t(letter) in drawn)
    agents = sorted({bar.agent for child in chosen for bar in child.bars if bar.drug_class == "TNF"})
    short = ", ".join(f"{_short(agent)} {t(agent)}" for agent in agents)
    told = [
        t(
            "Each row is one child, named by a number that stands in no record; the thin line is the time observed since the diagnosis. The number in a bar is the line: 1 is the first TNF-α inhibitor of the child."
        )
    ]
    if short:
        told.append(t("Drugs: {agents}.", agents=short))
    if letters:
        told.append(
            t("Letters at the end of a course say why it stopped: {letters}. An arrow: ongoing.", letters=letters)
        )
    if len(chosen) < len(timelines):
        told.append(
            t(
                "{shown} of {all} children are shown, picked evenly by treatment and length of follow-up; {rest} are not shown. All courses are in cohort/courses.parquet.",
                shown=len(chosen),
                all=len(timelines),
                rest=len(timelines) - len(chosen),
            )
        )
    grid = _grid(
        t("The courses of the chart. Years are since the diagnosis."),
        (t("Child"), t("Treatment"), t("Line"), t("From year"), t("To year"), t("Effect"), t("Stopped for")),
        [
            (
                child.label,
                t(bar.agent),
                str(bar.line) if bar.line is not None and bar.drug_class == "TNF" else "–",
                t.number(_rounded(bar.start / YEAR, 1)),
                t.number(_rounded(bar.end / YEAR, 1)),
                t(EFFECTS.get(bar.effect or "", bar.effect or "–")),
                t(
                    STOPS["ongoing" if bar.ongoing else bar.stop_reason][0]
                    if bar.stop_reason in STOPS
                    else bar.stop_reason
                ),
            )
            for child in chosen
            for bar in sorted(child.bars, key=lambda bar: (bar.start, bar.agent))
        ],
        (2, 3, 4),
    )
    chart = _chart(
        "chart-courses",
        t("Treatment of each child"),
        t(
            "Horizontal bars for {children} children and {courses} courses over years since the diagnosis; the table below gives each course.",
            children=len(chosen),
            courses=sum(len(c.bars) for c in chosen),
        ),
        " ".join(told),
        partial(charts.draw_timelines, lanes=lanes, legend=legend, axis=t("years since the diagnosis")),
        grid,
    )
    return Section("courses", t("Treatment of each child"), charts=(chart,))


def _look(drug_class: str) -> str:
    """The look of a class in the chart."""
    return drug_class if drug_class in charts.LOOKS else ""


def _class_order(child: Timeline) -> int:
    """Those with most lines of TNF-α inhibitors first, then methotrexate, then the others."""
    lines = max((bar.line or 1 for bar in child.bars if bar.drug_class == "TNF"), default=0)
    return -10 * lines - any(bar.drug_class == "MTX" for bar in child.bars)


def _short(agent: str) -> str:
    return SHORT.get(agent, agent[:3].upper())


def _lane(t: Texts, child: Timeline) -> charts.Lane:
    only = all(_track(bar) == 0 for bar in child.bars)
    spans = tuple(
        charts.Span(
            bar.start / YEAR,
            max(bar.end, bar.start + 1) / YEAR,
            _track(bar),
            _look(bar.drug_class),
            (f"{bar.line} " if bar.line is not None else "") + _short(bar.agent) if bar.drug_class == "TNF" else "",
            t(STOPS.get(bar.stop_reason, ("", "?"))[1])
            if not bar.ongoing and (only or _track(bar)) and bar.drug_class != "GC"
            else "",
            bar.ongoing,
        )
        for bar in child.bars
    )
    marks = []
    for day, kind, value in child.marks:
        shown = value if value in charts.MARKS else "mri" if kind != "clinical" else ""
        if shown:
            clinical = shown in ("sufficient", "insufficient")
            marks.append((day / YEAR, _judged(child, day, value) if clinical else charts.ON_FOLLOW_UP, shown))
    return charts.Lane(child.label, child.followed / YEAR, spans, tuple(marks))


def _track(bar: Bar) -> int:
    if bar.drug_class in ("NSAID", "GC"):
        return 0
    return 1 if bar.drug_class in ("MTX", "BP", "SSZ", "CSDMARD") else 2


def _judged(child: Timeline, day: int, value: str) -> int:
    """In which lane a judgement is drawn: that of the course which was running and has this effect, else of any running."""
    running = [bar for bar in child.bars if bar.start < day <= bar.end + 180 and bar.drug_class != "GC"]
    of_value = [bar for bar in running if bar.effect == value] or running
    nearest = max(of_value, key=lambda bar: (bar.end >= day, _track(bar), bar.start), default=None)
    return 2 if nearest is None else _track(nearest)


# ---- switches ----


def switch_section(t: Texts, estimates: Sequence[Estimate]) -> Section | None:
    """What followed each line of TNF-α inhibitors, and why."""
    rows = [one for one in _of(estimates, "switch") if one.n]
    if not rows:
        return None
    flows = [(*one.stratum.partition(">")[::2], one.statistic, one.n or 0) for one in rows]
    flows, back = [f for f in flows if _is_onward(f)], [f for f in flows if not _is_onward(f)]
    reasons = [reason for reason in STOPS if any(r == reason for _, _, r, _ in flows)]
    columns: dict[int, list[str]] = defaultdict(list)
    names: dict[str, str] = {}
    drawn = []
    for source in sorted({node for f in flows for node in f[:2] if node.isdigit()}, key=int):
        columns[int(source)].append(source)
        names[source] = _node(t, source)
    for source, target, reason, n in flows:
        node = target if target.isdigit() else f"{source}>{target}"
        if node not in names:
            columns[int(source) + 1].append(node)
            names[node] = _node(t, target)
        drawn.append(charts.Flow(source, node, n, reasons.index(reason)))
    order = [columns[i] for i in sorted(columns)]
    legend = [t(STOPS[reason][0]) for reason in reasons]
    grid = _grid(
        t("From each line to what followed, and the reason recorded."),
        (t("From"), t("To"), t("Reason"), "n"),
        [(_node(t, s), _back(t, s, g), t(STOPS[r][0]), str(n)) for s, g, r, n in (*flows, *back)],
        (3,),
    )
    said = "; ".join(f"{a} → {b} ({c}): {n}" for a, b, c, n in grid.parts[0][1])
    told = [
        t(
            "Courses, line by line: what followed each. Bands are as thick as the number that took this way; their hatching is the reason recorded for the end of the course."
        )
    ]
    if back:
        told.append(t("Re-starts and returns to an earlier drug stand in the table only."))
    chart = _chart(
        "chart-switches",
        t("Switches of TNF-α inhibitor"),
        said,
        " ".join(told),
        partial(charts.draw_sankey, columns=order, flows=drawn, names=names, legend=legend),
        grid,
    )
    return Section("switches", t("Switches of TNF-α inhibitor"), charts=(chart,))


def _is_onward(flow: tuple[str, str, str, int]) -> bool:
    source, target, _, _ = flow
    return not target.isdigit() or int(target) > int(source)


def _node(t: Texts, name: str) -> str:
    return t(f"Line {name}") if name.isdigit() else t(name[:1].upper() + name[1:])


def _back(t: Texts, source: str, target: str) -> str:
    if source == target:
        return t("the same drug again, after a break")
    if target.isdigit() and int(target) < int(source):
        return t(f"back to the drug of line {target}")
    return _node(t, target)


# ---- trends ----


def trends_section(t: Texts, trends: Sequence[Trend]) -> Section | None:
    """Laboratory values, scores and lesions by months since the first TNF-α inhibitor, else methotrexate."""
    by_analyte: dict[tuple[str, str], list[Trend]] = defaultdict(list)
    for trend in trends:
        by_analyte[trend.analyte, trend.unit].append(trend)
    if not by_analyte:
        return None
    order = list(ANALYTES)
    keys = sorted(by_analyte, key=lambda k: (order.index(k[0]) if k[0] in order else len(order), k))
    panels, parts = [], []
    hidden = False
    for analyte, unit in keys:
        own = sorted(by_analyte[analyte, unit], key=lambda trend: trend.label)
        measured = "number" if analyte.endswith("lesion-count") else UNITS.get(unit, unit)
        title = f"{t(ANALYTES.get(analyte, analyte))} ({t(measured)})"
        rows = _periods(t, own)
        medians = tuple((max(start, -12), end, middle) for _, start, end, middle in rows)
        parts.append((title, tuple(cells for cells, _, _, _ in rows)))
        hidden |= len(own) > LINES_SHOWN
        lines = own[:: max(1, ceil(len(own) / LINES_SHOWN))]
        panels.append(
            charts.Panel(
                title,
                tuple(tuple((day / MONTH, value) for day, value in sorted(one.points)) for one in lines),
                medians,
            )
        )
    grid = Grid(
        t("Median of the last value of each child in the period; quartiles where four children or more have one."),
        (t("Months since the start"), t("Children"), t("Median"), t("Quartiles")),
        tuple(parts),
        frozenset((1, 2, 3)),
    )
    told = t(
        "Month 0 is the start of the first TNF-α inhibitor or, in children without one, of methotrexate. Thin lines: single children. Thick bars: median of the last value of each child in the period they span. Who was measured changes from period to period."
    )
    if hidden:
        told += " " + t(
            "Of more than {shown} children only some lines are drawn; the medians are of all.", shown=LINES_SHOWN
        )
    chart = _chart(
        "chart-trends",
        t("MRI, laboratory values and scores over time"),
        t(
            "Small charts of {analytes}; the table below gives the medians.",
            analytes=", ".join(panel.title for panel in panels),
        ),
        told,
        partial(
            charts.draw_trends,
            panels=panels,
            window=(-12, 36),
            names=(t("months since the start of treatment"), t("median")),
        ),
        grid,
    )
    return Section("trends", t("MRI, laboratory values and scores over time"), charts=(chart,))


def _periods(t: Texts, trends: Sequence[Trend]) -> list[tuple[tuple[str, ...], float, float, float]]:
    """Each period with values: its row of the table, its ends and its median."""
    found: list[tuple[tuple[str, ...], float, float, float]] = []
    for start, end in PERIODS:
        values = [
            own[-1]
            for trend in trends
            if (own := [value for day, value in sorted(trend.points) if start < day / MONTH <= end])
        ]
        if not values:
            continue
        middle = float(median(values))
        spread = "–"
        if len(values) >= 4:
            low, _, high = quantiles(values, n=4, method="inclusive")
            spread = t.number(f"{_rounded(low, 1)}–{_rounded(high, 1)}")
        name = t("up to the start") if start < 0 else f"{start:g}–{end:g}"
        cells = (name, str(len(values)), t.number(_rounded(middle, 1)), spread)
        found.append((cells, start, end, middle))
    return found


# ---- sensitivity and readings ----


def sensitivity_section(
    t: Texts, estimates: Sequence[Estimate], figures: Figures, rule: Callable[[str, str], tuple[str, str]]
) -> Section | None:
    """Each headline figure with one rule changed at a time; `rule` gives the names of a parameter and its value."""
    rows = _of(estimates, "sensitivity")
    if not rows:
        return None
    parts: list[charts.Bars] = []
    table: list[tuple[str, tuple[tuple[str, ...], ...]]] = []
    tried: dict[str, dict[str, None]] = {}
    for group in dict.fromkeys(row.group for row in rows):
        whole = figures.overall(group)
        base = whole.proportion if whole else None
        title = t(GROUPS.get(group, group))
        by_rule: dict[str, list[tuple[str, float]]] = defaultdict(list)
        lines: list[tuple[str, ...]] = []
        if whole is not None:
            lines.append(
                (
                    t("As in the first table"),
                    "–",
                    f"{whole.n}/{whole.N}",
                    _share(t, base),
                    t.number(interval(whole)) or "–",
                )
            )
        for row in sorted((row for row in rows if row.group == group and row.stratum), key=_by_rule):
            name, value = rule(*row.stratum.partition("=")[::2])
            tried.setdefault(name, {})[value] = None
            if whole is None or (row.n, row.N) != (whole.n, whole.N):
                lines.append((name, value, _counts(row), _share(t, row.value), _limits(t, row.low, row.high)))
            if row.value is not None:
                by_rule[name].append((value, 100 * row.value))
        table.append((title, tuple(lines)))
        if base is not None:
            spans = {name: max(abs(share - 100 * base) for _, share in values) for name, values in by_rule.items()}
            moved = sorted((name for name in spans if spans[name] > 1e-9), key=lambda name: (-spans[name], name))
            parts.append(charts.Bars(title, 100 * base, tuple((name, tuple(by_rule[name])) for name in moved)))
    grid = Grid(
        t(
            "Each figure as it becomes with one rule changed and all others as in the first table; what changes nothing is not listed. Tried: {rules}.",
            rules="; ".join(f"{name}: {', '.join(values)}" for name, values in tried.items()),
        ),
        (t("Rule"), t("Value"), "n/N", "%", t("95 % CI")),
        tuple(table),
        frozenset((1, 2, 3, 4)),
    )
    said = "; ".join(f"{name}: " + ", ".join(f"{r[0]} {r[1]} {r[2]}" for r in lines) for name, lines in table)
    shown = [part for part in parts if part.rules]
    chart = (
        (
            _chart(
                "chart-sensitivity",
                t("What the choice of rules changes"),
                said,
                t(
                    "Bars reach from the least to the greatest percentage that a rule gives, beside them the value of the rule; the line is the figure of the first table. A rule that changes nothing has no bar."
                ),
                partial(charts.draw_tornado, parts=shown, axis=t("percent with the effect")),
                grid,
            ),
        )
        if shown
        else ()
    )
    return Section(
        "sensitivity",
        t("What the choice of rules changes"),
        () if shown else (t("No rule that was tried changes a figure."),),
        chart,
        () if shown else (grid,),
    )


def _by_rule(row: Estimate) -> tuple[str, float, str]:
    """The order of a rule and its value, numbers by their size."""
    name, _, value = row.stratum.partition("=")
    return name, float(value) if value.isdigit() else 0.0, value


def flags_grid(t: Texts, estimates: Sequence[Estimate]) -> Grid | None:
    """How many courses have what a reader should know of them; None where none has."""
    rows = [(t(FLAGS.get(one.statistic, one.statistic)), _counts(one)) for one in _of(estimates, "flag") if one.n]
    caption = t(
        "What to know of the courses, those out of the figures included; each is named by the flags of cohort/courses.parquet."
    )
    return _grid(caption, (t("Courses"), "n/N"), sorted(rows), (1,)) if rows else None


def reading_grids(t: Texts, estimates: Sequence[Estimate]) -> Iterator[Grid]:
    """All ways to count the treatments with TNF-α inhibitors; and children with what is mentioned without a figure."""
    readings = [
        (f"{t(one.note or one.statistic)}{f' ({_node(t, one.stratum)})' if one.stratum else ''}", _counts(one))
        for one in _of(estimates, "reading")
    ]
    if readings:
        caption = t("Ways to count the treatments with TNF-α inhibitors: a published number may mean any of them.")
        yield _grid(caption, (t("What is counted"), "n/N"), readings, (1,))
    mentioned = [
        (
            t(MENTIONED.get(one.group, one.group))
            + (f": {t(ANALYTES.get(one.stratum, one.stratum))}" if one.stratum else ""),
            t(one.note),
            _counts(one),
        )
        for one in _of(estimates, "mentioned")
    ]
    if mentioned:
        caption = t("What a description may mention without a figure.")
        yield _grid(caption, (t("Treatment or test"), t("What is counted"), "n/N"), mentioned, (2,))
