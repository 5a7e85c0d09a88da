"""What must hold between the files of a study, whoever wrote them: arithmetic, agreement, references, FHIR.

No validator of FHIR finds a numerator above its denominator, a score that is not n/N or strata that do not add up; these
checks do. They read the files as anyone can, and know nothing of how the figures came about.
"""

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from math import isclose
from typing import Any

import msgspec

from crmo_fhir.errors import IntegrityError, UsageError
from crmo_fhir.export.measure_report import validate
from crmo_fhir.export.r5 import validate_r5
from crmo_fhir.export.results import read_results
from crmo_fhir.export.table1 import CONFIDENTIAL, TREATMENT_GROUPS
from crmo_fhir.model.results import Result
from crmo_fhir.model.study import INTERNAL, Disclosure

Json = Mapping[str, Any]

_SHARES = ("cohort", "foci", "tnfi-lines")
"""Groups whose strata are shares of the whole group (each N is the group's); in the others a stratum has its own N."""
_NO_PARTITION = ("bone-patients", "line-reached")
"""Stratifiers in which one child may be in several strata."""
_ELSEWHERE = ("evaluatedResource", "subject", "group")
"""Elements of a report whose references lead out of it, or that have none (a group of a summary or of one child)."""
_POPULATIONS = ("initial-population", "denominator", "numerator")


def verify_outputs(files: Mapping[str, str], keys: frozenset[str], disclosure: Disclosure = INTERNAL) -> int:
    """Check the files of a study (name → text) against one another, and every resource named against `keys`.

    In a release (`disclosure`) a masked count must be masked everywhere, and tell nothing by a share or score. Gives the
    number of relations that were checked. Raises IntegrityError for the first that does not hold.
    """
    results = read_results(files["results.csv"])
    measure, library, report = (json.loads(files[f"{name}.json"]) for name in ("measure", "library", "measure-report"))
    individual = [msgspec.json.decode(line) for line in files.get("individual-reports.ndjson", "").splitlines()]
    listed = json.loads(files["subject-list-report.json"]) if "subject-list-report.json" in files else None
    checks = [
        ("results.csv", [*_masking(results, disclosure), *_arithmetic(results, exact=not disclosure.rounding)]),
        ("measure.json", _canonicals(measure, library, report)),
        ("measure-report.json", _counts(report, measure, results)),
        ("report.html", _page(files["report.html"], results)),
        *((name, _validity(one)) for name, one in (("measure.json", measure), ("library.json", library))),
        *[("measure-report.json", check) for check in (_validity(report), _references(report, keys))],
    ]
    if "statistics.csv" in files:
        checks.append(("statistics.csv", _statistics(files["statistics.csv"], results)))
    if individual:
        checks.append(("individual-reports.ndjson", _sums(individual, report)))
        checks += [("individual-reports.ndjson", _references(one, keys)) for one in individual]
    if listed:
        checks.append(("subject-list-report.json", _validity(listed)))
        checks.append(("subject-list-report.json", _subjects(listed, report, individual)))
    done = 0
    for name, relations in checks:
        for holds, what in relations:
            done += 1
            if not holds:
                folder, command = ("release/", "release") if disclosure.threshold else ("", "measure")
                raise IntegrityError(
                    f"{folder}{name}: {what}; run 'crmo-fhir {command}' again, and report it if it stays"
                )
    return done


Relations = Iterator[tuple[bool, str]]


def _masking(results: Sequence[Result], disclosure: Disclosure) -> Relations:
    """Only a release hides counts, none below its threshold is shown, and nothing is made of one that is hidden."""
    for row in results:
        where, counts = _named(row), (row.n, row.N)
        if None in counts:
            yield disclosure.threshold > 0, f"{where}: a count is missing"
            yield row.proportion is row.ci_low is row.ci_high is None, f"{where}: a share of a count that is masked"
        for count in counts:
            small = count and 2 * count + disclosure.rounding < 2 * disclosure.threshold
            yield not small, f"{where}: a count below the threshold is shown"


def _named(row: Result) -> str:
    return " ".join(part for part in (f"`{row.group}`", row.stratifier, row.stratum) if part)


def _known(*counts: int | None) -> bool:
    """Whether none of the counts is masked."""
    return None not in counts


