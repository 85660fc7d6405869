"""Which hazards are cured and which are guarded in this process, and the interpositions that it takes.

Process-wide, because a crash is: a backward may run on any thread. For the same reason an interposition stays once it
was made, with nothing to do when nothing is protected: taking it back would crash a thread that is calling it
(tests/runtime/test_hazards.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final

from torch import Tensor

from esper_guard.runtime.fork_lock import ForkLock
from esper_guard.runtime.hazards.callsites import CallSites
from esper_guard.runtime.hazards.hazard import Hazard, OperatorCure
from esper_guard.runtime.hazards.interpose import Handler, Interposition, has_operator

lock: Final = ForkLock()
_cured: Counter[Hazard] = Counter()
_guarded: Counter[Hazard] = Counter()
_installed: dict[str, Interposition] = {}
_sites = CallSites()


def cure(hazards: Collection[Hazard]) -> None:
    """Repair the calls of these hazards, until `end_cure` was called as often."""
    with lock():
        _watch(hazards)
        _cured.update(hazards)


def end_cure(hazards: Collection[Hazard]) -> None:
    """Take back one `cure`."""
    with lock():
        _take_back(_cured, hazards)


def guard(hazards: Collection[Hazard]) -> None:
    """Raise at the calls of these hazards, unless they are cured, until `end_guard` was called as often."""
    with lock():
        _watch(hazards)
        _watch_forwards(hazards)
        _guarded.update(hazards)


def end_guard(hazards: Collection[Hazard]) -> None:
    """Take back one `guard`."""
    with lock():
        _take_back(_guarded, hazards)
        if not _guarded:
            _sites.clear()


def cured() -> frozenset[Hazard]:
    """The hazards whose calls are repaired."""
    return frozenset(_cured)


def end_all() -> None:
    """Protect from nothing, whatever is hardened or guarded."""
    with lock():
        _cured.clear()
        _guarded.clear()
        _sites.clear()


def _take_back(counter: Counter[Hazard], hazards: Collection[Hazard]) -> None:
    for hazard in hazards:
        if counter[hazard] > 1:
            counter[hazard] -= 1
        else:
            del counter[hazard]


def _watch(hazards: Collection[Hazard]) -> None:
    for hazard in hazards:
        for operator in hazard.operators:
            _interpose(operator, _judge(operator))


def _watch_forwards(hazards: Collection[Hazard]) -> None:
    for hazard in hazards:
        if hazard.forward is not None:
            for operator in hazard.forward.operators:
                _interpose(operator, _remember(hazard.forward.result))


def _interpose(operator: str, handler: Handler) -> None:
    if operator not in _installed and has_operator(operator):
        _installed[operator] = Interposition(operator, handler)


def _judge(operator: str) -> Handler:
    def judge(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        for hazard in tuple(_cured):
            if operator in hazard.operators and hazard.triggers(*args, **kwargs):
                assert isinstance(hazard.cure, OperatorCure)
                return hazard.cure.repair(native, *args, **kwargs)
        for hazard in tuple(_guarded):
            if operator in hazard.operators and hazard.triggers(*args, **kwargs):
                raise _sites.error(hazard, args)
        return native(*args, **kwargs)

    return judge


def _remember(result: int) -> Handler:
    def remember(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        results = native(*args, **kwargs)
        if not _guarded:
            return results
        features, common = args[0], results[result]
        if isinstance(features, Tensor) and features.device.type == "cpu" and isinstance(common, Tensor):
            _sites.remember(common, features, weight=args[1])
        return results

    return remember
