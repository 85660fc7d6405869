"""Where the forward of a call in the backward was."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor

from esper_guard.runtime.callsite import CallSite, current_site
from esper_guard.runtime.hazards.hazard import Hazard, HazardError

_LIMIT = 10_000  # calls remembered; a backward seldom lies further back


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


def _address(common: Tensor | None, features: Tensor, weight: Tensor | None) -> object:
    if common is not None and common.numel():
        return common.data_ptr()
    # batch_norm in evaluation saves no statistics
    return features.data_ptr(), 0 if weight is None else weight.data_ptr()