def _arithmetic(results: Sequence[Result], *, exact: bool) -> Relations:
    """Not n > N, proportion = n/N inside its interval, one overall row a group, strata that add up, readings that agree.

    Of counts that are masked nothing can be said; rounded ones (not `exact`) do not add up.
    """
    overall = {row.group: row for row in results if not row.stratifier}
    strata: dict[tuple[str, str], list[Result]] = defaultdict(list)
    yield len(overall) == sum(not row.stratifier for row in results), "a group has more than one overall row"
    for row in results:
        where = _named(row)
        if row.n is not None and row.N is not None:
            yield 0 <= row.n <= row.N, f"{where}: not 0 ≤ n ≤ N"
            yield (row.proportion is not None) == (row.N > 0), f"{where}: 0/0 and only 0/0 has no proportion"
            if row.proportion is not None:
                yield row.proportion == row.n / row.N, f"{where}: the proportion is not n/N"
        if row.ci_low is not None and row.ci_high is not None and row.proportion is not None:
            inside = 0 <= row.ci_low <= row.proportion <= row.ci_high <= 1
            yield inside, f"{where}: the proportion is not inside its interval"
        yield row.group in overall, f"{where}: its group has no overall row"
        if row.stratifier:
            strata[row.group, row.stratifier].append(row)
    for (group, stratifier), rows in strata.items() if exact else ():
        whole, where = overall[group], f"`{group}` by {stratifier}"
        if stratifier in _NO_PARTITION:
            continue
        yield _adds_up([row.n for row in rows], whole.n), f"{where}: the n of the strata do not add up to the group's"
        if group in _SHARES:
            same = all(row.N == whole.N for row in rows if _known(row.N, whole.N))
            yield same, f"{where}: a stratum has another N than the group"
        else:
            yield (
                _adds_up([row.N for row in rows], whole.N),
                f"{where}: the N of the strata do not add up to the group's",
            )
    if exact:
        yield from _readings(overall)


def _adds_up(parts: Sequence[int | None], whole: int | None) -> bool:
    """Whether parts are a whole, or could be with what is masked."""
    shown = sum(part for part in parts if part is not None)
    return whole is None or (shown == whole if _known(*parts) else shown <= whole)


def _readings(overall: Mapping[str, Result]) -> Relations:
    for name, treated in overall.items():
        if not name.endswith("-treated"):
            continue
        group = name.removesuffix("-treated")
        whole, missing = overall[group], overall[f"{group}-not-evaluable"]
        yield treated.n == missing.N, f"`{group}`: the not evaluable are not counted among the treated"
        if f"{group}-exposed" not in overall:  # else the denominator is the whole cohort
            yield (
                _adds_up([whole.N, missing.n], treated.n),
                f"`{group}`: evaluable and not evaluable are not all treated",
            )
        if f"{group}-worst-case" in overall:
            worst, best = overall[f"{group}-worst-case"], overall[f"{group}-best-case"]
            yield (worst.n, worst.N) == (whole.n, treated.n), f"`{group}`: worst case"
            yield treated.n == best.N and _adds_up([whole.n, missing.n], best.n), f"`{group}`: best case"


def _statistics(text: str, results: Sequence[Result]) -> Relations:
    """Counts within N, values within intervals, curves that only go one way, and the figures as used as results.csv has them."""
    overall = {row.group: row for row in results if not row.stratifier}
    last: dict[str, float] = {}
    try:
        for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
            where = " ".join(row[name] for name in ("analysis", "group", "statistic", "stratum")).rstrip()
            n, total, value, low, high = (row[name] for name in ("n", "N", "value", "low", "high"))
            yield not n or not total or 0 <= int(n) <= int(total), f"`{where}`: n is not within N"
            yield bool(value or n or row["note"]), f"`{where}`: neither a value nor a reason"
            ends = [float(end) for end in (low, value, high) if end]
            yield ends == sorted(ends), f"`{where}`: not inside its interval"
            if row["time"] and value:
                step = -float(value) if row["analysis"] == "survival" else float(value)
                yield step >= last.get(where, step) - 1e-12, f"`{where}`: a curve that goes back"
                last[where] = step
            if row["analysis"] == "sensitivity" and not row["stratum"]:
                used = overall[row["group"]]
                yield (n, total) == (str(used.n), str(used.N)), f"`{where}`: not the n and N of results.csv"
    except (KeyError, TypeError, ValueError, csv.Error):
        yield False, "a row that is no estimate"


