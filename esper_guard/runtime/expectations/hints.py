"""What a type says of memory formats."""

from __future__ import annotations

import ast
import collections.abc
import inspect
import itertools
import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Final

import torch
import typing_extensions

from esper_guard.runtime.expectations.metadata import format_in
from esper_guard.runtime.expectations.wanted import (
    AllOf,
    AnyOf,
    Each,
    Expectation,
    Instance,
    Items,
    format_of,
)

_QUALIFIERS: Final = {"Required", "NotRequired", "ReadOnly", "Final", "ClassVar"}
_OURS: Final = frozenset(
    "ChannelsLast ChannelsLast3d Contiguous SameFormatAs channels_last channels_last_3d contiguous_format".split()
)


class UnreadableError(Exception):
    """An annotation can't be evaluated, for a name that is not defined perhaps."""

    def __init__(self, annotation: Any, cause: Exception) -> None:
        text = annotation if isinstance(annotation, str) else str(annotation)
        super().__init__(f"{text!r}: {cause}")
        self.ours = _mentions_ours(text)
        """Whether it mentions a memory format."""


class HintReader:
    """Reads types. Classes are read once, because they may mention themselves."""

    def __init__(self, *scopes: Mapping[str, Any]) -> None:
        """``scopes``: where names are looked up, the innermost last."""
        self._scopes = scopes
        self._classes: dict[Any, Instance] = {}
        self._open: list[Any] = []
        self.last = False
        """Whether what can't be read now never will."""

    @property
    def names(self) -> dict[str, Any]:
        """All that is in scope now."""
        return {name: value for scope in self._scopes for name, value in scope.items()}

    def forget(self) -> None:
        """Everything is read, so that nothing need be kept alive."""
        self._scopes = ()

    def evaluated(self, annotation: Any, names: Mapping[str, Any] | None = None) -> Any:
        """An annotation without text in it; ``names``: other ones than those in scope."""
        if not _is_text(annotation):
            return annotation
        names = self.names if names is None else names
        holder = type("Holder", (), {"__annotations__": {"it": annotation}})  # a class may have a ClassVar
        try:
            hints = typing.get_type_hints(holder, dict(names), dict(names), include_extras=True)
        except Exception as error:
            raise UnreadableError(annotation, error) from error
        return hints["it"]

    def read(self, hint: Any, variables: Mapping[Any, Any] | None = None) -> Expectation | None:
        """What a type says of memory formats; None if it says nothing.

        ``variables``: what stands for type variables.
        """
        known = variables or {}
        if isinstance(hint, typing.TypeVar) and hint in known:
            return self.read(known[hint])
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            parts = [self.read(arguments[0], known), *map(self._of_metadata, hint.__metadata__)]
            return _all_of([part for part in parts if part is not None])
        if origin in (typing.Union, types.UnionType):
            return self._any_of(arguments, known)
        if origin is tuple:
            return self._tuple(arguments, known)
        if getattr(origin, "__name__", getattr(origin, "_name", None)) in _QUALIFIERS:
            return self.read(arguments[0], known)
        if isinstance(origin, type):
            if _is_record(origin):
                given = (known.get(argument, argument) for argument in arguments)
                parameters = getattr(origin, "__parameters__", ())
                return self._class(origin, dict(zip(parameters, given, strict=False)))
            if issubclass(origin, collections.abc.Mapping) and len(arguments) == 2:
                return self._each(arguments[1], origin, known)
            if issubclass(origin, collections.abc.Iterable) and len(arguments) == 1:
                return self._each(arguments[0], origin, known)
            return None
        if isinstance(hint, type):
            return self._class(hint, {}) if _is_record(hint) else None
        if hasattr(hint, "__supertype__"):  # NewType
            return self.read(hint.__supertype__)
        if type(hint).__name__ == "TypeAliasType":
            return self.read(hint.__value__)
        return None

    def _of_metadata(self, item: Any) -> Expectation | None:
        if isinstance(item, torch.memory_format):
            return format_of(item)
        if typing.get_origin(item) is Annotated:  # Annotated[Tensor, ChannelsLast]
            return self.read(item)
        return format_in(item)

    def _any_of(self, alternatives: tuple[Any, ...], known: Mapping[Any, Any]) -> Expectation | None:
        expectations: list[Expectation] = []
        kinds: list[type] = []
        others = False
        for alternative in alternatives:
            expectation = self.read(alternative, known)
            if expectation is not None:
                expectations.append(expectation)
                continue
            found = _kinds_of(alternative)
            others = others or found is None
            kinds += found or ()
        return AnyOf(tuple(expectations), tuple(kinds), others) if expectations else None

    def _tuple(self, arguments: tuple[Any, ...], known: Mapping[Any, Any]) -> Expectation | None:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return self._each(arguments[0], tuple, known)
        fixed = list(itertools.takewhile(lambda argument: not _is_unpacked(argument), arguments))
        items = tuple(self.read(argument, known) for argument in fixed)
        if all(item is None for item in items):
            return None
        return Items(items, open_ended=len(fixed) < len(arguments))

    def _each(self, argument: Any, kind: type, known: Mapping[Any, Any]) -> Expectation | None:
        expectation = self.read(argument, known)
        return None if expectation is None else Each(expectation, kind)

    def _class(self, kind: type, variables: dict[Any, Any]) -> Expectation | None:
        """Of a TypedDict, dataclass, or named tuple."""
        key = (kind, *((variable, repr(hint)) for variable, hint in variables.items()))
        instance = self._classes.get(key)
        if instance is None:
            instance = self._classes[key] = Instance(dict if typing_extensions.is_typeddict(kind) else kind)
            self._open.append(key)
            try:
                found = self._hints(kind, variables)
                fields = [(name, self._field(*how)) for name, how in found.items()]
            except UnreadableError:
                self._classes.clear()  # others may have been read without it
                raise
            finally:
                self._open.remove(key)
            instance.fields = tuple((name, field) for name, field in fields if field is not None)
        # While others are open that mention it, or that it mentions, nobody knows what it says.
        return instance if self._open or instance.says_something() else None

    def _hints(
        self, kind: type, variables: Mapping[Any, Any]
    ) -> dict[str, tuple[Any, dict[str, Any], Mapping[Any, Any]]]:
        """The annotations of a class and its bases, each with the names and the type variables in its scope."""
        found: dict[str, tuple[Any, dict[str, Any], Mapping[Any, Any]]] = {}
        for parent in getattr(kind, "__orig_bases__", kind.__bases__):
            origin, arguments = typing.get_origin(parent), typing.get_args(parent)
            if isinstance(origin, type) and origin not in (typing.Generic, typing.Protocol):
                given = [variables.get(argument, argument) for argument in arguments]
                bound = dict(zip(getattr(origin, "__parameters__", ()), given, strict=False))
                found.update(self._hints(origin, bound))
            elif isinstance(parent, type) and parent is not object:
                found.update(self._hints(parent, {}))
        module = vars(sys.modules.get(kind.__module__, types.ModuleType("")))
        scope = {**module, **self.names} if "<locals>" in kind.__qualname__ else {**self.names, **module}
        names = {**scope, **vars(kind), kind.__name__: kind}
        found.update({name: (hint, names, variables) for name, hint in inspect.get_annotations(kind).items()})
        return found

    def _field(self, hint: Any, names: dict[str, Any], variables: Mapping[Any, Any]) -> Expectation | None:
        try:
            return self.read(self.evaluated(hint, names), variables)
        except UnreadableError as error:
            if error.ours or not self.last:
                raise
            return None


