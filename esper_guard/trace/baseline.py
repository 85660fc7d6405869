"""What is known to be copied and lost, so that only more of it is news."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict, astuple

from esper_guard.atomic import write_atomically
from esper_guard.trace.event import Count, Kind, LayoutEvent, Phase

FORMAT: Final = "esper-guard layout baseline"


class Known(Struct, frozen=True, forbid_unknown_fields=True):
    """What an entry is recognised by: the text of a line rather than its number, which every edit above it changes."""

    file: str | None
    """Below the root, or below ``site-packages``; with forward slashes."""
    code: str
    """The line without its indentation, or ``"parameter NAME"``."""
    kind: Kind
    operator: str
    change: str
    """``"channels_last -> nchw"``."""
    phase: Phase


class Worst(NamedTuple):
    """The most that one run of it did."""

    times: int = 0
    size: int = 0
    """In bytes."""

    def plus(self, event: LayoutEvent) -> Worst:
        """What several events of one run did together."""
        return Worst(self.times + event.count, self.size + event.bytes)

    def at_least(self, other: Worst) -> Worst:
        """The most of two runs."""
        return Worst(max(self.times, other.times), max(self.size, other.size))


class _Entry(Known, frozen=True):
    count: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    bytes: Count


class _File(Struct, forbid_unknown_fields=True):
    format: Literal["esper-guard layout baseline"]
    version: Literal[1]
    entries: list[_Entry]


class Baseline:
    """For each known place the most that one run, such as a test, did there.

    Args:
        root: what files are named relative to.
        entries: what is known.
    """

    def __init__(self, root: Path, entries: dict[Known, Worst] | None = None) -> None:
        self._root = root
        self.entries: dict[Known, Worst] = dict(entries or {})

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read what `save` wrote; its files are named relative to its folder.

        Raises:
            OSError: it can't be read.
            ValueError: it is no baseline, or of a newer version; the message names the file and the place.
        """
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: no layout baseline: {error}") from error
        entries = {}
        for entry in saved.entries:
            *place, times, size = astuple(entry)
            entries[Known(*place)] = Worst(times, size)
        return cls(path.parent, entries)

    def save(self, path: Path) -> None:
        """Write it, sorted, as a whole or not at all.

        Raises:
            OSError: it can't be written.
        """
        known = sorted(self.entries.items(), key=lambda item: [str(part) for part in astuple(item[0])])
        entries = [_Entry(**asdict(place), count=worst.times, bytes=worst.size) for place, worst in known]
        saved = _File(format="esper-guard layout baseline", version=1, entries=entries)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(saved), indent=1) + b"\n")

    def measure(self, events: Iterable[LayoutEvent]) -> dict[Known, Worst]:
        """What one run did, by what it would be recognised by."""
        measured: dict[Known, Worst] = {}
        for event in events:
            place = self.place_of(event)
            measured[place] = measured.get(place, Worst()).plus(event)
        return measured

    def exceeded(self, events: Iterable[LayoutEvent]) -> list[LayoutEvent]:
        """Those events of one run that are not known, or together are more than is known."""
        several = list(events)
        worse = {
            place
            for place, worst in self.measure(several).items()
            if place not in self.entries or worst.at_least(self.entries[place]) != self.entries[place]
        }
        return [event for event in several if self.place_of(event) in worse]

    def place_of(self, event: LayoutEvent) -> Known:
        """What an event is recognised by."""
        change = f"{event.source} -> {event.destination}"
        if event.file is None:
            return Known(None, event.location, event.kind, event.operator, change, event.phase)
        code = linecache.getline(event.file, event.line or 0).strip()
        return Known(self._relative(event.file), code, event.kind, event.operator, change, event.phase)

    def _relative(self, file: str) -> str:
        path = PurePath(file)
        for folder in ("site-packages", "dist-packages"):
            if folder in path.parts:  # first, because an environment may lie below the root
                return PurePath(*path.parts[path.parts.index(folder) :]).as_posix()
        if not path.is_absolute():
            return path.as_posix()
        try:
            return PurePath(os.path.relpath(path, self._root)).as_posix()
        except ValueError:  # on another drive
            return path.as_posix()
