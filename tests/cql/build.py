"""Write the Measure and the Library of mappings/measures from CrmoTreatmentEffect.cql and its translation.

Also the expansions of the value sets it names, which engines need where no code system is at hand.

Usage: python tests/cql/build.py; see README.md.
"""

import base64
import html
import json
import re
import subprocess
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

Json = dict[str, Any]

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "CrmoTreatmentEffect.cql"
MAPPINGS = HERE.parents[1] / "mappings"
MEASURES = MAPPINGS / "measures"
EXPANDED_BY_HAND = ("crmo",)
"""Their expansion is more than can be derived here: every spelling of a code."""
MODEL_INFO = "info.cqframework:model:3.26.0"
SYSTEM_MODEL = "org/hl7/elm/r1/system-modelinfo.xml"
BASE = "https://crmo-fhir.org"
VERSION = "0.4.0"
"""Of Measure, Library and CQL: raise it in the CQL too whenever a definition changes."""
DESCRIPTION = (
    "Treatment-effect table of children with chronic recurrent multifocal osteomyelitis (CRMO/CNO): sufficient clinical "
    "effect of NSAID, methotrexate and TNF-α inhibitors, regression on MRI, and the description of the cohort. One group "
    "a row of the table; a proportion has its own unit of counting."
)
USAGE = (
    "Descriptive: the same children receive the treatments in sequence, so the groups are no comparison. Effect and "
    "retention are independent: a course with a sufficient effect may still end in a switch."
)
LIBRARY_DESCRIPTION = (
    "Every population and stratifier of the Measure crmo-treatment-effect as CQL over FHIR R4. It includes no other "
    "library; its header says which steps of crmo-fhir it leaves out."
)
_PATIENT_CUTS = ("sex", "focality", "sapho")
_COURSE_CUTS = ("agent", "line", *_PATIENT_CUTS)
GROUPS = (
    (
        "nsaid-clinical",
        "boolean",
        "Sufficient clinical effect of NSAID; unit: patient",
        (
            "Children of the cohort with a sufficient clinical effect of an NSAID and no escalation (methotrexate, TNF-α "
            "inhibitor, bisphosphonate, systemic glucocorticoid for more than 28 days) within 12 months of that judgement. "
            "The denominator is the whole cohort."
        ),
        _PATIENT_CUTS,
    ),
    (
        "mtx-clinical",
        "boolean",
        "Sufficient clinical effect of methotrexate; unit: patient",
        (
            "Children with a sufficient clinical effect of methotrexate among those treated whose effect could be judged. "
            "Nothing observed after the start of a TNF-α inhibitor is credited to methotrexate. Initial population: all "
            "treated."
        ),
        _PATIENT_CUTS,
    ),
    (
        "tnfi-clinical",
        "MedicationStatement",
        "Sufficient clinical effect of TNF-α inhibitors; unit: treatment course",
        (
            "Courses of a TNF-α inhibitor with a sufficient clinical effect among those whose effect could be judged. A "
            "child counts once for each course. Initial population: all courses."
        ),
        _COURSE_CUTS,
    ),
    (
        "mtx-mri",
        "MedicationStatement",
        "Regression on MRI under methotrexate; unit: MRI-evaluated treatment course",
        "Courses of methotrexate with regression on MRI among those evaluated by MRI. Initial population: all courses.",
        _PATIENT_CUTS,
    ),
    (
        "tnfi-mri",
        "MedicationStatement",
        "Regression on MRI under TNF-α inhibitors; unit: MRI-evaluated treatment course",
        (
            "Courses of a TNF-α inhibitor with regression on MRI among those evaluated by MRI. Initial population: all "
            "courses."
        ),
        _COURSE_CUTS,
    ),
    (
        "cohort",
        "boolean",
        "Cohort; unit: patient",
        "Children with confirmed CRMO/CNO diagnosed in the period and under 16 years of age at diagnosis.",
        _PATIENT_CUTS,
    ),
    (
        "foci",
        "Condition",
        "Foci; unit: focus",
        (
            "Distinct foci (bone and side) of the children of the cohort. In the default encoding a focus is one Condition "
            "with bodySite."
        ),
        ("bone",),
    ),
)
"""Id, basis, text, description and stratifiers of each group; the expressions are named after them."""
TRAITS = (
    "http://hl7.org/fhir/uv/cqm/StructureDefinition/cqm-",
    "http://hl7.org/fhir/us/cqfmeasures/StructureDefinition/cqfm-",
)
"""Basis, scoring and notation stand on each group, under the name of either guide: R4 has them on the whole Measure only,
and some engines know only the second name."""
COUNTED_ONLY = ("cohort", "foci")
POPULATIONS = {
    "initial-population": "Initial Population",
    "denominator": "Denominator",
    "numerator": "Numerator",
}
STRATIFIERS = {
    "agent": "Agent",
    "line": "Line (rank of the agent among the child's agents of the class)",
    "sex": "Sex",
    "focality": "Unifocal or multifocal, ever",
    "sapho": "SAPHO syndrome, ever",
    "bone": "Bone",
}


