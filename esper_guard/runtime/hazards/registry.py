"""The known hazards, by id."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

from esper_guard.nearest import did_you_mean
from esper_guard.runtime.hazards.hazard import Hazard
from esper_guard.runtime.hazards.known import (
    assign_load,
    batch_norm,
    flat_parameters,
    fused_optimizers,
    group_norm,
)

HAZARDS: Final = MappingProxyType(
    {
        hazard.id: hazard
        for hazard in (
            group_norm.HAZARD,
            batch_norm.HAZARD,
            fused_optimizers.HAZARD,
            flat_parameters.HAZARD,
            assign_load.HAZARD,
        )
    }
)


def select(ids: Iterable[str] | None) -> list[Hazard]:
    """The hazards with these ids, or all.

    Raises:
        ValueError: there is no such hazard.
    """
    if ids is None:
        return list(HAZARDS.values())
    if isinstance(ids, str):
        ids = [ids]
    chosen = []
    for id in ids:
        if id not in HAZARDS:
            raise ValueError(f"there is no hazard '{id}'{did_you_mean(id, HAZARDS)}")
        chosen.append(HAZARDS[id])
    return chosen
