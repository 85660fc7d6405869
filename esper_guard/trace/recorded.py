"""What traces hold of one file, to be found again in a newer version of it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from esper_guard.trace.alignment import indentation, matching_lines, split_lines, unchanged_functions
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.span import Span


class Call(Struct, frozen=True):
    """Where a call stands in a file as it is now; lines count from 1, columns are characters from 0."""

    start: tuple[int, int]
    end: tuple[int, int]
    by_line: bool
    """Whether only its line is known."""

    def within(self, start: tuple[int, int], end: tuple[int, int]) -> bool:
        """Whether it is part of what stands between two places."""
        if self.by_line:
            return start[0] <= self.start[0] <= end[0]
        return start <= self.start and self.end <= end


class Measured(Struct, frozen=True):
    """What was measured, by the lines that a file has now."""

    events: dict[int, tuple[LayoutEvent, ...]]
    executed: frozenset[int] = frozenset()
    """Lines on which operators ran, whether or not they copied anything."""
    calls: tuple[Call, ...] = ()
    """The calls that ran them, in functions that are as they were: a zero says something of these."""
    gone: int = 0
    """Lines on which operators ran that are no longer there."""
    moved: int = 0
    """Such lines that have another number now."""

    def at(self, lines: Iterable[int]) -> tuple[LayoutEvent, ...]:
        """The events of several lines."""
        return tuple(event for line in lines for event in self.events.get(line, ()))


class Run(Struct, frozen=True):
    """Of one file and one trace, by the lines that the file had when the trace was saved."""

    events: tuple[LayoutEvent, ...]
    """Those that have a line."""
    calls: frozenset[Span]
    text: str | None
    """None if the trace doesn't have it: then its lines are taken for those of now."""
    is_whole: bool = True
    """Whether the tracer saw all that ran."""

    def in_text(self, text: str) -> Measured:
        """By the lines of ``text``, which is what the file holds now."""
        before = text if self.text is None else self.text
        same = matching_lines(before, text)
        events: dict[int, tuple[LayoutEvent, ...]] = {}
        for event in self.events:
            now = same.get(event.line or 0)
            if now is not None:
                events[now] = (*events.get(now, ()), event)
        ran = {event.line for event in self.events if event.line} | {span.line for span in self.calls}
        gone = {line for line in ran if line not in same}
        old, new = split_lines(before), split_lines(text)
        return Measured(
            events,
            frozenset(same[line] for line in ran - gone),
            tuple(_calls(self.calls, same, old, new, unchanged_functions(before, text, same)))
            if self.is_whole and self.text is not None
            else (),
            len({line for line in gone if line > len(old) or old[line - 1].strip()}),
            len({line for line in ran - gone if same[line] != line}),
        )


class Recorded(Struct, frozen=True):
    """Of one file, in all traces."""

    runs: tuple[Run, ...]

    @property
    def has_text(self) -> bool:
        """Whether each trace has it."""
        return all(run.text is not None for run in self.runs)

    def in_text(self, text: str) -> Measured:
        """By the lines of ``text``, which is what the file holds now; each trace by the lines of its own."""
        found = [run.in_text(text) for run in self.runs]
        events: dict[int, tuple[LayoutEvent, ...]] = {}
        for measured in found:
            for line, several in measured.events.items():
                events[line] = (*events.get(line, ()), *several)
        return Measured(
            events,
            frozenset().union(*(measured.executed for measured in found)),
            tuple(call for measured in found for call in measured.calls),
            max((measured.gone for measured in found), default=0),
            max((measured.moved for measured in found), default=0),
        )


def _calls(
    spans: Iterable[Span], same: dict[int, int], old: list[str], new: list[str], intact: frozenset[int]
) -> Iterable[Call]:
    """Where calls are now, of those in functions that are as they were."""
    for span in spans:
        end_line = span.end_line or span.line
        first, last = same.get(span.line), same.get(end_line)
        if first is None or last is None or first not in intact:
            continue
        if span.column is None or span.end_column is None:
            yield Call((first, 0), (last, 0), by_line=True)
            continue
        start = _column(span.column, old[span.line - 1], new[first - 1])
        end = _column(span.end_column, old[end_line - 1], new[last - 1])
        yield Call((first, start), (last, end), by_line=False)


def _column(offset: int, before: str, after: str) -> int:
    """Of an offset in bytes of a line, in characters of that line as it is indented now."""
    column = len(before.encode("utf-8", "surrogatepass")[:offset].decode("utf-8", "replace"))
    return column + indentation(after) - indentation(before)
