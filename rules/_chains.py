"""What the rules share: copies to contiguous_format, and what is done with a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import libcst as cst

if TYPE_CHECKING:
    from esper_guard.lint.finding import Edit
    from esper_guard.lint.flow import Flow

_T = TypeVar("_T")


class Copy(NamedTuple):
    """A call that turns ``receiver`` into contiguous_format (NCHW)."""

    call: cst.Call
    receiver: cst.BaseExpression
    method: str  # "contiguous", "to" or "clone"
    argument: cst.Arg | None  # the one that names the memory format


def as_copy(flow: Flow, call: cst.Call) -> Copy | None:
    """``x.contiguous()``, or ``x.to(...)`` and ``x.clone(...)`` with ``memory_format=torch.contiguous_format``."""
    receiver, method, args = unbound(flow, call)
    if receiver is None or method not in ("contiguous", "to", "clone"):
        return None
    argument = memory_format_argument(args, method)
    if argument is None:
        return Copy(call, receiver, method, None) if method == "contiguous" else None
    if flow.origin(argument.value) != "torch.contiguous_format":
        return None
    return Copy(call, receiver, method, argument)


def memory_format_argument(args: list[cst.Arg], method: str) -> cst.Arg | None:
    for arg in args:
        if arg.keyword is not None and arg.keyword.value == "memory_format":
            return arg
    return args[0] if method == "contiguous" and args else None


def unbound(flow: Flow, call: cst.Call) -> tuple[cst.BaseExpression | None, str, list[cst.Arg]]:
    """Receiver, method and the other arguments of ``x.m(...)``, ``torch.m(x, ...)`` and ``torch.Tensor.m(x, ...)``."""
    module, _, name = flow.origin(call.func).rpartition(".")
    if module in ("torch", "torch.Tensor"):
        for index, arg in enumerate(call.args):
            if arg.star:
                break
            if arg.keyword is None or arg.keyword.value in ("input", "self"):
                return arg.value, name, [*call.args[:index], *call.args[index + 1 :]]
        return None, "", []
    if isinstance(call.func, cst.Attribute) and module.partition(".")[0] not in ("torch", "numpy"):
        return call.func.value, call.func.attr.value, list(call.args)
    return None, "", []


def method_called_on(flow: Flow, node: cst.BaseExpression) -> tuple[str, cst.Call] | None:
    """The method of which ``node`` is the receiver (also as ``torch.method(node)``), and the call."""
    parent = flow.parent(node)
    call = None if parent is None else flow.parent(parent)
    if isinstance(call, cst.Call):
        receiver, method, _ = unbound(flow, call)
        if receiver is node:
            return method, call
    return None


def nodes_in(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """``node`` and all the syntax in it, in no order."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += one.children


def verdicts(
    flow: Flow, node: cst.BaseExpression, judge: Callable[[cst.BaseExpression], _T | list[cst.BaseExpression]]
) -> Iterator[_T]:
    """What ``judge`` says of each use of the value of ``node``, and of the expressions that it says hold it further on."""
    seen: set[cst.CSTNode] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for use in flow.uses(one):
            verdict = judge(use)
            if isinstance(verdict, list):
                waiting += verdict
            else:
                yield verdict


def attribute_read(flow: Flow, node: cst.BaseExpression) -> cst.Attribute | None:
    """``node.attr`` where it is read, neither called nor assigned to."""
    parent = flow.parent(node)
    if not isinstance(parent, cst.Attribute):
        return None
    around = flow.parent(parent)
    is_called = isinstance(around, cst.Call)
    is_target = isinstance(around, (cst.AssignTarget, cst.Del)) or (
        isinstance(around, (cst.AugAssign, cst.AnnAssign)) and around.target is parent
    )
    return None if is_called or is_target else parent


def removal(flow: Flow, copy: Copy) -> Edit | None:
    """The edit that takes the copy out and leaves its receiver; None where a comment would be lost."""
    positions = flow.positions
    start, end = positions.span(copy.call)
    text = positions.source.text
    if is_rebinding(flow, copy):
        return None
    if copy.method == "clone" or len(unbound(flow, copy.call)[2]) > 1:
        return _without_argument(flow, copy)
    if flow.origin(copy.call.func):
        receiver_start, receiver_end = positions.span(copy.receiver)
        before, after = text[start:receiver_start], text[receiver_end:end]
        written = text[receiver_start:receiver_end]
        if not isinstance(copy.receiver, (cst.Name, cst.Attribute, cst.Subscript, cst.Call)):
            written = f"({written})"
        return None if "#" in before + after else positions.edit(start, end, written)
    assert isinstance(copy.call.func, cst.Attribute)
    start = positions.span(copy.call.func.dot)[0]
    while text[start - 1] in " \t\r\n\\":
        start -= 1
    if "#" in text[text.rfind("\n", 0, start) + 1 : start]:
        start = positions.span(copy.call.func.dot)[0]
    return None if "#" in text[start:end] else positions.edit(start, end)


def is_rebinding(flow: Flow, copy: Copy) -> bool:
    """``x = x.contiguous()``: without the copy nothing is left worth keeping, so no fix is offered."""
    parent = flow.parent(copy.call)
    targets = [parent.target] if isinstance(parent, cst.NamedExpr) else flow.assigned_to(copy.call)
    return any(target.deep_equals(copy.receiver) for target in targets)


def _without_argument(flow: Flow, copy: Copy) -> Edit | None:
    """Take ``memory_format=...`` out of the arguments, with the comma before it (or after it, if it is first)."""
    assert copy.argument is not None
    positions, args = flow.positions, list(copy.call.args)
    index = args.index(copy.argument)
    start, end = positions.span(copy.argument)
    if len(args) == 1:
        end = positions.span(copy.call)[1] - 1  # a trailing comma goes, too
    elif index > 0:
        start = positions.span(args[index - 1])[1]
    else:
        end = positions.span(args[1])[0]
    return None if "#" in positions.source.text[start:end] else positions.edit(start, end)
