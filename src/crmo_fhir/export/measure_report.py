"""The MeasureReport: the results in the shape of the Measure, as FHIR R4 that passes the DEQM universal profile.

The Measure says which groups, populations and stratifiers there are; the result rows hold the counts. A stratum is
told by `stratifier.code` and `stratum.value` only, which is what every validator accepts in R4.
"""

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fhir.resources.R4B import get_fhir_model_class
from pydantic import ValidationError

from crmo_fhir.errors import IncompleteError, UsageError
from crmo_fhir.export.table1 import (
    CONFIDENTIAL,
    STRATIFIERS,
    Figures,
    describe_disclosure,
    interval,
    percent,
    round_half_away,
    shown,
)
from crmo_fhir.model.records import WHOLE
from crmo_fhir.model.results import Result
from crmo_fhir.model.study import Disclosure, Study

Json = dict[str, Any]

IDENTIFIER_SYSTEM = "https://crmo-fhir.org/measure-report"
PROFILE = "http://hl7.org/fhir/uv/deqm/StructureDefinition/deqm-summarymeasurereport"
CONFIDENCE = 95
"""Percent; both interval methods of the metrics are at this level."""
_CQM = "http://hl7.org/fhir/uv/cqm/StructureDefinition"
_DEQM = "http://hl7.org/fhir/uv/deqm/StructureDefinition"
_CORE = "http://hl7.org/fhir/StructureDefinition"
_LINK_ID = "http://hl7.org/fhir/5.0/StructureDefinition/extension-MeasureReport.{}.linkId"
_GENDER = "http://hl7.org/fhir/administrative-gender"
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def build_measure_report(results: Sequence[Result], study: Study, measure: Mapping[str, Any]) -> Json:
    """The summary MeasureReport (DEQM universal) of one study.

    Raises IncompleteError where the results lack a group of the Measure or contradict themselves.
    """
    figures = Figures(tuple(results))
    canonical = f"{measure['url']}|{measure['version']}"
    identity = (
        measure["url"],
        measure["version"],
        f"{study.start.isoformat()}/{study.end.isoformat()}",
        study.reporter_reference or study.reporter,
    )
    digest = hashlib.sha256("|".join(identity).encode()).hexdigest()
    report: Json = {
        "resourceType": "MeasureReport",
        "id": f"crmo-{digest[:32]}",
        "meta": {"profile": [PROFILE]},
        "text": {"status": "generated", "div": _narrative(figures, study, measure)},
        "contained": _contained(study),
        "extension": [
            {
                "url": "http://hl7.org/fhir/uv/crmi/StructureDefinition/crmi-softwaresystem",
                "valueReference": {"reference": "#crmo-fhir"},
            },
            {"url": f"{_CORE}/cqf-inputParameters", "valueReference": {"reference": "#disclosure"}},
        ],
        "identifier": [{"system": IDENTIFIER_SYSTEM, "value": digest}],
        "status": "complete" if study.complete else "pending",
        "type": "summary",
        "measure": canonical,
        "date": (study.data_lock or study.end).isoformat(),
        "reporter": {"reference": study.reporter_reference or "#reporter"},
        "period": {"start": study.start.isoformat(), "end": study.end.isoformat()},
        "group": [_group(figures, group) for group in measure["group"]],
    }
    return _checked(report)


