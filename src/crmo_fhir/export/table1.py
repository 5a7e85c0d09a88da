"""table1.csv: the table a person reads, with names, rounded percentages and, where given, the printed figures beside it.

The only place where figures are rounded: half away from zero, percentages and interval limits to one decimal, means to
two (`PERCENT_DECIMALS`, `MEAN_DECIMALS`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from crmo_fhir.errors import UsageError
from crmo_fhir.export.results import csv_text
from crmo_fhir.model.results import MASKED, Estimate, Result
from crmo_fhir.model.study import Disclosure

CONFIDENTIAL = "[c]"
"""Stands for a masked count, as official statistics write it; no number and no dash (nothing to count) looks like it."""
PERCENT_DECIMALS = 1
MEAN_DECIMALS = 2

TREATMENT_GROUPS = {
    "nsaid-clinical": "NSAID, sufficient clinical effect",
    "mtx-clinical": "Methotrexate, sufficient clinical effect",
    "tnfi-clinical": "TNF-α inhibitor, sufficient clinical effect",
    "mtx-mri": "Methotrexate, regression on MRI",
    "tnfi-mri": "TNF-α inhibitor, regression on MRI",
}
"""The rows of the treatment-effect table, in order, with their names."""
COHORT_STRATIFIERS = {
    "sex": "Sex",
    "focality": "Focality",
    "sapho": "SAPHO syndrome ever",
    "sapho-at-diagnosis": "SAPHO syndrome at diagnosis",
}
STRATIFIERS = {
    **COHORT_STRATIFIERS,
    "agent": "Agent",
    "line": "Line",
    "bone": "Bone",
}
"""The names of the stratifiers."""
PRINTED_COLUMNS = ("id", "quantity", "printed", "group", "stratifier", "stratum", "show", "note")
_TABLE = (
    "quantity",
    "unit",
    "n",
    "N",
    "percent",
    "ci_low_percent",
    "ci_high_percent",
    "ci_method",
    "mean",
    "not_evaluable",
    "note",
)
_COMPARISON = ("id", "quantity", "printed", "computed", *_TABLE[1:-1], "note")


def round_half_away(value: Fraction | float, decimals: int) -> str:
    """A number with that many decimals, halves away from zero.

    Exact: a Fraction is rounded as it is, a float as the shortest decimal that denotes it.
    """
    exact = value if isinstance(value, Fraction) else Fraction(Decimal(repr(value)))
    scale = 10**decimals
    whole = (abs(exact) * scale * 2 + 1) // 2
    sign = "-" if exact < 0 and whole else ""
    left, right = divmod(whole, scale)
    return f"{sign}{left}.{right:0{decimals}d}" if decimals else f"{sign}{left}"


def percent(result: Result) -> str:
    """n/N in percent; empty for 0/0, for a masked row, and for a count, which is no proportion and has no interval."""
    if result.proportion is None or result.ci_low is None or result.n is None or not result.N:
        return ""
    return round_half_away(Fraction(result.n, result.N) * 100, PERCENT_DECIMALS)


def limits(result: Result) -> tuple[str, str]:
    """Both ends of the interval in percent, or two empty texts."""
    if result.ci_low is None or result.ci_high is None:
        return "", ""
    low, high = (Fraction(Decimal(repr(end))) * 100 for end in (result.ci_low, result.ci_high))
    return round_half_away(low, PERCENT_DECIMALS), round_half_away(high, PERCENT_DECIMALS)


def interval(result: Result) -> str:
    """The interval in percent as one text (`5.8–39.2`), or an empty one."""
    low, high = limits(result)
    return f"{low}–{high}" if low else ""


def mean(result: Result) -> str:
    """n/N as a mean, for a figure that is no proportion; empty for 0/0 and where one of the two is masked."""
    if result.n is None or not result.N:
        return ""
    return round_half_away(Fraction(result.n, result.N), MEAN_DECIMALS)


def shown(count: int | None) -> str:
    """A count as text; for a masked one a sign that no number can be mistaken for."""
    return CONFIDENTIAL if count is None else str(count)


def describe_disclosure(disclosure: Disclosure) -> str:
    """How far the figures may go, in words."""
    if disclosure.mode == "internal":
        return "Internal: small numbers are not masked, and a figure may describe a single child."
    base = f" All counts are rounded to the nearest {disclosure.rounding}." if disclosure.rounding else ""
    return (
        f"Released: counts from 1 to {disclosure.threshold - 1}, and others from which such a count could be concluded, are "
        f"held back and stand as {CONFIDENTIAL}.{base}"
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """The result rows of a study by what they are rows of, and the estimates beside them."""

    rows: tuple[Result, ...]
    estimates: tuple[Estimate, ...] = ()

    def overall(self, group: str) -> Result | None:
        """The overall row of a group."""
        return self.find(group, "", "")

    def find(self, group: str, stratifier: str, stratum: str) -> Result | None:
        """The row of one stratum. `foci-per-patient` is derived from `foci` and `cohort` where it is no row itself.

        Strata joined by ` + ` are added up. An estimate is found as `analysis/group`, its statistic as stratifier.
        """
        for row in self.rows:
            if (row.group, row.stratifier, row.stratum) == (group, stratifier, stratum):
                return row
        for one in self.estimates if "/" in group else ():
            if (f"{one.analysis}/{one.group}", one.statistic, one.stratum) == (group, stratifier, stratum):
                return Result(group, "", one.n, one.N, stratifier, stratum, note=one.note)
        if " + " in stratum:
            return self._together(group, stratifier, stratum)
        if (group, stratifier, stratum) == ("foci-per-patient", "", ""):
            return self._foci_per_patient()
        return None

    def strata(self, group: str, stratifier: str) -> list[Result]:
        """The rows of one stratifier, in order."""
        return [row for row in self.rows if row.group == group and row.stratifier == stratifier]

    def stratifiers(self, group: str) -> list[str]:
        """The stratifiers of a group, in order."""
        return list(dict.fromkeys(row.stratifier for row in self.rows if row.group == group and row.stratifier))

    def bones(self, stratifier: str) -> list[Result]:
        """The rows of the foci by bone, most frequent first, those that are masked by name only."""
        return sorted(self.strata("foci", stratifier), key=lambda row: (-(row.n or 0), row.stratum))

    def not_evaluable(self, group: str) -> int | None:
        """How many of those treated could not be evaluated; None where the study does not say or it is masked."""
        row = self.overall(f"{group}-not-evaluable")
        return None if row is None else row.n

    def _together(self, group: str, stratifier: str, strata: str) -> Result | None:
        rows = [row for one in strata.split(" + ") if (row := self.find(group, stratifier, one))]
        if not rows:
            return None
        counts = [row.n for row in rows if row.n is not None]
        n = sum(counts) if len(counts) == len(rows) else None
        note = MASKED if n is None or rows[0].N is None else ""
        return Result(group, rows[0].unit, n, rows[0].N, stratifier, strata, note=note)

    def _foci_per_patient(self) -> Result | None:
        foci, cohort = self.overall("foci"), self.overall("cohort")
        if foci is None or cohort is None:
            return None
        note = MASKED if foci.masked or cohort.masked else ""
        return Result("foci-per-patient", "focus per patient", foci.n, cohort.n, note=note)


def table1_rows(results: Sequence[Result]) -> Iterator[tuple[str, Result]]:
    """The quantities of the table with their names, in order: cohort, foci, treatment groups, TNF-α lines."""
    figures = Figures(tuple(results))

    def overall(group: str, name: str) -> Iterator[tuple[str, Result]]:
        row = figures.overall(group)
        if row is not None:
            yield name, row

    def strata(rows: Sequence[Result], name: str) -> Iterator[tuple[str, Result]]:
        for row in rows:
            yield f"{name}: {row.stratum}", row

    yield from overall("cohort", "Patients in the cohort")
    for stratifier, name in COHORT_STRATIFIERS.items():
        yield from strata(figures.strata("cohort", stratifier), name)
    yield from overall("foci", "Foci")
    yield from overall("foci-per-patient", "Foci per patient")
    yield from strata(figures.bones("bone"), "Foci by bone")
    yield from strata(figures.bones("bone-patients"), "Patients with a focus, by bone")
    for group, name in TREATMENT_GROUPS.items():
        yield from overall(group, name)
    yield from overall("tnfi-lines", "Patients treated with a TNF-α inhibitor")
    yield from strata(figures.strata("tnfi-lines", "line-reached"), "TNF-α line reached")
    yield from strata(figures.strata("tnfi-lines", "line-ended"), "Last TNF-α line")


def compare(
    results: Sequence[Result], printed: Sequence[Mapping[str, str]], estimates: Sequence[Estimate] = ()
) -> list[dict[str, str]]:
    """The rows of a published comparison, each with our figure added as `computed`, written as its `show` says.

    In `show` the words `n`, `N`, `percent` and `mean` stand for the figures, everything else for itself
    (`n of N (percent)`). `computed` is empty for a row that names no group, and `not computed` for one we have no
    result for. Raises UsageError, naming the row, for rows without the columns of `PRINTED_COLUMNS`.
    """
    figures = Figures(tuple(results), tuple(estimates))
    rows = []
    for number, row in enumerate(printed, start=1):
        if not all(isinstance(row.get(column), str) for column in PRINTED_COLUMNS):
            columns = ", ".join(PRINTED_COLUMNS)
            raise UsageError(f"published figures, row {number}: it must hold {columns}; correct the file")
        own = {column: row[column] for column in PRINTED_COLUMNS}
        rows.append({**own, "computed": _computed(figures, row)})
    return rows


def _computed(figures: Figures, row: Mapping[str, str]) -> str:
    if not row["group"]:
        return ""
    result = figures.find(row["group"], row["stratifier"], row["stratum"])
    if result is None:
        return "not computed"
    share = percent(result)
    words = {
        "n": shown(result.n),
        "N": shown(result.N),
        "percent": f"{share} %" if share else "–",
        "mean": mean(result) or "–",
    }
    return re.sub(r"\b(?:n|N|percent|mean)\b", lambda match: words[match[0]], row["show"] or "n")


def table1_csv(
    results: Sequence[Result],
    printed: Sequence[Mapping[str, str]] | None = None,
    estimates: Sequence[Estimate] = (),
) -> str:
    """`table1.csv`: one quantity a row.

    With the rows of a published comparison (`PRINTED_COLUMNS`) the columns id, printed and computed are added: first
    the published quantities in their order, then every quantity of ours that they do not name.
    """
    figures = Figures(tuple(results), tuple(estimates))
    rows = list(table1_rows(results))
    if printed is None:
        return csv_text(_TABLE, ((name, *_figures(figures, row), row.note) for name, row in rows))
    lines: list[Sequence[str | int | float | None]] = []
    named = set()
    for source in compare(results, printed, estimates):
        key = (source["group"], source["stratifier"], source["stratum"])
        named.add(key)
        result = figures.find(*key)
        if result and source["show"] == "N":
            # the quantity is the denominator itself: a count, not the share of another row
            cells = _figures(figures, Result("", result.unit, result.N, result.N))
        else:
            cells = _figures(figures, result) if result else (None,) * (len(_TABLE) - 2)
        lines.append((source["id"], source["quantity"], source["printed"], source["computed"], *cells, source["note"]))
    for name, row in rows:
        if (row.group, row.stratifier, row.stratum) not in named:
            lines.append(("", name, "", "", *_figures(figures, row), row.note))
    return csv_text(_COMPARISON, lines)


def _figures(figures: Figures, row: Result) -> tuple[str | int | None, ...]:
    """The cells between the quantity and the note. Rounded figures are digits only, so they need no protection."""
    average = mean(row) if row.group == "foci-per-patient" else ""
    missing = figures.not_evaluable(row.group) if row.group in TREATMENT_GROUPS and not row.stratifier else None
    return (row.unit, row.n, row.N, percent(row), *limits(row), row.ci_method, average, missing)
