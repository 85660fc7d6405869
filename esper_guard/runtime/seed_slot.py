"""SeedSlot: a gradient-isolated side branch in a host network, with no layout copy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from esper_guard.runtime.isolation import blend_add, blend_gate, blend_multiply, isolate, straight_through
from esper_guard.runtime.seed_stage import (
    ACTIVE_STAGES,
    STAGES_WITHOUT_SEED,
    IllegalTransitionError,
    SeedStage,
    check_transition,
    checked_stage,
    next_stage,
)

Blend = Literal["add", "multiply", "gate"]


class SeedSlot(nn.Module):
    """A place in a host network where a side branch, the seed, is grown without disturbing the host.

    >>> slot = SeedSlot()
    >>> slot.germinate(nn.Conv2d(64, 64, 3, padding=1)).advance("training")
    >>> features = slot(features)  # the same values; the seed learns, the host can't feel it

    What comes out has the shape, dtype and memory format of what went in, in every stage and for every blend, and no
    bytes are copied to get there, forward or backward (benchmarks/seed_slot.py), but for a seed of another dtype and,
    in compiled code, for channels_last features of one channel or position. Dense features keep their very strides;
    of others the gaps are closed, as by any elementwise operation, and expanded ones have no format to keep.

    Inactive stages return the very tensor that they were given. TRAINING at alpha 0 is the straight-through
    estimator; all else, an ``alpha_override`` included, blends.

    ``isolate_gradients`` (can be set at any time) cuts the seed's input off from the gradient: the host is trained
    by its own path alone. False lets the two adapt to each other.

    The seed is hardened against native crashes (`esper_guard.harden`) when it germinates. That cure holds for the
    process and outlives the seed.

    An optimizer does not know a seed that germinates later: give it the parameters (``add_param_group``), and wrap
    the network in DDP after germinating. A deepcopy, such as an average of the model, does not follow the slot:
    germinate and prune it as well, and pass stage and alpha on (``copy.set_extra_state(slot.get_extra_state())``).

    State dict: the seed under ``seed.``, the gate under ``gate.``, and as ``_extra_state`` a dict of plain values
    (stage, alpha, blend, isolate_gradients). Germinate the same seed before loading.

    Args:
        isolate_gradients: as above.
        blend: ``"add"``, ``"multiply"`` or ``"gate"`` (`blend_add`, `blend_multiply`, `blend_gate`).
    """

    seed: nn.Module | None
    gate: nn.Module | None

    def __init__(self, *, isolate_gradients: bool = True, blend: Blend = "add") -> None:
        super().__init__()
        self.isolate_gradients = isolate_gradients
        self._blend = _checked_blend(blend)
        self.seed = None
        self.gate = None
        self._stage = SeedStage.DORMANT
        self.set_alpha(0.0)

    @property
    def stage(self) -> SeedStage:
        """The current stage; `advance` changes it."""
        return self._stage

    @property
    def alpha(self) -> float:
        """The seed's share in the blend, from 0 to 1."""
        return self._alpha_value

    @property
    def blend(self) -> Blend:
        """How seed and host are put together: ``"add"``, ``"multiply"`` or ``"gate"``.

        Can be set; raises ValueError for another value, and where a seed has a gate that the blend does not take, or
        the other way round.
        """
        return self._blend

    @blend.setter
    def blend(self, blend: Blend) -> None:
        if self.seed is not None and (_checked_blend(blend) == "gate") != (self.gate is not None):
            without = "without" if self.gate is None else "with"
            raise ValueError(
                f"the seed germinated {without} a gate: the blend '{blend}' is set by germinate()"
            )
        self._blend = _checked_blend(blend)

    @property
    def is_active(self) -> bool:
        """Whether the seed takes part in `forward`."""
        return self._stage in ACTIVE_STAGES

    def germinate(
        self,
        seed: nn.Module,
        *,
        blend: Blend | None = None,
        gate: nn.Module | None = None,
        harden: bool = True,
    ) -> SeedSlot:
        """Attach a seed to a dormant slot; it takes no part before ``advance("training")``.

        Args:
            seed: maps features to features of the same shape, and leaves its input as it is. Its dtype, device and
                training mode stay what they are.
            blend: overrides the slot's blend.
            gate: for the blend ``"gate"``: maps the seed's input to a value for each sample (`FeatureGate` is one).
            harden: protect seed and gate from native crashes on builds that have them (`esper_guard.harden`).

        Returns:
            The slot itself.

        Raises:
            TypeError: seed or gate is not a module.
            ValueError: the blend is unknown, or it is ``"gate"`` without a gate or the other way round.
            IllegalTransitionError: the slot is not dormant.
        """
        blend = _checked_blend(self.blend if blend is None else blend)
        if not isinstance(seed, nn.Module):
            raise TypeError(f"a seed is an nn.Module, not {type(seed).__qualname__}")
        if gate is not None and not isinstance(gate, nn.Module):
            raise TypeError(f"a gate is an nn.Module, not {type(gate).__qualname__}")
        if (blend == "gate") != (gate is not None):
            given = "needs gate=..., for instance FeatureGate(channels)" if gate is None else "takes no gate"
            raise ValueError(f"the blend '{blend}' {given}")
        check_transition(self._stage, SeedStage.GERMINATED)
        if harden:
            from esper_guard.runtime.hazards import harden as protect

            protect(seed)
            if gate is not None:
                protect(gate)
        self.seed, self.gate, self._blend = seed, gate, blend
        self._enter(SeedStage.GERMINATED)
        return self

    def advance(self, stage: SeedStage | str | None = None) -> SeedSlot:
        """Go on to a stage, by default to the next one towards FOSSILIZED (or DORMANT, after pruning).

        Entering HOLDING sets alpha to 1, entering PRUNED removes seed and gate and sets alpha to 0.

        Returns:
            The slot itself.

        Raises:
            IllegalTransitionError: the stage can't follow the current one, or it is GERMINATED (`germinate` does it).
            ValueError: there is no such stage.
        """
        wanted = next_stage(self._stage) if stage is None else checked_stage(stage)
        check_transition(self._stage, wanted)
        if wanted is SeedStage.GERMINATED:
            raise IllegalTransitionError("a dormant slot has no seed: call germinate(seed)")
        self._enter(wanted)
        return self

    def prune(self) -> SeedSlot:
        """Remove the seed: ``advance(SeedStage.PRUNED)``.

        Raises:
            IllegalTransitionError: there is no seed, or it is fossilized.
        """
        return self.advance(SeedStage.PRUNED)

    def set_alpha(self, alpha: float) -> SeedSlot:
        """Set the seed's share in the blend, clamped to [0, 1].

        Returns:
            The slot itself.

        Raises:
            ValueError: ``alpha`` is NaN.
        """
        if math.isnan(alpha):
            raise ValueError("alpha is NaN")
        self._alpha_value = min(max(float(alpha), 0.0), 1.0)
        self._part = self._current_part()
        self._renew_alpha_tensor()
        return self

    def forward(self, host_features: Tensor, alpha_override: float | Tensor | None = None) -> Tensor:
        """The host's features with the seed's part in them.

        Args:
            host_features: (N, C, H, W), (N, C, D, H, W) or (B, T, C).
            alpha_override: instead of the slot's alpha, for this call: a number, or a tensor with a value for each
                sample, of shape (N, 1, 1, 1) or (N,), to run several configurations in one batch.

        Returns:
            A tensor of the shape, dtype and memory format of ``host_features``; the very same one in a stage that
            is not active.

        Raises:
            RuntimeError: seed or gate wrote to its input in place, which would change the host's features. Autograd's
                version counter tells; it does not count in compiled code, under ``torch.func.vmap``, through
                ``.data``, nor for tensors made in ``torch.inference_mode``. So try a new seed in eager training.
            TypeError: the seed returned something else than a tensor, or the features are integers.
            ValueError: the seed returned another shape, or the override fits neither samples nor features.
        """
        if self._part == "none":
            return host_features
        seed = self.seed
        assert seed is not None
        seed_input = isolate(host_features) if self.isolate_gradients else host_features
        seed_features = _run(seed, seed_input, "seed")
        if not isinstance(seed_features, Tensor) or seed_features.shape != host_features.shape:
            raise _wrong_output(seed, seed_features, host_features)
        if self._part == "straight_through" and alpha_override is None:
            return straight_through(host_features, seed_features)
        alpha = self._current_alpha(host_features.device) if alpha_override is None else alpha_override
        if self.blend == "multiply":
            return blend_multiply(host_features, seed_features, alpha, seed_input=seed_input)
        if self.blend == "gate":
            assert self.gate is not None
            return blend_gate(host_features, seed_features, alpha, _run(self.gate, seed_input, "gate"))
        return blend_add(host_features, seed_features, alpha)

    def extra_repr(self) -> str:
        return (
            f"stage={self._stage.value}, alpha={self.alpha:g}, blend={self.blend}, "
            f"isolate_gradients={self.isolate_gradients}"
        )

    def get_extra_state(self) -> dict[str, Any]:
        """Stage, alpha, blend and isolation as plain values, which ``torch.load(weights_only=True)`` accepts."""
        return {
            "version": 1,
            "stage": self._stage.value,
            "alpha": self.alpha,
            "blend": self.blend,
            "isolate_gradients": self.isolate_gradients,
        }

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # load_state_dict reports what does not fit together, as it does for sizes, after all the other modules.
        try:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
        except _UnfitStateError as error:
            error_msgs.append(f"{prefix.removesuffix('.')}: {error}" if prefix else str(error))

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave. ``load_state_dict`` does so.

        Raises:
            ValueError: it is not such a state, or the slot has a seed where the saved one had none, or the other way
                round; nothing is changed then. ``load_state_dict`` raises a RuntimeError with the slot's name
                instead, after it has loaded the other modules, as it does for sizes that differ.
        """
        try:
            self._take_over(state)
        except ValueError as error:
            raise _UnfitStateError(str(error)) from None

    def _take_over(self, state: dict[str, Any]) -> None:
        stage, alpha, blend, isolate_gradients = _checked_state(state)
        if (stage in STAGES_WITHOUT_SEED) != (self.seed is None):
            saved_with = "without a seed" if stage in STAGES_WITHOUT_SEED else "with a seed"
            remedy = (
                "load it into a fresh SeedSlot" if self.seed is not None else "germinate the same seed first"
            )
            raise ValueError(f"the SeedSlot was saved {saved_with} (stage {stage.value}): {remedy}")
        if stage not in STAGES_WITHOUT_SEED and (blend == "gate") != (self.gate is not None):
            raise ValueError(
                f"the SeedSlot was saved with the blend '{blend}': germinate the seed with the same"
            )
        self._blend, self.isolate_gradients, self._stage = blend, isolate_gradients, stage
        self.set_alpha(alpha)

    def _enter(self, stage: SeedStage) -> None:
        self._stage = stage
        if stage is SeedStage.PRUNED:
            self.seed = self.gate = None
        alpha = {SeedStage.GERMINATED: 0.0, SeedStage.HOLDING: 1.0, SeedStage.PRUNED: 0.0}
        self.set_alpha(alpha.get(stage, self._alpha_value))

    def _current_part(self) -> Literal["none", "straight_through", "blend"]:
        # Compiled code is compiled anew where this differs, instead of for every stage and alpha.
        if not self.is_active:
            return "none"
        straight_through = self._stage is SeedStage.TRAINING and self._alpha_value == 0.0
        return "straight_through" if straight_through else "blend"

    def _renew_alpha_tensor(self) -> None:
        # No buffer: conversions would round it, and averages of models and DDP write to buffers. A new tensor rather
        # than fill_(): a backward that is still to come may need the old one.
        devices = (parameter.device for parameter in self.parameters() if not parameter.is_meta)
        device = next(devices, torch.device("cpu"))
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        with torch.inference_mode(False):  # else later training could not save it for its backward
            self._alpha_tensor = torch.tensor(self._alpha_value, dtype=dtype, device=device)

    def _current_alpha(self, device: torch.device) -> float | Tensor:
        # Compiled code takes the tensor, so that a new alpha does not mean a new compilation.
        return self._alpha_tensor.to(device) if torch.compiler.is_compiling() else self._alpha_value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SeedSlot:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._renew_alpha_tensor()  # follow the seed to its device
        return self


class _UnfitStateError(ValueError):
    """What can't be taken over from a state dict."""


