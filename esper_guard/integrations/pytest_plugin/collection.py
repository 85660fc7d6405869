"""Which tests are traced."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from esper_guard.integrations.pytest_plugin.options import Settings
from esper_guard.integrations.pytest_plugin.plugin import MARKER

if TYPE_CHECKING:
    from esper_guard.integrations.pytest_plugin.marker import Marked
    from esper_guard.integrations.pytest_plugin.tracing import Tracing
    from esper_guard.trace import LayoutTrace

_TRACING = "esper-guard-tracing"
_TOTALS = "esper-guard-totals"
MARKED: pytest.StashKey[Marked] = pytest.StashKey()


class Collection:
    """Checks markers, and registers what traces at the first test that needs it: others pay nothing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._manager: pytest.PytestPluginManager | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._manager = session.config.pluginmanager
        if self._settings.level != "off":
            self._tracing()
        elif self._manager.hasplugin("dsession"):  # workers collect, this process gets their reports
            self._totals()

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        wrong = [problem for item in report.result or () if (problem := self._problem(item)) is not None]
        if wrong:
            report.outcome = "failed"
            report.longrepr = "\n".join(dict.fromkeys(wrong))
            report.result = []
        return report

    def trace_of(self, item: pytest.Item) -> LayoutTrace:
        """What the fixture returns."""
        return self._tracing().tracer_of(item).trace

    def _problem(self, item: Any) -> str | None:
        """Look at a test's marker; what is wrong with it."""
        if not isinstance(item, pytest.Item):
            return None
        marker = item.get_closest_marker(MARKER)
        if marker is None:
            return None
        from esper_guard.integrations.pytest_plugin.marker import Marked, MarkerError

        try:
            item.stash[MARKED] = Marked.of(marker)
        except MarkerError as error:
            return f"{item.nodeid.partition('[')[0]}: @pytest.mark.{MARKER}: {error}"
        self._tracing()
        return None

    def _tracing(self) -> Tracing:
        manager = self._manager
        assert manager is not None
        if not manager.hasplugin(_TRACING):
            from esper_guard.integrations.pytest_plugin.tracing import Tracing

            self._totals()
            manager.register(Tracing(self._settings), _TRACING)
        found: Any = manager.get_plugin(_TRACING)
        return found  # type: ignore[no-any-return]

    def _totals(self) -> None:
        manager = self._manager
        assert manager is not None
        if not self._settings.worker and not manager.hasplugin(_TOTALS) and importlib.util.find_spec("torch"):
            from esper_guard.integrations.pytest_plugin.totals import Totals

            manager.register(Totals(self._settings), _TOTALS)
