"""A bulk export (Bulk Data Access IG, STU2 to STU4) on the origin of a fake server, out of the resources it holds.

    with FakeServer(resources) as server:
        export = Export(server)              # declares the operations and answers them
        export.polls.append(in_progress("42%", retry_after="7"))
        export.requires_token = False
        ...
        export.kick_offs, export.looks, export.files, export.deletes   # the requests that came

What a server may do otherwise, or wrong, stands in the attributes set here; faults of the wire are those of the server.
What is exported is what the server holds at the kick-off. Another fake server can be the place of the files:
`export.files_on(other)`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fake.faults import outcome
from fake.requests import FHIR_JSON, Request
from fake.server import FakeServer
from fake.store import Resource, Stored, instant

NDJSON = "application/fhir+ndjson"
IG = "http://hl7.org/fhir/uv/bulkdata"
Reply = tuple[int, Mapping[str, str], bytes]


def in_progress(progress: str = "", retry_after: str = "", **headers: str) -> Reply:
    """The answer to a look at a job that is not done."""
    said = {"X-Progress": progress, "Retry-After": retry_after, **{n.replace("_", "-"): v for n, v in headers.items()}}
    return 202, {name: value for name, value in said.items() if value}, b""


def failing(status: int, code: str = "", **headers: str) -> Reply:
    """The answer to a look that fails: with an OperationOutcome of this code, or of something that knows no FHIR."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if code:
        return status, {"Content-Type": FHIR_JSON, **sent}, outcome(code)
    return status, {"Content-Type": "text/plain", **sent}, b"PHI-CANARY upstream"


@dataclass(slots=True)
class Job:
    """An export as it was asked for, and its files: kind (output, deleted, outcome), type, lines, resources counted."""

    number: int
    params: list[tuple[str, str]]
    time: str
    files: list[tuple[str, str, list[str], int]] = field(default_factory=list)
    polls: int = 0
    deleted: bool = False

    def param(self, name: str) -> list[str]:
        """The values of a parameter, lists divided."""
        return [one for key, value in self.params if key == name for one in value.split(",")]


