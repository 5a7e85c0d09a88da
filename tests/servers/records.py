"""Every resource of a folder of NDJSON, NDJSON.gz and Bundles, and how to load them into a server."""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

Resource = dict[str, Any]

ORDER = (
    "Organization",
    "Practitioner",
    "Location",
    "Patient",
    "Encounter",
    "Condition",
    "Medication",
    "MedicationRequest",
)


def resources(folder: Path) -> Iterator[Resource]:
    """Resources in an order in which what is referred to comes first."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if path.suffix == ".json":
            found += [entry["resource"] for entry in json.loads(raw)["entry"]]
        else:
            found += [json.loads(line) for line in raw.split(b"\n") if line.strip()]
    known = [r for r in found if r["resourceType"] != "BedAssignment"]
    return iter(
        sorted(known, key=lambda r: ORDER.index(r["resourceType"]) if r["resourceType"] in ORDER else len(ORDER))
    )


def load(base: str, resources: Iterable[Resource], batch: int = 200, token: str = "") -> None:
    """Write resources under their own ids; an absolute reference becomes one on this server.

    What refers to something not yet there is refused and written again after the rest; Patients that link to each other
    are first written without their links.
    """
    waiting = list(resources)
    linked = [r for r in waiting if "link" in r]
    if linked:
        list(_write(base, [{k: v for k, v in r.items() if k != "link"} for r in linked], token))
    while waiting:
        refused = [
            resource
            for start in range(0, len(waiting), batch)
            for resource, status in _write(base, waiting[start : start + batch], token)
            if not status.startswith("2")
        ]
        if len(refused) == len(waiting):
            raise RuntimeError(f"the server refuses {len(refused)} resources for good")
        waiting = refused


def _write(base: str, resources: list[Resource], token: str) -> Iterator[tuple[Resource, str]]:
    entries = [
        {"resource": r, "request": {"method": "PUT", "url": f"{r['resourceType']}/{r['id']}"}} for r in resources
    ]
    body = json.dumps({"resourceType": "Bundle", "type": "batch", "entry": entries})
    body = re.sub(r'"reference": "https?://[^"]*?/([A-Z][A-Za-z]+/[^"/]+)"', r'"reference": "\1"', body)
    headers = {"Content-Type": "application/fhir+json", **({"Authorization": f"Bearer {token}"} if token else {})}
    with urlopen(Request(base, data=body.encode(), headers=headers, method="POST"), timeout=600) as response:
        answer = json.load(response)
    return zip(resources, (entry["response"]["status"] for entry in answer["entry"]), strict=True)