def _run(module: nn.Module, seed_input: Tensor, role: str) -> Any:
    # Compiled code and inference tensors don't count versions.
    watched = not (torch.compiler.is_compiling() or seed_input.is_inference())
    version = seed_input._version if watched else 0
    result = module(seed_input)
    if watched and seed_input._version != version:
        raise _changed_in_place(module, role)
    return result


def _changed_in_place(module: nn.Module, role: str) -> RuntimeError:
    kind = type(module).__qualname__
    suspects = [name or kind for name, part in module.named_modules() if getattr(part, "inplace", False)]
    where = f" (inplace=True: {', '.join(suspects)})" if suspects else ""
    return RuntimeError(
        f"the {role} ({kind}) wrote to its input, or to a tensor of the same memory, in place, and the host reads it, "
        f"too{where}: make it work out of place"
    )


def _wrong_output(seed: nn.Module, seed_features: object, host_features: Tensor) -> Exception:
    kind = type(seed).__qualname__
    if not isinstance(seed_features, Tensor):
        return TypeError(f"the seed ({kind}) returned {type(seed_features).__qualname__}, not a tensor")
    return ValueError(
        f"the seed ({kind}) returned shape {tuple(seed_features.shape)} for features of shape "
        f"{tuple(host_features.shape)}: a seed keeps the shape of what it is given"
    )


def _checked_state(state: Any) -> tuple[SeedStage, float, Blend, bool]:
    names = ("version", "stage", "alpha", "blend", "isolate_gradients")
    if not isinstance(state, dict) or not state.keys() >= set(names):
        raise ValueError(f"this is not the extra state of a SeedSlot: {state!r}")
    version, stage, alpha, blend, isolate_gradients = (state[name] for name in names)
    if version != 1:
        raise ValueError(
            f"the SeedSlot was saved by another release (extra state version {version!r}, not 1)"
        )
    if not isinstance(alpha, int | float) or not 0 <= alpha <= 1 or not isinstance(isolate_gradients, bool):
        raise ValueError(f"the extra state of a SeedSlot is damaged: {state!r}")
    return checked_stage(stage), float(alpha), _checked_blend(blend), isolate_gradients


def _checked_blend(blend: Any) -> Blend:
    if blend not in get_args(Blend):
        raise ValueError(f"there is no blend {blend!r}; the blends are {', '.join(get_args(Blend))}")
    checked: Blend = blend
    return checked
