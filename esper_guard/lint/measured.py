"""Findings, weighed with what a trace measured on their lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from esper_guard.lint.finding import Finding, Measurement, Severity
from esper_guard.lint.rule import Claim, Rule
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import Cost
from esper_guard.trace.recorded import Measured

COSTS = frozenset({Claim.COPIES, Claim.LOSES})
"""Claims that a measured zero refutes, for that run."""


def weigh(findings: Iterable[Finding], measured: Measured, rules: Mapping[str, type[Rule]]) -> list[Finding]:
    """Say of each finding what its lines cost; a copy that was not made is a note only."""
    return [_weighed(finding, measured, rules[finding.code]) for finding in findings]


def by_cost(finding: Finding) -> tuple[int, ...]:
    """The costliest first; those that cost nothing last, after what wasn't measured."""
    if finding.measured is None:
        return (0,)
    return tuple(-part for part in finding.measured.rank) if any(finding.measured.rank) else (1,)


def costs_by_rule(rule: type[Rule]) -> bool:
    """Whether what a rule says is that a line copies, or loses the format."""
    return rule.proof is not None and rule.proof.claim in COSTS


def measurement_of(events: Iterable[LayoutEvent]) -> Measurement:
    """Add up events."""
    several = [event for event in events if event.kind != "internal"]
    cost = Cost.of(several)
    return Measurement(
        cost.copies,
        cost.bytes,
        cost.losses,
        cost.other_copies,
        cost.other_bytes,
        modules=tuple(dict.fromkeys(event.module for event in several if event.module)),
        tests=tuple(dict.fromkeys(test for event in several for test in event.tests)),
    )


def _weighed(finding: Finding, measured: Measured, rule: type[Rule]) -> Finding:
    lines = range(finding.location.row, finding.end_location.row + 1)
    events = measured.at(lines)
    if not events and measured.executed.isdisjoint(lines):
        return finding
    found = measurement_of(events)
    refuted = costs_by_rule(rule) and not any(found.rank)
    severity = Severity.NOTE if refuted else finding.severity
    return replace(finding, measured=found, severity=severity)
