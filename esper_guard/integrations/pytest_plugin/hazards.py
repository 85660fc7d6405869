"""A known native crash fails one test, with a message, instead of ending the run."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from esper_guard.integrations.pytest_plugin.torch_here import is_stand_in

if TYPE_CHECKING:
    from esper_guard.runtime.hazards import hazard_guard


class Hazards:
    """Holds a `hazard_guard` for the session, from the moment at which torch is imported."""

    def __init__(self) -> None:
        self._guard: hazard_guard | None = None
        self._problem: Exception | None = None
        self._waiting = _AfterImport("torch", self._enter)
        if "torch" in sys.modules:
            self._enter()
        else:
            sys.meta_path.insert(0, self._waiting)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._problem is not None and not is_stand_in():
            terminalreporter.write_line(
                f"esper-guard can't watch this torch for native bugs: {self._problem}"
            )

    def pytest_unconfigure(self) -> None:
        if self._waiting in sys.meta_path:
            sys.meta_path.remove(self._waiting)
        if self._guard is not None:
            self._guard.__exit__(None, None, None)
            self._guard = None

    def _enter(self) -> None:
        try:
            from esper_guard.runtime.hazards import hazard_guard

            self._guard = hazard_guard()
            self._guard.__enter__()
        except Exception as error:  # noqa: BLE001 - whatever stands in torch's place, the import is not ours to break
            self._guard, self._problem = None, error


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function once a module has been imported, which need not happen at all."""

    def __init__(self, name: str, function: Callable[[], None]) -> None:
        self._name = name
        self._function = function
        self._looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self._function()

            loader.exec_module = exec_module
        return spec
