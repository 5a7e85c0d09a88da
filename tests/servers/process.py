"""Start a server on a free port of 127.0.0.1, wait until it is ready, and end it."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(
    command: Sequence[object],
    log: Path,
    ready: Callable[[], bool],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    within: float = 240,
) -> Iterator[None]:
    """Run `command` in `folder` until the block ends; both its streams go to `log`."""
    with log.open("wb") as out:
        server = subprocess.Popen(
            [str(part) for part in command],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
    try:
        deadline = time.monotonic() + within
        while not ready():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait(timeout=30)


def says_ready(log: Path) -> Callable[[], bool]:
    """Whether the server has written READY."""
    return lambda: b"READY" in log.read_bytes()


def answers(url: str) -> Callable[[], bool]:
    """Whether a GET of `url` is answered."""

    def ready() -> bool:
        try:
            with urlopen(url, timeout=5):
                return True
        except OSError:
            return False

    return ready
