"""The section below the test results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from esper_guard.trace.layout_trace import Cost, LayoutTrace
from esper_guard.trace.line_texts import LineTexts
from esper_guard.trace.sizes import format_size
from esper_guard.trace.table import aligned, headline, source_of

_TESTS = 3
_HEADER = ("bytes", "copies", "losses", "internal", "line", "")


class _Line(NamedTuple):
    cost: Cost
    tests: tuple[str, ...]


def summary_of(trace: LayoutTrace, tests: int, root: Path, rows: int | None) -> list[str]:
    """The costliest lines, with their bytes and the tests that ran them.

    Args:
        trace: of all tests.
        tests: how many were traced.
        root: file names below it are shown relative to it.
        rows: how many lines to show; None for all, 0 for nothing but the sums.
    """
    costly = _by_line(trace)
    lines = [f"{headline(trace)}; {len(_tests_of(costly))} of {tests} traced tests"]
    shown = list(costly.items())[:rows]
    if shown:
        cells = [_HEADER, *(_cells(location, line, root) for location, line in shown)]
        columns = [column for column in zip(*cells, strict=True) if any(column[1:])]
        table = aligned(list(zip(*columns, strict=True)), left=len(columns) - 2)
        lines += ["", table[0]]
        for row, (_, line) in zip(table[1:], shown, strict=True):
            lines += [row, f"    {_named(line.tests)}"]
    if rows != 0 and len(shown) < len(costly):
        lines.append(f"and {len(costly) - len(shown)} more lines: -v shows them")
    unseen = [f"not seen: {sentence}" for sentence in trace.unseen]
    return [*lines, "", *unseen] if unseen else lines


def _by_line(trace: LayoutTrace) -> dict[str, _Line]:
    """Those with a format copy, a loss or a copy in a kernel; the costliest first, whatever order the tests ran in."""
    lines: dict[str, _Line] = {}
    for event in trace.events:
        if event.changes_format or event.kind == "internal":
            cost, tests = lines.get(event.location, (Cost(), ()))
            lines[event.location] = _Line(cost.plus(event), tuple(sorted({*tests, *event.tests})))
    return dict(sorted(lines.items(), key=lambda item: (*(-rank for rank in item[1].cost.rank), item[0])))


def _cells(location: str, line: _Line, root: Path) -> tuple[str, ...]:
    cost = line.cost
    size = format_size(cost.bytes) if cost.bytes else ""
    return (
        size,
        str(cost.copies or ""),
        str(cost.losses or ""),
        str(cost.internal or ""),
        location.removeprefix(f"{root}{os.sep}"),
        source_of(location, LineTexts()),
    )


def _tests_of(lines: dict[str, _Line]) -> set[str]:
    return {test for line in lines.values() for test in line.tests}


def _named(tests: tuple[str, ...]) -> str:
    more = f" and {len(tests) - _TESTS} more" if len(tests) > _TESTS else ""
    return ", ".join(tests[:_TESTS]) + more
