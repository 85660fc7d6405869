"""A lock that a forked child can take, even if another thread of its parent held it."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import AbstractContextManager

_all: weakref.WeakSet[ForkLock] = weakref.WeakSet()


class ForkLock:
    """``with lock():``; reentrant, and made anew in a forked child, where the thread that held it is gone."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _all.add(self)

    def __call__(self) -> AbstractContextManager[bool]:
        """The lock of this process."""
        return self._lock

    def renew(self) -> None:
        """Nobody holds it."""
        self._lock = threading.RLock()


def _renew_all() -> None:
    for lock in _all:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
