"""Codings: which system a URI names, which code a spelling means, and whether a value set or map knows it.

Everything that is a *code* is data (NamingSystem, ValueSet and ConceptMap of `mappings/`); this module only reads it.
The spellings a system allows are of one of a few kinds, declared in its NamingSystem by the extension `code-form`:

    icd-10    upper case, no dots; a leading D before letter and digit goes (Danish `DM863`); suffixes at `+` are qualifiers
    sks       Danish SKS root: a diagnosis is read as icd-10 in the SKS diagnosis system, `M` + ATC as ATC, the rest as it is
    atc       upper case
    snomed    a post-coordinated expression is its focus concept, the other concepts are qualifiers
    icd-11    upper case; what stands behind `&` or `/` is a qualifier
    curie     a prefix such as `MONDO:`, `ORPHA:` or `HP:` goes

Without the extension the code is taken as it stands. On icd-10, sks and atc `is-a` is a prefix rule, elsewhere it is
equality: no hierarchy is at hand (FHIR R4 ValueSet.compose.include.filter; sources of the codes in each file).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crmo_fhir.errors import UsageError

BASE = "https://crmo-fhir.org"
ATC = "http://www.whocc.no/atc"
SKS = "urn:oid:1.2.208.176.2.4"
SKS_DIAGNOSES = "urn:oid:1.2.208.176.2.4.12"
SNOMED = "http://snomed.info/sct"
TEXT = f"{BASE}/CodeSystem/text"
CODE_FORM = f"{BASE}/StructureDefinition/code-form"
EDITION_PATTERN = f"{BASE}/StructureDefinition/edition-pattern"
DISPLAY_CONTAINS = f"{BASE}/StructureDefinition/display-contains"

FORMS = ("icd-10", "sks", "atc", "snomed", "icd-11", "curie")
_HIERARCHIC = ("icd-10", "sks", "atc")
_CACHED_AT_MOST = 100_000  # distinct codings kept; bounded for whole-population exports
_SCHEME = re.compile(r"^https?://")
_BARE_OID = re.compile(r"[0-2](\.\d+){3,}")
_NOT_CODE = re.compile(r"[^A-Z0-9]")
_DANISH_D = re.compile(r"^D(?=[A-Z]\d)")
_SKS_ATC = re.compile(r"M([A-Z]\d{2}(?:[A-Z](?:[A-Z](?:\d{2})?)?)?)")
_SKS_DIAGNOSIS = re.compile(r"D?[A-Z]\d{2}.*")
_CURIE = re.compile(r"^(?:[A-Z]+[:_]|ORPHA(?=\d))", re.IGNORECASE)
_SNOMED_TERM = re.compile(r"\|[^|]*\|?")
_SNOMED_ATTRIBUTE = re.compile(r"\d{6,18}\s*=")
_SNOMED_ID = re.compile(r"\d{6,18}")
_HYPHENS = re.compile(r"[-\u00ad\u2010-\u2015\u2212]")
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Coding:
    """A coding as found in a record."""

    system: str | None
    code: str | None
    display: str | None = None


@dataclass(frozen=True, slots=True)
class Code:
    """A coding in canonical form: canonical system, canonical code, and its qualifiers as (system, code).

    Laterality of a diagnosis or body site stands in the qualifiers (`DM863+TUL1`, `12611008:272741003=7771000`).
    """

    system: str
    code: str
    qualifiers: tuple[tuple[str, str], ...] = ()


class Systems:
    """The code systems known, from NamingSystem resources: the URIs of each, its canonical one, how codes are spelt."""

    __slots__ = ("_aliases", "_canonical", "_editions", "_forms", "_read")

    def __init__(self, naming_systems: Iterable[Mapping[str, Any]]) -> None:
        """Read NamingSystems (R4): every uniqueId is a URI of the system, the preferred one (else the first) canonical.

        Raises UsageError where two NamingSystems claim one URI, or a code form or edition pattern is not understood.
        """
        self._canonical: dict[str, str] = {}
        self._aliases: dict[str, tuple[str, ...]] = {}
        self._forms: dict[str, str] = {}
        self._editions: list[tuple[re.Pattern[str], str]] = []
        self._read: dict[tuple[str, str], Code] = {}
        for resource in naming_systems:
            self._add(resource)

    def _add(self, resource: Mapping[str, Any]) -> None:
        name = resource.get("name", "without name")
        unique = [(_uri_of(entry), bool(entry.get("preferred"))) for entry in resource.get("uniqueId", ())]
        if not unique:
            raise UsageError(f"NamingSystem {name} has no uniqueId: name at least one URI of the system")
        canonical = next((uri for uri, preferred in unique if preferred), unique[0][0])
        for uri, _ in unique:
            if self._canonical.setdefault(_key(uri), canonical) != canonical:
                raise UsageError(f"NamingSystem {name} claims {uri}, which another NamingSystem has: keep it in one")
        self._aliases[canonical] = (canonical, *(uri for uri, _ in unique if uri != canonical))
        if form := extension(resource, CODE_FORM):
            if form not in FORMS:
                raise UsageError(f"NamingSystem {name}: code-form {form} is not one of {', '.join(FORMS)}")
            self._forms[canonical] = form
        if pattern := extension(resource, EDITION_PATTERN):
            try:
                self._editions.append((re.compile(_SCHEME.sub("", pattern), re.IGNORECASE), canonical))
            except re.error:
                raise UsageError(f"NamingSystem {name}: edition-pattern is no regular expression") from None

    def canonical(self, uri: str | None) -> str | None:
        """Give the one URI that stands for the system; an unknown URI itself, without version and trailing slash.

        `http`/`https`, case, a trailing slash, `|version`, `urn:oid:` forms, aliases and editions make no difference.
        """
        if not uri or not uri.strip():
            return None
        key = _key(uri)
        if known := self._canonical.get(key):
            return known
        for pattern, canonical in self._editions:
            if pattern.fullmatch(key):
                return canonical
        return uri.strip().partition("|")[0].rstrip("/")

    def aliases(self, uri: str) -> tuple[str, ...]:
        """List every URI under which the system may be searched, the canonical one first."""
        canonical = self.canonical(uri) or uri
        return self._aliases.get(canonical, (canonical,))

    def hierarchic(self, system: str) -> bool:
        """Whether `is-a` can be answered by the beginning of the code in this canonical system."""
        return self._forms.get(system) in _HIERARCHIC

    def read(self, coding: Coding) -> Code | None:
        """Read the coding in canonical form; None without a system or a code."""
        if not coding.system or not coding.code:
            return None
        found = self._read.get((coding.system, coding.code))
        if found is None:
            system = self.canonical(coding.system)
            if system is None or not coding.code.strip():
                return None
            if len(self._read) > _CACHED_AT_MOST:
                self._read.clear()
            found = _read_code(self._forms.get(system), system, coding.code.strip())
            self._read[coding.system, coding.code] = found
        return found


@dataclass(frozen=True, slots=True)
class _Include:
    """One compose.include or .exclude: a system narrowed by codes or filters, or other value sets, all of which hold."""

    system: str | None
    codes: frozenset[Code] | None
    prefixes: tuple[Code, ...]
    equals: tuple[Code, ...]
    sets: tuple["CodeSet", ...]

    def matches(self, code: Code) -> bool:
        if self.codes is not None and not any(_equal(code, wanted) for wanted in self.codes):
            return False
        if not all(code.system == p.system and code.code.startswith(p.code) for p in self.prefixes):
            return False
        if not all(_equal(code, wanted) for wanted in self.equals):
            return False
        if self.codes is None and not self.prefixes and not self.equals and self.system not in (None, code.system):
            return False
        return all(one.holds(code) for one in self.sets)


@dataclass(frozen=True, slots=True)
class CodeSet:
    """A value set that answers whether it holds a coding or a text, and what to search for on a server."""

    url: str
    _systems: Systems
    _includes: tuple[_Include, ...]
    _excludes: tuple[_Include, ...]
    _phrases: tuple[str, ...]
    _not_phrases: tuple[str, ...]
    _tokens: tuple[tuple[str, str], ...]
    _seen: dict[Code, bool] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls, resource: Mapping[str, Any], systems: Systems, resolve: Callable[[str], "CodeSet"] | None = None
    ) -> "CodeSet":
        """Build from a ValueSet (R4); `resolve` gives the value set of a canonical URL named by an include.

        Raises UsageError for a filter that cannot be answered, or an include that names a value set without `resolve`.
        """
        url = resource.get("url", "without url")
        compose = resource.get("compose", {})

        def include(part: Mapping[str, Any]) -> _Include:
            return _include(url, part, systems, resolve)

        def phrases(kind: str) -> tuple[str, ...]:
            texts = (part for part in compose.get(kind, ()) if systems.canonical(part.get("system")) == TEXT)
            return tuple(fold(concept["code"]) for part in texts for concept in part.get("concept", ()))

        return cls(
            url=url,
            _systems=systems,
            _includes=tuple(include(part) for part in compose.get("include", ())),
            _excludes=tuple(include(part) for part in compose.get("exclude", ())),
            _phrases=phrases("include"),
            _not_phrases=phrases("exclude"),
            _tokens=_tokens(resource, systems, resolve),
        )

    def contains(self, coding: Coding) -> bool:
        """Whether the set holds the coding; never for a coding without system or code."""
        code = self._systems.read(coding)
        return code is not None and self.holds(code)

    def holds(self, code: Code) -> bool:
        """Whether the set holds a code already in canonical form."""
        answer = self._seen.get(code)
        if answer is None:
            answer = any(i.matches(code) for i in self._includes) and not any(e.matches(code) for e in self._excludes)
            if len(self._seen) > _CACHED_AT_MOST:
                self._seen.clear()
            self._seen[code] = answer
        return answer

    def matches_text(self, text: str | None) -> bool:
        """Whether a phrase of the set stands in the text as whole words, whatever case, punctuation and hyphens.

        A text that holds an excluded phrase does not match.
        """
        if not text or not self._phrases:
            return False
        readings = (f" {fold(text)} ", f" {fold(_HYPHENS.sub('', text))} ")  # non-bacterial: two words, or one

        def stands(phrase: str) -> bool:
            return any(f" {phrase} " in reading for reading in readings)

        return any(map(stands, self._phrases)) and not any(map(stands, self._not_phrases))

    def search_tokens(self) -> list[tuple[str, str]]:
        """List the (system URI, code) pairs of a FHIR token search: every URI of each system, every spelling listed.

        The spellings are those of `expansion.contains` and the concepts and filter values of `compose`; text is none.
        """
        return list(self._tokens)


@dataclass(frozen=True, slots=True)
class _Target:
    code: str
    displays: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CodeMap:
    """A concept map from the codes of several systems to one short vocabulary."""

    url: str
    _systems: Systems
    _targets: Mapping[tuple[str, str], tuple[_Target, ...]]

    @classmethod
    def of(cls, resource: Mapping[str, Any], systems: Systems) -> "CodeMap":
        """Build from a ConceptMap (R4). A code that stands twice is read where it stands first.

        `target.dependsOn` with the property `…/display-contains` makes a target valid only beside a display that holds
        the phrase: for codes that public data use with another meaning. Raises UsageError for any other `dependsOn`,
        for `group.unmapped` and for a group without source, which this reader would have to ignore.
        """
        url = resource.get("url", "without url")
        targets: dict[tuple[str, str], tuple[_Target, ...]] = {}
        for group in resource.get("group", ()):
            if not group.get("source") or "unmapped" in group:
                raise UsageError(
                    f"ConceptMap {url}: a group needs a source and may not have unmapped: correct the file"
                )
            for element in group.get("element", ()):
                code = systems.read(Coding(group["source"], element.get("code")))
                found = tuple(_target(url, t) for t in element.get("target", ()) if t.get("code"))
                if code is not None:
                    targets.setdefault((code.system, code.code), found)
        return cls(url, systems, targets)

    def translate(self, coding: Coding) -> str | None:
        """Give the target code of a coding; None where the map has none. Qualifiers are not looked at."""
        code = self._systems.read(coding)
        return None if code is None else self._of((code.system, code.code), coding.display)

    def translate_qualifiers(self, coding: Coding) -> tuple[str, ...]:
        """Give the target codes of a coding's qualifiers (`+TUL1`, SNOMED refinements), in order."""
        code = self._systems.read(coding)
        found = () if code is None else (self._of(qualifier, coding.display) for qualifier in code.qualifiers)
        return tuple(one for one in found if one is not None)

    def translate_text(self, text: str) -> str | None:
        """The target of the first phrase of the local text system that stands in a free text as whole words."""
        words = f" {fold(text)} "
        for (system, phrase), targets in self._targets.items():
            if system == TEXT and f" {fold(phrase)} " in words:
                return targets[0].code
        return None

    def targets(self) -> frozenset[str]:
        """List every code the map can answer."""
        return frozenset(target.code for found in self._targets.values() for target in found)

    def _of(self, key: tuple[str, str], display: str | None) -> str | None:
        text = f" {fold(display or '')} "
        for target in self._targets.get(key, ()):
            if not target.displays or any(f" {phrase} " in text for phrase in target.displays):
                return target.code
        return None


