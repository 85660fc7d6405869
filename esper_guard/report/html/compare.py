"""What changed between two traces, by file and by line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from esper_guard.report.html.names import short_names
from esper_guard.report.html.sources import has_own_sources, text_of
from esper_guard.report.html.text import lines_of, shortened
from esper_guard.trace.alignment import matching_lines
from esper_guard.trace.checkouts import renamed_files
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import Cost, LayoutTrace
from esper_guard.trace.sizes import format_size

SAME: Final = "the same"


class Place(NamedTuple):
    """A line; or what has none, by the name that an event's `location` gives it."""

    file: str | None
    line: int | None
    name: str = ""


class Change(NamedTuple):
    """Of a file, a line, or a parameter."""

    name: str
    place: Place
    """After, or before if it is gone."""
    before: Cost
    after: Cost
    status: str
    """In words: "gone", "new line", "copies no more", "copies now", "more", "less", "the same"."""
    code: str = ""
    old_line: int | None = None
    is_gone: bool = False

    @property
    def difference(self) -> int:
        """In bytes."""
        return self.after.bytes - self.before.bytes

    @property
    def other(self) -> str:
        """Copies of strides only: ``"1 -> 2 (1.0 KiB -> 4.0 KiB)"``; empty if there are none."""
        before, after = self.before, self.after
        return _counted(before.other_copies, after.other_copies, before.other_bytes, after.other_bytes)

    @property
    def internal(self) -> str:
        """Copies inside kernels, likewise."""
        before, after = self.before, self.after
        return _counted(before.internal, after.internal, before.internal_bytes, after.internal_bytes)


class Comparison(NamedTuple):
    """Of two traces; what changed most comes first."""

    headline: str
    """``"168.0 MiB -> 0 B (-100 %)"``."""
    copies: str
    """``"12 -> 0"``."""
    losses: str
    """``"4 -> 10"``."""
    apart: list[tuple[str, str]]
    """What is counted apart and not the same: ``("other copies", "1 -> 2 (1.0 KiB -> 4.0 KiB)")``."""
    files: list[Change]
    lines: list[Change]
    by_line: dict[tuple[str, int], Change]
    """The lines that are there after, by their file and number."""
    is_by_number: bool
    """Whether lines were matched by their numbers, because the trace before holds no sources."""
    levels: tuple[str, str] | None
    """Of the traces, if they differ: then copies inside kernels are left out."""

    @property
    def changed(self) -> list[Change]:
        """The lines that are not the same."""
        return [change for change in self.lines if change.status != SAME]

    @property
    def unchanged(self) -> list[Change]:
        """The other ones."""
        return [change for change in self.lines if change.status == SAME]


def compare(before: LayoutTrace, after: LayoutTrace) -> Comparison:
    """By line: a line that has moved since is found by its text (`matching_lines`)."""
    lines = _Lines(before, after).changes()
    return Comparison(
        f"{format_size(before.total_bytes)} -> {format_size(after.total_bytes)}"
        + _percent(before.total_bytes, after.total_bytes),
        f"{_times(before.copies)} -> {_times(after.copies)}",
        f"{_times(before.losses)} -> {_times(after.losses)}",
        _apart(lines),
        _by_file(lines),
        sorted(lines, key=_importance),
        {
            (change.place.file, change.place.line): change
            for change in lines
            if change.place.file is not None and change.place.line is not None and not change.is_gone
        },
        not has_own_sources(before),
        None if before.level == after.level else (before.level, after.level),
    )


