"""Findings, weighed with what a trace measured on their lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from esper_guard.lint.finding import Finding, Measurement, Severity
from esper_guard.lint.rule import Claim, Rule
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import Cost
from esper_guard.trace.recorded import Measured


def weigh(findings: Iterable[Finding], measured: Measured, rules: Mapping[str, type[Rule]]) -> list[Finding]:
    """Say of each finding what its lines cost; a copy that was not made is a note only."""
    return [_weighed(finding, measured, rules[finding.code]) for finding in findings]


def by_cost(finding: Finding) -> tuple[int, ...]:
    """The costliest first; those that cost nothing last, after what wasn't measured."""
    if finding.measured is None:
        return (1,)
    rank = finding.measured.rank
    return (0, *(-part for part in rank)) if any(rank) else (2,)


def is_about_costs(rule: type[Rule]) -> bool:
    """Whether what a rule says is that a call copies, or loses the format, so that a trace shows it."""
    costs = rule.proof is not None and rule.proof.claim in (Claim.COPIES, Claim.LOSES)
    return costs and rule.shows_in_traces


def concerned(rule: type[Rule], events: Iterable[LayoutEvent]) -> list[LayoutEvent]:
    """Those of the events on a finding's lines that its rule is about.

    Of a rule about a copy that is asked for by name, such copies, and what the backward does; of one about a lost format,
    the others.
    """
    claim = None if rule.proof is None else rule.proof.claim
    if claim in (Claim.COPIES, Claim.REPEATS):
        return [event for event in events if event.kind == "explicit" or event.phase != "forward"]
    if claim is Claim.LOSES:
        return [event for event in events if event.kind != "explicit"]
    return list(events)


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
        tests=tuple(dict.fromkeys(test for event in several for test in event.tests))
        if all(event.tests for event in several)
        else (),  # some of it was no test's
    )


def _weighed(finding: Finding, measured: Measured, rule: type[Rule]) -> Finding:
    if finding.measured is not None:
        return finding
    found = measurement_of(concerned(rule, measured.at(finding.rows)))
    if any(found.rank):
        return replace(finding, measured=found)
    if not (is_about_costs(rule) and _ran(finding, measured)):
        return finding
    return replace(finding, measured=found, severity=Severity.NOTE)


def _ran(finding: Finding, measured: Measured) -> bool:
    """Whether an operator ran in the very code of the finding, and not merely on its line."""
    start, end = ((place.row, place.column - 1) for place in (finding.location, finding.end_location))
    return any(call.within(start, end) for call in measured.calls)
