"""Who made a call: the line of the user's code and the path of the module, also for a call in the backward."""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esper_guard.runtime.hazards.hazard import Hazard, HazardError

_LIMIT = 10_000  # calls remembered; a backward seldom lies further back
_LIBRARIES = tuple(str(Path(module.__file__ or "").parent) for module in (torch, sys.modules["esper_guard"]))
_MODULE_CALL = "_call_impl"


class CallSite(NamedTuple):
    """A call in the forward."""

    location: str | None
    modules: tuple[weakref.ref[nn.Module], ...] = ()
    """Those that were running, outermost first."""
    kind: str | None = None
    """The class of the innermost."""

    def module_path(self) -> str | None:
        """The innermost module's name within the outermost: ``"features.3.norm"``; its class if it is alone."""
        running = [module for reference in self.modules if (module := reference()) is not None]
        if len(running) < len(self.modules) or not running:
            return self.kind
        root, innermost = running[0], running[-1]
        names = [name for name, module in root.named_modules() if module is innermost and name]
        return names[0] if names else self.kind


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
            site, verb = self._sites.get(address, CallSite(None)), "forward"
        module = site.module_path()
        lines = [f"{hazard.id}: {hazard.title} ({hazard.consequence.value})"]
        if module is not None:
            lines.append(f"  module:  {module}")
        if site.location is not None:
            lines.append(f"  {verb}: {site.location}")
        else:
            lines.append("  forward: made outside of hazard_guard(); run it inside to see its line")
        lines.append(f"  cure:    {hazard.advice}")
        return HazardError("\n".join(lines), hazard.id, module, site.location)


def current_site() -> CallSite:
    """The call being made: the innermost line outside of torch and of this package, and the running modules."""
    location = None
    modules: list[weakref.ref[nn.Module]] = []
    kind = None
    for frame in _frames():
        code = frame.f_code
        if code.co_name == _MODULE_CALL and isinstance(module := frame.f_locals.get("self"), nn.Module):
            modules.append(weakref.ref(module))
            kind = kind or type(module).__qualname__
        elif location is None and not code.co_filename.startswith((*_LIBRARIES, "<")):
            location = f"{code.co_filename}:{frame.f_lineno}"
    return CallSite(location, tuple(reversed(modules)), kind)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _address(common: Tensor | None, features: Tensor) -> int:
    # batch_norm in evaluation saves no statistics
    chosen = features if common is None or common.numel() == 0 else common
    return chosen.data_ptr()
