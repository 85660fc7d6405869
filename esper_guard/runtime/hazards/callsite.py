"""Who made a call: the line of the user's code and the path of the module, also for a call in the backward."""

from __future__ import annotations

import os
import sys
import sysconfig
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import esper_guard
from esper_guard.runtime.hazards.hazard import Hazard, HazardError

_LIMIT = 10_000  # calls remembered; a backward seldom lies further back
_MODULE_CALL = "_call_impl"
_WRAPPERS = ("torch._dynamo.", "torch.fx.", "torch.jit.")  # modules that torch makes around the user's


@cache
def _is_the_users(filename: str) -> bool:
    packages = [Path(module.__file__ or "").parent for module in (torch, esper_guard)]
    standard_library = sysconfig.get_path("stdlib") + os.sep
    return not (
        filename.startswith(("<frozen", "<eval_with_key>", *(f"{package}{os.sep}" for package in packages)))
        or filename.endswith("typing_extensions.py")
        or (filename.startswith(standard_library) and f"{os.sep}site-packages{os.sep}" not in filename)
    )


class CallSite(NamedTuple):
    """A call in the forward."""

    location: str | None = None
    """``"file:line"`` of the user's code."""
    module: str | None = None
    """The innermost running module's name within the outermost: ``"features.3.norm"``; its class if it is alone."""


class CallSites:
    """Calls of the forward, found again by a tensor that autograd saves for the backward."""

    def __init__(self) -> None:
        self._sites: OrderedDict[object, CallSite] = OrderedDict()

    def remember(self, common: Tensor, features: Tensor, weight: Tensor | None) -> None:
        address = _address(common, features, weight)
        self._sites[address] = current_site()
        self._sites.move_to_end(address)
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
            address = _address(
                *(arguments[at] for at in (forward.argument, forward.features, forward.weight))
            )
            site, verb = self._sites.get(address, CallSite()), "forward"
        lines = [f"{hazard.id}: {hazard.title} ({hazard.consequence.value})"]
        if site.module is not None:
            lines.append(f"  module:  {site.module}")
        if site.location is not None:
            lines.append(f"  {verb}: {site.location}")
        else:
            lines.append(
                "  forward: not known; run it inside of hazard_guard() as well, without hooks that copy saved tensors"
            )
        lines.append(f"  cure:    {hazard.advice}")
        return HazardError("\n".join(lines), hazard.id, site.module, site.location)


def current_site() -> CallSite:
    """The call being made: the innermost line outside of torch and of this package, and the running module."""
    location = innermost = outermost = None
    for frame in _frames():
        code = frame.f_code
        if code.co_name == _MODULE_CALL and isinstance(module := frame.f_locals.get("self"), nn.Module):
            if type(module).__module__.startswith(_WRAPPERS):
                continue
            outermost = module
            innermost = module if innermost is None else innermost
        elif location is None and _is_the_users(code.co_filename):
            location = f"{code.co_filename}:{frame.f_lineno}"
    if innermost is None or outermost is None:
        return CallSite(location)
    return CallSite(location, _path(innermost, outermost))


_paths: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[nn.Module], str]] = weakref.WeakKeyDictionary()


def _path(module: nn.Module, root: nn.Module) -> str:
    known_root, path = _paths.get(module, (None, ""))
    known = None if known_root is None else known_root()
    if known is not None and (known is root or any(child is root for child in known.modules())):
        return path  # a recomputing checkpoint starts in the middle of the model
    names = (name for name, child in root.named_modules() if child is module and name)
    path = next(names, type(module).__qualname__)
    _paths[module] = (weakref.ref(root), path)
    return path


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _address(common: Tensor | None, features: Tensor, weight: Tensor | None) -> object:
    if common is not None and common.numel():
        return common.data_ptr()
    # batch_norm in evaluation saves no statistics
    return features.data_ptr(), 0 if weight is None else weight.data_ptr()