class Export:
    """The part of a fake server that exports; it puts itself on the server it is given."""

    def __init__(self, server: FakeServer, *, version: str = "3.0.0") -> None:
        """Take the server and the version of the IG: from 4 on, it is begun by POST alone; an empty one says none."""
        self.server = server
        self.version = version
        self.levels: tuple[str, ...] = ("system", "patient", "group")
        self.methods = {"POST"} if version.startswith("4") else {"GET"}
        self.other_method = 405  # the status for any other
        self.kick_off_polls: list[Reply] = []  # answers to kick-offs before the first good one
        self.kick_off_status = 202
        self.kick_off_headers: dict[str, str] = {}
        self.location: Callable[[str], str] = lambda url: url  # writes Content-Location; an empty one is not sent
        self.refused: dict[str, str] = {}  # parameter or type → the issue code of the 400 it brings
        self.polls: list[Reply] = []  # answers to looks at the job, before the manifest
        self.forgotten = False  # looks at a job are 404
        self.groups: dict[str, set[str]] = {}  # ids of patients
        self.counts = True
        self.count_error = 0  # added to the count of each file
        self.requires_token: Any = True
        self.token = ""  # the Authorization header that is needed; for files only where they require it
        self.place = server.origin  # of the files
        self.per_file = 1000
        self.per_manifest = 1000
        self.endless = ""  # how the links of manifests never end: "circle" or "unique"
        self.organised = False
        self.heads_counted = False
        self.deletions = False
        self.outcomes: list[Resource | str] = []
        self.extra: list[dict[str, Any]] = []  # more items of output
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda manifest: manifest
        self.spoil: Callable[[str, bytes], bytes] = lambda _, body: body  # by type, or kind where it is no output
        self.file_type = NDJSON
        self.expire_after: int | None = None  # the links of the manifest fail after so many files; new ones work
        self.expired: set[int] = set()  # the files whose links always fail, from 1
        self.expired_status = 404
        self.delete_status = 202
        self.jobs: list[Job] = []
        self._round = 0
        self._sent = 0
        self._gone: list[tuple[datetime, str, str]] = []
        self._remove, self._declare = server.store.remove, server.declare
        server.store.remove = self._removed
        server.declare = self.declare
        server.parts.append(self)

    def files_on(self, other: FakeServer) -> None:
        """Serve the files from another origin."""
        other.parts.append(self)
        self.place = other.origin

    # ------------------------------------------------------------------------------------------------- what came

    @property
    def kick_offs(self) -> list[Request]:
        """The requests for an export."""
        return [request for request in self.server.requests if "$export" in request.path]

    @property
    def looks(self) -> list[Request]:
        """The looks at the state of a job."""
        return [
            request for request in self.server.requests if "/bulk/status/" in request.path and request.method == "GET"
        ]

    @property
    def files(self) -> list[Request]:
        """The requests for files of this origin."""
        return self.server_files(self.server)

    @staticmethod
    def server_files(server: FakeServer) -> list[Request]:
        """The requests for files of a server."""
        return [request for request in server.requests if "/bulk/file/" in request.path]

    @property
    def deletes(self) -> list[Request]:
        """The requests to delete a job."""
        return [request for request in self.server.requests if request.method == "DELETE"]

    # ------------------------------------------------------------------------------------------- what is answered

    def declare(self, statement: Resource) -> Resource:
        """The CapabilityStatement with the operations of the levels."""
        statement = self._declare(statement)
        suffix = f"|{self.version}" if self.version else ""
        names = {"system": "export", "patient": "patient-export", "group": "group-export"}
        operations = {
            level: {"name": "export", "definition": f"{IG}/OperationDefinition/{names[level]}{suffix}"}
            for level in self.levels
        }
        rest = statement["rest"][0]
        resources = [
            {**one, "operation": [operations["patient"]]}
            if one["type"] == "Patient" and "patient" in operations
            else one
            for one in rest.get("resource", [])
        ]
        if "group" in operations:
            resources.append({"type": "Group", "operation": [operations["group"]]})
        system = [operations["system"]] if "system" in operations else []
        return {**statement, "rest": [{**rest, "resource": resources, "operation": system}]}

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: str) -> Reply | None:
        """The answer to what is of an export; None for anything else."""
        place = urlsplit(path).path
        is_file = place.startswith("/bulk/file/")
        if not (place.endswith("/$export") or place.startswith("/bulk/")):
            return None
        needs_token = self.token and (self.requires_token if is_file else True)
        if needs_token and headers.get("authorization") != self.token:
            return self._refuse(401, "login")
        if place.endswith("/$export"):
            return self._begin(method, path, body)
        number = int(place.split("/")[3])
        if is_file:
            return self._file(self.jobs[number], path)
        if method == "DELETE":
            self.jobs[number].deleted = self.delete_status < 300
            return self.delete_status, {}, b""
        return self._look(self.jobs[number], dict(parse_qsl(urlsplit(path).query)))

    @staticmethod
    def _refuse(status: int, code: str, text: str = "PHI-CANARY") -> Reply:
        return status, {"Content-Type": FHIR_JSON}, outcome(code, text)

    def _begin(self, method: str, path: str, body: str) -> Reply:
        if self.kick_off_polls:
            return self.kick_off_polls.pop(0)
        if method not in self.methods:
            return self._refuse(self.other_method, "not-supported")
        if method == "POST":
            parts = json.loads(body)["parameter"]
            params = [(part["name"], str(next(v for k, v in part.items() if k != "name"))) for part in parts]
        else:
            params = parse_qsl(urlsplit(path).query)
        job = Job(len(self.jobs), params, instant(self.server.now()))
        for name in (*dict(params), *job.param("_type")):
            if name in self.refused:
                return self._refuse(400, self.refused[name], f"parameter {name} is not supported")
        group = path.partition("/Group/")[2].partition("/")[0]
        if group and group not in self.groups:
            return self._refuse(404, "not-found")
        self._fill(job, self.groups[group] if group else None)
        self.jobs.append(job)
        location = self.location(f"{self.server.origin}/bulk/status/{job.number}")
        sent = {"Content-Location": location} if location else {}
        return self.kick_off_status, {**sent, **self.kick_off_headers}, b""

    def _look(self, job: Job, query: dict[str, str]) -> Reply:
        if self.forgotten or job.deleted:
            return self._refuse(404, "not-found")
        if job.polls < len(self.polls):
            job.polls += 1
            return self.polls[job.polls - 1]
        return (
            200,
            {"Content-Type": "application/json"},
            json.dumps(self._manifest(job, int(query.get("part", 0)))).encode(),
        )

    def _manifest(self, job: Job, part: int) -> dict[str, Any]:
        listed: dict[str, list[dict[str, Any]]] = {"output": [], "deleted": [], "outcome": []}
        first = 0 if self.endless == "unique" else part * self.per_manifest
        last = first + self.per_manifest
        for number, (kind, type_name, _, count) in enumerate(job.files):
            if not first <= number < last:
                continue
            item: dict[str, Any] = {"url": f"{self.place}/bulk/file/{job.number}/{number + 1}?round={self._round}"}
            item |= {"type": type_name} if type_name else {}
            item |= {"count": count + self.count_error} if self.counts else {}
            listed[kind].append(item)
        manifest: dict[str, Any] = {
            "transactionTime": job.time,
            "requiresAccessToken": self.requires_token,
            "output": listed["output"] + (self.extra if part == 0 else []),
            "outcome" if self.version.startswith("4") else "error": listed["outcome"],
        }
        manifest |= {"deleted": listed["deleted"]} if self.deletions else {}
        manifest |= {"outputOrganizedBy": "Patient"} if self.organised else {}
        following = 1 - part % 2 if self.endless == "circle" else part + 1
        if self.endless or last < len(job.files):
            url = f"{self.server.origin}/bulk/status/{job.number}?part={following}"
            manifest["link"] = [{"relation": "next", "url": url}]
        return self.change(manifest)

    def _file(self, job: Job, path: str) -> Reply:
        number = int(urlsplit(path).path.split("/")[4])
        given = int(dict(parse_qsl(urlsplit(path).query))["round"])
        if self.expire_after is not None and self._sent >= self.expire_after:
            self._round, self.expire_after = self._round + 1, None
        if given != self._round or number in self.expired:
            return self._refuse(self.expired_status, "not-found")
        self._sent += 1
        kind, type_name, lines, _ = job.files[number - 1]
        body = "".join(f"{line}\n" for line in lines).encode()
        return 200, {"Content-Type": self.file_type}, self.spoil(type_name if kind == "output" else kind, body)

    # --------------------------------------------------------------------------------------------- what is exported

    def _removed(self, kind: str, identity: str) -> None:
        self._remove(kind, identity)
        self._gone.append((self.server.now(), kind, identity))

    def _fill(self, job: Job, patients: set[str] | None) -> None:
        since = datetime.fromisoformat(job.param("_since")[0]) if job.param("_since") else None
        types = job.param("_type") or list(self.server.store.types)
        found: dict[str, list[Stored]] = {
            kind: [
                one
                for one in self.server.store.find(kind, [])
                if (since is None or one.updated > since)
                and (_is_about(one, patients) or (not one.patient and kind != "Patient"))
            ]
            for kind in types
        }
        if self.organised:
            self._organise(job, [one for kind in types for one in found[kind]])
        else:
            for kind in types:
                for start in range(0, len(found[kind]), self.per_file):
                    lines = [one.text for one in found[kind][start : start + self.per_file]]
                    job.files.append(("output", kind, lines, len(lines)))
        gone = [
            (kind, identity) for at, kind, identity in self._gone if since is not None and at > since and kind in types
        ]
        if self.deletions and gone:
            entries = [{"request": {"method": "DELETE", "url": f"{kind}/{identity}"}} for kind, identity in gone]
            bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
            job.files.append(("deleted", "", [json.dumps(bundle)], 1))
        if self.outcomes:
            lines = [one if isinstance(one, str) else json.dumps(one) for one in self.outcomes]
            job.files.append(("outcome", "OperationOutcome", lines, len(lines)))

    def _organise(self, job: Job, found: list[Stored]) -> None:
        """A block for each patient, headed by a Parameters; what is nobody's stands in the first."""
        patients = [one.id for one in found if one.resource["resourceType"] == "Patient"]
        for index, who in enumerate(patients):
            head = {"name": "header", "valueReference": {"reference": f"Patient/{who}"}}
            block = [
                one.text
                for one in found
                if _is_about(one, {who})
                or (index == 0 and not one.patient and one.resource["resourceType"] != "Patient")
            ]
            lines = [json.dumps({"resourceType": "Parameters", "parameter": [head]}), *block]
            job.files.append(("output", "", lines, len(lines) if self.heads_counted else len(block)))


def _is_about(one: Stored, patients: set[str] | None) -> bool:
    if patients is None:
        return True
    if one.resource["resourceType"] == "Patient":
        return one.id in patients
    return one.patient.removeprefix("Patient/") in patients
