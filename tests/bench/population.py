"""The records of a whole population, most of them somebody else's: the same every time, for any number of resources.

Each patient has 50 resources in the mix of a hospital's export (`EACH`), about 1 kB each as servers write them, one a line in
files by type; one patient in 5,000 is a child with CRMO, treated and followed. Sizes in resources, 50 a patient.
"""

import gzip
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from itertools import islice
from pathlib import Path

EACH = {
    "Patient": 1,
    "Condition": 3,
    "Observation": 28,
    "MedicationRequest": 6,
    "MedicationStatement": 2,
    "Encounter": 9,
    "ImagingStudy": 1,
}
"""How many resources of a type each patient has; 50 in all."""
PER_PATIENT = sum(EACH.values())
ONE_CHILD_IN = 5000
LINES_A_FILE = 250_000

_FIRST = date(2005, 1, 3)
_DAYS = [str(_FIRST + timedelta(days=day)) for day in range(4000)]
_COMMON = (
    ("J45.9", "Asthma, unspecified"),
    ("L20.9", "Atopic dermatitis, unspecified"),
    ("H66.9", "Otitis media, unspecified"),
    ("S52.5", "Fracture of lower end of radius"),
    ("E10.9", "Type 1 diabetes mellitus without complications"),
    ("M08.0", "Juvenile rheumatoid arthritis"),
    ("M86.6", "Other chronic osteomyelitis"),
    ("K50.9", "Crohn disease, unspecified"),
    ("J06.9", "Acute upper respiratory infection, unspecified"),
)
_CHILDS = (
    ("M86.3", "Chronic multifocal osteomyelitis"),
    ("L40.3", "Pustulosis palmaris et plantaris"),
    ("R52.2", "Other chronic pain"),
)
_DRUGS = (
    ("R03AC02", "salbutamol"),
    ("J01CA04", "amoxicillin"),
    ("N02BE01", "paracetamol"),
    ("R06AE07", "cetirizine"),
    ("D07AC01", "betamethasone"),
    ("A10AB05", "insulin aspart"),
)
_CHILDS_DRUGS = (("M01AE02", "naproxen"), ("L04AX03", "methotrexate"), ("L04AB04", "adalimumab"))
_ANALYTES = (
    ("1988-5", "C reactive protein [Mass/volume] in Serum or Plasma", "mg/L", 90),
    ("30341-2", "Erythrocyte sedimentation rate", "mm/h", 60),
    ("718-7", "Hemoglobin [Mass/volume] in Blood", "g/dL", 17),
    ("8310-5", "Body temperature", "Cel", 41),
    ("29463-7", "Body weight", "kg", 80),
    ("6690-2", "Leukocytes [#/volume] in Blood by Automated count", "10*3/uL", 20),
)
_NOTE = "Seen in the clinic, no fever, plan unchanged; the family was told what to look for and when to come back. "
_V = "http://terminology.hl7.org/CodeSystem"


def is_child(number: int) -> bool:
    """Whether this patient is a child with CRMO."""
    return number % ONE_CHILD_IN == 17


def _meta(kind: str, number: int, day: str) -> str:
    return (
        f'"meta":{{"versionId":"{number % 3 + 1}","lastUpdated":"{day}T08:{number % 60:02d}:11.123+01:00",'
        f'"source":"#{number:016x}","profile":["http://hl7.org/fhir/uv/ips/StructureDefinition/{kind}-uv-ips"]}}'
    )


def _concept(system: str, code: str, display: str) -> str:
    return f'{{"coding":[{{"system":"{system}","code":"{code}","display":"{display}"}}],"text":"{display}"}}'


def _narrative(text: str) -> str:
    return f'"text":{{"status":"generated","div":"<div xmlns=\\"http://www.w3.org/1999/xhtml\\"><p>{text}</p></div>"}}'


def _patient(number: int, _: int) -> str:
    born = "2003-03-14" if is_child(number) else f"{1930 + number % 80}-{number % 12 + 1:02d}-{number % 28 + 1:02d}"
    family, given = f"Family{number % 9973}", f"Given{number % 997}"
    return (
        f'{{"resourceType":"Patient","id":"p{number}",{_meta("Patient", number, _DAYS[number % 4000])},'
        f"{_narrative(f'{given} {family}, born {born}')},"
        f'"identifier":[{{"use":"official","type":{_concept(f"{_V}/v2-0203", "MR", "Medical record number")},'
        f'"system":"urn:oid:1.2.208.176.1.2","value":"{number:010d}","assigner":{{"display":"Region"}}}}],"active":true,'
        f'"name":[{{"use":"official","family":"{family}","given":["{given}"]}}],'
        f'"telecom":[{{"system":"phone","value":"+45 {number % 10**8:08d}","use":"home"}}],'
        f'"gender":"{("female", "male")[number % 2]}","birthDate":"{born}",'
        f'"address":[{{"use":"home","line":["Street {number % 200}"],"city":"City","postalCode":"{number % 9000 + 1000}",'
        f'"country":"DK"}}],"managingOrganization":{{"reference":"Organization/o{number % 40}"}}}}'
    )


