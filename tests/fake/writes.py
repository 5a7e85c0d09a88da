"""What is written to the fake server: create, update, their conditions, transactions (FHIR R4 http.html)."""

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from fake.faults import outcome
from fake.requests import FORM, Answer, Request
from fake.store import Resource, Store, make_test

WRITTEN = {
    "Library": ("_id", "url", "version"),
    "Measure": ("_id", "url", "version"),
    "MeasureReport": ("_id", "identifier"),
    "Provenance": ("_id", "target"),
    "Observation": ("_id", "identifier", "patient", "subject"),
}
"""The types that are written, and what they are searched by."""


@dataclass
class Writes:
    """How the server takes what is written; the switches are what servers do otherwise."""

    types: tuple[str, ...] = ("Library", "Measure", "MeasureReport", "Provenance")
    transactions: bool = True
    atomic: bool = True  # else a transaction is a batch by another name
    stale: int = 412  # the status of a version that is not the current one
    alter: Callable[[Resource], Resource] = lambda resource: resource  # what is stored of what was sent
    refuse: Callable[[Resource], int] = lambda _: 0  # a status that refuses a resource
    done: list[str] = field(default_factory=list)  # every version made, as Type/id/_history/v

    def declared(self) -> Resource:
        """What the CapabilityStatement says of each type."""
        codes = ("read", "search-type", "create", "update")
        return {"interaction": [{"code": code} for code in codes], "conditionalCreate": True, "updateCreate": True}

    def take(self, store: Store, request: Request, at: datetime) -> Answer | None:
        """Do what a request asks; None for one that writes nothing."""
        if request.method == "PUT" or (
            request.method == "POST" and not request.headers.get("content-type", "").startswith(FORM)
        ):
            body = json.loads(request.body)
            if request.segments == [""]:
                return self._bundle(store, body, at)
            conditions = {
                "ifMatch": request.headers.get("if-match"),
                "ifNoneExist": request.headers.get("if-none-exist"),
            }
            asked = {"method": request.method, "url": "/".join(request.segments), **conditions}
            status, place, stored = self._one(store, body, asked, at)
            headers = {"Content-Type": "application/fhir+json", **({"Location": place} if place else {})}
            return Answer(status, json.dumps(stored).encode() if stored else outcome("processing"), headers)
        return None

    def _bundle(self, store: Store, bundle: Resource, at: datetime) -> Answer:
        before, made = {kind: dict(held) for kind, held in store.types.items()}, len(self.done)
        entries: list[Resource] = []
        for entry in bundle["entry"]:
            status, place, _ = self._one(store, entry["resource"], entry["request"], at)
            if status >= 400 and self.atomic:
                store.types.clear()
                store.types.update(before)
                del self.done[made:]
                return Answer(status, outcome("processing"))
            told: dict[str, Any] = {"status": f"{status} X", **({"location": place} if place else {})}
            if status >= 400:
                told["outcome"] = json.loads(outcome("invalid"))
            entries.append({"response": told})
        kind = f"{bundle['type']}-response"
        return Answer(200, json.dumps({"resourceType": "Bundle", "type": kind, "entry": entries}).encode())

    def _one(self, store: Store, resource: Resource, asked: Resource, at: datetime) -> tuple[int, str, Resource | None]:
        """Status, place of the version, and the resource as it is now."""
        if status := self.refuse(resource):
            return status, "", None
        kind, _, identity = asked["url"].partition("/")
        assert kind == resource["resourceType"]
        if asked["method"] == "POST":
            identity = uuid.uuid4().hex
            if condition := asked.get("ifNoneExist"):
                switches = {"hidden": (), "typed_only": False, "text_as_code": False, "text_indexed": True}
                tests = [make_test(name, value, **switches) for name, value in parse_qsl(condition)]
                found = store.find(kind, tests)
                if len(found) > 1:
                    return 412, "", None
                if found:
                    return 200, f"{kind}/{found[0].id}/_history/{found[0].version}", found[0].resource
        held = store.get(kind, identity)
        if condition := asked.get("ifMatch"):
            (version,) = re.fullmatch(r'W/"(.+)"', condition).groups()  # type: ignore[union-attr]
            if held is None or str(held.version) != version:
                return self.stale, "", None
        store.put({**self.alter(resource), "id": identity}, at)
        stored = store.types[kind][identity]
        place = f"{kind}/{identity}/_history/{stored.version}"
        self.done.append(place)
        return 200 if held else 201, place, stored.resource
