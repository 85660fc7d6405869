"""What the rules say about lines that copy, and of which of them they say nothing but that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import NamedTuple

from esper_guard.lint.check import SYNTAX_ERROR, UNUSED_SUPPRESSION, check_source
from esper_guard.lint.engine import with_deep_stack
from esper_guard.lint.finding import Finding
from esper_guard.lint.fix import apply_fixes
from esper_guard.lint.registry import all_rules
from esper_guard.lint.rule import Rule
from esper_guard.lint.source import Source
from esper_guard.report.html.rules import recommended_code
from esper_guard.report.html.text import lines_of, shortened
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.recorded import Run

_MOST_LINES = 12


class Advice(NamedTuple):
    """A rule's finding, with the code that it recommends."""

    first: int
    last: int
    code: str
    name: str
    severity: str
    message: str
    help: str | None
    fix: str | None
    """What the fix does, in words; None if the rule has none here."""
    is_safe: bool
    removed: list[str]
    """The lines that the fix replaces; none if there is no fix."""
    recommended: list[str]
    """What stands there after the fix, or the example of the rule's page."""


def advice_on(texts: Mapping[str, str], events: Iterable[LayoutEvent]) -> dict[str, list[Advice]]:
    """By file, what the rules that are on by default say, given what happened on its lines (of ``texts``).

    A file that is no Python gets no advice.
    """
    by_file: dict[str, list[LayoutEvent]] = {file: [] for file in texts}
    for event in events:
        if event.file in by_file and event.line:
            by_file[event.file].append(event)
    return with_deep_stack(
        lambda: {file: _of_file(file, text, by_file[file]) for file, text in texts.items()}
    )


def _of_file(file: str, text: str, events: Iterable[LayoutEvent]) -> list[Advice]:
    codes = {code for code, rule in all_rules().items() if rule.default}
    # no calls: a page has no use for notes that a line ran, and copied nothing
    measured = Run(tuple(events), frozenset(), text=None).in_text(text)
    try:
        # not from bytes: the text is decoded already, whatever its coding cookie says
        source = Source(file, text)
        found = check_source(source, codes - {SYNTAX_ERROR, UNUSED_SUPPRESSION}, measured=measured)
    except Exception:  # noqa: BLE001 - no Python, or too much of it; the copies are there all the same
        return []
    return [_advice(text, finding) for finding in found]


def _advice(text: str, finding: Finding) -> Advice:
    removed, added = _change(text, finding)
    rule = all_rules()[finding.code]
    return Advice(
        finding.location.row,
        finding.end_location.row,
        finding.code,
        finding.name,
        finding.severity.value,
        finding.message,
        finding.help,
        None if finding.fix is None else finding.fix.message,
        finding.fix is not None and finding.fix.safe,
        [shortened(line) for line in removed],
        [shortened(line) for line in added] if removed or added else _recommended(rule),
    )


def _recommended(rule: type[Rule]) -> list[str]:
    """The example of its page, unless the rule knows the cost alone: then its example is of some other line."""
    return [] if rule.needs_trace else recommended_code(rule)


def _change(text: str, finding: Finding) -> tuple[list[str], list[str]]:
    """The lines that the fix removes, and those that it adds."""
    if finding.fix is None or not finding.fix.edits:
        return [], []
    fixed, _ = apply_fixes(text, [finding], unsafe=True)
    before, after = lines_of(text), lines_of(fixed)
    first = min(edit.location.row for edit in finding.fix.edits) - 1
    last = max(edit.end_location.row for edit in finding.fix.edits)
    before, after = before[first:last], after[first : last + len(after) - len(before)]
    if len(before) <= _MOST_LINES:
        return before, after
    removed: list[str] = []
    added: list[str] = []
    for tag, start, end, new_start, new_end in SequenceMatcher(None, before, after, False).get_opcodes():
        if tag != "equal":
            removed += before[start:end]
            added += after[new_start:new_end]
    return removed, added
