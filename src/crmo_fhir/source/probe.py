"""What a server offers, and by which way the cohort is best fetched, found out without reading a patient."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from crmo_fhir.errors import IncompleteError, SignInError, UsageError
from crmo_fhir.fhir.client import FhirClient, RefusedError
from crmo_fhir.fhir.codings import CodeSet
from crmo_fhir.fhir.search import count
from crmo_fhir.fhir.sign_in import DISCOVERY
from crmo_fhir.model.records import READ_TYPES
from crmo_fhir.source import bulk, plan

MANY = 1000
"""From this many candidates on, an export of everything may be the cheaper way."""

Mode = Literal["search", "bulk"]


@dataclass(frozen=True, slots=True)
class Way:
    """How the cohort will be fetched: by search, or by a bulk export at a level, and the reason in words."""

    mode: Mode
    reason: str
    level: str = ""


@dataclass(slots=True)
class Finding:
    """What a probe found: `counts` per type on the whole server (None where it does not say), the way and its costs.

    `sign_in` says in words how one may sign in; `impossible` is what makes the pull fail or be partial, `limits` what it
    cannot promise.
    """

    software: str
    fhir_version: str
    way: Way
    requests: int = 0
    records: int | None = None
    candidates: int | None = None
    counts: dict[str, int | None] = field(default_factory=dict)
    sign_in: str = ""
    scopes: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)


def choose_way(
    client: FhirClient, capability: Mapping[str, Any], crmo: CodeSet, *, asked: str = "auto", group: str = ""
) -> Way:
    """Choose between search and export by what the server declares and, where it declares both, by the cost.

    `asked` is auto, search or bulk. Two counts are asked for where both ways are open. Raises UsageError where the way
    asked for cannot be gone.
    """
    levels = bulk.levels(capability)
    level = f"group:{group}" if group else "system" if "system" in levels else "patient" if "patient" in levels else ""
    if asked == "search" and group:
        raise UsageError("--group names a group of a bulk export; leave it out, or leave --mode search out")
    if asked == "search":
        return Way("search", "asked for with --mode search")
    if asked == "bulk" or group:
        if not level and "group" in levels:
            raise UsageError(f"{client.host} exports groups only; name one with --group ID")
        return Way("bulk", "asked for with --group" if group else "asked for with --mode bulk", level or "system")
    searchable = _finds_conditions(capability)
    if not level and not searchable and "group" in levels:
        raise UsageError(
            f"{client.host} cannot be searched by diagnosis and exports groups only; name one with --group ID"
        )
    if not level:
        return Way("search", "the server declares no export of everything")
    if not searchable:
        return Way("bulk", "the server declares an export and no search of Condition by code", level)
    candidates, patients = candidates_of(client, crmo), _counted(client, "Patient")
    if candidates is None or patients is None:
        return Way("search", "the server does not count, and a search reads nobody else's records")
    counted = f"{candidates} diagnoses of the disease, {patients} patients in all"
    if candidates > MANY and 2 * candidates > patients:
        return Way("bulk", f"{counted}; most of the server is to be read", level)
    return Way("search", f"{counted}; a search reads nobody else's records")


def _finds_conditions(capability: Mapping[str, Any]) -> bool:
    """Whether the server lists a search of Condition by code, or says nothing about its searches."""
    types = plan.declared(capability)
    if "Condition" not in types:
        return False
    for rest in capability.get("rest") or ():
        for resource in (rest.get("resource") or ()) if isinstance(rest, dict) else ():
            if isinstance(resource, dict) and resource.get("type") == "Condition":
                codes = {i.get("code") for i in resource.get("interaction") or () if isinstance(i, dict)}
                if codes and "search-type" not in codes:
                    return False
    return "code" in types["Condition"] or not types["Condition"]


def candidates_of(client: FhirClient, crmo: CodeSet) -> int | None:
    """How many Conditions with a code of the disease the server counts; None where it does not say.

    Codes are asked for with and without their systems, and a Condition is found either way: the larger sum counts.
    """
    sums = []
    for searches in (plan.plan_systems(crmo, len(client.base)), plan.plan_bare(crmo, len(client.base))):
        totals = [_counted(client, search.type, search.params) for search in searches]
        if None in totals:
            return None
        sums.append(sum(total or 0 for total in totals))
    return max(sums)


def _counted(client: FhirClient, kind: str, params: tuple[tuple[str, str], ...] = ()) -> int | None:
    try:
        return count(client, kind, params)
    except RefusedError:
        return None


def probe(
    client: FhirClient,
    capability: Mapping[str, Any],
    crmo: CodeSet,
    *,
    asked: str = "auto",
    group: str = "",
    absent: Collection[str] = (),
) -> Finding:
    """Ask a server what it is, what it holds and what it would let us do; no record is read.

    Raises as the client does where it cannot be asked at all; what else stands in the way of a whole pull is listed in
    `Finding.impossible`.
    """
    types = plan.declared(capability)
    software = capability.get("software")
    name = software.get("name") if isinstance(software, dict) else None
    way = choose_way(client, capability, crmo, asked=asked, group=group)
    found = Finding(str(name or urlsplit(client.base).hostname), str(capability["fhirVersion"]), way)
    found.sign_in = _sign_in(client)
    for kind in READ_TYPES:
        if kind not in types:
            if kind in ("Patient", "Condition"):
                found.impossible.append(f"{kind}: not in the CapabilityStatement; check the base URL")
            elif kind not in absent:
                found.impossible.append(
                    f"{kind}: not in the CapabilityStatement; list it under `absent` in crmo-fhir.toml if there is none, "
                    "or take the pull as it is with --accept-partial"
                )
            continue
        try:
            found.counts[kind] = _counted(client, kind)
        except SignInError as error:
            found.impossible.append(str(error))
        except IncompleteError:
            found.counts[kind] = None
    if way.mode == "search":
        _plan_search(client, crmo, types, found)
    else:
        known = [total for total in found.counts.values() if total is not None]
        found.requests, found.records = 2 + len(found.counts), sum(known)
        found.limits.append("the export holds everybody's records until the candidates are picked out of it")
    if found.counts and all(total is None for total in found.counts.values()):
        found.limits.append("the server counts nothing: that searches are whole will rest on their links alone")
    return found


def _sign_in(client: FhirClient) -> str:
    """What the server's SMART configuration offers to a program without a user."""
    try:
        configuration = client.get_json(DISCOVERY, signed=False)
    except (IncompleteError, SignInError):
        return "the server shows no SMART configuration"
    capabilities = configuration.get("capabilities")
    if isinstance(capabilities, list) and "client-confidential-asymmetric" in capabilities:
        return "SMART backend services (--client-id, --key-file)"
    return "SMART, without backend services"


