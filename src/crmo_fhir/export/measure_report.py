"""The MeasureReports: the results in the shape of the Measure, as FHIR R4 that passes the DEQM profiles.

The Measure says which groups, populations and stratifiers there are; the result rows and members hold the counts. A
stratum is told by `stratifier.code` and `stratum.value` only, which is what every validator accepts in R4. `r5` has the
same in FHIR R5.
"""

import hashlib
import html
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

import msgspec
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
from crmo_fhir.model.results import Member, Result
from crmo_fhir.model.study import Study

Json = dict[str, Any]

IDENTIFIER_SYSTEM = "https://crmo-fhir.org/measure-report"
CONFIDENCE = 95
"""Percent; both interval methods of the metrics are at this level."""
CQM = "http://hl7.org/fhir/uv/cqm/StructureDefinition"
CORE = "http://hl7.org/fhir/StructureDefinition"
_UV = "http://hl7.org/fhir/uv/deqm/StructureDefinition"
_US = "http://hl7.org/fhir/us/davinci-deqm/StructureDefinition"
_LINK_ID = "http://hl7.org/fhir/5.0/StructureDefinition/extension-MeasureReport.{}.linkId"
_GENDER = "http://hl7.org/fhir/administrative-gender"
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Family:
    """The profiles and extensions of one family of DEQM: canonical URLs.

    `us` asks for more: a proportion must have a score, so that 0/0 and a masked count cannot be reported, and a reporter
    that is contained must be a QI-Core Organization, so that ours is only named.
    """

    summary: str
    individual: str
    subject_list: str
    reports: str
    scoring: str
    notation: str
    us: bool = False


FAMILIES = {
    "uv": Family(
        f"{_UV}/deqm-summarymeasurereport",
        f"{_UV}/deqm-individualmeasurereport",
        f"{_UV}/deqm-subjectlistmeasurereport",
        f"{_UV}/deqm-individualmeasurereportlist",
        f"{_UV}/deqm-measureScoring",
        f"{_UV}/deqm-groupImprovementNotation",
    ),
    "us": Family(
        f"{_US}/summary-measurereport-deqm",
        f"{_US}/indv-measurereport-deqm",
        f"{_US}/subjectlist-measurereport-deqm",
        f"{_US}/indv-measurereport-list",
        f"{_US}/extension-measureScoring",
        f"{_US}/extension-groupImprovementNotation",
        us=True,
    ),
}
"""DEQM universal and DEQM of the US realm."""


def build_measure_report(
    results: Sequence[Result], study: Study, measure: Mapping[str, Any], family: str = "uv"
) -> Json:
    """The summary MeasureReport of one study, of a family of DEQM.

    Raises IncompleteError where the results lack a group of the Measure or contradict themselves, UsageError where the
    family cannot say what the results are.
    """
    figures, profiles = Figures(tuple(results)), FAMILIES[family]
    report = {
        **_head(study, measure, "summary", profiles),
        "group": [_group(figures, group, profiles) for group in measure["group"]],
    }
    _check_scores(report["group"], profiles)
    report["text"] = {"status": "generated", "div": _narrative(figures, study, measure)}
    report["contained"] += [_parameters(study), _completeness(study)]
    report["extension"] += [
        {"url": f"{CORE}/cqf-inputParameters", "valueReference": {"reference": "#parameters"}},
        {"url": f"{CORE}/cqf-messages", "valueReference": {"reference": "#completeness"}},
    ]
    return checked(report)


def build_individual_reports(
    members: Sequence[Member], study: Study, measure: Mapping[str, Any], family: str = "uv"
) -> Iterator[Json]:
    """One MeasureReport a child of the cohort, in the order of the children.

    Its counts are those of the child alone, so that over all children they add up to the summary; `evaluatedResource`
    names every resource that a count rests on, and the populations it is in.
    """
    profiles = FAMILIES[family]
    own: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        own[member.person].append(member)
    shapes: set[tuple[object, ...]] = set()
    for person in sorted(own):
        report = {
            **_head(study, measure, "individual", profiles, person),
            "group": [
                _group_of_members(group, [m for m in own[person] if m.group == group["id"]], profiles)
                for group in measure["group"]
            ],
            "evaluatedResource": _evaluated(own[person], measure),
        }
        report["text"] = {"status": "generated", "div": _narrative_of_child(own[person], study, measure)}
        _check_scores(report["group"], profiles)
        if new := {shape for group in report["group"] if (shape := _shape(group)) not in shapes}:
            validate(report)  # one of each shape stands for all of it
            shapes |= new
        yield report


