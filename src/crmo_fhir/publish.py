"""The way back: what would be written, shown to the letter; written on approval; read back; kept as a receipt.

A resource is known on the server by what it is, not by the server's id: a Measure and a Library by `url` and `version`, a
MeasureReport or Observation by its `identifier`, a Provenance by an id of ours. Each is looked for first. What is not there
is created with `If-None-Exist`; what is there in other words is updated as `PUT [type]/[id]` with `If-Match`; what is there
already is left alone. (An update by `PUT [type]?[criteria]` is not used: servers ignore `If-Match` on it and write over
whatever is there.) Several that depend on each other go as one transaction where the server offers one.

Nothing is sent twice. Where an answer is lost, reading back tells what became of it; and what the server says it took is
read back too, and held against what was sent (FHIR R4 http.html: transaction, conditional create, managing resource
contention).
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any
from urllib.parse import parse_qsl, urlencode

from crmo_fhir.errors import ConflictError, IncompleteError, NetworkError, UsageError
from crmo_fhir.fhir import references
from crmo_fhir.fhir.client import Answer, FhirClient, LostError, RefusedError
from crmo_fhir.fhir.outcomes import said
from crmo_fhir.fhir.search import search

Json = dict[str, Any]
Receipt = dict[str, Any]

PULL_SYSTEM = "https://crmo-fhir.org/pull"
MAX_ENTRIES = 100
"""No more resources go in one transaction; the Measure and the summary are in the first."""
LOST_WAITS = (0.0, 0.5, 1.0, 2.0)
"""Seconds before each look for what a lost answer was about: a gateway may give up while the server still writes."""
_STATUSES = {"MeasureReport": "error", "Observation": "entered-in-error"}
"""What R4 calls a report or Observation that does not hold."""
_PARAMETERS = {"Library": ("url", "version"), "Measure": ("url", "version")}
_ACTIVITY = "http://terminology.hl7.org/CodeSystem/v3-DataOperation"
_PARTICIPANT = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
_DEVICE = {
    "resourceType": "Device",
    "id": "crmo-fhir",
    "deviceName": [{"name": "crmo-fhir", "type": "manufacturer-name"}],
}
_VERSION = re.compile(r"/_history/[^/]+$")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server offers a writer: transactions, and whether it takes a Provenance under an id of ours."""

    transaction: bool
    provenance: bool


@dataclass(frozen=True, slots=True)
class Held:
    """A resource as the server holds it; `version` is empty where the server shows none."""

    id: str
    version: str
    resource: Json = field(repr=False)


