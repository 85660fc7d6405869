"""Copies that undo a permute: the tensor was laid out like channels_last already."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._chains import Copy, as_copy
from ._intent import is_converter

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline


_SWAPS = ("transpose", "swapaxes", "swapdims")
_MOVES = ("rearrange", "movedim", "moveaxis")


def may_permute_images(outline: Outline) -> bool:
    """Whether four or more dimensions could be permuted: in one call, or by two swaps."""
    return (
        any(_names_four_dimensions(call) for call in outline.called("permute"))
        or any(True for _ in outline.called(*_MOVES))
        or sum(1 for _ in outline.called(*_SWAPS)) > 1
    )


def _names_four_dimensions(permute: ast.Call) -> bool:
    lists = [one.elts for one in _values(permute) if isinstance(one, (ast.Tuple, ast.List))]
    return any(len(dimensions) >= 4 for dimensions in (permute.args, *lists))


def _values(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def copies_of_permuted(flow: Flow) -> Iterator[Copy]:
    """Copies to NCHW of what is channels_last because it was permuted so, unless somebody says that it is meant."""
    from esper_guard.lint.flow import can_be_image
    from esper_guard.lint.flow.layouts import Origin

    for call in flow.calls:
        copy = as_copy(flow, call)
        if copy is None:
            continue
        facts = flow.facts(copy.receiver)
        layout = facts.layout
        if layout is None or not layout.is_channels_last or layout.origin is Origin.CONVERTED:
            continue
        if not can_be_image(facts) or any(not test.outcome for test in facts.tests):
            continue
        if not is_converter(flow, call):
            yield copy


def is_by_name(copy: Copy) -> bool:
    """Whether the copy names the format: ``to(memory_format=torch.contiguous_format)``."""
    return copy.argument is not None
