"""A reader who wants to know what a release hides. Written apart from the program: own parsing, own relations, own solving.

`read(folder)` collects all that the files of a release say of any count, `Attack(reports, ...)` is what follows from it.
Names of counts are texts such as `mtx-clinical sex=female n`.
"""

import csv
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

UNRELEASED = re.compile("-(judged|reviewed|derived|best-ever|6-months)$")
"""Groups that no release has a row of, so that nothing of them can be told."""
MANY = 400
"""More than any count of these cohorts."""
SIGN = "[c]"
EFFECTS = ("nsaid-clinical", "mtx-clinical", "tnfi-clinical", "mtx-mri", "tnfi-mri")
HEADLINES = {
    "NSAID, sufficient clinical effect": "nsaid-clinical",
    "Methotrexate, sufficient clinical effect": "mtx-clinical",
    "TNF-α inhibitor, sufficient clinical effect": "tnfi-clinical",
    "Methotrexate, regression on MRI": "mtx-mri",
    "TNF-α inhibitor, regression on MRI": "tnfi-mri",
}
STRATIFIERS = {
    "Sex": "sex",
    "Focality": "focality",
    "SAPHO syndrome ever": "sapho",
    "SAPHO syndrome at diagnosis": "sapho-at-diagnosis",
    "Agent": "agent",
    "Line": "line",
    "Bone": "bone",
}
TABLE = {
    "Patients in the cohort": "cohort",
    "Foci": "foci",
    "Patients treated with a TNF-α inhibitor": "tnfi-lines",
    "Foci by bone": "foci bone",
    "Patients with a focus, by bone": "foci bone-patients",
    "TNF-α line reached": "tnfi-lines line-reached",
    "Last TNF-α line": "tnfi-lines line-ended",
    **{name: f"cohort {key}" for name, key in STRATIFIERS.items() if name.startswith(("Sex", "Foc", "SAPHO"))},
    **HEADLINES,
}
READINGS = {
    "Only those who received the drug": "exposed",
    "Worst case: not evaluable counted as no effect": "worst-case",
    "Best case: not evaluable counted as effect": "best-case",
    "Intention to treat: stopped for an adverse event before any judgement counted as no effect": "itt",
    "By patient: effect in any course": "patients",
}


@dataclass
class Said:
    """All that one release says: counts, shares (of two counts) as they are printed, and which counts it hides."""

    counts: dict[str, int] = field(default_factory=dict)
    shares: list[tuple[str, str, float, float]] = field(default_factory=list)
    nobody_unjudged: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    rows: list[str] = field(default_factory=list)
    figures: int = 0

    def count(self, name: str, text: str) -> None:
        """One count, as some file prints it."""
        self.figures += 1
        if text in ("", SIGN):
            return
        assert re.fullmatch(r"\d+", text), (name, text)
        assert self.counts.setdefault(name, int(text)) == int(text), f"{name} is told in two ways"

    def share(self, row: str, text: str, scale: float, decimals: int) -> None:
        """n/N of a row as a number; limits of an interval tell of n and N as well, but no more than this does."""
        self.figures += 1
        if text not in ("", SIGN, "–"):
            half = 0.5 * 10**-decimals * scale
            self.shares.append((f"{row} n", f"{row} N", float(text) * scale - half, float(text) * scale + half))


def name(group: str, stratifier: str = "", stratum: str = "") -> str:
    return f"{group} {stratifier}={stratum}" if stratifier else group


def read(folder: Path) -> Said:
    """What a release says in any of its files."""
    said = Said()
    read_results(folder / "results.csv", said)
    read_table(folder / "table1.csv", said)
    read_measure_report(folder / "measure-report.json", said)
    read_html(folder / "report.html", said)
    return said


