"""Opens `mappings/`: every ViewDefinition, ValueSet, ConceptMap, NamingSystem, Measure and Library by canonical URL.

A site lays its own folder over ours (`--mappings DIR`): a file with the `url` of one of ours replaces it, a ValueSet or
ConceptMap with the extension `https://crmo-fhir.org/StructureDefinition/extends` (valueCanonical) is added to the one
named there, any other file is new. Files of ours at fault are an IntegrityError, files of a site a UsageError.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from crmo_fhir.errors import CrmoFhirError, IntegrityError, UsageError
from crmo_fhir.fhir.codings import ATC, BASE, SNOMED, CodeMap, CodeSet, Coding, Systems, extension
from crmo_fhir.model.tables import UNSPECIFIED

EXTENDS = f"{BASE}/StructureDefinition/extends"
AGENT = f"{BASE}/CodeSystem/agent"
DRUG_CLASS_VALUE_SET = f"{BASE}/CodeSystem/drug-class-valueset"
_NAMING_SYSTEM_URLS = (  # both ways in which R4 NamingSystems carry the url that came with R5
    "http://hl7.org/fhir/StructureDefinition/artifact-url",
    "http://hl7.org/fhir/5.0/StructureDefinition/extension-NamingSystem.url",
)
_OWN_TYPES = ("ConceptMap", "Library", "Measure", "NamingSystem", "ValueSet", "ViewDefinition")
_ATC_SUBSTANCE_LENGTH = 7
_CACHED_AT_MOST = 100_000  # distinct drug codings kept; bounded for whole-population exports

Resource = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Artifacts:
    """The mappings of one run. Names are the last segment of a canonical URL; views go by their `name`."""

    systems: Systems
    digest: str
    """SHA-256 over all artifacts in canonical JSON, whatever the order of files and keys."""
    _resources: Mapping[str, Resource] = field(repr=False)
    _sets: dict[str, CodeSet] = field(default_factory=dict, repr=False)
    _maps: dict[str, CodeMap] = field(default_factory=dict, repr=False)
    _drugs: dict[Coding, tuple[str, str] | None] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, overlay: Path | None = None) -> "Artifacts":
        """Read the shipped mappings and, over them, the JSON files of the folder `overlay`.

        Raises IntegrityError (shipped files) or UsageError (a site's) for files that are no FHIR JSON, a `url` or a
        view name used twice in one folder, and references to value sets, libraries or views that are not there.
        """
        return _shipped() if overlay is None else _build(_folder(), overlay)

    def value_set(self, name: str) -> CodeSet:
        """Give the value set of this name (`crmo`). Raises IntegrityError when missing, UsageError when unreadable."""
        url = _url("ValueSet", name)
        if url not in self._sets:
            resource = self._resource(url)
            self._sets[url] = CodeSet.of(resource, self.systems, lambda other: self.value_set(_no_version(other)))
        return self._sets[url]

    def concept_map(self, name: str) -> CodeMap:
        """Give the concept map of this name (`bone`). Raises IntegrityError when missing, UsageError when unreadable."""
        url = _url("ConceptMap", name)
        if url not in self._maps:
            self._maps[url] = CodeMap.of(self._resource(url), self.systems)
        return self._maps[url]

    def view(self, name: str) -> Resource:
        """Copy the ViewDefinition of this name. Raises IntegrityError when missing."""
        for view in self._of_type("ViewDefinition"):
            if view["name"] == name:
                return copy.deepcopy(view)
        raise IntegrityError(f"mappings hold no view named {name}: reinstall, or restore mappings/views")

    def views(self) -> dict[str, Resource]:
        """Copy all ViewDefinitions, by `name`, sorted."""
        found = {r["name"]: copy.deepcopy(r) for r in self._of_type("ViewDefinition")}
        return dict(sorted(found.items()))

    def measure(self) -> Resource:
        """Copy the Measure the MeasureReport answers to. Raises IntegrityError unless there is exactly one."""
        return self._only("Measure")

    def library(self) -> Resource:
        """Copy the Library the Measure names. Raises IntegrityError unless there is exactly one."""
        return self._only("Library")

    def drug(self, coding: Coding) -> tuple[str, str] | None:
        """Give the generic agent name and treatment class of a drug code; None for a code that is no drug of interest.

        The concept map `agent` decides, on the code and then on the ingredients of a SNOMED expression. Else the class
        value sets, in the order of the concept map `drug-class`: the agent is then the ATC code in lower case, or
        `nsaid-unspecified` for a group-level code. Raises IntegrityError for an agent without class.
        """
        if coding not in self._drugs:
            if len(self._drugs) > _CACHED_AT_MOST:
                self._drugs.clear()
            self._drugs[coding] = self._drug(coding)
        return self._drugs[coding]

    def side(self, coding: Coding) -> str | None:
        """Give `left`, `right` or `both` by the concept map `side`: of the code itself, else of its qualifiers."""
        sides = self.concept_map("side")
        own = sides.translate(coding)
        found = {own} if own else set(sides.translate_qualifiers(coding))
        if not found:
            return None
        return found.pop() if len(found) == 1 else "both"

    def _drug(self, coding: Coding) -> tuple[str, str] | None:
        agents, classes = self.concept_map("agent"), self.concept_map("drug-class")
        code = self.systems.read(coding)
        if code is None:
            return None
        agent = agents.translate(coding)
        if agent is None and code.system == SNOMED:
            agent = next(iter(agents.translate_qualifiers(coding)), None)
        if agent is not None:
            drug_class = classes.translate(Coding(AGENT, agent))
            if drug_class is None:
                raise IntegrityError(f"ConceptMap drug-class has no class for the agent {agent}: add it there")
            return agent, drug_class
        for name, drug_class in _class_sets(self._resource(_url("ConceptMap", "drug-class"))):
            if self.value_set(name).holds(code):
                substance = code.system == ATC and len(code.code) == _ATC_SUBSTANCE_LENGTH
                return (code.code if substance else f"{drug_class}{UNSPECIFIED}").lower(), drug_class
        return None

    def _of_type(self, resource_type: str) -> Iterator[Resource]:
        return (r for r in self._resources.values() if r["resourceType"] == resource_type)

    def _only(self, resource_type: str) -> Resource:
        found = list(self._of_type(resource_type))
        if len(found) != 1:
            raise IntegrityError(
                f"mappings hold {len(found)} {resource_type} resources instead of one: see mappings/measures"
            )
        return copy.deepcopy(found[0])

    def _resource(self, url: str) -> Resource:
        if url not in self._resources:
            raise IntegrityError(f"mappings hold no {url}: reinstall, or restore the file")
        return self._resources[url]


@cache
def _shipped() -> Artifacts:
    return _build(_folder(), None)


def _folder() -> Path:
    """Find the folder in the installed package, else that of the checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "mappings", package.parents[1] / "mappings"):
        if folder.is_dir():
            return folder
    raise IntegrityError("the mappings folder is not in the installation: reinstall crmo-fhir")