def extension(resource: Mapping[str, Any], url: str) -> str | None:
    """Give the text of the first extension with this URL, whatever primitive type it has; None without one."""
    for one in resource.get("extension", ()):
        if one.get("url") == url:
            return next((str(value) for name, value in one.items() if name.startswith("value")), None)
    return None


def fold(text: str) -> str:
    """Prepare text for comparison: case, punctuation and hyphens folded, one space between words."""
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _uri_of(unique_id: Mapping[str, Any]) -> str:
    value = str(unique_id.get("value", ""))
    return f"urn:oid:{value}" if unique_id.get("type") == "oid" and not value.startswith("urn:") else value


def _key(uri: str) -> str:
    """Reduce the URI to what makes a difference: without scheme, case, version, trailing slash, `urn:oid:` before an OID."""
    key = _SCHEME.sub("", uri.strip().lower()).partition("|")[0].rstrip("/")
    return f"urn:oid:{key}" if _BARE_OID.fullmatch(key) else key


def _read_code(form: str | None, system: str, text: str) -> Code:
    if form == "icd-10":
        head, qualifiers = _suffixes(text, "+", SKS)
        return Code(system, _DANISH_D.sub("", head), qualifiers)
    if form == "sks":
        head, qualifiers = _suffixes(text, "+", SKS)
        if drug := _SKS_ATC.fullmatch(head):
            return Code(ATC, drug[1], qualifiers)
        if _SKS_DIAGNOSIS.fullmatch(head):
            return Code(SKS_DIAGNOSES, _DANISH_D.sub("", head), qualifiers)
        return Code(system, head, qualifiers)
    if form == "atc":
        return Code(system, _NOT_CODE.sub("", text.upper()))
    if form == "snomed":
        return _snomed(system, text)
    if form == "icd-11":
        head, *rest = re.split(r"[&/]", text.upper())
        return Code(system, head, tuple((system, part) for part in rest if part))
    if form == "curie":
        return Code(system, _CURIE.sub("", text).upper())
    return Code(system, text)


