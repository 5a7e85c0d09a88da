"""Codes as they are spelt in records, and what the shipped value sets and maps make of them."""

import pytest

from crmo_fhir.artifacts import Artifacts
from crmo_fhir.errors import UsageError
from crmo_fhir.fhir.codings import Code, CodeMap, CodeSet, Coding, Systems

WHO, CM = "http://hl7.org/fhir/sid/icd-10", "http://hl7.org/fhir/sid/icd-10-cm"
GM, GM_OLD = "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "http://fhir.de/CodeSystem/dimdi/icd-10-gm"
SKS, SKS_D = "urn:oid:1.2.208.176.2.4", "urn:oid:1.2.208.176.2.4.12"
SCT, ATC, LOINC = "http://snomed.info/sct", "http://www.whocc.no/atc", "http://loinc.org"
RXNORM, NPU, ORPHA = (
    "http://www.nlm.nih.gov/research/umls/rxnorm",
    "http://npu-terminology.org",
    "https://www.orpha.net",
)
ICD11, ASSESSMENT = "http://id.who.int/icd/release/11/mms", "https://crmo-fhir.org/CodeSystem/assessment"
STOP = "https://crmo-fhir.org/CodeSystem/stop-reason"
REQUEST_REASON = "http://terminology.hl7.org/CodeSystem/medicationrequest-status-reason"

mappings = Artifacts.load()


@pytest.mark.parametrize(
    ("uri", "canonical"),
    [
        (WHO, WHO),
        ("https://hl7.org/fhir/sid/icd-10/", WHO),
        ("http://terminology.hl7.org/CodeSystem/icd10", WHO),
        ("urn:oid:2.16.840.1.113883.6.3", WHO),
        (f"{WHO}|2019", WHO),
        (GM_OLD, GM),
        ("http://snomed.info/sct/554471000005108", SCT),
        ("http://snomed.info/sct/554471000005108/version/20230331", SCT),
        ("http://snomed.info/sct|http://snomed.info/sct/554471000005108", SCT),
        ("urn:oid:2.16.840.1.113883.6.96", SCT),
        ("urn:oid:2.16.840.1.113883.6.73", ATC),
        ("http://fhir.de/CodeSystem/bfarm/atc", ATC),
        ("urn:oid:1.2.208.176.2.1", NPU),
        ("http://www.orpha.net/ORDO", ORPHA),
        ("https://id.who.int/icd/release/11/2024-01/mms", ICD11),
        ("1.2.208.176.2.4.12", SKS_D),
        ("http://snomed.info/sctx", "http://snomed.info/sctx"),
        ("https://example.org/codes/", "https://example.org/codes"),
        ("", None),
        (None, None),
    ],
)
def test_canonical_system(uri: str | None, canonical: str | None) -> None:
    assert mappings.systems.canonical(uri) == canonical


@pytest.mark.parametrize(
    ("system", "code", "read"),
    [
        (WHO, "M86.3", Code(WHO, "M863")),
        (WHO, "m86.36", Code(WHO, "M8636")),
        (WHO, "M86.3+", Code(WHO, "M863")),
        (WHO, "DM863+TUL1", Code(WHO, "M863", ((SKS, "TUL1"),))),
        (WHO, "D50.9", Code(WHO, "D509")),
        (WHO, "DD509", Code(WHO, "D509")),
        (SKS_D, "DM863", Code(SKS_D, "M863")),
        (SKS, "DM863+TUL2", Code(SKS_D, "M863", ((SKS, "TUL2"),))),
        (SKS, "ML04AB04", Code(ATC, "L04AB04")),
        (SKS, "ML04AB", Code(ATC, "L04AB")),
        (SKS, "bohj18a3+ZPZ01", Code(SKS, "BOHJ18A3", ((SKS, "ZPZ01"),))),
        (SKS, "TUL1", Code(SKS, "TUL1")),
        (ATC, "l04ab04", Code(ATC, "L04AB04")),
        (SCT, "12611008", Code(SCT, "12611008")),
        (SCT, "12611008:272741003=7771000", Code(SCT, "12611008", ((SCT, "7771000"),))),
        (
            SCT,
            "12611008 |Tibia| : {272741003 |Laterality| = 24028007 |Right|}",
            Code(SCT, "12611008", ((SCT, "24028007"),)),
        ),
        (ICD11, "fb84.3&XK8G", Code(ICD11, "FB84.3", ((ICD11, "XK8G"),))),
        (ORPHA, "ORPHA:324964", Code(ORPHA, "324964")),
        (ORPHA, "ORPHA324964", Code(ORPHA, "324964")),
        (LOINC, "1988-5", Code(LOINC, "1988-5")),
        (None, "M86.3", None),
        (WHO, None, None),
        (WHO, " ", None),
    ],
)
def test_canonical_code(system: str | None, code: str | None, read: Code | None) -> None:
    assert mappings.systems.read(Coding(system, code)) == read