def _canonicals(measure: Json, library: Json, report: Json) -> Relations:
    yield (
        report["measure"] == f"{measure['url']}|{measure['version']}",
        "is not the Measure (url and version) of the report",
    )
    yield report["type"] == "summary", "the report beside it is no summary"
    yield report["status"] in ("complete", "pending"), "the report beside it has no status of a result"
    yield measure["library"] == [f"{library['url']}|{library['version']}"], "its Library is not the one beside it"


def _counts(report: Json, measure: Json, results: Sequence[Result]) -> Relations:
    """Groups, populations, scores and strata of the report, held against the Measure and the result rows."""
    rows = {(row.group, row.stratifier, row.stratum): row for row in results}
    yield [g["id"] for g in report["group"]] == [g["id"] for g in measure["group"]], "not the groups of the Measure"
    for group, defined in zip(report["group"], measure["group"], strict=True):
        name = group["id"]
        row, treated = rows[name, "", ""], rows.get((f"{name}-treated", "", ""))
        populations = [p["id"] for p in group["population"]]
        yield populations == [p["id"] for p in defined["population"]], f"`{name}`: not the populations of the Measure"
        counts = _count(group)
        initial, denominator, numerator = (counts.get(code) for code in _POPULATIONS)
        proportion = "denominator" in counts
        if not proportion:
            yield initial == row.n, f"`{name}`: its count is not that of results.csv"
        else:
            yield (numerator, denominator) == (row.n, row.N), f"`{name}`: its counts are not those of results.csv"
            whole = treated.n if treated and rows.get((f"{name}-exposed", "", "")) is None else row.N
            yield initial == whole, f"`{name}`: its initial population is not those treated"
            ordered = [count for count in (0, numerator, denominator, initial) if count is not None]
            yield ordered == sorted(ordered), f"`{name}`: not n ≤ N ≤ initial population"
        yield from _scored(group, name)
        for stratifier in group.get("stratifier", ()):
            yield from _strata(stratifier, name, rows, proportion=proportion)


def _strata(
    stratifier: Json, group: str, rows: Mapping[tuple[str, str, str], Result], *, proportion: bool
) -> Relations:
    name = _code(stratifier["code"])
    values = [value for g, s, value in rows if (g, s) == (group, name)]
    strata = {_value(stratum): stratum for stratum in stratifier.get("stratum", ())}
    yield list(strata) == values, f"`{group}` by {name}: not the strata of results.csv"
    for value, stratum in strata.items():
        row, counts = rows[group, name, value], _count(stratum)
        if proportion:
            same = (counts["numerator"], counts["denominator"]) == (row.n, row.N)
            initial = counts.get("initial-population")
            above = initial is not None and row.N is not None and initial < row.N
            yield not above, f"`{group}` by {name}: N above the initial population"
        else:
            same = counts["initial-population"] == row.n
        yield same, f"`{group}` by {name}: the counts of a stratum are not those of results.csv"
        yield from _scored(stratum, f"{group}` by `{name}")


def _scored(part: Json, name: str) -> Relations:
    """The score is n/N where there is one to be had, and is not there otherwise."""
    counts, score = _count(part), part.get("measureScore", part.get("measureScoreQuantity"))
    numerator, denominator = counts.get("numerator"), counts.get("denominator")
    if numerator is None or not denominator:
        yield score is None, f"`{name}`: a score of nothing, or of a count that is masked"
        return
    share = numerator / denominator
    yield score is not None and isclose(score["value"], share, abs_tol=1e-15), f"`{name}`: the score is not n/N"
    for extension in (score or {}).get("extension", ()):
        limits = next(inner["valueRange"] for inner in extension["extension"] if inner["url"] == "interval")
        inside = 0 <= limits["low"]["value"] <= share <= limits["high"]["value"] <= 1
        yield (
            inside or isclose(share, limits["low"]["value"]) or isclose(share, limits["high"]["value"]),
            (f"`{name}`: the score is not inside its interval"),
        )


def _sums(individual: Sequence[Json], report: Json) -> Relations:
    """All children together are the summary: each population, and each stratum of it."""
    added: Counter[tuple[str, str, str, str]] = Counter()
    for one in individual:
        added.update(dict(_cells(one)))
    children = [one["subject"]["reference"] for one in individual]
    yield len(set(children)) == len(children), "a child has two reports"
    yield all(one["measure"] == report["measure"] for one in individual), "a report is of another Measure"
    for one in individual:
        for group in one["group"]:
            yield from _scored(group, group["id"])
    for cell, count in _cells(report):
        yield added[cell] == count, f"`{cell[0]}`: the children do not add up to the summary ({' '.join(cell[1:])})"


