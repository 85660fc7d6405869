"""Adds up what the tests did, and writes it: in the process that reports, whoever ran them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from esper_guard.integrations.pytest_plugin.options import Settings
from esper_guard.integrations.pytest_plugin.summary import summary_of
from esper_guard.trace.baseline import Baseline, Known, Worst
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.saved import decode

TRACE: Final = "esper_guard_trace"
"""Attribute of a traced test's report: its trace, as text, because reports travel between processes."""
KNOWN: Final = "esper_guard_known"
"""Attribute of the same: what of it belongs into the baseline, as lists."""


class Totals:
    """Of one session."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._trace: LayoutTrace | None = None
        self._tests = 0
        self._measured: dict[Known, Worst] = {}
        self._whole = True
        self._notes: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._whole = self._whole and not report.failed
        content = getattr(report, TRACE, None)
        if content is None:
            return
        trace = decode(content)
        if self._trace is None:
            self._trace = LayoutTrace(trace.level, torch_version=trace.torch_version)
        self._trace.include(trace, (report.nodeid,))
        self._tests += 1
        if not report.failed:
            for *place, count, size in getattr(report, KNOWN, ()):
                known = Known(*place)
                self._measured[known] = self._measured.get(known, Worst()).at_least(Worst(count, size))

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._whole = self._whole and not items

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        finished = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        chosen = session.config.args_source is pytest.Config.ArgsSource.ARGS
        try:
            if self._settings.update and self._settings.baseline is not None:
                self._update(self._settings.baseline, self._whole and finished and not chosen)
            for path in self._settings.json:
                self._save(path)
        except (OSError, ValueError) as error:
            self._notes.append(f"not written: {error}")
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lines: list[str] = []
        if self._trace is not None and self._settings.terminal:
            verbose = terminalreporter.config.get_verbosity() > 0
            lines = summary_of(self._trace, self._tests, self._settings.root, None if verbose else 10)
        if lines or self._notes:
            terminalreporter.section("layout copies")
            for line in [*lines, *self._notes]:
                terminalreporter.write_line(line)

    def _update(self, path: Path, whole: bool) -> None:
        """Replace what was measured; forget what was not only if everything ran."""
        before = Baseline.load(path, self._settings.root).entries if path.is_file() else {}
        after = dict(self._measured) if whole else {**before, **self._measured}
        path.parent.mkdir(parents=True, exist_ok=True)
        Baseline(self._settings.root, after).save(path)
        new, gone = len(after.keys() - before.keys()), len(before.keys() - after.keys())
        self._notes.append(
            f"baseline: {_counted(len(after), 'entry', 'entries')} ({new} new, {gone} gone) written to {path}"
        )
        if not whole:
            self._notes.append(
                "baseline: entries that did not occur were kept, because not every test ran and passed"
            )

    def _save(self, path: Path) -> None:
        trace = self._trace or LayoutTrace("deep" if self._settings.level == "deep" else "dispatch")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._notes.append(f"trace of {_counted(self._tests, 'test', 'tests')} written to {trace.save(path)}")


def _counted(number: int, one: str, many: str) -> str:
    return f"1 {one}" if number == 1 else f"{number} {many}"
