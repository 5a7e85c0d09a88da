"""Clinical rules as tables: a few rows in, the rows a reader expects out.

A table is text with `|` between cells, the first line naming the columns; an empty cell is missing, `,` separates the
members of a list (`none` for an empty one). What a story does not say has a default: one girl, A, born 1996-01-01, CRMO recorded 2004-12-01, the
last record of anybody on 2013-01-01.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd

from crmo_fhir.cohort import Cohort, derive_cohort
from crmo_fhir.fhir.dates import parse_date
from crmo_fhir.metrics import compute_results
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.review import Judgement
from crmo_fhir.model.tables import FACTS, Table

WINDOW = Parameters(since=date(2002, 1, 1), until=date(2011, 12, 31))
AS_OF = date(2026, 1, 1)
CLASSES = {
    "naproxen": "NSAID",
    "ibuprofen": "NSAID",
    "methotrexate": "MTX",
    "etanercept": "TNF",
    "infliximab": "TNF",
    "adalimumab": "TNF",
    "prednisolone": "GC",
    "pamidronic acid": "BP",
    "sulfasalazine": "SSZ",
    "anakinra": "IL1",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "patient": {"patient": "Patient/A", "sex": "female", "birth": "1996-01-01", "deceased": False},
    "condition": {
        "patient": "Patient/A",
        "disease": "crmo",
        "evidence": "code",
        "verification": "confirmed",
        "date": "2004-12-01",
        "date_source": "recordedDate",
    },
    "site": {"patient": "Patient/A", "status": "confirmed", "date": "2004-12-01"},
    "exposure": {
        "patient": "Patient/A",
        "rung": "statement",
        "status": "completed",
        "taken": "yes",
        "given_once": False,
        "intra_articular": False,
        "indications": ["crmo"],
        "stop_reasons": [],
    },
    "observed": {
        "patient": "Patient/A",
        "kind": "clinical",
        "status": "final",
        "part_of": [],
        "focus": [],
        "derived_from": [],
    },
    "imaging": {"patient": "Patient/A", "status": "available", "whole_body": True, "regions": []},
    "lab": {"patient": "Patient/A", "analyte": "crp", "status": "final", "studies": []},
    "contact": {"patient": "Patient/A", "source": "Encounter/last", "date": "2013-01-01"},
    "adverse_event": {"patient": "Patient/A"},
    "patient_link": {"type": "replaced-by"},
}
KEYS = {
    "condition": ("condition", "Condition"),
    "exposure": ("source", "MedicationStatement"),
    "observed": ("assessment", "Observation"),
    "imaging": ("imaging", "ImagingStudy"),
    "site": ("source", "Condition"),
    "adverse_event": ("source", "AdverseEvent"),
    "lab": ("lab", "Observation"),
}
LISTS = {"indications", "stop_reasons", "part_of", "focus", "derived_from", "regions", "studies"}


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of a text table; empty cells are left out."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    names = [name.strip() for name in lines[0].split("|")]
    rows = []
    for line in lines[1:]:
        cells = [cell.strip() for cell in line.split("|")]
        assert len(cells) == len(names), f"the row {line!r} has not the columns {names}"
        rows.append({name: cell for name, cell in zip(names, cells, strict=True) if cell})
    return rows


def facts_of(**given: str) -> dict[str, pd.DataFrame]:
    """The facts of a story: the tables given, a default child and diagnosis where none is given."""
    tables: dict[str, Table] = {table.name: table for table in FACTS}
    assert not set(given) - set(tables), f"no such table: {set(given) - set(tables)}"
    texts = {"patient": "sex\nfemale", "condition": "disease\ncrmo", "contact": "source\nEncounter/last", **given}
    frames = {}
    for name, table in tables.items():
        number = count(1)
        rows = [
            {**DEFAULTS.get(name, {}), **_cells(name, row, next(number))}
            for row in (rows_of(texts[name]) if name in texts else [])
        ]
        frames[name] = table.frame([_dated(row) for row in rows])
    return frames


def _cells(name: str, row: Mapping[str, str], number: int) -> dict[str, Any]:
    cells: dict[str, Any] = {
        column: [part.strip() for part in cell.split(",") if part.strip() != "none"] if column in LISTS else cell
        for column, cell in row.items()
    }
    if name in KEYS and KEYS[name][0] not in cells:
        key, resource_type = KEYS[name]
        cells[key] = f"{resource_type}/{number}"
    if name == "exposure" and "drug_class" not in cells:
        cells["drug_class"] = CLASSES[cells["agent"]]
    for flag in ("given_once", "deceased", "intra_articular", "whole_body"):
        if flag in cells:
            cells[flag] = cells[flag] == "yes"
    if name == "lab":
        cells["value"] = float(cells.get("value", "4"))
        cells.setdefault("unit", {"esr": "mm/h", "crp": "mg/L"}.get(cells.get("analyte", "crp"), "{score}"))
    if "supply_days" in cells:
        cells["supply_days"] = float(cells["supply_days"])
    return cells


def _dated(row: Mapping[str, Any]) -> dict[str, Any]:
    """`date = 2005-03` becomes the columns `date_low` and `date_high`."""
    out = {}
    for name, value in row.items():
        if value == "none" and name == "date":
            continue
        if name in {"date", "birth", "death", "start", "end", "issued", "onset", "reason"}:
            when = parse_date(value, ZoneInfo("Europe/Copenhagen"))
            assert when is not None, f"{value!r} is no date"
            out |= {f"{name}_low": when.low, f"{name}_high": when.high}
        else:
            out[name] = value
    return out


def tell(
    parameters: Parameters = WINDOW,
    type_counts: Mapping[str, int] | None = None,
    reviews: Sequence[Judgement] = (),
    **given: str,
) -> Cohort:
    """The cohort a story gives."""
    facts = facts_of(**given)
    counts = type_counts if type_counts is not None else {"MedicationStatement": len(facts["exposure"])}
    return derive_cohort(facts, counts, counts, parameters, AS_OF, reviews)


def expect(frame: pd.DataFrame, text: str) -> None:
    """The frame holds exactly these rows, in these columns."""
    wanted = rows_of(text)
    names = [name.strip() for name in text.strip().splitlines()[0].split("|")]
    found = [{name: shown for name in names if (shown := _shown(row[name]))} for row in frame.to_dict("records")]
    assert found == wanted


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value)
    return value.isoformat() if isinstance(value, date) else str(value)


def figure(cohort: Cohort, group: str, stratifier: str = "", stratum: str = "") -> tuple[int, int]:
    """n and N of one result row."""
    (row,) = [
        r
        for r in compute_results(cohort.tables, WINDOW)
        if (r.group, r.stratifier, r.stratum) == (group, stratifier, stratum)
    ]
    return row.n, row.N
