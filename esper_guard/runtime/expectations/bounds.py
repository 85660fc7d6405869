"""``copies=`` and ``copy_bytes=``: what the body of a function may copy."""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, NamedTuple

import torch

from esper_guard.runtime.expectations.error import MemoryFormatError
from esper_guard.runtime.expectations.switch import deliver
from esper_guard.runtime.expectations.wrapper import as_itself
from esper_guard.runtime.tracing.steps import within
from esper_guard.runtime.tracing.tracer import trace_layouts
from esper_guard.trace.budget import check_bound
from esper_guard.trace.sizes import parse_size


class Bounds(NamedTuple):
    """False if there are none."""

    copies: int | None
    size: int | None
    """In bytes."""

    @classmethod
    def of(cls, copies: int | None, copy_bytes: int | str | None) -> Bounds:
        """As users write them.

        Raises:
            TypeError: one is no number, or no size.
            ValueError: one is negative, or no size of the form "1 MiB".
        """
        check_bound("expects", "copies", copies)
        return cls(copies, None if copy_bytes is None else parse_size(copy_bytes))

    def __bool__(self) -> bool:
        return self.copies is not None or self.size is not None


class _Bounded(AbstractContextManager[None]):
    """Traces one call, in as many pieces as it runs, and reports after each if it has copied more by then."""

    def __init__(self, bounds: Bounds, where: str) -> None:
        self._bounds = bounds
        self._where = where
        self._tracer = trace_layouts()
        self._reported = False

    def __enter__(self) -> None:
        self._tracer.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        self._tracer.__exit__(kind, error, trace)
        ended = error is None or isinstance(error, StopIteration | StopAsyncIteration)
        if ended and not self._reported:
            try:
                self._tracer.trace.assert_max(copies=self._bounds.copies, bytes=self._bounds.size)
            except AssertionError as exceeded:
                message = f"{self._where}: {exceeded}"
            else:
                return
            self._reported = True
            deliver(MemoryFormatError(message))


def bounded(function: Callable[..., Any], bounds: Bounds, where: str) -> Callable[..., Any]:
    """The function, each call of which is traced and may not copy more. Compiled code runs as it is."""

    def context() -> AbstractContextManager[Any]:
        return nullcontext() if torch.compiler.is_compiling() else _Bounded(bounds, where)

    made = within(function, context)
    # With the function's own globals: torch.jit.script reads its source.
    names = getattr(function, "__globals__", made.__globals__)
    own = types.FunctionType(made.__code__, names, closure=made.__closure__)
    return as_itself(own, function)
