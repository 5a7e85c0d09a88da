"""An Analysis in the form that `metrics` gives it, made plainly of the tables of a cohort or of random numbers.

It is there for what is drawn of it: the figures are those of a reader with a pencil, without intervals that need a library.
"""

import random
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq

from crmo_fhir.metrics.statistics import wilson
from crmo_fhir.model.results import Analysis, Bar, Estimate, Timeline, Trend

CLASSES = {"NSAID": "nsaid", "MTX": "mtx", "TNF": "tnfi"}
FAILURES = ("inefficacy", "adverse_event", "both")
HEADLINES = {
    "nsaid-clinical": (7, 25),
    "mtx-clinical": (3, 18),
    "tnfi-clinical": (18, 31),
    "mtx-mri": (4, 9),
    "tnfi-mri": (11, 13),
}
YEAR = 365.25


def table(study: Path, name: str) -> list[dict]:
    return pq.read_table(study / "cohort" / f"{name}.parquet").to_pylist()


def of_study(study: Path) -> Analysis:
    """The analysis of a study that was extracted."""
    patients = sorted(table(study, "patients"), key=lambda p: (p["diagnosis_low"], p["person"]))
    label = {p["person"]: str(number) for number, p in enumerate(patients, start=1)}
    begun = {p["person"]: p["diagnosis_low"] for p in patients}
    until = {p["person"]: p["censored"] for p in patients}
    courses = [c for c in table(study, "courses") if c["left_out"] is None]
    bars, marks = defaultdict(list), defaultdict(list)
    for c in courses:
        end = c["end"] or until[c["person"]]
        bars[c["person"]].append(
            Bar(
                c["drug_class"],
                c["agent"],
                c["line_no"],
                (c["start"] - begun[c["person"]]).days,
                (end - begun[c["person"]]).days,
                c["stop_reason"] == "ongoing",
                c["effect"],
                c["stop_reason"],
            )
        )
    for a in table(study, "assessments"):
        marks[a["person"]].append(((a["date"] - begun[a["person"]]).days, a["kind"], a["value"]))
    for i in table(study, "imaging"):
        day = (i["date_low"] - begun[i["patient"]]).days
        marks[i["patient"]].append((day, "imaging", "whole-body" if i["whole_body"] else "regional"))
    timelines = tuple(
        Timeline(label[p], (until[p] - begun[p]).days, tuple(bars[p]), tuple(sorted(marks[p]))) for p in label
    )
    return Analysis(estimates(timelines), timelines, trends(study, courses, label))


def trends(study: Path, courses: list[dict], label: dict[str, str]) -> tuple[Trend, ...]:
    first = {}
    for c in courses:
        if c["drug_class"] in ("TNF", "MTX"):
            key = (c["drug_class"] != "TNF", c["start"])
            first[c["person"]] = min(first.get(c["person"], key), key)
    points = defaultdict(list)
    for lab in table(study, "labs"):
        if lab["patient"] in first:
            day = (lab["date_low"] - first[lab["patient"]][1]).days
            points[label[lab["patient"]], lab["analyte"], lab["unit"]].append((day, lab["value"]))
    return tuple(Trend(*key, tuple(sorted(found))) for key, found in sorted(points.items()))


