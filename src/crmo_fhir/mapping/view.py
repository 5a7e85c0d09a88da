"""A SQL-on-FHIR ViewDefinition as a table expression: the typed paths of `fhirpath` become one Ibis query.

Every select becomes an array of row structs inside the record (forEach maps, unionAll concatenates, siblings multiply),
and one unnest at the end makes the rows: each file is read once, and the same expression runs on any Ibis engine.
Source: SQL on FHIR v2, ViewDefinition processing.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.operations as ops
import pandas as pd

from crmo_fhir.engine import Engine
from crmo_fhir.errors import UsageError
from crmo_fhir.mapping.fhirpath import (
    LARGEST_INTEGER,
    Boundary,
    Descend,
    Exists,
    Field,
    Filter,
    Focus,
    Join,
    Literal,
    LiteralSyntax,
    Node,
    Not,
    Operation,
    PathError,
    Pick,
    ReferenceKey,
    ResourceKey,
    RowIndex,
    Scope,
    Several,
    boolean_route,
    descend_routes,
    kind_of,
    parse,
    resource_scope,
    single_route,
    type_path,
)
from crmo_fhir.mapping.query import run_by_base
from crmo_fhir.mapping.schema import INTEGERS, NUMBER, Shape, beginning_of, is_primitive

_DEEPEST = 10
"""Levels a `repeat` goes down; a record that is deeper stops the run."""
_YEAR = r"(?:\d{3}[1-9]|\d\d[1-9]0|\d[1-9]00|[1-9]000)"
_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = (
    rf"(?:{_YEAR}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|{_YEAR}-(?:0[13-9]|1[0-2])-(?:29|30)"
    rf"|{_YEAR}-(?:0[13578]|1[02])-31|{_LEAP_YEAR}-02-29)"
)
_DATE = rf"(?:{_YEAR}(?:-(?:0[1-9]|1[0-2]))?|{_DAY})"
_TIME = r"(?:[01]\d|2[0-3])(?::[0-5]\d(?::(?:[0-5]\d|60)(?:\.\d+)?)?)?"
_ZONE = r"(Z|[+-]\d\d:\d\d)\z"
_WHOLE = {
    "date": rf"^(?:{_DATE}|{_DAY}T{_TIME}(?:Z|[+-](?:0\d|1[0-3]):[0-5]\d|[+-]14:00)?)\z",
    "time": rf"^{_TIME}\z",
}
"""The texts of FHIR's dates and times; also of those to the hour or minute, and without offset, as FHIRPath writes them.

