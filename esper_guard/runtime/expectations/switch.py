"""``ESPER_GUARD``: whether expectations are checked, and what happens where they are not met."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Literal, cast, get_args

import torch

from esper_guard.nearest import did_you_mean
from esper_guard.runtime.callsite import users_frame
from esper_guard.runtime.compiling import keep_dynamo_out
from esper_guard.runtime.expectations.error import MemoryFormatError, MemoryFormatWarning, Violation, error_of

Switch = Literal["off", "warn", "raise"]

_SAYS_WHY = torch.__version__ >= "2.8"
"""Whether ``fullgraph=True`` repeats the reason of a graph break."""
_VARIABLE = "ESPER_GUARD"


def switch() -> Switch:
    """What the environment says; "raise" if it says nothing.

    Raises:
        ValueError: it says something else.
    """
    text = os.environ.get(_VARIABLE, "").strip().lower()
    if text and text not in get_args(Switch):
        known = get_args(Switch)
        raise ValueError(
            f"{_VARIABLE}={text}: there are {', '.join(known[:-1])} and {known[-1]}{did_you_mean(text, known)}"
        )
    return cast(Switch, text or "raise")


def report(where: str, violations: list[Violation]) -> None:
    """Raise, warn, or neither. Code that is being compiled does so when it has come back from there."""
    __tracebackhide__ = True
    if torch.compiler.is_compiling() and switch() != "off":
        first = violations[0]
        why = f"{where}: {first.path} is {first.found}, expected {first.wanted}"
        torch._dynamo.graph_break(*((why,) if _SAYS_WHY else ()))
    deliver(error_of(where, violations))


def deliver(error: MemoryFormatError) -> None:
    """Raise an error, warn of it at the user's line, or neither."""
    __tracebackhide__ = True
    mode = switch()
    if mode == "raise":
        try:
            raise error
        finally:
            del error  # its traceback holds this frame, and the tensors in those around it
    if mode == "warn":
        warn(str(error))


def warn(message: str) -> None:
    """Warn at the line of the user's that called us."""
    frame = users_frame(sys._getframe(1))
    if frame is None:
        warnings.warn(message, MemoryFormatWarning, stacklevel=2)
        return
    names = frame.f_globals
    warnings.warn_explicit(
        message,
        MemoryFormatWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=names.get("__name__"),
        registry=names.setdefault("__warningregistry__", {}),
    )


keep_dynamo_out(deliver.__code__)
deliver._torchdynamo_disable = True  # type: ignore[attr-defined]  # nor inline it: Dynamo 2.8 fails on `raise error`
