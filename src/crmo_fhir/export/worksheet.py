"""The worksheet of the review as a file, XLSX or CSV, written and read.

Whatever stands in a record is text and never a formula. What comes back may have gone through a spreadsheet program: CSV with
commas, semicolons or tabs, any line ends, with a mark of byte order or in Windows-1252; XLSX with dates in date cells.
"""

import csv
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crmo_fhir.errors import IncompleteError, UsageError
from crmo_fhir.model.review import ANSWERS, ASKED, COLUMNS, DATES, KNOWN, MARKS
from crmo_fhir.model.tables import one_line

ENDINGS = (".xlsx", ".csv")
SHEET = "review"
MOST_BYTES = 64 * 2**20
"""No worksheet is larger, unpacked either."""
_WIDTHS = {"course": 28, "child": 20, "flags": 24, "mri_reports": 60, "comment": 40, "reviewer": 20}
_INSTRUCTIONS = (
    "Each row of the sheet 'review' asks for one judgement of one treatment course of one child.",
    "Read the evidence to the left; where it is not enough, read the record. Then fill in the white cells of the row.",
    "A row without an answer stays open. Rows may be sorted as a whole, or left out; columns and the header stay as they are.",
    "Dates are date cells, or texts such as 2026-01-31. Answer 'not-evaluable' where nobody could judge the course.",
    "Nothing is taken in unless every answered row can be: 'crmo-fhir review STUDY --in FILE' names the rows to correct.",
    "This file holds records of single children: it stays in the hospital.",
)


def check_ending(name: str) -> None:
    """Raise UsageError unless the file is named as XLSX or CSV."""
    if not name.lower().endswith(ENDINGS):
        raise UsageError(f"{name}: a worksheet is an .xlsx or a .csv file; give such a name")


def write_worksheet(name: str, rows: Iterable[Mapping[str, str]]) -> bytes:
    """The worksheet with these rows, each the cells of the evidence and the marks; the answers are empty."""
    check_ending(name)
    lines = [[row.get(column, "") for column in COLUMNS] for row in rows]
    return _xlsx(lines) if name.lower().endswith(".xlsx") else _csv(lines)


