"""Findings for programs, in the shape of ruff's JSON, with ``name``, ``severity``, ``help`` and ``measured`` added."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from esper_guard.lint.engine import Report
from esper_guard.lint.finding import Edit, Finding
from esper_guard.lint.source import Location


def render_json(reports: Sequence[Report]) -> str:
    """A list of objects; ``filename`` is absolute, rows and columns count from 1, columns in characters."""
    entries = [_entry(report.path, finding) for report in reports for finding in report.findings]
    return msgspec.json.format(msgspec.json.encode(entries), indent=2).decode() + "\n"


def _entry(path: str, finding: Finding) -> dict[str, Any]:
    return {
        "cell": None,
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.value,
        "filename": path if path == "-" else os.fsencode(os.path.abspath(path)).decode("utf-8", "replace"),
        "location": _location(finding.location),
        "end_location": _location(finding.end_location),
        "message": finding.message,
        "help": finding.help,
        "measured": None if finding.measured is None else msgspec.to_builtins(finding.measured),
        "fix": None if finding.fix is None else _fix(finding),
        "noqa_row": finding.location.row,
        "url": None,
    }


def _fix(finding: Finding) -> dict[str, Any]:
    assert finding.fix is not None
    return {
        "applicability": "safe" if finding.fix.safe else "unsafe",
        "message": finding.fix.message,
        "edits": [_edit(edit) for edit in finding.fix.edits],
    }


def _edit(edit: Edit) -> dict[str, Any]:
    return {
        "content": edit.content,
        "location": _location(edit.location),
        "end_location": _location(edit.end_location),
    }


def _location(location: Location) -> dict[str, int]:
    return {"row": location.row, "column": location.column}
