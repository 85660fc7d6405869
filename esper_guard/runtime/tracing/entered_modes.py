"""Which kinds of mode torch believes to be entered.

torch keeps that in flags of the process, which each mode restores on exit. Threads that leave in another order than
they entered would leave them wrong, and some releases compile nothing from then on.
"""

from __future__ import annotations

from typing import Final

from torch.utils import _python_dispatch

from esper_guard.runtime.fork_lock import ForkLock


class _EnteredModes:
    """Saves torch's flags before the first of our modes is entered, and restores them after the last was left."""

    def __init__(self) -> None:
        self.lock = ForkLock()
        self._entered = 0
        self._before: dict[str, object] = {}

    def enter(self) -> None:
        """A mode is about to be entered."""
        if not self._entered:
            names = [name for name in vars(_python_dispatch) if name.startswith("_is_in_")]
            self._before = {name: getattr(_python_dispatch, name) for name in names}
        self._entered += 1

    def leave(self) -> None:
        """One was left."""
        self._entered -= 1
        if not self._entered:
            vars(_python_dispatch).update(self._before)


entered_modes: Final = _EnteredModes()
