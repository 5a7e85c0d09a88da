"""The FHIRPath subset of SQL-on-FHIR: parse a path, then type it against the FHIR element table.

`parse` gives the path as written (dataclasses named `…Syntax`); `type_path` resolves every name to the JSON field that
holds it, so that a path which exists in neither FHIR R4B nor R5 is refused before any data is read. One path may lead
to several JSON fields (`value` is `valueQuantity`, `valueString`, …; R4 `medicationReference` and R5 `medication`):
it is then typed as several routes, of which a record fills at most one.
Source of the subset and its meaning: SQL on FHIR v2 (ViewDefinition), FHIRPath N1.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from crmo_fhir.mapping.schema import INTEGERS, RESOURCE_TYPES, elements_of, is_element, is_primitive


class PathError(ValueError):
    """A path that cannot be read or does not exist; the message says what, the caller says where."""


# --- the path as written -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LiteralSyntax:
    """A literal, or the value of a constant; `value` None is the empty collection."""

    value: str | bool | int | Decimal | None
    type: str


@dataclass(frozen=True, slots=True)
class VariableSyntax:
    """`$this`, or `%name`."""

    name: str


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """`source.name` (`arguments` None) or `source.name(arguments)`; without source: on the focus."""

    source: "Syntax | None"
    name: str
    arguments: "tuple[Syntax, ...] | None" = None


@dataclass(frozen=True, slots=True)
class IndexSyntax:
    """`source[index]`."""

    source: "Syntax"
    index: "Syntax"


@dataclass(frozen=True, slots=True)
class OperatorSyntax:
    """`left operator right`; a sign has no `left`."""

    operator: str
    left: "Syntax | None"
    right: "Syntax"


Syntax = LiteralSyntax | VariableSyntax | CallSyntax | IndexSyntax | OperatorSyntax

_TOKEN = re.compile(
    r"""
      (?P<space>\s+ | //[^\n]* | /\*.*?\*/)
    | (?P<date>@(?:T\d{2}(?::\d{2}(?::\d{2}(?:\.\d+)?)?)?
               | \d{4}(?:-\d{2}(?:-\d{2})?)?(?:T(?:\d{2}(?::\d{2}(?::\d{2}(?:\.\d+)?)?)?(?:Z|[+-]\d{2}:\d{2})?)?)?))
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<string>'(?:\\.|[^'\\])*')
    | (?P<quoted>`(?:\\.|[^`\\])*`)
    | (?P<variable>\$this\b | %[A-Za-z_][A-Za-z0-9_]* | %`(?:\\.|[^`\\])*`)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<symbol><=|>=|!=|!~|[-+*/&|<>=~.,()\[\]{}])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "f": "\f"}
_PRECEDENCE = {
    "or": 1,
    "and": 2,
    "=": 3,
    "!=": 3,
    "<": 4,
    "<=": 4,
    ">": 4,
    ">=": 4,
    "+": 5,
    "-": 5,
    "&": 5,
    "*": 6,
    "/": 6,
}
_UNSUPPORTED = frozenset(["is", "as", "div", "mod", "in", "contains", "xor", "implies", "|", "~", "!~"])


