"""What must not matter: order, files, pages, duplicates, encodings, time zone of the machine, hash seed."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from servers.records import resources
from support import DEMONSTRATION, OUTPUTS, PRINTED

from crmo_fhir import pipeline


def bytes_of(study: Path) -> dict[str, bytes]:
    return {name: (study / name).read_bytes() for name in OUTPUTS}


def run(source: Path, study: Path) -> dict[str, bytes]:
    window = pipeline._parameters(json.loads((PRINTED.parent / "window.json").read_text()))
    pipeline.extract(str(source), study, window)
    pipeline.measure(study, published=PRINTED)
    return bytes_of(study)


def one_base(folder: Path) -> list[dict]:
    """The demonstration with every reference relative, so that any file can hold any record."""
    import re

    text = json.dumps(list(resources(folder)))
    return json.loads(re.sub(r'"reference": "https?://[^"]*?/([A-Z][A-Za-z]+/[^"/]+)"', r'"reference": "\1"', text))


def shuffled_lines(records, rng, into):
    rng.shuffle(records)
    for number in range(3):
        lines = [json.dumps(dict(rng.sample(list(r.items()), len(r)))) for r in records[number::3]]
        (into / f"part-{number}.ndjson").write_text("\n".join(lines), encoding="utf-8")


def pages_of_bundles(records, rng, into):
    rng.shuffle(records)
    for start in range(0, len(records), 97):
        bundle = {
            "resourceType": "Bundle",
            "type": "searchset",
            "entry": [{"resource": r} for r in records[start : start + 97]],
        }
        (into / f"page{start}.json").write_text(json.dumps(bundle, indent=rng.choice([None, 2])), encoding="utf-8")


def everything_twice(records, rng, into):
    del rng
    for name in ("a.ndjson.gz", "deep/b.ndjson.gz"):
        (into / name).parent.mkdir(exist_ok=True)
        (into / name).write_bytes(gzip.compress("\r\n".join(json.dumps(r) for r in records).encode("utf-8-sig")))


def nested_single_resources(records, rng, into):
    candidates = [r for r in records if r["resourceType"] in {"Patient", "Condition", "Medication", "Procedure"}]
    for number, resource in enumerate(candidates):
        folder = into / str(rng.randrange(7))
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.json").write_text(json.dumps(resource, indent=4), encoding="utf-8")
    rest = [r for r in records if r not in candidates]
    (into / "rest.json").write_text(json.dumps(rest), encoding="utf-8")


@pytest.mark.parametrize(
    "encode", [shuffled_lines, pages_of_bundles, everything_twice, nested_single_resources], ids=lambda f: f.__name__
)
def test_how_the_records_are_packed_never_changes_a_byte(demo_study, tmp_path, encode):
    source = tmp_path / "source"
    source.mkdir()
    encode(one_base(DEMONSTRATION), random.Random(7), source)
    assert run(source, tmp_path / "study") == bytes_of(demo_study)


def test_new_ids_never_change_a_figure(demo_study, tmp_path):
    import hashlib
    import re

    text = json.dumps(one_base(DEMONSTRATION))
    for old in sorted(set(re.findall(r'"id": "(d[0-9a-f]{15})"', text))):
        text = text.replace(old, hashlib.sha256(old.encode()).hexdigest()[:20])
    source = tmp_path / "source"
    source.mkdir()
    (source / "all.ndjson").write_text("\n".join(json.dumps(r) for r in json.loads(text)), encoding="utf-8")
    assert run(source, tmp_path / "study") == bytes_of(demo_study)


@pytest.mark.parametrize(("zone", "seed"), [("Pacific/Kiritimati", "1"), ("America/Los_Angeles", "2")])
def test_the_machine_never_changes_a_byte(demo_study, tmp_path, zone, seed):
    subprocess.run(
        [sys.executable, "-m", "crmo_fhir", "demo", "-q", "-o", str(tmp_path / "study")],
        check=True,
        env={**os.environ, "TZ": zone, "PYTHONHASHSEED": seed, "LC_ALL": "C"},
    )
    assert bytes_of(tmp_path / "study") == bytes_of(demo_study)