CRMO = [
    (WHO, "M86.3"), (WHO, "M863"), (WHO, "M86.39"), (WHO, "DM863"), (WHO, "DM863+TUL1"),
    (CM, "M86.3"), (CM, "M86.361"), (CM, "M86362"), (GM, "M86.36"), (GM_OLD, "M86.30"),
    ("urn:oid:2.16.578.1.12.4.1.1.7110", "M863"), ("urn:oid:1.2.752.116.1.1.1.1.3", "M86.3"),
    (SKS_D, "DM863"), (SKS_D, "DM863+TUL3"), (SKS, "DM863"), (SKS_D, "M86.3"),
    (SCT, "240151005"), (f"{SCT}/554471000005108", "240151005"), ("http://www.orpha.net", "324964"),
    (ICD11, "FB84.3"), (ICD11, "4A61"), ("http://id.who.int/icd/entity/", "1256384247"),
    ("http://purl.obolibrary.org/obo/mondo.owl", "MONDO:0009813"), ("http://omim.org", "259680"),
]  # fmt: skip
NOT_CRMO = [
    (WHO, "M86.1"), (WHO, "M86.6"), (WHO, "M86"), (CM, "M86.9"), (SKS_D, "DM866"), (SKS, "DM869"),
    (SCT, "239871004"), (SCT, "239810001"), (SCT, "60684003"), (SCT, "60168000"), (SCT, "703540008"),
    (ICD11, "FB84.2"), (ORPHA, "793"), (ORPHA, "77297"), ("http://omim.org", "609628"),
    ("https://example.org/local", "M86.3"), (LOINC, "M86.3"), (None, "M86.3"), ("", "DM863"), (WHO, None),
]  # fmt: skip


@pytest.mark.parametrize(("system", "code"), CRMO)
def test_crmo_is_found(system: str, code: str) -> None:
    assert mappings.value_set("crmo").contains(Coding(system, code))


@pytest.mark.parametrize(("system", "code"), NOT_CRMO)
def test_what_is_not_crmo(system: str | None, code: str | None) -> None:
    assert not mappings.value_set("crmo").contains(Coding(system, code, "Chronic multifocal osteomyelitis"))


@pytest.mark.parametrize(
    ("name", "system", "code", "held"),
    [
        ("sapho", SCT, "60684003", True),
        ("sapho", ORPHA, "793", True),
        ("sapho", ICD11, "4A61", False),
        ("sapho", SCT, "240151005", False),
        ("treatment-effect", ASSESSMENT, "treatment-effect", True),
        ("treatment-effect", ASSESSMENT, "mri-change", False),
        ("mri-change", ASSESSMENT, "mri-change", True),
        ("lesion-finding", ASSESSMENT, "bone-lesion", True),
        ("lesion-finding", "http://human-phenotype-ontology.org", "HP:6000917", True),
        ("mri-procedure", SKS, "UXMG30", True),
        ("mri-procedure", SKS, "UXRG30", False),
        ("mri-procedure", LOINC, "25056-3", True),
        ("mri-whole-body", SKS, "UXMH00", True),
        ("mri-whole-body", SKS, "UXMG30", False),
        ("mr-modality", "http://dicom.nema.org/resources/ontology/DCM", "MR", True),
        ("mr-modality", "http://dicom.nema.org/resources/ontology/DCM", "CT", False),
        ("neutral-indication", SCT, "12584003", True),
        ("neutral-indication", WHO, "R52.2", True),
        ("neutral-indication", WHO, "M08.0", False),
        ("intra-articular-route", SCT, "12130007", True),
        ("intra-articular-route", SCT, "26643006", False),
        ("intra-articular-route", SKS, "BLHN0", True),
        ("nsaid", ATC, "M01AC05", True),
        ("nsaid", ATC, "M01AX05", False),
        ("nsaid", ATC, "M01AX26", False),
        ("nsaid", SKS, "MM01AX05", False),
        ("nsaid", ATC, "M02AA13", False),
        ("tnf", ATC, "L04AB04", True),
        ("tnf", ATC, "L04AC05", False),
        ("jak", ATC, "L04AA29", True),
        ("il", ATC, "L04AC18", True),
    ],
)
def test_value_sets(name: str, system: str, code: str, held: bool) -> None:
    assert mappings.value_set(name).contains(Coding(system, code)) is held


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("CRMO", True),
        ("Obs. pro CNO, tibia", True),
        ("CRMO/CNO", True),
        ("Chronic (recurrent) multifocal osteomyelitis", True),
        ("chronic non-bacterial osteomyelitis", True),
        ("Chronic non\u2011bacterial  osteomyelitis", True),
        ("chronic nonbacterial\nosteomyelitis", True),
        ("Kronisk rekurrent multifokal osteomyelitis", True),
        ("Kronisk (rekurrent) multifokal osteomyelitis, højre tibia", True),
        ("nonbakteriel osteitis", True),
        ("non-bakteriel osteitis", True),
        ("chronic recurrent multi-focal osteomyelitis", True),
        ("crmos", False),
        ("macrmo", False),
        ("Chronic osteomyelitis", False),
        ("bakteriel osteitis", False),
        ("", False),
        (None, False),
    ],
)
def test_crmo_text(text: str | None, found: bool) -> None:
    assert mappings.value_set("crmo-text").matches_text(text) is found