`\\z`, since `$` means another end to each engine where a text ends in a line break."""
_LONGEST_TIME = 40
_NUMBER = r"^(-?)(\d+)(?:\.(\d+))?(?:[eE]\+?(-?\d+))?\z"
_MOST_DIGITS = 38
"""Of the exact numbers of every engine."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SELECT_KEYS = frozenset(["column", "select", "forEach", "forEachOrNull", "repeat", "unionAll", "extension", "id"])
_KIND_TYPES = {"boolean": "boolean", "integer": "int64", "number": "float64"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, its value and whether it is a list."""

    name: str
    value: Node
    collection: bool

    @property
    def kind(self) -> str:
        """What its values are: "boolean", "integer", "number" or "text"."""
        return _output_kind(self.value)


@dataclass(frozen=True, slots=True)
class Select:
    """One select with its paths typed; `number` names its iteration, `each` holds what it iterates over."""

    columns: tuple[Column, ...] = ()
    selects: "tuple[Select, ...]" = ()
    union: "tuple[Select, ...]" = ()
    each: tuple[Node, ...] = ()
    number: int = 0
    or_null: bool = False

    def all_columns(self) -> Iterator[Column]:
        """List the columns in the order of the result; those of a unionAll are those of its first branch."""
        yield from self.columns
        for select in self.selects:
            yield from select.all_columns()
        if self.union:
            yield from self.union[0].all_columns()


@dataclass(frozen=True, slots=True)
class CompiledView:
    """A ViewDefinition whose paths are known to exist. `columns` in order; `shapes` is what is read of each record."""

    name: str
    resource: str
    columns: tuple[str, ...]
    shapes: Mapping[str, Shape]
    select: Select
    where: tuple[Node, ...]
    uses_base: bool

    @property
    def schema(self) -> dict[str, str]:
        """Column and type of what is read of each record."""
        return {name: shape.column_type() for name, shape in self.shapes.items()}

    @property
    def told(self) -> dict[str, str]:
        """The same for a reader that checks it with `fits`."""
        return {name: shape.column_type(as_told=True) for name, shape in self.shapes.items()}

    @property
    def fits(self) -> str:
        """The condition on columns `told` that what the view reads of a record surely has the shape FHIR gives it."""
        return " AND ".join(shape.fits(f'"{name}"') for name, shape in self.shapes.items())

    def bind(self, table: ibis.Table, base: str | None) -> ibis.Table:
        """Give the rows of the view over a table of `schema`, whose records' own service base is `base` (None: unknown)."""
        return _Builder(self, table, base).table_of_rows()

    @property
    def collections(self) -> frozenset[int]:
        """The places of the columns whose values are lists."""
        return frozenset(i for i, column in enumerate(self.select.all_columns()) if column.collection)

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each column, in order; "text" where the parts of a unionAll differ in it."""
        kinds: dict[str, str] = {}
        for column in _columns_of(self.select):
            known = kinds.setdefault(column.name, column.kind)
            kinds[column.name] = known if known == column.kind else "text"
        return {name: kinds[name] for name in self.columns}

    @property
    def types(self) -> dict[str, str]:
        """The same for a typed table: decimals, which come as the text of a number, are of the kind "number"."""
        others = {column.name for column in _columns_of(self.select) if kind_of(column.value) != "decimal"}
        return {name: kind if name in others else "number" for name, kind in self.kinds.items()}

    def query(self, engine: Engine, base: str | None) -> str:
        """The query for records whose own service base is `base`. Raises UsageError for a view that is too deep for one."""
        try:
            return engine.compile(self.bind(engine.table(self.schema), base))
        except RecursionError:
            raise UsageError(
                f"view {self.name}: its paths or selects are too long or too deep for one query; split it"
            ) from None


# --- reading the definition ----------------------------------------------------------------------------------------


def compile_view(view: Mapping[str, Any]) -> CompiledView:
    """Check and compile a ViewDefinition (parsed JSON).

    Raises UsageError, naming view and column or clause, for a wrong structure or a path that does not exist.
    """
    name = view.get("name") if isinstance(view.get("name"), str) else None
    reader = _Reader(f"view {name}" if name else "the view", {})
    resource = view.get("resource")
    if not isinstance(resource, str) or not resource:
        raise UsageError(f"{reader.where}: `resource` is missing; name the resource type it reads")
    reader.constants.update(reader.read_constants(_listed(view, "constant", reader.where)))
    with_scope = reader.checked(lambda: resource_scope(resource), "resource")
    body = _listed(view, "select", reader.where)
    if not body:
        raise UsageError(f"{reader.where}: `select` is missing; give at least one column")
    select = Select(selects=tuple(reader.read_select(each, with_scope) for each in body))
    where = tuple(reader.read_where(clause, with_scope) for clause in _listed(view, "where", reader.where))
    columns = tuple(column.name for column in select.all_columns())
    if not columns:
        raise UsageError(f"{reader.where}: it has no column")
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise UsageError(f"{reader.where}: the column {twice[0]} is there twice; give each its own name")
    nodes = [*_nodes_of(select), *where]
    uses_base = any(isinstance(node, ReferenceKey) for top in nodes for node in _walk(top))
    return CompiledView(name or resource, resource, columns, _read_shapes(nodes), select, where, uses_base)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the parts of one view; `where` names it in errors."""

    where: str
    constants: dict[str, LiteralSyntax]

    def checked(self, work: Callable[[], Any], place: str) -> Any:
        try:
            return work()
        except PathError as error:
            raise UsageError(f"{self.where}, {place}: {error}") from None
        except RecursionError:
            raise UsageError(f"{self.where}, {place}: the path is too long or too deep; split it") from None

    def routes(self, path: object, scope: Scope) -> tuple[Node, ...]:
        if not isinstance(path, str):
            raise PathError("the path is missing or no text")
        return type_path(parse(path, self.constants), scope)

    def read_constants(self, constants: list[Any]) -> dict[str, LiteralSyntax]:
        found: dict[str, LiteralSyntax] = {}
        for constant in constants:
            name = constant.get("name") if isinstance(constant, dict) else None
            values = [key for key in constant if key.startswith("value")] if isinstance(constant, dict) else []
            if not isinstance(name, str) or not _NAME.fullmatch(name) or len(values) != 1:
                raise UsageError(f"{self.where}: a constant needs a name and exactly one value[x]")
            fhir_type = values[0][5:6].lower() + values[0][6:]
            value = _of_type(constant[values[0]], fhir_type)
            if value is None:
                raise UsageError(f"{self.where}: the constant {name} must hold a plain value of the type {fhir_type}")
            found[name] = LiteralSyntax(value, fhir_type)
        return found

    def read_where(self, clause: object, scope: Scope) -> Node:
        path = clause.get("path") if isinstance(clause, dict) else None
        test: Node = self.checked(lambda: boolean_route(self.routes(path, scope), "a where"), f"where {path}")
        return test

    def read_select(self, body: object, scope: Scope) -> Select:
        if not isinstance(body, dict):
            raise UsageError(f"{self.where}: a select must be an object")
        if unknown := sorted(key for key in set(body) - _SELECT_KEYS if not key.startswith("_")):
            raise UsageError(f"{self.where}: a select has no `{unknown[0]}`")
        iterators = [key for key in ("forEach", "forEachOrNull", "repeat") if key in body]
        if len(iterators) > 1:
            raise UsageError(f"{self.where}: one select has both {iterators[0]} and {iterators[1]}; keep one")
        each: tuple[Node, ...] = ()
        number = 0
        if iterators:
            path = body[iterators[0]]
            each = self.checked(lambda: self.iterated(iterators[0], path, scope), f"{iterators[0]} {path}")
            if each == (scope.resource,):  # one row, which stands on the resource as if there were no iteration
                each, scope = (), replace(scope, focus=each, level=None)
            else:
                number = scope.number(object())
                scope = replace(scope, focus=(Focus(number, each[0].types, each[0]),), level=number)
        union = tuple(self.read_select(part, scope) for part in _listed(body, "unionAll", self.where))
        self._check_union(union)
        return Select(
            columns=tuple(self.read_column(column, scope) for column in _listed(body, "column", self.where)),
            selects=tuple(self.read_select(part, scope) for part in _listed(body, "select", self.where)),
            union=union,
            each=each,
            number=number,
            or_null="forEachOrNull" in body,
        )

    def iterated(self, iterator: str, path: object, scope: Scope) -> tuple[Node, ...]:
        if iterator != "repeat":
            return _iterable(self.routes(path, scope))
        if not isinstance(path, list) or not path or not all(isinstance(each, str) for each in path):
            raise PathError("repeat takes a list of paths")
        return descend_routes((parse(each, self.constants) for each in path), scope)

    def _check_union(self, union: tuple[Select, ...]) -> None:
        branches = [[(column.name, column.collection) for column in part.all_columns()] for part in union]
        if any(branch != branches[0] for branch in branches):
            raise UsageError(f"{self.where}: the parts of a unionAll must have the same columns in the same order")

    def read_column(self, body: object, scope: Scope) -> Column:
        name = body.get("name") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(f"{self.where}: a column needs a name of letters, digits and _")
        if not isinstance(body.get("collection", False), bool):
            raise UsageError(f"{self.where}, column {name}: `collection` is true or false")
        value = self.checked(
            lambda: single_route(self.routes(body.get("path"), scope)), f"column {name}, path {body.get('path')}"
        )
        if value.many and body.get("collection") is False:
            raise UsageError(
                f"{self.where}, column {name}, path {body['path']}: may give several values, which `collection: false` "
                "rules out; take first(), or set `collection` to true"
            )
        return Column(name, value, body.get("collection") is True)


def _of_type(value: object, fhir_type: str) -> str | bool | int | Decimal | None:
    """Give the value of a constant; None where it is not what JSON holds for the type."""
    if isinstance(value, bool) or fhir_type == "boolean":
        return value if isinstance(value, bool) and fhir_type == "boolean" else None
    if fhir_type == "decimal" or fhir_type in INTEGERS:  # also as text, which R5 has for integer64
        number = Decimal(str(value)) if NUMBER.fullmatch(str(value)) else None
        if number is None or fhir_type == "decimal":
            return number
        return int(number) if number == number.to_integral_value() and abs(number) <= LARGEST_INTEGER else None
    return value if isinstance(value, str) else None


def _iterable(routes: tuple[Node, ...]) -> tuple[Node, ...]:
    """One node to iterate over."""
    if any(
        isinstance(route, Literal) or (isinstance(route, (Filter, Pick)) and _is_resource(route)) for route in routes
    ):
        raise PathError("forEach needs elements of the record")
    if len(routes) > 1:
        if all(is_primitive(name) for route in routes for name in route.types):
            return (single_route(routes),)
        options = sorted({name for route in routes for name in route.types})
        raise PathError(f"it may be {', '.join(options[:8])}; say which with ofType()")
    return routes


def _listed(body: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = body.get(key, [])
    if not isinstance(found, list):
        raise UsageError(f"{where}: `{key}` must be a list")
    return found


# --- what is read of each record -----------------------------------------------------------------------------------


def _nodes_of(select: Select) -> Iterator[Node]:
    yield from select.each
    for column in select.columns:
        yield column.value
    for part in (*select.selects, *select.union):
        yield from _nodes_of(part)


def _children(node: Node) -> tuple[Node, ...]:
    match node:
        case Field(source=source) | Pick(source=source) | Join(source=source) | Boundary(source=source):
            return (source,)
        case Filter(source, _, test):
            return (source, test)
        case Focus(origin=origin):
            return (origin,) if origin is not None else ()
        case Exists(sources):
            return sources
        case Several(parts):
            return parts
        case Not(operand):
            return (operand,)
        case Operation(_, left, right):
            return (left, right)
        case Descend(sources, _, steps):
            return (*sources, *steps)
        case ReferenceKey(reference):
            return (reference,)
    return ()


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in _children(node):
        yield from _walk(child)


def _read_shapes(nodes: list[Node]) -> dict[str, Shape]:
    root = Shape(fields={"resourceType": Shape()})
    for top in nodes:
        for node in _walk(top):
            if isinstance(node, ResourceKey):
                root.fields.setdefault("id", Shape())
            elif isinstance(node, Field):
                _shape_of(node, root)
    return dict(sorted(root.fields.items()))


def _shape_of(node: Node, root: Shape) -> Shape:
    """Find the shape at which the elements of the node stand, made if it is not there yet."""
    match node:
        case Focus(origin=None):
            return root
        case Focus(origin=origin) if origin is not None:
            return _shape_of(origin, root)
        case Filter(source=source) | Pick(source=source):
            return _shape_of(source, root)
        case Descend(sources):
            for source in sources:
                _shape_of(source, root).leaf = "JSON"  # a depth only the data know: no struct can hold it
            return Shape(leaf="JSON")
        case Field(source, name, types, listed, _, shapeless):
            owner = _shape_of(source, root)
            shape = owner.fields.setdefault(name, Shape())
            shape.listed = shape.listed or listed is not False
            if shapeless:
                shape.leaf = "JSON"
            elif types == ("boolean",):
                shape.leaf = "BOOLEAN"
            shape.begins, shape.whole = beginning_of(types), INTEGERS.issuperset(types)
            return shape
    raise PathError("this part of a record cannot be iterated over")


# --- the expression ------------------------------------------------------------------------------------------------


def _output_kind(node: Node) -> str:
    kind = kind_of(node)
    if kind in ("boolean", "integer"):
        return kind
    return "number" if kind == "decimal" and isinstance(node, (Operation, Literal, Boundary)) else "text"


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a select inside one record: `single` values of one row, times the rows of each array of structs."""

    single: dict[str, ibis.Value]
    arrays: tuple[ibis.Value, ...] = ()


@dataclass(slots=True)
class _Builder:
    """Builds the expression of one view over one table."""

    view: CompiledView
    table: ibis.Table
    base: str | None
    items: dict[int, ibis.Value] = field(default_factory=dict)
    indexes: dict[int, ibis.Value] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    known: dict[Node, ibis.Value] = field(default_factory=dict)
    names: int = 0

    def table_of_rows(self) -> ibis.Table:
        self.kinds = self.view.kinds
        tests = [self.truth(clause, "a where clause") for clause in self.view.where]
        table = self.table = self.table.filter([self.table.resourceType == self.view.resource, *tests])
        self.known.clear()
        rows = self.rows(self.view.select)
        # inside the query columns have neutral names: those of the view may differ in case only, or be key words
        if rows.arrays:
            table = table.select(**rows.single, rows=self.product(_Rows({}, rows.arrays)).unnest())
            table = table.select(
                **{
                    f"c{i}": table[f"c{i}"] if f"c{i}" in rows.single else table["rows"][f"c{i}"]
                    for i in range(len(self.view.columns))
                }
            )
        else:
            table = table.select(**{f"c{i}": rows.single[f"c{i}"] for i in range(len(self.view.columns))})
        return table

    def map(
        self, array: ibis.Value, body: Callable[[ibis.Value, ibis.Value], ibis.Value], *, index: bool = False
    ) -> Any:
        """`array.map` with a parameter name of its own: the names of nested lambdas must differ."""
        self.names += 1
        item = ops.Argument(name=f"i{self.names}", shape=array.op().shape, dtype=array.type().value_type)
        place = ops.Argument(name=f"n{self.names}", shape=array.op().shape, dtype=dt.int64)
        result = body(item.to_expr(), place.to_expr())
        return ops.ArrayMap(array, param=item, index=place if index else None, body=result).to_expr()

    def named(self, value: ibis.Value, body: Callable[[Any], Any]) -> Any:
        """Build the body on a name for the value: a query would repeat its text wherever the body has it."""
        if isinstance(value.op(), (ops.Field, ops.StructField, ops.Argument, ops.Literal)):
            return body(value)
        return self.map(ibis.array([value]), lambda item, _: body(item))[0]

    def keep(self, array: ibis.Value, test: Callable[[ibis.Value], ibis.Value]) -> Any:
        self.names += 1
        item = ops.Argument(name=f"i{self.names}", shape=array.op().shape, dtype=array.type().value_type)
        return ops.ArrayFilter(array, param=item, index=None, body=test(item.to_expr())).to_expr()

    # rows

    def rows(self, select: Select) -> _Rows:
        if not select.each:
            return self.body(select)
        source = select.each[0]
        array = self.items_of(source)
        if not source.many:
            array = self.keep(ibis.array([array]), _is_there)

        def rows_of_item(item: ibis.Value, place: ibis.Value) -> ibis.Value:
            self.items[select.number] = item
            self.indexes[select.number] = place
            return self.product(self.body(select))

        inner_is_array = bool(select.union) or any(_is_array(part) for part in select.selects)
        rows = self.map(array, rows_of_item, index=_uses_index(select, select.number))
        if inner_is_array:
            rows = rows.flatten()
        if select.or_null:
            rows = ibis.ifelse(array.length() > 0, rows, ibis.array([self.nothing(select, rows.type().value_type)]))
        return _Rows({}, (rows,))

    def nothing(self, select: Select, row: dt.Struct) -> ibis.Value:
        """Build the row of a forEachOrNull over nothing: null in every column, those of inner selects too, and `%rowIndex` 0.

        Source: SQL on FHIR v2, processing algorithm, step 3 of Process.
        """
        counts = {self.place(column) for column in select.all_columns() if isinstance(column.value, RowIndex)}
        return ibis.struct(
            {
                name: ibis.literal(0).cast(kind) if name in counts else ibis.null(kind)
                for name, kind in row.fields.items()
            }
        )

    def body(self, select: Select) -> _Rows:
        single = {self.place(column): self.column(column) for column in select.columns}
        arrays: list[ibis.Value] = []
        for part in select.selects:
            rows = self.rows(part)
            single.update(rows.single)
            arrays.extend(rows.arrays)
        if select.union:
            order = [self.place(column) for column in select.union[0].all_columns()]
            parts = []
            for part in select.union:
                rows = self.product(self.rows(part))
                one = rows if isinstance(rows.type(), dt.Array) else ibis.array([rows])
                parts.append(self.map(one, lambda item, _: ibis.struct({name: item[name] for name in order})))
            arrays.append(_concatenated(parts))
        return _Rows(single, tuple(arrays))

    def product(self, rows: _Rows) -> Any:
        """All combinations of the rows: a struct where there is just one row, else an array of structs."""
        if not rows.arrays:
            return ibis.struct(rows.single)
        if not rows.single and len(rows.arrays) == 1:
            return rows.arrays[0]

        def combine(left: dict[str, ibis.Value], rest: tuple[ibis.Value, ...]) -> Any:
            def one(item: ibis.Value, _: ibis.Value) -> ibis.Value:
                joined = {**left, **{name: item[name] for name in item.type().names}}
                return combine(joined, rest[1:]) if rest[1:] else ibis.struct(joined)

            mapped = self.map(rest[0], one)
            return mapped.flatten() if rest[1:] else mapped

        return combine(dict(rows.single), rows.arrays)

    def place(self, column: Column) -> str:
        return f"c{self.view.columns.index(column.name)}"

    def column(self, column: Column) -> ibis.Value:
        """Build the value of a column in the type the column has in the whole view."""
        kind = self.kinds[column.name]
        node = column.value
        if not column.collection:
            value = self.one(node, f"column {column.name} of the view {self.view.name}")
            return _cast(value, _KIND_TYPES.get(kind, "string"))
        if not node.many:
            value = _cast(self.value(node), _KIND_TYPES.get(kind, "string"))
            return self.keep(ibis.array([value]), _is_there)
        target = _KIND_TYPES.get(kind, "string")
        array = self.items_of(node)
        return array if str(array.type().value_type) == target else self.map(array, lambda item, _: _cast(item, target))

    # values

    def items_of(self, node: Node) -> Any:
        """Build an array without nulls for a collection, null or empty where there is nothing; else the value itself."""
        if not node.many or isinstance(node, Filter):
            return self.value(node)
        return self.keep(self.value(node), _is_there)

    def one(self, node: Node, what: str) -> Any:
        """Build the only value of the node; a record with several stops the run, naming `what`."""
        if not node.many:
            return self.value(node)
        array = self.items_of(node)
        text = ibis.literal(f"[crmo-fhir: {what} gives several values in one row; add first() or collection]")
        # a cast that must fail is the one way to stop that every engine has
        stop = text.concat(array.length().cast("string")).cast("int64").cast("string")
        value = array[0]
        return ibis.ifelse(array.length() > 1, _cast(stop, value.type()), value)

    def truth(self, node: Node, what: str) -> Any:
        """Build true, false or null: `{}`, which is of no type, is null there."""
        return _cast(self.one(node, what), "boolean")

    def value(self, node: Node) -> Any:
        """Build the expression of a node: a value, or an array that may be null and hold nulls where the node is many.

        A node that depends on the resource alone is built once, so that `….system` and `….code` share their filter.
        """
        if not _stands_on_resource(node):
            return self.build(node)
        if node not in self.known:
            self.known[node] = self.build(node)
        return self.known[node]

    def build(self, node: Node) -> Any:
        match node:
            case Literal(value):
                return _literal(value, kind_of(node))
            case Focus(scope, _, None):
                return self.table
            case Focus(scope):
                return self.items[scope]
            case Field():
                return self.field(node)
            case Filter(source, scope, test):
                return self.filter(source, scope, test)
            case Pick(source, index):
                if not source.many:
                    item = self.value(source)
                    return ibis.null(item.type())
                return self.items_of(source)[index]
            case Exists(sources):
                found = [self.exists(source) for source in sources]
                return _any(found)
            case Not(operand):
                return ~self.truth(operand, "not()")
            case Operation():
                return self.operation(node)
            case Join(source, separator):
                array = self.items_of(source)
                if not source.many:
                    return array.cast("string")
                return ibis.ifelse(array.length() > 0, array.join(separator), "")
            case ResourceKey():
                return ibis.literal(f"{self.view.resource}/").concat(self.table.id)
            case ReferenceKey(reference, target, many):
                pattern = self.reference_pattern(target)
                if not many:
                    return _key(self.value(reference), pattern)
                return self.map(self.value(reference), lambda item, _: _key(item, pattern))
            case RowIndex(None):
                return ibis.literal(0, type="int64")
            case RowIndex(int(level)):
                return self.indexes[level]
            case Several(parts):
                return self.several(parts, node)
            case Boundary(source, high):
                value = self.one(source, "a boundary")
                if isinstance(source, Literal):
                    value = ibis.literal(str(source.value))
                elif value.type().is_floating():
                    return value  # a boundary: it has the greatest precision already
                return self.named(value, lambda text: _boundary(text, source, high=high))
            case Descend():
                return self.descend(node)
        raise AssertionError(node)

    def descend(self, node: Descend) -> Any:
        def found_by(routes: tuple[Node, ...]) -> Any:
            return _concatenated(
                [self.items_of(route) if route.many else ibis.array([self.value(route)]) for route in routes]
            )

        def with_children(item: ibis.Value, depth: int) -> Any:
            itself = ibis.array([item])
            if not node.steps:
                return itself
            self.items[node.scope] = item
            children = self.keep(found_by(node.steps), _is_there)
            if depth == _DEEPEST:
                text = f"[crmo-fhir: repeat of the view {self.view.name} meets more than {_DEEPEST} levels] "
                stop = ibis.literal(text).concat(children.length().cast("string")).cast("int64").cast("string")
                return ibis.ifelse(children.length() > 0, ibis.array([stop.cast("json")]), itself)
            return _concatenated(
                [itself, self.map(children, lambda child, _: with_children(child, depth + 1)).flatten()]
            )

        top = self.keep(found_by(node.sources), _is_there)
        return self.map(top, lambda item, _: with_children(item, 1)).flatten()

    def field(self, node: Field) -> Any:
        source = self.value(node.source)
        take = _taker(node)
        if not node.source.many:
            return take(source)
        taken = self.map(source, lambda item, _: take(item))
        return taken.flatten() if node.listed is not False else taken

    def filter(self, source: Node, scope: int, test: Node) -> Any:
        if source.many:

            def keep(item: ibis.Value) -> ibis.Value:
                self.items[scope] = item
                return _is_there(item) & self.truth(test, "where()")

            return self.keep(self.value(source), keep)
        item = self.value(source)
        self.items[scope] = item
        condition = self.truth(test, "where()")
        if isinstance(item, ibis.Table):
            return _Guarded(item, condition)
        return ibis.ifelse(condition, item, ibis.null(item.type()))

    def exists(self, source: Node) -> Any:
        if isinstance(source, Focus) and source.origin is None:
            return ibis.literal(value=True)
        if source.many:
            return (self.items_of(source).length() > 0).fill_null(False)
        value = self.value(source)
        return value.condition.fill_null(False) if isinstance(value, _Guarded) else _is_there(value)

    def several(self, parts: tuple[Node, ...], node: Several) -> Any:
        target = _KIND_TYPES.get(_output_kind(node), "string")
        if not node.many:
            return ibis.coalesce(*(_cast(self.value(part), target) for part in parts))
        arrays = []
        for part in parts:
            array = self.items_of(part)
            if not part.many:
                array = self.keep(ibis.array([array]), _is_there)
            arrays.append(self.map(array, lambda item, _: _cast(item, target)))
        return _concatenated(arrays)

    def reference_pattern(self, target: str | None) -> str:
        base = f"(?:{re.escape(self.base.rstrip('/'))}/)?" if self.base else ""
        return rf"^{base}({target or '[A-Z][A-Za-z]+'}/[A-Za-z0-9.-]+)(?:/_history/[^/]+)?\z"

    def operation(self, node: Operation) -> Any:
        operator = node.operator
        kind = kind_of(node.left)
        if kind == kind_of(node.right) and kind in _WHOLE and operator in ("=", "!=", "<", "<=", ">", ">="):
            what = f"a comparison of {kind}s in the view {self.view.name}"
            return self.compare_dates(operator, self.one(node.left, what), self.one(node.right, what), kind)
        if operator in ("=", "!="):
            equal = self.equal(node.left, node.right)
            return equal if operator == "=" else ~equal
        what = f"'{operator}' in the view {self.view.name}"
        if operator == "and":
            return self.truth(node.left, what) & self.truth(node.right, what)
        if operator == "or":
            return self.truth(node.left, what) | self.truth(node.right, what)
        left, right = self.one(node.left, what), self.one(node.right, what)
        if operator == "&":
            return left.cast("string").fill_null("").concat(right.cast("string").fill_null(""))
        if node.types == ("string",):
            return left.concat(right)
        if operator in ("<", "<=", ">", ">="):
            target = _comparison_type(node.left, node.right)
            return _COMPARE[operator](_cast(left, target), _cast(right, target))
        target = "int64" if node.types == ("integer",) else "float64"
        result = _COMPARE[operator](_cast(left, target), _cast(right, target))
        return result if target == "int64" else result.round(8)

    def compare_dates(self, operator: str, left: Any, right: Any, kind: str) -> Any:
        """Compare dates, or times, to the precision both have; null where that does not decide, or where one is none.

        Source: FHIRPath N1, comparison and equality: seconds and their fractions are one precision. Of two values of which
        one has no offset from UTC, which leaves to policy, it is taken in that of the other.
        """
        if operator == "!=":
            return ~self.compare_dates("=", left, right, kind)
        compare = _COMPARE[operator]

        def compared(first: Any, second: Any) -> Any:
            shorter = ibis.least(first.length(), second.length())
            one, other = first.substr(0, shorter), second.substr(0, shorter)
            undecided = (one == other) & (first.length() != second.length())
            return ibis.ifelse(undecided, ibis.null("boolean"), compare(one, other))

        def decided(left: Any, right: Any) -> Any:
            written = self.named(
                _to_compare(left), lambda first: self.named(_to_compare(right), lambda second: compared(first, second))
            )
            if kind == "date":
                zoned = left.re_search(_ZONE) & right.re_search(_ZONE)
                written = ibis.ifelse(zoned, compare(_instant(left), _instant(right)), written)
            readable = left.re_search(_WHOLE[kind]) & right.re_search(_WHOLE[kind])
            return ibis.ifelse(readable, written, ibis.null("boolean"))

        return self.named(left, lambda first: self.named(right, lambda second: decided(first, second)))

    def equal(self, left: Node, right: Node) -> Any:
        target = _comparison_type(left, right)
        if not left.many and not right.many:
            return _equal(_cast(self.value(left), target), _cast(self.value(right), target))
        arrays = []
        for node in (left, right):
            array = self.items_of(node)
            if not node.many:
                array = self.keep(ibis.array([array]), _is_there)
            arrays.append(self.map(array, lambda item, _: _cast(item, target)))
        first, second = arrays
        there = (first.length() > 0) & (second.length() > 0)
        return ibis.ifelse(there, first == second, ibis.null("boolean"))


@dataclass(frozen=True, slots=True)
class _Guarded:
    """The resource itself, if a condition holds."""

    table: ibis.Table
    condition: Any

    def __getitem__(self, name: str) -> ibis.Value:
        value = self.table[name]
        return ibis.ifelse(self.condition, value, ibis.null(value.type()))


def _equal(left: Any, right: Any) -> Any:
    """Compare two values; null where one is surely nothing, which Ibis would take for a question whether both are."""
    nothing = any(isinstance(each.op(), ops.Literal) and each.op().value is None for each in (left, right))
    return ibis.null("boolean") if nothing else left == right


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": _equal,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b.nullif(0),
}


def _columns_of(select: Select) -> Iterator[Column]:
    """Every column of every branch."""
    yield from select.columns
    for part in (*select.selects, *select.union):
        yield from _columns_of(part)


def _is_array(select: Select) -> bool:
    return bool(select.each or select.union) or any(_is_array(part) for part in select.selects)


def _uses_index(select: Select, number: int) -> bool:
    return any(isinstance(node, RowIndex) and node.level == number for top in _nodes_of(select) for node in _walk(top))


def _is_there(value: Any) -> Any:
    return value.notnull()  # noqa: PD004 - Ibis, not pandas


def _any(found: list[Any]) -> Any:
    result = found[0]
    for each in found[1:]:
        result = result | each
    return result


def _is_resource(node: Node) -> bool:
    match node:
        case Filter(source=source) | Pick(source=source):
            return _is_resource(source)
        case Focus(origin=origin):
            return origin is None
    return False


def _stands_on_resource(node: Node) -> bool:
    match node:
        case Field(source=source) | Filter(source=source):
            return _stands_on_resource(source)
        case Focus(origin=origin):
            return origin is None
    return False


def _concatenated(arrays: list[Any]) -> Any:
    """One array of all; `concat` would repeat every argument in the query, and give null where one is null."""
    return ibis.array(arrays).flatten() if len(arrays) > 1 else arrays[0]


def _literal(value: object, kind: str) -> Any:
    if value is None:
        return ibis.null("string")
    if kind == "decimal":
        return ibis.literal(float(value), type="float64")  # type: ignore[arg-type]
    return ibis.literal(value, type={"boolean": "boolean", "integer": "int64"}.get(kind, "string"))


def _cast(value: Any, target: object) -> Any:
    wanted = dt.dtype(target)
    return value if value.type() == wanted else value.cast(wanted)


def _comparison_type(left: Node, right: Node) -> str:
    kinds = {kind_of(left), kind_of(right)} - {"nothing"}
    if kinds == {"boolean"}:
        return "boolean"
    if kinds == {"integer"}:
        return "int64"
    return "float64" if kinds and kinds <= {"integer", "decimal"} else "string"


def _to_compare(value: Any) -> Any:
    """Give the text without offset, its seconds with all digits of a fraction."""
    local = value.substr(0, value.length() - value.re_extract(_ZONE, 1).length())
    fraction = ibis.ifelse(local.contains("."), local, local.concat("."))
    return ibis.ifelse(local.re_search(r":\d\d:\d\d"), fraction.rpad(_LONGEST_TIME, "0"), local)


def _instant(value: Any) -> Any:
    """Give the point in time; a leap second, which no engine knows, is the second before it."""
    zone = value.re_extract(_ZONE, 1)
    stamp = value.substr(0, value.length() - zone.length())
    return _filled(stamp, "0000-01-01T00:00:00").replace(":60", ":59").concat(zone).cast("timestamp('UTC')")


def _boundary(value: Any, source: Node, *, high: bool) -> Any:
    """Give the least or greatest value of the written precision, in the greatest; null for what is no date or time.

    Source: FHIRPath, lowBoundary and highBoundary, without argument.
    """
    kind = kind_of(source)
    if kind == "decimal":
        return _decimal_boundary(value, high=high)
    if kind == "time":
        return _where(_WHOLE["time"], value, _filled(value, "23:59:59.999" if high else "00:00:00.000"))
    if source.types == ("date",):
        whole = _last_day(_filled(value, "0000-12-31" if high else "0000-01-01"), value, high=high)
        return _where(rf"^{_DATE}\z", value, whole)
    zone = value.re_extract(_ZONE, 1)
    stamp = value.substr(0, value.length() - zone.length())
    filled = _filled(stamp, "0000-12-31T23:59:59.999" if high else "0000-01-01T00:00:00.000")
    whole = _last_day(filled, stamp, high=high).concat(
        ibis.ifelse(zone == "", "-12:00" if high else "+14:00", zone)  # where the day ends last, or begins first
    )
    return _where(_WHOLE["date"], value, whole)


def _decimal_boundary(value: Any, *, high: bool) -> Any:
    """Half of the last place less or more than the number, exact until it becomes a float.

    The places are those of the text that the engine reads: it takes a JSON number as a double, so that 1.50 is 1.5.
    """
    sign, whole, fraction, exponent = (value.re_extract(_NUMBER, group) for group in (1, 2, 3, 4))
    places = fraction.length() - exponent.nullif("").cast("int64").fill_null(0)
    zeros = ibis.literal("0").repeat(ibis.least(ibis.greatest(-places, 0), _MOST_DIGITS))
    digits = whole.concat(fraction, zeros)
    tenfold = sign.concat(digits, "0").cast(f"decimal({_MOST_DIGITS}, 0)")
    moved = (tenfold + 5 if high else tenfold - 5).cast(f"decimal({_MOST_DIGITS}, 0)").cast("string")
    exact = moved.concat("e-", (ibis.greatest(places, 0) + 1).cast("string")).cast("float64")
    return ibis.ifelse(digits.length() < _MOST_DIGITS - 1, exact, value.cast("float64"))


def _where(pattern: str, value: Any, result: Any) -> Any:
    return ibis.ifelse(value.re_search(pattern), result, ibis.null("string"))


def _filled(value: Any, template: str) -> Any:
    """Take what the text lacks from the template."""
    return value.concat(ibis.literal(template).substr(value.length()))


def _last_day(filled: Any, written: Any, *, high: bool) -> Any:
    """Set the true last day of the month where only year and month were written."""
    if not high:
        return filled
    month = filled.substr(5, 2)
    february = ibis.ifelse(filled.re_search(f"^{_LEAP_YEAR}"), "29", "28")
    day = ibis.cases((month == "02", february), (month.isin(["04", "06", "09", "11"]), "30"), else_="31")
    exact = filled.substr(0, 8).concat(day).concat(filled.substr(10))
    return ibis.ifelse(written.length() == len("2005-03"), exact, filled)


def _key(reference: Any, pattern: str) -> Any:
    return ibis.ifelse(reference.re_search(pattern), reference.re_extract(pattern, 1), ibis.null("string"))


class DecimalText(ops.Unary):  # type: ignore[misc]
    """The text of a decimal, written in the same way on every engine: each has one of its own for the numbers of JSON."""

    arg: ops.Value[dt.String]
    dtype = dt.string


def _taker(node: Field) -> Callable[[Any], Any]:
    """How the field is taken out of an item: a struct, or JSON where FHIR gives no one shape."""

    def take(item: Any) -> Any:
        taken = item[node.name]
        if isinstance(taken, ibis.expr.types.JSONValue):
            taken = _from_json(taken, node)
        if kind_of(node) != "decimal":
            return taken
        if node.listed is False:
            return DecimalText(taken).to_expr()
        return taken.map(lambda number: DecimalText(number).to_expr())

    return take


def _from_json(value: Any, node: Field) -> Any:
    if node.listed is False:
        return _plain_json(value, node)
    array = value.array
    if node.listed is None:
        array = ibis.coalesce(array, ibis.array([value]))
    return array.map(lambda each: _plain_json(each, node))


def _plain_json(value: Any, node: Field) -> Any:
    if not is_primitive(node.types[0]):
        return ibis.ifelse(value.cast("string") != "null", value, ibis.null("json"))
    kind = kind_of(node)
    if kind == "boolean":
        return value.bool
    if kind not in ("integer", "decimal"):
        return value.str
    text = value.cast("string")
    return ibis.coalesce(value.str, _where(r"^-?[0-9]", text, text))  # a number may stand as text


def run_view(engine: Engine, compiled: CompiledView, files: Sequence[tuple[Path, str | None]]) -> pd.DataFrame:
    """Run the view over NDJSON files (.gz too), each with the service base of its records (None: unknown).

    Columns in the order of the view, dtype object, missing values None; rows in the order of files, lines and lists.
    Raises IncompleteError for a record that does not fit FHIR, or gives several values where the view takes one.
    """
    rows = [row for _, found in run_by_base(engine, compiled, files) for row in found]
    values: Iterable[Sequence[object]] = zip(*rows, strict=True) if rows else ([] for _ in compiled.columns)
    return pd.DataFrame(
        {name: pd.Series(list(column), dtype=object) for name, column in zip(compiled.columns, values, strict=True)}
    )