def _csv(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(lines)
    return text.getvalue().encode("utf-8")


def _xlsx(lines: Sequence[Sequence[str]]) -> bytes:
    from openpyxl import Workbook
    from openpyxl.styles import Alignment, Font, PatternFill, Protection
    from openpyxl.utils import get_column_letter
    from openpyxl.worksheet.datavalidation import DataValidation

    book = Workbook()
    sheet = book.active
    sheet.title = SHEET
    answers: dict[str, list[str]] = {kind: [] for kind in ANSWERS}
    wrapped, grey = Alignment(vertical="top", wrap_text=True), PatternFill("solid", fgColor="EEEEEE")
    for number, line in enumerate([COLUMNS, *lines], start=1):
        for place, (column, text) in enumerate(zip(COLUMNS, line, strict=True), start=1):
            cell = sheet.cell(number, place, text or None)
            if text:
                cell.data_type = "s"  # never a formula, whatever it begins with
            cell.alignment = wrapped
            if number == 1:
                cell.font = Font(bold=True)
            elif column in ASKED:
                cell.protection = Protection(locked=False)
                cell.number_format = "yyyy-mm-dd" if column in DATES else "@"
                if column == "answer":
                    answers[line[COLUMNS.index("kind")]].append(cell.coordinate)
            else:
                cell.fill = grey
    for kind, cells in answers.items():
        if cells:
            offer = DataValidation("list", formula1=f'"{",".join(ANSWERS[kind])}"', sqref=" ".join(cells))
            offer.showErrorMessage, offer.error = True, f"One of: {', '.join(ANSWERS[kind])}"
            sheet.add_data_validation(offer)
    for place, column in enumerate(COLUMNS, start=1):
        dimension = sheet.column_dimensions[get_column_letter(place)]
        dimension.width = _WIDTHS.get(column, 14)
        dimension.hidden = column in MARKS
    sheet.freeze_panes = "A2"
    sheet.protection.formatColumns = sheet.protection.formatRows = False  # which allows to widen them
    sheet.protection.enable()
    told = book.create_sheet("instructions")
    for text in (*_INSTRUCTIONS, "", *(f"{column}: {meaning}" for column, meaning in (KNOWN | ASKED).items())):
        told.append([text])
    told.column_dimensions["A"].width = 120
    told.protection.enable()
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def read_worksheet(name: str, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a worksheet with their numbers (the header is row 1), each its cells by column; empty rows are left out.

    A cell is a text, a number, a datetime, or None. Raises UsageError where the file is no worksheet, IncompleteError where
    its columns are not those that were written.
    """
    check_ending(name)
    if len(content) > MOST_BYTES:
        raise UsageError(f"{name}: is too large for a worksheet; give the file that 'crmo-fhir review --out' wrote")
    found = _cells_of_xlsx(name, content) if name.lower().endswith(".xlsx") else _cells_of_csv(name, content)
    rows = [(number, _trimmed(cells)) for number, cells in enumerate(found, start=1)]
    header = [one_line(str(cell)) for cell in rows[0][1]] if rows else []
    if not set(header) & set(COLUMNS):
        raise UsageError(f"{name}: is no worksheet of 'crmo-fhir review'; give the file that --out wrote, filled in")
    if header != list(COLUMNS):
        missing = [column for column in COLUMNS if column not in header]
        what = f"without {', '.join(missing)}" if missing else "columns were added or moved"
        raise IncompleteError(
            f"{name}: nothing was taken in; row 1: the header was changed ({what}); put it back as it was written"
        )
    long = [number for number, cells in rows if len(cells) > len(COLUMNS)]
    if long:
        told = "; ".join(f"row {number}: more cells than the header" for number in long)
        raise IncompleteError(f"{name}: nothing was taken in; {told}; correct these rows")
    empty = [None] * len(COLUMNS)
    return [
        (number, dict(zip(COLUMNS, [*cells, *empty[len(cells) :]], strict=True))) for number, cells in rows[1:] if cells
    ]


def _trimmed(cells: Sequence[Any]) -> list[Any]:
    """The cells up to the last that holds anything."""
    filled = [place for place, cell in enumerate(cells, start=1) if cell is not None and str(cell).strip()]
    return list(cells[: max(filled, default=0)])


def _cells_of_csv(name: str, content: bytes) -> list[list[str]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")  # as a spreadsheet program in Denmark saves plain CSV
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise UsageError(f"{name}: cannot be read as CSV; save it again from the spreadsheet program") from error


def _cells_of_xlsx(name: str, content: bytes) -> list[tuple[Any, ...]]:
    try:
        return _cells_of_sheet(content)
    except Exception as error:
        # a broken file can raise anything
        raise UsageError(
            f"{name}: is no worksheet in XLSX; give the file that --out wrote, filled in and saved as XLSX"
        ) from error


def _cells_of_sheet(content: bytes) -> list[tuple[Any, ...]]:
    """The rows of the sheet. Raises whatever zipfile and openpyxl do, ValueError for what no worksheet is."""
    import warnings

    from openpyxl import load_workbook

    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        if sum(part.file_size for part in packed.infolist()) > MOST_BYTES:
            raise ValueError("too large")
        if any(b"<!DOCTYPE" in packed.read(part) for part in packed.infolist()):
            raise ValueError("entities of XML")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what other programs add and openpyxl passes over
        book = load_workbook(io.BytesIO(content), read_only=True, keep_links=False)
        sheet = book[SHEET]
        sheet.reset_dimensions()  # what the file says of its size may be wrong
        return [tuple(row) for row in sheet.iter_rows(values_only=True)]
