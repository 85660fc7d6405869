"""The stages of a seed, and which can follow which."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final


class SeedStage(enum.Enum):
    """Where a seed stands. `LEGAL_TRANSITIONS` says where it can go from there."""

    DORMANT = "dormant"
    """No seed."""
    GERMINATED = "germinated"
    """A seed is attached and takes no part yet."""
    TRAINING = "training"
    """The seed learns from the host's gradient; at alpha 0 it changes nothing that the host computes."""
    BLENDING = "blending"
    """Alpha, and with it the seed's part in the result, is for the user to raise or to lower."""
    HOLDING = "holding"
    """To be judged; alpha starts at 1."""
    FOSSILIZED = "fossilized"
    """Part of the host for good."""
    PRUNED = "pruned"
    """The seed was removed."""
    EMBARGOED = "embargoed"
    """Waiting, so that a removed seed is not replaced at once."""
    RESETTING = "resetting"
    """About to be dormant again."""


LEGAL_TRANSITIONS: Final = MappingProxyType(
    {
        SeedStage.DORMANT: (SeedStage.GERMINATED,),
        SeedStage.GERMINATED: (SeedStage.TRAINING, SeedStage.PRUNED),
        SeedStage.TRAINING: (SeedStage.BLENDING, SeedStage.PRUNED),
        SeedStage.BLENDING: (SeedStage.HOLDING, SeedStage.PRUNED),
        SeedStage.HOLDING: (SeedStage.FOSSILIZED, SeedStage.BLENDING, SeedStage.PRUNED),
        SeedStage.FOSSILIZED: (),
        SeedStage.PRUNED: (SeedStage.EMBARGOED,),
        SeedStage.EMBARGOED: (SeedStage.RESETTING,),
        SeedStage.RESETTING: (SeedStage.DORMANT,),
    }
)

ACTIVE_STAGES: Final = frozenset(
    {SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED}
)
STAGES_WITHOUT_SEED: Final = frozenset(
    {SeedStage.DORMANT, SeedStage.PRUNED, SeedStage.EMBARGOED, SeedStage.RESETTING}
)


class IllegalTransitionError(RuntimeError):
    """A stage can't follow another. The message names those that can."""


def next_stage(stage: SeedStage) -> SeedStage:
    """The next stage towards FOSSILIZED, or towards DORMANT after pruning.

    Raises:
        IllegalTransitionError: the stage is final.
    """
    following = LEGAL_TRANSITIONS[stage]
    if not following:
        raise IllegalTransitionError(f"{stage.value} is final")
    return following[0]


def check_transition(stage: SeedStage, wanted: SeedStage) -> None:
    """Nothing, or an error.

    Raises:
        IllegalTransitionError: ``wanted`` can't follow ``stage``.
    """
    legal = LEGAL_TRANSITIONS[stage]
    if wanted in legal:
        return
    if not legal:
        raise IllegalTransitionError(f"{stage.value} is final: {wanted.value} can't follow it")
    following = " or ".join(stage.value for stage in legal)
    raise IllegalTransitionError(f"{wanted.value} can't follow {stage.value}; what can is {following}")


def checked_stage(stage: SeedStage | str) -> SeedStage:
    """A stage, by itself or by its name in any case.

    Raises:
        ValueError: there is no such stage.
    """
    if isinstance(stage, SeedStage):
        return stage
    try:
        return SeedStage(stage.lower())
    except (ValueError, AttributeError):
        names = ", ".join(stage.value for stage in SeedStage)
        raise ValueError(f"there is no stage {stage!r}; the stages are {names}") from None
