"""The way back to real servers of two makes, HAPI and Helios: what they hold afterwards, asked of them by other means than ours."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from promises.records import COHORT
from servers import helios as helios_server
from servers import proxy
from servers.records import Resource, load
from support import Ran, missing_tools, skip_unless
from test_servers import SCOPES, missing_for_helios
from validator.runner import validate

from crmo_fhir import landing
from crmo_fhir.export.observations import build_attributed_effects
from crmo_fhir.fhir.client import FhirClient
from crmo_fhir.model.tables import COHORT as TABLES
from crmo_fhir.publish import describe_origin

WINDOW = ("--since", "2002", "--until", "2011")
KINDS = ("Library", "Measure", "MeasureReport", "Provenance")
LOADING = "system/*.cruds"
WRITING = tuple(f"system/{kind}.crus" for kind in KINDS)


@dataclass
class Real:
    """A real server behind a proxy, a token where it wants one, and two studies of it whose results differ."""

    base: str
    proxy: proxy.Proxy
    token: str
    folder: Path
    helios: helios_server.Helios | None

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request, not through our client and not through the proxy."""
        headers = {"Content-Type": "application/fhir+json", "Cache-Control": "no-cache"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = json.dumps(body).encode() if body is not None else None
        try:
            with urlopen(Request(f"{self.base}/{path}", data, headers, method=method), timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except HTTPError as error:
            return error.code, None

    def found(self, kind: str, **params: str) -> list[Resource]:
        status, bundle = self.ask("GET", f"{kind}?{urlencode(params)}")
        assert status == 200
        return [entry["resource"] for entry in bundle.get("entry", ()) if entry["resource"]["resourceType"] == kind]

    def clear(self) -> None:
        """Nothing was ever published."""
        for kind in reversed(KINDS):
            for one in self.found(kind):
                assert self.ask("DELETE", f"{kind}/{one['id']}")[0] in (200, 202, 204)


def studies(crmo: Any, base: str, folder: Path) -> None:
    """Two studies of one identity (measure, version, period, reporter) and other results: the intervals differ."""
    study, edited = folder / "study", folder / "edited"
    steps: list[tuple[object, ...]] = [("extract", base, *WINDOW, "--mode", "search", "-o", study), ("measure", study)]
    steps += [("build", edited), ("measure", edited)]
    for step in steps:
        if step[0] == "build":  # as if it had been extracted so
            shutil.copytree(study, edited)
            path = edited / "raw" / "manifest.json"
            manifest = json.loads(path.read_text())
            manifest["request"]["interval"] = "clopper-pearson"
            path.write_text(landing._sealed(manifest))
        ran = crmo(*step, "-q")
        assert ran.code == 0, ran.err


@pytest.fixture(scope="module")
def configured(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("configuration") / "crmo-fhir.toml"
    path.write_text('reporter = "Test Hospital"\n')
    return path


@pytest.fixture(scope="module")
def running(request, tmp_path_factory) -> Iterator[Real]:
    """HAPI with the demonstration, or Helios, which checks tokens, with two children."""
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        if request.param == "hapi":
            base, token, helios = request.getfixturevalue("hapi"), "", None
        else:
            skip_unless("helios", "the Helios server", missing_for_helios())
            granted = (LOADING, "system/*.rs", *SCOPES, *WRITING)
            helios = stack.enter_context(helios_server.running(folder, granted, seconds=1800))
            base, token = helios.base, helios.token(LOADING)
            load(base, COHORT, token=token)
        yield Real(base, stack.enter_context(proxy.before(base)), token, folder, helios)


@pytest.fixture
def real(running, configured, crmo, tmp_path, monkeypatch) -> Iterator[Real]:
    """The server with nothing published on it, and copies of its studies."""
    monkeypatch.setenv("CRMO_FHIR_CONFIG", str(configured))
    monkeypatch.setitem(FhirClient.__init__.__kwdefaults__, "sleep", lambda _: None)
    if running.helios:
        monkeypatch.setenv("CRMO_FHIR_CLIENT_ID", running.helios.client)
        monkeypatch.setenv("CRMO_FHIR_KEY_FILE", str(running.helios.jwk))
    made = running.folder / "studies"
    if not made.exists():
        studies(crmo, running.proxy.base, made)
    for name in ("study", "edited"):
        shutil.copytree(made / name, tmp_path / name)
    running.clear()
    running.proxy.reset()
    return running


both = pytest.mark.parametrize(
    "running", [pytest.param("hapi", marks=pytest.mark.hapi), "helios"], indirect=True, scope="module"
)


def shown(crmo: Any, study: Path, *arguments: str) -> str:
    ran = crmo("publish", study, *arguments)
    assert ran.code == 0, ran.err
    return re.search(r"--confirm ([0-9a-f]{64})\n", ran.out)[1]


def confirmed(crmo: Any, study: Path, *arguments: str) -> Ran:
    return crmo("publish", study, *arguments, "--confirm", shown(crmo, study, *arguments))


def assert_refused(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, (ran.code, ran.err)
    (line,) = (one for one in ran.err.strip().splitlines() if "warning" not in one)
    assert all(word in line for word in words), line


def reports(real: Real, study: Path) -> list[Resource]:
    """`GET MeasureReport?identifier=…` of the study's own."""
    (one,) = json.loads((study / "measure-report.json").read_text())["identifier"]
    return real.found("MeasureReport", identifier=f"{one['system']}|{one['value']}")


def bare(resource: Resource) -> Resource:
    """All but id, version, time, source and narrative."""
    kept = {name: value for name, value in resource.items() if name not in ("id", "meta", "text")}
    return {**kept, "profile": resource["meta"]["profile"]}


def assert_published(real: Real, study: Path, version: str, *, status: str = "complete") -> None:
    """Exactly one report, equal to the file, in this version."""
    (report,) = reports(real, study)
    expected = bare(json.loads((study / "measure-report.json").read_text()))
    assert bare(report) == {**expected, "status": status}
    assert report["meta"]["versionId"] == version


def counts(real: Real) -> list[int]:
    return [len(real.found(kind)) for kind in KINDS]


@both
def test_created_left_alone_updated_withdrawn(real, crmo, tmp_path):
    study, edited = tmp_path / "study", tmp_path / "edited"
    ran = confirmed(crmo, study)
    assert ran.code == 0, ran.err
    assert_published(real, study, "1")
    assert counts(real) == [1, 1, 1, 1]
    before = len(real.proxy.passed)
    again = crmo("publish", study)
    assert (again.code, "nothing to write" in again.out) == (0, True), again.err
    assert {method for method, path in real.proxy.passed[before:] if "token" not in path} == {"GET"}
    shutil.copytree(study / "receipts", edited / "receipts")
    ran = confirmed(crmo, edited)
    assert ran.code == 0, ran.err
    assert_published(real, edited, "2")
    assert counts(real) == [1, 1, 1, 2]
    ran = confirmed(crmo, edited, "--withdraw")
    assert ran.code == 0, ran.err
    assert_published(real, edited, "3", status="error")


@both
def test_an_edit_by_somebody_else_is_not_written_over(real, crmo, tmp_path):
    study, edited = tmp_path / "study", tmp_path / "edited"
    assert confirmed(crmo, study).code == 0
    shutil.copytree(study / "receipts", edited / "receipts")
    approved = shown(crmo, edited)
    (report,) = reports(real, study)
    name = f"MeasureReport/{report['id']}"

    def edit(method: str, path: str) -> None:
        """Somebody else, between our last look and our write."""
        if method == "PUT" and name in path:
            real.proxy.reset()
            assert real.ask("PUT", name, {**report, "status": "pending"})[0] == 200

    real.proxy.before = edit
    assert_refused(crmo("publish", edited, "--confirm", approved), 8, f"{name}/_history/1", f"{name}/_history/2")
    assert_refused(crmo("publish", edited, "--confirm", approved), 8, f"{name}/_history/2", "version 1")
    (now,) = reports(real, study)
    assert (now["status"], now["meta"]["versionId"]) == ("pending", "2")


@both
def test_an_answer_that_is_lost_after_the_write_leaves_exactly_one(real, crmo, tmp_path):
    study = tmp_path / "study"
    approved = shown(crmo, study)
    real.proxy.loses = lambda method, path: method in ("POST", "PUT")
    ran = crmo("publish", study, "--confirm", approved)
    assert ran.code == 0, ran.err
    assert "not known" in ran.err
    real.proxy.reset()
    assert crmo("publish", study, "--confirm", approved).code == 0
    assert counts(real) == [1, 1, 1, 1]
    assert_published(real, study, "1")


@both
def test_a_transaction_with_one_bad_entry_leaves_nothing(real, crmo, tmp_path):
    study = tmp_path / "study"
    approved = shown(crmo, study)
    other = {
        **json.loads((study / "measure-report.json").read_text()),
        "identifier": [{"system": "urn:x", "value": "y"}],
    }
    del other["id"]
    status, theirs = real.ask("POST", "MeasureReport", other)
    assert status == 201

    def spoil(method: str, body: bytes) -> bytes:
        """The report as an update of somebody else's, in a version that it does not have."""
        if method != "POST" or b'"transaction"' not in body:
            return body
        bundle = json.loads(body)
        entry = bundle["entry"][-1]
        entry["request"] = {"method": "PUT", "url": f"MeasureReport/{theirs['id']}", "ifMatch": 'W/"7"'}
        entry["resource"]["id"] = theirs["id"]
        return json.dumps(bundle).encode()

    real.proxy.change = spoil
    assert_refused(crmo("publish", study, "--confirm", approved), 8, "not written")
    assert counts(real) == [0, 0, 1, 0]
    assert real.found("MeasureReport")[0]["meta"]["versionId"] == "1"


@pytest.mark.parametrize("running", ["helios"], indirect=True, scope="module")
def test_a_token_for_reading_is_refused_before_the_first_write(real, crmo, tmp_path, monkeypatch):
    approved = shown(crmo, tmp_path / "study")
    monkeypatch.delenv("CRMO_FHIR_CLIENT_ID")
    monkeypatch.delenv("CRMO_FHIR_KEY_FILE")
    monkeypatch.setenv("CRMO_FHIR_TOKEN", real.helios.token("system/*.rs"))
    before = len(real.proxy.passed)
    ran = crmo("publish", tmp_path / "study", "--confirm", approved)
    assert_refused(ran, 4, "system/MeasureReport.crus", "nothing was written")
    assert real.proxy.passed[before:] == []
    assert counts(real) == [0, 0, 0, 0]


def test_a_client_that_may_only_read_is_refused_before_the_first_write(crmo, configured, tmp_path, monkeypatch):
    skip_unless("helios", "the Helios server", missing_for_helios())
    monkeypatch.setenv("CRMO_FHIR_CONFIG", str(configured))
    narrower = [scope for scope in WRITING if "MeasureReport" not in scope]
    with helios_server.running(tmp_path, (*SCOPES, *narrower)) as server:
        monkeypatch.setenv("CRMO_FHIR_CLIENT_ID", server.client)
        monkeypatch.setenv("CRMO_FHIR_KEY_FILE", str(server.jwk))
        for arguments in (("extract", server.base, *WINDOW, "-o", tmp_path / "study"), ("measure", tmp_path / "study")):
            ran = crmo(*arguments, "-q")
            assert ran.code == 0, ran.err
        assert_refused(crmo("publish", tmp_path / "study"), 4, "system/MeasureReport.crus", "nothing written")


@pytest.mark.validator
def test_what_is_written_beside_the_report_is_valid(demo_study, tmp_path):
    skip_unless("validator", "the FHIR validator", missing_tools("java", "mvn"))
    folder, report = demo_study / "cohort", json.loads((demo_study / "measure-report.json").read_text())
    tables = {n: TABLES[n].from_parquet((folder / f"{n}.parquet").read_bytes()) for n in ("courses", "assessments")}
    effects = build_attributed_effects(tables)
    assert len(effects) > 5
    told = {"target": [{"reference": "MeasureReport/1/_history/1"}], "recorded": "2026-11-25T12:00:00.000Z"}
    written = [{**describe_origin([report], "0" * 64, withdrawn=one), **told} for one in (False, True)] + effects
    paths = [tmp_path / f"{number}.json" for number in range(len(written) + 1)]
    for path, resource in zip(paths, [*written, {**written[0], "agent": []}], strict=True):
        path.write_text(json.dumps(resource))
    found = validate(paths, [])
    assert [found[path.name].errors > 0 for path in paths] == [False] * len(written) + [True]
