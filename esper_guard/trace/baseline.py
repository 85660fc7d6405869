"""What is known to be copied and lost, so that only more of it is news."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict, astuple, replace

from esper_guard.atomic import write_atomically
from esper_guard.trace.event import Count, Kind, LayoutEvent, Phase
from esper_guard.trace.line_texts import LineTexts, identity

FORMAT: Final = "esper-guard layout baseline"
VERSION: Final = 1

Of: TypeAlias = Literal["test", "run"]
"""What entries hold: the most that one test did (pytest), or the sums of a whole run (``esper-guard report``)."""


class Known(Struct, frozen=True, forbid_unknown_fields=True):
    """What an entry is recognised by: the text of a line rather than its number, which every edit above it changes."""

    file: str | None
    """Below the root, or below ``site-packages``; with forward slashes."""
    code: str
    """The line without its indentation and a comment at its end, or ``"parameter NAME"``."""
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


class News(NamedTuple):
    """What one run did at a place that is not known, or more often, or with more bytes, than is known."""

    place: Known
    events: tuple[LayoutEvent, ...]
    now: Worst
    known: Worst | None
    code: str
    """The line with its comment, as it was last; ``"line 3"`` if its text is not known."""


class _Head(Struct):
    """As much as any version has."""

    format: Literal["esper-guard layout baseline"]
    version: Annotated[int, Meta(ge=1)]


class _File(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    format: Literal["esper-guard layout baseline"]
    version: Literal[1]
    of: Of = "test"
    entries: list[_Entry]


class Baseline:
    """For each known place the most that one run, such as a test, did there.

    Args:
        root: what files are named relative to.
        entries: what is known.
        of: what one run is.
        texts: where the text of lines is found; by default in the files as they are now.
    """

    def __init__(
        self,
        root: Path,
        entries: Mapping[Known, Worst] | None = None,
        of: Of = "test",
        texts: LineTexts | None = None,
    ) -> None:
        self._root = root
        self._of: Of = of
        self._texts = texts or LineTexts()
        self.entries: dict[Known, Worst] = dict(entries or {})

    @classmethod
    def load(cls, path: Path, of: Of = "test", texts: LineTexts | None = None) -> Baseline:
        """Read what `save` wrote; its files are named relative to its folder.

        Raises:
            OSError: it can't be read.
            ValueError: it is no baseline, of a newer version, or of the other kind; the message names the file and
                the place.
        """
        content = path.read_bytes()
        try:
            head = msgspec.json.decode(content, type=_Head)
            if head.version > VERSION:
                raise ValueError(
                    f"{path}: a layout baseline of version {head.version}; this esper-guard reads up to version {VERSION}: upgrade it"
                )
            saved = msgspec.json.decode(content, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            remedy = f"delete it and write it anew with {_UPDATE[of]}"
            raise ValueError(f"{path}: no layout baseline: {error}; {remedy}") from error
        if saved.of != of:
            raise ValueError(f"{path}: {_OTHER_KIND[saved.of].format(path=path)}")
        entries: dict[Known, Worst] = {}
        for entry in saved.entries:
            *place, times, size = astuple(entry)
            known = _recognised(Known(*place))
            same = entries.get(known, Worst())
            entries[known] = Worst(same.times + times, same.size + size)
        return cls(path.parent, entries, of, texts)

    def save(self, path: Path) -> None:
        """Write it, sorted, as a whole or not at all.

        Raises:
            OSError: it can't be written.
        """
        known = sorted(self.entries.items(), key=lambda item: [str(part) for part in astuple(item[0])])
        entries = [_Entry(**asdict(place), count=worst.times, bytes=worst.size) for place, worst in known]
        saved = _File(format="esper-guard layout baseline", version=1, of=self._of, entries=entries)
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

    def news(self, events: Iterable[LayoutEvent]) -> list[News]:
        """The same by place, with what is known of each; the costliest first."""
        places: dict[Known, list[LayoutEvent]] = {}
        for event in self.exceeded(events):
            places.setdefault(self.place_of(event), []).append(event)
        found = [
            News(
                place,
                tuple(several),
                self.measure(several)[place],
                self.entries.get(place),
                self._texts.read(several[0].file, several[0].line) or place.code,
            )
            for place, several in places.items()
        ]
        return sorted(
            found, key=lambda news: (news.events[0].is_copy, news.now.size, news.now.times), reverse=True
        )

    def renamed(self, names: Mapping[str, str]) -> None:
        """Take files by other names."""
        self.entries = {
            replace(place, file=names.get(place.file, place.file)) if place.file else place: worst
            for place, worst in self.entries.items()
        }

    def place_of(self, event: LayoutEvent) -> Known:
        """What an event is recognised by."""
        change = f"{event.source} -> {event.destination}"
        if event.file is None:
            return Known(None, event.location, event.kind, event.operator, change, event.phase)
        code = self._texts.key(event.file, event.line)
        file = name_of(event.file, self._root)
        return Known(file, code, event.kind, event.operator, change, event.phase)


def _recognised(place: Known) -> Known:
    """What an entry that was written with a comment in its line is recognised by."""
    return place if place.file is None else replace(place, code=identity(place.code))


def name_of(file: str, root: Path) -> str:
    """What a file goes by wherever the project lies: its path below the root, or below ``site-packages``."""
    path = PurePath(file)
    for folder in ("site-packages", "dist-packages"):
        if folder in path.parts:  # first, because an environment may lie below the root
            return PurePath(*path.parts[path.parts.index(folder) :]).as_posix()
    if not path.is_absolute():
        return path.as_posix()
    try:
        return PurePath(os.path.relpath(path, root)).as_posix()
    except ValueError:  # on another drive
        return path.as_posix()


_UPDATE: dict[Of, str] = {"test": "--layout-update", "run": "--update-baseline"}
_OTHER_KIND: dict[Of, str] = {
    "test": "a baseline of pytest, which holds the most that one test did, while a trace adds all of them up: use "
    + "`pytest --layout-baseline={path}`, or give --baseline a file of its own, or an earlier trace",
    "run": "a baseline of `esper-guard report`, which holds what a whole run did, not one test: give pytest a file "
    + "of its own",
}
