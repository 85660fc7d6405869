"""A function's facts: who is a tensor, who is guarded, and where each value goes.

``analyse`` walks one slice once; rules then ask the ``Flow`` it returns. "Guarded" means dominated: a test of the
same value whose outcome every path to the point has in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import libcst as cst

from esper_guard.lint.flow.dotted import dotted
from esper_guard.lint.flow.evidence import can_be_image
from esper_guard.lint.flow.places import place_of
from esper_guard.lint.flow.positions import Positions
from esper_guard.lint.flow.statements import Statements, paired
from esper_guard.lint.flow.values import NOTHING, ContiguityTest, Facts, Kind, State, Value, Values
from esper_guard.lint.imports import Names
from esper_guard.lint.modules import Made

__all__ = ["ContiguityTest", "Facts", "Flow", "Kind", "analyse", "can_be_image"]

Attribute = Callable[[str], frozenset[Made]]
_LOADS = (cst.Name, cst.Attribute, cst.Subscript)


class Flow:
    """What the walk saw. Calls and statements come in the order of evaluation, each once."""

    def __init__(
        self,
        names: Names,
        positions: Positions,
        is_module: bool,
        used_in_functions: frozenset[str],
        attribute: Attribute,
    ) -> None:
        self.names = names
        self.positions = positions
        self.is_module = is_module
        self.attribute = attribute
        self.callees: dict[cst.Call, frozenset[Made]] = {}
        self.parents: dict[cst.CSTNode, cst.CSTNode] = {}
        self.statements: list[cst.Expr] = []
        self.latest: dict[cst.CSTNode, Value] = {}
        self.captured: set[str] = set(used_in_functions)
        self.volatile: frozenset[str] = frozenset()
        self.walrus_names: set[str] = set()
        self.bound: dict[str, set[Value]] = {}
        self.deferred: dict[cst.CSTNode, dict[str, tuple[Value, Facts]]] = {}
        self.outer: dict[str, tuple[Value, Facts]] = {}
        self.values = Values()
        self._calls: dict[cst.Call, None] = {}
        self._facts: dict[cst.CSTNode, Facts] = {}
        self._loads: dict[Value, dict[cst.BaseExpression, None]] = {}

    # -- what the walk notes --------------------------------------------------------------------------------------

    def add_call(self, node: cst.Call) -> None:
        self._calls[node] = None

    def record(self, node: cst.BaseExpression, value: Value, facts: Facts) -> None:
        """``node`` was evaluated; a node met on several paths keeps what holds on all of them."""
        known = self._facts.get(node)
        self._facts[node] = facts if known is None else known.joined(facts)
        self.latest[node] = value
        if isinstance(node, _LOADS):
            self._loads.setdefault(value, {})[node] = None

    def outer_facts(self, name: str) -> Facts:
        """What a nested function may believe of a name around it: only what no later assignment can change."""
        if name not in self.outer or name in self.volatile or len(self.bound.get(name, ())) > 1:
            return NOTHING
        facts = self.outer[name][1]
        return Facts(facts.kind, facts.ranks, made=facts.made)

    # -- what rules ask -------------------------------------------------------------------------------------------

    @property
    def calls(self) -> Iterator[cst.Call]:
        yield from self._calls

    def facts(self, node: cst.BaseExpression) -> Facts:
        """What is known of the value of ``node`` whenever it is evaluated."""
        return self._facts.get(node, NOTHING)

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        parent = self.parents.get(node)
        return None if parent is node else parent

    def ancestors(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        parent = self.parent(node)
        while parent is not None:
            yield parent
            parent = self.parent(parent)

    def origin(self, node: cst.BaseExpression) -> str:
        """The full name of a module's attribute (``torch.detach``), through aliases; ``""`` for anything else."""
        written = dotted(node)
        if written is None or ("." in written and self._is_bound_here(node)):
            return ""
        return self.names.resolve_function(written)

    def _is_bound_here(self, node: cst.BaseExpression) -> bool:
        """Whether the root of a dotted name was bound by something else than an import, such as a parameter."""
        while isinstance(node, cst.Attribute):
            node = node.value
        value = self.latest.get(node)
        return value is not None and not value.is_entry and not isinstance(value.node, cst.ImportAlias)

    def loads_of_name(self, name: str) -> Iterator[cst.BaseExpression]:
        """Every expression that reads ``name``, in nested functions, too."""
        yield from (node for node in self._facts if isinstance(node, cst.Name) and node.value == name)

    def made_by(self, node: cst.BaseExpression) -> object:
        """The syntax that made the value of ``node``: a call, a parameter, the target of a loop."""
        value = self.latest.get(node)
        return None if value is None else value.node

    def loads(self, node: cst.BaseExpression) -> Iterator[cst.BaseExpression]:
        """Every expression that reads the value of ``node`` from a place, also where paths have merged it."""
        value = self.latest.get(node)
        seen: set[Value] = set()
        waiting = [] if value is None else [value]
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                yield from self._loads.get(one, ())
                waiting += self.values.merged_into.get(one, ())

    def uses(self, node: cst.BaseExpression) -> list[cst.BaseExpression]:
        """The expressions that hold the value of ``node`` where something is done with it.

        Names for it are followed; where it is stored beyond sight (an attribute, an item, a name that another
        function reads) the target of the assignment stands for all that may happen there.
        """
        found: dict[cst.BaseExpression, None] = {}
        seen: set[cst.CSTNode] = set()
        waiting: list[cst.BaseExpression] = [node]
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            parent = self.parent(one)
            if (isinstance(parent, cst.IfExp) and one is not parent.test) or isinstance(
                parent, cst.BooleanOperation
            ):
                waiting.append(parent)
            elif isinstance(parent, cst.NamedExpr) and one is parent.value:
                waiting.append(parent)
                waiting += self.loads(one)
            else:
                targets = self.assigned_to(one)
                if not targets:
                    found[one] = None
                for target in targets:
                    if isinstance(target, cst.Name) and not self._is_beyond_sight(target):
                        waiting += self.loads(one)
                    else:
                        found[target] = None
        return list(found)

    def _is_beyond_sight(self, target: cst.Name) -> bool:
        """Whether code elsewhere may read the name: a nested function, or whoever has the class."""
        scope = next(
            (a for a in self.ancestors(target) if isinstance(a, (cst.ClassDef, cst.FunctionDef))), None
        )
        return (
            isinstance(scope, cst.ClassDef) or target.value in self.captured or target.value in self.volatile
        )

    def assigned_to(self, node: cst.BaseExpression) -> list[cst.BaseExpression]:
        """The targets that take exactly the value of ``node``."""
        parent = self.parent(node)
        if isinstance(parent, cst.Assign):
            return [target.target for target in parent.targets]
        if isinstance(parent, cst.AnnAssign):
            return [parent.target]
        if isinstance(parent, cst.Element):
            container = self.parent(parent)
            assign = self.parent(container) if container is not None else None
            if isinstance(container, (cst.Tuple, cst.List)) and isinstance(assign, cst.Assign):
                pairs = [
                    pair
                    for target in assign.targets
                    if isinstance(target.target, (cst.Tuple, cst.List))
                    for pair in paired(target.target, container) or ()
                ]
                return [target for target, source in pairs if source is node]
        return []

    def is_place(self, node: cst.BaseExpression) -> bool:
        """Whether ``node`` only reads a place (``x``, ``self.buf``, ``feats[0]``), rather than computing something."""
        return place_of(node, Value) is not None

    def function_name(self, node: cst.CSTNode) -> str:
        """The name of the function around ``node``, or ``""``."""
        for ancestor in self.ancestors(node):
            if isinstance(ancestor, cst.FunctionDef):
                return ancestor.name.value
        return ""


