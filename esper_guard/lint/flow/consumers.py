"""Who consumes a value within the function: which operator reads it, or where it leaves."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import libcst as cst

from esper_guard.lint.flow import operators
from esper_guard.lint.flow.values import Kind
from esper_guard.lint.torch_names import TENSOR_METADATA

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow


class How(enum.Enum):
    """What happens to a value at one place."""

    OPERATOR = "read by operators that are known"
    METADATA = "asked for its shape, dtype or the like"
    LEAVES = "returned, or stored where other code may read it"
    UNKNOWN = "anything else"


class Consumer(NamedTuple):
    """One use of a value. ``result`` is what the operators make of it, whichever of them runs."""

    how: How
    node: cst.BaseExpression
    operators: frozenset[str] = frozenset()
    result: cst.BaseExpression | None = None


_BINARY = {
    cst.Add: "add",
    cst.Subtract: "sub",
    cst.Multiply: "mul",
    cst.Divide: "div",
    cst.Power: "pow",
}


def consumers(flow: Flow, node: cst.BaseExpression) -> Iterator[Consumer]:
    """Every place where the value of ``node`` ends up, through names and branches."""
    for use in flow.uses(node):
        yield _consumer(flow, use)


def _consumer(flow: Flow, use: cst.BaseExpression) -> Consumer:
    parent = flow.parent(use)
    if isinstance(parent, cst.Attribute):
        return _attribute(flow, use, parent)
    if isinstance(parent, cst.Arg):
        call = flow.parent(parent)
        if isinstance(call, cst.Call):
            return _argument(flow, use, parent, call)
    if isinstance(parent, cst.BinaryOperation):
        name = _BINARY.get(type(parent.operator))
        return (
            Consumer(How.UNKNOWN, use)
            if name is None
            else Consumer(How.OPERATOR, parent, frozenset((name,)), parent)
        )
    if isinstance(parent, cst.AugAssign) and parent.value is use:
        return Consumer(How.OPERATOR, use, frozenset(("add",)))
    if isinstance(parent, cst.UnaryOperation):
        return Consumer(How.OPERATOR, parent, frozenset(("neg",)), parent)
    is_stored = isinstance(use, (cst.Attribute, cst.Subscript)) and isinstance(
        parent, (cst.AssignTarget, cst.Assign)
    )
    if isinstance(parent, (cst.Return, cst.Yield)) or is_stored:
        return Consumer(How.LEAVES, use)
    if isinstance(parent, (cst.Element, cst.DictElement)) and _is_returned(flow, parent):
        return Consumer(How.LEAVES, use)
    return Consumer(How.UNKNOWN, use)


def _is_returned(flow: Flow, element: cst.CSTNode) -> bool:
    container = flow.parent(element)
    return container is not None and isinstance(flow.parent(container), cst.Return)


def _attribute(flow: Flow, use: cst.BaseExpression, attribute: cst.Attribute) -> Consumer:
    name = attribute.attr.value
    if name in TENSOR_METADATA:
        return Consumer(How.METADATA, use)
    call = flow.parent(attribute)
    if isinstance(call, cst.Call):
        return Consumer(How.OPERATOR, call, frozenset((name,)), call)
    return Consumer(How.UNKNOWN, use)


def _argument(flow: Flow, use: cst.BaseExpression, arg: cst.Arg, call: cst.Call) -> Consumer:
    is_input = (call.args[0] is arg and not arg.star) or (
        arg.keyword is not None and arg.keyword.value == "input"
    )
    made = flow.callees.get(call)
    if made:
        names = frozenset(operator for one in made for operator in _first_operators(operators.of_made(one)))
        return (
            Consumer(How.OPERATOR, call, names, call) if is_input and names else Consumer(How.UNKNOWN, call)
        )
    module, _, name = flow.origin(call.func).rpartition(".")
    if module in ("torch", "torch.nn.functional") and (is_input or name in operators.ELEMENTWISE):
        return Consumer(How.OPERATOR, call, frozenset((name,)), call)
    if module == "" and name in ("len", "print", "isinstance", "type", "repr", "str"):
        return Consumer(How.METADATA, use)
    method = call.func if isinstance(call.func, cst.Attribute) else None
    if method is not None and flow.facts(method.value).kind is Kind.TENSOR:
        return Consumer(How.OPERATOR, call, frozenset((method.attr.value,)), call)
    return Consumer(How.UNKNOWN, call)


def _first_operators(ways: list[tuple[str, ...]]) -> Iterator[str]:
    """The operator that reads the input of a chain."""
    for way in ways:
        yield way[0] if way else "identity"
