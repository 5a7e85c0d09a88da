"""The clinician's judgement: a worksheet out, filled in as spreadsheet programs leave it, and back; all of it or nothing."""

import base64
import csv
import io
import json
from datetime import date, datetime, timedelta

import pytest
from openpyxl import Workbook, load_workbook
from promises.records import COHORT, about, counted, effect, files
from test_bad_input import refused

from crmo_fhir.model import tables
from crmo_fhir.model.review import COLUMNS

ANSWERED = {"answer": "sufficient", "judged_on": "2005-07-01", "reviewer": "Dr Åse Ø", "reviewed_on": "2026-11-20"}
SEEN = {"answer": "regression", "judged_on": "2005-08-02", "reviewer": "Dr Åse Ø", "reviewed_on": "2026-11-20"}
FINAL = (
    "Regression of the lesions\nof the \u202etibia.\x1b[31m <b>New</b> lesion: none. Copied from a page: =HYPERLINK(1)"
)


def crp(identity, value, day):
    code = {"coding": [{"system": "http://loinc.org", "code": "1988-5"}]}
    quantity = {"value": value, "unit": "mg/L", "system": "http://unitsofmeasure.org", "code": "mg/L"}
    return about(
        "Observation", identity, "p2", status="final", code=code, valueQuantity=quantity, effectiveDateTime=day
    )


