"""How a tensor's dimensions lie in memory, as far as the code in sight says: permutations and conversions.

A layout is relative to what the walk started from. ``x.permute(0, 3, 1, 2)`` of a parameter ``x`` is laid out like
channels_last if ``x`` is laid out like its shape; ``permute(0, 2, 3, 1)`` before it takes that back.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import NamedTuple

import libcst as cst

from esper_guard.lint.flow.literals import whole_number


class Origin(enum.Enum):
    """Why a tensor is laid out as it is."""

    ASSUMED = "permuted, from a tensor whose own layout is not in sight"
    MADE = "made by an operation whose result is laid out like its shape, and perhaps permuted since"
    CONVERTED = "converted by name to a memory format"


class Layout(NamedTuple):
    """``order`` lists the dimensions from the slowest in memory to the fastest; empty: in their own order."""

    order: tuple[int, ...]
    origin: Origin

    @property
    def is_channels_last(self) -> bool:
        """Whether the dimensions lie as those of a channels_last (or channels_last_3d) tensor do."""
        return self.order in CHANNELS_LAST.values()


CHANNELS_LAST = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
MADE = Layout((), Origin.MADE)
_FORMATS = {
    "contiguous_format": Layout((), Origin.CONVERTED),
    "channels_last": Layout(CHANNELS_LAST[4], Origin.CONVERTED),
    "channels_last_3d": Layout(CHANNELS_LAST[5], Origin.CONVERTED),
}


def of_format(memory_format: str) -> Layout | None:
    """The layout of a tensor converted to ``memory_format`` (without ``torch.``); None if it names none."""
    return _FORMATS.get(memory_format)


def permuted(layout: Layout | None, dims: tuple[int, ...] | None) -> Layout | None:
    """The layout after ``permute(dims)``; ``dims`` are not negative."""
    if dims is None:
        return None
    order, origin = layout or Layout((), Origin.ASSUMED)
    order = order or tuple(range(len(dims)))
    if len(order) != len(dims):
        return None
    moved = tuple(dims.index(dimension) for dimension in order)
    is_plain = moved == tuple(range(len(moved)))
    if is_plain:
        return Layout((), origin) if origin is not Origin.ASSUMED else None
    return Layout(moved, origin)


def permutation(method: str, arguments: Sequence[cst.Arg], rank: int | None) -> tuple[int, ...] | None:
    """The dimensions in their new order, for ``permute``, ``transpose``, ``movedim`` and their other names.

    None where the arguments are not literal, or name no permutation. ``rank`` may be missing for ``permute`` only.
    """
    numbers = [None if argument.star else _integers(argument) for argument in arguments]
    if any(one is None for one in numbers):
        return None
    given = [one for one in numbers if one is not None]
    if method == "permute":
        dims = given[0] if len(given) == 1 else tuple(one[0] for one in given)
        return _checked(dims, len(dims))
    if rank is None or len(given) != 2 or len(given[0]) != len(given[1]):
        return None
    sources = _checked(given[0], rank)
    targets = _checked(given[1], rank)
    if sources is None or targets is None:
        return None
    if method in ("movedim", "moveaxis"):
        rest = iter(one for one in range(rank) if one not in sources)
        return tuple(sources[targets.index(at)] if at in targets else next(rest) for at in range(rank))
    swapped = list(range(rank))
    swapped[sources[0]], swapped[targets[0]] = targets[0], sources[0]
    return tuple(swapped)


PERMUTING = frozenset("permute transpose swapaxes swapdims movedim moveaxis".split())


def einops_permutation(pattern: cst.BaseExpression) -> tuple[int, ...] | None:
    """The permutation in ``"b h w c -> b c h w"``; splitting a dimension on the left is a view, too."""
    text = pattern.evaluated_value if isinstance(pattern, cst.SimpleString) else None
    if not isinstance(text, str) or text.count("->") != 1 or "..." in text:
        return None
    left, right = text.split("->")
    before, after = re.sub(r"[()]", " ", left).split(), right.split()
    if sorted(before) != sorted(after):
        return None
    return tuple(before.index(name) for name in after)


def _integers(argument: cst.Arg) -> tuple[int, ...] | None:
    value = argument.value
    if isinstance(value, (cst.Tuple, cst.List)):
        items = [whole_number(element.value) for element in value.elements]
        return None if any(item is None for item in items) else tuple(i for i in items if i is not None)
    number = whole_number(value)
    return None if number is None else (number,)


def _checked(dims: tuple[int, ...], rank: int) -> tuple[int, ...] | None:
    """``dims`` counted from the front; None if one is out of range, or named twice."""
    positive = tuple(dim + rank if dim < 0 else dim for dim in dims)
    is_valid = len(set(positive)) == len(positive) and all(0 <= dim < rank for dim in positive)
    return positive if is_valid else None
