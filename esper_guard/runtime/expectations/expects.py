"""``@expects``: what memory formats a function takes and returns."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from torch import nn

from esper_guard.runtime.expectations.bounds import Bounds, bounded
from esper_guard.runtime.expectations.function_checks import FunctionChecks, name_of, nothing_expected
from esper_guard.runtime.expectations.places import Place
from esper_guard.runtime.expectations.switch import switch
from esper_guard.runtime.expectations.wanted import (
    Ambiguous,
    Expectation,
    Written,
    check_ambiguous,
    parse,
)
from esper_guard.runtime.expectations.wrapper import wrap

Decorated = TypeVar(
    "Decorated", bound="Callable[..., Any] | property | staticmethod[..., Any] | classmethod[Any, ..., Any]"
)


@overload
def expects(decorated: Decorated, /) -> Decorated: ...
@overload
def expects(
    places: Mapping[str, Written] | None = None,
    /,
    *,
    returns: Written = None,
    ambiguous: Ambiguous = "accept",
    copies: int | None = None,
    copy_bytes: int | str | None = None,
    **parameters: Written,
) -> Callable[[Decorated], Decorated]: ...
def expects(
    places: Any = None,
    /,
    *,
    returns: Written = None,
    ambiguous: Ambiguous = "accept",
    copies: int | None = None,
    copy_bytes: int | str | None = None,
    **parameters: Written,
) -> Any:
    """Check memory formats of arguments and results at each call.

    >>> @expects(x="channels_last", returns="same as x")
    ... def forward(self, x): ...
    >>> @expects({"self.conv.weight": torch.channels_last, "batch['image']": "channels_last"})
    ... def training_step(self, batch): ...
    >>> @expects
    ... def upsample(x: ChannelsLast) -> SameFormatAs["x"]: ...

    An expectation is a ``torch.memory_format``, a layout state (`layout_of`: "nchw", "channels_last", "ambiguous",
    "ghost", "strided", also "strided(channels_last)"), "contiguous", "channels_last_3d", ``"same as NAME"``, a
    function of a tensor that returns whether it is right, or a tuple, list or dict of these for the parts of a value
    (of a dataclass or object: its attributes); None for anything.

    A parameter that is a container is searched to the bottom: tuples, lists, sets, mappings, named tuples,
    dataclasses, attrs classes and registered pytrees. In it, tensors that can't have the format, such as labels of
    shape (N,), are passed over; one that is an argument itself, or that a container of expectations names, is not.
    None is passed over; anything else that holds no tensors is a violation.

    "same as x" compares with what x was when the function was entered, as kernels took it: a slice of a channels_last
    tensor is the same as a dense one. Tensors of a container are compared with those at the same place in the other
    one, or with all of it, if that has one format.

    Decorates functions, methods, coroutine functions, generators (each value that is yielded, sent on unchanged) and
    asynchronous ones, static and class methods, properties (their getter), and classes (their ``forward``, or
    ``__call__``). Signature, docstring and annotations stay. Annotated types (`ChannelsLast` and the like) are read as
    well, where no keyword says otherwise.

    In code of ``torch.compile`` and ``torch.export`` the check happens while tracing, and costs nothing afterwards; an
    unmet expectation stops a ``fullgraph=True`` compilation with torch's error. ``torch.jit.script`` compiles the
    function without the check. While ``torch.fx`` traces there is nothing to check.

    Cost: 2.3 to 2.6 times a bare ``assert x.is_contiguous(memory_format=...)`` for one tensor (benchmarks/expects.py),
    about two microseconds for each tensor where there is more to decide. Only shapes and strides are read: a GPU is
    never waited for.

    Args:
        places: expectations by place: ``"self.weight"``, ``"batch['image'][0]"``, ``"kwargs['mask']"``; or what is
            decorated, if it is written without parentheses.
        returns: what is expected of the result.
        ambiguous: what to make of a tensor that is NCHW and channels_last at once, because it has one channel, one
            position, or no element: "accept" it for either, go by the "hint" of its strides, which kernels go by, or
            "reject" it.
        copies: at most so many copies between memory formats in the body, of one call, generators from beginning to
            end. The body is traced for it (`trace_layouts`), which costs microseconds for each operator and can't
            see compiled code.
        copy_bytes: at most so many bytes in these copies: a number, or a string like ``"1 MiB"``.
        parameters: expectations by the name of the parameter; of ``*args`` and ``**kwargs`` under their own names.

    Returns:
        The decorator. Where the environment says ``ESPER_GUARD=off`` when it is applied, it returns the very function
        that it is given.

    Raises:
        MemoryFormatError: at a call, something is not as expected. With ``ESPER_GUARD=warn``, a MemoryFormatWarning.
        TypeError: there is no such parameter, nothing is expected, or what is decorated is no function.
        ValueError: there is no such format or state, or no such switch in ``ESPER_GUARD``.

    Source: what "ambiguous" tensors are, docs/runtime.md, "Layouts".
    """
    scope = sys._getframe(1).f_locals
    if places is not None and not isinstance(places, Mapping):
        return _Expecting({}, None, "accept", Bounds(None, None), scope).decorate(places)
    check_ambiguous(ambiguous)
    expected = {
        Place.parse(text): parse(written) for text, written in {**(places or {}), **parameters}.items()
    }
    return _Expecting(expected, parse(returns), ambiguous, Bounds.of(copies, copy_bytes), scope).decorate


class _Expecting:
    """The decorator."""

    def __init__(
        self,
        expected: dict[Place, Expectation | None],
        returns: Expectation | None,
        ambiguous: Ambiguous,
        bounds: Bounds,
        scope: Mapping[str, Any],
    ) -> None:
        self._expected = expected
        self._returns = returns
        self._ambiguous = ambiguous
        self._bounds = bounds
        self._scope = scope

    def decorate(self, decorated: Any) -> Any:
        if switch() == "off":
            return decorated
        if isinstance(decorated, staticmethod | classmethod):
            return type(decorated)(self.decorate(decorated.__func__))
        if isinstance(decorated, property):
            if decorated.fget is None:
                raise TypeError("expects() can't decorate a property without a getter")
            return property(self.decorate(decorated.fget), decorated.fset, decorated.fdel, decorated.__doc__)
        if isinstance(decorated, functools.cached_property):
            decorated.func = self.decorate(decorated.func)
            return decorated
        if isinstance(decorated, type):
            return self._class(decorated)
        if isinstance(decorated, nn.Module):
            raise TypeError(
                "expects() decorates functions and classes: write guard(model, ...) for a module that exists"
            )
        if not callable(decorated):
            raise TypeError(f"expects() can't decorate a {type(decorated).__qualname__}")
        return self._function(decorated)

    def _class(self, decorated: type) -> type:
        for name in ("forward", "__call__"):
            method = inspect.getattr_static(decorated, name, None)
            if inspect.isfunction(method) or isinstance(method, staticmethod | classmethod):
                setattr(decorated, name, self.decorate(method))
                return decorated
        raise TypeError(
            f"expects() needs a forward() to decorate, and {decorated.__qualname__} has none: decorate a method"
        )

    def _function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            signature = inspect.signature(function)
        except ValueError:
            raise TypeError(
                f"expects() can't decorate {function!r}, whose signature Python doesn't know"
            ) from None
        _check_kind(function, self._returns)
        checks = FunctionChecks(
            function,
            signature,
            self._expected,
            self._returns,
            self._ambiguous,
            self._scope,
            bool(self._bounds),
        ).checks()
        if checks is None and not self._bounds:
            raise TypeError(nothing_expected(name_of(function)))
        checked = function if checks is None else wrap(function, checks)
        return bounded(checked, self._bounds, name_of(function)) if self._bounds else checked


def _check_kind(function: Callable[..., Any], returns: Expectation | None) -> None:
    """Of a wrapper the result may be a coroutine or a generator, and not what that returns."""
    inner = inspect.unwrap(function)
    for kind in (inspect.iscoroutinefunction, inspect.isasyncgenfunction):
        if returns is not None and kind(inner) and not kind(function):
            raise TypeError(
                f"expects() can't see what {name_of(function)} returns, because a decorator below makes a plain function "
                "of it: write @expects below that"
            )