def measure() -> Json:
    """The Measure."""
    rows = "".join(
        f"<tr><td>{html.escape(text)}</td><td>{html.escape(description)}</td></tr>"
        for _, _, text, description, _ in GROUPS
    )
    return {
        "resourceType": "Measure",
        "id": "crmo-treatment-effect",
        "text": _narrative(f"<p>{html.escape(DESCRIPTION)}</p><table><tbody>{rows}</tbody></table>"),
        "url": f"{BASE}/Measure/crmo-treatment-effect",
        "version": VERSION,
        "name": "CrmoTreatmentEffect",
        "title": "Treatment effect in CRMO/CNO",
        "status": "active",
        "experimental": False,
        "subjectCodeableConcept": {"coding": [{"system": "http://hl7.org/fhir/resource-types", "code": "Patient"}]},
        "publisher": "crmo-fhir",
        "description": DESCRIPTION,
        "usage": USAGE,
        "library": [f"{BASE}/Library/CrmoTreatmentEffect|{VERSION}"],
        "type": [_terminology("measure-type", "outcome", "Outcome")],
        "group": [_group(*group) for group in GROUPS],
    }


def library(cql: str, elm_json: bytes, elm_xml: bytes) -> Json:
    """The Library: the CQL and its translation to ELM."""
    contents = {"text/cql": cql.encode(), "application/elm+json": elm_json, "application/elm+xml": elm_xml}
    return {
        "resourceType": "Library",
        "id": "crmo-treatment-effect",
        "text": _narrative(f"<p>{html.escape(LIBRARY_DESCRIPTION)}</p><pre>{html.escape(cql)}</pre>"),
        "url": f"{BASE}/Library/CrmoTreatmentEffect",
        "version": VERSION,
        "name": "CrmoTreatmentEffect",
        "title": "Treatment effect in CRMO/CNO: criteria",
        "status": "active",
        "experimental": False,
        "type": _terminology("library-type", "logic-library", "Logic Library"),
        "publisher": "crmo-fhir",
        "description": LIBRARY_DESCRIPTION,
        "content": [{"contentType": kind, "data": base64.b64encode(data).decode()} for kind, data in contents.items()],
    }


def _group(group: str, basis: str, text: str, description: str, cuts: tuple[str, ...]) -> Json:
    counted_only = group in COUNTED_ONLY
    scoring = ("cohort", "Cohort") if counted_only else ("proportion", "Proportion")
    traits: dict[str, Json] = {
        "populationBasis": {"valueCode": basis},
        "scoring": {"valueCodeableConcept": _terminology("measure-scoring", *scoring)},
    }
    if not counted_only:
        notation = _terminology("measure-improvement-notation", "increase", "Increased score indicates improvement")
        traits["improvementNotation"] = {"valueCodeableConcept": notation}
    extensions = [_link_id("Measure.group", group)]
    extensions += [{"url": url + name, **value} for url in TRAITS for name, value in traits.items()]
    return {
        "id": group,
        "extension": extensions,
        "code": {"coding": [{"system": f"{BASE}/CodeSystem/measure-group", "code": group}], "text": text},
        "description": description,
        "population": [
            {
                "id": f"{group}-{code}",
                "extension": [_link_id("Measure.group.population", f"{group}-{code}")],
                "code": _terminology("measure-population", code, display),
                "criteria": _criteria(_camel(group) + _camel(code)),
            }
            for code, display in list(POPULATIONS.items())[: 1 if counted_only else None]
        ],
        "stratifier": [
            {
                "id": f"{group}-{cut}",
                "extension": [_link_id("Measure.group.stratifier", f"{group}-{cut}")],
                "code": {
                    "coding": [{"system": f"{BASE}/CodeSystem/stratifier", "code": cut}],
                    "text": STRATIFIERS[cut],
                },
                "criteria": _criteria(_cut(basis, cut)),
            }
            for cut in cuts
        ],
    }


