"""Known native bugs around memory formats: what triggers them, whether this machine has them, and cures.

Each bug is one file in `esper_guard.runtime.hazards.known`; `HAZARDS` lists them. `hazard_guard` turns a crash to
come into a Python exception, `harden` makes the call right, and ``esper-guard doctor`` probes this machine.
"""

from esper_guard.runtime.hazards.guard import hazard_guard
from esper_guard.runtime.hazards.hardening import harden, is_hardened, unharden
from esper_guard.runtime.hazards.hazard import Consequence, Hazard, HazardError
from esper_guard.runtime.hazards.registry import HAZARDS

__all__ = [
    "HAZARDS",
    "Consequence",
    "Hazard",
    "HazardError",
    "harden",
    "hazard_guard",
    "is_hardened",
    "unharden",
]
