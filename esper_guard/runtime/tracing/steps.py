"""Running generators and coroutines step by step within a context, so that their callers are outside of it."""

from __future__ import annotations

import functools
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
