"""The walk over expressions, in the order in which Python evaluates them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import libcst as cst

from esper_guard.lint.flow import conditions, effects, evidence, formats
from esper_guard.lint.flow.dotted import dotted
from esper_guard.lint.flow.layouts import MADE, of_format
from esper_guard.lint.flow.places import place_of
from esper_guard.lint.flow.values import (
    NOTHING,
    Condition,
    Facts,
    Kind,
    Place,
    State,
    Value,
    Values,
    assume,
    join,
    rank,
)
from esper_guard.lint.imports import Names
from esper_guard.lint.modules import Made, parsed
from esper_guard.lint.torch_names import ONLY_TENSORS_HAVE, RETURN_THE_MODULE

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow

Branches = tuple["State | None", "State | None"]


class Expressions:
    """Evaluates expressions against ``state`` and notes what it saw in ``flow``."""

    def __init__(self, flow: Flow, names: Names, values: Values) -> None:
        self.flow = flow
        self.names = names
        self.values = values
        self.current: State | None = State(values)
        self.is_nested = False

    @property
    def state(self) -> State:
        assert self.current is not None, "only reachable code is evaluated"
        return self.current

    # -- single expressions ---------------------------------------------------------------------------------------

    def evaluate(self, node: cst.BaseExpression, parent: cst.CSTNode) -> Value:
        """The value of ``node``; its facts are those of ``state`` afterwards."""
        self.flow.parents[node] = parent
        evaluator = _EVALUATORS.get(type(node))
        value = evaluator(self, node) if evaluator else self._parts(node)
        self.flow.record(node, value, self.state.facts_of(value))
        return value

    def _parts(self, node: cst.BaseExpression) -> Value:
        """Literals, containers, f-strings and whatever Python gets next: evaluate what stands in it."""
        for child in _children(node):
            self._part(child, node)
        if isinstance(node, (cst.List, cst.Tuple)):
            kinds = {self.flow.facts(element.value).kind for element in node.elements}
            if kinds == {Kind.TENSOR}:
                return self.state.fresh(node, evidence.TENSORS)
        is_plain = isinstance(node, _NEVER_A_TENSOR)
        return self.state.fresh(node, evidence.OTHER if is_plain else NOTHING)

    def _part(self, child: cst.CSTNode, parent: cst.CSTNode) -> None:
        if isinstance(child, cst.BaseExpression):
            self.evaluate(child, parent)
            return
        self.flow.parents[child] = parent
        for grandchild in _children(child):
            self._part(grandchild, child)

    def _name(self, node: cst.Name) -> Value:
        return self._load((node.value,), NOTHING)

    def _load(self, place: Place, facts: Facts) -> Value:
        value = self.state.places.get(place)
        if value is None:
            value = self.values.entry(place)
            self.state.places[place] = value
            if len(place) == 1 and self.is_nested:
                self.flow.captured.add(str(place[0]))
                facts = facts.refined(self.flow.outer_facts(str(place[0])))
        if facts != NOTHING and self.state.facts_of(value).kind is Kind.UNKNOWN:
            self.state.refine(value, facts)
        return value

    def place_of(self, node: cst.BaseExpression) -> Place | None:
        written = dotted(node)
        if written and "." in written and written.partition(".")[0] in self.names.modules:
            return None  # an attribute of a module
        return place_of(node, self._index_value)

    def _index_value(self, name: str) -> Value:
        value = self._load((name,), NOTHING)
        self.values.in_places.add(value)
        return value

    def _attribute(self, node: cst.Attribute) -> Value:
        base = self.evaluate(node.value, node)
        facts = evidence.from_attribute(self.state.facts_of(base), node.attr.value)
        place = self.place_of(node)
        if facts == NOTHING and place is not None:
            facts = self._own_module(place)
        return self.state.fresh(node, facts) if place is None else self._load(place, facts)

    def _own_module(self, place: Place) -> Facts:
        """What the class assigns to ``self.name``, if that is a module."""
        if len(place) != 2 or place[0] != "self" or not isinstance(place[1], str):
            return NOTHING
        return evidence.from_made(self.flow.attribute(place[1][1:]), self.names)

    def _subscript(self, node: cst.Subscript) -> Value:
        base = self.evaluate(node.value, node)
        for element in node.slice:
            self._part(element, node)
        facts = evidence.from_subscript(self.state.facts_of(base), node)
        place = self.place_of(node)
        return self.state.fresh(node, facts) if place is None else self._load(place, facts)

    def _binary(self, node: cst.BinaryOperation) -> Value:
        left = self.state.facts_of(self.evaluate(node.left, node))
        right = self.state.facts_of(self.evaluate(node.right, node))
        kinds = {left.kind, right.kind}
        if isinstance(node.operator, cst.MatrixMultiply) and kinds != {Kind.OTHER}:
            is_tensor = Kind.TENSOR in kinds
            return self.state.fresh(node, Facts(Kind.TENSOR if is_tensor else Kind.UNKNOWN, layout=MADE))
        if Kind.TENSOR in kinds:
            other = right if left.kind is Kind.TENSOR else left
            tensor = left if left.kind is Kind.TENSOR else right
            alone = isinstance(node.left if tensor is right else node.right, (cst.Integer, cst.Float))
            ranks = tensor.ranks if alone or other.ranks == tensor.ranks else NOTHING.ranks
            return self.state.fresh(node, Facts(Kind.TENSOR, ranks, layout=formats.after_binary(left, right)))
        if kinds == {Kind.OTHER}:
            return self.state.fresh(node, evidence.OTHER)
        layout = formats.after_binary(left, right)
        return self.state.fresh(node, Facts(layout=layout))

    def _unary(self, node: cst.UnaryOperation) -> Value:
        operand = self.evaluate(node.expression, node)
        facts = self.state.facts_of(operand)
        if isinstance(node.operator, cst.Not):
            condition = conditions.negated(self.condition_of(operand))
            return self.state.fresh(node, Facts(Kind.OTHER, condition=condition))
        return self.state.fresh(node, facts._replace(tests=NOTHING.tests, condition=None))

    def _comparison(self, node: cst.Comparison) -> Value:
        self.evaluate(node.left, node)
        for target in node.comparisons:
            self.flow.parents[target] = node
            self.evaluate(target.comparator, target)
        condition = conditions.from_comparison(node, self.names, self._value_again, self._condition_again)
        tensor = any(
            self.flow.facts(part).kind is Kind.TENSOR for part in (node.left, node.comparisons[0].comparator)
        )
        is_identity = isinstance(node.comparisons[0].operator, (cst.Is, cst.IsNot, cst.In, cst.NotIn))
        if tensor and not is_identity:
            return self.state.fresh(node, Facts(Kind.TENSOR, condition=condition))
        return self.state.fresh(node, Facts(condition=condition))

    def _boolean(self, node: cst.BooleanOperation) -> Value:
        """``a and b``: ``b`` runs only where ``a`` was true. Its value is one of the two."""
        is_and = isinstance(node.operator, cst.And)
        left = self.evaluate(node.left, node)
        before = self.state
        left_condition = self.condition_of(left)
        self.current = assume(before, left_condition, is_and).copy()
        right = self.evaluate(node.right, node)
        right_condition = self.condition_of(right)
        facts = before.facts_of(left).joined(self.state.facts_of(right))
        self.current = join(node, (assume(before, left_condition, not is_and), self.state))
        combine = conditions.both if is_and else conditions.either
        self._merged(node, (left, right))
        return self.state.fresh(
            node, facts._replace(condition=combine(left_condition, right_condition)), "boolean"
        )

    def _conditional(self, node: cst.IfExp) -> Value:
        if_true, if_false = self.branch(node.test, node)
        outcomes: list[tuple[Value, Facts]] = []
        ends: list[State | None] = []
        for state, expression in ((if_true, node.body), (if_false, node.orelse)):
            if state is None:
                continue
            self.current = state
            value = self.evaluate(expression, node)
            outcomes.append((value, self.state.facts_of(value)))
            ends.append(self.state)
        self.current = join(node, ends)
        facts = outcomes[0][1] if len(outcomes) == 1 else outcomes[0][1].joined(outcomes[1][1])
        self._merged(node, [value for value, _ in outcomes])
        return self.state.fresh(node, facts, "conditional")

    def _merged(self, node: cst.BaseExpression, operands: Sequence[Value]) -> None:
        label = "boolean" if isinstance(node, cst.BooleanOperation) else "conditional"
        merged = self.values.of(node, label)
        for operand in operands:
            self.values.merged_into.setdefault(operand, set()).add(merged)

    def _walrus(self, node: cst.NamedExpr) -> Value:
        value = self.evaluate(node.value, node)
        if isinstance(node.target, cst.Name):
            self.flow.walrus_names.add(node.target.value)
            self.bind_name(node.target.value, value)
        return value

    def _await(self, node: cst.Await) -> Value:
        self.evaluate(node.expression, node)
        self._anything_may_run(node)
        return self.state.fresh(node)

    def _yield(self, node: cst.Yield) -> Value:
        if isinstance(node.value, cst.From):
            self.flow.parents[node.value] = node
            self.evaluate(node.value.item, node.value)
        elif node.value is not None:
            self.evaluate(node.value, node)
        self._anything_may_run(node)
        return self.state.fresh(node)

    def _anything_may_run(self, node: cst.CSTNode) -> None:
        for place in [p for p in self.state.places if len(p) > 1 or p[0] in self.flow.volatile]:
            self.state.forget(place, node)

    # -- calls ----------------------------------------------------------------------------------------------------

    def _call(self, node: cst.Call) -> Value:
        function = node.func
        receiver: Value | None = None
        if isinstance(function, cst.Attribute):
            receiver = self.evaluate(function.value, function)
            self.flow.parents[function] = node
        else:
            self.evaluate(function, node)
        arguments = [self._argument(arg, node) for arg in node.args]
        self.flow.add_call(node)
        origin = self.origin_of(function)
        made = self._callee(function)
        facts = self._call_facts(node, origin, receiver, arguments, made)
        condition = conditions.from_call(node, self.names, self._value_again, self._condition_again)
        self._effects_of_call(node, origin)
        if isinstance(function, cst.Attribute) and receiver is not None and not origin:
            name = function.attr.value
            is_own = self.place_of(function.value) in (("self",), ("cls",))
            if (
                name in ONLY_TENSORS_HAVE
                and not is_own
                and self.state.facts_of(receiver).kind is Kind.UNKNOWN
            ):
                self.state.refine(receiver, evidence.TENSOR)
            if name in effects.CHANGES_LAYOUT or name == "detach_":
                return self._changed_in_place(node, function.value, facts)
        module, _, name = origin.rpartition(".")
        if module == "torch.Tensor" and name in effects.CHANGES_LAYOUT and node.args:
            return self._changed_in_place(node, node.args[0].value, facts)
        if receiver is not None and self._is_module_itself(node, receiver):
            return receiver
        return self.state.fresh(node, facts._replace(condition=condition))

    def _is_module_itself(self, call: cst.Call, receiver: Value) -> bool:
        """``module.to(...)``, ``module.eval()`` and the like return the module they are called on."""
        is_module = self.state.facts_of(receiver).kind is Kind.MODULE
        return is_module and cast(cst.Attribute, call.func).attr.value in RETURN_THE_MODULE

    def origin_of(self, function: cst.BaseExpression) -> str:
        """The full name of a function: of a builtin, a local class or function, or through an import; else ``""``."""
        return self.flow.origin(function)

    def _argument(self, arg: cst.Arg, call: cst.Call) -> Facts:
        self.flow.parents[arg] = call
        if isinstance(arg.value, cst.GeneratorExp) and _consumes(call):
            return self.state.facts_of(self._consumed_generator(arg.value, arg))
        return self.state.facts_of(self.evaluate(arg.value, arg))

    def _callee(self, function: cst.BaseExpression) -> frozenset[Made]:
        """What the module that is called may have been made by."""
        if not isinstance(function, cst.Attribute):
            return self.flow.facts(function).made
        place = self.place_of(function)
        if place is None:
            return frozenset()
        value = self.state.places.get(place)
        known = self.state.facts_of(value).made if value is not None else frozenset()
        return known or self._own_module(place).made

    def _call_facts(
        self,
        node: cst.Call,
        origin: str,
        receiver: Value | None,
        arguments: list[Facts],
        made: frozenset[Made],
    ) -> Facts:
        if made:
            self.flow.callees[node] = made
            return evidence.from_modules(made, arguments)
        if isinstance(node.func, cst.Attribute) and receiver is not None and not origin:
            known = self.state.facts_of(receiver)
            self._converted_in_place(node, node.func.attr.value, receiver)
            return evidence.from_method(node.func.attr.value, node, known, self.names)
        if origin in ("next", "iter") and len(node.args) >= 1:
            if _mentions_loader(node.args[0].value):
                return Facts(Kind.BATCH)
            return evidence.element_of(arguments[0]) if origin == "next" else arguments[0]
        if origin == "einops.rearrange" and len(node.args) > 1:
            known = Facts(ranks=evidence.einops_ranks(node.args[1].value, right=False))
            self.state.refine(self._value_again(node.args[0].value), known)
        facts = evidence.from_function(origin, node, self.names, arguments)
        if facts.kind is Kind.MODULE:
            return facts._replace(made=frozenset(parsed(self.flow.positions.one_line(node), self.names)))
        return facts

    def _converted_in_place(self, node: cst.Call, method: str, module: Value) -> None:
        """``module.to(memory_format=...)`` converts the module itself."""
        if method == "to" and self.state.facts_of(module).kind is Kind.MODULE:
            layout = of_format(formats.named_format(method, node.args, self.names))
            self.state.refine(module, Facts(layout=layout))

    def _changed_in_place(self, node: cst.Call, tensor: cst.BaseExpression, facts: Facts) -> Value:
        """``x.t_()``, ``x.detach_()``: the place holds something else from here on."""
        place = self.place_of(tensor)
        value = self.state.fresh(node, Facts(Kind.TENSOR, facts.ranks))
        if place is not None:
            self.state.bind(place, value)
        return value

    def _effects_of_call(self, node: cst.Call, origin: str) -> None:
        """Whatever is reached through an object that is called, or handed over, may change."""
        if effects.is_pure_function(origin):
            return
        function = node.func
        if isinstance(function, cst.Attribute) and not origin:
            is_own = self.place_of(function.value) in (("self",), ("cls",))
            if effects.is_pure_method(function.attr.value) and not is_own:
                return
        for name in self.flow.volatile:
            if (name,) in self.state.places:
                self.state.forget((name,), node)
        touched = [place for arg in node.args for place in self._mentioned(arg.value)]
        if isinstance(function, cst.Attribute):
            touched += [("self",)] if _is_super(function.value) else self._mentioned(function.value)
        else:
            touched += self._mentioned(function)
            made_by = self.flow.latest[function].node
            if isinstance(made_by, (cst.FunctionDef, cst.Lambda)):  # a closure may reach anything
                self._anything_may_run(node)
            for place in self.state.places_holding(self.flow.latest[function]):
                touched += [place[:-1]] if len(place) > 1 else []  # a bound method, kept in a variable
        for place in touched:
            self.state.forget_below(place, node)

    def _mentioned(self, node: cst.CSTNode) -> list[Place]:
        """The places through which whoever gets the value of ``node`` can reach something."""
        if isinstance(node, (cst.Name, cst.Attribute, cst.Subscript)):
            place = self.place_of(node)
            return [] if place is None else [place]
        if isinstance(node, cst.Lambda):
            return [place for place in self.state.places if len(place) == 1]
        if isinstance(node, (cst.BaseString, cst.BaseNumber)):
            return []
        return [place for child in _children(node) for place in self._mentioned(child)]

    # -- scopes inside expressions --------------------------------------------------------------------------------

    def _comprehension(self, node: cst.BaseComp) -> Value:
        """The element is evaluated for each round of the loops, under their conditions."""
        before = self.state.copy()
        own = self.rounds(node)
        changed = self._changed_since(before, own)
        if changed:  # what one round changes is what the next one, and the code after, find
            self.current = before.copy()
            for place in changed:
                self.state.forget(place, node)
            before = self.state.copy()
            self.rounds(node)
        self.current = before
        kind = self.flow.facts(node.elt).kind if isinstance(node, cst.BaseSimpleComp) else Kind.OTHER
        return self.state.fresh(node, evidence.TENSORS if kind is Kind.TENSOR else evidence.OTHER)

    def _changed_since(self, before: State, own: frozenset[str]) -> list[Place]:
        """The places that hold something else now, but for names of an inner scope."""
        return [
            place
            for place, value in self.state.places.items()
            if place[0] not in own
            and (place in before.places or place[0] in self.flow.walrus_names)
            and before.places.get(place) is not value
        ]

    def rounds(self, node: cst.BaseComp, first_is_known: bool = False) -> frozenset[str]:
        """Walk the loops of a comprehension once; returns the names they bind.

        ``first_is_known``: the first iterable of a generator was evaluated where the generator was made.
        """
        own: set[str] = set()
        loop: cst.CompFor | None = node.for_in
        parent: cst.CSTNode = node
        while loop is not None:
            self.flow.parents[loop] = parent
            if first_is_known:
                iterable, first_is_known = self.flow.facts(loop.iter), False
            else:
                iterable = self.state.facts_of(self.evaluate(loop.iter, loop))
            if loop.asynchronous is not None:
                self._anything_may_run(loop)
            self.bind_target(loop.target, loop, self.element_facts(loop.iter, iterable))
            own |= _names_in(loop.target)
            for test in loop.ifs:
                self.flow.parents[test] = loop
                if_true, _ = self.branch(test.test, test)
                self.current = if_true or self.state
            parent, loop = loop, loop.inner_for_in
        if isinstance(node, cst.DictComp):
            self.evaluate(node.key, node)
            self.evaluate(node.value, node)
        else:
            self.evaluate(cast(cst.BaseSimpleComp, node).elt, node)
        return frozenset(own)

    def _generator(self, node: cst.GeneratorExp) -> Value:
        """A generator that is kept runs later: only its first iterable is evaluated here."""
        self.flow.parents[node.for_in] = node
        self.evaluate(node.for_in.iter, node.for_in)
        self.defer(node)
        return self.state.fresh(node, evidence.OTHER)

    def _consumed_generator(self, node: cst.GeneratorExp, parent: cst.CSTNode) -> Value:
        self.flow.parents[node] = parent
        value = self._comprehension(node)
        self.flow.record(node, value, self.state.facts_of(value))
        return value

    def _lambda(self, node: cst.Lambda) -> Value:
        self.evaluate_defaults(node.params)
        self.defer(node)
        return self.state.fresh(node, evidence.OTHER)

    def defer(self, node: cst.CSTNode) -> None:
        """Walk the body of a function, lambda or generator later: it runs at a time of its own."""
        self.flow.deferred[node] = {
            str(place[0]): (value, self.state.facts_of(value))
            for place, value in self.state.places.items()
            if len(place) == 1
        }

    def evaluate_defaults(self, parameters: cst.Parameters) -> None:
        self.flow.parents.setdefault(parameters, parameters)
        for parameter in (*parameters.posonly_params, *parameters.params, *parameters.kwonly_params):
            self.flow.parents[parameter] = parameters
            if parameter.default is not None:
                self.evaluate(parameter.default, parameter)

    def bind_parameters(self, parameters: cst.Parameters, owner: cst.CSTNode) -> None:
        listed = [*parameters.posonly_params, *parameters.params, *parameters.kwonly_params]
        starred = [p for p in (parameters.star_arg, parameters.star_kwarg) if isinstance(p, cst.Param)]
        for parameter in listed:
            facts = NOTHING
            if parameter.annotation is not None:
                facts = evidence.from_annotation(parameter.annotation.annotation, self.names)
            self.bind_name(parameter.name.value, self.state.fresh(parameter, facts))
        for parameter in starred:
            self.bind_name(parameter.name.value, self.state.fresh(parameter, evidence.OTHER))

    # -- binding --------------------------------------------------------------------------------------------------

    def bind_name(self, name: str, value: Value) -> None:
        self.state.bind((name,), value)
        self.flow.bound.setdefault(name, set()).add(value)

    def bind_target(self, target: cst.BaseExpression, node: cst.CSTNode, facts: Facts) -> None:
        """Bind ``target`` to something that ``node`` (a loop, a ``with``, an unpacking) makes anew."""
        self.flow.parents[target] = node
        if isinstance(target, (cst.Tuple, cst.List)):
            for element in target.elements:
                self.flow.parents[element] = target
                if isinstance(element, cst.StarredElement):
                    starred = evidence.TENSORS if facts.kind is Kind.TENSORS else evidence.OTHER
                    self.bind_target(element.value, element, starred)
                else:
                    self.bind_target(element.value, element, evidence.element_of(facts))
            return
        self.bind_value(target, node, self.state.fresh(target, facts, "target"))

    def bind_value(self, target: cst.BaseExpression, node: cst.CSTNode, value: Value) -> None:
        """Bind ``target``, which is no tuple, to a value that was computed before."""
        self.flow.parents[target] = node
        if isinstance(target, cst.Name):
            self.bind_name(target.value, value)
            return
        if isinstance(target, cst.Attribute):
            self.evaluate(target.value, target)
            owner = self.place_of(target.value)
            if target.attr.value == "data" and owner is not None:
                self.state.bind(owner, self.state.fresh(target, evidence.TENSOR, "data"))
                return
            self.state.forget_attribute(f".{target.attr.value}", target, but=owner)
        elif isinstance(target, cst.Subscript):
            owner_value = self.evaluate(target.value, target)
            for element in target.slice:
                self._part(element, target)
            if self.state.facts_of(owner_value).kind is Kind.TENSOR:
                return  # writing into a tensor keeps its layout
            self._forget_items(target)
        place = self.place_of(target)
        if place is not None:
            self.state.bind(place, value)

    def _forget_items(self, target: cst.Subscript) -> None:
        owner = self.place_of(target.value)
        if owner is not None and self.place_of(target) is None:
            self.state.forget_below(owner, target)

    def element_facts(self, iterable: cst.BaseExpression, facts: Facts) -> Facts:
        if _mentions_loader(iterable):
            return Facts(Kind.BATCH)
        return evidence.element_of(facts)

    # -- conditions -----------------------------------------------------------------------------------------------

    def condition_of(self, value: Value) -> Condition | None:
        return self.state.facts_of(value).condition

    def _condition_again(self, node: cst.BaseExpression) -> Condition | None:
        return self.condition_of(self._value_again(node))

    def _value_again(self, node: cst.BaseExpression) -> Value:
        """The value of an expression that was evaluated a moment ago."""
        return self.flow.latest[node]

    def branch(self, test: cst.BaseExpression, parent: cst.CSTNode) -> Branches:
        """Evaluate ``test``; the states where it is true and where it is false, each its own."""
        self.flow.parents[test] = parent
        if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
            if_true, if_false = self.branch(test.expression, test)
            return if_false, if_true
        if isinstance(test, cst.BooleanOperation):
            is_and = isinstance(test.operator, cst.And)
            left_true, left_false = self.branch(test.left, test)
            self.current = left_true if is_and else left_false
            if self.current is None:  # ``True or x``: the right side never runs
                return left_true, left_false
            right_true, right_false = self.branch(test.right, test)
            if is_and:
                return right_true, join(test, (left_false, right_false))
            return join(test, (left_true, right_true)), right_false
        if isinstance(test, cst.IfExp):
            return self._branch_of_conditional(test)
        condition = self.condition_of(self.evaluate(test, parent))
        if_true = assume(self.state, condition, True).copy()
        if_false = assume(self.state, condition, False).copy()
        constant = test.value if isinstance(test, (cst.Name, cst.Integer)) else None
        if constant in ("True", "1"):
            return if_true, None
        return (None, if_false) if constant in ("False", "0", "None") else (if_true, if_false)

    def _branch_of_conditional(self, test: cst.IfExp) -> Branches:
        """``a if c else b`` as a test: it is true where ``c`` and ``a`` are, or where only ``b`` is."""
        sides = zip(self.branch(test.test, test), (test.body, test.orelse), strict=True)
        outcomes: list[Branches] = []
        for state, expression in sides:
            if state is not None:
                self.current = state
                outcomes.append(self.branch(expression, test))
        if_true = join((test, True), [outcome[0] for outcome in outcomes])
        return if_true, join((test, False), [outcome[1] for outcome in outcomes])

    def unpacked_shape(self, targets: cst.Tuple | cst.List, shape: cst.BaseExpression) -> None:
        """``b, c, h, w = x.shape`` says that ``x`` has four dimensions."""
        if any(isinstance(element, cst.StarredElement) for element in targets.elements):
            return
        node: cst.BaseExpression | None = None
        if isinstance(shape, cst.Attribute) and shape.attr.value == "shape":
            node = shape.value
        elif isinstance(shape, cst.Call) and isinstance(shape.func, cst.Attribute) and not shape.args:
            node = shape.func.value if shape.func.attr.value == "size" else None
        if node is not None:
            self.state.refine(self._value_again(node), Facts(ranks=rank(len(targets.elements))))


def _names_in(target: cst.CSTNode) -> set[str]:
    if isinstance(target, cst.Name):
        return {target.value}
    return {name for child in _children(target) for name in _names_in(child)}


def _consumes(call: cst.Call) -> bool:
    """Whether a generator given to this call runs before the call returns."""
    if isinstance(call.func, cst.Attribute):
        return call.func.attr.value in ("join", "extend", "update")
    return isinstance(call.func, cst.Name) and call.func.value in _CONSUMERS


_CONSUMERS = frozenset("all any dict frozenset list max min set sorted sum tuple".split())


def _mentions_loader(node: cst.BaseExpression) -> bool:
    """``loader``, ``self.train_loader``, ``iter(data_loader)``, ``enumerate(loader)``: a data loader by its name."""
    if isinstance(node, cst.Call):
        if isinstance(node.func, cst.Name) and node.func.value in ("iter", "next", "tqdm"):
            return bool(node.args) and _mentions_loader(node.args[0].value)
        return False
    name = (
        node.attr.value
        if isinstance(node, cst.Attribute)
        else node.value
        if isinstance(node, cst.Name)
        else ""
    )
    return name.lower().endswith("loader")


def _is_super(node: cst.BaseExpression) -> bool:
    return isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value == "super"


# Where expressions stand in a node: LibCST's own ``children`` visits whitespace as well, at ten times the cost.
_FIELDS: dict[type[cst.CSTNode], tuple[str, ...]] = {
    cst.Tuple: ("elements",),
    cst.List: ("elements",),
    cst.Set: ("elements",),
    cst.Dict: ("elements",),
    cst.Element: ("value",),
    cst.DictElement: ("key", "value"),
    cst.StarredElement: ("value",),
    cst.StarredDictElement: ("value",),
    cst.SubscriptElement: ("slice",),
    cst.Index: ("value",),
    cst.Slice: ("lower", "upper", "step"),
    cst.FormattedString: ("parts",),
    cst.FormattedStringText: (),
    cst.FormattedStringExpression: ("expression", "format_spec"),
    cst.ConcatenatedString: ("left", "right"),
    cst.IfExp: ("test", "body", "orelse"),
    cst.BooleanOperation: ("left", "right"),
    cst.BinaryOperation: ("left", "right"),
    cst.UnaryOperation: ("expression",),
    cst.Call: ("func", "args"),
    cst.Arg: ("value",),
    cst.SimpleString: (),
    cst.Integer: (),
    cst.Float: (),
    cst.Imaginary: (),
    cst.Ellipsis: (),
}


def _children(node: cst.CSTNode) -> Sequence[cst.CSTNode]:
    fields = _FIELDS.get(type(node))
    if fields is None:
        return [c for c in node.children if not isinstance(c, cst.BaseParenthesizableWhitespace)]
    found: list[cst.CSTNode] = []
    for field in fields:
        value = getattr(node, field)
        if isinstance(value, (list, tuple)):
            found += value
        elif value is not None:
            found.append(value)
    return found


_NEVER_A_TENSOR = (
    cst.BaseString,
    cst.BaseNumber,
    cst.Tuple,
    cst.List,
    cst.Dict,
    cst.Set,
)

_EVALUATORS: dict[type[cst.CSTNode], Callable[[Expressions, Any], Value]] = {
    cst.Name: Expressions._name,
    cst.Attribute: Expressions._attribute,
    cst.Subscript: Expressions._subscript,
    cst.BinaryOperation: Expressions._binary,
    cst.UnaryOperation: Expressions._unary,
    cst.Comparison: Expressions._comparison,
    cst.BooleanOperation: Expressions._boolean,
    cst.IfExp: Expressions._conditional,
    cst.NamedExpr: Expressions._walrus,
    cst.Await: Expressions._await,
    cst.Yield: Expressions._yield,
    cst.Call: Expressions._call,
    cst.ListComp: Expressions._comprehension,
    cst.SetComp: Expressions._comprehension,
    cst.DictComp: Expressions._comprehension,
    cst.GeneratorExp: Expressions._generator,
    cst.Lambda: Expressions._lambda,
}
