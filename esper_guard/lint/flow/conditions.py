"""Tests as formulas: what the truth of an expression says of the values in it."""

from __future__ import annotations

from collections.abc import Callable

import libcst as cst

from esper_guard.lint.flow.dotted import dotted
from esper_guard.lint.flow.evidence import from_type
from esper_guard.lint.flow.formats import format_named_by
from esper_guard.lint.flow.literals import whole_number
from esper_guard.lint.flow.values import (
    ALL_RANKS,
    NOTHING,
    And,
    Atom,
    Condition,
    ContiguityTest,
    Facts,
    Kind,
    Not,
    Value,
    rank,
)
from esper_guard.lint.imports import Names

_LARGEST = 32

ValueOf = Callable[[cst.BaseExpression], Value]
ConditionOf = Callable[[cst.BaseExpression], "Condition | None"]


def negated(condition: Condition | None) -> Condition | None:
    return None if condition is None else Not(condition)


def both(left: Condition | None, right: Condition | None) -> Condition | None:
    size = _size(left) + _size(right)
    return And(left, right, size) if 0 < size <= _LARGEST else None


def _size(condition: Condition | None) -> int:
    if condition is None:
        return 0
    if isinstance(condition, Not):
        return _size(condition.operand)
    return condition.size if isinstance(condition, And) else 1


def either(left: Condition | None, right: Condition | None) -> Condition | None:
    """De Morgan: what ``left or right`` says is what ``not (not left and not right)`` says."""
    return negated(both(negated(left), negated(right)))


def memory_format_of(call: cst.Call, names: Names) -> str:
    """The memory format a call names: ``contiguous_format`` if none, ``?`` if it can't be told."""
    for arg in call.args:
        if arg.keyword is None or arg.keyword.value == "memory_format":
            return format_named_by(arg.value, names)
    return "contiguous_format"


def from_call(call: cst.Call, names: Names, value_of: ValueOf, condition_of: ConditionOf) -> Condition | None:
    """What ``x.is_contiguous()``, ``isinstance(x, ...)``, ``torch.is_tensor(x)`` and ``bool(...)`` say."""
    function = call.func
    if isinstance(function, cst.Attribute) and function.attr.value == "is_contiguous":
        written = dotted(function)
        if written and names.resolve(written) == "torch.Tensor.is_contiguous":
            if not call.args:
                return None
            return _contiguity(value_of(call.args[0].value), memory_format_of(_without_first(call), names))
        return _contiguity(value_of(function.value), memory_format_of(call, names))
    written = dotted(function)
    origin = names.resolve(written) if written else None
    if origin == "torch.is_tensor" and len(call.args) == 1:
        return Atom(value_of(call.args[0].value), Facts(Kind.TENSOR), Facts(Kind.OTHER))
    if origin == "bool" and len(call.args) == 1:
        return condition_of(call.args[0].value)
    if origin == "isinstance" and len(call.args) == 2:
        return _isinstance(value_of(call.args[0].value), call.args[1].value, names)
    return None


def _without_first(call: cst.Call) -> cst.Call:
    return cst.Call(call.func, call.args[1:])


def _contiguity(value: Value, memory_format: str) -> Condition:
    return Atom(
        value,
        Facts(tests=frozenset((ContiguityTest(memory_format, True),))),
        Facts(tests=frozenset((ContiguityTest(memory_format, False),))),
    )


def _isinstance(value: Value, types: cst.BaseExpression, names: Names) -> Condition:
    members = [e.value for e in types.elements] if isinstance(types, (cst.Tuple, cst.List)) else [types]
    known = []
    for member in members:
        written = dotted(member)
        known.append(from_type(written, names) if written else NOTHING)
    kinds = [facts.kind for facts in known]
    if_true = Facts(kinds[0]) if len(set(kinds)) == 1 else NOTHING
    if all(facts.made for facts in known):
        if_true = if_true._replace(made=frozenset(made for facts in known for made in facts.made))
    if set(kinds) == {Kind.OTHER, Kind.MODULE}:
        if_true = Facts(Kind.OTHER)
    if_false = Facts(Kind.OTHER) if _names_tensor(members, names) else NOTHING
    return Atom(value, if_true, if_false)


