"""The records of one type out of any file: each judged once, and only what an engine cannot take as it stands is written."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from crmo_fhir.errors import IncompleteError
from crmo_fhir.source import survey
from crmo_fhir.source.whole import Gathered, Narrow, gather

BOM = b"\xef\xbb\xbf"
NARROW = Narrow({"wrong": "JSON"}, "wrong IS NULL")
OTHER = {"resourceType": "Organization", "id": "o"}
FAULTS = {
    "another type": json.dumps(OTHER),
    "no JSON": "{",
    "no Bundle": '{"resourceType":"Bundle","entry":1}',
    "an array": json.dumps([{"resourceType": "Patient", "id": "x"}]),
    "a misfit": '{"resourceType":"Patient","id":"x","wrong":1}',
    "a deletion": '{"resourceType":"Bundle","entry":[{"request":{"method":"DELETE","url":"Patient/x"}}]}',
}


def patients(count: int) -> list[str]:
    return [json.dumps({"resourceType": "Patient", "id": f"p{number}"}) for number in range(count)]


def gathered(tmp_path: Path, **files: bytes) -> tuple[Gathered, list[str], list[list[str] | None]]:
    """What is gathered, the ids as they were judged, and per file those it holds if it was written (else None)."""
    source, folder = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    folder.mkdir()
    for name, content in files.items():
        (source / name.replace("__", ".")).write_bytes(content)
    judged: list[str] = []

    def misfit(resource: dict[str, Any]) -> str | None:
        judged.append(resource["id"])
        return "wrong" if "wrong" in resource else None

    found = gather(source, "Patient", folder, misfit, NARROW)
    written = [
        [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.parent == folder else None
        for path, _ in found.files
    ]
    assert sorted(folder.iterdir()) == [path for path, _ in found.files if path.parent == folder]
    return found, judged, written


def test_a_file_of_plain_records_is_read_where_it_stands(tmp_path: Path) -> None:
    text = "\n".join(patients(4)).encode()
    found, judged, written = gathered(tmp_path, a__ndjson=text, b__ndjson__gz=gzip.compress(text))
    assert written == [None, None]
    assert judged == [f"p{number}" for number in range(4)] * 2
    assert (found.count, found.broken) == (8, [])


@pytest.mark.parametrize("at", [0, 2, 5])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_record_is_judged_once_wherever_a_file_ceases_to_be_plain(tmp_path: Path, fault: str, at: int) -> None:
    lines = patients(5)
    lines.insert(at, FAULTS[fault])
    found, judged, written = gathered(tmp_path, a__ndjson="\n".join(lines).encode())
    ids = [f"p{number}" for number in range(5)]
    if fault == "an array":
        ids.insert(at, "x")
    assert written == [ids]
    assert found.count == len(ids)
    assert len(judged) == len(set(judged)) == len(ids) + (fault == "a misfit")
    assert [one.place for one in found.broken] == (
        [f"line {at + 1}"] if fault in ("no JSON", "no Bundle", "a misfit") else []
    )


def test_in_a_large_source_the_engine_judges_what_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SURVEYED_FROM", 0)
    text, others = "\n".join(patients(4)).encode(), json.dumps(OTHER).encode()
    found, judged, written = gathered(
        tmp_path, a__ndjson=text, b__ndjson__gz=gzip.compress(text), c__ndjson=others, d__ndjson=others + b"\n" + text
    )
    assert written == [None, None, [f"p{number}" for number in range(4)]]
    assert judged == [f"p{number}" for number in range(4)]
    assert (found.count, found.broken) == (12, [])


@pytest.mark.parametrize("least", [0, 1 << 60])
@pytest.mark.parametrize("damage", ["checksum", "end"])
def test_a_damaged_gzip_file_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, least: int) -> None:
    monkeypatch.setattr(survey, "SURVEYED_FROM", least)
    packed = gzip.compress("\n".join(patients(4)).encode())
    packed = packed[:-8] + bytes(4) + packed[-4:] if damage == "checksum" else packed[:-9]
    with pytest.raises(IncompleteError, match="cut off or damaged"):
        gathered(tmp_path, a__ndjson__gz=packed)


def test_a_large_file_whose_lines_begin_with_another_member_is_judged_by_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "SURVEYED_FROM", 0)
    lines = "".join(f'{{"id":"p{number}","resourceType":"Patient"}}\n' for number in range(3))
    found, judged, written = gathered(tmp_path, a__ndjson=lines.encode())
    assert (found.count, judged, written) == (3, [], [None])


@pytest.mark.parametrize("at", [0, 2, 5])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_engine_is_not_sure_of_is_judged_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, at: int
) -> None:
    lines = patients(5)
    lines.insert(at, FAULTS[fault])
    found = []
    for least in (0, 1 << 60):
        monkeypatch.setattr(survey, "SURVEYED_FROM", least)
        (tmp_path / f"{least}").mkdir()
        found.append(gathered(tmp_path / f"{least}", a__ndjson="\n".join(lines).encode()))
    assert found[0][1:] == found[1][1:]
    assert (found[0][0].count, found[0][0].broken) == (found[1][0].count, found[1][0].broken)


def test_files_are_written_on_until_one_is_read_where_it_stands(tmp_path: Path) -> None:
    plain, mixed = "\n".join(patients(2)).encode(), "\n".join([*patients(2), json.dumps(OTHER)]).encode()
    _, _, written = gathered(tmp_path, a__ndjson=mixed, b__ndjson=mixed, c__ndjson=plain, d__ndjson=mixed)
    assert written == [["p0", "p1"] * 2, None, ["p0", "p1"]]


def test_what_no_engine_takes_for_what_it_is_is_written(tmp_path: Path) -> None:
    text = "\n".join(patients(2)).encode()
    found, _, written = gathered(
        tmp_path,
        a__ndjson=BOM + text,
        b__ndjson__gz=gzip.compress(BOM + text),
        c__ndjson=gzip.compress(text),
        d__ndjson__gz=text,
        e__ndjson=text + b"\n" + BOM + text,
    )
    assert written == [["p0", "p1"] * 6]
    assert found.count == 12
