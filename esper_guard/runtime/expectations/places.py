"""Where a value stands: ``x``, ``self.weight``, ``batch['image'][0]``."""

from __future__ import annotations

import ast
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

MISSING: Final = object()
"""What stands where nothing does."""

_LONGEST: Final = 80

Step: TypeAlias = tuple[str, Any]
"""``(".", "weight")`` or ``("[", 0)``."""


class Place:
    """A name, and the way from it."""

    def __init__(self, name: str, steps: tuple[Step, ...] = ()) -> None:
        self.name = name
        self.steps = steps
        self.text = name + "".join(map(spelled, steps))

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read ``"self.weight"`` or ``"batch['image'][0]"``.

        Raises:
            ValueError: it is not of this form.
        """
        try:
            node = ast.parse(text, mode="eval").body
            name, steps = _read(node)
        except (SyntaxError, ValueError, RecursionError):
            raise ValueError(
                f"'{text}' names no value: write a parameter, with attributes or items, such as x, self.weight or "
                "batch['image'][0]"
            ) from None
        return cls(name, steps)

    def of(self, value: Any) -> Any:
        """What the steps lead to from a value; `MISSING` or None or a `torch.fx.Proxy` where that comes in between.

        Raises:
            AttributeError, KeyError, IndexError, TypeError: a step leads nowhere.
        """
        for kind, key in self.steps:
            if value is MISSING or value is None or is_symbolic(value):
                return value
            if kind == ".":
                value = getattr(value, key)
            elif isinstance(value, Tensor):
                raise TypeError("a tensor has no items to be named")
            else:
                value = value[key]
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def is_symbolic(value: Any) -> bool:
    """Whether it stands for a value that does not exist yet, while torch.fx traces."""
    return isinstance(value, torch.fx.Proxy)


def spelled(step: Step) -> str:
    """``".weight"`` or ``"[0]"``."""
    kind, key = step
    if kind == ".":
        return f".{key}"
    text = (
        repr(key) if isinstance(key, (str, int)) else f"a {type(key).__qualname__}"
    )  # not a tensor's numbers
    return f"[{text}]" if len(text) <= _LONGEST else f"[{text[:_LONGEST]}...]"


def _read(node: ast.expr) -> tuple[str, tuple[Step, ...]]:
    """The name that an expression begins with, and the steps from it."""
    if isinstance(node, ast.Name):
        return node.id, ()
    if isinstance(node, ast.Attribute):
        name, steps = _read(node.value)
        return name, (*steps, (".", node.attr))
    if isinstance(node, ast.Subscript):
        name, steps = _read(node.value)
        return name, (*steps, ("[", ast.literal_eval(node.slice)))
    raise ValueError(f"no attribute or item: {ast.dump(node)}")