def to_json(resource: Mapping[str, Any]) -> str:
    """A resource as the text that is written: two spaces, a last newline."""
    return json.dumps(resource, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def measure_json(measure: Mapping[str, Any]) -> str:
    """The Measure as it is written beside the report. Raises UsageError where it is no valid R4 resource."""
    return to_json(_checked(measure))


def library_json(library: Mapping[str, Any]) -> str:
    """The Library as it is written beside the Measure. Raises UsageError where it is no valid R4 resource."""
    return to_json(_checked(library))


def _checked(resource: Mapping[str, Any]) -> Json:
    """The resource with its elements in the order of FHIR, checked against the R4 model."""
    name = str(resource.get("resourceType", ""))
    try:
        model_class = get_fhir_model_class(name)
    except ValueError:
        raise UsageError("mappings: a Measure or Library is no FHIR R4 resource type; correct the artifact") from None
    try:
        model = model_class.model_validate(dict(resource))
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UsageError(f"the {name} is not valid FHIR R4 at {place}; correct it in mappings/") from None
    ordered: Json = json.loads(model.model_dump_json())
    return ordered


def _contained(study: Study) -> list[Json]:
    device: Json = {
        "resourceType": "Device",
        "id": "crmo-fhir",
        "deviceName": [{"name": "crmo-fhir", "type": "manufacturer-name"}],
        "type": {
            "coding": [{"system": "http://terminology.hl7.org/CodeSystem/software-system-type", "code": "tooling"}]
        },
        "version": [{"value": study.program_version}],
    }
    disclosed = _disclosure(study.disclosure)
    if study.reporter_reference:
        return [device, disclosed]
    return [
        device,
        disclosed,
        {"resourceType": "Organization", "id": "reporter", "active": True, "name": _text(study.reporter)},
    ]


def _disclosure(disclosure: Disclosure) -> Json:
    """How far the report may go, for a program to read; the narrative says it in words."""
    values: list[Json] = [{"name": "disclosure", "valueCode": disclosure.mode}]
    if disclosure.threshold:
        values.append({"name": "threshold", "valueInteger": disclosure.threshold})
        values.append({"name": "rounding", "valueInteger": disclosure.rounding})
    return {"resourceType": "Parameters", "id": "disclosure", "parameter": values}


def _group(figures: Figures, group: Mapping[str, Any]) -> Json:
    group_id = group["id"]
    row = _overall(figures, group_id)
    initial = _initial_population(figures, row)
    proportion = _is_proportion(group)
    notation = _extension(group, f"{_CQM}/cqm-improvementNotation")
    extensions: list[Json] = [
        _link_id("group", group_id),
        {"url": f"{_DEQM}/deqm-measureScoring", **_extension(group, f"{_CQM}/cqm-scoring")},
    ]
    if notation:
        extensions.append({"url": f"{_DEQM}/deqm-groupImprovementNotation", **notation})
    extensions.append({"url": f"{_CORE}/measurereport-populationDescription", "valueMarkdown": group["code"]["text"]})
    built: Json = {
        "id": group_id,
        "extension": extensions,
        "code": group["code"],
        "population": [
            {"id": population["id"], **_population("group.population", population, row, initial)}
            for population in group["population"]
        ],
        **_score(row, proportion=proportion),
    }
    # who was treated is known for the group only: where some could not be judged, the strata leave that count out
    unjudged = figures.overall(f"{group_id}-not-evaluable")
    known = row.N is not None and initial == row.N and (unjudged is None or unjudged.n == 0)
    if group.get("stratifier"):
        built["stratifier"] = [
            _stratifier(figures, group, stratifier, initial_known=known) for stratifier in group["stratifier"]
        ]
    return built


def _stratifier(
    figures: Figures, group: Mapping[str, Any], stratifier: Mapping[str, Any], *, initial_known: bool
) -> Json:
    name = stratifier["code"]["coding"][0]["code"]
    proportion = _is_proportion(group)
    populations = [
        p for p in group["population"] if initial_known or not proportion or _code(p) != "initial-population"
    ]
    strata = [
        {
            "value": _value(name, row.stratum),
            "population": [
                _population("group.stratifier.stratum.population", p, row, row.N if proportion else row.n)
                for p in populations
            ],
            **_score(row, proportion=proportion),
        }
        for row in figures.strata(group["id"], name)
    ]
    built: Json = {
        "id": stratifier["id"],
        "extension": [_link_id("group.stratifier", stratifier["id"])],
        "code": [stratifier["code"]],
    }
    if strata:
        built["stratum"] = strata
    return built


def _population(path: str, population: Mapping[str, Any], row: Result, initial: int | None) -> Json:
    counts = {"initial-population": initial, "denominator": row.N, "numerator": row.n}
    count = counts[_code(population)]
    masked = {"_count": {"extension": [{"url": f"{_CORE}/data-absent-reason", "valueCode": "masked"}]}}
    return {
        "extension": [_link_id(path, population["id"])],
        "code": population["code"],
        **({"count": count} if count is not None else masked),
    }


def _score(row: Result, *, proportion: bool) -> Json:
    """n/N with its interval, as fractions without unit; nothing for 0/0, a masked row, or a group that is only counted."""
    if not proportion or row.n is None or not row.N:
        return {}
    score: Json = {"value": _decimal(row.n / row.N)}
    if row.ci_low is not None and row.ci_high is not None:
        interval = {"low": {"value": _decimal(row.ci_low)}, "high": {"value": _decimal(row.ci_high)}}
        score = {
            "extension": [
                {
                    "extension": [
                        {"url": "confidence", "valueDecimal": CONFIDENCE},
                        {"url": "interval", "valueRange": interval},
                    ],
                    "url": f"{_CORE}/quantity-confidenceInterval",
                }
            ],
            **score,
        }
    return {"measureScore": score}


def _decimal(value: float) -> float:
    """The number with at most 17 decimals (validators warn of more): from 0.1 to 1 that is the number itself."""
    return float(round_half_away(value, 17))


def _overall(figures: Figures, group_id: str) -> Result:
    row = figures.overall(group_id)
    if row is None:
        raise IncompleteError(f"results hold no overall row of `{group_id}`; run `crmo-fhir measure` again")
    return row


def _initial_population(figures: Figures, row: Result) -> int | None:
    """Those treated, where the results say so; the NSAID group, whose denominator is the whole cohort, has that.

    None where it is masked.
    """
    treated = None if row.group == "nsaid-clinical" else figures.overall(f"{row.group}-treated")
    initial = row.N if treated is None else treated.n
    known = [count for count in (0, row.n, row.N, initial) if count is not None]
    if known != sorted(known):
        message = f"results of `{row.group}` contradict themselves: not n ≤ N ≤ treated; run `crmo-fhir measure` again"
        raise IncompleteError(message)
    return initial


def _is_proportion(group: Mapping[str, Any]) -> bool:
    scoring = _extension(group, f"{_CQM}/cqm-scoring")
    return bool(scoring["valueCodeableConcept"]["coding"][0]["code"] == "proportion")


def _extension(element: Mapping[str, Any], url: str) -> Json:
    """The value of an extension as `{"value[x]": …}`; empty where there is none."""
    for extension in element.get("extension", ()):
        if extension["url"] == url:
            return {key: value for key, value in extension.items() if key != "url"}
    return {}


def _code(population: Mapping[str, Any]) -> str:
    return str(population["code"]["coding"][0]["code"])


def _link_id(path: str, value: str) -> Json:
    return {"url": _LINK_ID.format(path), "valueString": value}


def _value(stratifier: str, stratum: str) -> Json:
    text = _text(stratum)
    return {"coding": [{"system": _GENDER, "code": text}], "text": text} if stratifier == "sex" else {"text": text}


def _text(text: str) -> str:
    """Without the characters XML, and so a narrative, may not hold; never empty, which FHIR forbids."""
    return _NOT_XML.sub("\ufffd", text).strip() or "unknown"


def _narrative(figures: Figures, study: Study, measure: Mapping[str, Any]) -> str:
    """The report as a table; strata with nothing to count stand in the structure only."""
    period = f"{study.start.isoformat()} to {study.end.isoformat()}"
    heads = "".join(f"<th>{head}</th>" for head in ("Group", "n", "N", "%", "95 % CI", "Initial population"))
    lines = [
        f"<p>{_escaped(measure['title'])}. Diagnosed {period}. Reported by: {_escaped(study.reporter)}.</p>",
        *([f"<p>{_escaped(_partial(study))}</p>"] if not study.complete else []),
        f"<p>{_escaped(describe_disclosure(study.disclosure))}</p>",
        f"<table><thead><tr>{heads}</tr></thead><tbody>",
    ]
    for group in measure["group"]:
        row = _overall(figures, group["id"])
        lines.append(_narrative_row(group["code"]["text"], row, shown(_initial_population(figures, row))))
        for stratifier in group.get("stratifier", ()):
            key = stratifier["code"]["coding"][0]["code"]
            name = STRATIFIERS.get(key, key)
            lines.extend(
                _narrative_row(f"– {name}: {r.stratum}", r) for r in figures.strata(group["id"], key) if r.N != 0
            )
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{"".join(lines)}</tbody></table></div>'


def _partial(study: Study) -> str:
    """What the reader of a partial report must know: which cells of the ledger are missing."""
    missing = ", ".join(f"{state} {cells}" for state, cells in sorted(study.ledger.items()) if state not in WHOLE)
    return (
        f"Partial: not every record came from the source ({missing or 'see the ledger'}), so figures may be too small."
    )


def _narrative_row(name: str, row: Result, initial: str = "") -> str:
    share = CONFIDENTIAL if row.masked else percent(row)
    cells = (name, shown(row.n), shown(row.N), share, interval(row), initial)
    return "<tr>" + "".join(f"<td>{_escaped(cell) if cell else ''}</td>" for cell in cells) + "</tr>"


def _escaped(text: str) -> str:
    return html.escape(_text(text))