def test_phrases_are_no_codes() -> None:
    assert mappings.value_set("crmo-text").search_tokens() == []
    assert not mappings.value_set("crmo").matches_text("CRMO")


def test_an_excluded_phrase_wins() -> None:
    text = "https://crmo-fhir.org/CodeSystem/text"
    phrases = {
        "include": [{"system": text, "concept": [{"code": "crmo"}]}],
        "exclude": [{"system": text, "concept": [{"code": "no crmo"}]}],
    }
    found = CodeSet.of({"url": "x", "compose": phrases}, mappings.systems)
    assert found.matches_text("CRMO")
    assert not found.matches_text("There is no CRMO")


def test_search_tokens_hold_every_uri_and_spelling() -> None:
    tokens = mappings.value_set("crmo").search_tokens()
    assert len(tokens) == len(set(tokens))
    for token in [
        (WHO, "M86.3"), (WHO, "M863"), (WHO, "M86.39"), (WHO, "DM863+TUL1"),
        ("urn:oid:2.16.840.1.113883.6.3", "M86.3"), ("http://terminology.hl7.org/CodeSystem/icd10", "M8630"),
        (CM, "M86.361"), (CM, "M86361"), (GM, "M86.36"), (GM_OLD, "M86.36"),
        (SKS_D, "DM863"), (SKS_D, "DM863+TUL1"), (SKS_D, "DM863+TUL2"), (SKS_D, "DM863+TUL3"), (SKS, "DM863+TUL2"),
        (SCT, "240151005"), ("http://www.orpha.net", "324964"), (ICD11, "4A61"),
    ]:  # fmt: skip
        assert token in tokens


@pytest.mark.parametrize("name", ["crmo", "mri-procedure"])
def test_every_token_is_held_by_its_set(name: str) -> None:
    found = mappings.value_set(name)
    assert [token for token in found.search_tokens() if not found.contains(Coding(*token))] == []


