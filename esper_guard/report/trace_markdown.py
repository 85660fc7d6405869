"""A trace and its verdict as GitHub-flavoured Markdown, for the summary of a workflow's step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from esper_guard.report.gfm import code, head, row, span
from esper_guard.report.trace_report import TraceReport, Verdict, more_than
from esper_guard.report.trace_text import figures_in
from esper_guard.trace.baseline import News
from esper_guard.trace.compare import Row
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import Cost, LayoutTrace
from esper_guard.trace.line_texts import LineTexts
from esper_guard.trace.paths import place
from esper_guard.trace.sizes import format_size
from esper_guard.trace.table import costliest, plural, why

LIMIT = 1_000_000
"""Bytes; GitHub takes 1 MiB from a step."""
_RESERVE = 32_768
"""Of them for what stands between and below the tables."""
_UNSEEN = 20


class _Page:
    """Text up to a size; tables lose rows to stay below it, and say so."""

    def __init__(self, limit: int) -> None:
        self._parts: list[str] = []
        self._left = limit

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._left -= len(text.encode())

    def table(self, titles: Sequence[str], numbers: int, rows: Iterable[Sequence[str]]) -> None:
        self.add(head(titles, numbers))
        left_out = 0
        for cells in rows:
            line = row(cells)
            if left_out or len(line.encode()) > self._left:
                left_out += 1
            else:
                self.add(line)
        if left_out:
            self.add(f"\n{left_out} more left out: GitHub shows no more than 1 MiB.\n")
        self.add("\n")

    def __str__(self) -> str:
        return "".join(self._parts).rstrip("\n") + "\n"


def render_markdown(report: TraceReport, limit: int = LIMIT) -> str:
    """A heading with the verdict, and tables; at most ``limit`` bytes, of which 32 KiB are for text around tables."""
    page = _Page(limit - _RESERVE)
    page.add(f"### {_heading(report)}\n\n{_sums(report.trace)}\n\n")
    if report.verdict is not None and report.verdict.news:
        _add_news(page, report.verdict)
    _add_costs(page, report)
    _add_losses(page, report.trace)
    _add_notes(page, report)
    return str(page)


def _heading(report: TraceReport) -> str:
    if report.verdict is None:
        return "Layout copies"
    if report.verdict.passed:
        return "Layout copies: passed"
    return f"Layout copies: exceeded: {'; '.join(report.verdict.reasons)}"


def _sums(trace: LayoutTrace) -> str:
    cost = Cost.of(trace.events)
    sums = [
        f"{plural(cost.copies, 'layout copy')}, {format_size(cost.bytes)}",
        plural(cost.losses, "format loss"),
    ]
    if cost.other_copies:
        sums.append(f"{plural(cost.other_copies, 'other copy')}, {format_size(cost.other_bytes)}")
    if cost.internal:
        sums.append(f"{plural(cost.internal, 'internal copy')}, {format_size(cost.internal_bytes)}")
    details = [f"{trace.level} level"]
    details += [] if trace.torch_version is None else [f"torch {span(trace.torch_version, 60)}"]
    details += [] if trace.rank is None else [f"rank {trace.rank}"]
    return f"{'; '.join(sums)} ({', '.join(details)})"


def _add_news(page: _Page, verdict: Verdict) -> None:
    page.add(f"Not in the baseline {span(verdict.baseline or '')}:\n\n")
    titles = ("bytes", "times", "in the baseline", "kind", "operator", "where", "code", "module")
    page.table(titles, 2, map(_news_cells, verdict.news))


def _news_cells(news: News) -> tuple[str, ...]:
    first = news.events[0]
    lines = sorted({event.line for event in news.events if event.line is not None})
    size = format_size(news.now.size) if first.is_copy else ""
    where = first.location if first.file is None else place(first.file, lines)
    modules = dict.fromkeys(event.module for event in news.events if event.module is not None)
    return (
        size,
        str(news.now.times),
        more_than(news),
        first.kind,
        code(first.operator),
        code(where),
        code(news.code if first.file is not None else ""),
        _names(list(modules)),
    )


def _add_costs(page: _Page, report: TraceReport) -> None:
    rows = report.costs()
    if not rows:
        page.add("Nothing was copied or lost.\n\n")
        return
    figures = figures_in(rows)
    compared = report.comparison is not None
    titles = [
        title
        for figure in figures
        for title in ([f"{figure.title} before", "after", "difference"] if compared else [figure.title])
    ]
    numbers = len(titles)
    titles += ["where", "code", "module"] if report.by == "line" else [report.by]

    def cells(one: Row) -> list[str]:
        found: list[str] = []
        for figure in figures:
            number = figure.of(one.cost)
            after = figure.show(number) if number else ""
            if compared:
                before = figure.of(one.before)
                found.append(figure.show(before) if before else "")
            found.append(after)
            if compared:
                found.append(figure.signed(figure.of(one.difference)))
        return [*found, *_named(one, report.by)]

    top, rest = rows[: report.rows], rows[report.rows :]
    sums = [] if report.comparison is None else [report.comparison.sums]
    page.table(titles, numbers, map(cells, [*sums, *top]))
    if rest:
        page.add(f"<details><summary>{len(rest)} more</summary>\n\n")
        page.table(titles, numbers, map(cells, rest))
        page.add("</details>\n\n")
    if report.comparison is not None and report.comparison.files:
        page.add("<details><summary>By file</summary>\n\n")
        file_titles = [*titles[:numbers], "file"]
        files = (
            [*cells(one)[:numbers], code(place(one.file or one.name, ()))] for one in report.comparison.files
        )
        page.table(file_titles, numbers, files)
        page.add("</details>\n\n")


def _named(one: Row, by: str) -> list[str]:
    name = one.name if one.file is None else place(one.file, one.lines)
    return [code(name), code(one.code), _names(one.modules)] if by == "line" else [code(name)]


def _names(names: Sequence[str]) -> str:
    if not names:
        return ""
    return code(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _add_losses(page: _Page, trace: LayoutTrace) -> None:
    losses = costliest(trace.losses)
    if not losses:
        return
    page.add(f"<details><summary>{plural(sum(event.count for event in losses), 'format loss')}</summary>\n\n")
    titles = ("times", "operator", "change", "shape", "where", "module", "why")
    texts = LineTexts(trace.sources)
    page.table(titles, 1, (_loss_cells(event, texts.read(event.file, event.line)) for event in losses))
    page.add("</details>\n\n")


def _loss_cells(event: LayoutEvent, text: str) -> tuple[str, ...]:
    where = (
        event.location
        if event.file is None
        else place(event.file, () if event.line is None else (event.line,))
    )
    return (
        str(event.count),
        code(event.operator),
        code(f"{event.source} -> {event.destination}"),
        code(f"{'x'.join(map(str, event.shape[:8])) or 'scalar'} {event.dtype}", 80),
        code(where),
        _names([event.module] if event.module else []),
        code(why(event, text) or ""),
    )


def _add_notes(page: _Page, report: TraceReport) -> None:
    notes = []
    if report.levels is not None:
        notes.append(f"Copies inside kernels are not compared: {' and '.join(report.levels)} level.")
    unseen = report.trace.unseen
    notes += [f"Not seen: {span(sentence)}" for sentence in unseen[:_UNSEEN]]
    if len(unseen) > _UNSEEN:
        notes.append(f"{len(unseen) - _UNSEEN} more things were not seen.")
    page.add("".join(f"- {note}\n" for note in notes))
