"""``harden``: cures in place."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

from esper_guard.runtime.hazards import protection
from esper_guard.runtime.hazards.hazard import Consequence, Hazard, OperatorCure, Target, TargetCure
from esper_guard.runtime.hazards.registry import HAZARDS, select

Hardened = TypeVar("Hardened", bound="nn.Module | torch.optim.Optimizer")

_MARK = "_esper_guard_hardened"
_lock = threading.RLock()


def harden(target: Hardened, hazards: Iterable[str] | None = None) -> Hardened:
    """Cure a module, with all its submodules, or an optimizer of the known native bugs that concern it, in place.

    Only on a torch release that has the bug, and only if the target is on a device that has it (or on the meta
    device, or has no tensors); else nothing is done. Curing changes no forward, no gradient that was right, and no
    state-dict key. It survives ``deepcopy``, ``pickle`` (also into another process), ``.to()``, ``torch.compile``
    and DDP. Hardening twice is hardening once.

    A bug of a native operator is cured where torch dispatches the operator, so for the whole process as long as a
    hardened module or optimizer is alive, functional calls (``F.group_norm``) included. A call of such an operator
    costs about 4 us more; one that had crashed also pays for the gradient of its input, which is asked for and
    dropped (benchmarks/seed_slot.py).

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
    devices = _devices(target)
    with _lock:
        for part in _parts(target):
            mark = part.__dict__.get(_MARK)
            done = mark.ids if mark is not None else ()
            new = [
                hazard
                for hazard in chosen
                if hazard.id not in done
                and hazard.concerns(part)
                and (hazard.devices is None or not devices.isdisjoint((*hazard.devices, "meta")))
            ]
            for hazard in new:
                if isinstance(hazard.cure, TargetCure):
                    hazard.cure.apply(part)
            if new:
                part.__dict__[_MARK] = _Mark((*done, *(hazard.id for hazard in new)))
    return target


def unharden(target: Hardened) -> Hardened:
    """Undo `harden`, for a module with all its submodules, or an optimizer.

    The cure of an operator ends for the process when nothing alive is hardened against it any more.

    Returns:
        The target itself.

    Raises:
        TypeError: the target is neither a module nor an optimizer.
    """
    _check(target)
    with _lock:
        for part in _parts(target):
            mark = part.__dict__.pop(_MARK, None)
            if mark is None:
                continue
            _marks.discard(mark)
            for hazard in _hazards(mark):
                if isinstance(hazard.cure, TargetCure):
                    hazard.cure.undo(part)
        _cure_what_is_marked()
    return target


def is_hardened(target: Target) -> bool:
    """Whether anything in a module or optimizer is hardened against anything."""
    _check(target)
    return any(_MARK in part.__dict__ for part in _parts(target))


class _Mark:
    """What a module or optimizer is hardened against. It travels with it, so that a copy is hardened, too."""

    def __init__(self, ids: tuple[str, ...]) -> None:
        self.ids = ids
        with _lock:
            _marks.add(self)
            _cure_what_is_marked()

    def __reduce__(self) -> tuple[type[_Mark], tuple[tuple[str, ...]]]:
        return _Mark, (self.ids,)


_marks: weakref.WeakSet[_Mark] = weakref.WeakSet()


def _cure_what_is_marked() -> None:
    wanted = {hazard for mark in _marks for hazard in _hazards(mark)}
    protection.cure(hazard for hazard in wanted if isinstance(hazard.cure, OperatorCure))


def _hazards(mark: _Mark) -> Iterator[Hazard]:
    # A mark may have been pickled under another release of torch, or of this package.
    return (HAZARDS[id] for id in mark.ids if id in HAZARDS and HAZARDS[id].affects())


def _parts(target: Target) -> Iterator[Target]:
    return iter(target.modules()) if isinstance(target, nn.Module) else iter((target,))


def _devices(target: Target) -> set[str]:
    if isinstance(target, nn.Module):
        tensors = [*target.parameters(), *target.buffers()]
    else:
        tensors = [parameter for group in target.param_groups for parameter in group["params"]]
    return {tensor.device.type for tensor in tensors} or {"meta"}


def _check(target: object) -> None:
    if not isinstance(target, nn.Module | torch.optim.Optimizer):
        raise TypeError(f"only modules and optimizers can be hardened, not {type(target).__qualname__}")
