"""The tensors in a value, however deep, with their paths."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.nn import parameter
from torch.utils import _pytree

from esper_guard.runtime.expectations.places import Step, spelled

_LAZY: Final[Any] = parameter.UninitializedTensorMixin  # type: ignore[attr-defined]
Path: TypeAlias = "str | tuple[Path, Step]"
"""A name, or a step from where another path leads."""


Leaf: TypeAlias = tuple[Path, Tensor]


def leaves_of(value: Any, path: Path) -> list[Leaf]:
    """All tensors of tuples, lists, sets, deques, mappings, dataclasses, attrs classes and registered pytrees.

    Other objects hold none, and a parameter of a lazy module is none yet. A container is entered once, even if it
    contains itself.
    """
    found: list[Leaf] = []
    _collect(value, path, found, {})
    return found


def _collect(value: Any, path: Path, found: list[Leaf], entered: dict[int, Any]) -> None:
    if isinstance(value, Tensor):
        if not is_uninitialised(value):
            found.append((path, value))
        return
    parts = parts_of(value)
    if not parts:
        return
    if not torch.compiler.is_compiling():  # Dynamo did not know id()
        if id(value) in entered:
            return
        entered[id(value)] = value  # so that its id stays its own
    for step, part in parts:
        _collect(part, (path, step), found, entered)


def is_uninitialised(tensor: Tensor) -> bool:
    """Whether it is a parameter of a lazy module, without a shape."""
    return isinstance(tensor, _LAZY)  # is_lazy(), which is no more than this, Dynamo can't follow


def parts_of(value: Any) -> list[tuple[Step, Any]] | None:
    """What a container consists of; None if it is none."""
    kind = type(value)
    if kind is list or kind is tuple:
        return [(("[", index), part) for index, part in enumerate(value)]
    if kind is dict:
        return [(("[", key), part) for key, part in value.items()]
    if value is None or isinstance(value, (str, bytes, int, float)):
        return None
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [((".", name), getattr(value, name)) for name in kind._fields]
    if isinstance(value, (tuple, list, deque, AbstractSet)):
        return [(("[", index), part) for index, part in enumerate(value)]
    if isinstance(value, Mapping):
        return [(("[", key), part) for key, part in value.items()]
    if hasattr(kind, "__dataclass_fields__"):  # not dataclasses.fields(), which Dynamo did not know
        return [
            ((".", name), getattr(value, name)) for name in kind.__dataclass_fields__ if hasattr(value, name)
        ]
    if hasattr(kind, "__attrs_attrs__"):
        names = [field.name for field in kind.__attrs_attrs__]
        return [((".", name), getattr(value, name)) for name in names if hasattr(value, name)]
    node = _pytree.SUPPORTED_NODES.get(kind)
    if node is not None:
        return [(("[", index), part) for index, part in enumerate(node.flatten_fn(value)[0])]
    return None


def spell(path: Path) -> str:
    """``"batch['image'][0]"``."""
    steps: list[str] = []
    while not isinstance(path, str):
        path, step = path
        steps.append(spelled(step))
    return path + "".join(reversed(steps))


def is_among(item: Any, others: list[Any]) -> bool:
    """Whether it is one of them, by identity."""
    if torch.compiler.is_compiling():
        return False
    for other in others:  # not `in`, which compares tensors  # noqa: SIM110
        if other is item:
            return True
    return False