def _all_of(parts: list[Expectation]) -> Expectation | None:
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts)) if parts else None


def _kinds_of(hint: Any) -> tuple[type, ...] | None:
    """The classes of the values of a type that says nothing of formats; None if they can't be told: any but tensors."""
    origin = typing.get_origin(hint)
    if hint is Any or hint is object:
        return (object,)
    if hint is None:
        return (type(None),)
    if origin is Annotated:
        return _kinds_of(typing.get_args(hint)[0])
    if origin is typing.Literal:
        return tuple(type(value) for value in typing.get_args(hint))
    if hasattr(hint, "__supertype__"):
        return _kinds_of(hint.__supertype__)
    if isinstance(hint, typing.TypeVar):
        return None if hint.__bound__ is None else _kinds_of(hint.__bound__)
    kind = origin or hint
    if not isinstance(kind, type):
        return None
    if typing_extensions.is_typeddict(kind):
        return (dict,)
    if getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False):
        return None
    return {float: (float, int), complex: (complex, float, int)}.get(kind, (kind,))


def _is_record(kind: type) -> bool:
    """Whether it is a TypedDict, a dataclass, or a named tuple, with fields of its own."""
    if typing_extensions.is_typeddict(kind) or hasattr(kind, "__dataclass_fields__"):
        return True
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def _is_unpacked(hint: Any) -> bool:
    return typing.get_origin(hint) is typing_extensions.Unpack or getattr(hint, "__unpacked__", False) is True


def _is_text(annotation: Any) -> bool:
    """Whether something in it is still text."""
    if isinstance(annotation, str | typing.ForwardRef):
        return True
    if typing.get_origin(annotation) in (typing.Literal, Annotated):
        return typing.get_origin(annotation) is Annotated and _is_text(typing.get_args(annotation)[0])
    return any(map(_is_text, typing.get_args(annotation)))


def _mentions_ours(text: str) -> bool:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError:
        return any(name in text for name in _OURS)
    names = {getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(tree)}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return bool(_OURS & names) or any(isinstance(value, str) and value in _OURS for value in texts)