def build_subject_list(
    summary: Mapping[str, Any], members: Sequence[Member], study: Study, measure: Mapping[str, Any], family: str = "uv"
) -> Json:
    """The summary with the individual reports behind every count (`subjectResults`), as a MeasureReport subject-list."""
    profiles = FAMILIES[family]
    report: Json = json.loads(json.dumps({**summary, **_head(study, measure, "subject-list", profiles)}))
    report["text"] = summary["text"]
    for group in report["group"]:
        own = [member for member in members if member.group == group["id"]]
        for population in group["population"]:
            _name_subjects(report, population, own, study, measure, profiles)
        for stratifier in group.get("stratifier", ()):
            name = stratifier["code"][0]["coding"][0]["code"]
            for stratum in stratifier.get("stratum", ()):
                those = [m for m in own if _text(m.strata.get(name, "")) == stratum["value"]["text"]]
                for population in stratum["population"]:
                    _name_subjects(report, population, those, study, measure, profiles)
    return report


def _name_subjects(
    report: Json,
    population: Json,
    members: Iterable[Member],
    study: Study,
    measure: Mapping[str, Any],
    profiles: Family,
) -> None:
    """Add to the report a List of the individual reports of a population, and refer the population to it."""
    persons = sorted({member.person for member in members if _is_in(member, population)})
    name = f"subjects-{len(report['contained'])}"
    listed = [
        {"item": {"reference": f"MeasureReport/{_identity(study, measure, person)[0]}"}} for person in persons
    ] or None
    empty = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/list-empty-reason", "code": "nilknown"}]}
    report["contained"].append(
        {
            "resourceType": "List",
            "id": name,
            "meta": {"profile": [profiles.reports]},
            "status": "current",
            "mode": "snapshot",
            **({"entry": listed} if listed else {"emptyReason": empty}),
        }
    )
    population["subjectResults"] = {"reference": f"#{name}"}


def _check_scores(groups: Iterable[Json], profiles: Family) -> None:
    """UsageError where the family wants a score that cannot be given."""
    for group in groups:
        if profiles.us and "measureScore" not in group and any(_code(p) == "denominator" for p in group["population"]):
            raise UsageError(
                f"--deqm us: its profile wants a score of every proportion, and `{group['id']}` has none (0/0 or masked); "
                "write --deqm uv"
            )


def _head(study: Study, measure: Mapping[str, Any], kind: str, profiles: Family, subject: str | None = None) -> Json:
    """What every kind of report begins with, its elements in the order of FHIR."""
    name, digest = _identity(study, measure, subject, kind)
    profile = {
        "summary": profiles.summary,
        "individual": profiles.individual,
        "subject-list": profiles.subject_list,
    }[kind]
    reporter = {"reference": study.reporter_reference or "#reporter"}
    if profiles.us and not study.reporter_reference:
        reporter = {"type": "Organization", "display": _text(study.reporter)}
    return {
        "resourceType": "MeasureReport",
        "id": name,
        "meta": {"profile": [profile]},
        "text": {},
        "contained": _contained(study, reporter),
        "extension": [
            {
                "url": "http://hl7.org/fhir/uv/crmi/StructureDefinition/crmi-softwaresystem",
                "valueReference": {"reference": "#crmo-fhir"},
            },
        ],
        "identifier": [{"system": IDENTIFIER_SYSTEM, "value": digest}],
        "status": "complete" if study.complete else "pending",
        "type": kind,
        "measure": f"{measure['url']}|{measure['version']}",
        **({"subject": {"reference": subject}} if subject else {}),
        "date": (study.data_lock or study.end).isoformat(),
        "reporter": reporter,
        "period": {"start": study.start.isoformat(), "end": study.end.isoformat()},
    }


def _identity(
    study: Study, measure: Mapping[str, Any], subject: str | None = None, kind: str = "individual"
) -> tuple[str, str]:
    """Id and identifier of a report: the same question about the same period is the same report, whatever the answer."""
    parts = [
        measure["url"],
        measure["version"],
        f"{study.start.isoformat()}/{study.end.isoformat()}",
        study.reporter_reference or study.reporter,
    ]
    if subject:
        parts.append(subject)
    elif kind != "summary":
        parts.append(kind)
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()
    return f"crmo-{digest[:32]}", digest


