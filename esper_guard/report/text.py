"""Findings for people: one line each, or like a compiler's, with the source and a caret under the expression."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from esper_guard.lint.engine import Report
from esper_guard.lint.finding import Finding, Measurement, Severity
from esper_guard.lint.source import Source
from esper_guard.report import Style

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_MOST_LINES = 12
_TAB = "    "


def concise(reports: Sequence[Report], style: Style) -> str:
    """``path:row:column: CODE message``, as editors read it."""
    lines = []
    for report in reports:
        for finding in report.findings:
            place = f"{shown(report.path)}:{finding.location.row}:{finding.location.column}"
            code = style(finding.code, fg=_COLOURS[finding.severity], bold=True)
            fixable = f" [{style('*', fg='cyan')}]" if finding.fix and finding.fix.safe else ""
            cost = "" if finding.measured is None else f" ({describe_measured(finding.measured)})"
            lines.append(f"{place}: {code}{fixable} {shown(finding.message)}{shown(cost)}\n")
    return "".join(lines)


def full(reports: Sequence[Report], style: Style) -> str:
    """What happens, where, what to write instead, and the code to look up."""
    return "\n".join(_one(report, finding, style) for report in reports for finding in report.findings)


def describe_measured(measured: Measurement) -> str:
    """``"42 copies, 168.0 MiB, in test_train"``."""
    from esper_guard.trace.sizes import format_size  # not at the top: most runs have no trace

    parts = []
    if measured.copies:
        parts += [_number(measured.copies, "copy", "copies"), format_size(measured.bytes)]
    if measured.losses:
        parts.append(_number(measured.losses, "format loss", "format losses"))
    if not parts and measured.other_copies:
        copies = _number(measured.other_copies, "copy", "copies")
        parts += [f"{copies} that changed strides only", format_size(measured.other_bytes)]
    if not parts:
        return "it ran, and copied nothing"
    if measured.tests:
        several = len(measured.tests) > 1
        parts.append(f"in {len(measured.tests)} tests" if several else f"in {_name_of(measured.tests[0])}")
    elif measured.modules:
        several = len(measured.modules) > 1
        parts.append(f"in {len(measured.modules)} modules" if several else f"in {measured.modules[0]}")
    return ", ".join(parts)


def _number(number: int, one: str, many: str) -> str:
    return f"1 {one}" if number == 1 else f"{number} {many}"


def _name_of(test: str) -> str:
    """Of a pytest id, without its file."""
    return test.partition("::")[2] or test


def statistics(reports: Sequence[Report], style: Style) -> str:
    """How often each rule fired, most often first."""
    counts = Counter((f.code, f.name) for report in reports for f in report.findings)
    safe = {f.code for report in reports for f in report.findings if f.fix and f.fix.safe}
    width = max((len(str(count)) for count in counts.values()), default=0)
    lines = []
    for (code, name), count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        mark = "[*]" if code in safe else "[ ]"
        lines.append(f"{count:>{width}}\t{style(code, bold=True)}\t{mark} {name}\n")
    return "".join(lines)


def _one(report: Report, finding: Finding, style: Style) -> str:
    colour = _COLOURS[finding.severity]
    blue = {"fg": "blue", "bold": True}
    head = f"{style(finding.code, fg=colour, bold=True)} {style(shown(finding.message), bold=True)}"
    place = f"{shown(report.path)}:{finding.location.row}:{finding.location.column}"
    source = Source(report.path, report.text or "")
    gutter = len(str(finding.end_location.row))
    lines = [head, f"{' ' * gutter}{style('-->', **blue)} {place}"]
    if report.text is not None:
        bar = style("|", **blue)
        lines.append(f"{' ' * gutter} {bar}")
        for row in _rows(finding):
            if row is None:
                lines.append(style("...", **blue))
                continue
            text = source.line(row)
            lines.append(f"{style(f'{row:>{gutter}}', **blue)} {bar} {shown(text)}".rstrip())
            if finding.location.row <= row <= finding.end_location.row:
                carets = _carets(text, row, finding)
                if carets:
                    lines.append(f"{' ' * gutter} {bar} {style(carets, fg=colour, bold=True)}")
        lines.append(f"{' ' * gutter} {bar}")
    if finding.measured is not None:
        measured = f"{style('=', **blue)} {style('measured', bold=True)}"
        lines.append(f"{' ' * gutter} {measured}: {shown(describe_measured(finding.measured))}")
    if finding.help:
        lines.append(f"{' ' * gutter} {style('=', **blue)} {style('help', bold=True)}: {shown(finding.help)}")
    rule = style(f"esper-guard rule {finding.code}", bold=True)
    lines.append(f"{' ' * gutter} {style('=', **blue)} {finding.severity.value} {finding.name}, see: {rule}")
    return "\n".join(lines) + "\n"


def _rows(finding: Finding) -> list[int | None]:
    first, last = finding.location.row, finding.end_location.row
    before = [first - 1] if first > 1 else []
    rows: list[int | None] = [*before, *range(first, last + 1)]
    if len(rows) > _MOST_LINES:
        rows = [*rows[: _MOST_LINES // 2], None, *rows[-_MOST_LINES // 2 :]]
    return rows


def _carets(text: str, row: int, finding: Finding) -> str:
    start = finding.location.column - 1 if row == finding.location.row else len(text) - len(text.lstrip())
    end = finding.end_location.column - 1 if row == finding.end_location.row else len(text.rstrip())
    if row == finding.location.row:
        end = max(end, start + 1)
    return " " * _width(text[:start]) + "^" * max(_width(text[start:end]), 1 if start < end else 0)


def shown(text: str) -> str:
    """Text as a terminal can show it on one line: no tabs, and nothing that could control the terminal."""
    return "".join(_TAB if c == "\t" else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _width(text: str) -> int:
    return sum(len(_TAB) if c == "\t" else _columns(c) for c in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