def _suffixes(text: str, mark: str, system: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    head, *rest = text.upper().split(mark)
    cleaned = (_NOT_CODE.sub("", part) for part in rest)
    return _NOT_CODE.sub("", head), tuple((system, part) for part in cleaned if part)


def _snomed(system: str, text: str) -> Code:
    """Focus concept and values of a compositional expression; attribute names and terms between bars are left out."""
    bare = _SNOMED_TERM.sub(" ", text)
    values = _SNOMED_ID.findall(_SNOMED_ATTRIBUTE.sub(" ", bare))
    if not values:
        return Code(system, text)
    return Code(system, values[0], tuple((system, value) for value in values[1:]))


def _equal(code: Code, wanted: Code) -> bool:
    """Tell whether it is the same code, with every qualifier the value set asks for."""
    return code.system == wanted.system and code.code == wanted.code and set(wanted.qualifiers) <= set(code.qualifiers)


def _include(url: str, part: Mapping[str, Any], systems: Systems, resolve: Callable[[str], CodeSet] | None) -> _Include:
    system = systems.canonical(part.get("system"))
    named = part.get("valueSet", ())
    if system is None and not named:
        raise UsageError(f"ValueSet {url}: an include names neither a system nor a value set: add one")
    if named and resolve is None:
        raise UsageError(f"ValueSet {url} includes another value set, which is not at hand")

    def read(code: str) -> Code:
        found = systems.read(Coding(part.get("system"), code))
        if found is None:
            raise UsageError(f"ValueSet {url}: a concept or filter of {system} has no code: correct the file")
        return found

    prefixes: list[Code] = []
    equals: list[Code] = []
    for one in part.get("filter", ()):
        op, code = one.get("op"), read(one.get("value", ""))
        if op not in ("is-a", "=") or one.get("property") not in ("concept", "code"):
            raise UsageError(f"ValueSet {url}: only filters of concept by is-a or = can be answered, not {op}")
        (prefixes if op == "is-a" and systems.hierarchic(code.system) else equals).append(code)
    concepts = part.get("concept")
    return _Include(
        system=system,
        codes=None if concepts is None else frozenset(read(concept.get("code", "")) for concept in concepts),
        prefixes=tuple(prefixes),
        equals=tuple(equals),
        sets=tuple(resolve(name) for name in named) if resolve else (),
    )


def _tokens(
    resource: Mapping[str, Any], systems: Systems, resolve: Callable[[str], CodeSet] | None
) -> tuple[tuple[str, str], ...]:
    listed: list[tuple[str, str]] = []
    for part in resource.get("compose", {}).get("include", ()):
        system = part.get("system")
        if system and systems.canonical(system) != TEXT:
            listed += [(system, concept["code"]) for concept in part.get("concept", ())]
            listed += [(system, one["value"]) for one in part.get("filter", ())]
    listed += [(one["system"], one["code"]) for one in resource.get("expansion", {}).get("contains", ())]
    tokens = dict.fromkeys((uri, code) for system, code in listed for uri in systems.aliases(system))
    for part in resource.get("compose", {}).get("include", ()):
        if resolve and not part.get("system"):
            for name in part.get("valueSet", ()):
                tokens |= dict.fromkeys(resolve(name).search_tokens())
    return tuple(tokens)


def _target(url: str, target: Mapping[str, Any]) -> _Target:
    conditions = target.get("dependsOn", ())
    if any(one.get("property") != DISPLAY_CONTAINS for one in conditions):
        raise UsageError(f"ConceptMap {url}: dependsOn can only be {DISPLAY_CONTAINS}: correct the file")
    return _Target(target["code"], tuple(fold(one.get("value", "")) for one in conditions))


def is_subsetted(resource: Mapping[str, Any]) -> bool:
    """Whether a resource says that it is only a part of itself (FHIR R4 search, `_summary` and `_elements`)."""
    meta = resource.get("meta")
    tags = meta.get("tag") if isinstance(meta, dict) else None
    found = tags if isinstance(tags, list) else []
    return any(isinstance(tag, dict) and tag.get("code") == "SUBSETTED" for tag in found)