def _condition(number: int, nth: int) -> str:
    code, display = _CHILDS[nth] if is_child(number) else _COMMON[(number + nth) % len(_COMMON)]
    day = _DAYS[(number + 400 * nth) % 2000]
    clinical = _concept(f"{_V}/condition-clinical", "active", "Active")
    confirmed = _concept(f"{_V}/condition-ver-status", "confirmed", "Confirmed")
    category = _concept(f"{_V}/condition-category", "encounter-diagnosis", "Encounter Diagnosis")
    return (
        f'{{"resourceType":"Condition","id":"c{number}-{nth}",{_meta("Condition", number, day)},'
        f'{_narrative(display)},"clinicalStatus":{clinical},"verificationStatus":{confirmed},"category":[{category}],'
        f'"code":{_concept("http://hl7.org/fhir/sid/icd-10", code, display)},'
        f'"subject":{{"reference":"Patient/p{number}"}},"encounter":{{"reference":"Encounter/e{number}-{nth}"}},'
        f'"onsetDateTime":"{day}","recordedDate":"{day}T09:00:00+01:00"}}'
    )


def _observation(number: int, nth: int) -> str:
    code, display, unit, most = _ANALYTES[nth % len(_ANALYTES)]
    day = _DAYS[(number + 60 * nth) % 4000]
    return (
        f'{{"resourceType":"Observation","id":"o{number}-{nth}",{_meta("Observation", number, day)},'
        f'"identifier":[{{"system":"urn:oid:1.2.208.176.4.1","value":"L{number}-{nth}"}}],"status":"final",'
        f'"category":[{_concept(f"{_V}/observation-category", "laboratory", "Laboratory")}],'
        f'"code":{_concept("http://loinc.org", code, display)},'
        f'"subject":{{"reference":"Patient/p{number}"}},"encounter":{{"reference":"Encounter/e{number}-{nth % 9}"}},'
        f'"effectiveDateTime":"{day}T07:30:00+01:00","issued":"{day}T11:02:00.000+01:00",'
        f'"performer":[{{"reference":"Organization/o{number % 40}","display":"Department of Clinical Biochemistry"}}],'
        f'"valueQuantity":{{"value":{(number * 7 + nth) % most}.{nth % 10},"unit":"{unit}",'
        f'"system":"http://unitsofmeasure.org","code":"{unit}"}},'
        f'"referenceRange":[{{"high":{{"value":8.0,"unit":"{unit}","system":"http://unitsofmeasure.org",'
        f'"code":"{unit}"}}}}],"note":[{{"text":"{_NOTE}"}}]}}'
    )


def _medication(number: int, nth: int) -> tuple[str, str]:
    return _CHILDS_DRUGS[nth % 3] if is_child(number) else _DRUGS[(number + nth) % len(_DRUGS)]


def _request(number: int, nth: int) -> str:
    code, name = _medication(number, nth)
    day = _DAYS[(number + 150 * nth) % 4000]
    return (
        f'{{"resourceType":"MedicationRequest","id":"r{number}-{nth}",{_meta("MedicationRequest", number, day)},'
        f'"status":"completed","intent":"order","medicationCodeableConcept":{_concept("http://www.whocc.no/atc", code, name)},'
        f'"subject":{{"reference":"Patient/p{number}"}},"encounter":{{"reference":"Encounter/e{number}-{nth}"}},'
        f'"authoredOn":"{day}","requester":{{"reference":"Practitioner/d{number % 500}","display":"Doctor {number % 500}"}},'
        f'"dosageInstruction":[{{"text":"1 tablet twice a day","timing":{{"repeat":{{"frequency":2,"period":1,'
        f'"periodUnit":"d"}}}},"route":{_concept("http://snomed.info/sct", "26643006", "Oral route")},'
        f'"doseAndRate":[{{"doseQuantity":{{"value":1,"unit":"tablet"}}}}]}}],'
        f'"dispenseRequest":{{"numberOfRepeatsAllowed":1,"expectedSupplyDuration":{{"value":90,"unit":"days",'
        f'"system":"http://unitsofmeasure.org","code":"d"}}}},"note":[{{"text":"{_NOTE}"}}]}}'
    )