@dataclass(frozen=True, slots=True)
class Write:
    """One resource to be written: `held` is what it is written over, None for a creation.

    A Provenance lacks what only the write can tell, the versions it is about and the time; `_completed` enters them.
    """

    type: str
    identity: tuple[tuple[str, str], ...]
    resource: Json = field(repr=False)
    held: Held | None

    @property
    def entry(self) -> Json:
        """The write as receipts tell it: what, its content as a hash, what it is written over, what it became."""
        before = {"id": self.held.id, "version": self.held.version} if self.held else None
        return {
            "resource": self.type,
            "identity": urlencode(self.identity),
            "sha256": compute_digest(self.resource),
            "before": before,
            "after": None,
        }

    @property
    def request(self) -> tuple[str, str, str, str]:
        """Method, URL below the base, and name and value of the condition."""
        if self.type == "Provenance":
            return "PUT", f"Provenance/{self.resource['id']}", "", ""
        if self.held is None:
            return "POST", self.type, "If-None-Exist", urlencode(self.identity)
        return "PUT", f"{self.type}/{self.held.id}", "If-Match", f'W/"{self.held.version}"'

    @property
    def body(self) -> Json:
        """The resource as it is sent: with the id it has on the server, and none where it has none yet."""
        if self.type == "Provenance":
            return self.resource
        bare = {name: value for name, value in self.resource.items() if name != "id"}
        return {"resourceType": self.type, "id": self.held.id, **bare} if self.held else bare


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it goes out: the writes it carries, and method, URL below the base, condition and body."""

    writes: tuple[Write, ...]
    method: str
    url: str
    headers: Mapping[str, str]
    body: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be written to `server`, in order, and what of it is there already; `notes` are for the reader."""

    server: str
    requests: tuple[Request, ...]
    there: tuple[tuple[Write, Held], ...]
    notes: tuple[str, ...] = ()

    @property
    def writes(self) -> list[Write]:
        """All that is written, in order."""
        return [write for request in self.requests for write in request.writes]

    @property
    def text(self) -> str:
        """Method, URL, condition and body of every request: what is shown, and what the hash is over."""
        parts = []
        for request in self.requests:
            lines = [f"{request.method} {self.server}{'/' if request.url else ''}{request.url}"]
            lines += [f"{name}: {value}" for name, value in request.headers.items()]
            parts.append("\n".join([*lines, "", request.body]))
        return "\n".join(parts)

    @property
    def sha256(self) -> str:
        """The hash that approves it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------- what is offered


def read_offer(capability: Mapping[str, Any], types: Collection[str], host: str) -> Offer:
    """What the CapabilityStatement offers. Raises IncompleteError where it lacks what writing `types` safely needs."""
    version = str(capability.get("fhirVersion"))
    if not version.startswith("4."):
        raise IncompleteError(
            f"{host}: the server speaks FHIR {version}, and what is published is R4; nothing was written"
        )
    rest = next((one for one in _objects(capability.get("rest")) if one.get("mode") == "server"), {})
    declared = {str(one.get("type")): one for one in _objects(rest.get("resource"))}
    for name in types:
        resource = declared.get(name)
        if resource is None:
            raise IncompleteError(f"{host}: the server takes no {name}; nothing was written, publish to another server")
        codes = {one.get("code") for one in _objects(resource.get("interaction"))}
        known = {one.get("name") for one in _objects(resource.get("searchParam"))}
        lacks = [f"the interaction {code}" for code in ("create", "update", "read") if code not in codes]
        lacks += [f"the search parameter {one}" for one in _PARAMETERS.get(name, ("identifier",)) if one not in known]
        if resource.get("conditionalCreate") is not True:
            lacks.append("conditional create")
        if lacks:
            raise IncompleteError(
                f"{host}, {name}: the server does not offer {lacks[0]}, without which a lost answer could make a second "
                f"{name}; nothing was written"
            )
    provenance = declared.get("Provenance", {})
    codes = {one.get("code") for one in _objects(provenance.get("interaction"))}
    return Offer(
        transaction=any(one.get("code") == "transaction" for one in _objects(rest.get("interaction"))),
        provenance=bool({"update", "read"} <= codes and provenance.get("updateCreate") is not False),
    )


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# ----------------------------------------------------------------------------------------------------- what is there already


def identify(resource: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The search parameters that find a resource and no other. Raises IncompleteError where it has nothing to go by."""
    name = resource.get("resourceType")
    if name in _PARAMETERS and resource.get("url") and resource.get("version"):
        return (("url", _escaped(resource["url"])), ("version", _escaped(resource["version"])))
    for token in _tokens(resource):
        return (("identifier", token),)
    raise IncompleteError(f"the {name} has no identity to find it by on a server; run `crmo-fhir measure` again")


def find_held(client: FhirClient, name: str, identity: tuple[tuple[str, str], ...]) -> Held | None:
    """What the server holds under an identity.

    Raises ConflictError where there are several; IncompleteError where the server answers with something else.
    """
    # What is about one patient is not asked for in a request line, though its identifier names nobody.
    matches = search(client, name, identity, post=name == "Observation", fresh=True)
    found = {match.id: match for match in matches}
    for match in found.values():
        if identify(match.resource) != identity and identity[0][1] not in _tokens(match.resource):
            raise IncompleteError(
                f"{client.host}, {name}: the server does not filter by {identity[0][0]}; ask its vendor"
            )
    if len(found) > 1:
        both = " and ".join(_named(name, _held(match.resource)) for match in found.values())
        raise ConflictError(f"{client.host}: {len(found)} resources have the one identity, {both}; leave one there")
    return next((_held(match.resource) for match in found.values()), None)