def _names_tensor(members: list[cst.BaseExpression], names: Names) -> bool:
    return any(names.resolve(dotted(member) or "") == "torch.Tensor" for member in members)


def from_comparison(
    node: cst.Comparison, names: Names, value_of: ValueOf, condition_of: ConditionOf
) -> Condition | None:
    """``test is True``, ``x is None``, ``x.dim() == 4``, ``len(x.shape) in (3, 4)``, ``type(x) is torch.Tensor``."""
    if len(node.comparisons) != 1:
        return None
    operator, right = node.comparisons[0].operator, node.comparisons[0].comparator
    left = node.left
    if isinstance(operator, (cst.Is, cst.IsNot, cst.Equal, cst.NotEqual)):
        same = isinstance(operator, (cst.Is, cst.Equal))
        for one, other in ((left, right), (right, left)):
            constant = other.value if isinstance(other, cst.Name) else None
            if constant in ("True", "False"):
                condition = condition_of(one)
                return condition if same is (constant == "True") else negated(condition)
        if isinstance(right, cst.Name) and right.value == "None":
            condition = Atom(value_of(left), Facts(Kind.OTHER), NOTHING)
            return condition if same else Not(condition)
    measured = _rank_measured(left)
    if measured is not None:
        ranks = _ranks_allowed(operator, right)
        return None if ranks is None else _rank_test(value_of(measured), ranks)
    measured = _rank_measured(right)
    if measured is not None and type(operator) in _MIRRORED:
        ranks = _ranks_allowed(_MIRRORED[type(operator)](), left)
        return None if ranks is None else _rank_test(value_of(measured), ranks)
    return None


def _rank_test(value: Value, ranks: int) -> Condition:
    return Atom(value, Facts(ranks=ranks), Facts(ranks=ALL_RANKS & ~ranks))


def _rank_measured(node: cst.BaseExpression) -> cst.BaseExpression | None:
    """``x`` in ``x.dim()``, ``x.ndim``, ``x.ndimension()``, ``len(x.shape)`` and ``len(x.size())``."""
    if isinstance(node, cst.Attribute) and node.attr.value == "ndim":
        return node.value
    if not isinstance(node, cst.Call):
        return None
    function = node.func
    if isinstance(function, cst.Attribute) and function.attr.value in ("dim", "ndimension") and not node.args:
        return function.value
    if isinstance(function, cst.Name) and function.value == "len" and len(node.args) == 1:
        shape = node.args[0].value
        if isinstance(shape, cst.Call) and isinstance(shape.func, cst.Attribute) and not shape.args:
            return shape.func.value if shape.func.attr.value == "size" else None
        if isinstance(shape, cst.Attribute) and shape.attr.value == "shape":
            return shape.value
    return None


_MIRRORED: dict[type[cst.BaseCompOp], type[cst.BaseCompOp]] = {
    cst.Equal: cst.Equal,
    cst.NotEqual: cst.NotEqual,
    cst.LessThan: cst.GreaterThan,
    cst.GreaterThan: cst.LessThan,
    cst.LessThanEqual: cst.GreaterThanEqual,
    cst.GreaterThanEqual: cst.LessThanEqual,
}


def _ranks_allowed(operator: cst.BaseCompOp, right: cst.BaseExpression) -> int | None:
    if isinstance(operator, (cst.In, cst.NotIn)):
        if not isinstance(right, (cst.Tuple, cst.List, cst.Set)):
            return None
        numbers = [whole_number(element.value) for element in right.elements]
        if any(number is None for number in numbers):
            return None
        allowed = sum(rank(number) for number in {n for n in numbers if n is not None})
        return allowed if isinstance(operator, cst.In) else ALL_RANKS & ~allowed
    number = whole_number(right)
    if number is None or not 0 <= number < 15:
        return None
    below = (1 << number) - 1
    if isinstance(operator, cst.Equal):
        return rank(number)
    if isinstance(operator, cst.NotEqual):
        return ALL_RANKS & ~rank(number)
    if isinstance(operator, cst.LessThan):
        return below
    if isinstance(operator, cst.LessThanEqual):
        return below | rank(number)
    if isinstance(operator, cst.GreaterThan):
        return ALL_RANKS & ~(below | rank(number))
    if isinstance(operator, cst.GreaterThanEqual):
        return ALL_RANKS & ~below
    return None
