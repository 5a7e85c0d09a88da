"""What the engine sees of all lines of NDJSON files at once, so that only those that may matter are read one by one.

A population is read once, by the engine, in a narrow schema that holds what decides whose a line is and what diagnosis it
tells; from each line stay its type, hashes of its id and of the patient it is about, and little else. From that table come
the lines to be read strictly: always more of them than needed, never fewer. Ids are compared by hash here and by text there.

The engine's JSON is that of the strict reader, and a line it does not take leaves the file to that. But it takes NaN and
Infinity, numbers out of range or of more than 64 digits, a comma behind the last member, nesting deeper than 200, and a
member named twice among those that it is not asked for. So of a line that is nobody's in the study such a fault is not
looked for: it is counted, and nothing else is made of it. What decides whose a line is, is read as strictly as it always is.
The statements are in the words of DuckDB: a source is surveyed on the embedded engine, whatever builds the tables.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crmo_fhir.engine import DuckDB, literal
from crmo_fhir.fhir import strict
from crmo_fhir.model.records import READ_TYPES
from crmo_fhir.source.pieces import OLD_MEMBERS, OLD_TYPES, R4_MEMBERS, R5_MEMBERS, File, is_utf8

_SIMPLE_ID = r'"[A-Za-z0-9.\-]{1,64}"'
_SIMPLE_REFERENCE = r'"Patient/[A-Za-z0-9.\-]{1,64}"'
_NAME = r'^\["([A-Za-z0-9.\-]+)"'
_VALUES = r'"value":"((?:[^"\\]|\\.)*)"'
_REFERENCE = "STRUCT(reference JSON, identifier JSON)"
_DECIDING = {"meta": "STRUCT(tag JSON)", "subject": _REFERENCE, "patient": _REFERENCE}

SURVEYED_FROM = 32 * 1024 * 1024
"""A source with less of NDJSON than this (bytes, those of gzip files eightfold) is read line by line, each line strictly."""

Lines = Mapping[str, Mapping[int, str | None]]
"""Per file the numbers of lines, each with the type under which it was counted, or None where it was not."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Lines of a file that are alike: suspect or not, of one type (`read`: one that is read; suspects of others have none)."""

    file: int
    suspect: bool
    read: bool
    kind: str
    version: int
    count: int
    first: int
    last: int


_OWN_MEMBERS = {
    "Condition": ("code", "verificationStatus", "clinicalStatus"),
    "Patient": ("identifier", "link"),
}


def columns_of(kinds: Iterable[str] = READ_TYPES) -> dict[str, str]:
    """What is read of each line of these types: {member: type in the engine's words}; JSON is the text of what stands there."""
    tables = (_OWN_MEMBERS, OLD_MEMBERS, R4_MEMBERS, R5_MEMBERS)
    named = {member for table in tables for kind in kinds for member in table.get(kind, ())}
    return dict.fromkeys(sorted((named | {"resourceType", "id"}) - set(_DECIDING)), "JSON") | _DECIDING


def is_large(files: Iterable[File]) -> bool:
    """Whether the NDJSON of a source is so much that the engine looks at it first."""
    return sum(file.stamp[0] * (8 if file.packed else 1) for file in files if file.lines) >= SURVEYED_FROM


