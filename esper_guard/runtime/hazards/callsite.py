"""Who made a call: the line of the user's code and the path of the module, also for a call in the backward."""

from __future__ import annotations

import os
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import esper_guard
from esper_guard.runtime.hazards.hazard import Hazard, HazardError

_LIMIT = 10_000  # calls remembered; a backward seldom lies further back
_PACKAGES = [Path(module.__file__ or "").parent for module in (torch, esper_guard)]
_NOT_THE_USERS = (*(f"{package}{os.sep}" for package in _PACKAGES), "<frozen", "<eval_with_key>")
_MODULE_CALL = "_call_impl"


class CallSite(NamedTuple):
    """A call in the forward."""

    location: str | None = None
    """``"file:line"`` of the user's code."""
    module: str | None = None
    """The innermost running module's name within the outermost: ``"features.3.norm"``; its class if it is alone."""


class CallSites:
    """Calls of the forward, found again by a tensor that autograd saves for the backward."""

    def __init__(self) -> None:
        self._sites: OrderedDict[int, CallSite] = OrderedDict()

    def remember(self, common: Tensor, features: Tensor) -> None:
        self._sites[_address(common, features)] = current_site()
        if len(self._sites) > _LIMIT:
            self._sites.popitem(last=False)

    def clear(self) -> None:
        self._sites.clear()

    def error(self, hazard: Hazard, arguments: tuple[Any, ...]) -> HazardError:
        """What to raise instead of a call with these arguments."""
        forward = hazard.forward
        if forward is None:
            site, verb = current_site(), "called"
        else:
            address = _address(arguments[forward.argument], arguments[forward.input])
            site, verb = self._sites.get(address, CallSite()), "forward"
        lines = [f"{hazard.id}: {hazard.title} ({hazard.consequence.value})"]
        if site.module is not None:
            lines.append(f"  module:  {site.module}")
        if site.location is not None:
            lines.append(f"  {verb}: {site.location}")
        else:
            lines.append("  forward: made outside of hazard_guard(); run it inside to see its line")
        lines.append(f"  cure:    {hazard.advice}")
        return HazardError("\n".join(lines), hazard.id, site.module, site.location)


def current_site() -> CallSite:
    """The call being made: the innermost line outside of torch and of this package, and the running module."""
    location = innermost = outermost = None
    for frame in _frames():
        code = frame.f_code
        if code.co_name == _MODULE_CALL and isinstance(module := frame.f_locals.get("self"), nn.Module):
            outermost = module
            innermost = module if innermost is None else innermost
        elif location is None and not code.co_filename.startswith(_NOT_THE_USERS):
            location = f"{code.co_filename}:{frame.f_lineno}"
    if innermost is None or outermost is None:
        return CallSite(location)
    return CallSite(location, _path(innermost, outermost))


_paths: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[nn.Module], str]] = weakref.WeakKeyDictionary()


def _path(module: nn.Module, root: nn.Module) -> str:
    known = _paths.get(module)
    if known is not None and known[0]() is root:
        return known[1]
    names = (name for name, child in root.named_modules() if child is module and name)
    path = next(names, type(module).__qualname__)
    _paths[module] = (weakref.ref(root), path)
    return path


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _address(common: Tensor | None, features: Tensor) -> int:
    # batch_norm in evaluation saves no statistics
    chosen = features if common is None or common.numel() == 0 else common
    return chosen.data_ptr()
