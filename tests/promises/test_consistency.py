"""Promises 77-79: nothing is computed from what is not what was written, nothing is mixed, increments add up to the whole."""

import csv
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from fake_server import FakeServer, Fault, Request, Resource, instant
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from crmo_fhir import landing, pipeline
from crmo_fhir.errors import CrmoFhirError, IntegrityError
from crmo_fhir.model.parameters import Parameters
from crmo_fhir.pipeline import OVERLAP, How
from crmo_fhir.source import plan
from promises.records import COHORT, assert_loud, diagnosis, drug, effect, figures, files, patient, raw
from promises.test_crash import contents, fetched, said, tree
from promises.test_network import CHILDREN, child, cohort, lab, landed, page, serving

HOUR = timedelta(hours=1)


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Change one bit of a file; a place from the end is negative."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))


def edit(path: Path, old: str, new: str) -> None:
    """Change a file as with an editor."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --------------------------------------------------------------------------------------------- 77: what is not as written


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A study that is extracted and measured, from a folder."""
    folder = tmp_path_factory.mktemp("measured")
    study = folder / "study"
    pipeline.extract(str(files(folder / "source", *COHORT)), study, Parameters())
    pipeline.measure(study)
    return study


@pytest.fixture
def study(measured, tmp_path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "study"))


@dataclass
class Refusal:
    """Commands that must refuse a study, naming a file, and leave all that is there as it is."""

    crmo: Callable[..., Any]
    study: Path

    def __call__(self, name: str | Path, *commands: str, code: int = 6) -> None:
        before = tree(self.study)
        for command in commands:
            ran = self.crmo(command, self.study, *((self.study,) if command == "diff" else ()))
            assert ran.code == code, (name, command, ran)
            assert str(self.study / name) in said(ran)
            assert tree(self.study) == before, (name, command)


@pytest.fixture
def refused(crmo, study) -> Refusal:
    return Refusal(crmo, study)


RAW = (
    *("raw/Condition.ndjson", "raw/MedicationStatement.ndjson", "raw/Observation.ndjson", "raw/Patient.ndjson"),
    *("raw/ledger.csv", "raw/origins.ndjson"),
)
BUILT = (
    *(
        f"cohort/{name}.parquet"
        for name in ("assessments", "courses", "foci", "imaging", "labs", "patients", "reports")
    ),
    *("cohort/attrition.csv", "cohort/unmapped.csv", "cohort/sensitivity.csv"),
)


def test_these_are_all_files(study):
    present = {str(path.relative_to(study)) for folder in ("raw", "cohort") for path in (study / folder).iterdir()}
    assert present == {*RAW, *BUILT, "raw/quarantine.ndjson", "raw/manifest.json", "cohort/build.json"}


@pytest.mark.parametrize(("place", "bit"), [(0, 0), (40, 3), (-1, 7)], ids=["first byte", "inside", "last byte"])
@pytest.mark.parametrize("name", RAW)
def test_promise_77_a_bit_of_the_records_is_refused_by_its_file(refused, study, name, place, bit):
    flip(study / name, place, bit)
    refused(name, "build", "measure", "diff")


@pytest.mark.parametrize(("place", "bit"), [(0, 0), (20, 3), (-1, 7)], ids=["first byte", "inside", "last byte"])
@pytest.mark.parametrize("name", BUILT)
def test_promise_77_a_bit_of_the_cohort_is_refused_by_its_file(crmo, refused, study, measured, name, place, bit):
    flip(study / name, place, bit)
    refused(name, "measure")
    assert crmo("build", study).code == 0  # the records are as they were
    assert not (study / "results.csv").exists()
    assert crmo("measure", study).code == 0
    assert figures(study) == figures(measured)


@pytest.mark.parametrize("name", ["raw/manifest.json", "cohort/build.json"])
def test_promise_77_any_bit_of_a_manifest_is_refused(study, name):
    raw_as_written = landing.open_raw(study)
    content = (study / name).read_bytes()
    for place in range(len(content)):
        flip(study / name, place, place % 8)
        with pytest.raises(IntegrityError, match=name):
            landing.open_cohort(study, raw_as_written) if "build" in name else landing.open_raw(study)
        (study / name).write_bytes(content)


