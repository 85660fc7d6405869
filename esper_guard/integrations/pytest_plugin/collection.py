"""Which tests are traced."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from esper_guard.integrations.pytest_plugin.options import MARKER, Settings
from esper_guard.integrations.pytest_plugin.torch_here import has_torch, lacks_executing

if TYPE_CHECKING:
    from esper_guard.integrations.pytest_plugin.tracing import Tracing
    from esper_guard.trace import LayoutTrace

_TRACING = "esper-guard-tracing"
_TOTALS = "esper-guard-totals"


class Collection:
    """Checks markers, and registers what traces at the first test that needs it: others pay nothing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._manager: Any = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._manager = session.config.pluginmanager
        if self._settings.level != "off":
            self._tracing()
        elif self._manager.hasplugin("dsession"):  # workers send their reports here
            self._totals()

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        all_marked = collector.get_closest_marker(MARKER) is not None
        wrong = [
            problem
            for item in report.result or ()
            if (all_marked or item.own_markers) and (problem := self._problem(item)) is not None
        ]
        if wrong:
            report.outcome = "failed"
            report.longrepr = "\n".join(dict.fromkeys(wrong))
            report.result = []
        return report

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Markers that a conftest has added meanwhile."""
        for item in session.items:
            if item.own_markers:
                problem = self._problem(item)
                if problem is not None:
                    raise pytest.UsageError(problem)

    def trace_of(self, item: pytest.Item) -> LayoutTrace:
        """What the fixture returns."""
        if lacks_executing():
            pytest.fail("layout_trace needs executing: pip install executing", pytrace=False)
        return self._tracing().trace_of(item)

    def _problem(self, item: Any) -> str | None:
        """Look at a test's marker; what is wrong with it."""
        if not isinstance(item, pytest.Item):
            return None
        marker = item.get_closest_marker(MARKER)
        if marker is None:
            return None
        from esper_guard.integrations.pytest_plugin.marker import Marked, MarkerError

        test = f"{item.nodeid.partition('[')[0]}: @pytest.mark.{MARKER}"
        try:
            Marked.of(marker)
        except MarkerError as error:
            return f"{test}: {error}"
        if has_torch():
            if lacks_executing():
                return f"@pytest.mark.{MARKER} needs executing: pip install executing"
            self._tracing()
        return None

    def _tracing(self) -> Tracing:
        if not self._manager.hasplugin(_TRACING):
            from esper_guard.integrations.pytest_plugin.tracing import Tracing

            self._totals()
            self._manager.register(Tracing(self._settings), _TRACING)
        found: Tracing = self._manager.get_plugin(_TRACING)
        return found

    def _totals(self) -> None:
        if not self._settings.worker and not self._manager.hasplugin(_TOTALS) and has_torch():
            from esper_guard.integrations.pytest_plugin.totals import Totals

            self._manager.register(Totals(self._settings), _TOTALS)
