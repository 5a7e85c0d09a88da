"""The yardstick: the least a program must do to fetch these records over FHIR search; one session, one request at a time.

    python raw.py BASE FILE-OF-PATIENT-IDS FOLDER --types Patient,Condition --batch 20 --page 200

Patients are asked for in batches joined by commas, next links are followed, pages are parsed, resources are written as NDJSON.
Nothing is checked and nothing is repeated. It prints the seconds between the first request and the last byte written.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import requests

PARAMETERS = {"Patient": ("_id", ""), "AdverseEvent": ("subject", "Patient/")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("ids", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--types", type=lambda text: text.split(","), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--page", type=int, required=True)
    given = parser.parse_args()
    ids = given.ids.read_text().split()
    given.folder.mkdir(parents=True)
    begun = time.perf_counter()
    with requests.Session() as session:
        session.headers["Accept"] = "application/fhir+json"
        for kind in given.types:
            name, form = PARAMETERS.get(kind, ("patient", "Patient/"))
            with (given.folder / f"{kind}.ndjson").open("w", encoding="utf-8") as out:
                for start in range(0, len(ids), given.batch):
                    asked = ",".join(form + one for one in ids[start : start + given.batch])
                    answer = session.get(f"{given.base}/{kind}", params={name: asked, "_count": given.page}, timeout=60)
                    while True:
                        answer.raise_for_status()
                        bundle = answer.json()
                        for entry in bundle.get("entry", ()):
                            out.write(json.dumps(entry["resource"], ensure_ascii=False) + "\n")
                        following = [link["url"] for link in bundle["link"] if link["relation"] == "next"]
                        if not following:
                            break
                        answer = session.get(following[0], timeout=60)
    sys.stdout.write(f"{time.perf_counter() - begun}\n")


if __name__ == "__main__":
    main()
