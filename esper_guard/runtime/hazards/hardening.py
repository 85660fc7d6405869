"""``harden``: cures in place."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

from esper_guard.runtime.hazards import protection
from esper_guard.runtime.hazards.hazard import Consequence, Hazard, OperatorCure, Target, TargetCure
from esper_guard.runtime.hazards.registry import HAZARDS, select

Hardened = TypeVar("Hardened", bound="nn.Module | torch.optim.Optimizer")

_MARKS = "_esper_guard_hardened"


def harden(target: Hardened, hazards: Iterable[str] | None = None) -> Hardened:
    """Cure a module, with all its submodules, or an optimizer of the known native bugs that concern it, in place.

    Nothing is done on a torch release without the bug. Curing changes no forward, no gradient that was right, and
    no state-dict key. A module's hardening survives ``deepcopy``, ``pickle`` (also into another process), ``.to()``,
    ``torch.compile`` and DDP; copies of an optimizer, and of a ``torch.jit.ScriptModule``, have to be hardened again,
    since those leave it behind. Hardening twice is hardening once.

    A bug of a native operator is cured where torch dispatches the operator, so for the whole process, functional
    calls (``F.group_norm``) included, and only calls on a device that has the bug are changed. The cure ends when
    everything that was hardened has been given to `unharden`; a hardened module that is merely dropped, as a pruned
    seed is, leaves it in place, since a backward through it may still come.

    Cost: about 5 us for each call of such an operator, on every device and for the life of the process; one that
    had crashed also pays for the gradient of its input, which is asked for and dropped (benchmarks/seed_slot.py).

    Args:
        target: the module or optimizer.
        hazards: ids of the hazards to cure (default: all but those that are only slow).

    Returns:
        The target itself.

    Raises:
        TypeError: the target is neither a module nor an optimizer.
        ValueError: there is no such hazard.
    """
    _check(target)
    chosen = [
        hazard
        for hazard in select(hazards)
        if hazard.affects() and (hazards is not None or hazard.consequence is not Consequence.SLOW)
    ]
    with protection.lock():
        for part in _parts(target):
            done = _marked(part)
            new = [hazard for hazard in chosen if hazard.id not in done and hazard.concerns(part)]
            for hazard in new:
                if isinstance(hazard.cure, TargetCure):
                    hazard.cure.apply(part)
            if new:
                marks = part.__dict__.get(_MARKS, ())
                part.__dict__[_MARKS] = (*marks, _Mark(tuple(hazard.id for hazard in new)))
    return target


def unharden(target: Hardened) -> Hardened:
    """Undo `harden`, for a module with all its submodules, those that it shares with other models included.

    Returns:
        The target itself.

    Raises:
        TypeError: the target is neither a module nor an optimizer.
    """
    _check(target)
    with protection.lock():
        for part in _parts(target):
            _unmark(part)
    return target


def is_hardened(target: Target) -> bool:
    """Whether anything in a module or optimizer is hardened against anything."""
    _check(target)
    return any(_marked(part) for part in _parts(target))


class _Mark:
    """What a module or optimizer is hardened against. It travels with it, so that a copy is hardened, too."""

    def __init__(self, ids: tuple[str, ...]) -> None:
        self.ids = ids
        protection.cure(_operator_hazards(ids))

    def __reduce__(self) -> tuple[type[_Mark], tuple[tuple[str, ...]]]:
        return _Mark, (self.ids,)


def _operator_hazards(ids: Iterable[str]) -> list[Hazard]:
    return [hazard for hazard in _hazards(ids) if isinstance(hazard.cure, OperatorCure)]


def _unmark(part: Target) -> None:
    marks = part.__dict__.pop(_MARKS, ())
    held = [(weakref.ref(mark), mark.ids) for mark in marks]
    del marks
    for mark, ids in held:
        if mark() is not None:
            continue  # a shallow copy has it, too
        protection.end_cure(_operator_hazards(ids))
        for hazard in _hazards(ids):
            if isinstance(hazard.cure, TargetCure):
                hazard.cure.undo(part)


def _marked(part: Target) -> set[str]:
    return {id for mark in part.__dict__.get(_MARKS, ()) for id in mark.ids}


def _hazards(ids: Iterable[str]) -> Iterator[Hazard]:
    # A mark may have been pickled under another release of torch, or of this package.
    return (HAZARDS[id] for id in ids if id in HAZARDS and HAZARDS[id].affects())


def _parts(target: Target) -> Iterator[Target]:
    return iter(target.modules()) if isinstance(target, nn.Module) else iter((target,))


def _check(target: object) -> None:
    if not isinstance(target, nn.Module | torch.optim.Optimizer):
        raise TypeError(f"only modules and optimizers can be hardened, not {type(target).__qualname__}")