def read_results(path: Path, said: Said) -> None:
    with path.open(encoding="utf-8", newline="") as text:
        for row in csv.DictReader(text):
            own = name(row["group"], row["stratifier"], row["stratum"])
            assert not UNRELEASED.search(own), f"{own}: no reader knows how it hangs together with the others"
            said.rows.append(own)
            for of in "nN":
                said.count(f"{own} {of}", row[of])
                if not row[of]:
                    said.hidden.add(f"{own} {of}")
            said.share(own, row["proportion"], 1.0, 12)
            if not (row["n"] and row["N"]):
                assert not row["ci_low"] + row["ci_high"], f"{own}: an interval of what is hidden"


def read_table(path: Path, said: Said) -> None:
    with path.open(encoding="utf-8", newline="") as text:
        for row in csv.DictReader(text):
            if row.get("id"):
                continue  # a published quantity: its figures are those of the other rows, checked by the tests of it
            quantity, _, stratum = row["quantity"].partition(": ")
            if row["quantity"] == "Foci per patient":
                said.count("foci n", row["n"])
                said.count("cohort n", row["N"])
                if row["mean"]:
                    said.shares.append(("foci n", "cohort n", float(row["mean"]) - 0.005, float(row["mean"]) + 0.005))
                continue
            group, _, stratifier = TABLE[quantity].partition(" ")
            own = name(group, stratifier, stratum)
            said.count(f"{own} n", row["n"])
            said.count(f"{own} N", row["N"])
            said.share(own, row["percent"], 0.01, 1)
            assert (row["ci_low_percent"] == "") == (row["percent"] == ""), own
            if row["not_evaluable"]:
                said.count(f"{group}-not-evaluable n", row["not_evaluable"])


def read_measure_report(path: Path, said: Said) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    for group in report["group"]:
        own = group["id"]
        first = {"nsaid-clinical": "nsaid-clinical N"}.get(own, f"{own}-treated n" if own in EFFECTS else f"{own} n")
        read_populations(group, own, first, said)
        for stratifier in group.get("stratifier", ()):
            key = stratifier["code"][0]["coding"][0]["code"]
            for stratum in stratifier.get("stratum", ()):
                row = name(own, key, stratum["value"]["text"])
                whole = f"{row} N" if own == "nsaid-clinical" else f"{row} treated"
                seen = read_populations(stratum, row, whole if own in EFFECTS else f"{row} n", said)
                if seen and own in EFFECTS and own != "nsaid-clinical":
                    said.nobody_unjudged.add(own)
    cells = Cells(report["text"]["div"])
    texts = {group["code"]["text"]: group["id"] for group in report["group"]}
    group = ""
    for row in cells.rows[1:]:
        if row[0] in texts:
            own = group = texts[row[0]]
            first = f"{own}-treated n" if own in EFFECTS[1:] else f"{own} N"
            said.count(first, row[5])
        else:
            stratifier, _, stratum = row[0].removeprefix("– ").partition(": ")
            own = name(group, STRATIFIERS[stratifier], stratum)
        said.count(f"{own} n", row[1])
        said.count(f"{own} N", row[2])
        said.share(own, row[3], 0.01, 1)


def read_populations(element: dict, row: str, first: str, said: Said) -> bool:
    """The counts of a group or stratum; whether its initial population is counted."""
    seen = False
    for population in element["population"]:
        code = population["code"]["coding"][0]["code"]
        target = {"initial-population": first, "denominator": f"{row} N", "numerator": f"{row} n"}[code]
        seen |= code == "initial-population"
        if "count" in population:
            said.count(target, str(population["count"]))
        else:
            assert population["_count"]["extension"][0]["valueCode"] == "masked", row
    if "measureScore" in element:
        said.share(row, repr(element["measureScore"]["value"]), 1.0, 12)
    return seen


