"""A trace, or two side by side, for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from esper_guard.report.text import shown
from esper_guard.report.trace_report import TraceReport, Verdict, signed, signed_size
from esper_guard.trace.compare import Comparison, Row
from esper_guard.trace.layout_trace import Cost, LayoutTrace
from esper_guard.trace.line_texts import LineTexts
from esper_guard.trace.paths import place
from esper_guard.trace.sizes import format_size
from esper_guard.trace.table import aligned, headline, render_costs, render_notes


class _Figure(NamedTuple):
    title: str
    of: Callable[[Cost], int]
    show: Callable[[int], str]
    signed: Callable[[int], str]


FIGURES = (
    _Figure("bytes", lambda cost: cost.bytes, format_size, signed_size),
    _Figure("copies", lambda cost: cost.copies, str, signed),
    _Figure("losses", lambda cost: cost.losses, str, signed),
    _Figure("other bytes", lambda cost: cost.other_bytes, format_size, signed_size),
    _Figure("internal bytes", lambda cost: cost.internal_bytes, format_size, signed_size),
)


def render_text(report: TraceReport) -> str:
    """Sums, the table, notes, and what was kept to."""
    trace, parts = report.trace, [headline(report.trace)]
    if report.comparison is None:
        parts.append(render_costs(report.by, _costs(trace, report.by), report.rows, LineTexts(trace.sources)))
    else:
        parts += _compared(report.comparison, report.by, report.rows)
    if report.levels is not None:
        parts.append(f"copies inside kernels are not compared: {' and '.join(report.levels)} level")
    parts += filter(None, (render_notes(trace), render_passed(report.verdict)))
    return "\n\n".join(parts) + "\n"


def render_passed(verdict: Verdict | None) -> str:
    """``"passed: at most 64.0 MiB copied"``; empty if something is exceeded, or nothing was to be kept to."""
    return shown(f"passed: {'; '.join(verdict.kept)}") if verdict is not None and verdict.passed else ""


def figures_in(rows: Iterable[Row]) -> list[_Figure]:
    """Those that some row has."""
    several = list(rows)
    return [
        figure for figure in FIGURES if any(figure.of(row.cost) or figure.of(row.before) for row in several)
    ]


def _costs(trace: LayoutTrace, by: str) -> dict[str, Cost]:
    return {"line": trace.by_line, "module": trace.by_module, "operator": trace.by_operator}[by]()


def _compared(comparison: Comparison, by: str, rows: int) -> list[str]:
    if not comparison.rows:
        return ["nothing was copied or lost, neither before nor after"]
    parts = [_table(by, comparison.rows, rows, comparison.sums)]
    if comparison.files:
        parts.append(_table("file", comparison.files, rows))
    return parts


def _table(title: str, rows: Sequence[Row], most: int, sums: Row | None = None) -> str:
    figures = figures_in(rows)
    header = [text for figure in figures for text in (f"{figure.title} before", "after", "difference")]
    listed = [*rows[:most], *([] if sums is None else [sums])]
    cells = [(*header, title), *((*_cells(row, figures), _name(row)) for row in listed)]
    lines = aligned(cells, left=len(header))
    if len(rows) > most:
        lines.append(f"and {len(rows) - most} more")
    return "\n".join(lines)


def _cells(row: Row, figures: Sequence[_Figure]) -> list[str]:
    return [
        text
        for figure in figures
        for text in (
            _unless_zero(figure, figure.of(row.before)),
            _unless_zero(figure, figure.of(row.cost)),
            figure.signed(figure.of(row.difference)),
        )
    ]


def _unless_zero(figure: _Figure, number: int) -> str:
    return figure.show(number) if number else ""


def _name(row: Row) -> str:
    name = row.name if row.file is None else place(row.file, row.lines)
    return shown(f"{name}  {row.code}" if row.code else name)
