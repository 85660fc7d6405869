"""``hazard_guard``: a Python exception instead of a crash or of wrong numbers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from esper_guard.runtime.decorating import check_decorated
from esper_guard.runtime.hazards import protection
from esper_guard.runtime.hazards.hazard import Consequence
from esper_guard.runtime.hazards.registry import select

if TYPE_CHECKING:
    from typing_extensions import Self

Function = TypeVar("Function", bound=Callable[..., Any])

_STOPPED = {Consequence.CRASH, Consequence.WRONG_NUMBERS}


class hazard_guard:  # noqa: N801 - used like a function
    """Within it, a call that would crash the process or corrupt numbers raises `HazardError` instead.

    >>> with hazard_guard():
    ...     loss(model(x)).backward()
    >>> @hazard_guard()
    ... def test_training_step(): ...

    A context manager, and a decorator of functions, coroutine functions and generator functions; can be nested and
    used again. It watches the whole process, because a backward may run on another thread, and stays silent about
    calls that `harden` has cured and on torch releases that don't have the bug. The error names the module and the
    line of the forward, if that ran under the guard as well.

    Cost: nothing where the installed torch has none of the bugs; else about 5 us for each call of a watched
    operator (GroupNorm's and BatchNorm's backward, fused optimizers) and about 9 us for each GroupNorm and
    BatchNorm forward on the CPU, to remember its line. All of them, on every device, keep 4 to 5 us after the guard
    has ended: taking the watch away could crash a thread that is in it (benchmarks/seed_slot.py).

    Enter it around a call of compiled code, not within.

    Args:
        hazards: ids of the hazards to stop (default: all that crash or give wrong numbers).

    Raises:
        TypeError: what is decorated is a class, a static or class method (put the guard below that decorator), an
            asynchronous generator function, or no function.
        ValueError: there is no such hazard, or it neither crashes nor corrupts.
    """

    def __init__(self, hazards: Iterable[str] | None = None) -> None:
        if callable(hazards):
            raise TypeError("hazard_guard takes ids of hazards: write @hazard_guard(), with parentheses")
        chosen = select(hazards)
        harmless = [hazard.id for hazard in chosen if hazard.consequence not in _STOPPED]
        if hazards is not None and harmless:
            raise ValueError(
                f"{', '.join(harmless)}: neither crashes nor corrupts, so there is nothing to stop"
            )
        self._hazards = [hazard for hazard in chosen if hazard.consequence in _STOPPED and hazard.affects()]

    def __enter__(self) -> Self:
        protection.guard(self._hazards)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        protection.end_guard(self._hazards)

    def __call__(self, function: Function) -> Function:
        check_decorated(function, "hazard_guard", "with hazard_guard():")
        if inspect.iscoroutinefunction(function):

            async def guarded(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

        elif inspect.isgeneratorfunction(function):

            def guarded(*args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
                with self:
                    return (yield from function(*args, **kwargs))

        else:

            def guarded(*args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
                with self:
                    return function(*args, **kwargs)

        wrapped: Function = functools.wraps(function)(guarded)  # type: ignore[assignment]
        return wrapped
