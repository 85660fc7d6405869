"""A known native crash fails one test, with a message, instead of ending the run."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper_guard.runtime.hazards import hazard_guard


class Hazards:
    """Holds a `hazard_guard` for the session, from the moment at which torch is imported."""

    def __init__(self) -> None:
        self._guard: hazard_guard | None = None
        self._waiting: _AfterImport | None = None

    def pytest_sessionstart(self) -> None:
        if sys.modules.get("torch") is not None:
            self._enter()
        else:
            self._waiting = _AfterImport("torch", self._enter)
            sys.meta_path.insert(0, self._waiting)

    def pytest_unconfigure(self) -> None:
        if self._waiting in sys.meta_path:
            sys.meta_path.remove(self._waiting)
        if self._guard is not None:
            self._guard.__exit__(None, None, None)
            self._guard = None

    def _enter(self) -> None:
        from esper_guard.runtime.hazards import hazard_guard

        self._guard = hazard_guard()
        self._guard.__enter__()


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
