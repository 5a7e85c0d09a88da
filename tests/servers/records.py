"""Every resource of a folder of NDJSON, NDJSON.gz and Bundles, for loading it into a server."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def resources(folder: Path) -> Iterator[dict[str, Any]]:
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
