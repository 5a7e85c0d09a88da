"""What a client asked, and what it is answered."""

from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import parse_qsl, urlsplit

FHIR_JSON = "application/fhir+json"
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Request:
    """A request as it came: path with query, header names in lower case, `at` in seconds of the monotonic clock."""

    method: str
    path: str
    headers: dict[str, str]
    body: str
    at: float

    @cached_property
    def segments(self) -> list[str]:
        """The parts of the path below /fhir."""
        return urlsplit(self.path).path.removeprefix("/fhir").strip("/").split("/")

    @property
    def type(self) -> str:
        """The resource type, or the first part of the path."""
        return self.segments[0]

    @cached_property
    def params(self) -> list[tuple[str, str]]:
        """The search parameters, of the query and of the form."""
        found = parse_qsl(urlsplit(self.path).query, keep_blank_values=True)
        if self.headers.get("content-type", "").startswith(FORM):
            found += parse_qsl(self.body, keep_blank_values=True)
        return found

    def param(self, name: str) -> str:
        """The value of a search parameter; empty where it was not sent."""
        return dict(self.params).get(name, "")

    @property
    def is_search(self) -> bool:
        """Whether it searches a type: by GET with or without a query, by POST to _search, or by a next link."""
        return self.segments[-1] == "_search" or (
            self.method == "GET" and len(self.segments) == 1 and bool(self.params)
        )


@dataclass(slots=True)
class Answer:
    """What is sent back."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": FHIR_JSON})
