"""The same Measure, Library and MeasureReports in FHIR R5 (5.0.0): what R4 says by extension, R5 has as elements.

Source: the R5 pages of Measure, MeasureReport and Device, section "R4 differences". The DEQM profiles are of R4, so no
profile is claimed; the two group-level extensions of DEQM stay, because R5 has scoring and improvement notation of a
report at its root only.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from fhir.resources import get_fhir_model_class
from pydantic import ValidationError

from crmo_fhir.errors import UsageError
from crmo_fhir.export.measure_report import CORE, CQM

Json = dict[str, Any]

_GROUP = {
    f"{CQM}/cqm-scoring": ("scoring", "valueCodeableConcept"),
    f"{CQM}/cqm-populationBasis": ("basis", "valueCode"),
    f"{CQM}/cqm-improvementNotation": ("improvementNotation", "valueCodeableConcept"),
}
_ELEMENTS = {f"{CORE}/cqf-inputParameters": ("inputParameters", "valueReference")}


def to_r5(resource: Mapping[str, Any]) -> Json:
    """An R4 Measure, Library or MeasureReport of ours as R5."""
    copy: Json = json.loads(json.dumps(resource))
    copy.get("meta", {}).pop("profile", None)
    if copy.get("meta") == {}:
        del copy["meta"]
    for contained in copy.get("contained", ()):
        _contained(contained)
    _lift(copy, _ELEMENTS)
    report = copy["resourceType"] == "MeasureReport"
    for group in copy.get("group", ()):
        _lift(group, _GROUP)
        for part in (group, *group.get("population", ()), *group.get("stratifier", ())):
            _link_id(part)
        if report:
            _group_of_report(group)
    return copy


def _contained(resource: Json) -> None:
    resource.get("meta", {}).pop("profile", None)
    if resource.get("meta") == {}:
        del resource["meta"]
    if resource["resourceType"] == "Device":
        resource["name"] = [{"value": one["name"], "type": "registered-name"} for one in resource.pop("deviceName")]
        resource["type"] = [resource["type"]]


def _group_of_report(group: Json) -> None:
    _score(group)
    for stratifier in group.get("stratifier", ()):
        stratifier["code"] = stratifier["code"][0]
        for stratum in stratifier.get("stratum", ()):
            stratum["valueCodeableConcept"] = stratum.pop("value")
            _score(stratum)
            for part in stratum["population"]:
                _link_id(part)


def _score(part: Json) -> None:
    if "measureScore" in part:
        part["measureScoreQuantity"] = part.pop("measureScore")


def _link_id(part: Json) -> None:
    for extension in part.get("extension", ()):
        if extension["url"].endswith(".linkId"):
            part["linkId"] = extension["valueString"]
    _drop(part, lambda url: url.endswith(".linkId"))


def _lift(part: Json, elements: Mapping[str, tuple[str, str]]) -> None:
    for extension in part.get("extension", ()):
        if extension["url"] in elements:
            name, value = elements[extension["url"]]
            part[name] = extension[value]
    _drop(part, lambda url: url in elements)


def _drop(part: Json, is_lifted: Callable[[str], bool]) -> None:
    kept = [extension for extension in part.get("extension", ()) if not is_lifted(extension["url"])]
    if kept:
        part["extension"] = kept
    else:
        part.pop("extension", None)


def validate_r5(resource: Mapping[str, Any]) -> Any:
    """The resource as the R5 model has it. Raises UsageError where it is no valid R5 resource."""
    try:
        return get_fhir_model_class(resource["resourceType"]).model_validate(dict(resource))
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UsageError(
            f"the {resource['resourceType']} is not valid FHIR R5 at {place}; correct it in mappings/, or write R4"
        ) from None