@pytest.mark.parametrize(("place", "bit"), [(0, 0), (500, 0), (-2, 1)], ids=["first byte", "inside", "last byte"])
def test_promise_77_a_bit_of_a_manifest_is_refused_by_every_command(refused, study, place, bit):
    flip(study / "raw" / "manifest.json", place, bit)
    refused("raw/manifest.json", "build", "measure", "diff")


def test_promise_77_an_edited_record_is_refused(refused, study):
    edit(study / "raw" / "Patient.ndjson", "1996-01-01", "1997-01-01")
    refused("raw/Patient.ndjson", "build", "measure", "diff")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("raw/manifest.json", '"gap_days": 90', '"gap_days": 30'),
        ("raw/manifest.json", '"complete": true', '"complete":  true'),
        ("cohort/build.json", '"orders_count": false', '"orders_count": true'),
    ],
    ids=["parameter", "blank", "build"],
)
def test_promise_77_an_edited_manifest_is_refused(refused, study, name, old, new):
    edit(study / name, old, new)
    refused(name, "measure", *(("build", "diff") if "raw" in name else ()))


@pytest.mark.parametrize("name", ["raw/Condition.ndjson", "raw/ledger.csv", "raw/quarantine.ndjson"])
def test_promise_77_a_missing_file_of_the_records_is_named(refused, study, name):
    (study / name).unlink()
    refused(name, "build", "measure", "diff")


@pytest.mark.parametrize("name", ["cohort/patients.parquet", "cohort/attrition.csv"])
def test_promise_77_a_missing_file_of_the_cohort_is_named(refused, study, name):
    (study / name).unlink()
    refused(name, "measure")


def test_promise_77_a_folder_in_the_place_of_a_file_is_named(refused, study):
    (study / "raw" / "Condition.ndjson").unlink()
    (study / "raw" / "Condition.ndjson").mkdir()
    refused("raw/Condition.ndjson", "build", "measure", "diff")


@pytest.mark.parametrize("name", ["raw/Procedure.ndjson", "raw/.hidden", "cohort/more.parquet"])
def test_promise_77_an_added_file_is_named(refused, study, name):
    (study / name).write_bytes(b"{}\n")
    refused(name, "measure", *(("build", "diff") if "raw" in name else ()))


@pytest.mark.parametrize("command", ["build", "measure", "diff"])
def test_promise_77_a_folder_that_is_no_study_is_left_as_it_is(crmo, tmp_path, command):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("Dear")
    Refusal(crmo, tmp_path / "letters")("", command, code=2)


@pytest.mark.parametrize(
    ("name", "commands"), [("raw/manifest.json", ("build", "measure", "diff")), ("cohort/build.json", ("measure",))]
)
def test_promise_77_without_its_manifest_nothing_is_there(refused, study, name, commands):
    (study / name).unlink()
    refused("", *commands, code=2)


def test_promise_77_a_cohort_of_other_records_is_refused(crmo, refused, study, tmp_path):
    more = files(tmp_path / "more", *COHORT, drug("m3", "p2"))
    assert crmo("extract", more, "-o", tmp_path / "other").code == 0
    shutil.rmtree(study / "cohort")
    shutil.copytree(tmp_path / "other" / "cohort", study / "cohort")
    refused("", "measure")


def test_promise_77_a_cohort_of_another_version_is_refused(refused, monkeypatch):
    monkeypatch.setattr(pipeline, "__version__", "0.0.1")
    refused("", "measure")


def test_promise_77_an_incomplete_pull_is_refused_and_named(crmo, tmp_path):
    study = tmp_path / "study"
    with serving() as server:
        server.faults.append(Fault("status", path="Procedure", status=403, times=99))
        assert_loud(crmo("extract", server.base, "-o", study), study, 4, "403")
        Refusal(crmo, study)("raw/manifest.json", "build", "measure", code=3)
        partial = ("--accept-partial",)
        assert crmo("extract", server.base, *partial, "-o", study).code == 0
    Refusal(crmo, study)("raw/manifest.json", "build", "measure", code=3)
    assert crmo("measure", study, *partial).code == 0
    assert json.loads((study / "raw" / "manifest.json").read_text())["complete"] is False


# ------------------------------------------------------------------------------------------------------ 77, 78: the journal


