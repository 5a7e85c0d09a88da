"""The real HAPI FHIR server of this folder, built by Maven on first use."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers.process import free_port, says_ready, started
from servers.records import load

__all__ = ["build", "load", "running"]

HERE = Path(__file__).resolve().parent / "hapi"
LIBRARIES = HERE / "target" / "lib"
VERSION = "8.8.0"


def build() -> None:
    """Build the server unless that was done; about two minutes with an empty Maven cache."""
    if not (HERE / "target" / "hapi-runner-1.jar").is_file():
        subprocess.run(["mvn", "-B", "-q", "package"], cwd=HERE, check=True, timeout=1800)


@contextmanager
def running(log: Path, *options: str) -> Iterator[str]:
    """The base URL of a fresh, empty server on a free port of 127.0.0.1."""
    build()
    port = free_port()
    command = (
        *("java", "-Xmx1500m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Duser.timezone=UTC", *options),
        *("-cp", f"{HERE}/target/hapi-runner-1.jar:{LIBRARIES}/*", "local.hapi.HapiMain", port),
    )
    with started(command, log, says_ready(log)):
        yield f"http://127.0.0.1:{port}/fhir"
