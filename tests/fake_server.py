"""A small FHIR server on a real socket of 127.0.0.1, with switches for what real servers and networks do wrong.

    with FakeServer(resources) as server:
        server.faults.append(Fault("reset", path="Observation"))
        server.on_request = lambda request: server.delete("Observation", "o1")   # data that change during the run
        ...
        server.requests  # every request: method, path with query, headers, body

What can go wrong stands in `fake.faults`, what a server may do otherwise in the attributes of `fake.server.FakeServer`.
A second server is a second origin (another port; `host="localhost"` gives it another name too). `fake.certificates`
makes certificates for `FakeServer(tls=...)`.
"""

from fake.faults import Fault, outcome
from fake.requests import Answer, Request
from fake.server import SEARCH_PARAMETERS, TYPES, FakeServer, Part, seconds_between
from fake.store import LOADED, Resource, instant
from fake.writes import Writes

__all__ = [
    "LOADED",
    "SEARCH_PARAMETERS",
    "TYPES",
    "Answer",
    "FakeServer",
    "Fault",
    "Part",
    "Request",
    "Resource",
    "Writes",
    "instant",
    "outcome",
    "seconds_between",
]
