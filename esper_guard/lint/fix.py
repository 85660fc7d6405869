"""Edits to new source: all of a fix or none of it, no two fixes in one place, files replaced in one step."""

from __future__ import annotations

from collections.abc import Iterable

from esper_guard.lint.finding import Edit, Finding


def apply_fixes(text: str, findings: Iterable[Finding], unsafe: bool) -> tuple[str, list[Finding]]:
    """``text`` with every fix applied that is allowed and touches no other; and the findings that were fixed.

    Fixes that overlap an earlier one are left for a second run over the new text.
    """
    chosen: list[Edit] = []
    fixed: list[Finding] = []
    for finding in findings:
        if finding.fix is None or not (finding.fix.safe or unsafe):
            continue
        edits = [edit for edit in finding.fix.edits if edit not in chosen]
        if any(_overlap(edit, other) for edit in edits for other in chosen):
            continue
        chosen += edits
        fixed.append(finding)
    for edit in sorted(chosen, key=lambda edit: (edit.start, edit.end), reverse=True):
        text = text[: edit.start] + edit.content + text[edit.end :]
    return text, fixed


def _overlap(one: Edit, other: Edit) -> bool:
    if one.start == other.start:
        return True
    return one.start < other.end and other.start < one.end
