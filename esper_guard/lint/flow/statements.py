"""The walk over statements: forward, joined where paths meet, repeated for loops until nothing changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import libcst as cst

from esper_guard.lint.flow import evidence
from esper_guard.lint.flow.dotted import dotted
from esper_guard.lint.flow.expressions import Expressions
from esper_guard.lint.flow.values import NOTHING, Facts, Kind, State, Value, assume, join

_MAX_ROUNDS = 12
_SUPPRESSES = re.compile(r"suppress|raises|assertRaises|ExitStack|ignore|catch", re.IGNORECASE)


class _Loop:
    """Where ``break`` and ``continue`` of one loop lead."""

    def __init__(self) -> None:
        self.breaks: list[State] = []
        self.continues: list[State] = []


class Statements(Expressions):
    """Walks the body of one function, or of a module around its functions."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._loops: list[_Loop] = []
        self._raising: list[list[State]] = []  # per enclosing try: the states in which an exception may leave

    def block(self, body: cst.BaseSuite | Sequence[cst.BaseStatement], parent: cst.CSTNode) -> None:
        if isinstance(body, cst.BaseSuite):
            self.flow.parents[body] = parent
            parent, statements = body, body.body
        else:
            statements = body
        for statement in statements:
            if self.current is None:
                return
            self.flow.parents[statement] = parent
            self._statement(statement)

    def _statement(self, node: cst.CSTNode) -> None:
        if isinstance(node, (cst.SimpleStatementLine, cst.SimpleStatementSuite)):
            for small in node.body:
                if self.current is None:
                    return
                self.flow.parents[small] = node
                self._statement(small)
            return
        self._may_raise()
        handler = _HANDLERS.get(type(node))
        if handler is not None:
            handler(self, node)
        self._may_raise()

    def _may_raise(self) -> None:
        if self.current is not None:
            for states in self._raising:
                states.append(self.current.copy())

    # -- small statements -----------------------------------------------------------------------------------------

    def _expression(self, node: cst.Expr) -> None:
        self.flow.statements.append(node)
        self.evaluate(node.value, node)

    def _assign(self, node: cst.Assign) -> None:
        value = self.evaluate(node.value, node)
        for target in node.targets:
            self.flow.parents[target] = node
            self._assign_to(target.target, node.value, value, target)

    def _assign_to(
        self, target: cst.BaseExpression, source: cst.BaseExpression, value: Value, node: cst.CSTNode
    ) -> None:
        if not isinstance(target, (cst.Tuple, cst.List)):
            self.bind_value(target, node, value)
            return
        self.unpacked_shape(target, source)
        pairs = paired(target, source)
        if pairs is None:
            facts = self.state.facts_of(value)
            if facts.kind is Kind.UNKNOWN:
                facts = self.element_facts(source, facts)
            self.bind_target(target, node, facts)
            return
        self.flow.parents[target] = node
        for one, expression in pairs:
            self._assign_to(one, expression, self.flow.latest[expression], target)

    def _annotated(self, node: cst.AnnAssign) -> None:
        declared = evidence.from_annotation(node.annotation.annotation, self.names)
        if node.value is None:
            return
        value = self.evaluate(node.value, node)
        if self.state.facts_of(value).kind is Kind.UNKNOWN:
            self.state.refine(value, declared)
        self.bind_value(node.target, node, value)

    def _augmented(self, node: cst.AugAssign) -> None:
        facts = self.state.facts_of(self.evaluate(node.target, node))
        other = self.state.facts_of(self.evaluate(node.value, node))
        is_tensor = Kind.TENSOR in (facts.kind, other.kind)
        value = self.state.fresh(node, Facts(Kind.TENSOR, facts.ranks) if is_tensor else NOTHING)
        self.bind_value(node.target, node, value)

    def _delete(self, node: cst.Del) -> None:
        self._delete_target(node.target, node)

    def _delete_target(self, target: cst.BaseExpression, parent: cst.CSTNode) -> None:
        if isinstance(target, (cst.Tuple, cst.List)):
            self.flow.parents[target] = parent
            for element in target.elements:
                self.flow.parents[element] = target
                self._delete_target(element.value, element)
            return
        self.evaluate(target, parent)
        place = self.place_of(target)
        if place is not None:
            self.state.bind(place, self.state.fresh(target, label="deleted"))
        if isinstance(target, cst.Subscript):  # the items behind it move up
            owner = self.place_of(target.value)
            if owner is not None:
                self.state.forget_below(owner, target)

    def _return(self, node: cst.Return) -> None:
        if node.value is not None:
            self.evaluate(node.value, node)
        self._may_raise()
        self.current = None

    def _raise(self, node: cst.Raise) -> None:
        if node.exc is not None:
            self.evaluate(node.exc, node)
        if node.cause is not None:
            self.flow.parents[node.cause] = node
            self.evaluate(node.cause.item, node.cause)
        self._may_raise()
        self.current = None

    def _assert(self, node: cst.Assert) -> None:
        if_true, if_false = self.branch(node.test, node)
        if node.msg is not None and if_false is not None:
            self.current = if_false
            self.evaluate(node.msg, node)
        self.current = if_true

    def _break(self, node: cst.Break) -> None:
        if self._loops:
            self._loops[-1].breaks.append(self.state)
        self.current = None

    def _continue(self, node: cst.Continue) -> None:
        if self._loops:
            self._loops[-1].continues.append(self.state)
        self.current = None

    def _import(self, node: cst.Import | cst.ImportFrom) -> None:
        if isinstance(node.names, cst.ImportStar):
            return
        for alias in node.names:
            name = alias.asname.name if alias.asname else alias.name
            if isinstance(name, cst.Name) and (name.value,) in self.state.places:
                self.bind_name(name.value, self.state.fresh(alias))

    # -- compound statements --------------------------------------------------------------------------------------

    def _if(self, node: cst.If) -> None:
        if_true, if_false = self.branch(node.test, node)
        self.current = if_true
        self.block(node.body, node)
        end = self.current
        self.current = if_false
        if if_false is not None and node.orelse is not None:
            self.flow.parents[node.orelse] = node
            if isinstance(node.orelse, cst.If):
                self._if(node.orelse)
            else:
                self.block(node.orelse.body, node.orelse)
        self.current = join(node, (end, self.current))

    def _while(self, node: cst.While) -> None:
        def enter() -> State | None:
            if_true, if_false = self.branch(node.test, node)
            self.current = if_true
            return if_false

        self._loop(node, enter)

    def _for(self, node: cst.For) -> None:
        iterable = self.state.facts_of(self.evaluate(node.iter, node))
        facts = self.element_facts(node.iter, iterable)

        def enter() -> State | None:
            if node.asynchronous is not None:
                self._anything_may_run(node)
            exhausted = self.state.copy()
            self.bind_target(node.target, node, facts)
            return exhausted

        self._loop(node, enter)

    def _loop(self, node: cst.While | cst.For, enter: Callable[[], State | None]) -> None:
        before = self.state
        head: State | None = before.copy()
        for _ in range(_MAX_ROUNDS):
            assert head is not None
            self.current = head.copy()
            self._loops.append(_Loop())
            left = enter()
            self.block(node.body, node)
            loop = self._loops.pop()
            again = join((node, "again"), (*loop.continues, self.current))
            following = join((node, "head"), (before, again))
            if following == head:
                break
            head = following
        self.current = left
        if node.orelse is not None:
            self.flow.parents[node.orelse] = node
            self.block(node.orelse.body, node.orelse)
        self.current = join((node, "end"), (*loop.breaks, self.current))

    def _try(self, node: cst.Try | cst.TryStar) -> None:
        leaving: list[State] = []  # whatever state the finally block may be entered in
        if node.finalbody is not None:
            self._raising.append(leaving)
        loop = self._loops[-1] if self._loops else _Loop()
        breaks, continues = len(loop.breaks), len(loop.continues)

        caught: list[State] = []
        self._raising.append(caught)
        self._may_raise()
        self.block(node.body, node)
        self._raising.pop()
        if node.orelse is not None:
            self.flow.parents[node.orelse] = node
            self.block(node.orelse.body, node.orelse)
        ends = [self.current]
        for handler in node.handlers:
            self.flow.parents[handler] = node
            self.current = join((handler, "caught"), caught)
            if self.current is None:
                continue
            self.current = self.current.copy()
            if handler.type is not None:
                self.evaluate(handler.type, handler)
            if handler.name is not None:
                self.bind_target(handler.name.name, handler.name, evidence.OTHER)
            self.block(handler.body, handler)
            ends.append(self.current)
        self.current = join(node, ends)
        if node.finalbody is not None:
            self._raising.pop()
            self.flow.parents[node.finalbody] = node
            self._finally(node.finalbody, leaving, loop.breaks, breaks)
            self._finally(node.finalbody, [], loop.continues, continues)

    def _finally(self, node: cst.Finally, leaving: list[State], jumps: list[State], first: int) -> None:
        """Walk the block for each way into it; jumps out of the loop pass through it, too."""
        normal = self.current
        jumping = join((node, "jump"), jumps[first:])
        if jumping is not None:
            self.current = jumping.copy()
            self.block(node.body, node)
            del jumps[first:]
            if self.current is not None:
                jumps.append(self.current)
        raised = join((node, "raised"), leaving)
        if raised is not None:
            self.current = raised.copy()
            self.block(node.body, node)
        self.current = normal
        if leaving:
            self.block(node.body, node)

    def _with(self, node: cst.With) -> None:
        suppresses = False
        for item in node.items:
            self.flow.parents[item] = node
            self.evaluate(item.item, item)
            written = dotted(item.item.func) if isinstance(item.item, cst.Call) else None
            suppresses = suppresses or bool(_SUPPRESSES.search(written or ""))
            if item.asname is not None:
                self.flow.parents[item.asname] = item
                self.bind_target(item.asname.name, item.asname, NOTHING)
        if node.asynchronous is not None:
            self._anything_may_run(node)
        left: list[State] = []
        if suppresses:
            self._raising.append(left)
            self._may_raise()
        self.block(node.body, node)
        if suppresses:
            self._raising.pop()
            self.current = join(node, (self.current, *left))

    def _match(self, node: cst.Match) -> None:
        subject = self.evaluate(node.subject, node)
        condition = self.condition_of(subject)
        ends: list[State | None] = []
        for case in node.cases:
            if self.current is None:
                break
            self.flow.parents[case] = node
            unmatched: State | None = self.state.copy()
            singleton = case.pattern.pattern if isinstance(case.pattern, cst.MatchAs) else case.pattern
            if isinstance(singleton, cst.MatchSingleton):
                outcome = singleton.value.value == "True"
                unmatched = assume(self.state, condition, not outcome).copy()
                self.current = assume(self.state, condition, outcome).copy()
            captures = _captured_names(case.pattern)
            for name in captures:
                whole = case.pattern.name if isinstance(case.pattern, cst.MatchAs) else None
                self.bind_name(
                    name,
                    subject
                    if whole is not None and whole.value == name
                    else self.state.fresh(case, label=name),
                )
            if _matches_anything(case.pattern):
                unmatched = None
            if case.guard is not None:
                self.current, refused = self.branch(case.guard, case)
                unmatched = join((case, "refused"), (unmatched, refused))
            self.block(case.body, case)
            ends.append(self.current)
            self.current = unmatched
        self.current = join(node, (*ends, self.current))

    def _function(self, node: cst.FunctionDef) -> None:
        for decorator in node.decorators:
            self.flow.parents[decorator] = node
            self.evaluate(decorator.decorator, decorator)
        self.flow.parents[node.params] = node
        self.evaluate_defaults(node.params)
        if not self.flow.is_module:
            self.defer(node)
        self.bind_name(node.name.value, self.state.fresh(node, evidence.OTHER))

    def _class(self, node: cst.ClassDef) -> None:
        for decorator in node.decorators:
            self.flow.parents[decorator] = node
            self.evaluate(decorator.decorator, decorator)
        for arg in (*node.bases, *node.keywords):
            self.flow.parents[arg] = node
            self.evaluate(arg.value, arg)
        outside = self.state.copy()
        self.block(node.body, node)
        changed = [] if self.current is None else self._changed_since(outside, frozenset())
        self.current = outside
        for place in changed:
            if len(place) > 1:  # names bound in the body are the class's own
                self.state.forget(place, node)
        self.bind_name(node.name.value, self.state.fresh(node, evidence.OTHER))


