"""results.csv: the result rows as text and back, without rounding (design: files of a study); statistics.csv beside it.

A masked count is an empty cell, in a row with the note `masked`.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from crmo_fhir.errors import IntegrityError
from crmo_fhir.model.results import ANALYSES, COLUMNS, MASKED, Estimate, Result

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0", "'")
"""First characters a spreadsheet may act on (OWASP ASVS 1.2.10); the apostrophe too, so that reading back is exact."""
_QUOTED = frozenset(',"\r\n')


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> str:
    """RFC 4180 text with LF line ends. Numbers as Python writes them, None as empty, text made safe for spreadsheets."""
    lines = [",".join(header)]
    lines.extend(",".join(_cell(value) for value in row) for row in rows)
    return "\n".join(lines) + "\n"


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    if value.startswith(_FORMULA):
        value = f"'{value}"
    if _QUOTED.isdisjoint(value):
        return value
    escaped = value.replace('"', '""')
    return f'"{escaped}"'


def results_csv(results: Iterable[Result]) -> str:
    """`results.csv`: one row a statistic, in the order given."""
    return csv_text(COLUMNS, ([getattr(result, column) for column in COLUMNS] for result in results))


def statistics_csv(estimates: Iterable[Estimate]) -> str:
    """`statistics.csv`: one estimate a row, by analysis, group, stratum, statistic and time, whatever the order given."""
    order = {name: place for place, name in enumerate(ANALYSES)}

    def place(one: Estimate) -> tuple[Any, ...]:
        time = -1 if one.time is None else one.time
        return order[one.analysis], one.group, one.stratum, one.statistic, time, str(one)

    names = [field.name for field in fields(Estimate)]
    return csv_text(names, ([getattr(one, name) for name in names] for one in sorted(estimates, key=place)))


def read_results(text: str) -> list[Result]:
    """The rows of a `results.csv`, exactly as they were written.

    Raises IntegrityError, naming the line, for another header or a cell that is not what its column holds.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    results = []
    try:
        if tuple(next(reader, ())) != COLUMNS:
            raise IntegrityError("results.csv, line 1: not the header of a results file; run `crmo-fhir measure` again")
        for row in reader:
            cells = dict(zip(COLUMNS, row, strict=True))
            results.append(
                Result(
                    group=_text(cells["group"]),
                    stratifier=_text(cells["stratifier"]),
                    stratum=_text(cells["stratum"]),
                    unit=_text(cells["unit"]),
                    n=_count(cells["n"], cells["note"]),
                    N=_count(cells["N"], cells["note"]),
                    proportion=_number(cells["proportion"]),
                    ci_low=_number(cells["ci_low"]),
                    ci_high=_number(cells["ci_high"]),
                    ci_method=_text(cells["ci_method"]),
                    note=_text(cells["note"]),
                )
            )
    except (ValueError, csv.Error):
        message = f"results.csv, line {reader.line_num}: not a result row; run `crmo-fhir measure` again"
        raise IntegrityError(message) from None
    return results


def _text(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def _count(cell: str, note: str) -> int | None:
    return None if not cell and note.startswith(MASKED) else int(cell)


def _number(cell: str) -> float | None:
    if not cell:
        return None
    number = float(cell)
    if not math.isfinite(number):
        raise ValueError
    return number