def _build(folder: Path, overlay: Path | None) -> Artifacts:
    resources = _read(folder, IntegrityError)
    blame: type[CrmoFhirError] = IntegrityError
    laid_over: list[str] = []
    if overlay is not None:
        if not overlay.is_dir():
            raise UsageError(f"{overlay} is no folder: --mappings takes a folder of FHIR JSON files")
        blame = UsageError
        laid_over = _lay_over(resources, _read(overlay, UsageError))
    canonical = json.dumps([resources[url] for url in sorted(resources)], sort_keys=True, separators=(",", ":"))
    try:
        _check(resources, blame)
        systems = Systems(r for _, r in sorted(resources.items()) if r["resourceType"] == "NamingSystem")
        artifacts = Artifacts(systems, hashlib.sha256(canonical.encode()).hexdigest(), resources)
        for url in laid_over:  # a site's file is read at once, so that its faults show before any data are read
            if resources[url]["resourceType"] == "ValueSet":
                artifacts.value_set(url)
            elif resources[url]["resourceType"] == "ConceptMap":
                artifacts.concept_map(url)
    except UsageError as error:
        raise blame(str(error)) from None
    except (AttributeError, KeyError, TypeError) as error:
        raise blame(
            f"a mappings file does not have the structure of its FHIR resource type ({error}): correct it"
        ) from None
    return artifacts


def _read(folder: Path, blame: Callable[[str], CrmoFhirError]) -> dict[str, Resource]:
    """All resources of a folder by canonical URL; a file that is no FHIR JSON or a URL used twice is refused."""
    found: dict[str, Resource] = {}
    places: dict[str, str] = {}
    for path in sorted(folder.rglob("*.json")):
        place = path.relative_to(folder).as_posix()
        try:
            resource = json.loads(path.read_bytes())
        except (OSError, ValueError):
            raise blame(f"mappings file {place} is no JSON: correct or remove it") from None
        if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
            raise blame(f"mappings file {place} is no FHIR resource: correct or remove it")
        if is_view(resource):
            resource["resourceType"] = "ViewDefinition"
        url = _own_url(resource)
        if not url:
            raise blame(f"mappings file {place} has no url: give it a canonical one")
        if url in found:
            raise blame(f"mappings files {places[url]} and {place} have the same url {url}: keep one")
        found[url], places[url] = resource, place
    return found


