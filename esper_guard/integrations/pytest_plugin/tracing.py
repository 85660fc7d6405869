"""Traces the bodies of tests, and holds them to what they are marked with."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from esper_guard.integrations.pytest_plugin.collection import MARKED
from esper_guard.integrations.pytest_plugin.options import Settings
from esper_guard.integrations.pytest_plugin.totals import KNOWN, TRACE
from esper_guard.integrations.pytest_plugin.verdict import (
    exceeds_baseline,
    exceeds_marker,
    held_against,
    written_in_test,
)
from esper_guard.trace.baseline import Baseline

if TYPE_CHECKING:
    from esper_guard.runtime.tracing import trace_layouts
    from esper_guard.trace import LayoutEvent, LayoutTrace


class Tracing:
    """Of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._has_torch = importlib.util.find_spec("torch") is not None
        self._baseline = Baseline(settings.root)
        if settings.baseline is not None and not settings.update:
            try:
                self._baseline = Baseline.load(settings.baseline, settings.root)
            except (OSError, ValueError) as error:
                raise pytest.UsageError(str(error)) from error

    def tracer_of(self, item: pytest.Item) -> trace_layouts:
        """The tracer of a test that is about to run."""
        tracer = item.stash.get(_TRACER, None)
        if tracer is None:
            from esper_guard.runtime.tracing import trace_layouts

            level: Any = self._settings.level
            tracer = item.stash[_TRACER] = trace_layouts("dispatch" if level == "off" else level)
        return tracer

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        marked = item.stash.get(MARKED, None)
        asked = marked is not None or _TRACER in item.stash or self._settings.level != "off"
        if not (asked and self._has_torch):
            return (yield)
        with self.tracer_of(item) as trace:
            result = yield
        function = getattr(item, "originalname", None) or item.name
        events = [event for event in trace.events if not written_in_test(event, str(item.path), function)]
        held = held_against(self._settings.fail_on, events) if self._settings.level != "off" else []
        if self._settings.update:
            item.stash[_HELD] = held
            held = []
        problem = exceeds_marker(marked, events, trace.unseen) if marked is not None else None
        problem = problem or exceeds_baseline(self._baseline, held)
        if problem is not None:
            pytest.fail(problem, pytrace=False)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "call" and _TRACER in item.stash:
            from esper_guard.trace.saved import encode

            trace: LayoutTrace = item.stash[_TRACER].trace
            setattr(report, TRACE, encode(trace).decode())
            known = self._baseline.measure(item.stash.get(_HELD, []))
            setattr(report, KNOWN, [[*place, *worst] for place, worst in known.items()])
            del item.stash[_TRACER]  # a test that is run again has another one
        return report


_TRACER: pytest.StashKey[trace_layouts] = pytest.StashKey()
_HELD: pytest.StashKey[Iterable[LayoutEvent]] = pytest.StashKey()
"""What of it belongs into the baseline."""
