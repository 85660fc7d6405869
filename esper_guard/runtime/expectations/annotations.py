"""What the annotations of a function say of memory formats."""

from __future__ import annotations

import collections.abc
import inspect
import threading
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

import typing_extensions

from esper_guard.runtime.expectations.hints import HintReader, UnreadableError
from esper_guard.runtime.expectations.wanted import AnyOf, Each, Expectation

_YIELDING: Final = (
    # What is yielded is the result.
    collections.abc.Generator,
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.AsyncGenerator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
)


class Annotations:
    """Of one function.

    Args:
        function: with ``signature``, its own or what it claims.
        scope: the names where it is defined, in a function perhaps.
        written: parameters that an expectation is written for, whose annotations don't count.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        signature: inspect.Signature,
        scope: Mapping[str, Any],
        written: frozenset[str],
    ) -> None:
        global_names = getattr(inspect.unwrap(function), "__globals__", {})
        # SameFormatAs[x] means the parameter, if a linter has taken the quotes away.
        parameters = {name: name for name in signature.parameters}
        self._reader = HintReader(parameters, global_names, scope)
        self._lock = threading.Lock()
        self._name = getattr(function, "__qualname__", repr(function))
        self._generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        self._signature = signature
        self.parameters: dict[str, Expectation] = {}
        self.returns: Expectation | None = None
        self.pending: dict[str, Any] = {}
        """Annotations with names that are not defined yet, by parameter."""
        annotated = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        annotated["return"] = signature.return_annotation
        unwritten = {name: hint for name, hint in annotated.items() if name not in written}
        self.pending = self._read_all(unwritten, last=False)
        if not self.pending:
            self._reader.forget()

    def resolve(self, settle: Callable[[], None]) -> None:
        """Read those that could not be read at first, or pass over them for good; then ``settle`` with what is known.

        Raises:
            NameError: one that mentions a memory format has a name that is still not defined.
        """
        with self._lock:
            if self.pending:  # else another thread has done it
                pending = self._read_all(self.pending, last=True)
                settle()
                self.pending = pending
                self._reader.forget()

    def _read_all(self, annotated: Mapping[str, Any], last: bool) -> dict[str, Any]:
        """Those that can't be read yet."""
        self._reader.last = last
        pending = {}
        for name, annotation in annotated.items():
            if annotation is inspect.Parameter.empty:
                continue
            try:
                self._read(name, annotation)
            except UnreadableError as error:
                if last and error.ours:
                    raise NameError(
                        f"expects(): the annotation of '{name}' in {self._name} can't be read: {error}; define or "
                        "import its names where they are used, not only for type checkers"
                    ) from error
                if not last:
                    pending[name] = annotation
        return pending

    def _read(self, name: str, annotation: Any) -> None:
        hint = self._reader.evaluated(annotation)
        if name == "return":
            if self._generates:
                hint = (typing.get_args(hint) or (None,))[0] if typing.get_origin(hint) in _YIELDING else None
            self.returns = self._reader.read(hint)
            return
        parameter = self._signature.parameters[name]
        if (
            parameter.kind is inspect.Parameter.VAR_KEYWORD
            and typing.get_origin(hint) is typing_extensions.Unpack
        ):
            expectation = self._reader.read(typing.get_args(hint)[0])
        else:
            expectation = self._reader.read(hint)
            if expectation is not None and parameter.kind in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                expectation = Each(expectation)
        if expectation is not None:
            if parameter.default is None:
                expectation = AnyOf((expectation,), (type(None),))
            self.parameters[name] = expectation