def _statement(number: int, nth: int) -> str:
    code, name = _medication(number, nth)
    day = (number + 500 * nth) % 3000
    return (
        f'{{"resourceType":"MedicationStatement","id":"s{number}-{nth}",{_meta("MedicationStatement", number, _DAYS[day])},'
        f'"status":"completed","medicationCodeableConcept":{_concept("http://www.whocc.no/atc", code, name)},'
        f'"subject":{{"reference":"Patient/p{number}"}},"context":{{"reference":"Encounter/e{number}-{nth}"}},'
        f'"effectivePeriod":{{"start":"{_DAYS[day]}","end":"{_DAYS[day + 300]}"}},"dateAsserted":"{_DAYS[day]}",'
        f'"informationSource":{{"reference":"Patient/p{number}"}},'
        f'"dosage":[{{"text":"1 tablet twice a day","timing":{{"repeat":{{"frequency":2,"period":1,"periodUnit":"d"}}}},'
        f'"route":{_concept("http://snomed.info/sct", "26643006", "Oral route")}}}],"note":[{{"text":"{_NOTE}"}}]}}'
    )


def _encounter(number: int, nth: int) -> str:
    day = _DAYS[(number + 200 * nth) % 4000]
    return (
        f'{{"resourceType":"Encounter","id":"e{number}-{nth}",{_meta("Encounter", number, day)},{_narrative(_NOTE)},'
        f'"identifier":[{{"system":"urn:oid:1.2.208.176.3.1","value":"V{number}-{nth}"}}],"status":"finished",'
        f'"class":{{"system":"{_V}/v3-ActCode","code":"AMB","display":"ambulatory"}},'
        f'"type":[{_concept("http://snomed.info/sct", "185349003", "Encounter for check up")}],'
        f'"subject":{{"reference":"Patient/p{number}"}},'
        f'"participant":[{{"individual":{{"reference":"Practitioner/d{number % 500}"}}}}],'
        f'"period":{{"start":"{day}T08:00:00+01:00","end":"{day}T08:30:00+01:00"}},'
        f'"serviceProvider":{{"reference":"Organization/o{number % 40}"}}}}'
    )


def _study(number: int, nth: int) -> str:
    day = _DAYS[(number + 90 * nth) % 4000]
    uid = f"1.2.208.154.1.{number}.{nth}"
    return (
        f'{{"resourceType":"ImagingStudy","id":"i{number}-{nth}",{_meta("ImagingStudy", number, day)},'
        f'"identifier":[{{"system":"urn:dicom:uid","value":"urn:oid:{uid}"}}],"status":"available",'
        f'"modality":[{{"system":"http://dicom.nema.org/resources/ontology/DCM","code":"MR"}}],'
        f'"subject":{{"reference":"Patient/p{number}"}},"encounter":{{"reference":"Encounter/e{number}-{nth}"}},'
        f'"started":"{day}T10:00:00+01:00","numberOfSeries":2,"numberOfInstances":80,"description":"MR of the whole body",'
        f'"series":[{{"uid":"{uid}.1","number":1,"modality":{{"system":"http://dicom.nema.org/resources/ontology/DCM",'
        f'"code":"MR"}},"numberOfInstances":40}},{{"uid":"{uid}.2","number":2,"modality":'
        f'{{"system":"http://dicom.nema.org/resources/ontology/DCM","code":"MR"}},"numberOfInstances":40}}]}}'
    )


_WRITE: dict[str, Callable[[int, int], str]] = {
    "Patient": _patient,
    "Condition": _condition,
    "Observation": _observation,
    "MedicationRequest": _request,
    "MedicationStatement": _statement,
    "Encounter": _encounter,
    "ImagingStudy": _study,
}


def lines(kind: str, resources: int) -> Iterator[str]:
    """The resources of one type in a population of so many resources, one a line."""
    write = _WRITE[kind]
    for number in range(resources // PER_PATIENT):
        for nth in range(EACH[kind]):
            yield write(number, nth) + "\n"


def children(resources: int) -> int:
    """How many children with CRMO are in a population of so many resources."""
    return sum(1 for number in range(resources // PER_PATIENT) if is_child(number))


def write(folder: Path, resources: int, *, packed: bool = False) -> int:
    """Write a population of so many resources (a multiple of 50) as an export; gives the bytes on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, each in EACH.items():
        text, part, count = lines(kind, resources), 0, 0
        while True:
            piece = list(islice(text, LINES_A_FILE))
            if not piece:
                break
            part += 1
            count += len(piece)
            name = f"{kind}.{part:03d}.ndjson"
            data = "".join(piece).encode()
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data, 1, mtime=0))
            else:
                (folder / name).write_bytes(data)
        assert count == resources // PER_PATIENT * each
    return sum(path.stat().st_size for path in folder.iterdir())
