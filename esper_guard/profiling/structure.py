"""Tensors in whatever a model takes and returns."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
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


def copy_with(replacement: Callable[[Tensor], Tensor], structure: Any) -> Any:
    """A deep copy with another tensor in place of each, also of those that an object of any class holds.

    A tensor that occurs twice is replaced once.

    Raises:
        Exception: something can't be copied; it is what `copy.deepcopy` raises.
    """
    memo: dict[int, Any] = {id(tensor): replacement(tensor) for tensor in tensors_in(structure)}
    with _Replacing(replacement):
        return copy.deepcopy(structure, memo)


class _Replacing(TorchFunctionMode):
    """Instead of copying tensors, since no walk over structures would find those in objects."""

    def __init__(self, replacement: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._replacement = replacement

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        memo[id(tensor)] = replaced = self._replacement(tensor)
        return replaced


def gradient_of_mean_square(output: Tensor) -> Tensor:
    """``2 * x / x.numel()``, in the memory format of ``x``.

    A loss that autograd went through would give NCHW gradients, and so add copies that are not the model's.
    """
    return output.detach() * (2 / max(output.numel(), 1))