def paired(
    target: cst.Tuple | cst.List, source: cst.BaseExpression
) -> list[tuple[cst.BaseExpression, cst.BaseExpression]] | None:
    """``a, b = x, y`` is two assignments; anything starred or of another length is not."""
    if not isinstance(source, (cst.Tuple, cst.List)) or len(source.elements) != len(target.elements):
        return None
    elements = [*target.elements, *source.elements]
    if any(isinstance(element, cst.StarredElement) for element in elements):
        return None
    return [(one.value, other.value) for one, other in zip(target.elements, source.elements, strict=True)]


def _captured_names(pattern: cst.CSTNode) -> list[str]:
    names = []
    if isinstance(pattern, (cst.MatchAs, cst.MatchStar)) and pattern.name is not None:
        names.append(pattern.name.value)
    if isinstance(pattern, cst.MatchMapping) and pattern.rest is not None:
        names.append(pattern.rest.value)
    for child in pattern.children:
        names += _captured_names(child)
    return names


def _matches_anything(pattern: cst.MatchPattern) -> bool:
    return isinstance(pattern, cst.MatchAs) and pattern.pattern is None


_HANDLERS: dict[type[cst.CSTNode], Callable[[Statements, Any], None]] = {
    cst.Expr: Statements._expression,
    cst.Assign: Statements._assign,
    cst.AnnAssign: Statements._annotated,
    cst.AugAssign: Statements._augmented,
    cst.Del: Statements._delete,
    cst.Return: Statements._return,
    cst.Raise: Statements._raise,
    cst.Assert: Statements._assert,
    cst.Break: Statements._break,
    cst.Continue: Statements._continue,
    cst.Import: Statements._import,
    cst.ImportFrom: Statements._import,
    cst.If: Statements._if,
    cst.While: Statements._while,
    cst.For: Statements._for,
    cst.Try: Statements._try,
    cst.TryStar: Statements._try,
    cst.With: Statements._with,
    cst.Match: Statements._match,
    cst.FunctionDef: Statements._function,
    cst.ClassDef: Statements._class,
}
