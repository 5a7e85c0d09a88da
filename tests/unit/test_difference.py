"""What two pulls hold differently."""

import json

import pytest

from crmo_fhir.difference import Change, compute_changes
from crmo_fhir.fhir.references import Key

BASE = "https://a.example/fhir"


def pull(*resources):
    return [(Key(BASE, r["resourceType"], r["id"]), json.dumps(r)) for r in resources]


def patient(identity, **more):
    return {"resourceType": "Patient", "id": identity, **more}


def replaced_by(identity):
    return {"link": [{"type": "replaced-by", "other": {"reference": f"Patient/{identity}"}}]}


ONE = patient("p1", birthDate="2001")


@pytest.mark.parametrize(
    ("earlier", "later", "expected"),
    [
        ([ONE], [ONE], []),
        ([ONE], [{"birthDate": "2001", "id": "p1", "resourceType": "Patient"}], []),
        ([ONE], [{**ONE, "meta": {"versionId": "7", "lastUpdated": "2026-01-01T00:00:00Z"}}], []),
        ([ONE], [{**ONE, "meta": {"versionId": "7", "source": "x"}}], [("Patient", "changed", "p1", "")]),
        ([ONE], [{**ONE, "birthDate": "2002"}], [("Patient", "changed", "p1", "")]),
        ([], [ONE], [("Patient", "new", "p1", "")]),
        ([ONE], [], [("Patient", "vanished", "p1", "")]),
        (
            [ONE, patient("p2")],
            [{**ONE, **replaced_by("p2")}, patient("p2")],
            [("Patient", "merged", "p1", "p2")],
        ),
        (
            [ONE, patient("p2")],
            [patient("p2", link=[{"type": "replaces", "other": {"reference": f"{BASE}/Patient/p1"}}])],
            [("Patient", "changed", "p2", ""), ("Patient", "merged", "p1", "p2")],
        ),
        (
            [{**ONE, **replaced_by("p2")}, patient("p2")],
            [{**ONE, **replaced_by("p2"), "birthDate": "2002"}, patient("p2")],
            [("Patient", "changed", "p1", "")],
        ),
    ],
    ids=["same", "order", "version", "meta", "changed", "new", "vanished", "merged", "replaces", "merged before"],
)
def test_records(earlier, later, expected):
    found = compute_changes(pull(*earlier), pull(*later))
    assert found == [Change(kind, state, identity, BASE, into) for kind, state, identity, into in expected]


def test_a_number_written_otherwise_is_a_change():
    one, other = (f'{{"resourceType":"Observation","id":"o","valueQuantity":{{"value":{v}}}}}' for v in ("1.1", "1.10"))
    key = Key(BASE, "Observation", "o")
    assert [change.state for change in compute_changes([(key, one)], [(key, other)])] == ["changed"]
