"""Running generators and coroutines step by step within a context, so that their callers are outside of it."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any


def step(
    context: AbstractContextManager[Any], generator: Generator[Any, Any, Any]
) -> Generator[Any, Any, Any]:
    """Run a generator; while it is suspended, the context is left."""
    proceed: Callable[[], Any] = functools.partial(next, generator)
    while True:
        try:
            with context:
                item = proceed()
        except StopIteration as end:
            return end.value
        try:
            proceed = functools.partial(generator.send, (yield item))
        except GeneratorExit:
            with context:
                generator.close()
            raise
        except BaseException as error:  # noqa: BLE001 - it is the generator's to handle
            proceed = functools.partial(generator.throw, error)


@types.coroutine
def awaitable(steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """What a coroutine can await."""
    return (yield from steps)


def within(
    function: Callable[..., Any], context: Callable[[], AbstractContextManager[Any]]
) -> types.FunctionType:
    """A function of the same kind, each call of which runs within a context, and is closed if that raises.

    It refers to no globals, so that it can be given those of the function, which torch.jit.script looks into.
    """
    run, wait = step, awaitable
    if inspect.isasyncgenfunction(function):

        async def each(*args: Any, **kwargs: Any) -> Any:
            call = context()
            inner = function(*args, **kwargs)
            proceed = inner.asend(None)
            while True:
                try:
                    value = await wait(run(call, proceed.__await__()))
                except StopAsyncIteration:
                    return
                except BaseException:
                    await inner.aclose()
                    raise
                try:
                    proceed = inner.asend((yield value))
                except BaseException as error:  # noqa: BLE001 - it is the generator's to handle
                    proceed = inner.athrow(error)

        return each  # type: ignore[return-value]
    if inspect.iscoroutinefunction(function):

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await wait(run(context(), function(*args, **kwargs).__await__()))

        return awaited  # type: ignore[return-value]
    if inspect.isgeneratorfunction(function):

        def generated(*args: Any, **kwargs: Any) -> Any:
            inner = function(*args, **kwargs)
            try:
                return (yield from run(context(), inner))
            finally:
                inner.close()

        return generated  # type: ignore[return-value]

    def called(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with context():
            return function(*args, **kwargs)

    return called  # type: ignore[return-value]