def _subjects(listed: Json, report: Json, individual: Sequence[Json]) -> Relations:
    """The subject list counts as the summary does, and lists the children that are in each population."""
    yield dict(_cells(listed)) == dict(_cells(report)), "its counts are not those of the summary"
    lists = {one["id"]: one for one in listed["contained"] if one["resourceType"] == "List"}
    counted = {one["id"]: dict(_cells(one)) for one in individual}
    for cell, population in _populations(listed):
        own = lists[population["subjectResults"]["reference"].removeprefix("#")]
        named = {entry["item"]["reference"].removeprefix("MeasureReport/") for entry in own.get("entry", ())}
        expected = {name for name, cells in counted.items() if cells.get(cell)}
        yield named == expected, f"`{cell[0]}`: a list of children is not who is counted ({' '.join(cell[1:])})"


def _references(report: Json, keys: frozenset[str]) -> Relations:
    """Whatever is referred to is there: contained, or among the records of the study."""
    contained = {f"#{one['id']}" for one in report.get("contained", ())}
    named = set(_inner_references({k: v for k, v in report.items() if k not in _ELSEWHERE}))
    yield named >= contained, "contains a resource that nothing refers to"
    yield all(name in contained for name in named if name.startswith("#")), "refers to something it does not contain"
    for reference in (*report.get("evaluatedResource", ()), *([report["subject"]] if "subject" in report else [])):
        yield reference["reference"] in keys, "names a resource that is not in raw/"


def _inner_references(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("reference"), str):
            yield value["reference"]
        for inner in value.values():
            yield from _inner_references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _inner_references(inner)


def _validity(resource: Json) -> Relations:
    """FHIR by the model of its version; the validator of the tests knows the profiles too."""
    try:
        (validate_r5 if _is_r5(resource) else validate)(resource)
    except UsageError as error:
        yield False, str(error).split(";")[0]
    else:
        yield True, ""


def _is_r5(resource: Json) -> bool:
    return "linkId" in (resource.get("group") or [{}])[0]


class _Cells(HTMLParser):
    """The cells of each table row that has an id."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        self._row: str | None = None
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self._row = dict(attrs).get("id")
            if self._row:
                self.rows[self._row] = []
        self._in_cell = tag == "td" or (self._in_cell and tag not in ("tr", "th"))
        if tag == "td" and self._row:
            self.rows[self._row].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "tr"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell and self._row:
            self.rows[self._row][-1] += data


def _page(text: str, results: Sequence[Result]) -> Relations:
    """The treatment table of report.html shows n and N as results.csv has them."""
    rows = _Cells()
    rows.feed(text)
    for row in results:
        if row.group in TREATMENT_GROUPS and not row.stratifier:
            shown = [cell.strip() for cell in rows.rows.get(row.group, [])]
            counts = [CONFIDENTIAL if count is None else str(count) for count in (row.n, row.N)]
            yield shown[1:3] == counts, f"`{row.group}`: not the n and N of results.csv"


def _cells(report: Json) -> Iterator[tuple[tuple[str, str, str, str], int]]:
    """Every count of a report, by (group, stratifier, stratum, population)."""
    for cell, population in _populations(report):
        yield cell, int(population["count"])


def _populations(report: Json) -> Iterator[tuple[tuple[str, str, str, str], Json]]:
    for group in report["group"]:
        for population in group["population"]:
            yield (group["id"], "", "", _code(population["code"])), population
        for stratifier in group.get("stratifier", ()):
            for stratum in stratifier.get("stratum", ()):
                for population in stratum["population"]:
                    where = (group["id"], _code(stratifier["code"]), _value(stratum), _code(population["code"]))
                    yield where, population


def _count(part: Json) -> dict[str, int | None]:
    """The count of each population by its code; None where it is said to be masked."""
    return {_code(population["code"]): population.get("count") for population in part["population"]}


def _code(concept: Any) -> str:
    """The code of a concept, or of the first one of a list (stratifiers in R4)."""
    return str((concept[0] if isinstance(concept, list) else concept)["coding"][0]["code"])


def _value(stratum: Json) -> str:
    return str(stratum.get("value", stratum.get("valueCodeableConcept"))["text"])