def _plan_search(client: FhirClient, crmo: CodeSet, types: Mapping[str, set[str]], found: Finding) -> None:
    if not _lists(types, "Condition", "code"):
        found.impossible.append("Condition: no search by code, and no export; the candidates cannot be found")
    for kind in ("identifier", "link"):
        if not _lists(types, "Patient", kind):
            found.limits.append(f"no search of Patient by {kind}: records of one person may stay apart")
    for kind in READ_TYPES:
        if kind in types and kind not in ("Patient", "Medication") and types[kind]:
            name = plan.patient_parameter(kind, types[kind])
            if name not in types[kind]:
                found.impossible.append(f"{kind}: no search by patient is declared")
    try:
        found.candidates = candidates_of(client, crmo)
    except SignInError as error:
        found.impossible.append(str(error))
    if found.candidates is not None:
        # Of each search a count; the patients, who links to them, and who shares an identifier; then every type.
        batches = -(-found.candidates // plan.BATCH)
        searches = len(plan.plan_conditions(crmo, len(client.base))) + 3 + batches * (3 + len(found.counts))
        found.requests = 2 * searches


def _lists(types: Mapping[str, set[str]], kind: str, name: str) -> bool:
    """Whether a search is declared; a type that lists no parameter at all says nothing about them."""
    return name in types.get(kind, set()) or (kind in types and not types[kind])