def _unescape(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        code = match.group(1)
        return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPES.get(code, code)

    return re.sub(r"\\(u[0-9A-Fa-f]{4}|.)", plain, text, flags=re.DOTALL)


def _tokens(text: str) -> list[tuple[str, str]]:
    found, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise PathError(f"cannot read the path at character {position + 1}")
        position = match.end()
        kind = match.lastgroup or ""
        if kind != "space":
            found.append((kind, match.group()))
    return found


def _balanced(operator: str, operands: list[Syntax]) -> Syntax:
    """One tree of a chain of `and` or `or`, whose order means nothing: a list of a thousand codes is ten levels deep."""
    if len(operands) == 1:
        return operands[0]
    middle = len(operands) // 2
    return OperatorSyntax(operator, _balanced(operator, operands[:middle]), _balanced(operator, operands[middle:]))


@dataclass(slots=True)
class _Parser:
    """Precedence climbing over the tokens of one path."""

    tokens: list[tuple[str, str]]
    constants: Mapping[str, LiteralSyntax]
    position: int = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.position += 1
        return token

    def accept(self, symbol: str) -> bool:
        if self.peek() == ("symbol", symbol):
            self.position += 1
            return True
        return False

    def expect(self, symbol: str) -> None:
        if not self.accept(symbol):
            raise PathError(f"'{symbol}' is missing")

    def expression(self, lowest: int = 1) -> Syntax:
        left = self.operand()
        while True:
            kind, text = self.peek()
            if kind in ("name", "symbol") and text in _UNSUPPORTED:
                raise PathError(f"the operator '{text}' is not supported in a view")
            level = _PRECEDENCE.get(text, 0) if kind in ("name", "symbol") else 0
            if level < lowest:
                return left
            if text in ("and", "or"):
                operands = [left]
                while self.peek() == (kind, text) and self.take():
                    operands.append(self.expression(level + 1))
                left = _balanced(text, operands)
            else:
                self.take()
                left = OperatorSyntax(text, left, self.expression(level + 1))

    def operand(self) -> Syntax:
        kind, text = self.peek()
        if kind == "symbol" and text in "+-":
            self.take()
            value = self.operand()
            return OperatorSyntax("-", None, value) if text == "-" else value
        term = self.term()
        while True:
            if self.accept("."):
                term = self.invocation(term)
            elif self.accept("["):
                term = IndexSyntax(term, self.expression())
                self.expect("]")
            else:
                return term

    def term(self) -> Syntax:
        kind, text = self.peek()
        if kind in ("name", "quoted") and text not in ("true", "false"):
            return self.invocation(None)
        self.take()
        if kind == "name":
            return LiteralSyntax(text == "true", "boolean")
        if kind == "string":
            return LiteralSyntax(_unescape(text[1:-1]), "string")
        if kind == "number" and "." in text:
            return LiteralSyntax(Decimal(text), "decimal")
        if kind == "number":
            if len(text) > len(str(LARGEST_INTEGER)) or int(text) > LARGEST_INTEGER:
                raise PathError(f"the integer {text[:20]}… is too large; write it as a decimal")
            return LiteralSyntax(int(text), "integer")
        if kind == "date":
            return _date_literal(text[1:])
        if kind == "variable":
            return self.variable(text)
        if (kind, text) == ("symbol", "("):
            inner = self.expression()
            self.expect(")")
            return inner
        if (kind, text) == ("symbol", "{"):
            self.expect("}")
            return LiteralSyntax(None, "nothing")
        raise PathError("the path ends too early" if kind == "end" else f"'{text}' is not expected there")

    def variable(self, text: str) -> Syntax:
        if text == "$this":
            return VariableSyntax(text)
        name = _unescape(text[2:-1]) if text[1] == "`" else text[1:]
        if name in self.constants:
            return self.constants[name]
        if name in ("rowIndex", "resource", "rootResource"):
            return VariableSyntax(f"%{name}")
        raise PathError(f"the constant %{name} is not defined")

    def invocation(self, source: Syntax | None) -> Syntax:
        kind, text = self.take()
        if kind not in ("name", "quoted"):
            raise PathError("a name is missing after '.'")
        name = _unescape(text[1:-1]) if kind == "quoted" else text
        if not self.accept("("):
            return CallSyntax(source, name)
        arguments: list[Syntax] = []
        if not self.accept(")"):
            arguments.append(self.expression())
            while self.accept(","):
                arguments.append(self.expression())
            self.expect(")")
        return CallSyntax(source, name, tuple(arguments))


def _date_literal(text: str) -> LiteralSyntax:
    if text.startswith("T"):
        return LiteralSyntax(text[1:], "time")
    return LiteralSyntax(text.removesuffix("T"), "dateTime" if "T" in text else "date")


def parse(text: str, constants: Mapping[str, LiteralSyntax] | None = None) -> Syntax:
    """Parse a path. Raises PathError for what is no path or lies outside the subset, and for an unknown constant."""
    parser = _Parser(_tokens(text), constants or {})
    tree = parser.expression()
    if parser.peek()[0] != "end":
        raise PathError(f"'{parser.peek()[1]}' is not expected there")
    return tree


# --- the typed path ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Literal:
    """A literal; None is the empty collection."""

    value: str | bool | int | Decimal | None
    types: tuple[str, ...]
    many: bool = False


@dataclass(frozen=True, slots=True)
class Focus:
    """The item a scope stands on: the resource (no `origin`), or one element of `origin`."""

    scope: int
    types: tuple[str, ...]
    origin: "Node | None" = None
    many: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """The JSON field `name` of `source`, of one of `types`; `listed` says how it stands in JSON (None: either way).

    `shapeless`: what stands there has no one shape, whichever of its types is meant.
    """

    source: "Node"
    name: str
    types: tuple[str, ...]
    listed: bool | None
    many: bool
    shapeless: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """The items of `source` for which `test`, on the scope `scope`, is true."""

    source: "Node"
    scope: int
    test: "Node"
    types: tuple[str, ...]
    many: bool


@dataclass(frozen=True, slots=True)
class Pick:
    """The item of `source` at `index`, counted from 0."""

    source: "Node"
    index: int
    types: tuple[str, ...]
    many: bool = False


@dataclass(frozen=True, slots=True)
class Exists:
    """Whether any of `sources` holds an item."""

    sources: "tuple[Node, ...]"
    types: tuple[str, ...] = ("boolean",)
    many: bool = False


@dataclass(frozen=True, slots=True)
class Not:
    """Negation in three-valued logic."""

    operand: "Node"
    types: tuple[str, ...] = ("boolean",)
    many: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """`left operator right`: and, or, = , != , < , <= , > , >= , + , - , * , / , &."""

    operator: str
    left: "Node"
    right: "Node"
    types: tuple[str, ...]
    many: bool = False


@dataclass(frozen=True, slots=True)
class Join:
    """The strings of `source` in one, with `separator` between them."""

    source: "Node"
    separator: str
    types: tuple[str, ...] = ("string",)
    many: bool = False


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """`Type/id` of the resource."""

    focus: Focus
    types: tuple[str, ...] = ("string",)
    many: bool = False


@dataclass(frozen=True, slots=True)
class ReferenceKey:
    """`Type/id` of what a reference string on the own server points to; null for others or another `target`."""

    reference: "Node"
    target: str | None
    many: bool
    types: tuple[str, ...] = ("string",)


@dataclass(frozen=True, slots=True)
class Boundary:
    """The least or greatest value a decimal, date, dateTime or time of its written precision may stand for."""

    source: "Node"
    high: bool
    types: tuple[str, ...]
    many: bool = False


@dataclass(frozen=True, slots=True)
class RowIndex:
    """The position, counted from 0, of the item in the iteration `level`; None is the resource itself, always 0."""

    level: int | None
    types: tuple[str, ...] = ("integer",)
    many: bool = False


@dataclass(frozen=True, slots=True)
class Several:
    """The values of several JSON fields that are one FHIR element: of single ones, the first there is."""

    parts: "tuple[Node, ...]"
    types: tuple[str, ...]
    many: bool


@dataclass(frozen=True, slots=True)
class Descend:
    """`sources` and, again and again, what `steps` give on each item found (scope `scope`); parents before children."""

    sources: "tuple[Node, ...]"
    scope: int
    steps: "tuple[Node, ...]"
    types: tuple[str, ...]
    many: bool = True


Node = (
    Literal
    | Focus
    | Field
    | Filter
    | Pick
    | Exists
    | Not
    | Operation
    | Join
    | ResourceKey
    | ReferenceKey
    | Boundary
    | RowIndex
    | Several
    | Descend
)

LARGEST_INTEGER = 2**63 - 1
_DATES = frozenset(["date", "dateTime", "instant"])


def kind_of(node: Node) -> str:
    """How a primitive value is handled: "boolean", "integer", "decimal", "date", "time", "text" or "nothing"."""
    kinds = {
        "boolean"
        if name == "boolean"
        else "integer"
        if name in INTEGERS
        else "date"
        if name in _DATES
        else name
        if name in ("decimal", "time", "nothing")
        else "text"
        for name in node.types
    }
    return kinds.pop() if len(kinds) == 1 else "text"


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a path starts: the routes of its focus, the resource, the row's iteration, and the next free number."""

    focus: tuple[Node, ...]
    resource: Focus
    level: int | None = None
    numbers: dict[object, int] = field(default_factory=dict)

    def number(self, what: object) -> int:
        """Give the number of a scope: equal filters of equal sources are one, so that they are computed once."""
        return self.numbers.setdefault(what, len(self.numbers) + 1)


def resource_scope(resource_type: str) -> Scope:
    """Start at a whole resource. Raises PathError where the element table does not hold the type."""
    if resource_type not in RESOURCE_TYPES:
        raise PathError(f"there is no resource type {resource_type} (FHIR R4 to R5)")
    root = Focus(0, (resource_type,))
    return Scope((root,), root)


def type_path(syntax: Syntax, scope: Scope) -> tuple[Node, ...]:
    """Give the routes of a path, at least one. Raises PathError for an element, function or comparison there is not."""
    match syntax:
        case LiteralSyntax(value, name):
            return (Literal(value, (name,)),)
        case VariableSyntax("$this"):
            return scope.focus
        case VariableSyntax("%rowIndex"):
            return (RowIndex(scope.level),)
        case VariableSyntax():
            return (scope.resource,)
        case IndexSyntax(source, index):
            match index:
                case LiteralSyntax(int(position), "integer" | "positiveInt" | "unsignedInt"):
                    return _pick(type_path(source, scope), position)
            raise PathError("an index in [ ] must be a whole number or an integer constant")
        case OperatorSyntax("-", None, LiteralSyntax(int() | Decimal() as value, "integer" | "decimal" as name)):
            return (Literal(-value, (name,)),)
        case OperatorSyntax(operator, left, right):
            return (_operation(operator, left, right, scope),)
        case CallSyntax(source, name, None):
            if source is None and scope.focus == (scope.resource,) and name in scope.resource.types:
                return scope.focus
            return _member(scope.focus if source is None else type_path(source, scope), name)
        case CallSyntax(source, name, tuple(arguments)):
            return _call(scope.focus if source is None else type_path(source, scope), name, arguments, scope)
    raise PathError("the path is not supported")


def single_route(routes: tuple[Node, ...]) -> Node:
    """One node for the routes of a value. Raises PathError where they hold more than plain values.

    Of an element that is a plain value in one FHIR version and none in the other, it is the plain value that is meant.
    """
    routes = tuple(_plain(node) for node in routes)
    complex_types = sorted({name for node in routes for name in node.types if not is_primitive(name)})
    if complex_types:
        hint = "say which with ofType()" if len(routes) > 1 else "name one of its elements"
        raise PathError(f"it gives {' or '.join(complex_types)}, not a plain value; {hint}")
    if len(routes) == 1:
        return routes[0]
    types = tuple(sorted({name for node in routes for name in node.types}))
    return Several(routes, types, any(node.many for node in routes))


def _plain(node: Node) -> Node:
    plain = tuple(name for name in node.types if is_primitive(name))
    return replace(node, types=plain) if isinstance(node, Field) and plain else node


def boolean_route(routes: tuple[Node, ...], what: str) -> Node:
    """One boolean node. Raises PathError where the path does not give true or false."""
    node = single_route(routes)
    if kind_of(node) not in ("boolean", "nothing"):
        raise PathError(f"{what} must give true or false, not {node.types[0]}")
    return node


def descend_routes(paths: Iterable[Syntax], scope: Scope) -> tuple[Node, ...]:
    """Give the route of `repeat`: what the paths give on the focus, then on what they gave, to the bottom.

    A path an item's type does not have gives nothing there: a `repeat` walks through items of several types. Raises
    PathError for a path that no type has.
    """
    paths = tuple(paths)
    if any(isinstance(path, VariableSyntax) for path in paths):
        raise PathError("repeat needs paths that lead down from where they stand")
    sources = _there(paths, scope)
    if not sources:
        return (Literal(None, ("nothing",)),)
    number = scope.number((sources, paths))
    types: set[str] = {name for node in sources for name in node.types}
    while True:
        focus = Focus(number, tuple(sorted(types)), Descend(sources, number, (), tuple(sorted(types))))
        steps = _there(paths, Scope((focus,), scope.resource, scope.level, scope.numbers))
        reached = {name for node in steps for name in node.types}
        if reached <= types:
            return (Descend(sources, number, steps, focus.types),)
        types |= reached


def _there(paths: tuple[Syntax, ...], scope: Scope) -> tuple[Node, ...]:
    """Give the routes of those paths that exist on the scope."""
    found: list[Node] = []
    for path in paths:
        try:
            found.extend(type_path(path, scope))
        except PathError:
            if not (isinstance(path, CallSyntax) and is_element(path.name)):
                raise
    return tuple(found)


def _member(routes: tuple[Node, ...], name: str) -> tuple[Node, ...]:
    if routes and all(route.types == ("nothing",) for route in routes):
        return (Literal(None, ("nothing",)),)
    found: list[Node] = []
    for route in routes:
        if beside := _beside_primitive(route, name):
            found.append(beside)
            continue
        fields: dict[str, set[tuple[str, bool]]] = {}
        for owner in route.types:
            for field_name, fhir_type, listed in _fields(owner, name):
                fields.setdefault(field_name, set()).add((fhir_type, listed))
        for field_name, kinds in fields.items():
            shapes = {listed for _, listed in kinds}
            one_shape = shapes.pop() if len(shapes) == 1 else None
            types = tuple(sorted({fhir_type for fhir_type, _ in kinds}))
            shapeless = one_shape is None or "Resource" in types or len(set(map(is_primitive, types))) > 1
            found.append(Field(route, field_name, types, one_shape, route.many or one_shape is not False, shapeless))
    if not found:
        owners = sorted({owner for route in routes for owner in route.types})
        hint = next((f"; it is {path}" for owner in owners for path in _choices(owner, name)), "")
        raise PathError(f"there is no element {name} in {' or '.join(owners) or 'nothing'} (FHIR R4 to R5){hint}")
    return tuple(found)


def _fields(owner: str, name: str) -> Iterable[tuple[str, str, bool]]:
    """List the JSON fields that hold the element: (field, type, whether it is a list)."""
    owners = RESOURCE_TYPES if owner == "Resource" else (owner,)
    for each in owners:
        known = elements_of(each)
        for fhir_type, listed in known.get(name, ()):
            yield name, fhir_type, listed
        for fhir_type, listed in known.get(f"{name}[x]", ()):
            yield name + fhir_type[0].upper() + fhir_type[1:], fhir_type, listed


def _choices(owner: str, spelled: str) -> Iterable[str]:
    """The path to what stands in JSON under a name such as `valueQuantity`."""
    for name, kinds in elements_of(owner).items():
        for fhir_type, _ in kinds:
            if name.endswith("[x]") and spelled == name[:-3] + fhir_type[0].upper() + fhir_type[1:]:
                yield f"{name[:-3]}.ofType({fhir_type})"


def _beside_primitive(route: Node, name: str) -> Node | None:
    """`birthDate.extension` and `birthDate.id` stand in the sibling `_birthDate`, a list where that of the values is one."""
    if name not in ("extension", "id") or not isinstance(route, Field) or not is_primitive(route.types[0]):
        return None
    if route.listed is None:
        return None
    sibling = Field(route.source, f"_{route.name}", ("Element",), route.listed, route.many)
    if name == "id":
        return Field(sibling, "id", ("string",), listed=False, many=route.many)
    return Field(sibling, "extension", ("Extension",), listed=True, many=True)


def _pick(routes: tuple[Node, ...], index: int) -> tuple[Node, ...]:
    return tuple(route if index == 0 and not route.many else Pick(route, index, route.types) for route in routes)


def _filter(routes: tuple[Node, ...], condition: Syntax, scope: Scope) -> tuple[Node, ...]:
    found: list[Node] = []
    failure: PathError | None = None
    for route in routes:
        types = _narrowed(route.types, condition)
        number = scope.number((route, condition))
        focus = Focus(number, types, route)
        try:
            inner = Scope((focus,), scope.resource, scope.level, scope.numbers)
            test = boolean_route(type_path(condition, inner), "the condition")
        except PathError as error:
            failure = failure or error
            continue
        found.append(Filter(route, number, test, types, route.many))
    if failure and not found:
        raise failure
    return tuple(found)


def _narrowed(types: tuple[str, ...], condition: Syntax) -> tuple[str, ...]:
    """`where(resourceType = 'Medication')` makes a contained resource a Medication."""
    match condition:
        case OperatorSyntax("and", left, right) if left is not None:
            return _narrowed(_narrowed(types, left), right)
        case OperatorSyntax("=", CallSyntax(None, "resourceType", None), LiteralSyntax(str(name), "string")):
            return (name,) if "Resource" in types and name in RESOURCE_TYPES else types
    return types


def _literal_argument(name: str, arguments: tuple[Syntax, ...]) -> str:
    match arguments:
        case (LiteralSyntax(str(value)),):
            return value
    raise PathError(f"{name}() takes one string")


def _type_argument(name: str, arguments: tuple[Syntax, ...]) -> str:
    match arguments:
        case (CallSyntax(None, type_name, None),):
            return type_name
        case (CallSyntax(CallSyntax(None, "FHIR" | "System", None), type_name, None),):
            return type_name
    raise PathError(f"{name}() takes the name of one type")


def _of_type(routes: tuple[Node, ...], wanted: str, scope: Scope) -> tuple[Node, ...]:
    found: list[Node] = []
    for route in routes:
        if wanted in route.types and isinstance(route, Field):
            found.append(replace(route, types=(wanted,)))
        elif wanted in route.types:
            found.append(route)
        elif "Resource" in route.types and wanted in RESOURCE_TYPES:
            syntax = OperatorSyntax("=", CallSyntax(None, "resourceType"), LiteralSyntax(wanted, "string"))
            found.extend(_filter((route,), syntax, scope))
    if not found:
        options = sorted({name for route in routes for name in route.types})
        raise PathError(f"it is never of type {wanted}; it may be {', '.join(options[:8])}")
    return tuple(found)


def _call(routes: tuple[Node, ...], name: str, arguments: tuple[Syntax, ...], scope: Scope) -> tuple[Node, ...]:
    match name, len(arguments):
        case "where", 1:
            return _filter(routes, arguments[0], scope)
        case "exists", 0:
            return (Exists(routes),)
        case "exists", 1:
            return (Exists(_filter(routes, arguments[0], scope)),)
        case "empty", 0:
            return (Not(Exists(routes)),)
        case "not", 0:
            return (Not(boolean_route(routes, "not()")),)
        case "first", 0:
            return _pick(routes, 0)
        case "ofType", 1:
            return _of_type(routes, _type_argument(name, arguments), scope)
        case "extension", 1:
            url = LiteralSyntax(_literal_argument(name, arguments), "string")
            return _filter(_member(routes, "extension"), OperatorSyntax("=", CallSyntax(None, "url"), url), scope)
        case "join", 0 | 1:
            source = single_route(routes)
            if kind_of(source) != "text":
                raise PathError("join() joins strings")
            return (Join(source, _literal_argument(name, arguments) if arguments else ""),)
        case "getResourceKey", 0:
            if routes != (scope.resource,):
                raise PathError("getResourceKey() stands on the resource of the view only")
            return (ResourceKey(scope.resource),)
        case "getReferenceKey", 0 | 1:
            return _reference_key(routes, _type_argument(name, arguments) if arguments else None)
        case "lowBoundary" | "highBoundary", 0:
            return (_boundary(routes, high=name == "highBoundary"),)
    known = "where, exists, empty, not, first, ofType, extension, join, getResourceKey, getReferenceKey, lowBoundary"
    raise PathError(f"there is no function {name}() with {len(arguments)} arguments (there are {known}, highBoundary)")


def _reference_key(routes: tuple[Node, ...], target: str | None) -> tuple[Node, ...]:
    references = tuple(route for route in routes if "Reference" in route.types)
    if not references:
        raise PathError("getReferenceKey() stands on a Reference")
    return tuple(ReferenceKey(node, target, node.many) for node in _member(references, "reference"))


def _boundary(routes: tuple[Node, ...], *, high: bool) -> Node:
    source = single_route(routes)
    if kind_of(source) == "nothing":
        return source
    if kind_of(source) not in ("decimal", "date", "time"):
        raise PathError("a boundary is that of a decimal, date, dateTime, instant or time")
    if not _is_written(source):
        raise PathError("a boundary is that of a value as it is written; how precise a calculated one is, nothing says")
    return Boundary(source, high, source.types)


def _is_written(node: Node) -> bool:
    """Whether the value is one of the record or the path, or a boundary: not a calculated one."""
    match node:
        case Operation() | Filter(source=Literal()) | Pick(source=Literal()):
            return False
        case Filter(source=source) | Pick(source=source):
            return _is_written(source)
        case Focus(origin=origin):
            return origin is None or _is_written(origin)
        case Several(parts):
            return all(_is_written(part) for part in parts)
    return True


def _operation(operator: str, left: Syntax | None, right: Syntax, scope: Scope) -> Node:
    second = single_route(type_path(right, scope))
    first = Literal(0, ("integer",)) if left is None else single_route(type_path(left, scope))
    kinds = {kind_of(first), kind_of(second)} - {"nothing"}
    numeric = kinds <= {"integer", "decimal"}
    if operator in ("and", "or"):
        if not kinds <= {"boolean"}:
            raise PathError(f"both sides of '{operator}' must give true or false")
        return Operation(operator, first, second, ("boolean",))
    if operator == "&" or (operator == "+" and kinds == {"text"}):
        return Operation(operator, first, second, ("string",))
    if operator in ("+", "-", "*", "/"):
        if not numeric:
            raise PathError(f"'{operator}' takes numbers")
        whole = kinds == {"integer"} and operator != "/"
        return Operation(operator, first, second, ("integer",) if whole else ("decimal",))
    comparable = numeric or len(kinds) <= 1 or ("text" in kinds and kinds <= {"text", "date", "time"})
    if not comparable:
        raise PathError(f"'{operator}' compares {' with '.join(sorted(kinds))}")
    if operator not in ("=", "!=") and kinds == {"boolean"}:
        raise PathError(f"'{operator}' does not compare true and false")
    return Operation(operator, first, second, ("boolean",))
