"""Which lines of a step copy between memory formats, or lose one."""

from __future__ import annotations

import linecache
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from esper_guard.profiling.explain import finding_about, findings_in, without_suppression
from esper_guard.profiling.result import LineCost
from esper_guard.profiling.step import Step
from esper_guard.runtime.tracing import trace_layouts
from esper_guard.trace.baseline import name_of
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.table import costliest, remedy, why


def trace_step(step: Step) -> LayoutTrace:
    """A trace of one whole step; the step must have run before."""
    step.forget()
    with ThreadPoolExecutor(1) as pool:  # where no line of the program that calls us is on the stack
        return pool.submit(_trace, step).result()


def _trace(step: Step) -> LayoutTrace:
    with trace_layouts() as trace:
        step.forward()
        step.backward()
    return trace


def line_costs(trace: LayoutTrace) -> list[LineCost]:
    """The events of a trace, the costliest first, each with what explains it."""
    findings = {
        file: findings_in(file) for file in {event.file for event in trace.events} if file is not None
    }
    costs = []
    for event in costliest(trace.events):
        found = None if event.file is None else finding_about(findings[event.file], event)
        explained = found is not None and (event.is_copy or event.kind == "loss")
        costs.append(
            LineCost(
                kind=event.kind,
                operator=event.operator,
                phase=event.phase,
                source_format=event.source,
                result_format=event.destination,
                shape=event.shape,
                dtype=event.dtype,
                bytes=event.bytes,
                count=event.count,
                changes_format=event.changes_format,
                file=None if event.file is None else name_of(event.file, Path.cwd()),
                line=event.line,
                text=_text(event),
                module=event.module,
                parameter=event.parameter,
                rule=found.code if found is not None and explained else None,
                finding=found.message if found is not None and explained else None,
                help=found.help if found is not None and explained else None,
                why=why(event, _text(event)),
                remedy=remedy(event, _text(event)),
            )
        )
    return costs


def _text(event: LayoutEvent) -> str:
    if event.file is None:
        return ""
    return without_suppression(linecache.getline(event.file, event.line or 0).strip())