def _cut(basis: str, cut: str) -> str:
    """A stratifier is a function of the resource counted, or of nothing where patients are counted."""
    prefix = {"boolean": "", "MedicationStatement": "Course", "Condition": "Focus"}[basis]
    return prefix + _camel(cut)


def _camel(code: str) -> str:
    return "".join(part.capitalize() for part in code.split("-"))


def _criteria(expression: str) -> Json:
    return {"language": "text/cql", "expression": expression}


def _terminology(system: str, code: str, display: str) -> Json:
    return {"coding": [{"system": f"http://terminology.hl7.org/CodeSystem/{system}", "code": code, "display": display}]}


def _link_id(path: str, value: str) -> Json:
    return {"url": f"http://hl7.org/fhir/5.0/StructureDefinition/extension-{path}.linkId", "valueString": value}


def _narrative(body: str) -> Json:
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{body}</div>'}


def value_sets() -> list[Path]:
    """The files of the value sets that the CQL names."""
    names = re.findall(
        rf"^valueset .*'{BASE}/ValueSet/([a-z0-9-]+)'$", SOURCE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [MAPPINGS / "valuesets" / f"{name}.json" for name in names]


def expansion(value_set: Json) -> list[Json]:
    """What a value set holds: the codes it lists, the roots of its filters, and the codes known for agents of its class."""
    drugs, agents = _map("drug-class"), _map("agent")
    drug_class = drugs["group"][1]["element"]
    own = next((e["target"][0]["code"] for e in drug_class if e["code"] == value_set["id"]), None)
    names = {e["code"] for e in drugs["group"][0]["element"] if e["target"][0]["code"] == own}
    found: dict[tuple[str, str], Json] = {}
    for part in value_set["compose"]["include"]:
        listed = [*part.get("concept", ()), *({"code": f["value"]} for f in part.get("filter", ()))]
        for concept in listed:
            found[part["system"], concept["code"]] = concept
    for group in agents["group"]:
        for element in group["element"]:
            if element["target"][0]["code"] in names:
                found[group["source"], element["code"]] = element
    return [
        {"system": system, "code": code, **({"display": c["display"]} if "display" in c else {})}
        for (system, code), c in found.items()
    ]


def with_expansion(text: str) -> str:
    """The text of a value set's file with its expansion, one code a line; the rest stays as it is written."""
    value_set = json.loads(text)
    head = text[: text.index(',\n  "expansion"')] if "expansion" in value_set else text.rstrip()[:-1].rstrip()
    lines = [f"      {json.dumps(one, ensure_ascii=False)}" for one in expansion(value_set)]
    stamp = json.dumps(value_set["date"])
    contains = ",\n".join(lines)
    return f'{head},\n  "expansion": {{\n    "timestamp": {stamp},\n    "contains": [\n{contains}\n    ]\n  }}\n}}\n'


def _map(name: str) -> Json:
    loaded: Json = json.loads((MAPPINGS / "conceptmaps" / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def translate(folder: Path, source: Path = SOURCE) -> None:
    """Translate the CQL into `folder`/elm.json and elm.xml; raises CalledProcessError where the translator finds fault."""
    if not (HERE / "node_modules").is_dir():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=HERE, check=True, timeout=600)
    models = HERE / "modelinfo"
    if not (models / SYSTEM_MODEL).is_file():
        goal = ("dependency:copy", f"-Dartifact={MODEL_INFO}", f"-DoutputDirectory={models}")
        subprocess.run(["mvn", "-B", "-q", *goal], cwd=HERE, check=True, timeout=600)
        with zipfile.ZipFile(next(models.glob("*.jar"))) as jar:
            jar.extract(SYSTEM_MODEL, models)
    subprocess.run(["node", "translate.mjs", str(source), str(folder)], cwd=HERE, check=True, timeout=300)


def main() -> None:
    """Write the artifacts."""
    for path in value_sets():
        if path.stem not in EXPANDED_BY_HAND:
            path.write_text(with_expansion(path.read_text(encoding="utf-8")), encoding="utf-8")
    with TemporaryDirectory() as folder:
        translate(Path(folder))
        elm_json, elm_xml = ((Path(folder) / name).read_bytes() for name in ("elm.json", "elm.xml"))
    artifacts = {
        "crmo-treatment-effect": measure(),
        "crmo-treatment-effect-library": library(SOURCE.read_text(encoding="utf-8"), elm_json, elm_xml),
    }
    for name, artifact in artifacts.items():
        text = json.dumps(artifact, indent=2, ensure_ascii=False) + "\n"
        (MEASURES / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
