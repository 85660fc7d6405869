"""What the linter says about the lines of a trace. Needs no torch."""

from __future__ import annotations

import linecache
import re
from functools import cache
from typing import Final

from esper_guard.lint.check import check_bytes
from esper_guard.lint.finding import Finding
from esper_guard.lint.measured import concerned
from esper_guard.lint.registry import all_rules
from esper_guard.trace.event import LayoutEvent

_SUPPRESSION: Final = re.compile(
    r"#\s*(?:noqa\b(?:\s*:\s*[A-Z]+[0-9]+(?:[\s,]+[A-Z]+[0-9]+)*)?"
    r"|esper-guard\s*:\s*ignore(?:-file)?(?:\s*\[[^\]]*\])?)",
    re.IGNORECASE,
)
_PATH: Final = "profiled.py"  # not the file's own, since some rules leave tests out
_SYNTAX_ERROR: Final = "EG001"


def without_suppression(line: str) -> str:
    """A line of source without a comment that silences the linter."""
    return re.sub(rf"\s*{_SUPPRESSION.pattern}\s*$", "", line, flags=re.IGNORECASE)


def findings_in(file: str) -> list[Finding]:
    """All that any rule finds in a file, also where a comment silences it; nothing if it can't be read or parsed."""
    return _findings(_SUPPRESSION.sub("#", "".join(linecache.getlines(file))))


@cache
def _findings(text: str) -> list[Finding]:
    codes = [code for code in all_rules() if not code.startswith("EG0")]
    found = check_bytes(_PATH, text.encode("utf-8", "surrogatepass"), [*codes, _SYNTAX_ERROR])
    return [finding for finding in found if finding.code != _SYNTAX_ERROR]


def finding_about(findings: list[Finding], event: LayoutEvent) -> Finding | None:
    """The one that says most about what happened on its line: one with a remedy, if there is any."""
    there = [
        finding
        for finding in findings
        if event.line in finding.rows and concerned(all_rules()[finding.code], [event])
    ]
    with_help = [finding for finding in there if finding.help is not None]
    return next(iter([*with_help, *there]), None)
