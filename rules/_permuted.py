"""Copies that undo a permute: the tensor was laid out like channels_last already."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import libcst as cst

from ._chains import Copy, as_copy
from ._intent import is_converter

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline


_SWAPS = frozenset(("transpose", "swapaxes", "swapdims"))
_PERMUTES = _SWAPS | {"permute", "rearrange", "movedim", "moveaxis"}


def may_be_permuted_image(tensor: ast.expr, outline: Outline) -> bool:
    """Whether ``tensor`` may have been permuted from NHWC to NCHW: in one call, or by several."""
    from esper_guard.lint.outline import last_name

    calls = [node for node in outline.sources(tensor) if isinstance(node, ast.Call)]
    permutes = [call for call in calls if last_name(call.func, outline.names) in _PERMUTES]
    names = [last_name(call.func, outline.names) for call in permutes]
    if _SWAPS.issuperset(names):
        return len(permutes) > 1 and any(_names_last(call) for call in permutes)
    return len(permutes) > 1 or any(_may_move_channels(call, outline) for call in permutes)


def _names_last(swap: ast.Call) -> bool:
    """Whether one of the dimensions may be the last of four or five."""
    numbers = [_number(value) for value in (*swap.args, *(keyword.value for keyword in swap.keywords))]
    return any(number is None or number in (3, 4, -1) for number in numbers)


def _may_move_channels(call: ast.Call, outline: Outline) -> bool:
    """Whether one call does it: ``permute(0, 3, 1, 2)``, ``movedim(-1, 1)``, ``rearrange(...)``, not one swap."""
    from esper_guard.lint.outline import last_name

    name = last_name(call.func, outline.names)
    if name != "permute":
        return name not in _SWAPS
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    lists = [value.elts for value in values if isinstance(value, (ast.Tuple, ast.List))]
    return any(_moves_channels(order) for order in (call.args, call.args[1:], *lists))


def _moves_channels(order: Sequence[ast.expr]) -> bool:
    numbers = [_number(one) for one in order]
    rank = len(numbers)
    known = [number % rank if number is not None else None for number in numbers]
    return rank in (4, 5) and known == [0, rank - 1, *range(1, rank - 1)]


def _number(node: ast.expr) -> int | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, int) else None


def copies_of_permuted(flow: Flow) -> Iterator[Copy]:
    """Copies to NCHW of what is channels_last because it was permuted so, unless somebody says that it is meant."""
    from esper_guard.lint.flow.layouts import Origin

    for call in flow.calls:
        copy = as_copy(flow, call)
        if copy is None:
            continue
        facts = flow.facts(copy.receiver)
        layout = facts.layout
        if layout is None or not layout.is_channels_last or layout.origin is Origin.CONVERTED:
            continue
        if any(not test.outcome for test in facts.tests):
            continue
        if not is_converter(flow, call) and not _has_gaps(flow, copy.receiver):
            yield copy


def _has_gaps(flow: Flow, node: cst.BaseExpression) -> bool:
    """Whether it is made of a part of each row, as ``x[:, 1:]`` is: a convolution copies what is not dense anyway."""
    from ._chains import unbound

    source: object = node
    while isinstance(source, cst.BaseExpression):
        if isinstance(source, cst.Subscript):
            inner = [element.slice for element in source.slice[1:]]
            if any(isinstance(one, cst.Slice) and (one.lower or one.upper) for one in inner):
                return True
            source = source.value
        elif isinstance(source, cst.Call):
            source = unbound(flow, source)[0]
        else:
            made_by = flow.made_by(source)
            source = made_by if made_by is not source else None
    return False


def is_by_name(copy: Copy) -> bool:
    """Whether the copy names the format: ``to(memory_format=torch.contiguous_format)``."""
    return copy.argument is not None
