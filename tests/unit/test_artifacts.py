"""The mappings folder: found, complete, without contradictions; and a site's folder laid over it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from crmo_fhir import artifacts as module
from crmo_fhir.artifacts import Artifacts
from crmo_fhir.errors import IntegrityError, UsageError
from crmo_fhir.fhir.codings import Coding

BASE = "https://crmo-fhir.org"
ATC, SCT, WHO = "http://www.whocc.no/atc", "http://snomed.info/sct", "http://hl7.org/fhir/sid/icd-10"
LOCAL = "https://hospital.example/codes"
EXTENDS = f"{BASE}/StructureDefinition/extends"
VALUE_SETS = [
    "crmo",
    "crmo-text",
    "sapho",
    "treatment-effect",
    "mri-change",
    "lesion-finding",
    "mri-procedure",
    "mri-whole-body",
    "mr-modality",
    "neutral-indication",
    "intra-articular-route",
    "nsaid",
    "mtx",
    "tnf",
    "gc",
    "bp",
    "ssz",
    "csdmard",
    "il1",
    "il6",
    "il12-23",
    "il17",
    "il23",
    "il",
    "costim",
    "jak",
    "pde4",
    "rankl",
    "biologic",
    "other-drug",
]
CONCEPT_MAPS = ["agent", "drug-class", "bone", "side", "analyte", "stop-reason", "clinical-effect", "mri-effect"]


def write(folder: Path, name: str, resource: object) -> None:
    (folder / name).write_text(json.dumps(resource), encoding="utf-8")


def value_set(url: str, *includes: object, extends: str | None = None) -> dict[str, Any]:
    extension = [{"url": EXTENDS, "valueCanonical": extends}] if extends else []
    return {"resourceType": "ValueSet", "url": url, "extension": extension, "compose": {"include": list(includes)}}


def concept_map(url: str, source: str, codes: dict[str, str], extends: str | None = None) -> dict[str, Any]:
    extension = [{"url": EXTENDS, "valueCanonical": extends}] if extends else []
    element = [{"code": code, "target": [{"code": target}]} for code, target in codes.items()]
    group = [{"source": source, "element": element}]
    return {"resourceType": "ConceptMap", "url": url, "extension": extension, "group": group}


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_value_set_is_there(name: str) -> None:
    assert Artifacts.load().value_set(name).url == f"{BASE}/ValueSet/{name}"


@pytest.mark.parametrize("name", CONCEPT_MAPS)
def test_every_concept_map_is_there(name: str) -> None:
    assert Artifacts.load().concept_map(name).targets()


def test_files_are_named_after_their_url() -> None:
    for kind in ("valuesets", "conceptmaps", "namingsystems"):
        for path in (module._folder() / kind).glob("*.json"):
            resource = json.loads(path.read_bytes())
            assert resource["id"] == path.stem
            assert module._own_url(resource) == f"{BASE}/{resource['resourceType']}/{path.stem}"


def test_no_map_gives_one_code_two_meanings() -> None:
    """The reader takes the first; in our own files there is only one, whatever the display."""
    shipped = Artifacts.load()
    for path in (module._folder() / "conceptmaps").glob("*.json"):
        meanings: dict[object, set[str]] = {}
        for group in json.loads(path.read_bytes())["group"]:
            for element in group["element"]:
                code = shipped.systems.read(Coding(group["source"], element["code"]))
                meanings.setdefault(code, set()).update(target["code"] for target in element["target"])
        assert {str(code): found for code, found in meanings.items() if len(found) != 1} == {}


def test_unknown_names_say_what_to_do() -> None:
    shipped = Artifacts.load()
    for ask in (shipped.value_set, shipped.concept_map, shipped.view):
        with pytest.raises(IntegrityError, match="mappings hold no"):
            ask("nowhere")


def test_views_are_copies_by_name() -> None:
    shipped = Artifacts.load()
    views = shipped.views()
    assert list(views) == sorted(views)
    views["condition"]["select"] = []
    assert shipped.view("condition")["select"]


def test_shipped_mappings_are_read_once() -> None:
    assert Artifacts.load() is Artifacts.load()


def test_digest_does_not_depend_on_the_order_of_files_or_keys(tmp_path: Path) -> None:
    copy = tmp_path / "mappings"
    shutil.copytree(module._folder(), copy)
    path = copy / "valuesets" / "crmo.json"
    resource = json.loads(path.read_bytes())
    path.unlink()
    write(copy, "0.json", dict(reversed(resource.items())))
    assert module._build(copy, None).digest == Artifacts.load().digest
    write(copy, "0.json", resource | {"version": "9"})
    assert module._build(copy, None).digest != Artifacts.load().digest


def test_a_file_of_the_site_replaces_ours(tmp_path: Path) -> None:
    write(tmp_path, "a.json", value_set(f"{BASE}/ValueSet/crmo", {"system": LOCAL, "concept": [{"code": "K1"}]}))
    laid_over = Artifacts.load(tmp_path)
    assert laid_over.value_set("crmo").contains(Coding(LOCAL, "K1"))
    assert not laid_over.value_set("crmo").contains(Coding(WHO, "M86.3"))
    assert laid_over.digest != Artifacts.load().digest
    assert not Artifacts.load().value_set("crmo").contains(Coding(LOCAL, "K1"))


def test_a_view_of_the_site_may_name_its_type_by_url(tmp_path: Path) -> None:
    kind = "https://sql-on-fhir.org/ig/StructureDefinition/ViewDefinition"
    view = {**Artifacts.load().view("patient"), "resourceType": kind, "description": "that of the site"}
    (tmp_path / "patient.json").write_text(json.dumps(view))
    assert Artifacts.load(tmp_path).view("patient") == {**view, "resourceType": "ViewDefinition"}


def test_a_file_of_the_site_extends_ours(tmp_path: Path) -> None:
    include = {"system": LOCAL, "concept": [{"code": "K1"}]}
    write(tmp_path, "a.json", value_set("urn:site:crmo", include, extends=f"{BASE}/ValueSet/crmo"))
    agents = {"INFLX": "infliximab"}
    write(tmp_path, "b.json", concept_map("urn:site:agent", LOCAL, agents, extends=f"{BASE}/ConceptMap/agent"))
    rule = {"103337004": "sufficient"}
    write(
        tmp_path,
        "c.json",
        concept_map("urn:site:effect", SCT, rule, extends=f"{BASE}/ConceptMap/clinical-effect|1.0.0"),
    )
    laid_over = Artifacts.load(tmp_path)
    assert laid_over.value_set("crmo").contains(Coding(LOCAL, "K1"))
    assert laid_over.value_set("crmo").contains(Coding(WHO, "M86.3"))
    assert (LOCAL, "K1") in laid_over.value_set("crmo").search_tokens()
    assert laid_over.drug(Coding(LOCAL, "INFLX")) == ("infliximab", "TNF")
    assert laid_over.drug(Coding(ATC, "L04AB02")) == ("infliximab", "TNF")
    effect = laid_over.concept_map("clinical-effect")
    assert effect.translate(Coding(SCT, "103337004")) == "sufficient"
    assert effect.translate(Coding(SCT, "268910001")) == "sufficient"


def test_a_site_names_a_further_uri_of_a_system(tmp_path: Path) -> None:
    ours = json.loads((module._folder() / "namingsystems" / "loinc.json").read_bytes())
    write(tmp_path, "loinc.json", ours | {"uniqueId": [*ours["uniqueId"], {"type": "uri", "value": LOCAL}]})
    assert Artifacts.load(tmp_path).concept_map("analyte").translate(Coding(LOCAL, "1988-5")) == "crp"


NOWHERE = {"valueSet": [f"{BASE}/ValueSet/nowhere"]}
ITSELF = {"valueSet": ["urn:site:x"]}


@pytest.mark.parametrize(
    ("resource", "message"),
    [
        (["no", "resource"], "no FHIR resource"),
        ({"resourceType": "ValueSet"}, "has no url"),
        (value_set("urn:site:x", NOWHERE), "refers to https://crmo-fhir.org/ValueSet/nowhere"),
        (value_set("urn:site:x", ITSELF), "includes itself"),
        (value_set("urn:site:x", extends="urn:nowhere"), "extends urn:nowhere"),
        (value_set("urn:site:x", extends=f"{BASE}/ConceptMap/bone"), "which is no ValueSet"),
        (
            value_set("urn:site:x", {"system": SCT, "filter": [{"property": "concept", "op": "regex", "value": "1"}]}),
            "only filters",
        ),
        ({"resourceType": "ValueSet", "url": "urn:site:x", "compose": {"include": ["text"]}}, "structure"),
        (
            {"resourceType": "ConceptMap", "url": "urn:site:x", "group": [{"source": SCT, "element": ["text"]}]},
            "structure",
        ),
        ({"resourceType": "Measure", "url": "urn:site:m", "library": [f"{BASE}/Library/nowhere"]}, "refers to"),
        ({"resourceType": "ViewDefinition", "url": "urn:site:v", "name": "condition"}, "that of another view"),
    ],
)
def test_faults_of_a_site_are_one_line(tmp_path: Path, resource: object, message: str) -> None:
    write(tmp_path, "a.json", resource)
    with pytest.raises(UsageError, match=message) as raised:
        Artifacts.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_no_json_and_duplicates_are_refused_by_file_name(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"broken\.json is no JSON"):
        Artifacts.load(tmp_path)
    (tmp_path / "broken.json").unlink()
    write(tmp_path, "a.json", value_set("urn:site:x"))
    write(tmp_path, "b.json", value_set("urn:site:x"))
    with pytest.raises(UsageError, match=r"a\.json and b\.json"):
        Artifacts.load(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        Artifacts.load(tmp_path / "nowhere")


def test_shipped_faults_are_integrity_errors(tmp_path: Path) -> None:
    write(tmp_path, "a.json", value_set("urn:x", NOWHERE))
    with pytest.raises(IntegrityError, match="refers to"):
        module._build(tmp_path, None)


def test_measure_and_library_are_the_only_ones(tmp_path: Path) -> None:
    library = f"{BASE}/Library/l"
    write(tmp_path, "l.json", {"resourceType": "Library", "url": library})
    write(tmp_path, "m.json", {"resourceType": "Measure", "url": f"{BASE}/Measure/m", "library": [f"{library}|1.0.0"]})
    built = module._build(tmp_path, None)
    assert built.measure()["library"] == [f"{library}|1.0.0"]
    assert built.library()["url"] == library
    write(tmp_path, "m2.json", {"resourceType": "Measure", "url": f"{BASE}/Measure/m2"})
    with pytest.raises(IntegrityError, match="2 Measure resources"):
        module._build(tmp_path, None).measure()
