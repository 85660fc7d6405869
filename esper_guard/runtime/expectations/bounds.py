"""``copies=`` and ``copy_bytes=``: what the body of a function may copy."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from esper_guard.runtime.expectations.error import MemoryFormatError
from esper_guard.runtime.expectations.switch import deliver
from esper_guard.runtime.tracing.steps import awaitable, step
from esper_guard.runtime.tracing.tracer import trace_layouts
from esper_guard.trace.budget import check_bound
from esper_guard.trace.layout_trace import LayoutTrace
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

    def check(self, trace: LayoutTrace, where: str) -> None:
        """Report if a call copied more."""
        try:
            trace.assert_max(copies=self.copies, bytes=self.size)
        except AssertionError as error:
            deliver(MemoryFormatError(f"{where}: {error}"))


def bounded(function: Callable[..., Any], bounds: Bounds, where: str) -> Callable[..., Any]:
    """The function, each call of which is traced and may not copy more. Compiled code runs as it is."""
    return functools.wraps(function)(_traced(function, bounds, where))


def _traced(function: Callable[..., Any], bounds: Bounds, where: str) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(function):

        async def each(*args: Any, **kwargs: Any) -> Any:
            tracer = trace_layouts()
            inner = function(*args, **kwargs)
            proceed = inner.asend(None)
            while True:
                try:
                    value = await awaitable(step(tracer, proceed.__await__()))
                except StopAsyncIteration:
                    bounds.check(tracer.trace, where)
                    return
                try:
                    proceed = inner.asend((yield value))
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - it is the generator's to handle
                    proceed = inner.athrow(error)

        return each
    if inspect.iscoroutinefunction(function):

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            tracer = trace_layouts()
            result = await awaitable(step(tracer, function(*args, **kwargs).__await__()))
            bounds.check(tracer.trace, where)
            return result

        return awaited
    if inspect.isgeneratorfunction(function):

        def generated(*args: Any, **kwargs: Any) -> Any:
            tracer = trace_layouts()
            result = yield from step(tracer, function(*args, **kwargs))
            bounds.check(tracer.trace, where)
            return result

        return generated

    def called(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        tracer = trace_layouts()
        with tracer as trace:
            result = function(*args, **kwargs)
        bounds.check(trace, where)
        return result

    return called
