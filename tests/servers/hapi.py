"""Start the real HAPI FHIR server of this folder (built by Maven on first use) and load records into it."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

HERE = Path(__file__).resolve().parent / "hapi"
READY_WITHIN = 240


def build() -> None:
    """Build the server unless that was done; about two minutes with an empty Maven cache."""
    if not (HERE / "target" / "hapi-runner-1.jar").is_file():
        subprocess.run(["mvn", "-B", "-q", "package"], cwd=HERE, check=True, timeout=1800)


@contextmanager
def running(log: Path, *options: str) -> Iterator[str]:
    """The base URL of a fresh, empty server on a free port of 127.0.0.1."""
    build()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as out:
        server = subprocess.Popen(
            [
                *("java", "-Xmx1500m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Duser.timezone=UTC", *options),
                *("-cp", f"{HERE}/target/hapi-runner-1.jar:{HERE}/target/lib/*", "local.hapi.HapiMain", str(port)),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + READY_WITHIN
        while b"READY" not in log.read_bytes():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"HAPI did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/fhir"
    finally:
        server.terminate()
        server.wait(timeout=30)


def load(base: str, resources: Iterable[dict[str, Any]], batch: int = 200) -> None:
    """Write resources under their own ids; an absolute reference becomes one on this server.

    What refers to something not yet there is refused and written again after the rest; Patients that link to each other
    are first written without their links.
    """
    waiting = list(resources)
    linked = [r for r in waiting if "link" in r]
    for _ in _write(base, [{k: v for k, v in r.items() if k != "link"} for r in linked]):
        pass
    while waiting:
        refused = [
            resource
            for start in range(0, len(waiting), batch)
            for resource, status in _write(base, waiting[start : start + batch])
            if not status.startswith("2")
        ]
        if len(refused) == len(waiting):
            raise RuntimeError(f"the server refuses {len(refused)} resources for good")
        waiting = refused


def _write(base: str, resources: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    entries = [
        {"resource": r, "request": {"method": "PUT", "url": f"{r['resourceType']}/{r['id']}"}} for r in resources
    ]
    body = json.dumps({"resourceType": "Bundle", "type": "batch", "entry": entries})
    body = re.sub(r'"reference": "https?://[^"]*?/([A-Z][A-Za-z]+/[^"/]+)"', r'"reference": "\1"', body)
    request = Request(base, data=body.encode(), headers={"Content-Type": "application/fhir+json"}, method="POST")
    with urlopen(request, timeout=600) as response:
        answer = json.load(response)
    return zip(resources, (entry["response"]["status"] for entry in answer["entry"]), strict=True)