class Survey:
    """The lines of NDJSON files in a table of an open engine: those of a file are rows one after the other, in their order.

    Rows go by their number in that table. Several cores read a file, and what they read is put in order again where no more
    is done to each line than to look at it; so the statement that reads has no join, and numbers nothing.
    """

    def __init__(self, engine: DuckDB) -> None:
        """Begin with no file."""
        self._engine = engine
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._groups: list[_Group] = []
        self._starts: dict[int, int] = {}
        self._hashes: dict[int, int] = {}
        kinds = ", ".join(literal(f'"{kind}"') for kind in READ_TYPES)
        engine.ask(f"CREATE TYPE kind AS ENUM ({kinds})")
        engine.ask(
            "CREATE TABLE lines (file INTEGER, kind kind, other VARCHAR, id UBIGINT, about UBIGINT, "
            "odd STRUCT(reference VARCHAR, identifier VARCHAR), more VARCHAR, suspect BOOLEAN, version UTINYINT)"
        )

    # ---------------------------------------------------------------------------------------------------- reading

    def read(self, paths: Mapping[str, Path], *, kind: str, packed: bool) -> list[str]:
        """Read files by name (`packed`: gzip); gives the names of those of which the engine could read every line.

        `kind` is the type that all of their lines seem to have, if there is one: then less has to be read of each, and all
        of it only where that turns out to be wrong.
        """
        names = [name for name, path in paths.items() if is_utf8(path)]
        for kinds in ([(kind,)] if kind else []) + [READ_TYPES]:
            if names and self._read(names, [paths[name] for name in names], kinds, packed=packed):
                return names
            if len(names) > 1:  # look for the one that is different
                half = len(names) // 2
                halves = ({name: paths[name] for name in some} for some in (names[:half], names[half:]))
                return [name for some in halves for name in self.read(some, kind=kind, packed=packed)]
        return []

    def _read(self, names: Sequence[str], paths: Sequence[Path], kinds: Sequence[str], *, packed: bool) -> bool:
        statement = self._statement(kinds).replace("{first}", str(len(self._names)))
        if self._engine.take_in(statement, paths, columns_of(kinds), packed=packed) is None:
            return False
        self._numbers.update((name, number) for number, name in enumerate(names, len(self._names)))
        self._names += names
        return True

    def _statement(self, kinds: Sequence[str]) -> str:
        r4, r5 = (
            {kind: [f'"{one}" IS NOT NULL' for one in table[kind]] for kind in kinds if kind in table}
            for table in (R4_MEMBERS, R5_MEMBERS)
        )
        old = {kind: found for kind in kinds if (found := _old(kind))}
        more = "NULL"
        if "Condition" in kinds:
            more = "CASE WHEN kind = '\"Condition\"' THEN code END"
        if "Patient" in kinds:
            told_of = ", ',', ".join(f"coalesce({one}, 'null')" for one in ("id", "identifier", "link"))
            more = f"CASE WHEN kind = '\"Patient\"' THEN concat('[', {told_of}, ']') ELSE {more} END"
        seen = "kind"
        if len(kinds) == 1:
            another = f"kind <> '\"{kinds[0]}\"'" if kinds[0] in READ_TYPES else "kind IS NOT NULL"
            seen = f"CASE WHEN {another} THEN error('another type') ELSE kind END"
        apart = " ".join(
            f"WHEN '\"{kind}\"' THEN true" for kind in ("Bundle", "Parameters", "OperationOutcome", *OLD_TYPES)
        )
        simple = f"regexp_full_match(whose.reference, {literal(_SIMPLE_REFERENCE)})"
        suspect = f"""CASE WHEN kind IS NULL
                THEN NOT coalesce(regexp_full_match(other, '"[A-Za-z]{{1,64}}"'), false)
                    OR CASE other {apart} ELSE false END
                ELSE NOT coalesce(regexp_full_match(id, {literal(_SIMPLE_ID)}), false)
                    OR coalesce(contains(meta.tag, 'SUBSETTED') OR contains(meta.tag, '\\'), false)
                    OR coalesce({_by_kind(old)}, false) END"""
        return f"""INSERT INTO lines
            SELECT {{first}} + file_index, {seen}, other,
                hash(id),
                CASE WHEN simple THEN hash(whose.reference) END,
                CASE WHEN whose IS NOT NULL AND NOT simple THEN whose END,
                {more},
                {suspect},
                CASE WHEN {_by_kind(r4)} THEN 4 ELSE 0 END + CASE WHEN {_by_kind(r5)} THEN 1 ELSE 0 END
            FROM (SELECT *, CASE WHEN kind IS NULL THEN "resourceType" END AS other, coalesce({simple}, false) AS simple FROM
                (SELECT *, coalesce(subject, patient) AS whose, TRY_CAST(CAST("resourceType" AS VARCHAR) AS kind) AS kind
                FROM ndjson_records))"""  # noqa: S608

    # ---------------------------------------------------------------------------------------------------- its files

    def lines_of(self) -> dict[str, int]:
        """How many lines each file has that was read, and stands in the table in one piece; then no more is read."""
        self._engine.ask("SET threads = 1")  # the others go, and with them what each held to read with
        self._engine.ask("RESET threads")
        rows = self._engine.ask(
            """SELECT file, suspect, kind IS NOT NULL AS read, coalesce(kind::VARCHAR, CASE WHEN suspect THEN '' ELSE other END),
                version, count(*), min(rowid), max(rowid) FROM lines GROUP BY ALL"""
        )
        self._groups = [_Group(*row) for row in rows]
        counts: Counter[int] = Counter()
        ends: dict[int, int] = {}
        for group in self._groups:
            counts[group.file] += group.count
            self._starts[group.file] = min(group.first, self._starts.get(group.file, group.first))
            ends[group.file] = max(group.last, ends.get(group.file, 0))
        return {
            self._names[file]: count for file, count in counts.items() if ends[file] - self._starts[file] + 1 == count
        }

    def settle(self, names: Iterable[str]) -> None:
        """Go on with these of the files that were read."""
        numbers = {self._numbers[name] for name in names}
        where = f"WHERE file IN ({', '.join(map(str, sorted(numbers)))})" if numbers else "WHERE false"
        self._names = [name if number in numbers else "" for number, name in enumerate(self._names)]
        self._groups = [group for group in self._groups if group.file in numbers]
        self._engine.ask(f"CREATE VIEW told AS SELECT rowid AS line, * FROM lines {where}")  # noqa: S608

    def pick(self, rows: Iterable[int]) -> Lines:
        """Take rows to be read strictly; gives those that were not taken before."""
        fresh = set(rows) - self._hashes.keys()
        if not fresh:
            return {}
        self._hold("asked", "BIGINT", fresh)
        told = self._engine.ask(
            "SELECT line, file, CASE WHEN suspect THEN NULL ELSE coalesce(kind::VARCHAR, other) END, id FROM told "
            "WHERE line IN (SELECT value FROM asked)"
        )
        found: dict[str, dict[int, str | None]] = defaultdict(dict)
        for line, file, kind, own in told:
            self._hashes[line] = own
            found[self._names[file]][line - self._starts[file] + 1] = None if kind is None else kind.strip('"')
        return found

    def confirm(self, ids: Mapping[str, Mapping[int, str]]) -> bool:
        """Whether lines, {file: {number: simple id, or empty}}, are those that were taken for them."""
        said = {
            self._starts[self._numbers[name]] + number - 1: _json_id(one)
            for name, found in ids.items()
            for number, one in found.items()
            if one
        }
        ((hashes,),) = self._engine.ask(
            "SELECT list_transform(?::VARCHAR[], lambda one: hash(one))", [list(said.values())]
        )
        return bool(hashes == [self._hashes.get(line) for line in said])

    # ---------------------------------------------------------------------------------------------------- what it tells

    def counts(self) -> dict[str, Counter[str]]:
        """How many resources of each type each file holds, of the lines that are not to be read strictly in any case."""
        found: dict[str, Counter[str]] = {name: Counter() for name in self._names if name}
        for group in self._groups:
            if not group.suspect:
                found[self._names[group.file]][group.kind.strip('"')] += group.count
        return found

    def versions(self) -> set[str]:
        """The FHIR versions that members tell of."""
        found = {group.version for group in self._groups if not group.suspect}
        return {f"{bit}.0" for bit, values in (("4", {4, 5}), ("5", {1, 5})) if found & values}

    def unsure(self) -> list[int]:
        """The rows to be read strictly in any case, and the first of each type in each file."""
        firsts: dict[tuple[int, str], int] = {}
        for group in self._groups:
            if group.read:
                key = group.file, group.kind
                firsts[key] = min(group.first, firsts.get(key, group.first))
        return self._rows("SELECT line FROM told WHERE suspect") + list(firsts.values())

    def conditions(self, counts: Callable[[str], bool]) -> list[int]:
        """The rows of Conditions whose `code` (its JSON text) counts; asked once for each text there is."""
        ours = "kind = '\"Condition\"' AND NOT suspect AND more IS NOT NULL"
        codes = self._engine.ask(f"SELECT DISTINCT more FROM told WHERE {ours}")  # noqa: S608
        self._hold("codes", "VARCHAR", [code for (code,) in codes if counts(code)])
        return self._rows(f"SELECT line FROM told WHERE {ours} AND more IN (SELECT value FROM codes)")  # noqa: S608

    def patients(self) -> list[tuple[str, str]]:
        """The (file, id) of every Patient; from here on `persons` can be asked."""
        self._engine.ask(
            f"""CREATE TABLE patients AS SELECT line, file, id, suspect, regexp_extract(more, {literal(_NAME)}, 1) AS name,
                list_transform(said, lambda one: trim(one)) AS identifiers,
                contains(more, 'replace') OR contains(more, '\\')
                    OR coalesce(list_bool_or(list_transform(said, lambda one: strlen(one) <> length(one))), false) AS unsure
            FROM (SELECT *, regexp_extract_all(more, {literal(_VALUES)}, 1) AS said FROM told WHERE kind = '"Patient"')"""  # noqa: S608
        )
        rows = self._engine.ask("SELECT file, name FROM patients WHERE NOT suspect")
        return [(self._names[file], name) for file, name in rows]

    def persons(self, ids: Iterable[str], identifiers: Iterable[str]) -> list[int]:
        """The rows of Patients with one of these ids, or an identifier of this value, and of those that say they were merged."""
        self._hold("ids", "VARCHAR", map(_json_id, ids))
        self._hold("identifiers", "VARCHAR", identifiers)
        return self._rows(
            "SELECT line FROM patients WHERE unsure OR id IN (SELECT hash(value) FROM ids) "
            "OR list_has_any(identifiers, (SELECT coalesce(list(value), []) FROM identifiers))"
        )

    def about(self, ids: Iterable[str], is_ours: Callable[[str, Any], bool]) -> list[int]:
        """The rows about these patients; where a reference is none to `Patient/ID`, `is_ours(file, reference)` says."""
        self._hold("ids", "VARCHAR", map(_json_id, ids))
        rows = self._rows("""SELECT line FROM told WHERE about IN (SELECT hash('"Patient/' || value[2:]) FROM ids)""")
        odd = self._engine.ask("SELECT DISTINCT file, odd.reference, odd.identifier FROM told WHERE odd IS NOT NULL")
        wanted = [one for one in odd if (said := _reference(*one[1:])) is None or is_ours(self._names[one[0]], said)]
        if wanted:
            self._engine.ask("CREATE OR REPLACE TEMP TABLE odds (file BIGINT, reference VARCHAR, identifier VARCHAR)")
            for one in wanted:
                self._engine.ask("INSERT INTO odds VALUES (?, ?, ?)", one)
            rows += self._rows(
                "SELECT line FROM told JOIN odds ON told.file = odds.file AND odd.reference IS NOT DISTINCT FROM reference "
                "AND odd.identifier IS NOT DISTINCT FROM identifier WHERE odd IS NOT NULL"
            )
        return rows

    def copies(self, keys: Iterable[tuple[str, str]]) -> list[int]:
        """The rows of these (type, id)."""
        self._engine.ask("CREATE OR REPLACE TEMP TABLE keys (kind VARCHAR, text VARCHAR)")
        pairs = sorted(set(keys))
        kinds, ids = [f'"{kind}"' for kind, _ in pairs], [_json_id(one) for _, one in pairs]
        self._engine.ask("INSERT INTO keys SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[])", [kinds, ids])
        return self._rows(
            "SELECT line FROM told JOIN keys ON CAST(told.kind AS VARCHAR) = keys.kind AND id = hash(text)"
        )

    def count_nobodys(
        self,
        bases: Mapping[str, str | None],
        others: Iterable[tuple[str | None, str]],
        is_nobodys: Callable[[str, Any], bool],
    ) -> Counter[str]:
        """Per type, how many resources refer to no Patient, of the rows not picked.

        `bases` are the service bases of the files, `others` the (base, id) of Patients known besides; of a reference that is
        none to `Patient/ID`, `is_nobodys(file, reference)` says.
        """
        number = {base: index for index, base in enumerate({*bases.values(), *(base for base, _ in others)})}
        self._engine.ask(
            "CREATE TEMP TABLE bases AS SELECT unnest(?::BIGINT[]) AS file, unnest(?::INTEGER[]) AS base",
            [[self._numbers[name] for name in bases], [number[base] for base in bases.values()]],
        )
        more = list(others)
        self._engine.ask(
            """CREATE TEMP TABLE known AS SELECT DISTINCT base, hash('"Patient/' || name || '"') AS about FROM patients
                JOIN bases USING (file) WHERE NOT suspect UNION SELECT base, hash('"Patient/' || text[2:]) FROM
                (SELECT unnest(?::INTEGER[]) AS base, unnest(?::VARCHAR[]) AS text)""",
            [[number[base] for base, _ in more], [_json_id(one) for _, one in more]],
        )
        self._hold("picked", "BIGINT", self._hashes)
        strangers = (
            "told WHERE kind NOT IN ('\"Patient\"', '\"Medication\"') AND line NOT IN (SELECT value FROM picked)"
        )
        found: Counter[str] = Counter()
        without = self._engine.ask(
            f"""SELECT kind, count(*) FROM (SELECT kind, about, base FROM (SELECT * FROM {strangers}) JOIN bases USING (file)
                WHERE odd IS NULL) AS one
            WHERE about IS NULL OR NOT EXISTS (FROM known WHERE known.about = one.about AND known.base = one.base)
            GROUP BY kind"""  # noqa: S608
        )
        odd = self._engine.ask(
            f"""SELECT file, odd.reference, odd.identifier, kind, count(*) FROM (SELECT * FROM {strangers})
                WHERE odd IS NOT NULL GROUP BY ALL"""  # noqa: S608
        )
        for kind, count in without:
            found[kind.strip('"')] += count
        for file, reference, identifier, kind, count in odd:
            said = _reference(reference, identifier)
            if said is not None and is_nobodys(self._names[file], said):
                found[kind.strip('"')] += count
        return found

    def _rows(self, query: str) -> list[int]:
        return [row for (row,) in self._engine.ask(query)]

    def _hold(self, table: str, kind: str, values: Iterable[Any]) -> None:
        self._engine.ask(
            f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT DISTINCT unnest(?::{kind}[]) AS value", [list(values)]
        )


