"""What the wrapper of one function calls: its expectations, written and annotated, brought together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from esper_guard.nearest import did_you_mean
from esper_guard.runtime.expectations.annotations import Annotations
from esper_guard.runtime.expectations.check import Check, References, remember
from esper_guard.runtime.expectations.places import Place
from esper_guard.runtime.expectations.switch import report
from esper_guard.runtime.expectations.wanted import Ambiguous, Expectation, Format, Leaves, relations
from esper_guard.runtime.expectations.wrapper import Checks

_RESULT = "result"
"""The path of what a function returns."""


class FunctionChecks:
    """Of one function.

    Raises:
        TypeError: an expectation names a parameter that the function does not have.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        signature: inspect.Signature,
        expected: Mapping[Place, Expectation | None],
        returns: Expectation | None,
        ambiguous: Ambiguous,
        scope: Mapping[str, Any],
        bounded: bool,
    ) -> None:
        """``bounded``: whether there is something else to check, besides."""
        self._where = name_of(function)
        self._ambiguous = ambiguous
        self._bounded = bounded
        self._signature = signature
        self._positions = {name: index for index, name in enumerate(signature.parameters)}
        self._written = dict(expected)
        self._returns_written = returns
        for place in expected:
            self._check_name(place)
        written = frozenset(place.name for place in expected if not place.steps)
        self._annotations = Annotations(function, signature, scope, written)
        self._settle()

    def checks(self) -> Checks | None:
        """None if nothing is expected."""
        if self._annotations.pending:  # a name that is not yet defined: all is looked at, at each call
            return Checks(
                self._enter_late,
                self._leave,
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
            self._check_name(place)
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
        __tracebackhide__ = True
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
        __tracebackhide__ = True
        check = Check(self._ambiguous, references or {}, made=True)
        check.value(self._returns, result, _RESULT)
        if check.violations:
            report(self._where, check.violations)

    def _enter_late(self, *values: Any) -> References:
        __tracebackhide__ = True
        if self._annotations.pending and not torch.compiler.is_compiling():
            self._annotations.resolve(self._settle)
        nothing = not self._looked_at and self._returns is None
        if nothing and not self._bounded and not torch.compiler.is_compiling():
            raise TypeError(
                f"{nothing_expected(self._where)}; its annotations have names that are not defined"
            )
        return self._enter(*[values[self._positions[name]] for name in self._names])

    def _check_name(self, place: Place) -> None:
        parameters = self._signature.parameters
        if place.name in parameters:
            return
        hints = [
            f'; one that comes through **{name} is written {{"{name}[{place.name!r}]": ...}}'
            for name, parameter in parameters.items()
            if parameter.kind is inspect.Parameter.VAR_KEYWORD
        ]
        near = did_you_mean(place.name, parameters)
        raise TypeError(f"expects(): {self._where} has no parameter '{place.name}'{near}{''.join(hints)}")


def _quick(expectation: Expectation | None, ambiguous: Ambiguous) -> str | None:
    """The format that the wrapper can test by itself; None if there is more to it."""
    if isinstance(expectation, Leaves):
        expectation = expectation.expectation
    if not isinstance(expectation, Format) or ambiguous != "accept":
        return None
    if expectation.state == "channels_last":
        return "channels_last_3d" if expectation.rank == 5 else "channels_last"
    return "nchw" if expectation.state == "nchw" else None


def nothing_expected(where: str) -> str:
    """What to say where there is nothing to check."""
    return (
        f"expects() has nothing to expect of {where}: name parameters (x='channels_last'), returns, copies or "
        "copy_bytes, or annotate with ChannelsLast and the like"
    )


def name_of(function: Callable[..., Any]) -> str:
    """``"Model.forward()"``."""
    return f"{getattr(function, '__qualname__', None) or type(function).__qualname__}()"