def estimates(timelines: tuple[Timeline, ...]) -> tuple[Estimate, ...]:
    """Estimates of every analysis, of the courses in the timelines."""
    rows = []
    own = defaultdict(list)
    for child in timelines:
        for bar in child.bars:
            if bar.drug_class in CLASSES:
                own[CLASSES[bar.drug_class]].append(bar)
    for group, bars in own.items():
        agents = {"": bars} | {a: [b for b in bars if b.agent == a] for a in sorted({b.agent for b in bars})}
        for stratum, some in agents.items():
            failed = [(b.end - b.start, b.stop_reason in FAILURES and not b.ongoing) for b in some]
            better = [(b.end - b.start, b.stop_reason == "remission") for b in some]
            worked = [
                ((b.end - b.start) // 2 if b.effect == "sufficient" else b.end - b.start, b.effect == "sufficient")
                for b in some
            ]
            rows += curve("survival", group, "retained", stratum, failed)
            rows += curve("incidence", group, "failure", stratum, failed, turned=True)
            rows += curve("incidence", group, "remission", stratum, better, turned=True)
            rows += curve("response", group, "sufficient", stratum, worked, turned=True)
            rows.append(
                Estimate(
                    "survival",
                    group,
                    "median",
                    stratum,
                    None,
                    5,
                    len(some),
                    412.0,
                    200.0,
                    None,
                    "Brookmeyer-Crowley, log-log",
                    "the upper end is not reached",
                )
            )
    rows += switches(timelines)
    for kind, (a, b) in {"clinical": (18 / 31, 3 / 18), "mri": (11 / 13, 4 / 9)}.items():
        said = "descriptive: the same children in sequence"
        rows += [
            Estimate("comparison", kind, "proportion", "tnfi", None, 18, 31, a, *wilson(18, 31), "wilson", said),
            Estimate("comparison", kind, "proportion", "mtx", None, 3, 18, b, *wilson(3, 18), "wilson", said),
            Estimate("comparison", kind, "risk-difference", "", None, None, 49, a - b, 0.130, 0.603, "Newcombe", said),
            Estimate(
                "comparison",
                kind,
                "risk-difference-by-child",
                "",
                None,
                None,
                49,
                a - b,
                -0.1,
                0.6,
                "percentile bootstrap of 2000 samples",
                said,
            ),
            Estimate("comparison", kind, "risk-ratio", "", None, None, 49, a / b, 1.2, 10.2, "log", said),
            Estimate(
                "comparison",
                kind,
                "odds-ratio",
                "",
                None,
                None,
                49,
                None,
                None,
                None,
                "conditional, exact",
                "infinite: no failure among the one, or no success among the other",
            ),
            Estimate(
                "comparison", kind, "fisher-p", "", None, None, 49, 0.0069, None, None, "Fisher exact, two-sided", said
            ),
        ]
    for group, (n, total) in HEADLINES.items():
        rows.append(share("sensitivity", group, "", n, total))
        changed = (
            ("gap_days=30", n, total + 1),
            ("gap_days=180", n, total - 1),
            ("clinical_grace_days=0", n - 1, total),
            ("evaluability=worst", n, total + 4),
            ("evaluability=best", n + 4, total + 4),
            ("effect_source=derived", 0, 0),
            ("require_indication=True", n, total),
        )
        rows += [share("sensitivity", group, *one) for one in changed]
    rows += [
        Estimate("agreement", "tnfi-clinical", "agreement", "judged-derived", None, 9, 12, 0.75),
        Estimate(
            "agreement",
            "tnfi-clinical",
            "kappa",
            "judged-derived",
            None,
            None,
            12,
            0.41,
            -0.1,
            0.93,
            "Cohen's kappa, large-sample interval",
        ),
        Estimate("agreement", "mtx-mri", "kappa", "judged-reviewed", None, None, 0, note="no course has both"),
        Estimate(
            "reading",
            "tnfi",
            "courses",
            n=31,
            N=31,
            note="courses: a re-start after a break, or a return to an agent, counts again",
        ),
        Estimate("reading", "tnfi", "reached", "2", n=12, N=15, note="children who came to this line, or beyond it"),
        Estimate("mentioned", "glucocorticoid", "children", n=8, N=25, note="children with at least one course"),
        Estimate("mentioned", "laboratory", "children", "esr", n=25, N=25, note="children with at least one value"),
    ]
    return tuple(rows)


def share(analysis: str, group: str, stratum: str, n: int, total: int) -> Estimate:
    ends = wilson(n, total) if total else (None, None)
    note = "" if total else "no proportion: nothing to count (0/0)"
    return Estimate(
        analysis, group, "proportion", stratum, None, n, total, n / total if total else None, *ends, "wilson", note
    )


def curve(
    analysis: str, group: str, statistic: str, stratum: str, times: list[tuple[int, bool]], *, turned: bool = False
) -> list[Estimate]:
    """Kaplan and Meier by hand, at every event and every year."""
    rows, left = [], 1.0
    last = max((t for t, _ in times), default=0)
    days = {round(y * YEAR) for y in range(int(last / YEAR) + 1)} | {t for t, event in times if event}
    for day in sorted(days):
        at_risk = sum(t >= day for t, _ in times)
        events = sum(t == day and event for t, event in times)
        left *= 1 - events / at_risk if at_risk else 1.0
        value = 1 - left if turned else left
        half = 0.5 * (left * (1 - left) / max(at_risk, 1)) ** 0.5 * 3.92
        rows.append(
            Estimate(
                analysis,
                group,
                statistic,
                stratum,
                day,
                at_risk,
                len(times),
                value,
                max(0.0, value - half),
                min(1.0, value + half),
                "by hand",
            )
        )
    return rows


def switches(timelines: tuple[Timeline, ...]) -> list[Estimate]:
    flows = Counter()
    for child in timelines:
        own = sorted((b for b in child.bars if b.drug_class == "TNF"), key=lambda b: b.start)
        for one, two in pairwise([*own, None]):
            to = str(two.line) if two else "ongoing" if one.ongoing else "stopped"
            flows[f"{one.line}>{to}", one.stop_reason] += 1
    return [Estimate("switch", "tnfi", reason, way, n=n, N=n) for (way, reason), n in sorted(flows.items())]


def random_children(number: int, seed: int = 1) -> Analysis:
    """An analysis of so many children, some of whom changed their drug often."""
    draw = random.Random(seed)
    timelines, found = [], []
    for child in range(1, number + 1):
        day, bars, marks = draw.randint(-20, 40), [], []
        for drug_class, agents in (
            ("NSAID", ["naproxen", "ibuprofen"]),
            ("GC", ["prednisolone"]),
            ("MTX", ["methotrexate"]),
            ("TNF", ["etanercept", "infliximab", "adalimumab", "golimumab", "certolizumab pegol"]),
            ("BP", ["pamidronic acid"]),
            ("IL1", ["anakinra"]),
        ):
            if draw.random() < 0.35:
                break
            for line, agent in enumerate(agents[: draw.randint(1, len(agents))], start=1):
                length = draw.randint(20, 900)
                effect = draw.choice(["sufficient", "insufficient", None])
                reason = draw.choice(
                    ["inefficacy", "adverse_event", "both", "remission", "patient_choice", "other", "unknown"]
                )
                bars.append(Bar(drug_class, agent, line, day, day + length, False, effect, reason))
                if effect:
                    marks.append((day + length, "clinical", effect))
                marks.append((day + length // 2, "mri", draw.choice(["regression", "no-regression"])))
                day += length + draw.randint(0, 60)
        timelines.append(Timeline(str(child), day + 200, tuple(bars), tuple(marks)))
        for analyte, unit, top in (("esr", "mm/h", 60), ("crp", "mg/L", 40), ("lesion-count", "{score}", 6)):
            found.append(
                Trend(
                    str(child), analyte, unit, tuple((d, round(draw.random() * top, 1)) for d in range(-200, 1200, 90))
                )
            )
    return Analysis(estimates(tuple(timelines)), tuple(timelines), tuple(found))