def count_sure(
    engine: DuckDB, path: Path, kind: str, columns: Mapping[str, str], fits: str, *, packed: bool
) -> int | None:
    """How many records of a type an NDJSON file holds, where each line surely is one without fault; else None.

    `fits` is a condition on `columns` that says so of what is in them; here are the type, the id, the version and whom a record
    is about. Lines that are blank do not count.
    """
    sure = [
        f"""coalesce("resourceType" = '"{kind}"' AND regexp_full_match(id, {literal(_SIMPLE_ID)}), false)""",
        *(f"NOT coalesce({one}, false)" for one in _old(kind)),
        f"({fits})",
    ]
    found = engine.take_in(
        f"SELECT count(*), count(*) FILTER (WHERE {' AND '.join(sure)}) FROM ndjson_records",  # noqa: S608
        [path],
        {**columns_of([kind]), **columns},
        packed=packed,
    )
    return found[0][0] if found and found[0][0] == found[0][1] else None


def is_simple_id(one: str) -> bool:
    """Whether an id is one of those that are compared by hash."""
    return re.fullmatch(_SIMPLE_ID.strip('"'), one) is not None


def is_simple(reference: str) -> bool:
    """Whether a reference is one of those that are compared by hash alone."""
    return re.fullmatch(_SIMPLE_REFERENCE.strip('"'), reference) is not None


def _reference(reference: str | None, identifier: str | None) -> dict[str, Any] | None:
    """A Reference of the texts of its members; None where the strict reader would not take them."""
    told = {"reference": reference, "identifier": identifier}
    try:
        return {name: _value(text) for name, text in told.items() if text is not None}
    except ValueError:
        return None


def _value(text: str) -> Any:
    plain = text[:1] == '"' and "\\" not in text
    return text[1:-1] if plain else strict.parse(text.encode())


def _json_id(one: str) -> str:
    return f'"{one}"'


def _old(kind: str) -> list[str]:
    """The conditions by which a record of a type is of a FHIR version that is not read."""
    found = [f'"{one}" IS NOT NULL' for one in OLD_MEMBERS.get(kind, ())]
    if kind == "Condition":
        found += [f"starts_with({one}::VARCHAR, '\"')" for one in ('"verificationStatus"', '"clinicalStatus"')]
    return found


def _by_kind(conditions: Mapping[str, Iterable[str]]) -> str:
    if not conditions:
        return "false"
    cases = " ".join(f"WHEN '\"{kind}\"' THEN {' OR '.join(found)}" for kind, found in conditions.items())
    return f"CASE kind {cases} ELSE false END"