def _tokens(resource: Mapping[str, Any]) -> list[str]:
    """The identifiers as a search takes them: system and value."""
    found = _objects(resource.get("identifier"))
    return [f"{_escaped(one['system'])}|{_escaped(one['value'])}" for one in found if {"system", "value"} <= one.keys()]


def _escaped(value: object) -> str:
    r"""A value as a search parameter takes it (FHIR R4 search, escaping): `,` would part two, `|` system and code."""
    return re.sub(r"([\\,$|])", r"\\\1", str(value))


def _held(resource: Json) -> Held:
    meta = resource.get("meta")
    version = meta.get("versionId") if isinstance(meta, dict) else None
    return Held(str(resource.get("id", "")), str(version) if references.is_id(version) else "", resource)


def _read(client: FhirClient, name: str, identity: str) -> Held | None:
    """A resource by its id on the server; None where there is none."""
    try:
        resource, _ = client.read(name, identity)
    except RefusedError as error:
        if error.status in (404, 410):
            return None
        raise
    return _held(resource)


def _named(name: str, held: Held | None) -> str:
    """A version as FHIR names it."""
    if held is None:
        return f"no {name}"
    return f"{name}/{held.id}/_history/{held.version}" if held.version else f"{name}/{held.id}"


# ---------------------------------------------------------------------------------------------------------- what is the same