class Cells(HTMLParser):
    """The rows of the tables of a page as texts, each with its heading; captions and definitions as well."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.texts: dict[str, list[str]] = defaultdict(list)
        self._stack: list[str] = []
        self._heading = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
            self.headings.append(self._heading)
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "h2":
            self._heading = ""
        elif tag in ("caption", "dd", "dt"):
            self.texts[tag].append("")
        elif tag == "br" and self.rows and ("td" in self._stack or "th" in self._stack):
            self.rows[-1][-1] += "|"
        if tag not in ("br", "meta"):
            self._stack.append(tag)

    def handle_endtag(self, tag):
        while self._stack and self._stack.pop() != tag:
            pass

    def handle_data(self, data):
        if "td" in self._stack or "th" in self._stack:
            self.rows[-1][-1] += data.strip("\n")
        for tag in ("caption", "dd", "dt"):
            if tag in self._stack:
                self.texts[tag][-1] += data
        if "h2" in self._stack:
            self._heading += data


def read_html(path: Path, said: Said) -> None:
    page = Cells(path.read_text(encoding="utf-8"))
    facts = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    children, *sexes = re.findall(r"(\[c\]|\d+)(?: (female|male|other|unknown))?", facts["Children"])
    said.count("cohort n", children[0])
    for count, sex in sexes:
        said.count(f"cohort sex={sex} n", count)
    captions = " ".join(page.texts["caption"])
    for pattern, target in (
        (r"(\[c\]|\d+) patients(?! treated)", "cohort n"),
        (r"(\[c\]|\d+) foci", "foci n"),
        (r"(\[c\]|\d+) patients treated with", "tnfi-lines n"),
    ):
        for count in re.findall(pattern, captions):
            said.count(target, count)
    for mean in re.findall(r": (\d+\.\d+) per patient", captions):
        said.shares.append(("foci n", "cohort n", float(mean) - 0.005, float(mean) + 0.005))
    part = ""
    for heading, row in zip(page.headings, page.rows, strict=True):
        if len(row) == 1:
            part = row[0]
        elif heading == "Treatment effect" and row[0].split("|")[0] in HEADLINES:
            own = HEADLINES[row[0].split("|")[0]]
            figures(said, own, row[2:6])
            if found := re.fullmatch(r"(\[c\]|\d+) of (\[c\]|\d+)", row[-1]):
                said.count(f"{own}-not-evaluable n", found[1])
                said.count(f"{own}-treated n", found[2])
        elif heading == "Cohort" and part and row[0] != "Patients":
            figures(said, name("cohort", STRATIFIERS[part], row[0]), row[1:5])
        elif heading == "Foci" and len(row) == 5 and row[0] != "n":
            figures(said, name("foci", "bone", row[0]), row[1:3])
            figures(said, name("foci", "bone-patients", row[0]), row[3:5])
        elif heading == "Lines of TNF-α inhibitors" and len(row) == 5:
            figures(said, name("tnfi-lines", "line-reached", row[0]), row[1:3])
            figures(said, name("tnfi-lines", "line-ended", row[0]), row[3:5])
        elif heading == "Effect by drug, line and patient" and row[0]:
            for group, cell in zip(EFFECTS, row[1:], strict=True):
                if cell:
                    own = name(group, STRATIFIERS[part], row[0])
                    pair, _, share = cell.partition("|")
                    n, _, whole = pair.partition("/")
                    said.count(f"{own} n", n)
                    said.count(f"{own} N", whole)
                    said.share(own, share.partition("\xa0")[0], 0.01, 1)
        elif heading == "Other ways of counting" and row[0]:
            own = next(group for label, group in HEADLINES.items() if label == part)
            reading = row[0].split("|")[0]
            suffix = "" if reading == "As in the first table" else f"-{READINGS[reading]}"
            figures(said, own + suffix, row[2:6])
        assert heading not in ("From the records to the cohort", "Data quality"), "small counts of no use to a reader"


def figures(said: Said, own: str, cells: list[str]) -> None:
    """n, N, percent and interval, or n and percent."""
    n, share = (cells[0], cells[2]) if len(cells) > 2 else cells
    said.count(f"{own} n", n)
    if len(cells) > 2:
        said.count(f"{own} N", cells[1])
        assert (cells[3] in ("", "–")) == (share in (SIGN, "–")), f"{own}: an interval without its percentage"
    said.share(own, share, 0.01, 1)


# ---- what follows ----


class Attack:
    """The counts behind one or more releases of one study, one after another, as far as they can be known.

    `rounding` is the base the releases say they round to; `grows`: the reader takes it that no count ever falls.
    """

    def __init__(self, *releases: Said, rounding: int = 0, grows: bool = False) -> None:
        self.releases, self.rounding = releases, rounding
        self._at: dict[str, int] = {}
        self._low: list[float] = []
        self._high: list[float] = []
        self._terms: list[tuple[int, int, float]] = []
        self._least: list[float] = []
        self._most: list[float] = []
        for number, said in enumerate(releases):
            self._release(f"{number} ", said)
        for number in range(1, len(releases)):
            for before in [key for key in self._at if key.startswith(f"{number - 1} ")]:
                after = f"{number} {before.partition(' ')[2]}"
                if grows and after in self._at and before.endswith((" n", " N")):
                    self._at_least({after: 1, before: -1})
        self._points: list[np.ndarray] = []
        self._solve = cache(self._solve)

    # -- relations --

    def _place(self, key: str) -> int:
        if key not in self._at:
            self._at[key] = len(self._at)
            self._low.append(0)
            self._high.append(MANY)
        return self._at[key]

    def _between(self, terms: dict[str, float], least: float, most: float) -> None:
        number = len(self._least)
        self._terms += [(number, self._place(key), factor) for key, factor in terms.items()]
        self._least.append(least)
        self._most.append(most)

    def _equal(self, one: str, *others: str) -> None:
        terms: dict[str, float] = defaultdict(float)
        terms[one] += 1
        for other in others:
            terms[other] -= 1
        self._between(terms, 0, 0)

    def _at_least(self, terms: dict[str, float], least: float = 0) -> None:
        self._between(terms, least, math.inf)

    def _some(self, key: str) -> None:
        self._low[self._place(key)] = max(1, self._low[self._place(key)])

    def _needs(self, one: str, other: str) -> None:
        """Without any of the other there is none of this one."""
        switch = f"{one} & {other} ?"
        self._high[self._place(switch)] = 1
        self._at_least({other: 1, switch: -1})
        self._at_least({switch: MANY, one: -1})

    def _release(self, r: str, said: Said) -> None:
        strata: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in said.rows:
            group, _, cut = row.partition(" ")
            if cut:
                strata[group][cut.partition("=")[0]].append(cut.partition("=")[2])
            self._at_least({f"{r}{row} N": 1, f"{r}{row} n": -1})
        self._counted(r, said)
        for group in ("cohort", "foci", "tnfi-lines", *(f"{g}-treated" for g in EFFECTS)):
            self._equal(f"{r}{group} n", f"{r}{group} N")
        for cut in ("sex", "focality", "sapho", "sapho-at-diagnosis"):
            self._equal(f"{r}cohort n", *(f"{r}cohort {cut}={v} n" for v in strata["cohort"][cut]))
            for value in strata["cohort"][cut]:
                self._equal(f"{r}cohort {cut}={value} N", f"{r}cohort n")
        self._sapho(r)
        self._bones(r, strata["foci"]["bone"])
        self._lines(r, strata["tnfi-lines"]["line-ended"])
        for group in (*EFFECTS, "nsaid-clinical-exposed"):
            for cut, values in strata[group].items():
                for of in "nN":
                    self._equal(f"{r}{group} {of}", *(f"{r}{group} {cut}={v} {of}" for v in values))
        self._readings(r)
        self._nsaid(r, strata)
        for group, children in (("mtx", "mtx-clinical-treated n"), ("tnfi", "tnfi-lines n")):
            self._at_least({f"{r}cohort n": 1, f"{r}{children}": -1})
            for kind in ("clinical", "mri"):
                if group == "tnfi" or kind == "mri":
                    self._at_least({f"{r}{group}-{kind}-treated n": 1, f"{r}{children}": -1})
                    self._needs(f"{r}{group}-{kind}-treated n", f"{r}{children}")
                self._treated(r, group, kind, strata[f"{group}-{kind}"], children)
        for group in said.nobody_unjudged:
            self._equal(f"{r}{group}-treated n", f"{r}{group} N")
        self._equal(f"{r}tnfi-clinical-treated n", f"{r}tnfi-mri-treated n")
        self._by_patient(r)

    def _counted(self, r: str, said: Said) -> None:
        spread = self.rounding / 2
        for key, count in said.counts.items():
            place = self._place(r + key)
            self._low[place] = max(self._low[place], count - spread if count else 0)
            self._high[place] = min(self._high[place], count + spread if count else 0)
        for n, whole, low, high in said.shares:
            if self.rounding:
                assert n in said.counts, n
                assert whole in said.counts, whole
            else:  # n lies between low and high times N
                self._at_least({r + n: 1, r + whole: -low}, -1e-6)
                self._at_least({r + whole: high, r + n: -1}, -1e-6)
                self._some(r + whole)

    def _sapho(self, r: str) -> None:
        ever, first = f"{r}cohort sapho=", f"{r}cohort sapho-at-diagnosis="
        self._at_least({f"{ever}yes n": 1, f"{first}yes n": -1, f"{first}unknown n": -1})
        self._at_least({f"{first}no n": 1, f"{ever}no n": -1})

    def _bones(self, r: str, bones: list[str]) -> None:
        one, several, none = (f"{r}cohort focality={v} n" for v in ("unifocal", "multifocal", "unknown"))
        self._equal(f"{r}foci n", *(f"{r}foci bone={b} n" for b in bones))
        for bone in bones:
            foci, children = f"{r}foci bone={bone} n", f"{r}foci bone-patients={bone} n"
            self._some(children)
            self._equal(f"{r}foci bone={bone} N", f"{r}foci n")
            self._equal(f"{r}foci bone-patients={bone} N", f"{r}cohort n")
            self._at_least({foci: 1, children: -1})
            self._at_least({children: 2, foci: -1})
            self._at_least({several: 1, children: 1, foci: -1})
            self._at_least({f"{r}cohort n": 1, none: -1, children: -1})
        self._at_least({f"{r}foci n": 1, one: -1, several: -2})
        self._at_least({**{f"{r}foci bone-patients={b} n": 1 for b in bones}, one: -1, several: -1})

    def _lines(self, r: str, lines: list[str]) -> None:
        for number, line in enumerate(lines):
            reached, ended = (f"{r}tnfi-lines line-{key}={line} n" for key in ("reached", "ended"))
            self._equal(reached, *(f"{r}tnfi-lines line-ended={later} n" for later in lines[number:]))
            for of in ("reached", "ended"):
                self._equal(f"{r}tnfi-lines line-{of}={line} N", f"{r}tnfi-lines n")
            if number == 0:
                self._equal(reached, f"{r}tnfi-lines n")
            if number == len(lines) - 1 and number > 2:
                self._some(ended)

    def _readings(self, r: str) -> None:
        for group in EFFECTS:
            own = f"{r}{group}"
            judged = f"{own} judged" if group == "nsaid-clinical" else f"{own} N"
            self._equal(f"{own}-treated n", judged, f"{own}-not-evaluable n")
            self._equal(f"{own}-treated n", f"{own}-not-evaluable N")
            self._at_least({judged: 1, f"{own} n": -1})
            if group.endswith("mri"):
                continue
            self._equal(f"{own}-worst-case n", f"{own} n")
            self._equal(f"{own}-itt n", f"{own} n")
            self._equal(f"{own}-best-case n", f"{own} n", f"{own}-not-evaluable n")
            self._equal(f"{own}-worst-case N", f"{own}-treated n")
            self._equal(f"{own}-best-case N", f"{own}-treated n")
            self._at_least({f"{own}-itt N": 1, judged: -1})
            self._at_least({f"{own}-treated n": 1, f"{own}-itt N": -1})

    def _nsaid(self, r: str, strata: dict[str, dict[str, list[str]]]) -> None:
        own, exposed = f"{r}nsaid-clinical", f"{r}nsaid-clinical-exposed"
        self._equal(f"{own} N", f"{r}cohort n")
        self._equal(f"{exposed} N", f"{own}-treated n")
        self._equal(f"{exposed} n", f"{own} n")
        self._at_least({f"{r}cohort n": 1, f"{own}-treated n": -1})
        for cut, values in strata["nsaid-clinical"].items():
            if cut in ("sex", "focality", "sapho"):
                for value in values:
                    self._equal(f"{own} {cut}={value} N", f"{r}cohort {cut}={value} n")
                    self._equal(f"{own} {cut}={value} n", f"{exposed} {cut}={value} n")
                    self._at_least({f"{own} {cut}={value} N": 1, f"{exposed} {cut}={value} N": -1})
                continue
            for value in values:
                self._some(f"{own} {cut}={value} N")
                if value == "none":
                    self._equal(f"{own} {cut}=none n")
                    self._equal(f"{r}cohort n", f"{own} {cut}=none N", f"{own}-treated n")
                else:
                    for of in "nN":
                        self._equal(f"{own} {cut}={value} {of}", f"{exposed} {cut}={value} {of}")
            if "none" not in values:
                self._equal(f"{r}cohort n", f"{own}-treated n")

    def _treated(self, r: str, drug: str, kind: str, cuts: dict[str, list[str]], children: str) -> None:
        """Treated units of each stratum: not printed, but there must be some numbers that fit."""
        counted = children if (drug, kind) == ("mtx", "clinical") else f"{drug}-{kind}-treated n"
        unit = {"mtx-clinical": "mtx children", "mtx-mri": "mtx courses"}.get(f"{drug}-{kind}", "tnfi courses")
        for cut, values in cuts.items():
            self._equal(f"{r}{counted}", *(f"{r}{unit} {cut}={v}" for v in values))
            of_child = cut in ("sex", "focality", "sapho")
            if of_child:
                self._equal(f"{r}{children}", *(f"{r}{drug} children {cut}={v}" for v in values))
            for value in values:
                treated, child = f"{r}{unit} {cut}={value}", f"{r}{drug} children {cut}={value}"
                self._at_least({treated: 1, f"{r}{drug}-{kind} {cut}={value} N": -1})
                if of_child:
                    self._at_least({f"{r}cohort {cut}={value} n": 1, child: -1})
                    if child != treated:
                        self._at_least({treated: 1, child: -1})
                        self._needs(treated, child)
                else:
                    if value == "unknown":  # it has a row even where nobody is in it
                        continue
                    self._some(treated)
                    if unit == "tnfi courses" and cut == "line":
                        unknown = {f"{r}{unit} {cut}=unknown": 1.0} if "unknown" in values else {}
                        self._at_least({treated: 1, **unknown, f"{r}tnfi-lines line-reached={value} n": -1})

    def _by_patient(self, r: str) -> None:
        """One child is at least one course, judged or not, with effect or without."""
        courses, child = f"{r}tnfi-clinical", f"{r}tnfi-clinical-patients"
        for of in "nN":
            self._at_least({f"{courses} {of}": 1, f"{child} {of}": -1})
            self._needs(f"{courses} {of}", f"{child} {of}")
        self._at_least({f"{r}tnfi-lines n": 1, f"{child} N": -1})
        self._at_least({f"{courses} N": 1, f"{courses} n": -1, f"{child} N": -1, f"{child} n": 1})
        self._at_least({f"{courses}-treated n": 1, f"{courses} N": -1, f"{r}tnfi-lines n": -1, f"{child} N": 1})

    # -- solving --

    def _solve(self, terms: tuple[tuple[str, int], ...], sign: int, presolve: bool = True) -> float | None:
        rows, columns, data = zip(*self._terms, strict=True)
        size = len(self._at)
        aim = np.zeros(size)
        for key, factor in terms:
            aim[self._at[key]] += sign * factor
        found = milp(
            aim,
            integrality=np.ones(size),
            options={"presolve": presolve},
            bounds=Bounds(np.ceil(self._low), np.floor(self._high)),
            constraints=LinearConstraint(
                coo_array((data, (rows, columns)), shape=(len(self._least), size)).tocsr(), self._least, self._most
            ),
        )
        if found.x is None:
            return None
        self._points.append(np.rint(found.x))
        return sign * float(found.fun)

    def is_possible(self) -> bool:
        """Whether any counts fit all that is said and assumed."""
        return self._solve((), 1) is not None

    def range(self, **terms: int) -> tuple[float, float]:
        """Least and greatest value of a sum of counts, over all whole numbers that fit."""
        own = tuple(terms.items())
        low, high = self._solve(own, 1), self._solve(own, -1)
        assert low is not None, "nothing fits what the release says"
        assert high is not None
        return round(low), round(high)

    def is_narrow(self, width: int, **terms: int) -> tuple[float, float] | None:
        """The range of a sum of counts, if it is that narrow; None if it is not.

        Asked twice, the second time without presolve, which for one of these systems cut off numbers that fit.
        """
        if self.is_open(width, **terms):
            return None
        low, high = self.range(**terms)
        if high - low >= width:
            return None
        own = tuple(terms.items())
        for sign in (1, -1):
            self._solve(own, sign, presolve=False)
        return None if self.is_open(width, **terms) else (low, high)

    def is_open(self, width: int, **terms: int) -> bool:
        """Whether two sets of counts that fit, and were met before, differ that much in a sum of counts."""
        aim = np.zeros(len(self._at))
        for key, factor in terms.items():
            aim[self._at[key]] += factor
        met = [float(point @ aim) for point in self._points]
        return bool(met) and max(met) - min(met) >= width

    def narrowed(self, threshold: int) -> dict[str, tuple[float, float]]:
        """The hidden counts that can have fewer than threshold + 1 values."""
        found = {}
        for number, said in enumerate(self.releases):
            for key in sorted(said.hidden):
                if (ends := self.is_narrow(threshold, **{f"{number} {key}": 1})) is not None:
                    found[f"{number} {key}"] = ends
        return found

    def revealed(self, truths: list[dict[str, int]], threshold: int) -> dict[str, tuple[float, float]]:
        """What should be hidden by the true counts and is known too well: small counts, rests of N, and differences."""
        small = lambda count: 0 < abs(count) < threshold  # noqa: E731
        asked: dict[str, dict[str, int]] = {}
        for number, truth in enumerate(truths):
            for key, count in truth.items():
                own = f"{number} {key}"
                if small(count):
                    asked[own] = {own: 1}
                if key.endswith(" n") and small(truth[f"{key[:-1]}N"] - count):
                    asked[f"rest of {own}"] = {f"{own[:-1]}N": 1, own: -1}
                if number and small(count - truths[number - 1].get(key, count)):
                    asked[f"change of {own}"] = {own: 1, f"{number - 1} {key}": -1}
        found = {}
        for label, terms in asked.items():
            if (ends := self.is_narrow(threshold, **terms)) is not None:
                found[label] = ends
        return found


def truth_of(path: Path) -> dict[str, int]:
    """The exact counts of a study, by the same names."""
    with path.open(encoding="utf-8", newline="") as text:
        return {
            f"{name(row['group'], row['stratifier'], row['stratum'])} {of}": int(row[of])
            for row in csv.DictReader(text)
            if not UNRELEASED.search(row["group"])
            for of in "nN"
        }
