"""What happens to objects on the paths through a function, in order: a model's format is no value that flow follows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import libcst as cst

from esper_guard.lint.flow.formats import named_format
from esper_guard.lint.torch_names import RETURN_THE_MODULE

from ._chains import nodes_in

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow

Scope = cst.Module | cst.FunctionDef
_MOST_PATHS = 64
Decisions = frozenset[tuple[str, bool]]
Ways = set[tuple[Decisions, Any]]  # how each path has decided its tests, and the rule's state on it
Effect = Callable[[cst.CSTNode, list[cst.Call], Any], Any]


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
    return [node, *(receiver for _, receiver in _calls_on_module(node))][-1]


def _calls_on_module(node: cst.BaseExpression | None) -> Iterator[tuple[cst.Call, cst.BaseExpression]]:
    """The calls in ``net.cuda().eval()``, the last one first, each with its receiver."""
    while (
        isinstance(node, cst.Call)
        and isinstance(node.func, cst.Attribute)
        and node.func.attr.value in RETURN_THE_MODULE
    ):
        yield node, node.func.value
        node = node.func.value


def is_within(part: str, whole: str) -> bool:
    """Whether ``net.body`` belongs to ``net``."""
    return bool(whole) and (part == whole or part.startswith((f"{whole}.", f"{whole}[")))


def scope_of(flow: Flow, node: cst.CSTNode) -> Scope:
    """The function around ``node``, or the module."""
    return next(one for one in flow.ancestors(node) if isinstance(one, (cst.FunctionDef, cst.Module)))


def bindings(
    statement: cst.CSTNode | None,
) -> Iterator[tuple[cst.BaseExpression, cst.BaseExpression | None]]:
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


def is_made_of(flow: Flow, value: cst.BaseExpression | None, bound: str) -> bool:
    """Whether a new value for ``bound`` wraps the old one, as in ``net = torch.compile(net)``."""
    if value is None:
        return False
    return re.search(rf"(?<![\w.]){re.escape(bound)}\b", flow.positions.one_line(value)) is not None


def format_at_making(flow: Flow, value: cst.BaseExpression | None) -> str:
    """``channels_last`` for ``Net().to(memory_format=torch.channels_last).cuda()``; modules are made in NCHW."""
    conversions = (conversion(flow, call) for call, _ in _calls_on_module(value))
    named = (converted.memory_format for converted in conversions if converted is not None)
    return next(named, "contiguous_format")


class Paths:
    """Follows every path through ``scope``, loops once and twice, with a state that ``effect`` changes at each statement.

    A test that is met again comes out as it did before, unless something may have changed it meanwhile.
    """

    def __init__(self, flow: Flow, scope: Scope, effect: Effect) -> None:
        self._flow = flow
        self._scope = scope
        self._effect = effect
        self._calls = _calls_by_statement(flow)
        self._rebound = _Rebound(scope)
        # Where ``break`` and ``continue`` of each loop lead; the first for one that is in no loop.
        self._loops: list[tuple[Ways, Ways]] = [(set(), set())]
        self._ends: Ways = set()

    def ends(self, start: Any) -> set[Any]:
        """The states in which the function may be left, but by an exception; paths that get too many are given up."""
        last = self._block(self._scope.body, {(frozenset(), start)})
        return {state for _, state in self._ends | last}

    def _block(self, body: cst.BaseSuite | Iterable[cst.CSTNode], ways: Ways) -> Ways:
        for statement in body.body if isinstance(body, cst.BaseSuite) else body:
            ways = self._statement(statement, ways)
        return ways

    def _statement(self, node: cst.CSTNode, ways: Ways) -> Ways:
        if len(ways) > _MOST_PATHS:
            return set()
        if isinstance(node, cst.SimpleStatementLine):
            return self._block(node.body, ways)
        ways = self._affected(node, self._calls.get(node, []), ways)
        if isinstance(node, cst.If):
            return self._if(node, ways)
        if isinstance(node, (cst.For, cst.While)):
            return self._loop(node, ways)
        if isinstance(node, (cst.Try, cst.TryStar)):
            return self._try(node, ways)
        if isinstance(node, cst.Match):
            return ways.union(*(self._block(case.body, ways) for case in node.cases))
        if isinstance(node, cst.With):
            return self._block(node.body, ways)
        return self._jump(node, ways)

    def _affected(self, node: cst.CSTNode, calls: list[cst.Call], ways: Ways) -> Ways:
        return {(decisions, self._effect(node, calls, state)) for decisions, state in ways}

    def _jump(self, node: cst.CSTNode, ways: Ways) -> Ways:
        if isinstance(node, cst.Return):
            self._ends |= ways
        elif isinstance(node, (cst.Break, cst.Continue)):
            self._loops[-1][isinstance(node, cst.Continue)].update(ways)
        elif not isinstance(node, cst.Raise):
            return ways
        return set()

    def _if(self, node: cst.If, ways: Ways) -> Ways:
        text, positive = self._decision(node.test)
        if_true, if_false = (_decided(ways, text, outcome) for outcome in (positive, not positive))
        after = self._block(node.body, if_true)
        if isinstance(node.orelse, cst.If):
            return after | self._statement(node.orelse, if_false)
        return after | (self._block(node.orelse.body, if_false) if node.orelse is not None else if_false)

    def _decision(self, test: cst.BaseExpression) -> tuple[str, bool]:
        """The test without ``not``, and which outcome of it leads into the body; ``""`` if it may change."""
        positive = True
        while isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
            test, positive = test.expression, not positive
        return ("" if self._rebound.touches(test) else self._flow.positions.one_line(test)), positive

    def _loop(self, node: cst.For | cst.While, ways: Ways) -> Ways:
        left: Ways = set()
        breaks: Ways = set()
        # Each round evaluates the test of ``while`` again, but only binds the target of ``for``.
        is_while = isinstance(node, cst.While)
        calls = self._calls.get(node, []) if is_while else []
        for _ in range(2):
            self._loops.append((breaks, set()))
            ended = self._block(node.body, ways) | self._loops[-1][1]
            self._loops.pop()
            ways = self._affected(node, calls, ended)
            left |= ways if is_while else ended
        if node.orelse is not None:
            left = self._block(node.orelse.body, left)
        return left | breaks

    def _try(self, node: cst.Try | cst.TryStar, ways: Ways) -> Ways:
        body = self._block(node.body, ways)
        caught = ways | body
        if node.orelse is not None:
            body = self._block(node.orelse.body, body)
        after = body.union(*(self._block(handler.body, caught) for handler in node.handlers))
        return self._block(node.finalbody.body, after) if node.finalbody is not None else after


def _decided(ways: Ways, test: str, outcome: bool) -> Ways:
    """The paths on which ``test`` can have come out as ``outcome``; ``""`` may come out either way each time."""
    if not test:
        return ways
    return {(known | {(test, outcome)}, state) for known, state in ways if (test, not outcome) not in known}


def _calls_by_statement(flow: Flow) -> dict[cst.CSTNode, list[cst.Call]]:
    found: dict[cst.CSTNode, list[cst.Call]] = {}
    for call in flow.calls:
        for ancestor in flow.ancestors(call):
            if isinstance(ancestor, (cst.BaseSmallStatement, cst.BaseCompoundStatement, cst.Lambda)):
                found.setdefault(ancestor, []).append(call)
                break
    return found


class _Rebound:
    """The names and attributes that are bound more than once, or again in each round of a loop."""

    def __init__(self, scope: Scope) -> None:
        self._bound: dict[str, int] = {}
        self._count(scope, in_loop=False)

    def touches(self, test: cst.BaseExpression) -> bool:
        """Whether ``test`` may come out otherwise the next time."""
        return any(
            isinstance(node, cst.Call) or (isinstance(node, cst.Name) and self._bound.get(node.value, 0) > 1)
            for node in nodes_in(test)
        )

    def _count(self, node: cst.CSTNode, in_loop: bool) -> None:
        in_loop = in_loop or isinstance(node, (cst.For, cst.While))
        if isinstance(node, (cst.AssignTarget, cst.AnnAssign, cst.AugAssign, cst.NamedExpr, cst.For)):
            is_again = in_loop or isinstance(node, cst.AugAssign)
            for name in _names_bound(node.target):
                self._bound[name] = self._bound.get(name, 0) + (2 if is_again else 1)
        for child in node.children:
            self._count(child, in_loop)


def _names_bound(target: cst.BaseExpression) -> list[str]:
    """The names in a target; of ``self.step`` only the attribute, of ``items[0]`` only what it is an item of."""
    if isinstance(target, cst.Attribute):
        return [target.attr.value]
    if isinstance(target, cst.Subscript):
        return _names_bound(target.value)
    return [node.value for node in nodes_in(target) if isinstance(node, cst.Name)]