def to_json(resource: Mapping[str, Any]) -> str:
    """A resource as the text that is written: two spaces, a last newline."""
    return json.dumps(resource, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_line(resource: Mapping[str, Any]) -> str:
    """A resource as one line of NDJSON."""
    return msgspec.json.encode(resource).decode() + "\n"


def checked(resource: Mapping[str, Any]) -> Json:
    """The resource with its elements in the order of FHIR. Raises UsageError where it is no valid R4 resource."""
    ordered: Json = json.loads(validate(resource).model_dump_json())
    return ordered


def validate(resource: Mapping[str, Any]) -> Any:
    """The resource as the R4 model has it. Raises UsageError where it is no valid R4 resource."""
    name = str(resource.get("resourceType", ""))
    try:
        model_class = get_fhir_model_class(name)
    except ValueError:
        raise UsageError("mappings: a Measure or Library is no FHIR R4 resource type; correct the artifact") from None
    try:
        return model_class.model_validate(dict(resource))
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UsageError(f"the {name} is not valid FHIR R4 at {place}; correct it in mappings/") from None


def _contained(study: Study, reporter: Mapping[str, str]) -> list[Json]:
    device: Json = {
        "resourceType": "Device",
        "id": "crmo-fhir",
        "deviceName": [{"name": "crmo-fhir", "type": "manufacturer-name"}],
        "type": {
            "coding": [{"system": "http://terminology.hl7.org/CodeSystem/software-system-type", "code": "tooling"}]
        },
        "version": [{"value": study.program_version}],
    }
    if reporter.get("reference") != "#reporter":
        return [device]
    return [device, {"resourceType": "Organization", "id": "reporter", "active": True, "name": _text(study.reporter)}]


def _parameters(study: Study) -> Json:
    """Every choice and threshold the figures were made with, and how far they may go, as a Parameters resource."""
    values, disclosure = study.parameters, study.disclosure
    given = [
        _parameter(field.name, value)
        for field in fields(values)
        if (value := getattr(values, field.name)) not in (None, "", {})
    ]
    given.append({"name": "disclosure", "valueCode": disclosure.mode})
    if disclosure.threshold:
        given += [_parameter("disclosure_threshold", disclosure.threshold)]
        given += [_parameter("disclosure_rounding", disclosure.rounding)]
    return {"resourceType": "Parameters", "id": "parameters", "parameter": given}


def _parameter(name: str, value: object) -> Json:
    match value:
        case bool():
            return {"name": name, "valueBoolean": value}
        case int():
            return {"name": name, "valueInteger": value}
        case float():
            return {"name": name, "valueDecimal": value}
        case date():
            return {"name": name, "valueDate": value.isoformat()}
        case dict():
            return {"name": name, "part": [_parameter(key, value[key]) for key in sorted(value)]}
    return {"name": name, "valueString": _text(str(value))}


def _completeness(study: Study) -> Json:
    """Whether everything asked for came, as an OperationOutcome; of a partial pull with what is missing."""
    text, severity, code = (
        ("Complete: every record asked for came from the source.", "information", "informational")
        if study.complete
        else (_partial(study), "warning", "incomplete")
    )
    issue = {"severity": severity, "code": code, "details": {"text": text}}
    return {"resourceType": "OperationOutcome", "id": "completeness", "issue": [issue]}


def _frame(group: Mapping[str, Any], profiles: Family) -> Json:
    """What a group has in every kind of report."""
    notation = _extension(group, f"{CQM}/cqm-improvementNotation")
    extensions: list[Json] = [
        _link_id("group", group["id"]),
        {"url": profiles.scoring, **_extension(group, f"{CQM}/cqm-scoring")},
    ]
    if notation:
        extensions.append({"url": profiles.notation, **notation})
    extensions.append({"url": f"{CORE}/measurereport-populationDescription", "valueMarkdown": group["code"]["text"]})
    return {"id": group["id"], "extension": extensions, "code": group["code"]}


def _group(figures: Figures, group: Mapping[str, Any], profiles: Family) -> Json:
    row = _overall(figures, group["id"])
    initial = _initial_population(figures, row)
    built: Json = {
        **_frame(group, profiles),
        "population": [
            {"id": population["id"], **_population("group.population", population, row, initial)}
            for population in group["population"]
        ],
        **_score(row, proportion=_is_proportion(group)),
    }
    # who was treated is known for the group only: where some could not be judged, the strata leave that count out
    unjudged = figures.overall(f"{group['id']}-not-evaluable")
    known = row.N is not None and initial == row.N and (unjudged is None or unjudged.n == 0)
    if group.get("stratifier"):
        built["stratifier"] = [
            _stratifier(figures, group, stratifier, initial_known=known) for stratifier in group["stratifier"]
        ]
    return built


def _group_of_members(group: Mapping[str, Any], members: Sequence[Member], profiles: Family) -> Json:
    """A group with the counts of one child, and the strata it is in."""
    built: Json = {
        **_frame(group, profiles),
        "population": [
            {"id": population["id"], **_population_of_members("group.population", population, members)}
            for population in group["population"]
        ],
        **_score_of_members(group, members),
    }
    stratifiers = [_stratifier_of_members(group, stratifier, members) for stratifier in group.get("stratifier", ())]
    return {**built, "stratifier": stratifiers} if stratifiers else built


def _stratifier_of_members(group: Mapping[str, Any], stratifier: Mapping[str, Any], members: Sequence[Member]) -> Json:
    name = stratifier["code"]["coding"][0]["code"]
    strata = []
    for value in sorted({member.strata[name] for member in members if name in member.strata}):
        own = [member for member in members if member.strata.get(name) == value]
        strata.append(
            {
                "value": _value(name, value),
                "population": [
                    _population_of_members("group.stratifier.stratum.population", p, own) for p in group["population"]
                ],
                **_score_of_members(group, own),
            }
        )
    built = _stratifier_frame(stratifier)
    return {**built, "stratum": strata} if strata else built


def _population_of_members(path: str, population: Mapping[str, Any], members: Sequence[Member]) -> Json:
    return {
        "extension": [_link_id(path, population["id"])],
        "code": population["code"],
        "count": sum(_is_in(member, population) for member in members),
    }


def _score_of_members(group: Mapping[str, Any], members: Sequence[Member]) -> Json:
    """n/N of one child; without an interval, since one child is no sample."""
    judged = [member for member in members if member.evaluable]
    if not judged or not _is_proportion(group):
        return {}
    return {"measureScore": {"value": _decimal(sum(member.effect for member in judged) / len(judged))}}


def _is_in(member: Member, population: Mapping[str, Any]) -> bool:
    return {"initial-population": True, "denominator": member.evaluable, "numerator": member.effect}[_code(population)]


def _evaluated(members: Sequence[Member], measure: Mapping[str, Any]) -> list[Json]:
    """Every resource that a count of a child rests on, with the populations it was counted in."""
    populations = {group["id"]: group["population"] for group in measure["group"]}
    criteria: dict[str, list[str]] = defaultdict(list)
    for member in members:
        for key in member.sources:
            criteria[key] += [p["id"] for p in populations.get(member.group, ()) if _is_in(member, p)]
    return [
        {
            "extension": [
                {"url": f"{CORE}/cqf-criteriaReference", "valueString": name} for name in dict.fromkeys(criteria[key])
            ],
            "reference": key,
        }
        for key in sorted(criteria)
        if criteria[key]
    ]


def _shape(group: Mapping[str, Any]) -> tuple[object, ...]:
    """What may be there or not in a group of one child; everything else is alike in all of them."""
    strata = [stratum for stratifier in group.get("stratifier", ()) for stratum in stratifier.get("stratum", ())]
    return group["id"], "measureScore" in group, bool(strata), any("measureScore" in stratum for stratum in strata)


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
    built = _stratifier_frame(stratifier)
    return {**built, "stratum": strata} if strata else built


def _stratifier_frame(stratifier: Mapping[str, Any]) -> Json:
    return {
        "id": stratifier["id"],
        "extension": [_link_id("group.stratifier", stratifier["id"])],
        "code": [stratifier["code"]],
    }


def _population(path: str, population: Mapping[str, Any], row: Result, initial: int | None) -> Json:
    counts = {"initial-population": initial, "denominator": row.N, "numerator": row.n}
    count = counts[_code(population)]
    masked = {"_count": {"extension": [{"url": f"{CORE}/data-absent-reason", "valueCode": "masked"}]}}
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
                    "url": f"{CORE}/quantity-confidenceInterval",
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
    scoring = _extension(group, f"{CQM}/cqm-scoring")
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


def _narrative_of_child(members: Sequence[Member], study: Study, measure: Mapping[str, Any]) -> str:
    """What one child counts for, as a table."""
    period = f"{study.start.isoformat()} to {study.end.isoformat()}"
    heads = "".join(f"<th>{head}</th>" for head in ("Group", "Counted", "Evaluable", "With effect"))
    lines = [f"<p>{_escaped(measure['title'])}: one child. Diagnosed {period}.</p>"]
    lines.append(f"<table><thead><tr>{heads}</tr></thead><tbody>")
    for group in measure["group"]:
        own = [member for member in members if member.group == group["id"]]
        counts = [len(own)]
        if _is_proportion(group):
            counts += [sum(member.evaluable for member in own), sum(member.effect for member in own)]
        cells = "".join(f"<td>{count}</td>" for count in counts)
        lines.append(f"<tr><td>{_escaped(group['code']['text'])}</td>{cells}</tr>")
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
