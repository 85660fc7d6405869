"""Which hazards are cured and which are guarded in this process, and the interpositions that it takes.

Process-wide, because a crash is: a backward may run on any thread.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from esper_guard.runtime.hazards.callsite import CallSites
from esper_guard.runtime.hazards.hazard import Hazard, OperatorCure
from esper_guard.runtime.hazards.interpose import Handler, Interposition, has_operator

_lock = threading.RLock()
_cured: frozenset[Hazard] = frozenset()
_guarded: Counter[Hazard] = Counter()
_installed: dict[str, Interposition] = {}
_sites = CallSites()


def cure(hazards: Iterable[Hazard]) -> None:
    """Repair the calls of these hazards from now on, and of no others."""
    global _cured
    with _lock:
        _cured = frozenset(hazards)
        _install_what_is_needed()


def cured() -> frozenset[Hazard]:
    """The hazards whose calls are repaired."""
    return _cured


def guard(hazards: Iterable[Hazard]) -> None:
    """Raise at the calls of these hazards, unless they are cured, until `end_guard` was called as often."""
    with _lock:
        _guarded.update(hazards)
        _install_what_is_needed()


def end_guard(hazards: Iterable[Hazard]) -> None:
    """Take back one `guard`."""
    with _lock:
        for hazard in hazards:
            _guarded[hazard] -= 1
            if not _guarded[hazard]:
                del _guarded[hazard]
        _install_what_is_needed()


def _install_what_is_needed() -> None:
    wanted: dict[str, Handler] = {}
    for hazard in {*_cured, *_guarded}:
        for operator in hazard.operators:
            wanted[operator] = _judge(operator)
    for hazard in _guarded:
        if hazard.forward is not None:
            wanted[hazard.forward.operator] = _remember(hazard.forward.result)
    for operator in _installed.keys() - wanted.keys():
        _installed.pop(operator).remove()
    for operator, handler in wanted.items():
        if operator not in _installed and has_operator(operator):
            _installed[operator] = Interposition(operator, handler)
    if not _guarded:
        _sites.clear()


def _judge(operator: str) -> Handler:
    def judge(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for hazard in (*_cured, *_guarded):
            if operator in hazard.operators and hazard.triggers(*args, **kwargs):
                if hazard in _cured and isinstance(hazard.cure, OperatorCure):
                    return hazard.cure.repair(native, *args, **kwargs)
                raise _sites.error(hazard, args)
        return native(*args, **kwargs)

    return judge


def _remember(result: int) -> Callable[..., Any]:
    def remember(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        results = native(*args, **kwargs)
        features, common = args[0], results[result]
        if isinstance(features, Tensor) and features.device.type == "cpu" and isinstance(common, Tensor):
            _sites.remember(common, features)
        return results

    return remember
