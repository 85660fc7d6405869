"""Where in a file a call stands."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import astuple

from esper_guard.trace.event import Count

_Column = Annotated[int, Meta(ge=0)] | None


class Span(Struct, frozen=True, array_like=True):
    """Of a call on which an operator ran. Lines count from 1."""

    line: Count
    column: _Column = None
    """Where it begins, in bytes of UTF-8 from 0, as ``code.co_positions()`` has it; None if that is not known."""
    end_line: Count | None = None
    end_column: _Column = None

    @property
    def rank(self) -> tuple[int, ...]:
        """By which calls are in the order in which they stand; those of unknown columns first."""
        return tuple(-1 if part is None else part for part in astuple(self))
