"""The Measure and its Library run by engines that are not ours, and the counts of a MeasureReport in one shape.

What each engine needs besides the files as they are shipped stands in its function, and nothing else is changed.
"""

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from cql import build
from servers.records import Resource

from engines.cohorts import patient_of

Counts = dict[tuple[str, str, str, str], int]
"""(group, stratifier, stratum, population) → count; stratifier and stratum are empty for the group as a whole."""

HERE = Path(__file__).resolve().parent


def value_sets() -> list[Resource]:
    """The value sets that the CQL names, with their expansions."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in build.value_sets()]


def counts_of(report: Resource) -> Counts:
    """The counts of a report; a stratum is told by its value, or by the part of the stratifier's id behind `|`."""
    counts: Counts = {}
    for group in report["group"]:
        counts |= _populations(group["id"], "", "", group["population"])
        for stratifier in group.get("stratifier", ()):
            name, _, unfolded = stratifier["id"].partition("|")
            for stratum in stratifier.get("stratum", ()):
                value = stratum["value"]["text"] if "value" in stratum else unfolded
                counts |= _populations(group["id"], name, value, stratum["population"])
    return counts


def _populations(group: str, stratifier: str, stratum: str, populations: Iterable[Resource]) -> Counts:
    return {(group, stratifier, stratum, p["code"]["coding"][0]["code"]): p["count"] for p in populations}


def scores_of(report: Resource) -> dict[str, float | None]:
    """The score of each group, None where there is none."""
    return {group["id"]: group.get("measureScore", {}).get("value") for group in report["group"]}


# --------------------------------------------------------------------------------------------------------------------- HAPI


def load_measure(base: str, measure: Resource, library: Resource) -> None:
    """Write Measure, Library and value sets to a HAPI server.

    HAPI takes the value of a stratifier from `component` only (in `criteria` it wants the basis of the group), which
    validators of R4 refuse beside `code`; and it expands a value set by `compose`, whose filters need code systems that
    are not there, so what is expanded is listed there.
    """
    for resource in (*map(_enumerated, value_sets()), library, with_components(measure)):
        put(base, resource)


def with_components(measure: Resource) -> Resource:
    """The Measure with each stratifier's code and criteria in a component."""
    changed = deepcopy(measure)
    for group in changed["group"]:
        for stratifier in group["stratifier"]:
            moved = {name: stratifier.pop(name) for name in ("code", "criteria")}
            stratifier["component"] = [{"id": f"{stratifier['id']}-value", **moved}]
    return changed


def _enumerated(value_set: Resource) -> Resource:
    listed: dict[str, list[dict[str, str]]] = defaultdict(list)
    for one in value_set["expansion"]["contains"]:
        listed[one["system"]].append({"code": one["code"]})
    include = [{"system": system, "concept": concepts} for system, concepts in listed.items()]
    return {**value_set, "compose": {"include": include}}


def load_records(base: str, name: str, resources: Iterable[Resource]) -> None:
    """Write records, and a Group of their Patients under this name, in transactions."""
    known = list(resources)
    members = [{"entity": {"reference": f"Patient/{r['id']}"}} for r in known if r["resourceType"] == "Patient"]
    group = {"resourceType": "Group", "id": name, "type": "person", "actual": True, "member": members}
    known.append(group)
    for start in range(0, len(known), 500):
        entries = [
            {"resource": r, "request": {"method": "PUT", "url": f"{r['resourceType']}/{r['id']}"}}
            for r in known[start : start + 500]
        ]
        send(base, "POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": entries})


def evaluate_by_hapi(base: str, measure: Resource, group: str, period: Mapping[str, str]) -> Resource:
    """The report of HAPI on the Patients of a Group."""
    asked = {"periodStart": period["start"], "periodEnd": period["end"], "subject": f"Group/{group}"}
    query = urlencode({**asked, "reportType": "population"})
    return send(base, "GET", f"Measure/{measure['id']}/$evaluate-measure?{query}")


def put(base: str, resource: Resource) -> None:
    """Write a resource under its own id."""
    send(base, "PUT", f"{resource['resourceType']}/{resource['id']}", resource)


def send(base: str, method: str, path: str, body: Resource | None = None) -> Resource:
    """Ask a FHIR server; raises HTTPError where it refuses."""
    request = Request(
        f"{base}/{path}".rstrip("/"),
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/fhir+json", "Accept": "application/fhir+json"},
        method=method,
    )
    with urlopen(request, timeout=600) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


# ------------------------------------------------------------------------------------------------------------ fqm-execution


def evaluate_by_fqm(
    measure: Resource, library: Resource, resources: Iterable[Resource], period: Mapping[str, str], counts: Counts
) -> Resource:
    """The report of fqm-execution; the strata it is asked for are those in `counts` (see execute.mjs), all others in one.

    Without strata it gets the Measure's own stratifiers.
    """
    strata = {
        name: sorted({stratum for _, cut, stratum, _ in counts if cut == name})
        for name in sorted({cut for _, cut, _, _ in counts} - {""})
    }
    entries = [{"resource": r} for r in (measure, library, *value_sets())]
    asked = {
        "bundle": {"resourceType": "Bundle", "type": "collection", "entry": entries},
        "patients": list(_by_patient(resources)),
        "period": dict(period),
        "strata": strata,
    }
    ran = subprocess.run(
        ["node", str(HERE / "execute.mjs")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=600,
    )
    if ran.returncode:
        raise RuntimeError(f"fqm-execution failed: {ran.stderr[-2000:]}")
    report: Resource = json.loads(ran.stdout)
    return report


def _by_patient(resources: Iterable[Resource]) -> Iterable[Resource]:
    charts: dict[str, list[Resource]] = defaultdict(list)
    for resource in resources:
        if about := patient_of(resource):
            charts[about].append(resource)
    return (
        {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": r} for r in chart]}
        for _, chart in sorted(charts.items())
    )
