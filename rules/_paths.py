"""What happens to objects on the paths through a function, in order: a model's format is no value that flow follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import libcst as cst

from esper_guard.lint.flow.formats import named_format

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow

S = TypeVar("S")
Scope = cst.Module | cst.FunctionDef
_MOST_PATHS = 64
_RETURN_THE_MODULE = frozenset(
    "to cuda cpu xpu eval train half float double bfloat16 type requires_grad_ apply to_empty".split()
)
_SCOPES = (cst.FunctionDef, cst.Lambda, cst.ClassDef)


class Conversion(NamedTuple):
    """``module.to(memory_format=torch.<memory_format>)``; ``"?"`` where the format can't be told."""

    call: cst.Call
    module: str
    memory_format: str


def conversion(flow: Flow, call: cst.Call) -> Conversion | None:
    if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "to":
        return None
    memory_format = named_format("to", call.args, flow.names)
    if memory_format in ("", "preserve_format"):
        return None
    return Conversion(call, place(flow, call.func.value), memory_format)


def place(flow: Flow, node: cst.BaseExpression) -> str:
    """``net.body`` for ``net.body.cuda().eval()``: these methods return the module itself. ``""`` for no place."""
    node = object_of(node)
    return flow.positions.one_line(node) if flow.is_place(node) else ""


def object_of(node: cst.BaseExpression) -> cst.BaseExpression:
    while (
        isinstance(node, cst.Call)
        and isinstance(node.func, cst.Attribute)
        and node.func.attr.value in _RETURN_THE_MODULE
    ):
        node = node.func.value
    return node


def is_within(part: str, whole: str) -> bool:
    """Whether ``net.body`` belongs to ``net``."""
    return bool(whole) and (part == whole or part.startswith((f"{whole}.", f"{whole}[")))


def scope_of(flow: Flow, node: cst.CSTNode) -> Scope | None:
    """The function around ``node``, or the module."""
    for ancestor in flow.ancestors(node):
        if isinstance(ancestor, (cst.FunctionDef, cst.Module)):
            return ancestor
        if isinstance(ancestor, (cst.Lambda, cst.ClassDef)):
            return None
    return None


def bindings(statement: cst.CSTNode) -> Iterator[tuple[cst.BaseExpression, cst.BaseExpression | None]]:
    """What a statement binds, and to what; None where it isn't one expression."""
    if isinstance(statement, cst.Assign):
        for target in statement.targets:
            yield from _pairs(target.target, statement.value)
    elif isinstance(statement, cst.AnnAssign) and statement.value is not None:
        yield statement.target, statement.value
    elif isinstance(statement, cst.For):
        yield from _pairs(statement.target, None)
    elif isinstance(statement, cst.With):
        for item in statement.items:
            if item.asname is not None:
                yield from _pairs(item.asname.name, None)


def _pairs(
    target: cst.BaseExpression, value: cst.BaseExpression | None
) -> Iterator[tuple[cst.BaseExpression, cst.BaseExpression | None]]:
    if not isinstance(target, (cst.Tuple, cst.List)):
        yield target, value
        return
    values: list[cst.BaseExpression | None] = [None] * len(target.elements)
    if isinstance(value, (cst.Tuple, cst.List)) and len(value.elements) == len(target.elements):
        values = [element.value for element in value.elements]
    for element, one in zip(target.elements, values, strict=True):
        yield from _pairs(element.value, one)


class _Jumps(Generic[S]):
    def __init__(self) -> None:
        self.breaks: set[tuple[frozenset[tuple[str, bool]], S]] = set()
        self.continues: set[tuple[frozenset[tuple[str, bool]], S]] = set()


class Paths(Generic[S]):
    """Follows every path through ``scope``, loops twice, with a state that ``effect`` changes at each statement.

    A test that is met again comes out as it did before, unless a loop may have changed it.
    """

    def __init__(
        self, flow: Flow, scope: Scope, effect: Callable[[cst.CSTNode, list[cst.Call], S], S]
    ) -> None:
        self._flow = flow
        self._scope = scope
        self._effect = effect
        self._calls = _calls_by_statement(flow)
        self._changing = _names_bound_in_loops(scope)
        self._loops: list[_Jumps[S]] = []
        self._ends: set[tuple[frozenset[tuple[str, bool]], S]] = set()
        self._too_many = False

    def ends(self, start: S) -> set[S] | None:
        """The states in which the function may be left, but by an exception; None for too many paths."""
        last = self._block(self._scope.body, {(frozenset(), start)})
        return None if self._too_many else {state for _, state in self._ends | last}

    def _block(
        self, body: object, states: set[tuple[frozenset[tuple[str, bool]], S]]
    ) -> set[tuple[frozenset[tuple[str, bool]], S]]:
        statements = body.body if isinstance(body, cst.BaseSuite) else body
        for statement in statements:  # type: ignore[attr-defined]
            states = self._statement(statement, states)
        return states
