"""Models that are tried out on a copy."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def check_module(model: object, caller: str) -> None:
    """Raise TypeError if it is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}() takes a module, not {type(model).__qualname__}")


def as_written(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile(model)`` was made of, or the model itself."""
    written: nn.Module = getattr(model, "_orig_mod", model)
    return written


def copy_as_written(
    model: nn.Module, caller: str, remedy: str = "", memo: dict[int, Any] | None = None
) -> nn.Module:
    """A deep copy that runs eagerly, whatever of it was compiled in place.

    Raises:
        TypeError: it can't be copied; ``caller`` and ``remedy`` are for the message, ``memo`` for `copy.deepcopy`.
    """
    try:
        copied = copy.deepcopy(as_written(model), memo)
    except Exception as error:
        raise TypeError(f"{caller}() can't copy this {type(model).__qualname__}: {error}{remedy}") from error
    for module in copied.modules():
        module._compiled_call_impl = None
    return copied