@dataclass
class CutOff:
    """A pull that was cut off: the journal of all its pages but the last ones."""

    crmo: Callable[..., Any]
    server: FakeServer
    study: Path

    def __call__(self, *options: object) -> None:
        others = {*threading.enumerate()}
        self.server.faults.append(Fault("status", where=page("Observation", 4), status=503, times=99))
        ran = self.crmo("extract", self.server.base, *options, "--retry-budget", "0", "-o", self.study)
        assert ran.code == 5, ran.err
        for thread in {*threading.enumerate()} - others:  # what the other workers still fetch comes to nothing
            if thread.name.startswith("ThreadPool"):
                thread.join()
        self.server.faults.clear()
        assert len(self.answers()) > 20

    def answers(self) -> list[Path]:
        return sorted((self.study / ".journal").glob("*.answer"))

    def again(self, *options: object) -> tuple[Any, int]:
        """Run again; how it went, and how many pages were fetched."""
        before = len(self.server.requests)
        ran = self.crmo("extract", self.server.base, *options, "-o", self.study)
        return ran, len(fetched(self.server.requests[before:]))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving() as fake:
        yield fake


@pytest.fixture
def cut_off(crmo, server, monkeypatch, tmp_path) -> CutOff:
    monkeypatch.setattr(pipeline, "_build", lambda *_, **__: None)
    return CutOff(crmo, server, tmp_path / "study")


WHERE: dict[str, Callable[[bytes], int]] = {
    "its hash": lambda _: 0,
    "its date": lambda content: content.index(b'"date"') + 20,
    "its address": lambda content: content.index(b'"url"') + 20,
    "its body": lambda content: content.index(b'"searchset"') + 3,
    "its end": lambda content: len(content) - 1,
}


@pytest.mark.parametrize("where", WHERE)
def test_promise_77_a_changed_page_of_the_journal_is_fetched_anew(cut_off, where):
    _, pages = cut_off.again()
    shutil.rmtree(cut_off.study)
    cut_off()
    changed = [path for path in cut_off.answers() if b'"searchset"' in path.read_bytes()]
    for path in changed:
        flip(path, WHERE[where](path.read_bytes()))
    good = len(cut_off.answers()) - len(changed)
    ran, again = cut_off.again()
    assert ran.code == 0, ran.err
    assert raw(cut_off.study) == landed(CHILDREN)
    assert again == pages - good


def test_promise_77_pages_of_the_journal_that_changed_places_are_fetched_anew(cut_off):
    cut_off()
    one, other, *_ = cut_off.answers()
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    ran, _ = cut_off.again()
    assert ran.code == 0, ran.err
    assert raw(cut_off.study) == landed(CHILDREN)