def compute_digest(resource: Mapping[str, Any]) -> str:
    """SHA-256 of what a resource says: canonical JSON without what a server sets, and without narrative."""
    text = json.dumps(_canonical(resource), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def find_difference(sent: Mapping[str, Any], held: Mapping[str, Any]) -> str | None:
    """The element path of the first difference in what two resources say; None where they say the same."""
    return _difference(_canonical(sent), _canonical(held), str(sent.get("resourceType")))


def _difference(sent: object, held: object, path: str) -> str | None:
    if isinstance(sent, dict) and isinstance(held, dict):
        for name in sorted({*sent, *held}):
            if name not in sent or name not in held:
                return f"{path}.{name}" if name in sent else f"{path} (something was added)"
            if found := _difference(sent[name], held[name], f"{path}.{name}"):
                return found
        return None
    if isinstance(sent, list) and isinstance(held, list):
        if len(sent) != len(held):
            return f"{path} ({len(sent)} were sent, {len(held)} are there)"
        pairs = enumerate(zip(sent, held, strict=True))
        return next((found for i, (one, two) in pairs if (found := _difference(one, two, f"{path}[{i}]"))), None)
    return None if type(sent) is type(held) and sent == held else path


def _canonical(resource: Mapping[str, Any]) -> Json:
    left_out = {"id", "meta", "text", *(("recorded",) if resource.get("resourceType") == "Provenance" else ())}
    kept = {name: _plain(value) for name, value in resource.items() if name not in left_out}
    meta = resource.get("meta")
    if isinstance(meta, dict) and meta.get("profile"):
        kept["meta"] = {"profile": sorted(map(str, meta["profile"]))}
    if isinstance(kept.get("contained"), list):
        kept["contained"] = [{n: v for n, v in one.items() if n != "text"} for one in _objects(kept["contained"])]
    return kept


def _plain(value: object) -> object:
    """Numbers by value; references without version, which servers may cut off."""
    if isinstance(value, dict):
        return {
            name: _VERSION.sub("", one) if name == "reference" and isinstance(one, str) else _plain(one)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


# --------------------------------------------------------------------------------------------------------- what is written


def prepare(
    client: FhirClient,
    offer: Offer,
    resources: Sequence[Json],
    provenance: Json | None,
    receipts: Sequence[Receipt],
    over: Collection[str] = (),
) -> Plan:
    """Look at the server and tell what would be written there; nothing is.

    `resources` stand in the order in which they are written, `provenance` (of `describe_origin`) comes after them;
    `receipts` are those of the study so far, oldest first; `over` names versions by somebody else that may be replaced.
    Raises ConflictError where an identity is there twice, or was changed by somebody else since our last receipt.
    """
    identities = [(str(one["resourceType"]), identify(one)) for one in resources]
    if len(set(identities)) < len(identities):
        raise IncompleteError("two of the resources have one identity; run `crmo-fhir measure` again")
    _check_reporters(client, resources)
    writes, there, notes = [], [], []
    for (name, identity), resource in zip(identities, resources, strict=True):
        held = find_held(client, name, identity)
        write = Write(name, identity, resource, held)
        if held is not None and find_difference(resource, held.resource) is None:
            there.append((write, held))
            continue
        written = _written(receipts, client.base, write)
        if held is not None:
            _check_own(client.host, write, held, written, over)
            if not held.version:
                raise IncompleteError(
                    f"{client.host}, {name}: the server shows no versions, so none can be replaced safely"
                )
            if held.resource.get("status") == _STATUSES.get(name, "") != resource.get("status"):
                notes.append(f"{_named(name, held)} was withdrawn; this would publish it again")
        elif any(entry["after"] for entry in written):
            notes.append(f"the {name} that this study wrote is no longer on the server; this would make it anew")
        writes.append(write)
    requests = _requests(writes, transaction=offer.transaction)
    if provenance is not None and offer.provenance:
        identity = (("_id", str(provenance["id"])),)
        held = _read(client, "Provenance", provenance["id"])
        write = Write("Provenance", identity, provenance, None)
        if held is None:
            requests.append(_alone(write))
        else:
            there.append((write, held))
    elif provenance is not None:
        notes.append("the server takes no Provenance under an id of ours; none would be written")
    return Plan(client.base, tuple(requests), tuple(there), tuple(notes))


def _check_reporters(client: FhirClient, resources: Sequence[Json]) -> None:
    """Raise IncompleteError where a report names an Organization that the server does not have."""
    named = {str(one["reporter"].get("reference", "")) for one in resources if "reporter" in one}
    for reference in sorted(named):
        name, _, identity = reference.partition("/")
        if name == "Organization" and _read(client, name, identity) is None:
            raise IncompleteError(
                f"{client.host}: it has no Organization under the id of reporter_reference; nothing was written, correct it in "
                "crmo-fhir.toml and run 'crmo-fhir measure' again"
            )


def _written(receipts: Sequence[Receipt], server: str, write: Write) -> list[Json]:
    """What the receipts tell of earlier writes of the same resource to the same server, oldest first."""
    name, identity = write.type, urlencode(write.identity)
    return [
        entry
        for receipt in receipts
        if receipt["server"] == server
        for entry in receipt["writes"]
        if (entry["resource"], entry["identity"]) == (name, identity)
    ]


def _check_own(host: str, write: Write, held: Held, written: Sequence[Json], over: Collection[str]) -> None:
    """ConflictError where what is there is not what this study last wrote: somebody else has changed it."""
    named, digest = _named(write.type, held), compute_digest(held.resource)
    known = [entry["after"] for entry in written if entry["after"]]
    if not written or named in over or (known and known[-1] == {"id": held.id, "version": held.version}):
        return
    if any(entry["sha256"] == digest for entry in takewhile(lambda entry: not entry["after"], reversed(written))):
        return  # a run that was cut off before it could take down what became of its write
    since = (
        f"was changed by somebody else since this study wrote version {known[-1]['version']}"
        if known
        else ("is not what this study sent, the server or somebody else has changed it")
    )
    raise ConflictError(
        f"{host}: {named} {since}; nothing was written: look at it, and give --over {named} if it may be replaced"
    )


def _requests(writes: Sequence[Write], *, transaction: bool) -> list[Request]:
    if not transaction or len(writes) == 1:
        return [_alone(write) for write in writes]
    return [_together(writes[i : i + MAX_ENTRIES]) for i in range(0, len(writes), MAX_ENTRIES)]


def _alone(write: Write) -> Request:
    method, url, condition, value = write.request
    return Request((write,), method, url, {condition: value} if condition else {}, _shown(write.body))


def _together(writes: Sequence[Write]) -> Request:
    entries = []
    for write in writes:
        method, url, condition, value = write.request
        name = {"If-None-Exist": "ifNoneExist", "If-Match": "ifMatch"}[condition]
        entries.append({"resource": write.body, "request": {"method": method, "url": url, name: value}})
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    return Request(tuple(writes), "POST", "", {}, _shown(bundle))


def _shown(resource: Json) -> str:
    """The JSON that is sent, fit for a screen: what could move a cursor stands escaped."""
    text = json.dumps(resource, indent=2, ensure_ascii=False, allow_nan=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n"


def describe_origin(reports: Sequence[Json], pull: str, *, withdrawn: bool = False) -> Json:
    """The Provenance of reports: made by the program out of one pull, which is named by the SHA-256 of its manifest.

    Its id follows from what it is about, so that the same reports have one. Targets are named by identifier until the
    versions are known.
    """
    about = [[urlencode(identify(report)), compute_digest(report)] for report in reports]
    digest = hashlib.sha256(json.dumps(["withdrawn" if withdrawn else "published", about]).encode()).hexdigest()
    contained = (one for report in reports for one in _objects(report.get("contained")))
    device = next((one for one in contained if one.get("resourceType") == "Device"), _DEVICE)
    activity = {"coding": [{"system": _ACTIVITY, "code": "NULLIFY"}], "text": "Withdrawn by its author"}
    return {
        "resourceType": "Provenance",
        "id": f"crmo-{digest[:32]}",
        "contained": [device],
        "target": [{"reference": f"{report['resourceType']}?{urlencode(identify(report))}"} for report in reports],
        **({"activity": activity} if withdrawn else {}),
        "agent": [
            {
                "type": {"coding": [{"system": _PARTICIPANT, "code": "assembler"}]},
                "who": {"reference": f"#{device['id']}"},
            }
        ],
        "entity": [
            {
                "role": "source",
                "what": {"identifier": {"system": PULL_SYSTEM, "value": pull}, "display": "Pull of FHIR records"},
            }
        ],
    }


def find_published(client: FhirClient, receipts: Sequence[Receipt], measured: Json | None) -> list[Json]:
    """The reports that this study has published here, as withdrawn; by the receipts, else by the report last measured.

    Raises UsageError where none of them is on the server.
    """
    sought = _told(receipts, client.base, _STATUSES)
    if not sought and measured is not None:
        sought = [("MeasureReport", identify(measured))]
    found = [held for name, identity in sought if (held := find_held(client, name, identity)) is not None]
    if not found:
        raise UsageError(f"{client.host}: no report of this study is there; nothing to withdraw")
    return [_withdrawn(held) for held in found]


def find_stale(
    client: FhirClient,
    receipts: Sequence[Receipt],
    resources: Sequence[Json],
    *,
    individual: bool,
    observations: bool,
) -> list[Json]:
    """What this study has published here on single patients and no longer stands by, as withdrawn.

    Only of the kinds that are asked for: who publishes the summary alone leaves the others as they are.
    """
    kept = {(one["resourceType"], identify(one)) for one in resources}
    types = [*(["MeasureReport"] if individual else []), *(["Observation"] if observations else [])]
    told = [one for one in _told(receipts, client.base, types) if one not in kept]
    stale = [held for name, identity in told if (held := find_held(client, name, identity)) is not None]
    return [_withdrawn(one) for one in stale if one.resource.get("type", "individual") == "individual"]


def _told(
    receipts: Sequence[Receipt], server: str, types: Collection[str]
) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Type and identity of what the receipts say was written to a server, sorted."""
    return sorted(
        {
            (entry["resource"], tuple(parse_qsl(entry["identity"])))
            for receipt in receipts
            if receipt["server"] == server
            for entry in receipt["writes"]
            if entry["resource"] in types
        }
    )


def _withdrawn(report: Held) -> Json:
    """A published resource as withdrawn: its status, said in the narrative too, and nothing else touched."""
    status = _STATUSES[report.resource["resourceType"]]
    resource = {name: value for name, value in report.resource.items() if name != "meta"} | {"status": status}
    meta = report.resource.get("meta")
    if isinstance(meta, dict) and (
        kept := {name: meta[name] for name in ("profile", "security", "tag") if name in meta}
    ):
        resource["meta"] = kept
    text = resource.get("text")
    if isinstance(text, dict) and isinstance(text.get("div"), str):
        opening, end, rest = text["div"].partition(">")
        resource["text"] = {**text, "div": f"{opening}{end}<p><b>Withdrawn.</b> Do not use these figures.</p>{rest}"}
    return resource


def check_approved(plan: Plan, confirm: str, receipts: Sequence[Receipt], shown: Receipt | None, host: str) -> None:
    """Raise unless `confirm` approves the plan: by its hash, or as the rest of what that hash approved.

    A run that was cut off has written a part of what was approved: the same hash then stands for what is left.
    Raises ConflictError where the server has changed since the dry run `shown`, UsageError for any other hash.
    """
    if confirm == plan.sha256:
        return
    begun = [one for one in (*receipts, shown) if one and one["state"] != "written"]
    approved = [one for one in begun if (one["approved"], one["server"]) == (confirm, plan.server)]
    entries = [{**write.entry, "after": None} for write in plan.writes]
    if any(all(entry in _asked(one) for entry in entries) for one in approved):
        return
    for entry in entries:
        for other in (one for record in approved for one in _asked(record)):
            same = all(entry[name] == other[name] for name in ("resource", "identity", "sha256"))
            if same and entry["before"] != other["before"]:
                was, now = (_named(entry["resource"], _before(one)) for one in (other, entry))
                raise ConflictError(
                    f"{host}: the dry run saw {was}, now there is {now}: somebody else has written meanwhile; nothing was "
                    "written, run publish without --confirm again"
                )
    why = "is of results that have changed since" if approved else "is of no dry run of this study and server"
    raise UsageError(
        f"--confirm: this hash {why}; nothing was written, run publish without --confirm and read what it shows"
    )


def _asked(receipt: Receipt) -> list[Json]:
    return [{**entry, "after": None} for entry in receipt["writes"]]


def _before(entry: Json) -> Held | None:
    before = entry["before"]
    return Held(before["id"], before["version"], {}) if before else None


def begin_receipt(plan: Plan, approved: str, state: str) -> Receipt:
    """A receipt of what is about to be written (or, as `state` dry-run, of what was shown)."""
    return {
        "state": state,
        "server": plan.server,
        "approved": approved,
        "begun": _now(),
        "ended": None,
        "writes": [write.entry for write in plan.writes],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def carry_out(client: FhirClient, plan: Plan, receipt: Receipt, keep: Callable[[Receipt], None]) -> list[Held]:
    """Write what was approved, in order; what each became, read back, in the order of `plan.writes`.

    `keep` is handed the receipt before the first write and after each that was found as sent. Raises ConflictError where
    the server holds, or makes of it, something else; NetworkError where it is not known what became of a write; SignInError.
    """
    keep(receipt)
    known = {write.identity: _named(write.type, held) for write, held in plan.there}
    written: list[Held] = []
    for request in plan.requests:
        sent = _completed(request, known)
        answer = _send(client, sent)
        problem: ConflictError | None = None
        try:
            found = _check_answer(client, sent, answer) if answer else {}
        except ConflictError as error:
            problem, found = error, {}
        for index, write in enumerate(sent.writes):
            held = _read_back(client, write, found.get(index), lost=answer is None, problem=problem)
            _check_kept(client.host, write, held)
            receipt["writes"][len(written)]["after"] = {"id": held.id, "version": held.version}
            written.append(held)
            known[write.identity] = _named(write.type, held)
            keep(receipt)
        if problem is not None:
            raise problem
    receipt |= {"state": "written", "ended": _now()}
    keep(receipt)
    return written


def _completed(request: Request, known: Mapping[tuple[tuple[str, str], ...], str]) -> Request:
    """A Provenance with the versions it is about, by their identities in `known`, and the time; any other as it is."""
    (write, *_) = request.writes
    if write.type != "Provenance":
        return request
    named = {urlencode(identity): version for identity, version in known.items()}
    targets = [{"reference": named[target["reference"].partition("?")[2]]} for target in write.resource["target"]]
    return _alone(Write(write.type, write.identity, {**write.resource, "target": targets, "recorded": _now()}, None))


def _send(client: FhirClient, request: Request) -> Answer | None:
    """Send once; None where the answer was lost."""
    try:
        return client.send(request.method, request.url or client.base, request.body.encode(), request.headers)
    except LostError as error:
        client.tell(f"{error}; looking what is there")
        return None
    except RefusedError as error:
        names = ", ".join(dict.fromkeys(write.type for write in request.writes))
        for write in request.writes:
            now = _find_again(client, write)
            if (now and (now.id, now.version)) != (write.held and (write.held.id, write.held.version)):
                raise ConflictError(
                    f"{client.host}: {_named(write.type, write.held)} was to be replaced, now there is "
                    f"{_named(write.type, now)}: somebody else has written meanwhile; nothing was written over it "
                    f"(the server answers {error.status})"
                ) from error
        raise ConflictError(f"{error}; {names} not written") from error


def _find_again(client: FhirClient, write: Write) -> Held | None:
    if write.type == "Provenance":
        return _read(client, "Provenance", write.resource["id"])
    return find_held(client, write.type, write.identity)


def _check_answer(client: FhirClient, request: Request, answer: Answer) -> dict[int, str]:
    """The ids the server says it gave, by entry. ConflictError unless each entry says that it was done."""
    where = f"{client.host}, {client.shown(answer.url)}"
    if answer.status == 202:
        raise ConflictError(f"{where}, {request.writes[0].type}: the server has accepted the write (202), not done it")
    if request.url:
        return {0: _id_of(client, request.writes[0].type, answer.headers.get("location"))}
    try:
        bundle = client.resource(answer)
    except IncompleteError as error:
        raise ConflictError(f"{error}; what became of the transaction is not said") from error
    entries = bundle.get("entry")
    entries = entries if isinstance(entries, list) else []
    found = {}
    for index, write in enumerate(request.writes):
        entry = entries[index] if index < len(entries) else None
        response = entry.get("response") if isinstance(entry, dict) else None
        status = response.get("status") if isinstance(response, dict) else None
        code = status[:3] if isinstance(status, str) else ""
        if not re.fullmatch(r"2\d\d", code) or code == "202":
            words = said(response.get("outcome"), _names(write.resource)) if isinstance(response, dict) else ""
            shown = code if code.isdecimal() else "missing in the answer"
            raise ConflictError(
                f"{where}, entry {index + 1} ({write.type}): {shown}{f' ({words})' if words else ''}, so not all was written; "
                "run publish again to see what is there"
            )
        found[index] = _id_of(client, write.type, response.get("location") if isinstance(response, dict) else None)
    if bundle.get("type") not in ("transaction-response", "batch-response") or len(entries) != len(request.writes):
        raise ConflictError(f"{where}: the answer is no transaction-response of {len(request.writes)} entries")
    return found


def _id_of(client: FhirClient, name: str, location: object) -> str:
    """The id in a Location on this very server; what is elsewhere is not followed."""
    place = references.parse(location, client.base)
    return place.id if place.kind == "own" and place.type == name else ""


def _names(value: object) -> set[str]:
    """All element names in what we sent: these a message may repeat."""
    if isinstance(value, dict):
        return set(value).union(*map(_names, value.values()))
    return set().union(*map(_names, value)) if isinstance(value, list) else set()


def _read_back(
    client: FhirClient, write: Write, identity: str | None, *, lost: bool, problem: ConflictError | None
) -> Held:
    """What the server holds after a write. ConflictError where it is not there, NetworkError where it may yet come."""
    held = None
    for wait in LOST_WAITS if lost else LOST_WAITS[:1]:
        if wait:
            client.wait(wait)
        held = _find_again(client, write)
        if held is None and identity:
            held = _read(client, write.type, identity)  # an index may lag behind
        if held is not None and (held.id, held.version) != (write.held and (write.held.id, write.held.version)):
            return held
    if problem is not None:
        raise problem
    if lost:
        raise NetworkError(
            f"{client.host}, {write.type}: the answer to the write was lost, and what was written is not there now; give "
            "the same command again, it goes on"
        )
    raise ConflictError(f"{client.host}, {write.type}: the server says that it was written, and it is not there")


def _check_kept(host: str, write: Write, held: Held) -> None:
    """ConflictError where the server holds something else than was sent."""
    if place := find_difference(write.resource, held.resource):
        raise ConflictError(
            f"{host}: {_named(write.type, held)} is not what was sent, it differs at {place}; look at it there, and withdraw "
            "it if the server or somebody else has changed it"
        )
