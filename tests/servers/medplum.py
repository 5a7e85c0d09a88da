"""The FHIR router of Medplum over a memory store: a deliberately poor server (no links, no totals unless asked, no includes)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import node
from servers.process import free_port, says_ready, started

VERSION = "4.5.2"


@contextmanager
def running(log: Path) -> Iterator[str]:
    """The base URL of a fresh, empty server on a free port of 127.0.0.1."""
    node.install(node.MEDPLUM)
    port = free_port()
    with started(("node", "server.mjs", port), log, says_ready(log), folder=node.MEDPLUM, within=60):
        yield f"http://127.0.0.1:{port}"
