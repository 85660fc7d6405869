"""A traced file for the report: its lines, those that copied with all that is known of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from esper_guard.report.html.compare import Change
from esper_guard.report.html.events import Group, Tests, groups_of, tests_of
from esper_guard.report.html.findings import Advice
from esper_guard.report.html.highlight import highlighted
from esper_guard.report.html.highlight import plain as uncoloured
from esper_guard.report.html.text import lines_of, shortened
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import Cost
from esper_guard.trace.sizes import format_size

SHARES = (0.25, 0.10, 0.03, 0.01, 0.0)
"""A line is of the strongest tint from the first part of all bytes on, of the next from the second on, ..."""
_CONTEXT = 4
_COLLAPSED_FROM = 10
"""So many lines without events, or more, are collapsed."""

Numbered = tuple[int, LayoutEvent]


class Hit(NamedTuple):
    """A line with events."""

    number: int
    code: Markup
    plain: str
    cost: Cost
    tint: str
    """The class of its row: "heat-1" to "heat-5", "loss", "other" or "internal"."""
    margin: str
    groups: list[Group]
    tests: Tests
    advice: list[Advice]
    change: Change | None
    """Since the trace before."""


class Line(NamedTuple):
    """A line without events."""

    number: int
    code: Markup
    has_run: bool
    """Whether an operator of torch ran on it."""


class Stretch(NamedTuple):
    """Lines that follow each other. A collapsed one has no line with events."""

    lines: list[Line | Hit]
    is_collapsed: bool


class File(NamedTuple):
    """A file with events."""

    number: int
    path: str
    name: str
    cost: Cost
    findings: int
    has_text: bool
    is_of_now: bool
    """Whether its text is what the file holds now, which need not be what was traced."""
    stretches: list[Stretch]
    hits: list[Hit]
    gone: list[Change]
    """Lines that copied before and are not there any more."""


def tint_of(cost: Cost, total: int) -> str:
    """How a line is shown; ``total`` is what all lines copied, in bytes."""
    if cost.bytes:
        passed = [
            level for level, share in zip((5, 4, 3, 2, 1), SHARES, strict=True) if cost.bytes >= share * total
        ]
        return f"heat-{max(passed)}"
    if cost.losses:
        return "loss"
    if cost.copies:
        return "heat-1"
    return "other" if cost.other_copies else "internal"


def margin_of(cost: Cost) -> str:
    """What stands next to a line."""
    if cost.bytes:
        return format_size(cost.bytes)
    if cost.losses:
        return "1 loss" if cost.losses == 1 else f"{cost.losses} losses"
    if cost.copies:
        return format_size(0)
    size, kind = (cost.other_bytes, "other") if cost.other_copies else (cost.internal_bytes, "kernel")
    return f"{format_size(size)} {kind}"


def file_of(
    number: int,
    path: str,
    name: str,
    text: str | None,
    events: Mapping[int, Sequence[Numbered]],
    total: int,
    advice: Sequence[Advice],
    changes: Mapping[int, Change],
    gone: Sequence[Change],
    executed: Collection[int],
    is_light: bool,
    is_of_now: bool,
) -> File:
    """One file.

    Args:
        number: its place in the report.
        path: as the trace names it.
        name: as the report names it.
        text: its source, if it is known.
        events: by line.
        total: what all files copied, in bytes.
        advice: on any of its lines.
        changes: by line, since the trace before.
        gone: lines that copied before and are not there any more.
        executed: lines on which an operator of torch ran.
        is_light: whether collapsed lines go without colours, as in a report with many.
        is_of_now: whether the trace does not hold the text.
    """
    codes = [] if text is None else highlighted(text)
    plain = [] if text is None else lines_of(text)
    by_line: dict[int, list[Advice]] = {}
    for item in advice:
        for line in range(item.first, item.last + 1):
            by_line.setdefault(line, []).append(item)
    hits = {
        line: _hit(line, codes, plain, of_line, total, by_line.get(line, []), changes.get(line))
        for line, of_line in sorted(events.items())
    }
    cost = Cost.of(event for of_line in events.values() for _, event in of_line)
    explained = {item for hit in hits.values() for item in map(_identity, hit.advice)}
    lines: list[Line | Hit] = [
        hits.get(at) or Line(at, code, at in executed) for at, code in enumerate(codes, 1)
    ]
    if lines and isinstance(lines[-1], Line) and not plain[-1]:
        lines.pop()  # what follows the last line ending
    stretches = _stretches(lines)
    if is_light:
        stretches = [
            _without_colours(stretch, plain) if stretch.is_collapsed else stretch for stretch in stretches
        ]
    outside = [hit for line, hit in hits.items() if not 0 < line <= len(codes)]
    return File(
        number=number,
        path=path,
        name=name,
        cost=cost,
        findings=len(explained),
        has_text=text is not None,
        is_of_now=text is not None and is_of_now,
        stretches=[*stretches, *([Stretch([*outside], False)] if outside else [])],
        hits=list(hits.values()),
        gone=list(gone),
    )


def _hit(
    line: int,
    codes: Sequence[Markup],
    plain: Sequence[str],
    events: Sequence[Numbered],
    total: int,
    advice: list[Advice],
    change: Change | None,
) -> Hit:
    cost = Cost.of(event for _, event in events)
    is_there = 0 < line <= len(codes)
    return Hit(
        number=line,
        code=codes[line - 1] if is_there else Markup(""),
        plain=shortened(plain[line - 1].strip()) if is_there else "",
        cost=cost,
        tint=tint_of(cost, total),
        margin=margin_of(cost),
        groups=groups_of(events, plain[line - 1].strip() if is_there else ""),
        tests=tests_of(events),
        advice=advice,
        change=change,
    )


def _without_colours(stretch: Stretch, plain: Sequence[str]) -> Stretch:
    return Stretch(
        [line._replace(code=uncoloured(shortened(plain[line.number - 1]))) for line in stretch.lines],
        True,
    )


def _identity(advice: Advice) -> tuple[object, ...]:
    return (advice.first, advice.last, advice.code, advice.message)


def _stretches(lines: Sequence[Line | Hit]) -> list[Stretch]:
    """Lines near one with events are shown, long stretches between them are collapsed."""
    shown = [False] * len(lines)
    for at, line in enumerate(lines):
        if isinstance(line, Hit):
            first, last = max(0, at - _CONTEXT), min(len(lines), at + _CONTEXT + 1)
            shown[first:last] = [True] * (last - first)
    found: list[Stretch] = []
    start = 0
    for at in range(1, len(lines) + 1):
        if at < len(lines) and shown[at] == shown[start]:
            continue
        collapsed = not shown[start] and at - start >= _COLLAPSED_FROM
        if found and not collapsed and not found[-1].is_collapsed:
            found[-1].lines.extend(lines[start:at])
        else:
            found.append(Stretch(list(lines[start:at]), collapsed))
        start = at
    return found
