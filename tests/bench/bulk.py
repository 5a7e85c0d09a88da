"""How much memory `crmo-fhir extract --mode bulk` takes for an export that is mostly somebody else's.

    .venv/bin/python tests/bench/bulk.py [--megabytes 1000] [--most 300]

A server of its own process streams one `Observation` file of so many megabytes (and a few children with CRMO among 5,000
patients); the extract runs as a process too, whose peak of resident memory the kernel reports. It ends with 1 where that
is more than `--most` megabytes, or where a child is lost.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PATIENTS, CHILDREN = 5000, 5
_NOTE = "Seen in the clinic for pain of the bone, no fever, plan unchanged. " * 10


def patients() -> Iterator[dict[str, Any]]:
    for number in range(PATIENTS):
        yield {"resourceType": "Patient", "id": f"p{number}", "gender": "female", "birthDate": "2004-01-01"}


def conditions() -> Iterator[dict[str, Any]]:
    for number in range(PATIENTS):
        code = "M86.3" if number < CHILDREN else "J45.9"
        coding = {"system": "http://hl7.org/fhir/sid/icd-10", "code": code}
        yield {
            "resourceType": "Condition",
            "id": f"c{number}",
            "subject": {"reference": f"Patient/p{number}"},
            "code": {"coding": [coding]},
            "recordedDate": "2010-01-01",
        }


def observation(number: int) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "status": "final",
        "subject": {"reference": f"Patient/p{number % PATIENTS}"},
        "code": {"coding": [{"system": "http://loinc.org", "code": "1988-5"}]},
        "effectiveDateTime": "2010-02-01",
        "valueQuantity": {"value": number % 90, "system": "http://unitsofmeasure.org", "code": "mg/L"},
        "note": [{"text": _NOTE}],
    }


def serve(port: int, count: int) -> None:
    base = f"http://127.0.0.1:{port}/fhir"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, value: object = None, **headers: str) -> None:
            body = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/fhir+json", **headers}.items():
                self.send_header(name.replace("_", "-"), text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_DELETE(self) -> None:
            self.send(202)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/fhir/")
            if path == "metadata":
                operation = {
                    "name": "export",
                    "definition": "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/export",
                }
                rest = {"mode": "server", "operation": [operation], "resource": [{"type": "Patient"}]}
                self.send(200, {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1", "rest": [rest]})
            elif path == "$export":
                self.send(202, Content_Location=f"{base}/job")
            elif path == "job":
                counts = {"Patient": PATIENTS, "Condition": PATIENTS, "Observation": count}
                output = [{"type": kind, "url": f"{base}/{kind}.ndjson", "count": n} for kind, n in counts.items()]
                time_of = "2026-01-01T00:00:00Z"
                self.send(
                    200,
                    {
                        "transactionTime": time_of,
                        "request": f"{base}/$export",
                        "requiresAccessToken": False,
                        "output": output,
                        "error": [],
                    },
                )
            elif path.endswith(".ndjson"):
                self.stream(path.removesuffix(".ndjson"))
            else:
                self.send(404)

        def stream(self, kind: str) -> None:
            made = {"Patient": patients, "Condition": conditions}.get(kind)
            records = made() if made else map(observation, range(count))
            self.send_response(200)
            self.send_header("Content-Type", "application/fhir+ndjson")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            lines: list[str] = []
            for record in records:
                lines.append(json.dumps(record))
                if len(lines) == 200:
                    self.chunk(lines)
            self.chunk(lines)
            self.wfile.write(b"0\r\n\r\n")

        def chunk(self, lines: list[str]) -> None:
            if lines:
                data = ("\n".join(lines) + "\n").encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                lines.clear()

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def extract(port: int, study: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of an extract."""
    command = [sys.executable, "-m", "crmo_fhir", "extract", f"http://127.0.0.1:{port}/fhir"]
    begun = time.perf_counter()
    subprocess.run([*command, "--mode", "bulk", "-q", "-o", study], check=True)
    return time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--most", type=float, default=300)
    given = parser.parse_args()
    count = given.megabytes * 10**6 // len(json.dumps(observation(0)))
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free:
        port = free.server_address[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port, count), daemon=True)
    server.start()
    time.sleep(1.5)
    with tempfile.TemporaryDirectory(prefix="crmo-bulk-") as folder:
        took, peak = extract(port, Path(folder) / "study")
        kept = (Path(folder) / "study" / "raw" / "Observation.ndjson").read_bytes().count(b"\n")
    server.terminate()
    expected = sum(1 for number in range(count) if number % PATIENTS < CHILDREN)
    sys.stdout.write(
        f"{given.megabytes} MB of NDJSON ({count} Observations), {os.cpu_count()} CPUs: {took:.0f} s, peak {peak:.0f} MB, "
        f"{kept} of {expected} Observations of the {CHILDREN} children\n"
    )
    raise SystemExit(peak > given.most or kept != expected)


if __name__ == "__main__":
    main()
