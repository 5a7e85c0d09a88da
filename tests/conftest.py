"""What every test may use: the program in process, one finished study, real servers."""

import sys
from pathlib import Path

import pytest
from promises.table import Table
from servers import hapi as hapi_server
from servers.records import resources
from support import DEMONSTRATION, DRAWN, Ran, missing_tools, skip_unless

from crmo_fhir import cli, pipeline
from crmo_fhir.engine import open_duckdb, open_engine
from crmo_fhir.export import charts


def pytest_addoption(parser):
    parser.addoption("--promises", type=Path, help="Write the table promise → tests → status of this run.")


def pytest_configure(config):
    if path := config.getoption("--promises"):
        config.pluginmanager.register(Table(path))


@pytest.fixture
def crmo(capsys, monkeypatch):
    """Run `crmo-fhir ARGS` in process, as the console script would."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["crmo-fhir", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Ran(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session", autouse=True)
def drawn_once():
    """Draw a chart once in a run: the same input gives the same SVG (`test_report` draws anew to see that)."""

    def remembered(draw):
        def once(*arguments: object, **named: object) -> str:
            key = f"{draw.__name__} {arguments!r} {sorted(named.items())!r}"
            if key not in DRAWN:
                DRAWN[key] = draw(*arguments, **named)
            return DRAWN[key]

        return once

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in vars(charts) if name.startswith("draw_")]:
            patch.setattr(charts, name, remembered(getattr(charts, name)))
        yield


@pytest.fixture(scope="session")
def demo_study(tmp_path_factory) -> Path:
    """The demonstration, extracted and measured once."""
    study = tmp_path_factory.mktemp("demo") / "study"
    pipeline.demo(study)
    return study


@pytest.fixture(scope="session")
def spark():
    """One Spark session on two cores for the whole run: starting one takes seconds."""
    skip_unless("spark", "Spark", missing_tools("java"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1"
        )  # many queries over little data: compile them quickly
        with open_engine("spark:local[2]", memory="1GB") as opened:
            yield opened


@pytest.fixture(scope="session")
def duck():
    with open_duckdb(threads=1) as opened:
        yield opened


@pytest.fixture(params=["duckdb", pytest.param("spark", marks=pytest.mark.spark)])
def any_engine(request):
    """Each engine in turn."""
    return request.getfixturevalue({"duckdb": "duck", "spark": "spark"}[request.param])


@pytest.fixture(scope="session")
def hapi(tmp_path_factory):
    """The base URL of a real HAPI server that holds the demonstration."""
    skip_unless("hapi", "the HAPI server", missing_tools("java", "mvn"))
    with hapi_server.running(tmp_path_factory.mktemp("hapi") / "hapi.log") as base:
        hapi_server.load(base, resources(DEMONSTRATION))
        yield base