def analyse(
    root: cst.Module | cst.FunctionDef,
    names: Names,
    positions: Positions,
    used_in_functions: frozenset[str] = frozenset(),
    rebound_in_functions: frozenset[str] = frozenset(),
    attribute: Attribute = lambda _: frozenset(),
) -> Flow:
    """Walk one function, or a module without the bodies of its functions.

    For a module, the two sets say which names its functions read, and which they declare ``global``. ``attribute``
    says what the class around a method assigns to an attribute of ``self``.
    """
    flow = Flow(names, positions, isinstance(root, cst.Module), used_in_functions, attribute)
    flow.volatile = rebound_in_functions if flow.is_module else _declared_elsewhere(root)
    walker = Statements(flow, names, flow.values)
    if isinstance(root, cst.Module):
        walker.block(root.body, root)
    else:
        walker.bind_parameters(root.params, root)
        walker.block(root.body, root)
    _walk_deferred(flow, names)
    return flow


def _walk_deferred(flow: Flow, names: Names) -> None:
    """The bodies of nested functions: none of the tests made around them holds when they run."""
    while flow.deferred:
        node = next(iter(flow.deferred))
        outer = flow.deferred.pop(node)
        flow.outer = {**flow.outer, **outer}
        walker = Statements(flow, names, flow.values)
        walker.is_nested = True
        walker.current = State(flow.values)
        if isinstance(node, cst.FunctionDef):
            walker.bind_parameters(node.params, node)
            walker.block(node.body, node)
        elif isinstance(node, cst.Lambda):
            walker.bind_parameters(node.params, node)
            walker.evaluate(node.body, node)
        elif isinstance(node, cst.GeneratorExp):
            walker.rounds(node, first_is_known=True)


def _declared_elsewhere(root: cst.CSTNode) -> frozenset[str]:
    """Names declared ``global`` or ``nonlocal`` somewhere in ``root``: any call may rebind them."""
    names: set[str] = set()
    waiting: list[cst.CSTNode] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (cst.Global, cst.Nonlocal)):
            names.update(item.name.value for item in node.names)
        elif isinstance(node, (cst.BaseStatement, cst.BaseSuite, cst.Module)):
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                value = getattr(node, field, ())
                waiting += value if isinstance(value, (list, tuple)) else [value] if value is not None else []
        elif isinstance(
            node, (cst.Else, cst.Finally, cst.ExceptHandler, cst.ExceptStarHandler, cst.MatchCase)
        ):
            waiting.append(node.body)
    return frozenset(names)
