"""What every test may use: the program in process, one finished study, real servers."""

import sys
from pathlib import Path

import pytest
from promises.table import Table
from servers import hapi as hapi_server
from servers.records import resources
from support import DEMONSTRATION, Ran, missing_tools, skip_unless

from crmo_fhir import cli, pipeline


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


@pytest.fixture(scope="session")
def demo_study(tmp_path_factory) -> Path:
    """The demonstration, extracted and measured once."""
    study = tmp_path_factory.mktemp("demo") / "study"
    pipeline.demo(study)
    return study


@pytest.fixture(scope="session")
def hapi(tmp_path_factory):
    """The base URL of a real HAPI server that holds the demonstration."""
    skip_unless("hapi", "the HAPI server", missing_tools("java", "mvn"))
    with hapi_server.running(tmp_path_factory.mktemp("hapi") / "hapi.log") as base:
        hapi_server.load(base, resources(DEMONSTRATION))
        yield base