def mri(identity, day):
    modality = [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"}]
    return about("ImagingStudy", identity, "p2", status="available", modality=modality, started=day)


def report(identity, day, study, status="final", **more):
    code = {"coding": [{"system": "http://loinc.org", "code": "46358-8"}]}
    of = [{"reference": f"ImagingStudy/{study}"}]
    return about(
        "DiagnosticReport", identity, "p2", status=status, code=code, effectiveDateTime=day, imagingStudy=of, **more
    )


def presented(text, kind="text/plain"):
    return {"presentedForm": [{"contentType": kind, "data": base64.b64encode(text.encode()).decode()}]}


RECORDS = (
    *COHORT,
    crp("l1", 40, "2005-01-20"),
    crp("l2", 33, "2005-01-30"),
    crp("l3", 4.04, "2005-07-01"),
    crp("l4", 90, "2009-07-01"),
    mri("i1", "2005-01-20"),
    mri("i2", "2005-08-02"),
    report("r1", "2005-01-20", "i1", conclusion="Two lesions."),
    report("r2", "2005-08-02", "i2", conclusion=FINAL),
    report("r3", "2005-08-03", "i2", "preliminary", **presented("Read by telephone.")),
    report(
        "r4", "2005-08-04", "i2", "amended", **presented("<p>Second<br>reading</p><script>x()</script>", "text/html")
    ),
    report("r5", "2005-08-05", "i2", "cancelled", conclusion="Another child."),
    report("r6", "2005-08-06", "i2", **presented("%PDF", "application/pdf")),
)


@pytest.fixture(scope="module")
def pulled(tmp_path_factory):
    return files(tmp_path_factory.mktemp("source") / "s", *RECORDS)


@pytest.fixture
def study(crmo, pulled, tmp_path):
    ran = crmo("extract", pulled, "--since", "2002", "-o", tmp_path / "study", "-q")
    assert ran.code == 0, ran.err
    return tmp_path / "study"


@pytest.fixture
def asked(crmo, study, tmp_path):
    """The rows of the worksheet that the study asks with."""
    assert crmo("review", study, "--out", tmp_path / "asked.csv").code == 0
    return rows_of(tmp_path / "asked.csv")


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def saved(path, rows, header=COLUMNS, style="plain"):
    """Rows as a program saves them: `plain`, or as Danish Excel does (`;`, a mark of byte order, CRLF), or in Windows-1252."""
    if path.suffix == ".xlsx":
        book = Workbook()
        book.active.title = "review"
        for line in [header, *([row.get(name) or None for name in header] for row in rows)]:
            book.active.append(list(line))
        book.save(path)
        return path
    text = io.StringIO()
    danish = {"delimiter": ";", "lineterminator": "\r\n"} if style != "plain" else {}
    writer = csv.writer(text, **danish)
    writer.writerow(header)
    writer.writerows([row.get(name, "") for name in header] for row in rows)
    path.write_bytes(text.getvalue().encode({"excel": "utf-8-sig", "cp1252": "cp1252"}.get(style, "utf-8")))
    return path


def filled(rows, **kinds):
    """The rows with an answer for each kind that is named."""
    return [{**row, **kinds.get(row["kind"], {})} for row in rows]


def reviews(study):
    return [json.loads(path.read_text()) for path in sorted((study / "reviews").glob("*"))]


def table(study, name):
    return tables.rows_of(tables.COHORT[name].from_parquet((study / "cohort" / f"{name}.parquet").read_bytes()))


def course(study):
    """The course of the child that no record judges."""
    (row,) = [row for row in table(study, "courses") if row["person"] == "Patient/p2"]
    return row


def reviewed(study):
    """The judgements of the reviews, as assessments."""
    return [row for row in table(study, "assessments") if row["origin"] == "reviewed"]


# ------------------------------------------------------------------------------------------------------------------ out


def test_the_worksheet_asks_for_what_no_record_tells_and_shows_what_there_is(asked):
    assert [(row["course"], row["kind"]) for row in asked] == [
        ("Patient/p2/TNF-1", "clinical"),
        ("Patient/p2/TNF-1", "mri"),
    ]
    row = asked[0]
    assert list(row) == list(COLUMNS)
    assert (row["agent"], row["line"], row["start"], row["end"], row["exposure_days"], row["stop_reason"]) == (
        ("adalimumab", "1", "2005-02-01", "2006-02-01", "365", "unknown")
    )
    assert row["values_before"] == "crp 33 mg/L (2005-01-30)"
    assert row["values_after"] == "crp 4 mg/L (2005-07-01)"
    assert (row["mri_before"], row["mri_after"]) == ("2005-01-20", "2005-08-02")
    assert row["mri_reports"].split(" | ") == [
        "2005-01-20: Two lesions.",
        "2005-08-02: Regression of the lesions of the tibia. [31m <b>New</b> lesion: none. Copied from a page: =HYPERLINK(1)",
        "2005-08-03 (preliminary): Read by telephone.",
        "2005-08-04: Second reading",
    ]
    assert not any(row[name] for name in ("answer", "judged_on", "reviewer", "reviewed_on", "comment"))


def test_all_asks_for_every_course_in_the_figures(crmo, study, tmp_path):
    assert crmo("review", study, "--out", tmp_path / "all.csv", "--all").code == 0
    assert [(row["child"], row["kind"]) for row in rows_of(tmp_path / "all.csv")] == [
        ("Patient/p1", "clinical"),
        ("Patient/p1", "mri"),
        ("Patient/p2", "clinical"),
        ("Patient/p2", "mri"),
    ]


def test_the_xlsx_holds_the_same_and_lets_only_the_answers_be_filled_in(crmo, study, asked, tmp_path):
    ran = crmo("review", study, "--out", tmp_path / "asked.xlsx")
    assert "2 judgements" in ran.out
    assert (tmp_path / "asked.xlsx").stat().st_mode & 0o777 == 0o600
    book = load_workbook(tmp_path / "asked.xlsx")
    sheet = book["review"]
    lines = [[cell.value or "" for cell in line] for line in sheet.iter_rows()]
    assert lines == [list(COLUMNS), *([row[name] for name in COLUMNS] for row in asked)]
    assert sheet.freeze_panes == "A2"
    assert sheet.protection.sheet
    assert sheet.protection.password is None
    place = {name: column.column_letter for name, column in zip(COLUMNS, sheet[1], strict=True)}
    unlocked = {"answer", "judged_on", "reviewer", "reviewed_on", "comment"}
    assert {name for name in COLUMNS if not sheet[f"{place[name]}2"].protection.locked} == unlocked
    assert {name for name in COLUMNS if sheet.column_dimensions[place[name]].hidden} == {"fingerprint", "study"}
    offered = {str(one.sqref): one.formula1 for one in sheet.data_validations.dataValidation}
    assert offered == {
        f"{place['answer']}2": '"sufficient,insufficient,not-evaluable"',
        f"{place['answer']}3": '"regression,no-regression,not-evaluable"',
    }
    told = " ".join(str(cell.value) for line in book["instructions"].iter_rows() for cell in line)
    assert all(f"{name}: " in told for name in ("answer", "judged_on", "mri_reports"))


def test_no_file_is_written_over_and_none_stands_where_the_program_keeps_its_own(crmo, study, tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    refused(crmo("review", study, "--out", tmp_path / "there.csv"), 2, "there already")
    assert (tmp_path / "there.csv").read_text() == "mine"
    refused(crmo("review", study, "--out", study / "cohort" / "w.csv"), 2, "program's own")
    refused(crmo("review", study, "--out", study / "results.csv"), 2, "program's own")
    refused(crmo("review", study, "--out", tmp_path / "nowhere" / "w.csv"), 2, "no such folder")
    refused(crmo("review", study, "--out", tmp_path / "w.ods"), 2, ".xlsx")
    assert crmo("build", study, "-q").code == 0


@pytest.mark.parametrize(
    "options", [(), ("--out", "a.csv", "--in", "b.csv"), ("--in", "b.csv", "--all")], ids=["neither", "both", "all in"]
)
def test_either_out_or_in(crmo, study, options):
    refused(crmo("review", study, *options), 2, "--out", "--in")


def test_a_study_without_a_cohort_has_nothing_to_review(crmo, tmp_path):
    refused(crmo("review", tmp_path, "--out", tmp_path / "w.csv"), 2, "no such study")


# --------------------------------------------------------------------------------------------------------------- and back


@pytest.mark.parametrize("style", ["plain", "excel", "cp1252", "xlsx"])
def test_what_is_filled_in_comes_back(crmo, study, asked, tmp_path, style):
    comment = 'Seen with parents; "much better"\nsays the mother'
    rows = filled(asked, clinical={**ANSWERED, "comment": comment})
    path = tmp_path / ("back.xlsx" if style == "xlsx" else "back.csv")
    ran = crmo("review", study, "--in", saved(path, rows, style=style))
    assert ran.code == 0, ran.err
    assert "1 judgements taken in, 1 rows left open as review 1" in ran.out
    (kept,) = reviews(study)
    (judgement,) = kept["judgements"]
    assert {name: judgement[name] for name in ANSWERED} == ANSWERED
    assert judgement["comment"] == 'Seen with parents; "much better" says the mother'
    assert (judgement["person"], judgement["agent"], judgement["start"]) == ("Patient/p2", "adalimumab", "2005-02-01")
    assert judgement["sources"] == ["MedicationStatement/m2"]
    assert judgement["evidence"] == ["Observation/l2", "Observation/l3"]
    row = course(study)
    assert (row["reviewed"], row["judged"], row["effect"], row["mri_reviewed"]) == ("sufficient", None, None, None)


def test_the_worksheet_itself_comes_back_with_dates_as_a_spreadsheet_holds_them(crmo, study, tmp_path):
    path = tmp_path / "sheet.xlsx"
    assert crmo("review", study, "--out", path).code == 0
    book = load_workbook(path)
    sheet = book["review"]
    for line, answer in ((2, "insufficient"), (3, "no-regression")):
        for name, value in {
            "answer": answer,
            "judged_on": datetime(2005, 8, 2),  # noqa: DTZ001 - a cell of a spreadsheet has no zone
            "reviewer": "Dr Åse Ø",
            "reviewed_on": date(2026, 11, 20),
        }.items():
            sheet.cell(line, COLUMNS.index(name) + 1).value = value
    book.save(path)
    ran = crmo("review", study, "--in", path)
    assert "2 judgements taken in, 0 rows left open" in ran.out, ran.err
    row = course(study)
    assert (row["reviewed"], row["mri_reviewed"], row["mri"]) == ("insufficient", "no-regression", None)
    assert {(a["assessment"], a["attribution"], a["primary"]) for a in reviewed(study)} == {
        ("review/0001/2", "link", True),
        ("review/0001/3", "link", True),
    }
    assert crmo("review", study, "--out", tmp_path / "open.csv").code == 0
    assert rows_of(tmp_path / "open.csv") == []


def test_rows_without_an_answer_stay_open_and_nothing_is_kept_of_them(crmo, study, asked, tmp_path):
    rows = filled(asked, clinical={**ANSWERED, "answer": ""})
    ran = crmo("review", study, "--in", saved(tmp_path / "open.csv", rows))
    assert (ran.code, ran.out) == (0, "0 judgements taken in, 2 rows left open\n")
    assert reviews(study) == []


TOMORROW = (date.today() + timedelta(days=2)).isoformat()  # noqa: DTZ011


def changed(place, **cells):
    """One row changed, the other filled in as it should be."""

    def change(rows):
        rows = filled(rows, clinical=ANSWERED, mri=SEEN)
        rows[place] = {**rows[place], **cells}
        return rows

    return change


REFUSED = {
    "unknown course": (changed(0, course="Patient/p9/TNF-1"), ["row 2: unknown course"]),
    "unknown kind": (changed(0, kind="blood"), ["row 2: unknown kind"]),
    "unknown answer": (changed(1, answer="better"), ["row 3: unknown answer"]),
    "an answer to the other question": (changed(1, answer="sufficient"), ["row 3: unknown answer"]),
    "before the course": (changed(0, judged_on="2005-01-31"), ["row 2: judged before the start"]),
    "in the future": (changed(0, judged_on=TOMORROW), ["row 2: judged_on lies in the future"]),
    "reviewed in the future": (changed(0, reviewed_on=TOMORROW), ["row 2: reviewed_on lies in the future"]),
    "reviewed before it was seen": (changed(0, reviewed_on="2005-06-30"), ["row 2: reviewed before"]),
    "a date of two readings": (changed(0, judged_on="01-02-2006"), ["row 2: judged_on is no date"]),
    "a date with slashes": (changed(0, judged_on="2006/02/01"), ["row 2: judged_on is no date"]),
    "a year alone": (changed(0, judged_on="2006"), ["row 2: judged_on is no date"]),
    "no such day": (changed(0, judged_on="2005-02-30"), ["row 2: judged_on is no date"]),
    "no date": (changed(1, judged_on=""), ["row 3: an answer without judged_on"]),
    "no day of review": (changed(1, reviewed_on=""), ["row 3: an answer without reviewed_on"]),
    "no reviewer": (changed(1, reviewer=" "), ["row 3: an answer without a reviewer"]),
    "a formula": (changed(0, comment='=HYPERLINK("http://elsewhere.example","x")'), ["row 2: comment holds a formula"]),
    "stale": (changed(0, fingerprint="0" * 64), ["row 2: the course has changed"]),
    "the fingerprint of the other question": (
        lambda rows: changed(0, fingerprint=rows[1]["fingerprint"])(rows),
        ["row 2: the course has changed"],
    ),
    "evidence changed": (changed(0, agent="etanercept"), ["row 2: what is known about the course was changed"]),
    "one row of another study": (changed(0, study="0" * 64), ["row 2: of another study"]),
    "two answers": (
        lambda rows: [
            *filled(rows, clinical=ANSWERED),
            *filled(rows[:1], clinical={**ANSWERED, "answer": "insufficient"}),
        ],
        ["row 4: contradicts row 2"],
    ),
    "every faulty row": (
        lambda rows: filled(rows, clinical={**ANSWERED, "answer": "yes"}, mri={**SEEN, "reviewer": ""}),
        ["row 2: unknown answer", "row 3: an answer without a reviewer"],
    ),
}


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
@pytest.mark.parametrize(("change", "told"), REFUSED.values(), ids=list(REFUSED))
def test_nothing_is_taken_in_where_a_row_cannot_be(crmo, study, asked, tmp_path, change, told, ending):
    before = (study / "cohort" / "build.json").read_bytes()
    ran = crmo("review", study, "--in", saved(tmp_path / f"bad.{ending}", change(asked)))
    refused(ran, 3, "nothing was taken in", *told)
    assert "Patient/" not in ran.err
    assert "Åse" not in ran.err
    assert reviews(study) == []
    assert (study / "cohort" / "build.json").read_bytes() == before


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
@pytest.mark.parametrize(
    ("header", "word"),
    [
        ([name for name in COLUMNS if name != "reviewer"], "without reviewer"),
        (["svar" if name == "answer" else name for name in COLUMNS], "without answer"),
        ([*COLUMNS, "mine"], "added or moved"),
        (COLUMNS[::-1], "added or moved"),
    ],
    ids=["one missing", "one renamed", "one more", "another order"],
)
def test_a_changed_header_is_refused(crmo, study, asked, tmp_path, header, word, ending):
    path = saved(tmp_path / f"bad.{ending}", filled(asked, clinical=ANSWERED), header)
    refused(crmo("review", study, "--in", path), 3, "row 1", word)
    assert reviews(study) == []


def test_a_row_with_more_cells_than_the_header_is_refused(crmo, study, asked, tmp_path):
    path = saved(tmp_path / "bad.csv", filled(asked, clinical=ANSWERED))
    path.write_text(path.read_text() + "," * len(COLUMNS) + "more\n")
    refused(crmo("review", study, "--in", path), 3, "row 4", "more cells")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no.xlsx", b"PK\x03\x04 cut off"),
        ("no.xlsx", b"course,child\n"),
        ("no.csv", b"a,b\n1,2\n"),
        ("no.csv", b""),
        ("no.csv", b'course,"child\n'),
        ("no.txt", b"course"),
    ],
    ids=["a broken archive", "no archive", "another table", "an empty file", "an open quote", "another ending"],
)
def test_what_is_no_worksheet_is_refused(crmo, study, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(crmo("review", study, "--in", tmp_path / name), 2, name)
    refused(crmo("review", study, "--in", tmp_path / "nowhere.csv"), 2, "no such file")


def test_the_worksheet_of_another_study_is_refused(crmo, study, pulled, asked, tmp_path):
    assert crmo("extract", pulled, "--since", "2003", "-o", tmp_path / "other", "-q").code == 0
    path = saved(tmp_path / "w.csv", filled(asked, clinical=ANSWERED))
    refused(crmo("review", tmp_path / "other", "--in", path), 2, "another study")


def test_the_same_row_twice_is_one_judgement(crmo, study, asked, tmp_path):
    rows = filled(asked, clinical=ANSWERED)
    ran = crmo("review", study, "--in", saved(tmp_path / "w.csv", [*rows, rows[0]]))
    assert ran.out.startswith("1 judgements taken in"), ran.err


# ------------------------------------------------------------------------------------------------- what the judgements do


@pytest.mark.parametrize(
    ("source", "clinical", "mri_figure"),
    [
        ("judged", ("1", "1"), ("0", "0")),
        ("reviewed", ("0", "1"), ("1", "1")),
        ("judged-or-reviewed", ("1", "2"), ("1", "1")),
    ],
)
def test_the_figures_count_the_source_that_is_asked_for(
    crmo, pulled, tmp_path, monkeypatch, source, clinical, mri_figure
):
    """p1 is judged sufficient in the records, p2 insufficient on review, with regression on MRI."""
    (tmp_path / "crmo-fhir.toml").write_text(f'[parameters]\neffect_source = "{source}"\n')
    monkeypatch.setenv("CRMO_FHIR_CONFIG", str(tmp_path / "crmo-fhir.toml"))
    study = tmp_path / "study"
    assert crmo("run", pulled, "--since", "2002", "-o", study, "-q").code == 0
    assert crmo("review", study, "--out", tmp_path / "w.csv").code == 0
    rows = filled(rows_of(tmp_path / "w.csv"), clinical={**ANSWERED, "answer": "insufficient"}, mri=SEEN)
    assert crmo("review", study, "--in", saved(tmp_path / "back.xlsx", rows)).code == 0
    assert not (study / "results.csv").exists()  # the figures were of another cohort
    assert crmo("measure", study, "--individual", "-q").code == 0
    assert (counted(study, "tnfi-clinical"), counted(study, "tnfi-mri")) == (clinical, mri_figure)
    ran = crmo("verify", study)
    assert ran.code == 0, ran.err


def test_a_later_review_of_a_course_replaces_the_earlier_and_both_are_kept(crmo, study, asked, tmp_path):
    first = saved(tmp_path / "1.csv", filled(asked, clinical=ANSWERED))
    assert crmo("review", study, "--in", first).code == 0
    assert "as review 1" in crmo("review", study, "--in", first).out  # the same worksheet is nothing new
    second = {**ANSWERED, "answer": "insufficient", "judged_on": "2005-06-01", "reviewer": "Dr B"}
    assert crmo("review", study, "--in", saved(tmp_path / "2.csv", filled(asked, clinical=second))).code == 0
    assert [one["judgements"][0]["answer"] for one in reviews(study)] == ["sufficient", "insufficient"]
    assert course(study)["reviewed"] == "insufficient"
    assert {a["assessment"]: a["reason"] for a in reviewed(study)} == {
        "review/0001/2": "replaced by a later review",
        "review/0002/2": None,
    }


def test_the_judgements_outlive_a_build_and_a_new_extract(crmo, study, asked, pulled, tmp_path):
    assert crmo("review", study, "--in", saved(tmp_path / "w.csv", filled(asked, clinical=ANSWERED))).code == 0
    for arguments in (("build", study), ("extract", pulled, "--since", "2002", "-o", study)):
        assert crmo(*arguments, "-q").code == 0
        assert course(study)["reviewed"] == "sufficient"


def test_when_the_data_change_a_worksheet_is_stale_and_what_was_taken_in_stays_with_its_course(
    crmo, study, asked, pulled, tmp_path
):
    assert crmo("review", study, "--in", saved(tmp_path / "w.csv", filled(asked, clinical=ANSWERED))).code == 0
    records = (pulled / "all.ndjson").read_text()
    try:
        (pulled / "all.ndjson").write_text(records.replace("2006-02-01", "2006-03-01"))
        assert crmo("extract", pulled, "--since", "2002", "-o", study, "-q").code == 0
        refused(
            crmo("review", study, "--in", saved(tmp_path / "w2.csv", filled(asked, mri=SEEN))),
            3,
            "row 2: the course has changed",
            "row 3: the course has changed",
        )
        assert (course(study)["end"].isoformat(), course(study)["reviewed"]) == ("2006-03-01", "sufficient")
        (pulled / "all.ndjson").write_text(
            "".join(line for line in records.splitlines(keepends=True) if '"id": "m2"' not in line)
        )
        assert crmo("extract", pulled, "--since", "2002", "-o", study, "-q").code == 0
        (lost,) = reviewed(study)
        assert (lost["attribution"], lost["reason"]) == ("unattributed", "the course reviewed is no longer there")
        told = (study / "cohort" / "attrition.csv").read_text()
        assert "unattributed: the course reviewed is no longer there" in told
    finally:
        (pulled / "all.ndjson").write_text(records)


def test_a_judgement_that_counts_for_no_course_is_said(crmo, study, asked, tmp_path):
    rows = filled(asked, clinical={**ANSWERED, "judged_on": "2010-01-01"})
    ran = crmo("review", study, "--in", saved(tmp_path / "w.csv", rows))
    assert ran.code == 0
    assert "1 of these judgements" in ran.err
    assert course(study)["reviewed"] is None


@pytest.mark.parametrize("how", ["changed", "removed", "added"])
def test_reviews_that_are_not_those_the_cohort_was_built_with_stop_everything(crmo, study, asked, tmp_path, how):
    assert crmo("review", study, "--in", saved(tmp_path / "w.csv", filled(asked, clinical=ANSWERED))).code == 0
    assert crmo("measure", study, "-q").code == 0
    (path,) = (study / "reviews").iterdir()
    content = path.read_text()
    if how == "changed":
        path.write_text(content.replace('"sufficient"', '"insufficient"'))
    elif how == "removed":
        path.unlink()
    else:
        path.with_name("0002.json").write_text(content)
    for command in ("measure", "verify"):
        refused(crmo(command, study), 6, "reviews", "build")
    ran = crmo("build", study)
    assert ran.code == (0 if how == "removed" else 6), ran.err
    if how == "removed":
        assert course(study)["reviewed"] is None


def test_a_review_that_is_missing_between_others_is_found(crmo, study, asked, tmp_path):
    for number, answer in enumerate(("sufficient", "insufficient"), start=1):
        rows = filled(asked, clinical={**ANSWERED, "answer": answer})
        assert crmo("review", study, "--in", saved(tmp_path / f"{number}.csv", rows)).code == 0
    (study / "reviews" / "0001.json").unlink()
    refused(crmo("build", study), 6, "0001.json", "missing")


def test_what_a_judgement_says_in_the_records_is_not_asked_for(crmo, pulled, tmp_path):
    source = files(tmp_path / "s", *RECORDS, effect("o2", "p2", "m2"))
    assert crmo("extract", source, "--since", "2002", "-o", tmp_path / "study", "-q").code == 0
    assert crmo("review", tmp_path / "study", "--out", tmp_path / "w.csv").code == 0
    assert [row["kind"] for row in rows_of(tmp_path / "w.csv")] == ["mri"]


def test_the_reports_kept_are_those_of_mr_studies_with_a_text_cut_to_its_length(crmo, tmp_path):
    other = {"code": {"coding": [{"system": "http://loinc.org", "code": "30746-2", "display": "Radiograph"}]}}
    alone = {"imagingStudy": []}
    broken = {"presentedForm": [{"contentType": "text/plain", "data": "//79"}]}
    wrong = {"presentedForm": [{"contentType": "text/plain", "data": "no base64"}]}
    source = files(
        tmp_path / "s",
        *COHORT,
        mri("i1", "2005-01-20"),
        report("long", "2005-01-20", "i1", conclusion="x" * 3 * tables.REPORT_CHARACTERS),
        report("by-study", "2005-01-20", "i1", conclusion="Of an MR study.") | other,
        report("by-code", "2005-01-20", "i1", **presented("By its code.", "text/plain; charset=utf-8")) | alone,
        report("radiograph", "2005-01-20", "i1", conclusion="No MR.") | other | alone,
        report("no-text", "2005-01-20", "i1"),
        report("no-utf8", "2005-01-20", "i1", **broken),
        report("no-base64", "2005-01-20", "i1", **wrong),
        report("unknown", "2005-01-20", "i1", "unknown", conclusion="Of no status."),
    )
    assert crmo("extract", source, "--since", "2002", "-o", tmp_path / "study", "-q").code == 0
    assert {row["report"].partition("/")[2]: row["text"] for row in table(tmp_path / "study", "reports")} == {
        "long": "x" * tables.REPORT_CHARACTERS,
        "by-study": "Of an MR study.",
        "by-code": "By its code.",
    }