class _Lines:
    """Matches the lines of two traces."""

    def __init__(self, before: LayoutTrace, after: LayoutTrace) -> None:
        kernels = before.level == after.level
        self._before, self._after = _costs(before, kernels), _costs(after, kernels)
        old_files, new_files = (
            list(dict.fromkeys(place.file for place in costs if place.file is not None))
            for costs in (self._before, self._after)
        )
        self._old_names, self._new_names = short_names(old_files), short_names(new_files)
        renamed = renamed_files(self._old_names.values(), self._new_names.values())
        self._new_of = {file: self._counterpart(file, renamed) for file in old_files}
        self._old_of = {new: old for old, new in self._new_of.items()}
        self._texts = {file: text_of(after, file) for file in {*new_files, *self._new_of.values()}}
        own = has_own_sources(before)
        self._old_texts = {
            old: text_of(before, old) if own else self._texts[new] for old, new in self._new_of.items()
        }
        self._now_at = {
            old: _matched(self._old_texts[old], self._texts[new]) for old, new in self._new_of.items()
        }
        self._was_at = {
            old: None if now_at is None else {line: was for was, line in now_at.items()}
            for old, now_at in self._now_at.items()
        }

    def changes(self) -> list[Change]:
        """Of each line that copied something before or after."""
        found: list[Change] = []
        seen: set[Place] = set()
        for place, cost in self._before.items():
            now = self._now(place)
            if now is None:
                found.append(self._gone(place, cost))
                continue
            seen.add(now)
            now_cost = self._after.get(now, Cost())
            found.append(self._change(now, place.line, cost, now_cost, _status(cost, now_cost)))
        for place, cost in self._after.items():
            if place not in seen:
                was = self._was(place)
                status = "new line" if was is None and place.file is not None else "copies now"
                found.append(self._change(place, was, Cost(), cost, status))
        return found

    def _counterpart(self, file: str, renamed: dict[str, str]) -> str:
        """The name after of a file: the same, or the same below the other trace's folder."""
        if file in self._new_names:
            return file
        short = renamed.get(self._old_names[file], self._old_names[file])
        return next((new for new, name in self._new_names.items() if name == short), file)

    def _now(self, place: Place) -> Place | None:
        if place.file is None or place.line is None:
            return place
        line = _looked_up(self._now_at[place.file], place.line)
        return None if line is None else Place(self._new_of[place.file], line)

    def _was(self, place: Place) -> int | None:
        old = None if place.file is None else self._old_of.get(place.file)
        return None if old is None or place.line is None else _looked_up(self._was_at[old], place.line)

    def _gone(self, place: Place, cost: Cost) -> Change:
        assert place.file is not None
        name = f"{self._old_names[place.file]}:{place.line}"
        code = _line(self._old_texts[place.file], place.line)
        gone = Place(self._new_of[place.file], place.line)
        return Change(name, gone, cost, Cost(), "gone", code, place.line, is_gone=True)

    def _change(self, place: Place, old_line: int | None, before: Cost, after: Cost, status: str) -> Change:
        if place.file is None:
            return Change(place.name, place, before, after, status)
        known = self._new_names.get(place.file)
        short = self._old_names[self._old_of[place.file]] if known is None else known
        code = _line(self._texts[place.file], place.line)
        name = short if place.line is None else f"{short}:{place.line}"
        return Change(name, place, before, after, status, code, old_line)


def _matched(old: str | None, new: str | None) -> dict[int, int] | None:
    """None: each line is what has its number, since one of the texts is not known, or both are the same."""
    return None if old is None or new is None or old == new else matching_lines(old, new)


def _looked_up(lines: dict[int, int] | None, line: int) -> int | None:
    return line if lines is None else lines.get(line)


def _costs(trace: LayoutTrace, kernels: bool) -> dict[Place, Cost]:
    costs: dict[Place, Cost] = {}
    for event in trace.events if kernels else (each for each in trace.events if each.kind != "internal"):
        place = Place(None, None, event.location) if event.file is None else Place(event.file, event.line)
        costs[place] = costs.get(place, Cost()).plus(event)
    return costs


def _by_file(lines: list[Change]) -> list[Change]:
    several: dict[str, list[Change]] = {}
    for change in lines:
        several.setdefault(change.place.file or change.name, []).append(change)
    found = []
    for changes in several.values():
        shown = min(changes, key=lambda change: change.is_gone)  # a line that is gone has the name of before
        name = shown.name if shown.place.line is None else shown.name.rpartition(":")[0]
        before, after = Cost.sum(each.before for each in changes), Cost.sum(each.after for each in changes)
        found.append(Change(name, Place(shown.place.file, None), before, after, _status(before, after)))
    return sorted(found, key=_importance)


def _apart(lines: list[Change]) -> list[tuple[str, str]]:
    before, after = Cost.sum(each.before for each in lines), Cost.sum(each.after for each in lines)
    sums = Change("", Place(None, None), before, after, "")
    return [
        (name, words)
        for name, words, is_same in (
            ("other copies", sums.other, before[3:5] == after[3:5]),
            ("copies in kernels", sums.internal, before[5:] == after[5:]),
        )
        if not is_same
    ]


def _status(before: Cost, after: Cost) -> str:
    if after == before:
        return SAME
    if not any(before):
        return "copies now"
    if not any(after):
        return "copies no more"
    return "more" if _rank(after) > _rank(before) else "less"


def _rank(cost: Cost) -> tuple[int, ...]:
    """Of any two that are not the same, one is the greater."""
    return (*cost.rank, cost.other_copies, cost.internal)


def _importance(change: Change) -> tuple[object, ...]:
    before, after = _rank(change.before), _rank(change.after)
    changed = [-abs(now - then) for then, now in zip(before, after, strict=True)]
    return (changed[0], change.status == SAME, *(-part for part in max(before, after)), *changed, change.name)


def _percent(before: int, after: int) -> str:
    if before == after:
        return " (the same)"
    if before == 0:
        return ""
    change = round(100 * (after - before) / before)
    if change == 0:
        return f" (less than 1 % {'more' if after > before else 'less'})"
    return f" ({max(change, -99) if after else change:+} %)"  # only nothing is 100 % less


def _counted(copies: int, copies_after: int, size: int, size_after: int) -> str:
    if not copies and not copies_after:
        return ""
    return f"{copies} -> {copies_after} ({format_size(size)} -> {format_size(size_after)})"


def _times(events: Iterable[LayoutEvent]) -> int:
    return sum(event.count for event in events)


def _line(text: str | None, number: int | None) -> str:
    lines = [] if text is None else lines_of(text)
    return shortened(lines[number - 1].strip()) if number is not None and 0 < number <= len(lines) else ""
