"""What can't be decorated by something that is also a context manager."""

from __future__ import annotations

import inspect


def check_decorated(function: object, name: str, statement: str) -> None:
    """Raise TypeError for a class, a static or class method, an asynchronous generator function, or no function.

    Args:
        function: what stands below the decorator.
        name: the decorator's.
        statement: what to write inside of the function instead.
    """
    if isinstance(function, staticmethod | classmethod):
        kind = type(function).__name__
        raise TypeError(f"{name}() can't decorate a {kind}: write it below @{kind}")
    if inspect.isasyncgenfunction(function) or not inspect.isroutine(function):
        kind = "an asynchronous generator" if inspect.isroutine(function) else type(function).__qualname__
        raise TypeError(f"{name}() can't decorate {kind}: write `{statement}` inside of it")