def is_view(resource: Resource) -> bool:
    """Whether a resource is a ViewDefinition; SQL on FHIR 2.0 names the type by the URL of its logical model."""
    return str(resource.get("resourceType")).rpartition("/StructureDefinition/")[2] == "ViewDefinition"


def _own_url(resource: Resource) -> str | None:
    """`url`; a NamingSystem has none in R4 and carries it as an extension; a view without one goes by its name."""
    if url := resource.get("url"):
        return str(url)
    if resource["resourceType"] == "NamingSystem":
        return next((url for name in _NAMING_SYSTEM_URLS if (url := extension(resource, name))), None)
    if resource["resourceType"] == "ViewDefinition" and resource.get("name"):
        return _url("ViewDefinition", str(resource["name"]))
    return None


def _lay_over(resources: dict[str, Resource], overlay: dict[str, Resource]) -> list[str]:
    """Replace, extend or add, and give the URLs touched; a site's codes stand first, so its reading of a code wins."""
    touched: list[str] = []
    for url, resource in sorted(overlay.items()):
        target = extension(resource, EXTENDS)
        if target is None:
            resources[url] = resource
            touched.append(url)
            continue
        base = resources.get(_no_version(target))
        if base is None or base["resourceType"] != resource["resourceType"]:
            raise UsageError(
                f"{url} extends {target}, which is no {resource['resourceType']} of the mappings: correct it"
            )
        if resource["resourceType"] not in ("ConceptMap", "ValueSet"):
            raise UsageError(f"{url}: only a ValueSet or a ConceptMap can extend another: replace it as a whole")
        resources[_no_version(target)] = _merged(base, resource)
        touched.append(_no_version(target))
    return touched


def _merged(base: Resource, more: Resource) -> Resource:
    merged = copy.deepcopy(base)
    if base["resourceType"] == "ConceptMap":
        merged["group"] = [*more.get("group", ()), *merged.get("group", ())]
        return merged
    for part in ("include", "exclude"):
        if added := more.get("compose", {}).get(part):
            merged.setdefault("compose", {})[part] = [*added, *merged.get("compose", {}).get(part, ())]
    if added := more.get("expansion", {}).get("contains"):
        expansion = merged.setdefault("expansion", {"timestamp": more["expansion"].get("timestamp")})
        expansion["contains"] = [*added, *expansion.get("contains", ())]
    return merged


def _check(resources: Mapping[str, Resource], blame: Callable[[str], CrmoFhirError]) -> None:
    """Refuse a view name used twice, a reference that leads nowhere, and value sets that include each other."""
    names: dict[str, str] = {}
    for url, resource in sorted(resources.items()):
        if resource["resourceType"] == "ViewDefinition":
            name = resource.get("name")
            if not name or name in names:
                raise blame(f"view {url} has no name or that of another view: every ViewDefinition needs its own")
            names[name] = url
        for reference in _references(resource):
            if _no_version(reference) not in resources:
                raise blame(f"{url} refers to {reference}, which is not in the mappings: add or correct it")
    includes = {url: _included(r) for url, r in resources.items() if r["resourceType"] == "ValueSet"}
    for url in sorted(includes):
        reached, waiting = set[str](), [url]
        while waiting:
            for other in includes.get(waiting.pop(), ()):
                if other == url:
                    raise blame(f"{url} includes itself, directly or through another value set: break the circle")
                if other not in reached:
                    reached.add(other)
                    waiting.append(other)


def _references(resource: Resource) -> Iterator[str]:
    """Canonical URLs a resource depends on: value sets included, libraries, and any URL of our own artifacts."""
    yield from _included(resource)
    if resource["resourceType"] == "Measure":
        yield from resource.get("library", ())
    own = tuple(f"{BASE}/{one}/" for one in _OWN_TYPES)
    for text in _texts(resource):
        if text.startswith(own):
            yield text


def _included(resource: Resource) -> list[str]:
    if resource["resourceType"] != "ValueSet":
        return []
    compose = resource.get("compose", {})
    parts = (*compose.get("include", ()), *compose.get("exclude", ()))
    return [_no_version(url) for part in parts for url in part.get("valueSet", ())]


def _texts(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


def _class_sets(drug_class: Resource) -> Iterator[tuple[str, str]]:
    """(value set name, class) in the order of the concept map `drug-class`, a site's groups first."""
    for group in drug_class.get("group", ()):
        if group.get("source") == DRUG_CLASS_VALUE_SET:
            for element in group.get("element", ()):
                yield element["code"], element["target"][0]["code"]


def _url(resource_type: str, name: str) -> str:
    return name if "://" in name or name.startswith("urn:") else f"{BASE}/{resource_type}/{name}"


def _no_version(url: str) -> str:
    return url.partition("|")[0]
