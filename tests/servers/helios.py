"""The Helios FHIR Server (Rust, SQLite) that checks tokens, and the OAuth 2 server that gives them (SMART Backend Services)."""

import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from servers import hapi, node
from servers.process import answers, free_port, says_ready, started

HERE = Path(__file__).resolve().parent / "helios" / "target"
VERSION = "0.2.7"
CLIENT = "crmo-test"
PARAMETERS = "search-parameters-r4.json"
_JAR = f"hapi-fhir-validation-resources-r4-{hapi.VERSION}.jar"
_ENTRY = "org/hl7/fhir/r4/model/sp/search-parameters.json"


@dataclass(frozen=True, slots=True)
class Helios:
    """A running pair: FHIR base, token endpoint, client id, its private key (PEM and JWK), and the OAuth server's log."""

    base: str
    token_endpoint: str
    client: str
    pem: Path
    jwk: Path
    sign_ins: Path

    def token(self, scope: str) -> str:
        """An access token of this scope, fetched by a client that is not ours."""
        command = ["node", "token.mjs", str(self.pem), self.client, self.token_endpoint, scope]
        return subprocess.run(command, cwd=node.OIDC, check=True, capture_output=True, text=True).stdout.strip()

    def granted(self) -> int:
        """How many tokens were given so far."""
        return self.sign_ins.read_text().splitlines().count("GRANTED")


def program() -> Path | None:
    """The server's binary: HFS_BIN, else the one built here, else the one on the PATH."""
    built, on_path = HERE / "bin" / "hfs", shutil.which("hfs")
    if named := os.environ.get("HFS_BIN"):
        return Path(named)
    if built.is_file():
        return built
    return Path(on_path) if on_path else None


def build() -> Path:
    """The server's binary, built by cargo unless that was done: ten minutes and 4 GB of memory (libssl-dev, pkg-config)."""
    if found := program():
        return found
    command = (
        f"cargo install helios-hfs --version {VERSION} --locked --debug --no-default-features --features R4,sqlite"
    )
    small = {**os.environ, "CARGO_PROFILE_DEV_DEBUG": "0", "CARGO_INCREMENTAL": "0"}
    subprocess.run([*command.split(), "--root", str(HERE)], env=small, check=True, timeout=3600)
    return HERE / "bin" / "hfs"


def _search_parameters() -> Path:
    """The folder with R4's SearchParameters as Helios wants them, taken out of a library of HAPI."""
    data = HERE / "data"
    if not (data / PARAMETERS).is_file():
        hapi.build()
        data.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(hapi.LIBRARIES / _JAR) as jar:
            (data / PARAMETERS).write_bytes(jar.read(_ENTRY))
    return data


@contextmanager
def running(folder: Path, scopes: Iterable[str], *, seconds: int = 300, **settings: str) -> Iterator[Helios]:
    """A fresh, empty server and the OAuth server that grants `scopes` for `seconds`, both on free ports of 127.0.0.1.

    `settings` are further HFS_ variables; keys, database and logs are in `folder`.
    """
    binary = build()
    data = _search_parameters()
    node.install(node.OIDC)
    port, oidc_port = free_port(), free_port()
    base, issuer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{oidc_port}"
    log, sign_ins = folder / "hfs.log", folder / "oidc.log"
    oidc = ("node", "server.mjs", oidc_port, CLIENT, folder, base, " ".join(scopes))
    environment = {
        "DATABASE_URL": str(folder / "fhir.db"),
        "HFS_DATA_DIR": str(data),
        "HFS_BASE_URL": base,
        "HFS_AUTH_ENABLED": "true",
        "HFS_AUTH_JWKS_URL": f"{issuer}/jwks",
        "HFS_AUTH_ISSUER": issuer,
        "HFS_AUTH_AUDIENCE": base,
        "HFS_SMART_TOKEN_ENDPOINT": f"{issuer}/token",
        **settings,
    }
    with (
        started(oidc, sign_ins, says_ready(sign_ins), environment={"TTL": str(seconds)}, folder=node.OIDC, within=60),
        started(
            (binary, "--host", "127.0.0.1", "--port", port),
            log,
            answers(f"{base}/health"),
            environment=environment,
            folder=folder,
            within=60,
        ),
    ):
        pem, jwk = folder / "client.pem", folder / "client.jwk"
        yield Helios(base, f"{issuer}/token", CLIENT, pem, jwk, sign_ins)
