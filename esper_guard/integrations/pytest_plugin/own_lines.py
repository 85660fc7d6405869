"""What tests do themselves: they make inputs and compare results, which is not what is tested."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import PurePath
from types import CodeType
from typing import Any, NamedTuple

import pytest

from esper_guard.trace.event import LayoutEvent

_COMPARING = frozenset(
    "eq ne lt le gt ge isclose sub rsub logical_and logical_or logical_xor bitwise_and".split()
)
_INPUT = "(a leaf tensor)"
"""What a gradient of something that is no parameter of a module goes by."""


_DOCTEST = "<doctest"
"""What the names of its files begin with."""


class OwnLines(NamedTuple):
    """Of one test."""

    file: str
    first: int
    last: int

    @classmethod
    def of(cls, item: pytest.Item) -> OwnLines:
        """Those of its function, with all that is written in it; of a doctest all of it."""
        function: Any = getattr(item, "function", None) or getattr(item, "obj", None)
        function = inspect.unwrap(getattr(function, "__func__", function))
        function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
        code = getattr(function, "__code__", None)
        if not isinstance(code, CodeType):
            return cls(_DOCTEST, 0, 0)
        lines = list(_lines(code))
        return cls(code.co_filename, code.co_firstlineno, max(lines, default=code.co_firstlineno))

    def excuse(self, event: LayoutEvent) -> bool:
        """Whether an event is the tests' own: a copy asked for by name, the backward of one, or a comparison.

        Nothing that happens in a module is, wherever the module is defined.
        """
        if event.parameter == _INPUT:
            return True
        if event.module is not None:
            return False
        if event.kind == "explicit" and self._is_test_code(event.file):
            return True
        operator = event.operator.split(".")[1] if "." in event.operator else event.operator
        return self._hold(event) and (event.phase == "backward" or operator in _COMPARING)

    def _is_test_code(self, file: str | None) -> bool:
        """Whether it is the file of the test, or a conftest, with functions that make inputs."""
        if file is None:
            return False
        return file == self.file or file.startswith(_DOCTEST) or PurePath(file).name == "conftest.py"

    def _hold(self, event: LayoutEvent) -> bool:
        if event.file is None:
            return False
        if self.file == _DOCTEST:
            return event.file.startswith(_DOCTEST)
        return event.file == self.file and self.first <= (event.line or 0) <= self.last


def _lines(code: CodeType) -> Iterator[int]:
    for _, _, line in code.co_lines():
        if line is not None:
            yield line
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _lines(constant)
