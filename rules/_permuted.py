"""Copies that undo a permute: the tensor was laid out like channels_last already."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._chains import Copy, as_copy
from ._intent import is_converter

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow


_FOUR_NUMBERS = re.compile(r"(?:-?\d\s*,\s*){3}-?\d")
_SWAP = re.compile(r"\b(?:transpose|swapaxes|swapdims)\b")


_TABLE = (
    200_000  # characters: no function that a person wrote, but a table such as torch's own of all operators
)
_NEARBY = 2_000
_PERMUTE = re.compile(r"permute|rearrange|movedim|moveaxis|transpose|swapaxes|swapdims")


def _copies_nearby(code: str) -> bool:
    """Whether something is made contiguous soon after it is permuted."""
    copies = re.finditer(r"\.[\s\\]*contiguous[\s\\]*\(", code)
    return any(_PERMUTE.search(code, max(0, copy.start() - _NEARBY), copy.start()) for copy in copies)


def may_permute_images(code: str) -> bool:
    """Whether masked code could permute four dimensions: in one call, or by two swaps."""
    if len(code) > _TABLE and not _copies_nearby(code):
        return False
    if "permute" in code and _FOUR_NUMBERS.search(code):
        return True
    return any(name in code for name in ("rearrange", "movedim", "moveaxis")) or len(_SWAP.findall(code)) > 1


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
