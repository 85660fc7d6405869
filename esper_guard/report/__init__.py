"""Findings to text and JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from esper_guard.lint.engine import Report

Style = Callable[..., str]


def plain(text: str, **_: object) -> str:
    """A style that leaves text as it is, for files and pipes."""
    return text


def render(output_format: str, reports: Sequence[Report], style: Style = plain) -> str:
    """All findings in one of the output formats; empty where there is nothing to say."""
    if output_format == "json":
        from esper_guard.report.json import render_json

        return render_json(reports)
    from esper_guard.report import text

    return (text.concise if output_format == "concise" else text.full)(reports, style)
