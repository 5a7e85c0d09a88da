"""What references say, and that a foreign base never meets a local id."""

import pytest

from crmo_fhir.fhir.references import Key, Reference, parse, references_in, resolve, same_base, split_url

BASE = "https://a.example/fhir"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("Patient/1", Reference("own", BASE, "Patient", "1")),
        ("Patient/1/_history/3", Reference("own", BASE, "Patient", "1")),
        ("https://a.example/fhir/Patient/1", Reference("own", BASE, "Patient", "1")),
        ("HTTPS://A.example:443/fhir/Patient/1/_history/2", Reference("unknown")),
        ("https://A.example:443/fhir/Patient/1/_history/2", Reference("own", BASE, "Patient", "1")),
        ("https://b.example/fhir/Patient/1", Reference("foreign", "https://b.example/fhir", "Patient", "1")),
        ("http://a.example/fhir/Patient/1", Reference("foreign", "http://a.example/fhir", "Patient", "1")),
        (
            "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0",
            Reference("urn", None, "", "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0"),
        ),
        ("urn:oid:1.2.3", Reference("urn", None, "", "urn:oid:1.2.3")),
        ("#m1", Reference("contained", BASE, "", "m1")),
        ("Patient?identifier=urn:x|7", Reference("identifier", "urn:x", "Patient", "7")),
        (
            {"identifier": {"system": "urn:x", "value": "7"}, "type": "Patient"},
            Reference("identifier", "urn:x", "Patient", "7"),
        ),
        ({"identifier": {"value": "7"}}, Reference("unknown")),
        ({"display": "somebody"}, Reference("unknown")),
        ("patient 1", Reference("unknown")),
        (None, Reference("unknown")),
        ([], Reference("unknown")),
    ],
)
def test_parse(reference: object, said: Reference) -> None:
    assert parse(reference, BASE) == said


def test_resolve() -> None:
    mine, theirs = Key(BASE, "Patient", "1"), Key("https://b.example/fhir", "Patient", "1")
    urn = "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0"
    aliases = {urn: mine}
    assert resolve("Patient/1", BASE, {mine}, aliases) == mine
    assert resolve({"reference": urn}, BASE, {mine}, aliases) == mine
    assert resolve("https://b.example/fhir/Patient/1", BASE, {mine}, aliases) is None
    assert resolve("https://b.example/fhir/Patient/1", BASE, {mine, theirs}, aliases) == theirs
    assert resolve("Patient/1", None, {mine}, aliases) is None
    assert resolve("#1", BASE, {mine}, {"#1": mine}) is None
    assert resolve({"identifier": {"system": "s", "value": "v"}}, BASE, {mine}, {}, {("s", "v"): mine}) == mine
    assert resolve({}, BASE, {mine}, {}) is None


def test_bases_and_urls() -> None:
    assert same_base("https://A.Example:443/fhir/") == BASE
    assert same_base("http://[::1]:8080/fhir") == "http://[::1]:8080/fhir"
    assert split_url("https://a.example/fhir/Patient/1") == Key(BASE, "Patient", "1")
    assert split_url("urn:uuid:1") is None
    assert split_url("Patient/1") is None


def test_references_in() -> None:
    resource = {"a": [{"reference": "x/1"}, {"b": {"reference": "y/2"}}], "reference": 5}
    assert [one["reference"] for one in references_in(resource)] == ["x/1", "y/2"]
