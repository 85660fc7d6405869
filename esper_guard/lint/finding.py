"""What a rule finds, and how to mend it."""

from __future__ import annotations

import enum

import msgspec

from esper_guard.lint.source import Location, Source


class Severity(str, enum.Enum):
    """How much a finding weighs. A note never changes the exit status."""

    ERROR = "error"  # crashes, corrupts or does nothing
    WARNING = "warning"  # a copy
    NOTE = "note"  # worth knowing


class Edit(msgspec.Struct, frozen=True):
    """Replace the text from ``start`` to ``end`` (character offsets, end excluded) by ``content``."""

    start: int
    end: int
    content: str
    location: Location
    end_location: Location


def edit(source: Source, start: int, end: int, content: str = "") -> Edit:
    """The edit that replaces these offsets of ``source``, with its places worked out."""
    return Edit(start, end, content, source.location(start), source.location(end))


class Fix(msgspec.Struct, frozen=True):
    """Edits that mend a finding, applied together or not at all.

    A safe fix keeps the program's values, strides, aliasing and dtypes, or removes what did nothing.
    """

    message: str
    safe: bool
    edits: tuple[Edit, ...]


class Measurement(msgspec.Struct, frozen=True):
    """What a trace says of the lines of a finding. They ran; all zero says that nothing happened to the memory format."""

    copies: int
    """Between channels_last and NCHW."""
    bytes: int
    """What these wrote."""
    losses: int
    """Results that left channels_last."""
    other_copies: int
    """That changed strides only."""
    other_bytes: int
    modules: tuple[str, ...] = ()
    """Which ran the lines where something happened."""
    tests: tuple[str, ...] = ()
    """By their pytest ids."""

    @property
    def rank(self) -> tuple[int, ...]:
        """The costliest is the greatest."""
        return (self.bytes, self.copies, self.losses, self.other_bytes)


class Finding(msgspec.Struct, frozen=True):
    """One thing a rule found: what happens at run time, and what to write instead."""

    code: str
    name: str
    severity: Severity
    message: str
    location: Location
    end_location: Location
    help: str | None = None
    fix: Fix | None = None
    measured: Measurement | None = None
    """None without a trace, and where nobody can tell whether the code of the finding ran."""

    @property
    def rows(self) -> range:
        """The lines that it is on."""
        return range(self.location.row, self.end_location.row + 1)
