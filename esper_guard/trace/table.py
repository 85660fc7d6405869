"""A trace for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from esper_guard.operators import remedy_for, why_lost
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.line_texts import LineTexts
from esper_guard.trace.paths import relative_to_here
from esper_guard.trace.sizes import format_size

if TYPE_CHECKING:
    from esper_guard.trace.layout_trace import Cost, LayoutTrace

ROWS = 20
_PLACES = 3
_HEADER = ("bytes", "times", "kind", "what", "where")


def costliest(events: Iterable[LayoutEvent]) -> list[LayoutEvent]:
    """Copies by bytes, then losses by number, then what is counted apart."""
    return sorted(events, key=_rank, reverse=True)


def describe(event: LayoutEvent) -> str:
    """An event in one line."""
    size = "" if event.kind == "loss" else f"{format_size(event.bytes)}, "
    times = "once" if event.count == 1 else f"{event.count} times"
    return f"{_where(event)}: {event.kind}, {size}{times}: {_what(event)}"


def describe_place(event: LayoutEvent) -> str:
    """Where it happened, and by which operator."""
    return f"{_where(event)}: {_action(event)}"


def render_trace(trace: LayoutTrace, rows: int = ROWS) -> str:
    """Sums, the costliest ``rows`` events, where the format was lost first, and what could not be seen."""
    events = costliest(trace.events)
    lines = [headline(trace)]
    if events:
        cells = [_HEADER, *(_cells(event) for event in events[:rows])]
        lines += ["", *aligned(cells, left=2)]
    if len(events) > rows:
        lines.append(
            f"and {len(events) - rows} more, {format_size(sum(e.bytes for e in events[rows:] if e.is_copy))}"
        )
    notes = render_notes(trace)
    return "\n".join([*lines, "", notes] if notes else lines)


def render_notes(trace: LayoutTrace) -> str:
    """Where the format was lost first, why operators of the costliest events lose it, and what could not be seen."""
    first = trace.first_loss
    lost = [] if first is None else [f"channels_last first became NCHW at {describe_place(first)}"]
    return "\n".join([*lost, *_reasons(trace), *(f"not seen: {sentence}" for sentence in trace.unseen)])


def _reasons(trace: LayoutTrace) -> list[str]:
    """``"why: model.py:8: softmax writes NCHW whatever it reads (CPU)"``, each reason once, and what to write instead."""
    texts = LineTexts(trace.sources)
    places: dict[str, dict[str, None]] = {}
    remedies: dict[str, dict[str, None]] = {}
    for event in costliest(trace.events)[:ROWS]:
        text = texts.read(event.file, event.line)
        reason = why(event, text)
        if reason is None:
            continue
        places.setdefault(reason, {})[_relative(event.location)] = None
        instead = remedy(event, text)
        if instead is not None:
            remedies.setdefault(reason, {})[instead] = None
    return [
        line
        for reason, several in places.items()
        for line in (
            f"why: {_enumerated(list(several))}: {reason}",
            *(f"  write instead: {instead}" for instead in remedies.get(reason, ())),
        )
    ]


def _enumerated(places: Sequence[str]) -> str:
    more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
    return f"{', '.join(places[:_PLACES])}{more}"


def why(event: LayoutEvent, line: str) -> str | None:
    """``"softmax writes NCHW whatever it reads (CPU)"``; None if it is no loss, or the table of operators can't tell.

    Args:
        event: what to explain.
        line: the text of its source line, which tells apart operators that are the same to torch; empty if unknown.
    """
    of_a_gradient = event.is_copy and event.phase == "backward"  # which the line of the forward doesn't name
    if not event.leaves_channels_last or event.kind == "explicit" or of_a_gradient:
        return None
    return why_lost(event.operator, event.device, line)


def remedy(event: LayoutEvent, line: str) -> str | None:
    """What to write instead of what lost the format, if that is known: of a forward over images."""
    written = event.phase != "backward" and len(event.shape) == 4  # as the remedies are
    return remedy_for(event.operator, event.device, line) if written else None


def render_costs(
    title: str, costs: dict[str, Cost], rows: int | None = None, texts: LineTexts | None = None
) -> str:
    """What `by_line` and the like return, as a table; ``texts`` has those of the lines."""
    if not costs:
        return "nothing was copied or lost"
    shown = list(costs.items())[:rows]
    header = ("bytes", "copies", "losses", "other copies", "other bytes", "internal", title)
    known = texts or LineTexts()
    columns = zip(header, *(_cost_cells(name, cost, known) for name, cost in shown), strict=True)
    cells = list(zip(*(column for column in columns if any(column[1:])), strict=True))
    lines = aligned(cells, left=len(cells[0]) - 1)
    if len(shown) < len(costs):
        lines.append(f"and {len(costs) - len(shown)} more")
    return "\n".join(lines)


def headline(trace: LayoutTrace) -> str:
    """The sums, in one line."""
    sums = [f"{plural(sum(e.count for e in trace.copies), 'layout copy')}, {format_size(trace.total_bytes)}"]
    sums.append(plural(sum(event.count for event in trace.losses), "format loss"))
    for title, events in (("other copy", trace.other_copies), ("internal copy", trace.internal)):
        if events:
            size = format_size(sum(event.bytes for event in events))
            sums.append(f"{plural(sum(event.count for event in events), title)}, {size}")
    details = [f"{trace.level} level"]
    details += [] if trace.torch_version is None else [f"torch {trace.torch_version}"]
    details += [] if trace.rank is None else [f"rank {trace.rank}"]
    return f"{'; '.join(sums)} ({', '.join(details)})"


def aligned(rows: Sequence[tuple[str, ...]], left: int) -> list[str]:
    """Columns of equal width; the first ``left`` ones are numbers, to the right; the last is as wide as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at < left else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def plural(number: int, noun: str) -> str:
    """``"1 layout copy"``, ``"2 layout copies"``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}es"


def _cost_cells(name: str, cost: Cost, texts: LineTexts) -> tuple[str, ...]:
    numbers = (cost.copies, cost.losses, cost.other_copies, cost.internal)
    copies, losses, others, internal = (str(number or "") for number in numbers)
    size, other_size = (format_size(size) if size else "" for size in (cost.bytes, cost.other_bytes))
    return (size, copies, losses, others, other_size, internal, f"{_relative(name)}{_source(name, texts)}")


def source_of(location: str, texts: LineTexts) -> str:
    """The text of the line ``"file:line"``, without its indentation, if it is known."""
    file, _, line = location.rpartition(":")
    return texts.read(file, int(line)) if line.isdecimal() else ""


def _source(name: str, texts: LineTexts) -> str:
    text = source_of(name, texts)
    return f"  {text}" if text else ""


def _rank(event: LayoutEvent) -> tuple[int, ...]:
    order = {"loss": 1, "internal": -1}.get(event.kind, 2 if event.changes_format else 0)
    return (order, event.bytes, event.count)


def _cells(event: LayoutEvent) -> tuple[str, ...]:
    size = "" if event.kind == "loss" else format_size(event.bytes)
    apart = "" if event.changes_format or not event.is_copy else ", strides only"
    return (size, str(event.count), f"{event.kind}{apart}", _what(event), _where(event))


def _action(event: LayoutEvent) -> str:
    return event.operator if event.kind == "loss" else f"{event.kind} copy, {event.operator}"


def _state(event: LayoutEvent, state: str) -> str:
    """NCHW says nothing about a matrix."""
    if len(event.shape) in (4, 5) or event.changes_format:
        return state
    return {"nchw": "contiguous", "strided(nchw)": "strided"}.get(state, state)


def _what(event: LayoutEvent) -> str:
    shape = "x".join(map(str, event.shape)) or "scalar"
    most = "up to " if event.shapes_vary else ""
    change = f"{_state(event, event.source)} -> {_state(event, event.destination)}"
    return f"{event.operator} {change}, {most}{shape} {event.dtype}"


def _where(event: LayoutEvent) -> str:
    more = [] if event.module is None else [event.module]
    more += [] if event.phase == "forward" else [event.phase]
    return _relative(event.location) + (f" ({', '.join(more)})" if more else "")


def _relative(location: str) -> str:
    file, _, line = location.rpartition(":")
    return f"{relative_to_here(file)}:{line}" if file and line.isdecimal() else location