def test_promise_77_half_a_page_of_the_journal_is_fetched_anew(cut_off):
    cut_off()
    for number, path in enumerate(cut_off.answers()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * number // 20])
    ran, _ = cut_off.again()
    assert ran.code == 0, ran.err
    assert raw(cut_off.study) == landed(CHILDREN)


@pytest.mark.parametrize("place", [0, 30, -5])
def test_promise_77_a_changed_head_of_the_journal_is_refused(cut_off, place):
    cut_off()
    flip(cut_off.study / ".journal" / "request.json", place, 1)
    before = tree(cut_off.study)
    ran, pages = cut_off.again()
    assert ran.code == 6
    assert "request.json" in said(ran)
    assert tree(cut_off.study) == before
    assert pages == 0


# ---------------------------------------------------------------------------------------------------- 78: nothing is mixed


OTHERWISE: dict[str, tuple[object, ...]] = {
    "since": ("--since", "2003"),
    "until": ("--until", "2010"),
    "max_age_years": ("--max-age", "18"),
    "text_diagnosis": ("--text-diagnosis",),
    "data_lock": ("--data-lock", "2020-01-01"),
    "time_zone": ("--time-zone", "America/New_York"),
    "interval": ("--interval", "clopper-pearson"),
    "group": ("--group", "g1"),
}
SAME = ("--since", "2002", "--until", "2011")


@pytest.mark.parametrize("state", ["finished", "cut off"])
@pytest.mark.parametrize("what", [*OTHERWISE, "mappings", "source", "gap_days"])
def test_promise_78_other_arguments_are_refused_and_nothing_is_touched(cut_off, what, state, tmp_path, monkeypatch):
    if state == "cut off":
        cut_off(*SAME)
    else:
        assert cut_off.again(*SAME)[0].code == 0
    options = [*SAME, *OTHERWISE.get(what, ())]
    if what == "mappings":
        (tmp_path / "site").mkdir()
        options += ["--mappings", tmp_path / "site"]
        local = {"resourceType": "ValueSet", "status": "active", "url": "https://hospital.example/ValueSet/local"}
        (tmp_path / "site" / "ValueSet-local.json").write_text(json.dumps(local))
    if what == "gap_days":
        monkeypatch.chdir(tmp_path)
        Path("crmo-fhir.toml").write_text("[parameters]\ngap_days = 30\n")
    with serving() as other:
        base = other.base if what == "source" else cut_off.server.base
        before, asked = tree(cut_off.study), len(cut_off.server.requests)
        ran = cut_off.crmo("extract", base, *options, "-o", cut_off.study)
        assert ran.code == 2, ran.err
        assert what in said(ran)
        assert str(cut_off.study) in said(ran)
        assert tree(cut_off.study) == before
        assert len(cut_off.server.requests) == asked
        assert other.requests == []
    monkeypatch.chdir("/")
    assert cut_off.again(*SAME)[0].code == 0


def rewritten(path: Path, **members: Any) -> None:
    """A manifest as another version may have written it."""
    said = {name: value for name, value in json.loads(path.read_text()).items() if name != "seal"} | members
    path.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("number", [1, 2, landing.FORMAT + 1, None])
def test_promise_78_another_format_is_refused(crmo, refused, study, tmp_path, number):
    rewritten(study / "raw" / "manifest.json", format=number)
    refused("raw/manifest.json", "build", "measure", "diff")
    before = tree(study)
    ran = crmo("extract", tmp_path.parent, "-o", study)
    assert ran.code == 6, ran.err
    assert "raw/manifest.json" in said(ran)
    assert tree(study) == before


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff", b"{}"])
def test_promise_78_what_is_no_manifest_is_refused(refused, study, content):
    (study / "raw" / "manifest.json").write_bytes(content)
    refused("raw/manifest.json", "build", "measure", "diff")


def test_promise_78_a_journal_of_another_format_is_refused(cut_off):
    cut_off()
    rewritten(cut_off.study / ".journal" / "request.json", format=landing.FORMAT - 1)
    ran, pages = cut_off.again()
    assert ran.code == 6
    assert "request.json" in said(ran)
    assert pages == 0


@pytest.mark.parametrize("hours", [-24 * 365, -1, 1, 24 * 365])
def test_promise_78_a_clock_of_ours_that_is_set_loses_and_repeats_no_increment(cut_off, stamped, monkeypatch, hours):
    study = cut_off.study
    server = cut_off.server = stamped

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + hours * HOUR

    assert cut_off.again()[0].code == 0
    monkeypatch.setattr(pipeline, "datetime", Clock)
    monkeypatch.setattr(landing, "time", SimpleNamespace(time=lambda now=time.time: now() + 3600 * hours))
    for step in range(3):
        server.skew += HOUR
        server.update(lab(f"new-{step}", "p1"))
        since = last(study) - OVERLAP
        before = len(server.requests)
        ran, _ = cut_off.again("--updated-since", "last")
        assert ran.code == 0, ran.err
        asked = {value for request in server.requests[before:] for value in changes_since(request)}
        assert asked == {since}
        assert f"new-{step}".encode() in raw(study)["Observation.ndjson"]


def last(study: Path) -> datetime:
    """The server's time of the last pull."""
    return datetime.fromisoformat(json.loads((study / "raw" / "manifest.json").read_text())["source"]["serverTime"])


def changes_since(request: Request) -> Iterator[datetime]:
    """From when on a request asks for changes; none where that is only whether something changed under a search."""
    asked = request.param("_lastUpdated")
    if asked and not request.param("_summary"):
        yield datetime.fromisoformat(asked.removeprefix("ge"))


# -------------------------------------------------------------------------------------------------------- 79: increments


@dataclass
class Site:
    """A server whose data change, one study that follows it by increments, and whole pulls to compare with."""

    folder: Path
    server: FakeServer
    told: list[str] = field(default_factory=list)
    pulls: int = 0

    def pull(self, name: str, **how: Any) -> Path:
        voice = pipeline.Voice(warn=self.told.append)
        pipeline.extract(self.server.base, self.folder / name, Parameters(), how=How(mode="search", **how), voice=voice)
        return self.folder / name

    def follow(self) -> tuple[Path, list[Request]]:
        """An increment, held against a whole pull; the study and what was asked for it."""
        begun = len(self.server.requests)
        study = self.pull("study", updated_since="last")
        asked = self.server.requests[begun:]
        self.pulls += 1
        whole = self.pull(f"whole-{self.pulls}")
        assert records(study) == records(whole)
        shutil.rmtree(whole)
        return study, asked


def records(study: Path) -> dict[str, Any]:
    """What two pulls of the same data have in common, whichever way they came."""
    manifest = json.loads((study / "raw" / "manifest.json").read_text())
    return {
        **raw(study),
        "ledger": (study / "raw" / "ledger.csv").read_text(),
        "counts": manifest["source"]["records"],
        "complete": manifest["complete"],
    }


@pytest.fixture
def stamped() -> Iterator[FakeServer]:
    with serving(stamped=True) as server:
        yield server


@pytest.fixture
def site(stamped, monkeypatch, tmp_path) -> Site:
    monkeypatch.setattr(pipeline, "_build", lambda *_, **__: None)
    found = Site(tmp_path, stamped)
    found.pull("study")
    stamped.skew += HOUR
    return found


def test_promise_79_nothing_changed_and_no_record_is_sent_again(site):
    before = len(fetched(site.server.requests))
    study, asked = site.follow()
    assert records(study)["complete"] is True
    about_children = [r for r in asked if r.is_search and not r.param("_summary") and r.param("patient")]
    assert about_children
    assert all(r.param("_lastUpdated") for r in about_children)
    assert len(fetched(asked)) < before


@pytest.mark.parametrize("hours", [-9, 0, 9])
def test_promise_79_increments_follow_the_clock_of_the_server(site, hours):
    site.server.skew = hours * HOUR
    shutil.rmtree(site.folder / "study")
    began = site.server.now()
    since = last(site.pull("study"))
    assert abs(since - began) < timedelta(seconds=2)
    site.server.skew += HOUR
    site.server.update(lab("new", "p1"))
    _, asked = site.follow()
    assert {value for request in asked for value in changes_since(request)} == {since - OVERLAP}


def test_promise_79_what_was_written_during_the_last_pull_is_in_the_next(site):
    written = iter([lab("while", "p1")])

    def write(request: Request) -> None:
        # After the Observations were read: this pull does not have it.
        if request.type == "AdverseEvent" and (one := next(written, None)):
            site.server.update(one)

    site.server.on_request = write
    study = site.pull("study", updated_since="last")
    site.server.on_request = None
    site.server.skew += HOUR
    study, _ = site.follow()
    assert b'"while"' in raw(study)["Observation.ndjson"]


def test_promise_79_a_longer_time_may_be_asked_for_and_a_shorter_one_not(site):
    then = last(site.folder / "study")
    begun = len(site.server.requests)
    site.pull("study", updated_since=instant(then - 48 * HOUR))
    asked = {value for request in site.server.requests[begun:] for value in changes_since(request)}
    assert asked == {then - 48 * HOUR}
    for wrong, words in (
        (instant(then + 48 * HOUR), "would be missed"),
        ("yesterday", "takes 'last' or an instant"),
        ("2026-01-31T12:00:00", "takes 'last' or an instant"),
    ):
        with pytest.raises(CrmoFhirError, match=words) as failed:
            site.pull("study", updated_since=wrong)
        assert failed.value.exit_code == 2


def test_promise_79_without_a_last_pull_there_is_no_increment(site, tmp_path):
    with pytest.raises(CrmoFhirError, match="no pull here to update") as failed:
        site.pull("other", updated_since="last")
    assert failed.value.exit_code == 2
    assert not (tmp_path / "other").exists()


def test_promise_79_without_a_clock_there_is_no_increment(site):
    shutil.rmtree(site.folder / "study")
    site.server.faults.append(Fault("change", change=lambda page: page, headers={"Date": "soon"}, times=10**6))
    site.pull("study")
    with pytest.raises(CrmoFhirError, match="no clock") as failed:
        site.pull("study", updated_since="last")
    assert failed.value.exit_code == 2


def undeclared(statement: Resource) -> Resource:
    for kind in statement["rest"][0]["resource"]:
        kind["searchParam"] = [one for one in kind["searchParam"] if one["name"] != "_lastUpdated"]
    return statement


def timeless(page: Resource) -> Resource:
    for entry in page.get("entry", ()):
        entry["resource"].pop("meta", None)
    return page


POOR: dict[str, dict[str, Any]] = {
    "does not declare _lastUpdated": {"declare": undeclared},
    "refuses _lastUpdated": {"unknown": {"_lastUpdated"}},
    "ignores _lastUpdated": {"ignored": {"_lastUpdated"}},
    "ignores _lastUpdated and says it does not": {"ignored": {"_lastUpdated"}, "lies": True},
    "has no totals": {"totals": False},
    "has no counts": {"totals": False, "counts": False},
    "shows no times of its records": {
        "faults": [Fault("change", change=timeless, times=10**6, where=lambda request: request.is_search)]
    },
}


@pytest.mark.parametrize("poor", POOR)
def test_promise_79_a_server_that_is_no_help_is_asked_for_everything(site, poor):
    for name, value in POOR[poor].items():
        setattr(site.server, name, value)
    shutil.rmtree(site.folder / "study")
    site.pull("study")
    site.server.skew += HOUR
    happen(site.server)
    study, _ = site.follow()
    assert b'"new"' in raw(study)["Observation.ndjson"]


def test_promise_79_a_server_whose_clock_was_set_back_is_asked_for_everything(site):
    site.server.skew = -HOUR
    happen(site.server)
    _, asked = site.follow()
    assert [value for request in asked for value in changes_since(request)] == []
    assert any("clock" in warning for warning in site.told)
    site.server.skew += timedelta(minutes=30)
    happen(site.server, "newer", "l3")
    site.follow()


def happen(server: FakeServer, new: str = "new", gone: str = "l2") -> None:
    """Something is written, something changed, something deleted."""
    server.update(lab(new, "p1"))
    server.delete("Observation", gone)
    server.update({**server.store.get("Observation", "o1").resource, "status": f"amended by {new}"})


def test_promise_79_a_server_that_finds_no_change_by_date_is_not_believed(site):
    # A server that keeps no index of _lastUpdated: nothing is ever found by it, and the count of all stays.
    site.server.update({**site.server.store.get("Observation", "o1").resource, "status": "amended"})
    nothing = Fault("change", change=empty, times=10**6, where=lambda request: bool(request.param("_lastUpdated")))
    site.server.faults.append(nothing)
    study, _ = site.follow()
    assert b"amended" in raw(study)["Observation.ndjson"]


def empty(answer: Resource) -> Resource:
    rest = {name: value for name, value in answer.items() if name not in ("entry", "link")}
    return {**rest, **({"total": 0} if "total" in answer else {})}


def test_promise_79_what_was_not_whole_is_fetched_whole(site):
    site.server.faults.append(Fault("status", path="Procedure", status=403, times=99))
    shutil.rmtree(site.folder / "study")
    site.pull("study", accept_partial=True)
    site.server.faults.clear()
    site.server.skew += HOUR
    _, asked = site.follow()
    assert [r for r in asked if r.type == "Procedure" and not r.param("_lastUpdated") and not r.param("_summary")]


def test_promise_79_an_increment_that_fails_leaves_the_last_pull(site):
    before = contents(site.folder / "study")
    site.server.update(lab("new", "p1"))
    site.server.faults.append(Fault("status", path="Procedure", status=403, times=99))
    with pytest.raises(CrmoFhirError):
        site.pull("study", updated_since="last")
    assert contents(site.folder / "study") == before
    site.server.faults.clear()
    site.follow()


# ------------------------------------------------------------------------------------- 79: whatever happens on the server


class Hospital:
    """A server's data, and what may happen to them; a number says to which."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.made = 0

    def of(self, kind: str, number: int) -> Resource | None:
        """One resource of a type."""
        known = sorted(self.server.store.types[kind])
        return dict(self.server.store.types[kind][known[number % len(known)]].resource) if known else None

    def child(self, number: int) -> str:
        return str(self.of("Patient", number)["id"])

    def name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}{self.made}x"

    def admit(self, _: int) -> None:
        for one in child(1000 + self.made):
            self.server.update(one)
        self.made += 1

    def admit_by_words(self, number: int) -> None:
        who = self.name("w")
        self.server.update(patient(who))
        self.server.update(diagnosis(self.name("c"), who, code={"text": "CRMO, suspected"}))
        self.server.update(lab(self.name("l"), who))

    def diagnose(self, number: int) -> None:
        self.server.update(diagnosis(self.name("c"), self.child(number)))

    def measure(self, number: int) -> None:
        self.server.update(lab(self.name("l"), self.child(number)))

    def prescribe(self, number: int) -> None:
        self.server.update(drug(self.name("m"), self.child(number)))

    def judge(self, number: int) -> None:
        if (given := self.of("MedicationStatement", number)) is not None:
            who = given["subject"]["reference"].partition("/")[2]
            self.server.update(effect(self.name("o"), who, given["id"]))

    def change(self, kind: str) -> Callable[[int], None]:
        def change(number: int) -> None:
            if (one := self.of(kind, number)) is not None:
                self.server.update({**one, "note": [{"text": f"changed {self.name('n')}"}]})

        return change

    def delete(self, kind: str) -> Callable[[int], None]:
        def delete(number: int) -> None:
            if (one := self.of(kind, number)) is not None:
                self.server.delete(kind, one["id"])

        return delete

    def move(self, kind: str) -> Callable[[int], None]:
        def move(number: int) -> None:
            if (one := self.of(kind, number)) is not None:
                self.server.update({**one, "subject": {"reference": f"Patient/{self.child(number // 7)}"}})

        return move

    def exchange(self, number: int) -> None:
        """One record goes to another child and one comes from there: the counts stay."""
        self.move("Observation")(number)
        self.measure(number)
        self.delete("Observation")(number // 3)

    def refute(self, number: int) -> None:
        system = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
        if (one := self.of("Condition", number)) is not None:
            self.server.update({**one, "verificationStatus": {"coding": [{"system": system, "code": "refuted"}]}})

    def recode(self, number: int) -> None:
        if (one := self.of("Condition", number)) is not None:
            self.server.update({**one, "code": {"text": "asthma"}})

    def link(self, kind: str) -> Callable[[int], None]:
        def merge(number: int) -> None:
            one, other = self.of("Patient", number), self.child(number // 5)
            if one["id"] != other:
                self.server.update({**one, "link": [{"other": {"reference": f"Patient/{other}"}, "type": kind}]})

        return merge

    def part(self, number: int) -> None:
        one = {name: value for name, value in self.of("Patient", number).items() if name not in ("link", "identifier")}
        self.server.update(one)

    def number_alike(self, number: int) -> None:
        one = self.of("Patient", number)
        self.server.update({**one, "identifier": [{"system": "urn:mrn", "value": "the same"}]})

    def register(self, number: int) -> None:
        self.server.update(
            patient(
                self.name("p"), link=[{"other": {"reference": f"Patient/{self.child(number)}"}, "type": "replaces"}]
            )
        )

    @property
    def events(self) -> dict[str, Callable[[int], None]]:
        kinds = ("Observation", "MedicationStatement", "Encounter", "Procedure")
        return {
            "admit": self.admit,
            "admit by words": self.admit_by_words,
            "diagnose": self.diagnose,
            "measure": self.measure,
            "prescribe": self.prescribe,
            "judge": self.judge,
            **{f"change {kind}": self.change(kind) for kind in (*kinds, "Condition", "Patient", "Medication")},
            **{f"delete {kind}": self.delete(kind) for kind in (*kinds, "Condition")},
            **{f"move {kind}": self.move(kind) for kind in (*kinds, "Condition")},
            "exchange": self.exchange,
            "refute": self.refute,
            "recode": self.recode,
            "merge": self.link("replaced-by"),
            "see also": self.link("seealso"),
            "part": self.part,
            "number alike": self.number_alike,
            "register": self.register,
        }


EVENTS = sorted(Hospital(SimpleNamespace()).events)  # type: ignore[arg-type]
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 60, 60 * 24]),  # minutes until then
        st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 99)), max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40, derandomize=True, deadline=None, phases=(Phase.generate,))
@given(steps=STEPS, page_size=st.sampled_from([3, 200]), batch=st.sampled_from([1, 2, 50]))
def test_promise_79_increments_add_up_to_a_whole_pull(steps, page_size, batch):
    with (
        pytest.MonkeyPatch.context() as patch,
        TemporaryDirectory() as folder,
        serving(cohort(3), page_size=page_size, stamped=True) as server,
    ):
        patch.setattr(pipeline, "_build", lambda *_, **__: None)
        patch.setattr(plan, "BATCH", batch)  # so many children are asked for at a time
        site, hospital = Site(Path(folder), server), Hospital(server)
        site.pull("study")
        for minutes, events in steps:
            server.skew += timedelta(minutes=minutes)
            for name, number in events:
                hospital.events[name](number)
            site.follow()


# ----------------------------------------------------------------------------------------------------------------- diff


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def table(out: str) -> dict[str, list[int]]:
    """The counts on the screen, by type: new, changed, vanished, merged."""
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["new", "changed", "vanished", "merged"]
    return {line[0]: [int(value) for value in line[1:5]] for line in lines[1:] if len(line) == 5 and line[1].isdigit()}


def test_promise_79_diff_counts_what_is_new_changed_vanished_and_merged(crmo, site):
    server, later = site.server, site.folder / "later"
    server.update(lab("new-1", "p1"))
    server.update(lab("new-2", "p2"))
    server.update({**server.store.get("Observation", "o1").resource, "status": "amended"})
    server.update(server.store.get("Observation", "o2").resource)  # only its version and its time
    server.delete("Procedure", "s3")
    replaced = {"link": [{"type": "replaced-by", "other": {"reference": "Patient/p3"}}]}
    server.update({**server.store.get("Patient", "p2").resource, **replaced})
    site.pull("later")
    out = site.folder / "changes.csv"
    ran = crmo("diff", site.folder / "study", later, "--out", out)
    assert ran.code == 0, ran.err
    assert table(ran.out) == {
        "Observation": [2, 1, 0, 0],
        "Patient": [0, 0, 0, 1],
        "Procedure": [0, 0, 1, 0],
    }
    assert [(row["type"], row["state"], row["id"], row["into"]) for row in rows(out)] == [
        ("Observation", "changed", "o1", ""),
        ("Observation", "new", "new-1", ""),
        ("Observation", "new", "new-2", ""),
        ("Patient", "merged", "p2", "p3"),
        ("Procedure", "vanished", "s3", ""),
    ]
    assert {row["base"] for row in rows(out)} == {server.base}
    assert out.stat().st_mode & 0o077 == 0


def test_promise_79_diff_the_other_way_round(crmo, site):
    site.server.update(lab("new-1", "p1"))
    site.pull("later")
    ran = crmo("diff", site.folder / "later", site.folder / "study")
    assert ran.code == 0
    assert table(ran.out) == {"Observation": [0, 0, 1, 0]}


def test_promise_79_diff_of_the_same_says_so(crmo, site):
    site.pull("later")
    for other in ("later", "study", "../study"):
        path = site.folder / "study" / ".." / "study" if other.startswith("..") else site.folder / other
        ran = crmo("diff", site.folder / "study", path)
        assert ran.code == 0, ran.err
        assert "the same records" in ran.out


def test_promise_79_diff_touches_neither_study(crmo, site):
    site.server.update(lab("new-1", "p1"))
    site.pull("later")
    before = tree(site.folder / "study"), tree(site.folder / "later")
    assert crmo("diff", site.folder / "study", site.folder / "later").code == 0
    assert (tree(site.folder / "study"), tree(site.folder / "later")) == before


def test_promise_79_diff_needs_two_studies(crmo, site, tmp_path):
    ran = crmo("diff", site.folder / "study", tmp_path / "nowhere")
    assert ran.code == 2
    assert "nowhere" in said(ran)
    assert not (tmp_path / "nowhere").exists()


def test_promise_79_diff_into_a_place_that_is_none(crmo, site):
    ran = crmo("diff", site.folder / "study", site.folder / "study", "--out", site.folder / "nowhere" / "x.csv")
    assert ran.code in (2, 6)
    assert "nowhere" in said(ran)
