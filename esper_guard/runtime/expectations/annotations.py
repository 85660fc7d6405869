"""What type annotations say of memory formats."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch

from esper_guard.runtime.expectations.metadata import format_in
from esper_guard.runtime.expectations.wanted import (
    AllOf,
    AnyOf,
    Each,
    Expectation,
    Instance,
    Items,
    Keys,
    format_of,
)

_RESULTS = (
    # What is yielded is the result.
    collections.abc.Generator,
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.AsyncGenerator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
)
_QUALIFIERS = {"Required", "NotRequired", "ReadOnly", "Final", "ClassVar"}
_OURS = ("ChannelsLast", "Contiguous", "SameFormatAs", "Annotated")


class Annotations:
    """Of one function.

    Raises:
        NameError: at a call, an annotation that mentions a memory format still has a name that is nowhere defined.
    """

    def __init__(
        self, function: Callable[..., Any], signature: inspect.Signature, scope: Mapping[str, Any]
    ) -> None:
        self._globals = getattr(inspect.unwrap(function), "__globals__", {})
        self._scope: Mapping[str, Any] = scope
        self._name = getattr(function, "__qualname__", repr(function))
        self._generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        self._signature = signature
        self.parameters: dict[str, Expectation] = {}
        self.returns: Expectation | None = None
        self.pending: dict[str, str] = {}
        """Annotations with names that are not defined yet, by parameter."""
        for name, parameter in signature.parameters.items():
            self._read(name, parameter.annotation)
        self._read("return", signature.return_annotation)
        if not self.pending:
            self._scope = {}

    def resolve(self) -> None:
        """Read those that could not be read at first, or pass over them for good."""
        pending, self.pending = self.pending, {}
        for name, text in pending.items():
            self._read(name, text)
        unknown, self.pending = self.pending, {}
        for name, text in unknown.items():
            if any(word in text for word in _OURS):
                raise NameError(
                    f"expects(): the annotation {text!r} of {name!r} in {self._name} has an undefined name: import it "
                    "where it is used, not only for type checkers"
                )

    def _read(self, name: str, annotation: Any) -> None:
        if annotation is inspect.Parameter.empty:
            return
        try:
            # SameFormatAs[x] means the parameter, if a linter has taken the quotes away.
            parameters = {name: name for name in self._signature.parameters}
            hint = _evaluated(annotation, {**parameters, **self._globals, **self._scope})
        except Exception:  # noqa: BLE001 - a name, or anything that evaluating it may raise
            self.pending[name] = str(annotation)
            return
        if name == "return":
            if self._generates:
                hint = (typing.get_args(hint) or (None,))[0] if typing.get_origin(hint) in _RESULTS else None
            self.returns = read(hint)
            return
        expectation = read(hint)
        if expectation is None:
            return
        kind = self._signature.parameters[name].kind
        several = kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self.parameters[name] = Each(expectation) if several else expectation


def read(hint: Any) -> Expectation | None:
    """What a type says of memory formats; None if it says nothing."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _all_of([read(arguments[0]), *(_of_metadata(item) for item in hint.__metadata__)])
    if origin in (typing.Union, types.UnionType):
        return _any_of(arguments)
    if origin is tuple:
        return _tuple(arguments)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping) and len(arguments) == 2:
        return _each(arguments[1], origin)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Collection) and len(arguments) == 1:
        return _each(arguments[0], origin)
    if getattr(origin, "__name__", getattr(origin, "_name", None)) in _QUALIFIERS:
        return read(arguments[0])
    if origin is not None:
        return read(origin) if dataclasses.is_dataclass(origin) else None
    if isinstance(hint, type):
        return _class(hint)
    if hasattr(hint, "__supertype__"):  # NewType
        return read(hint.__supertype__)
    if type(hint).__name__ == "TypeAliasType":
        return read(hint.__value__)
    return None


def _of_metadata(item: Any) -> Expectation | None:
    if isinstance(item, torch.memory_format):
        return format_of(item)
    if typing.get_origin(item) is Annotated:  # Annotated[Tensor, ChannelsLast]
        return read(item)
    return format_in(item)


def _all_of(parts: list[Expectation | None]) -> Expectation | None:
    found = tuple(part for part in parts if part is not None)
    return found[0] if len(found) == 1 else AllOf(found) if found else None


def _any_of(alternatives: tuple[Any, ...]) -> Expectation | None:
    expectations: list[Expectation] = []
    kinds: list[type] = []
    for alternative in alternatives:
        expectation = read(alternative)
        if expectation is not None:
            expectations.append(expectation)
            continue
        kind = typing.get_origin(alternative) or alternative
        kinds.append(kind if isinstance(kind, type) else object)
    return AnyOf(tuple(expectations), tuple(kinds)) if expectations else None


def _tuple(arguments: tuple[Any, ...]) -> Expectation | None:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return _each(arguments[0], tuple)
    items = tuple(map(read, arguments))
    return Items(items) if any(item is not None for item in items) else None


def _each(argument: Any, kind: type) -> Expectation | None:
    expectation = read(argument)
    return None if expectation is None else Each(expectation, kind)


def _class(kind: type) -> Expectation | None:
    if typing.is_typeddict(kind):
        fields = _fields(kind)
        return Keys(fields, required=False) if fields else None
    if dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        if kind in _being_read:
            return Instance(kind, functools.partial(_fields, kind))
        return Instance(kind, functools.partial(_fields, kind)) if _fields(kind) else None
    return None


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, Expectation], ...]:
    _being_read.append(kind)
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
        found = ((name, read(hint)) for name, hint in hints.items())
        return tuple((name, expectation) for name, expectation in found if expectation is not None)
    except NameError:
        return ()
    finally:
        _being_read.remove(kind)


_being_read: list[type] = []


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if not _mentions_names(annotation):
        return annotation
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    hints: dict[str, Any] = typing.get_type_hints(holder, names, names, include_extras=True)
    return hints["it"]


def _mentions_names(annotation: Any) -> bool:
    """Whether something in it is still text."""
    if isinstance(annotation, str | typing.ForwardRef):
        return True
    return any(map(_mentions_names, typing.get_args(annotation)))
