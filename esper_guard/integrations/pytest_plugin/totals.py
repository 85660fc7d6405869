"""Adds up what the tests did, and writes it: in the process that reports, whoever ran them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from esper_guard.integrations.pytest_plugin.options import Settings
from esper_guard.integrations.pytest_plugin.summary import summary_of
from esper_guard.integrations.pytest_plugin.verdict import is_of_kinds
from esper_guard.trace.baseline import Baseline, Known, Worst
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.saved import decode

TRACE: Final = "esper_guard_trace"
"""Attribute of a traced test's report: its trace, as text, because reports travel between processes."""
KNOWN: Final = "esper_guard_known"
"""Attribute of the same: what of it belongs into the baseline, as lists."""

DESELECTED: Final = "esper_guard_deselected"
"""Key of what a worker of pytest-xdist says at its end."""

_NARROWING = "override_ini keyword markexpr deselect ignore ignore_glob lf last_failed stepwise collectonly setuponly setupplan".split()
"""Options with which not every test runs."""


class Totals:
    """Of one session."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._trace: LayoutTrace | None = None
        self._tests: set[str] = set()
        self._measured: dict[Known, Worst] = {}
        self._all_passed = True
        self._notes: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if str(report.outcome) == "rerun":  # by pytest-rerunfailures: its last run counts
            return
        self._all_passed = self._all_passed and report.passed
        content = getattr(report, TRACE, None)
        if content is None:
            return
        trace = decode(content)
        measured = getattr(report, KNOWN, ())
        delattr(report, TRACE)  # the terminal keeps all reports
        delattr(report, KNOWN)
        if self._trace is None:
            self._trace = LayoutTrace(trace.level, torch_version=trace.torch_version)
        self._trace.include(trace, (report.nodeid,))
        self._tests.add(report.nodeid)
        for *place, times, size in measured:
            known = Known(*place)
            self._measured[known] = self._measured.get(known, Worst()).at_least(Worst(times, size))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._all_passed = self._all_passed and report.passed

    def pytest_deselected(self) -> None:
        self._all_passed = False

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of pytest-xdist has ended: it was the one to deselect."""
        if getattr(node, "workeroutput", {}).get(DESELECTED):
            self._all_passed = False

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        settings = self._settings
        if settings.update and settings.baseline is not None and self._tests:
            path, reason = settings.baseline, self._why_not_all(session.config, exitstatus)
            self._write(session, lambda: self._update(path, reason))
        for path in settings.json:
            self._write(session, lambda path=path: self._save(path))  # type: ignore[misc]
        for path in settings.html:
            self._write(session, lambda path=path: self._show(path))  # type: ignore[misc]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lines: list[str] = []
        verbose = terminalreporter.config.get_verbosity() > 0
        asked = verbose or self._settings.level != "off"
        if self._trace is not None and asked:
            rows = (None if verbose else 10) if self._settings.terminal else 0
            lines = summary_of(self._trace, len(self._tests), self._settings.root, rows)
        if lines or self._notes:
            terminalreporter.section("layout copies")
            for line in [*lines, *self._notes]:
                terminalreporter.write_line(line)

    def _why_not_all(self, config: pytest.Config, exitstatus: int) -> str | None:
        """Why something may not have occurred although it still does; None if everything ran."""
        if exitstatus != pytest.ExitCode.OK or not self._all_passed:
            return "not every test ran and passed"
        narrowing = [name for name in _NARROWING if config.getoption(name, None)]
        if narrowing:
            return f"--{narrowing[0].replace('_', '-')} was given"
        whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS or (
            config.args_source is pytest.Config.ArgsSource.INVOCATION_DIR
            and config.invocation_params.dir == config.rootpath
        )
        return None if whole else "only some of the paths were given"

    def _update(self, path: Path, reason: str | None) -> None:
        """Replace what was measured; forget what was not only if everything ran."""
        before = self._settings.known.entries if self._settings.known is not None else {}
        kept = {
            place: worst
            for place, worst in before.items()
            if reason or not is_of_kinds(place, self._settings.fail_on)
        }
        if reason:  # others may do more there
            self._measured = {
                place: worst.at_least(before.get(place, worst)) for place, worst in self._measured.items()
            }
        after = {**kept, **self._measured}
        path.parent.mkdir(parents=True, exist_ok=True)
        Baseline(path.parent, after).save(path)
        entries = _counted(len(after), "entry", "entries")
        new, gone = len(after.keys() - before.keys()), len(before.keys() - after.keys())
        self._notes.append(f"baseline: {entries} ({new} new, {gone} gone) written to {path}")
        if reason and kept.keys() - self._measured.keys():
            self._notes.append(f"baseline: entries that did not occur were kept, because {reason}")

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tests = _counted(len(self._tests), "test", "tests")
        self._notes.append(f"trace of {tests} written to {self._whole().save(path)}")

    def _show(self, path: Path) -> None:
        from esper_guard.report.html import write_html

        path.parent.mkdir(parents=True, exist_ok=True)
        tests = _counted(len(self._tests), "test", "tests")
        self._notes.append(f"report of {tests} written to {write_html(self._whole(), path)}")

    def _whole(self) -> LayoutTrace:
        """The sum, also of no test."""
        return self._trace or LayoutTrace("deep" if self._settings.level == "deep" else "dispatch")

    def _write(self, session: pytest.Session, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if session.config.pluginmanager.hasplugin("terminalreporter"):
                self._notes.append(f"not written: {error}")
            else:
                print(f"esper-guard: not written: {error}", file=sys.stderr)
            if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
                session.exitstatus = pytest.ExitCode.USAGE_ERROR


def _counted(number: int, one: str, many: str) -> str:
    return f"1 {one}" if number == 1 else f"{number} {many}"
