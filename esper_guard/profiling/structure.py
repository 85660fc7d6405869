"""Tensors in whatever a model returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def tensors_in(result: Any) -> Iterator[Tensor]:
    """In tuples, lists, dicts, whatever else torch's pytree knows, mappings and dataclasses; in their order."""
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            for value in leaf.values():
                yield from tensors_in(value)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for part in dataclasses.fields(leaf):
                yield from tensors_in(getattr(leaf, part.name))


def gradient_of_mean_square(output: Tensor) -> Tensor:
    """``2 * x / x.numel()``, in the memory format of ``x``.

    A loss that autograd went through would give NCHW gradients, and so add copies that are not the model's.
    """
    return output.detach() * (2 / max(output.numel(), 1))
