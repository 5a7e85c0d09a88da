"""A source surveyed by the engine gives what the same source gives read line by line: the whole pull, to the last warning."""

import gzip
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cohorts
import pytest

from crmo_fhir import pipeline
from crmo_fhir.artifacts import Artifacts
from crmo_fhir.engine import open_duckdb
from crmo_fhir.errors import IncompleteError
from crmo_fhir.fhir import strict
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.model.records import Pull
from crmo_fhir.source import files, pieces, survey
from crmo_fhir.source.files import select_candidates
from crmo_fhir.source.survey import Survey

Resource = dict[str, Any]
ARTIFACTS = Artifacts.load()
CRMO, TEXT = ARTIFACTS.value_set("crmo"), ARTIFACTS.value_set("crmo-text")
ICD10 = "http://hl7.org/fhir/sid/icd-10"
BASE, OTHER = "https://a.example/fhir", "https://b.example/fhir"
SEEDS = 60


class Runs:
    """Pulls of one folder in both ways, and what the survey had of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.surveyed: list[str] = []
        self.picked = self.checked = 0
        settle, pick, parse = Survey.settle, Survey.pick, strict.parse

        def parsed(raw: bytes) -> Any:
            self.checked += 1
            return parse(raw)

        monkeypatch.setattr(strict, "parse", parsed)

        def settled(survey: Survey, names: Any) -> None:
            self.surveyed = list(names)
            settle(survey, self.surveyed)

        def picks(survey: Survey, rows: Any) -> Any:
            lines = pick(survey, rows)
            self.picked += sum(map(len, lines.values()))
            return lines

        monkeypatch.setattr(Survey, "settle", settled)
        monkeypatch.setattr(Survey, "pick", picks)

    def line_by_line(self, folder: Path) -> Pull | str:
        self._patch.setattr(survey, "SURVEYED_FROM", 1 << 60)
        return self._pull(folder)

    def surveying(self, folder: Path) -> Pull | str:
        self._patch.setattr(survey, "SURVEYED_FROM", 0)
        self.surveyed, self.picked, self.checked = [], 0, 0
        return self._pull(folder)

    @staticmethod
    def _pull(folder: Path) -> Pull | str:
        try:
            return select_candidates(folder, CRMO, TEXT)
        except IncompleteError as error:
            return str(error)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def told(pull: Pull | str) -> Any:
    """A pull in a form whose differences can be read."""
    if isinstance(pull, str):
        return pull
    fields = {name: getattr(pull, name) for name in Pull.__dataclass_fields__}
    return {**fields, "records": [f"{one}" for one in pull.records]}


# ------------------------------------------------------------------------------------------------------ random folders


def patient(draw: random.Random, number: int) -> Resource:
    made: Resource = {"resourceType": "Patient", "id": f"p{number}"}
    if draw.random() < 0.6:
        value = draw.choice([f"{number}", f"{number % 5}", f" {number % 5} ", "a\tb", "Å1", 7, 'q"x', ""])
        use = draw.choice([{}, {"use": "official"}, {"use": "old"}, {"use": "temp"}])
        made["identifier"] = [{"system": draw.choice(["urn:mrn", "urn:cpr"]), "value": value, **use}]
    if draw.random() < 0.2:
        kind = draw.choice(["replaced-by", "replaces", "seealso", "refer"])
        made["link"] = [{"type": kind, "other": reference(draw, draw.randrange(20))}]
    if draw.random() < 0.5:
        made["birthDate"] = draw.choice(["2001", "2001-03", "2001-03-04", "1950-01-01"])
    if draw.random() < 0.5:
        made["gender"] = draw.choice(["male", "female", "unknown"])
    if draw.random() < 0.3:
        made["managingOrganization"] = {"reference": "Organization/o"}
    return made


def reference(draw: random.Random, number: int) -> Any:
    return draw.choice(
        [{"reference": f"Patient/p{number}"}] * 12
        + [
            {"reference": f"Patient/p{number}", "display": "A Name", "type": "Patient"},
            {"reference": f"Patient/p{number}/_history/2"},
            {"reference": f" Patient/p{number} "},
            {"reference": f"{BASE}/Patient/p{number}"},
            {"reference": f"{OTHER}/Patient/p{number}"},
            {"reference": f"urn:uuid:{number:04d}"},
            {"reference": "#contained"},
            {"reference": f"Patient?identifier=urn:mrn|{number % 5}"},
            {"reference": "Group/g"},
            {"reference": "Patient/not here"},
            {"reference": f"Patient/gone{number}"},
            {"reference": 7},
            {"identifier": {"system": "urn:mrn", "value": f"{number % 5}"}},
            {"identifier": {"system": "urn:mrn", "value": 7}},
            {"reference": "", "identifier": {"system": "urn:cpr", "value": f"{number % 5}"}},
            {"display": "somebody"},
            {},
            None,
        ]
    )


def concept(draw: random.Random) -> Any:
    codes = [*cohorts.CRMO, *cohorts.SHADOWS] if draw.random() < 0.25 else cohorts.OTHER_DISEASE
    system, code = draw.choice(codes)
    coding = {"code": code, **({"system": system} if system else {})}
    text = draw.choice([*cohorts.TEXTS, "Asthma", "non-bacterial osteomyelitis, chronic", "Børneastma", "no CRMO"])
    return draw.choice(
        [{"coding": [coding]}] * 12
        + [
            {"coding": [coding], "text": "Asthma"},
            {"coding": [{**coding, "display": text}]},
            {"text": text} if draw.random() < 0.4 else {"text": "Asthma"},
            {"coding": [{"system": ICD10, "code": "J45"}, coding]},
            {"coding": []},
            {},
            None,
        ]
    )


def resources(draw: random.Random) -> list[Resource]:
    made = [patient(draw, number) for number in range(20)]
    kinds = ["Encounter", "Observation", "MedicationStatement", "MedicationRequest", "Procedure", "ImagingStudy"]
    for number in range(draw.randrange(8, 25)):
        code = concept(draw)
        one = {"resourceType": "Condition", "id": f"c{number % 20}", "subject": reference(draw, draw.randrange(20))}
        made.append({**one, "code": code} if draw.random() < 0.95 else one)
    for number in range(draw.randrange(30, 90)):
        kind = draw.choice([*kinds, "DiagnosticReport", "AdverseEvent", "MedicationAdministration"])
        one = {"resourceType": kind, "id": f"{kind[:2]}{number % 60}"}
        one[draw.choice(["subject"] * 9 + ["patient"])] = reference(draw, draw.randrange(20))
        if draw.random() < 0.5:
            one["encounter"] = {"reference": f"Encounter/En{draw.randrange(60)}"}
        if kind.startswith("Medication"):
            one["medicationReference"] = {"reference": f"Medication/m{draw.randrange(5)}"}
        if draw.random() < 0.2:
            one["meta"] = {
                "versionId": str(draw.randrange(12)),
                "lastUpdated": draw.choice(
                    ["2020-01-01T00:00:00Z", "2020-01-01T02:00:00+02:00", "2021-06-01T00:00:00Z"]
                ),
                **({"tag": [{"code": "SUBSETTED"}]} if draw.random() < 0.1 else {}),
            }
        if draw.random() < 0.05:
            del one["id"]
        if draw.random() < 0.1:
            one["contained"] = [{"resourceType": "Patient", "id": "contained"}]
        if draw.random() < 0.1:
            one["note"] = [{"text": 'a\u2028b "CRMO" \\ æ \U0001f600'}]
        made.append(one)
    made += [
        {
            "resourceType": "Medication",
            "id": f"m{n}",
            "ingredient": [{"itemReference": {"reference": f"Medication/m{n + 1}"}}],
        }
        for n in range(4)
    ]
    made += [
        {"resourceType": "Organization", "id": "o"},
        {"resourceType": "Claim", "id": "x", "patient": {"reference": "Patient/p1"}},
    ]
    made += [{"resourceType": "QuestionnaireResponse", "id": "q", "identifier": {"value": "7"}}]
    made += draw.sample(made, 8)
    for one in draw.sample(made, 6):
        made.append({**one, "meta": {"versionId": "7", "lastUpdated": "2022-01-01T00:00:00Z"}, "language": "da"})
    draw.shuffle(made)
    return made


def text_of(draw: random.Random, one: Resource) -> bytes:
    items = list(one.items())
    if draw.random() < 0.2:
        draw.shuffle(items)
    separators = (",", ":") if draw.random() < 0.7 else (", ", ": ")
    return json.dumps(dict(items), separators=separators, ensure_ascii=draw.random() < 0.5).encode()


def write(draw: random.Random, folder: Path) -> None:
    left = resources(draw)
    deleted = {"request": {"method": "DELETE", "url": f"Observation/Ob{draw.randrange(60)}"}}
    part = 0
    while left:
        size = draw.randrange(10, 80)
        chunk, left = left[:size], left[size:]
        part += 1
        below = folder / draw.choice(["", "", "x", "y"])
        below.mkdir(exist_ok=True)
        lines = [text_of(draw, one) for one in chunk]
        if draw.random() < 0.15:
            lines.append(json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": [deleted]}).encode())
        if draw.random() < 0.15:
            entries = [{"fullUrl": f"urn:uuid:{n:04d}", "resource": one} for n, one in enumerate(chunk[:3])]
            lines.append(json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}).encode())
        if draw.random() < 0.1:
            lines.insert(draw.randrange(len(lines)), b"")
        if draw.random() < 0.15:
            lines.insert(draw.randrange(len(lines)) + 1, draw.choice(list(SEEN.values())))
        end = draw.choice([b"\n", b"\n", b"\n", b"\r\n"])
        data = end.join(lines) + (end if draw.random() < 0.7 else b"")
        how = draw.random()
        if how < 0.5:
            (below / f"{part}.ndjson").write_bytes(data)
        elif how < 0.8:
            half = data.index(b"\n", len(data) // 3) + 1
            members = [data] if draw.random() < 0.5 else [data[:half], data[half:]]
            (below / f"{part}.ndjson.gz").write_bytes(b"".join(map(gzip.compress, members)))
        elif how < 0.9:
            (below / f"{part}").write_bytes(gzip.compress(data))
        else:
            entries = [
                {"fullUrl": f"{OTHER}/{one['resourceType']}/{one.get('id', 'n')}", "resource": one} for one in chunk[:9]
            ]
            (below / f"{part}.json").write_text(
                json.dumps({"resourceType": "Bundle", "type": "batch", "entry": entries})
            )
            left = chunk[9:] + left
    if draw.random() < 0.3:
        request = {"transactionTime": "2026", "request": f"{BASE}/Patient/$export", "output": []}
        (folder / draw.choice(["", "x"])).mkdir(exist_ok=True)
        (folder / draw.choice(["manifest.json"])).write_text(json.dumps(request))


# A line of each fault that both see. The engine sees no fault in those of UNSEEN, which decide nothing.
START = b'{"resourceType":"Observation","id":"bad",'
SEEN = {
    "cut": START[:-1],
    "text": b"Observation",
    "scalar": b"17",
    "Parameters": b'{"resourceType":"Parameters","parameter":[{"resource":{"resourceType":"Observation","id":"bad"}}]}',
    "OperationOutcome": b'{"resourceType":"OperationOutcome","issue":[{"severity":"fatal","code":"exception"}]}',
    "deep Bundles": b'{"resourceType":"Bundle","entry":[{"resource":' * 6 + START[:-1] + b"}" + b"}]}" * 6,
    "null": b"null",
    "empty": b"{}",
    "array": b'[{"resourceType":"Observation","id":"in-array","subject":{"reference":"Patient/p1"}}]',
    "two": START[:-1] + b"}" + START[:-1] + b"}",
    "garbage": START[:-1] + b"} x",
    "single quotes": b"{'resourceType':'Observation'}",
    "no type": b'{"id":"x"}',
    "type is no text": b'{"resourceType":17,"id":"x"}',
    "strange type": b'{"resourceType":"Obser vation","id":"x"}',
    "id is no text": b'{"resourceType":"Observation","id":17}',
    "id with a space": b'{"resourceType":"Observation","id":"a b"}',
    "long id": b'{"resourceType":"Observation","id":"' + b"x" * 300 + b'"}',
    "id twice": b'{"resourceType":"Observation","id":"a","id":"b"}',
    "type twice": b'{"resourceType":"Observation","resourceType":"Patient","id":"a"}',
    "subject twice": START + b'"subject":{"reference":"Patient/p1"},"subject":{"reference":"Patient/p2"}}',
    "reference twice": START + b'"subject":{"reference":"Patient/p1","reference":"Patient/p2"}}',
    "reference is NaN": START + b'"subject":{"reference":NaN}}',
    "identifier holds NaN": START + b'"subject":{"identifier":{"system":"urn:mrn","value":"1","rank":NaN}}}',
    "identifier twice": START + b'"subject":{"identifier":{"system":"urn:mrn","value":"1","value":"2"}}}',
    "code twice": b'{"resourceType":"Condition","id":"bad","code":{"text":"CRMO"},"code":{"text":"x"}}',
    "text twice": b'{"resourceType":"Condition","id":"bad","code":{"text":"CRMO","text":"x"}}',
    "code is no concept": b'{"resourceType":"Condition","id":"bad","code":"M86.3"}',
    "coding is no list": b'{"resourceType":"Condition","id":"bad","code":{"coding":{"code":"M86.3"}}}',
    "code is no text": b'{"resourceType":"Condition","id":"bad","code":{"coding":[{"code":17}]}}',
    "subject is no reference": START + b'"subject":"Patient/p1"}',
    "subject is a list": START + b'"subject":[]}',
    "tag is no list": START + b'"meta":{"tag":"SUBSETTED"}}',
    "meta is no object": START + b'"meta":"x"}',
    "surrogate": START + b'"v":"\\ud800"}',
    "control": START + b'"v":"a\x01b"}',
    "zero byte": START + b'"v":"a\x00b"}',
    "not UTF-8": START + b'"v":"\xff"}',
    "overlong": START + b'"v":"\xc0\x80"}',
    "half a sign": START + b'"v":"\xe2\x82"}',
    "leading zero": START + b'"v":01}',
    "comment": START + b'"v":1/*c*/}',
    "bad escape": START + b'"v":"\\x"}',
    "BOM within": b"\xef\xbb\xbf" + START[:-1] + b"}",
    "blank": b"",
    "spaces": b"  \t",
    "escaped name": b'{"resourc\\u0065Type":"Observation","id":"k","subj\\u0065ct":{"reference":"Patient/p1"}}',
    "escaped zero": b'{"resourceType":"Observation","id":"x\\u0000y"}',
    "old": b'{"resourceType":"Condition","id":"bad","verificationStatus":"confirmed"}',
}
UNSEEN = {
    "NaN": START + b'"v":NaN,"subject":{"reference":"Patient/SUBJECT"}}',
    "Infinity": START + b'"v":[-Infinity],"subject":{"reference":"Patient/SUBJECT"}}',
    "out of range": START + b'"v":1e999,"subject":{"reference":"Patient/SUBJECT"}}',
    "digits": START + b'"v":' + b"1" * 5000 + b',"subject":{"reference":"Patient/SUBJECT"}}',
    "last comma": START + b'"subject":{"reference":"Patient/SUBJECT"},}',
    "deep": START + b'"v":' + b"[" * 300 + b"]" * 300 + b',"subject":{"reference":"Patient/SUBJECT"}}',
    "twice": START + b'"v":1,"v":2,"subject":{"reference":"Patient/SUBJECT"}}',
    "twice within": START + b'"v":{"a":1,"a":2},"subject":{"reference":"Patient/SUBJECT"}}',
}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_folders_give_the_same_pull(tmp_path: Path, runs: Runs, seed: int) -> None:
    write(random.Random(seed), tmp_path)
    fast, slow = told(runs.surveying(tmp_path)), told(runs.line_by_line(tmp_path))
    assert fast == slow


@pytest.mark.parametrize("seed", range(6))
def test_random_cohorts_give_the_same_pull(tmp_path: Path, runs: Runs, seed: int) -> None:
    cohorts.write(cohorts.make(seed), tmp_path)
    assert told(runs.surveying(tmp_path)) == told(runs.line_by_line(tmp_path))


PLAIN = [
    *({"resourceType": "Patient", "id": f"p{number}"} for number in range(9)),
    {"resourceType": "Condition", "id": "c", "subject": {"reference": "Patient/p1"}, "code": {"coding": [{"system": ICD10, "code": "M86.3"}]}},
    {"resourceType": "Condition", "id": "d", "subject": {"reference": "Patient/p3"}, "code": {"coding": [{"system": ICD10, "code": "J45"}]}},
    *(
        {"resourceType": "Observation", "id": f"o{number}", "subject": {"reference": f"Patient/p{number % 9}"}}
        for number in range(90)
    ),
]  # fmt: skip


def lines_of(made: list[Resource]) -> list[bytes]:
    return [json.dumps(one).encode() for one in made]


def as_plain(folder: Path, data: bytes) -> None:
    (folder / "all.ndjson").write_bytes(data)


def as_gzip(folder: Path, data: bytes) -> None:
    (folder / "all.ndjson.gz").write_bytes(gzip.compress(data))


@pytest.mark.parametrize("form", [as_plain, as_gzip])
def test_only_what_may_matter_is_read_line_by_line(
    tmp_path: Path, runs: Runs, form: Callable[[Path, bytes], None]
) -> None:
    form(tmp_path, b"\n".join(lines_of(PLAIN)))
    pull = runs.surveying(tmp_path)
    assert isinstance(pull, Pull)
    assert len(runs.surveyed) == 1
    assert (len(pull.records), pull.type_counts) == (12, {"Condition": 2, "Observation": 90, "Patient": 9})
    assert (
        runs.picked == 1 + 1 + 10 + 2
    )  # the Condition, its Patient, 10 Observations; the first Patient and Observation
    assert pull == runs.line_by_line(tmp_path)


@pytest.mark.parametrize("fault", SEEN)
def test_a_line_that_is_broken_is_set_aside_in_both_ways(tmp_path: Path, runs: Runs, fault: str) -> None:
    lines = lines_of(PLAIN)
    as_plain(tmp_path, b"\n".join([*lines[:70], SEEN[fault], *lines[70:]]) + b"\n")
    (tmp_path / "more.ndjson").write_bytes(b"\n".join(lines_of([{**one, "language": "da"} for one in PLAIN])))
    pull = runs.surveying(tmp_path)
    assert told(pull) == told(runs.line_by_line(tmp_path))
    assert "more.ndjson" in runs.surveyed
    if isinstance(pull, Pull):
        lines_in = sum(len(path.read_bytes().split(b"\n")) for path in tmp_path.iterdir()) - 1
        blank = fault in ("blank", "spaces")
        assert sum(pull.type_counts.values()) + len(pull.broken) == lines_in - blank


@pytest.mark.parametrize("fault", UNSEEN)
@pytest.mark.parametrize("whose", ["p1", "p2"])
def test_what_the_engine_takes_is_not_taken_where_it_is_a_candidates(
    tmp_path: Path, runs: Runs, fault: str, whose: str
) -> None:
    lines = lines_of(PLAIN)
    broken = UNSEEN[fault].replace(b"SUBJECT", whose.encode())
    as_plain(tmp_path, b"\n".join([*lines[:70], broken, *lines[70:]]))
    pull, strict = runs.surveying(tmp_path), runs.line_by_line(tmp_path)
    assert runs.surveyed == ["all.ndjson"]
    assert isinstance(pull, Pull)
    assert isinstance(strict, Pull)
    assert [one.place for one in strict.broken] == ["line 71"]
    if whose == "p1":
        assert pull == strict
    else:  # nobody's in the study: it is counted, and nothing of it is kept
        assert pull == replace(strict, broken=[], type_counts={**strict.type_counts, "Observation": 91})


@pytest.mark.parametrize("kind", ["Condition", "Patient"])
def test_a_deciding_line_is_strict_whatever_the_engine_takes(tmp_path: Path, runs: Runs, kind: str) -> None:
    lines = lines_of(PLAIN)
    index = {"Condition": 9, "Patient": 1}[kind]
    lines[index] = lines[index][:-1] + b',"v":NaN}'
    as_plain(tmp_path, b"\n".join(lines))
    pull = runs.surveying(tmp_path)
    assert isinstance(pull, Pull)
    assert [one.place for one in pull.broken] == [f"line {index + 1}"]
    assert pull == runs.line_by_line(tmp_path)


@pytest.mark.parametrize("told", [{}, {"id": None}])
def test_a_patient_without_an_id_is_taken_in_both_ways(tmp_path: Path, runs: Runs, told: Resource) -> None:
    link = {"link": [{"type": "replaced-by", "other": {"reference": "Patient/p1"}}]}
    as_plain(tmp_path, b"\n".join(lines_of([*PLAIN, {"resourceType": "Patient", **told, **link}])))
    pull = runs.surveying(tmp_path)
    assert runs.surveyed == ["all.ndjson"]
    assert isinstance(pull, Pull)
    assert [one.id_assigned for one in pull.records if one.type == "Patient"] == [False, True]
    assert pull == runs.line_by_line(tmp_path)


@pytest.mark.parametrize("cut", [20, 8, 4])
def test_a_gzip_file_that_is_cut_or_changed_is_seen(tmp_path: Path, runs: Runs, cut: int) -> None:
    packed = gzip.compress(b"\n".join(lines_of(PLAIN)))
    (tmp_path / "x.ndjson.gz").write_bytes(packed[:-cut])
    assert (
        runs.surveying(tmp_path)
        == runs.line_by_line(tmp_path)
        == ("x.ndjson.gz: the gzip file is cut off or damaged; fetch it again")
    )
    (tmp_path / "x.ndjson.gz").write_bytes(packed[:-6] + b"\1" + packed[-5:])
    assert runs.surveying(tmp_path) == "x.ndjson.gz: the gzip file is cut off or damaged; fetch it again"


def test_lines_that_are_not_those_the_engine_saw_are_not_taken(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_plain(tmp_path, b"\n".join(lines_of(PLAIN)))
    expected = runs.line_by_line(tmp_path)
    lines_at = files._lines_at
    monkeypatch.setattr(
        files,
        "_lines_at",
        lambda file, numbers, marks: lines_at(file, [n + 1 if n < 101 else n for n in numbers], marks),
    )
    assert runs.surveying(tmp_path) == expected


def test_a_name_of_a_file_in_another_encoding_is_read_line_by_line(tmp_path: Path, runs: Runs) -> None:
    as_plain(tmp_path, b"\n".join(lines_of(PLAIN[:20])))
    (tmp_path / os.fsdecode(b"caf\xe9 [1] {x} * '.ndjson")).write_bytes(b"\n".join(lines_of(PLAIN[20:])))
    (tmp_path / "[a] {b} * ? '.ndjson").write_bytes(b"\n".join(lines_of(PLAIN[50:])))
    pull = runs.surveying(tmp_path)
    assert sorted(runs.surveyed) == ["[a] {b} * ? '.ndjson", "all.ndjson"]
    assert pull == runs.line_by_line(tmp_path)


def test_a_candidates_broken_line_does_not_slow_the_rest(tmp_path: Path, runs: Runs) -> None:
    lines = lines_of(PLAIN)
    as_plain(tmp_path, b"\n".join([*lines, UNSEEN["NaN"].replace(b"SUBJECT", b"p1")]))
    assert isinstance(pull := runs.surveying(tmp_path), Pull)
    assert [one.place for one in pull.broken] == [f"line {len(lines) + 1}"]
    assert runs.checked < 30


def test_of_many_short_files_only_the_broken_one_is_read_line_by_line(tmp_path: Path, runs: Runs) -> None:
    lines = lines_of(PLAIN)
    lines[50] += b"}"
    for number in range(0, len(lines), 3):
        (tmp_path / f"{number:03}.ndjson").write_bytes(b"\n".join(lines[number : number + 3]) + b"\n")
    pull = runs.surveying(tmp_path)
    assert sorted(runs.surveyed) == [f"{number:03}.ndjson" for number in range(0, len(lines), 3) if number != 48]
    assert isinstance(pull, Pull)
    assert [(one.file, one.place) for one in pull.broken] == [("048.ndjson", "line 3")]
    assert pull == runs.line_by_line(tmp_path)


def test_the_lines_of_a_long_file_are_rows_in_their_order_whatever_cores_read_it(tmp_path: Path) -> None:
    line = '{{"resourceType":"Observation","id":"o{}","note":[{{"text":"{}"}}]}}\n'
    long, short = tmp_path / "long.ndjson", tmp_path / "short.ndjson"
    long.write_text(
        "".join(line.format(number, "x" * 900) for number in range(120_000))
    )  # four times what a core reads
    short.write_text("".join(line.format(f"s{number}", "") for number in range(3)))
    with open_duckdb(threads=4) as engine:
        table = Survey(engine)
        assert table.read({"short": short, "long": long}, kind="Observation", packed=False) == ["short", "long"]
        assert table.lines_of() == {"short": 3, "long": 120_000}
        names = "CASE file WHEN 0 THEN 's' || rowid ELSE (rowid - 3)::VARCHAR END"
        assert engine.ask(f"SELECT count(*) FROM lines WHERE id = hash('\"o' || {names} || '\"')") == [(120_003,)]


def test_every_reference_absolute_is_read_line_by_line(tmp_path: Path, runs: Runs) -> None:
    text = b"\n".join(lines_of(PLAIN)).replace(b'"Patient/p', f'"{BASE}/Patient/p'.encode())
    as_plain(tmp_path, text)
    pull = runs.surveying(tmp_path)
    assert isinstance(pull, Pull)
    assert (pull.base, len(pull.records)) == (BASE, 12)
    assert pull == runs.line_by_line(tmp_path)


@pytest.mark.parametrize("form", [as_plain, as_gzip])
def test_a_type_that_comes_late_in_a_file_is_seen(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, form: Callable[[Path, bytes], None]
) -> None:
    monkeypatch.setattr(pieces, "_SNIFFED", 400)
    form(tmp_path, b"\n".join(lines_of([*PLAIN[20:], *PLAIN[:20]])))
    pull = runs.surveying(tmp_path)
    assert isinstance(pull, Pull)
    assert len(pull.records) == 12
    assert len(runs.surveyed) == 1
    assert pull == runs.line_by_line(tmp_path)


def test_pieces_of_a_file_end_within_lines(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [{**one, "note": [{"text": "x" * (number * 37 % 400)}]} for number, one in enumerate(PLAIN * 3)]
    as_plain(tmp_path, b"\n".join(lines_of(made)))
    expected = runs.line_by_line(tmp_path)
    for size in (97, 256, 1000):
        monkeypatch.setattr(files, "_BLOCK", size)
        monkeypatch.setattr(pieces, "_BLOCK", size)
        assert runs.surveying(tmp_path) == expected
        assert runs.surveyed


@pytest.mark.parametrize("seed", [11, 12])
def test_the_bytes_of_a_study_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    cohorts.write(cohorts.make(seed), tmp_path / "in")
    made = []
    for least in (0, 1 << 60):
        monkeypatch.setattr(survey, "SURVEYED_FROM", least)
        study = tmp_path / f"study{least}"
        pipeline.extract(str(tmp_path / "in"), study, Parameters())
        made.append({path.relative_to(study): path.read_bytes() for path in study.rglob("*") if path.is_file()})
    assert made[0] == made[1]
    assert len(made[0]) > 10
