"""What an operator did to memory formats, told from the layouts of what it read and wrote."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS, Hint, Layout, has_strides, layout_of


class Change(NamedTuple):
    """A copy between different strides."""

    source: Layout
    destination: Layout
    changes_format: bool
    """Whether one is channels_last and the other NCHW."""


def change(source: Tensor, destination: Tensor) -> Change | None:
    """How a copy's result differs from what was copied; None if strides agree, or shapes differ (a broadcast).

    Strides of dimensions of size 1 are ignored, because no element is reached by them.
    """
    if not (has_strides(source) and has_strides(destination)) or source.shape != destination.shape:
        return None
    shape = destination.shape
    if same_strides(shape, source.stride(), destination.stride()) or not destination.numel():
        return None
    before, after = layout_of(source), layout_of(destination)
    for dimension in expanded(source):
        source, destination = source.select(dimension, 0), destination.select(dimension, 0)
    unexpanded = layout_of(source)
    formats = {memory_format(unexpanded), memory_format(layout_of(destination))}
    if source.dim() in CHANNELS_LAST_FORMATS and formats == {"nchw", "channels_last"}:
        return Change(unexpanded, after, True)
    return Change(before, after, False)


def expanded(tensor: Tensor) -> list[int]:
    """The dimensions that expand() made, the last one first. They say nothing about the order of elements."""
    strides, shape = tensor.stride(), tensor.shape
    return [at for at in reversed(range(tensor.dim())) if strides[at] == 0 and shape[at] != 1]


def same_strides(shape: Iterable[int], strides: Iterable[int], others: Iterable[int]) -> bool:
    """Whether both reach every element in the same order."""
    return all(
        stride == other for size, stride, other in zip(shape, strides, others, strict=True) if size != 1
    )


def memory_format(layout: Layout) -> Hint | None:
    """The order of a tensor's elements; None where it is both. A ghost is channels_last in memory."""
    if layout.state == "ambiguous":
        return None
    return "channels_last" if layout.state == "ghost" else layout.taken_for


def is_nchw(tensor: Tensor) -> bool:
    """Whether it is a 4-D or 5-D tensor, NCHW and nothing else."""
    return tensor.dim() in CHANNELS_LAST_FORMATS and memory_format(layout_of(tensor)) == "nchw"


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a 4-D or 5-D tensor is channels_last, if only in memory, and nothing else.

    A 3-D one, if it would be with a batch of one: an image (C, H, W).
    """
    if not has_strides(tensor):
        return False
    if tensor.dim() == 3:
        tensor = tensor.unsqueeze(0)
    return tensor.dim() in CHANNELS_LAST_FORMATS and memory_format(layout_of(tensor)) == "channels_last"


def result_of_copy(source: Tensor, requested: torch.memory_format | None) -> Tensor:
    """A meta tensor with the strides that ``source.clone(memory_format=requested)`` has."""
    return torch.empty_like(source, device="meta", memory_format=requested or torch.preserve_format)
