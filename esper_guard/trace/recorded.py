"""What a trace holds of one file, to be found again in a newer version of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property

from msgspec import Struct

from esper_guard.trace.alignment import matching_lines
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import LayoutTrace


class Measured(Struct, frozen=True):
    """What was measured, by the lines that a file has now."""

    events: dict[int, tuple[LayoutEvent, ...]]
    executed: frozenset[int]
    """Where operators ran, whether or not they copied anything."""
    gone: int = 0
    """Lines with events that are no longer there."""
    moved: int = 0
    """Lines with events that have another number now."""

    def at(self, lines: Iterable[int]) -> tuple[LayoutEvent, ...]:
        """The events of several lines."""
        return tuple(event for line in lines for event in self.events.get(line, ()))


class Recorded(Struct, frozen=True):
    """Of one file, by the lines that it had when the trace was saved."""

    events: tuple[LayoutEvent, ...]
    """Those that have a line."""
    executed: frozenset[int]
    text: str | None
    """None if the trace doesn't have it: then its lines are taken for those of now."""

    def in_text(self, text: str) -> Measured:
        """By the lines of ``text``, which is what the file holds now."""
        lines = [event.line for event in self.events if event.line is not None]
        same = matching_lines(text if self.text is None else self.text, text)
        events: dict[int, tuple[LayoutEvent, ...]] = {}
        for event in self.events:
            now = same.get(event.line or 0)
            if now is not None:
                events[now] = (*events.get(now, ()), event)
        return Measured(
            events,
            frozenset(same[line] for line in self.executed if line in same),
            gone=len({line for line in lines if line not in same}),
            moved=len({line for line in lines if same.get(line, line) != line}),
        )


class Recordings:
    """A trace, by file."""

    def __init__(self, trace: LayoutTrace) -> None:
        self._trace = trace
        self._executed = trace.executed
        self.files: tuple[str, ...] = tuple(
            dict.fromkeys(
                [event.file for event in trace.events if event.file is not None] + list(self._executed)
            )
        )

    def of(self, path: str) -> Recorded | None:
        """What is recorded of the file at ``path``.

        A trace from another folder or machine names files otherwise: then the one file counts that agrees with ``path``
        in its name and most folders above it, at least one.
        """
        absolute = os.path.abspath(path)
        if absolute in self._by_file:
            return self._by_file[absolute]
        known = {
            file: _agreement(file, absolute) for file in self._by_name.get(os.path.basename(absolute), ())
        }
        most = max(known.values(), default=0)
        best = [file for file, agreement in known.items() if agreement == most]
        return self._by_file[best[0]] if most > 1 and len(best) == 1 else None

    @cached_property
    def _by_file(self) -> dict[str, Recorded]:
        events: dict[str, list[LayoutEvent]] = {file: [] for file in self.files}
        for event in self._trace.events:
            if event.file is not None and event.line is not None:
                events[event.file].append(event)
        nothing: frozenset[int] = frozenset()
        return {
            file: Recorded(
                tuple(events[file]), self._executed.get(file, nothing), self._trace.sources.get(file)
            )
            for file in self.files
        }

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for file in self.files:
            names.setdefault(_parts(file)[-1], []).append(file)
        return names


def _agreement(file: str, other: str) -> int:
    """How many parts of two paths agree, from the end."""
    pairs = zip(reversed(_parts(file)), reversed(_parts(other)), strict=False)
    return next(
        (at for at, (one, two) in enumerate(pairs) if one != two), min(len(_parts(file)), len(_parts(other)))
    )


def _parts(path: str) -> list[str]:
    return path.replace("\\", "/").split("/")
