"""``@expects``: what memory formats a function takes and returns."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

import torch
from torch import nn

from esper_guard.nearest import did_you_mean
from esper_guard.runtime.expectations.annotations import Annotations
from esper_guard.runtime.expectations.bounds import Bounds, bounded
from esper_guard.runtime.expectations.check import Check, References, remember
from esper_guard.runtime.expectations.places import Place
from esper_guard.runtime.expectations.switch import report, switch
from esper_guard.runtime.expectations.wanted import (
    Ambiguous,
    Expectation,
    Format,
    Leaves,
    Written,
    check_ambiguous,
    parse,
    relations,
)
from esper_guard.runtime.expectations.wrapper import Checks, wrap

Decorated = TypeVar(
    "Decorated", bound="Callable[..., Any] | property | staticmethod[..., Any] | classmethod[Any, ..., Any]"
)

RESULT = "result"
"""The path of what a function returns."""


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

    "same as x" compares with what x was when the function was entered, as kernels took it: if x was a slice of a
    channels_last tensor, a dense channels_last result is the same. Tensors of a container are compared with those at
    the same place in the other one, or with all of it, if that has one format.

    Decorates functions, methods, coroutine functions, generators (each value that is yielded, sent on unchanged) and
    asynchronous ones, static and class methods, properties (their getter), and classes (their ``forward``, or
    ``__call__``). Signature, docstring and annotations stay. Annotated types (`ChannelsLast` and the like) are read as
    well, where no keyword says otherwise.

    In code of ``torch.compile`` and ``torch.export`` the check happens while tracing, and costs nothing afterwards; an
    unmet expectation stops a ``fullgraph=True`` compilation with torch's error. ``torch.jit.script`` compiles the
    function without the check. While ``torch.fx`` traces there is nothing to check.

    Cost: 2.3 to 2.6 times a bare ``assert x.is_contiguous(memory_format=...)`` for one tensor (benchmarks/expects.py),
    one to two microseconds for each tensor otherwise. Only shapes and strides are read: a GPU is never waited for.

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
        for place in [*self._expected, *(place for part in self._all() for place in relations(part))]:
            _check_name(place, signature, _name(function))
        _check_kind(function, self._returns)
        written = frozenset(place.name for place in self._expected if not place.steps)
        annotations = Annotations(function, signature, self._scope, written)
        expectations = _Expectations(
            function, signature, self._expected, self._returns, self._ambiguous, annotations
        )
        checks = expectations.checks()
        if checks is None and not self._bounds:
            raise TypeError(_nothing_of(_name(function)))
        checked = function if checks is None else wrap(function, checks)
        return bounded(checked, self._bounds, _name(function)) if self._bounds else checked

    def _all(self) -> list[Expectation | None]:
        return [*self._expected.values(), self._returns]


class _Expectations:
    """Of one function: what its wrapper calls."""

    def __init__(
        self,
        function: Callable[..., Any],
        signature: inspect.Signature,
        expected: Mapping[Place, Expectation | None],
        returns: Expectation | None,
        ambiguous: Ambiguous,
        annotations: Annotations,
    ) -> None:
        self._where = _name(function)
        self._ambiguous = ambiguous
        self._signature = signature
        self._positions = {name: index for index, name in enumerate(signature.parameters)}
        self._written = dict(expected)
        self._returns_written = returns
        self._annotations = annotations
        self._settle()

    def checks(self) -> Checks | None:
        """None if nothing is expected."""
        if self._annotations.pending:  # a name that is not yet defined: all is looked at, at each call
            return Checks(
                self._enter_late,
                self._leave_late,
                list(self._signature.parameters),
                [None] * len(self._signature.parameters),
                None,
            )
        if not self._looked_at and self._returns is None:
            return None
        names = self._names
        plain = not self._compared
        quick = [self._quick_of(name) if plain else None for name in names]
        return Checks(
            self._enter if names else None,
            None if self._returns is None else self._leave,
            names,
            quick,
            _quick(self._returns, self._ambiguous),
        )

    def _settle(self) -> None:
        """Bring together what is written and what is annotated."""
        annotated = {Place(name): part for name, part in self._annotations.parameters.items()}
        expected = {place: part for place, part in {**annotated, **self._written}.items() if part is not None}
        self._returns = self._returns_written or self._annotations.returns
        related = [place for part in [*expected.values(), self._returns] for place in relations(part)]
        names = list(dict.fromkeys(place.name for place in [*expected, *related]))
        self._names = names
        for place in related:
            _check_name(place, self._signature, self._where)
        self._looked_at = [
            (names.index(place.name), place, part, self._is_optional(place))
            for place, part in expected.items()
        ]
        self._compared = [(names.index(place.name), place) for place in dict.fromkeys(related)]

    def _is_optional(self, place: Place) -> bool:
        """Whether it is one of the keywords in ``**kwargs``, which need not be given."""
        return self._signature.parameters[place.name].kind is inspect.Parameter.VAR_KEYWORD

    def _quick_of(self, name: str) -> str | None:
        parts = [(place, part) for _, place, part, _ in self._looked_at if place.name == name]
        (place, part), *others = parts
        return None if others or place.steps else _quick(part, self._ambiguous)

    def _enter(self, *values: Any) -> References:
        references = remember([(place, values[index]) for index, place in self._compared])
        check = Check(self._ambiguous, references)
        for index, place, expectation, optional in self._looked_at:
            if place.steps:
                check.place(expectation, place, values[index], optional)
            else:
                check.value(expectation, values[index], place.text)
        if check.violations:
            report(self._where, check.violations)
        return references

    def _leave(self, result: Any, references: References | None) -> None:
        check = Check(self._ambiguous, references or {}, made=True)
        check.value(self._returns, result, RESULT)
        if check.violations:
            report(self._where, check.violations)

    def _enter_late(self, *values: Any) -> References:
        if self._annotations.pending and not torch.compiler.is_compiling():
            self._annotations.resolve()
            self._settle()
        if not self._looked_at and self._returns is None and not torch.compiler.is_compiling():
            raise TypeError(f"{_nothing_of(self._where)}; its annotations have names that are not defined")
        return self._enter(*[values[self._positions[name]] for name in self._names])

    def _leave_late(self, result: Any, references: References | None) -> None:
        self._leave(result, references)


def _quick(expectation: Expectation | None, ambiguous: Ambiguous) -> str | None:
    """The format that the wrapper can test by itself; None if there is more to it."""
    if isinstance(expectation, Leaves):
        expectation = expectation.expectation
    if not isinstance(expectation, Format) or ambiguous != "accept":
        return None
    if expectation.state == "channels_last":
        return "channels_last_3d" if expectation.rank == 5 else "channels_last"
    return "nchw" if expectation.state == "nchw" else None


def _nothing_of(where: str) -> str:
    return (
        f"expects() has nothing to expect of {where}: name parameters (x='channels_last'), returns, copies or "
        "copy_bytes, or annotate with ChannelsLast and the like"
    )


def _check_kind(function: Callable[..., Any], returns: Expectation | None) -> None:
    """Of a wrapper the result may be a coroutine or a generator, and not what that returns."""
    inner = inspect.unwrap(function)
    for kind in (inspect.iscoroutinefunction, inspect.isasyncgenfunction):
        if returns is not None and kind(inner) and not kind(function):
            raise TypeError(
                f"expects() can't see what {_name(function)} returns, because a decorator below makes a plain function "
                "of it: write @expects below that"
            )


def _check_name(place: Place, signature: inspect.Signature, where: str) -> None:
    names = list(signature.parameters)
    if place.name in names:
        return
    raise TypeError(
        f"expects(): {where} has no parameter '{place.name}'{did_you_mean(place.name, names)}"
        f"{_in_keywords(place, signature)}"
    )


def _in_keywords(place: Place, signature: inspect.Signature) -> str:
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            text = f"{name}['{place.name}']"
            return f'; one that comes through **{name} is written {{"{text}": ...}}'
    return ""


def _name(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__qualname__', None) or type(function).__qualname__}()"
