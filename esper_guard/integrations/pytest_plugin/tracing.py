"""Traces the bodies of tests, and holds them to what they are marked with."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from esper_guard.integrations.pytest_plugin.marker import Marked
from esper_guard.integrations.pytest_plugin.options import MARKER, Settings
from esper_guard.integrations.pytest_plugin.own_lines import OwnLines
from esper_guard.integrations.pytest_plugin.torch_here import has_torch, is_stand_in
from esper_guard.integrations.pytest_plugin.totals import DESELECTED, KNOWN, TRACE
from esper_guard.integrations.pytest_plugin.verdict import exceeds_baseline, exceeds_marker, held_against
from esper_guard.trace.baseline import Baseline
from esper_guard.trace.paths import relative_to_here

if TYPE_CHECKING:
    from esper_guard.runtime.tracing import trace_layouts
    from esper_guard.trace import LayoutEvent, LayoutTrace


class Tracing:
    """Of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._has_torch = has_torch()
        self._known = settings.known or Baseline(settings.root)
        self._path = "PATH"
        if settings.baseline is not None:  # named now, because a test may change the folder
            self._path = shlex.quote(relative_to_here(str(settings.baseline)))

    def trace_of(self, item: pytest.Item) -> LayoutTrace:
        """The trace of a test that is about to run."""
        tracer = item.stash.get(_TRACER, None)
        if tracer is None:
            from esper_guard.runtime.tracing import trace_layouts

            level: Any = self._settings.level
            tracer = item.stash[_TRACER] = trace_layouts("dispatch" if level == "off" else level)
        return tracer.trace

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        if self._settings.worker and items:
            config: Any = items[0].config
            config.workeroutput[DESELECTED] = True

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        marker = item.get_closest_marker(MARKER)
        asked = marker is not None or _TRACER in item.stash or self._settings.level != "off"
        if not (asked and self._has_torch and self._can_trace(item)):
            return (yield)
        tracer = item.stash[_TRACER]
        del item.stash[_TRACER]  # a test that is run again has another one
        held: list[LayoutEvent] = []
        try:
            with tracer as trace:
                result = yield
            own = OwnLines.of(item)
            events = [event for event in trace.events if not own.excuse(event)]
            held = held_against(self._settings.fail_on, events) if self._settings.level != "off" else []
            problem = self._problem(item, marker, trace, events, held)
            if problem is not None:
                pytest.fail(problem, pytrace=False)
            return result
        finally:
            item.stash[_DONE] = self._report_of(tracer.trace, held)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "call" and _DONE in item.stash:  # not that of a subtest, which ends before
            trace, known = item.stash[_DONE]
            del item.stash[_DONE]
            setattr(report, TRACE, trace)
            setattr(report, KNOWN, known)
        return report

    def _problem(
        self,
        item: pytest.Item,
        marker: pytest.Mark | None,
        trace: LayoutTrace,
        events: Sequence[LayoutEvent],
        held: Sequence[LayoutEvent],
    ) -> str | None:
        """What to fail a test for: first what its marker forbids, then what the session does."""
        if marker is not None:
            problem = exceeds_marker(Marked.of(marker), trace, events)
            if problem is not None:
                return problem
            if trace.unseen:
                _warn_of_unseen(item, trace)
        return None if self._settings.update else exceeds_baseline(self._known, held, self._path)

    def _report_of(self, trace: LayoutTrace, held: Sequence[LayoutEvent]) -> tuple[str, list[list[Any]]]:
        from msgspec.structs import astuple

        from esper_guard.trace.saved import encode

        known = self._known.measure(held) if self._settings.update else {}
        return encode(trace).decode(), [[*astuple(place), *worst] for place, worst in known.items()]

    def _can_trace(self, item: pytest.Item) -> bool:
        try:
            self.trace_of(item)
        except (ImportError, AttributeError):
            if not is_stand_in():
                raise
            self._has_torch = False
        return self._has_torch


def _warn_of_unseen(item: pytest.Item, trace: LayoutTrace) -> None:
    message = f"{item.nodeid}: not seen, so that its copies don't count: {'; '.join(trace.unseen)}"
    file, line, _ = item.location
    warnings.warn_explicit(message, UserWarning, file, (line or 0) + 1)


_TRACER: pytest.StashKey[trace_layouts] = pytest.StashKey()
_DONE: pytest.StashKey[tuple[str, list[list[Any]]]] = pytest.StashKey()
"""Of a test that has run: its trace, and what of it belongs into the baseline."""