@pytest.mark.parametrize(
    ("name", "system", "code", "target"),
    [
        ("bone", SCT, "12611008", "tibia"),
        ("bone", SCT, "12611008:272741003=7771000", "tibia"),
        ("bone", SCT, "64605006", "tibia"),
        ("bone", SCT, "310652005", "femur"),
        ("bone", SCT, "37285002", "sternum"),
        ("bone", SCT, "66794005", "vertebra"),
        ("bone", SCT, "51282000", "vertebra"),
        ("bone", SCT, "22356005", "pelvis"),
        ("bone", SCT, "37783008", "pelvis"),
        ("bone", SCT, "54735007", "sacrum"),
        ("bone", SCT, "39723000", "sacroiliac-joint"),
        ("bone", SCT, "80144004", "calcaneus"),
        ("bone", SCT, "110536004", "tibia-and-fibula"),
        ("bone", SCT, "110535000", "radius-and-ulna"),
        ("bone", SCT, "272673000", None),
        ("bone", SCT, "14016003", None),
        ("bone", SCT, "38266002", None),
        ("bone", None, "12611008", None),
        ("analyte", LOINC, "1988-5", "crp"),
        ("analyte", "urn:oid:1.2.208.176.2.1", "NPU19748", "crp"),
        ("analyte", NPU, "NPU03404", "esr"),
        ("analyte", LOINC, "4537-7", "esr"),
        ("analyte", LOINC, "18184-2", "esr-2h"),
        ("analyte", LOINC, "38214-3", "pain-vas"),
        ("analyte", LOINC, "72514-3", "pain-nrs"),
        ("analyte", LOINC, "38208-5", "pain-severity"),
        ("analyte", ASSESSMENT, "chaq", "chaq"),
        ("stop-reason", STOP, "adverse_event", "adverse_event"),
        ("stop-reason", SCT, "266721009", "inefficacy"),
        ("stop-reason", SCT, "407563006", "adverse_event"),
        ("stop-reason", SCT, "105480006", "patient_choice"),
        ("stop-reason", REQUEST_REASON, "sintol", "adverse_event"),
        ("stop-reason", REQUEST_REASON, "washout", "other"),
        ("stop-reason", SCT, "182841002", None),
        ("clinical-effect", ASSESSMENT, "sufficient", "sufficient"),
        ("clinical-effect", SCT, "268910001", "sufficient"),
        ("clinical-effect", SCT, "103338009", "sufficient"),
        ("clinical-effect", SCT, "359746009", "insufficient"),
        ("clinical-effect", SCT, "103337004", "insufficient"),
        ("clinical-effect", SCT, "709137006", "not-evaluable"),
        ("clinical-effect", ASSESSMENT, "regression", None),
        ("mri-effect", ASSESSMENT, "regression", "regression"),
        ("mri-effect", SCT, "268910001", "regression"),
        ("mri-effect", SCT, "255314001", "no-regression"),
        ("mri-effect", SCT, "709137006", "not-evaluable"),
    ],
)
def test_concept_maps(name: str, system: str | None, code: str, target: str | None) -> None:
    assert mappings.concept_map(name).translate(Coding(system, code)) == target


@pytest.mark.parametrize(
    ("code", "display", "target"),
    [
        ("182841002", "Doctor stopped drugs - ineffective (situation)", "inefficacy"),
        ("182841002", "Complete response", None),
        ("182842009", "Doctor stopped drugs - side effect", "adverse_event"),
        ("182842009", "Partial response", None),
        ("182840001", "Drug treatment stopped - medical advice (situation)", "other"),
        ("182840001", "Complete response", None),
        ("182843004", "Stable disease", None),
    ],
)
def test_misused_codes_count_only_beside_their_own_display(code: str, display: str, target: str | None) -> None:
    assert mappings.concept_map("stop-reason").translate(Coding(SCT, code, display)) == target


@pytest.mark.parametrize(
    ("system", "code", "side"),
    [
        (SCT, "7771000", "left"),
        (SCT, "24028007", "right"),
        (SCT, "51440002", "both"),
        (SCT, "66459002", None),
        (SCT, "12611008:272741003=7771000", "left"),
        (SCT, "12611008", None),
        (SKS_D, "DM863+TUL1", "right"),
        (SKS, "DM863+TUL2", "left"),
        (WHO, "DM863+TUL3", "both"),
        (SKS, "DM863+TUL1+TUL2", "both"),
        (SKS, "TUL1", "right"),
        (CM, "M86.361", "right"),
        (CM, "M86.362", "left"),
        (CM, "M86.369", None),
        (WHO, "M86.31", None),
    ],
)
def test_side(system: str, code: str, side: str | None) -> None:
    assert mappings.side(Coding(system, code)) == side


