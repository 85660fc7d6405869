"""Find, prove and prevent hidden tensor copies and lost memory formats in PyTorch code.

The names in ``__all__`` are imported at their first use: most need torch, which the linter does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper_guard.integrations.annotated import ChannelsLast as ChannelsLast
    from esper_guard.integrations.annotated import ChannelsLast3d as ChannelsLast3d
    from esper_guard.integrations.annotated import Contiguous as Contiguous
    from esper_guard.integrations.annotated import SameFormatAs as SameFormatAs
    from esper_guard.runtime.ddp import StrideMismatch as StrideMismatch
    from esper_guard.runtime.ddp import check_ddp as check_ddp
    from esper_guard.runtime.equivalence import assert_layout_equivalent as assert_layout_equivalent
    from esper_guard.runtime.expectations.error import MemoryFormatError as MemoryFormatError
    from esper_guard.runtime.expectations.error import MemoryFormatWarning as MemoryFormatWarning
    from esper_guard.runtime.expectations.expects import expects as expects
    from esper_guard.runtime.expectations.first_loss import first_loss as first_loss
    from esper_guard.runtime.expectations.model_guard import guard as guard
    from esper_guard.runtime.feature_gate import FeatureGate as FeatureGate
    from esper_guard.runtime.formats import Layout as Layout
    from esper_guard.runtime.formats import layout_of as layout_of
    from esper_guard.runtime.hazards import HAZARDS as HAZARDS
    from esper_guard.runtime.hazards import HazardError as HazardError
    from esper_guard.runtime.hazards import harden as harden
    from esper_guard.runtime.hazards import hazard_guard as hazard_guard
    from esper_guard.runtime.hazards import is_hardened as is_hardened
    from esper_guard.runtime.hazards import unharden as unharden
    from esper_guard.runtime.isolation import blend_add as blend_add
    from esper_guard.runtime.isolation import blend_gate as blend_gate
    from esper_guard.runtime.isolation import blend_multiply as blend_multiply
    from esper_guard.runtime.isolation import isolate as isolate
    from esper_guard.runtime.isolation import straight_through as straight_through
    from esper_guard.runtime.predict import predict_layouts as predict_layouts
    from esper_guard.runtime.seed_slot import SeedSlot as SeedSlot
    from esper_guard.runtime.seed_stage import IllegalTransitionError as IllegalTransitionError
    from esper_guard.runtime.seed_stage import SeedStage as SeedStage
    from esper_guard.runtime.tracing import trace_layouts as trace_layouts
    from esper_guard.trace import Cost as Cost
    from esper_guard.trace import LayoutEvent as LayoutEvent
    from esper_guard.trace import LayoutTrace as LayoutTrace
    from esper_guard.trace import load_trace as load_trace
    from esper_guard.trace import merge as merge

__version__ = "0.1.0"

_HOMES = {
    "integrations.annotated": ("ChannelsLast", "ChannelsLast3d", "Contiguous", "SameFormatAs"),
    "runtime.ddp": ("StrideMismatch", "check_ddp"),
    "runtime.equivalence": ("assert_layout_equivalent",),
    "runtime.expectations.error": ("MemoryFormatError", "MemoryFormatWarning"),
    "runtime.expectations.expects": ("expects",),
    "runtime.expectations.first_loss": ("first_loss",),
    "runtime.expectations.model_guard": ("guard",),
    "runtime.feature_gate": ("FeatureGate",),
    "runtime.formats": ("Layout", "layout_of"),
    "runtime.hazards": ("HAZARDS", "HazardError", "harden", "hazard_guard", "is_hardened", "unharden"),
    "runtime.isolation": ("blend_add", "blend_gate", "blend_multiply", "isolate", "straight_through"),
    "runtime.predict": ("predict_layouts",),
    "runtime.seed_slot": ("SeedSlot",),
    "runtime.seed_stage": ("IllegalTransitionError", "SeedStage"),
    "runtime.tracing": ("trace_layouts",),
    "trace": ("Cost", "LayoutEvent", "LayoutTrace", "load_trace", "merge"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    import importlib

    try:
        module = importlib.import_module(f"{__name__}.{home}")
    except ModuleNotFoundError as error:
        if error.name in ("torch", "executing"):
            remedy = "pip install 'esper-guard[torch]'"
            raise ModuleNotFoundError(
                f"esper_guard.{name} needs {error.name}: {remedy}", name=error.name
            ) from error
        raise
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
