"""A trace and its verdict for programs; docs/ci.md lists the keys."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

from esper_guard.report.trace_report import TraceReport, Verdict
from esper_guard.trace.baseline import News
from esper_guard.trace.compare import Comparison, Row, rows_of
from esper_guard.trace.layout_trace import Cost
from esper_guard.trace.paths import place, relative_to_here

FORMAT = "esper-guard layout report"
_VERSION = 1


def render_json(report: TraceReport) -> str:
    """One object."""
    trace, verdict = report.trace, report.verdict
    content = {
        "format": FORMAT,
        "version": _VERSION,
        "traces": _paths(report.traces),
        "level": trace.level,
        "torch": trace.torch_version,
        "rank": trace.rank,
        "verdict": "not checked" if verdict is None else "passed" if verdict.passed else "exceeded",
        "exceeded": [] if verdict is None else [one._asdict() for one in verdict.broken],
        "baseline": None
        if verdict is None or verdict.baseline is None
        else _baseline(verdict, verdict.baseline),
        "sums": _cost(Cost.of(trace.events)),
        "by_line": [_row(row) for row in rows_of(trace, "line")],
        "by_module": [_row(row) for row in rows_of(trace, "module")],
        "by_operator": [_row(row) for row in rows_of(trace, "operator")],
        "comparison": None if report.comparison is None else _comparison(report, report.comparison),
        "unseen": list(trace.unseen),
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n"


def _paths(paths: Iterable[str]) -> list[str]:
    return [os.fsencode(path).decode("utf-8", "replace") for path in paths]


def _cost(cost: Cost) -> dict[str, int]:
    return cost._asdict()


def _row(row: Row) -> dict[str, Any]:
    return {**_named(row), **_cost(row.cost)}


def _named(row: Row) -> dict[str, Any]:
    if row.file is None:
        return {"name": row.name}
    file = relative_to_here(row.file)
    of_line = {"lines": list(row.lines), "code": row.code, "modules": list(row.modules)} if row.lines else {}
    return {"name": place(row.file, row.lines), "file": file, **of_line}


def _baseline(verdict: Verdict, path: str) -> dict[str, Any]:
    return {"path": _paths([path])[0], "new": [_news(news) for news in verdict.news]}


def _news(news: News) -> dict[str, Any]:
    first = news.events[0]
    lines = sorted({event.line for event in news.events if event.line is not None})
    known = news.known
    return {
        "name": first.location if first.file is None else place(first.file, lines),
        "file": None if first.file is None else relative_to_here(first.file),
        "lines": lines,
        "code": news.code if first.file is not None else "",
        "kind": first.kind,
        "operator": first.operator,
        "change": f"{first.source} -> {first.destination}",
        "phase": first.phase,
        "modules": sorted({event.module for event in news.events if event.module is not None}),
        "count": news.now.times,
        "bytes": news.now.size,
        "known_count": 0 if known is None else known.times,
        "known_bytes": 0 if known is None else known.size,
    }


def _comparison(report: TraceReport, comparison: Comparison) -> dict[str, Any]:
    return {
        "before": _paths(report.compared_with),
        "sums": _changed(comparison.sums),
        f"by_{report.by}": [_named(row) | _changed(row) for row in comparison.rows],
        "by_file": [_named(row) | _changed(row) for row in comparison.files],
    }


def _changed(row: Row) -> dict[str, Any]:
    return {"before": _cost(row.before), "after": _cost(row.cost), "difference": _cost(row.difference)}