@pytest.mark.parametrize(
    ("system", "code", "drug"),
    [
        (ATC, "L04AX03", ("methotrexate", "MTX")),
        (ATC, "L01BA01", ("methotrexate", "MTX")),
        ("urn:oid:2.16.840.1.113883.6.73", "L04AB04", ("adalimumab", "TNF")),
        (SKS, "ML04AB04", ("adalimumab", "TNF")),
        (SKS, "BOHJ18A3", ("adalimumab", "TNF")),
        (SKS, "BWHA115", ("methotrexate", "MTX")),
        (SKS, "BWHB40C", ("pamidronic acid", "BP")),
        (RXNORM, "214555", ("etanercept", "TNF")),
        (SCT, "387045004", ("etanercept", "TNF")),
        (SCT, "763158003:127489000=387045004", ("etanercept", "TNF")),
        (ATC, "L04AA29", ("tofacitinib", "JAK")),
        (ATC, "L04AF01", ("tofacitinib", "JAK")),
        (ATC, "L04AA13", ("leflunomide", "CSDMARD")),
        (ATC, "A07EC01", ("sulfasalazine", "SSZ")),
        (ATC, "L04AC05", ("ustekinumab", "IL12-23")),
        (ATC, "M01AC05", ("m01ac05", "NSAID")),
        (ATC, "M01A", ("nsaid-unspecified", "NSAID")),
        (SKS, "BLHM0", ("nsaid-unspecified", "NSAID")),
        (SKS, "BOHJ18A", ("tnf-unspecified", "TNF")),
        (SKS, "BOHJ18", ("biologic-unspecified", "BIOLOGIC")),
        (SKS, "BWHB40", ("bp-unspecified", "BP")),
        (SKS, "BBHF32", ("gc-unspecified", "GC")),
        (ATC, "L04AC18", ("l04ac18", "IL")),
        (ATC, "H02AB06", ("prednisolone", "GC")),
        (ATC, "M05BB03", ("m05bb03", "BP")),
        (ATC, "M01AX05", None),
        (ATC, "A10BA02", None),
        (SKS, "UXMH00", None),
        (None, "L04AB04", None),
        (LOINC, "L04AB04", None),
    ],
)
def test_drug(system: str | None, code: str, drug: tuple[str, str] | None) -> None:
    assert mappings.drug(Coding(system, code)) == drug


def test_every_agent_has_a_class() -> None:
    classes = mappings.concept_map("drug-class")
    agent = "https://crmo-fhir.org/CodeSystem/agent"
    assert all(classes.translate(Coding(agent, one)) for one in mappings.concept_map("agent").targets())


def test_value_set_of_value_sets() -> None:
    url = "https://crmo-fhir.org/ValueSet/crmo"
    both = {"url": "x", "compose": {"include": [{"valueSet": [url]}, {"system": "urn:local"}]}}
    found = CodeSet.of(both, mappings.systems, mappings.value_set)
    assert found.contains(Coding(SKS_D, "DM863"))
    assert found.contains(Coding("urn:local", "anything"))
    assert (SKS_D, "DM863+TUL1") in found.search_tokens()
    narrowed = {"url": "x", "compose": {"include": [{"system": WHO, "valueSet": [url]}]}}
    assert not CodeSet.of(narrowed, mappings.systems, mappings.value_set).contains(Coding(SKS_D, "DM863"))


def test_a_qualifier_asked_for_must_be_there() -> None:
    right = {"url": "x", "compose": {"include": [{"system": SKS_D, "concept": [{"code": "DM863+TUL1"}]}]}}
    found = CodeSet.of(right, mappings.systems)
    assert found.contains(Coding(SKS_D, "DM863+TUL1"))
    assert not found.contains(Coding(SKS_D, "DM863"))


@pytest.mark.parametrize(
    "compose",
    [
        {"include": [{"system": SCT, "filter": [{"property": "concept", "op": "regex", "value": ".*"}]}]},
        {"include": [{"system": SCT, "filter": [{"property": "parent", "op": "=", "value": "1"}]}]},
        {"include": [{"valueSet": ["https://crmo-fhir.org/ValueSet/crmo"]}]},
        {"include": [{"concept": [{"code": "1"}]}]},
        {"include": [{"system": SCT, "concept": [{"display": "without code"}]}]},
    ],
)
def test_a_value_set_that_cannot_be_answered_is_refused(compose: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CodeSet.of({"url": "x", "compose": compose}, mappings.systems)


@pytest.mark.parametrize(
    "group",
    [
        {"element": []},
        {"source": SCT, "unmapped": {"mode": "fixed", "code": "x"}},
        {
            "source": SCT,
            "element": [{"code": "1", "target": [{"code": "x", "dependsOn": [{"property": "urn:other"}]}]}],
        },
    ],
)
def test_a_map_that_would_be_read_wrongly_is_refused(group: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CodeMap.of({"url": "x", "group": [group]}, mappings.systems)


@pytest.mark.parametrize(
    "naming_systems",
    [
        [{"name": "A", "uniqueId": []}],
        [
            {"name": "A", "uniqueId": [{"value": "urn:a"}]},
            {"name": "B", "uniqueId": [{"value": "urn:b"}, {"value": "urn:A"}]},
        ],
        [
            {
                "name": "A",
                "uniqueId": [{"value": "urn:a"}],
                "extension": [{"url": "https://crmo-fhir.org/StructureDefinition/code-form", "valueCode": "roman"}],
            }
        ],
    ],
)
def test_naming_systems_that_contradict_are_refused(naming_systems: list[dict[str, object]]) -> None:
    with pytest.raises(UsageError):
        Systems(naming_systems)
