"""What is known of a native bug, as data and three functions: trigger, probe, cure."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

Target: TypeAlias = "nn.Module | torch.optim.Optimizer"
Operator: TypeAlias = Callable[..., Any]


class Consequence(enum.Enum):
    """What a bug does to the program."""

    CRASH = "crash"
    """The process dies."""
    WRONG_NUMBERS = "wrong numbers"
    """Results or gradients are wrong, with no message."""
    ERROR = "error"
    """An exception, where the call is right."""
    SLOW = "slow"
    """The right result, at a needless cost."""


@dataclass(frozen=True)
class Forward:
    """How a call in the backward is traced to the call in the forward that it belongs to.

    Both have a tensor in common that the forward allocates and autograd saves.
    """

    operators: tuple[str, ...]
    """Of the forward; their first two arguments are features and weight."""
    result: int
    """Position of the common tensor in what the forward returns."""
    argument: int
    """Its position among the arguments of the backward."""
    features: int
    weight: int
    """Positions of features and weight among the arguments of the backward."""


@dataclass(frozen=True)
class OperatorCure:
    """A cure at the root: the call is repaired where torch dispatches it, whoever makes it.

    ``repair(operator, *args, **kwargs)`` returns what the operator should have; ``operator`` is the native one.
    """

    repair: Callable[..., Any]


@dataclass(frozen=True)
class TargetCure:
    """A cure of one module or optimizer: ``apply(target)`` changes it in place, ``undo(target)`` restores it."""

    apply: Callable[[Any], None]
    undo: Callable[[Any], None]


@dataclass(frozen=True, eq=False)
class Hazard:
    """A known native bug.

    The first and the fixed release are torch versions; None means that every release tried has it, from the oldest
    that this package supports (2.4), or up to the newest tried (2.15).
    """

    id: str
    title: str
    consequence: Consequence
    devices: tuple[str, ...] | None
    """Device types that have it; None for a bug in torch's Python code, which every device runs."""
    triggers: Callable[..., bool]
    """Whether a concrete call has it: takes the arguments of the operator, or those that its file names."""
    probe: Callable[[], bool]
    """Tries it out: True if this build has it. May kill the process, so call it in a child (`diagnose`)."""
    cure: OperatorCure | TargetCure
    concerns: Callable[[Target], bool]
    """Whether a module by itself, without its children, or an optimizer, might make the call."""
    advice: str
    """What to do, in one sentence."""
    references: tuple[str, ...]
    operators: tuple[str, ...] = ()
    """The ``aten`` operators that have it; none for a bug in torch's Python code."""
    forward: Forward | None = None
    first: str | None = None
    fixed: str | None = None

    def affects(self, version: str | None = None) -> bool:
        """Whether a torch release has the bug, by its version (default: the installed one).

        A pre-release of the fixed version counts as affected: it may be older than the fix.
        """
        release = torch.torch_version.TorchVersion(version or torch.__version__)
        return (self.first is None or release >= self.first) and (self.fixed is None or release < self.fixed)


class HazardError(RuntimeError):
    """A call that would crash the process or corrupt numbers, stopped before it did.

    Attributes:
        hazard: id of the hazard.
        module: path of the module that made the call, such as ``"features.3.norm"``, if one did.
        location: ``"file:line"`` of the user's code that made it, if known.
    """

    def __init__(
        self, message: str, hazard: str, module: str | None = None, location: str | None = None
    ) -> None:
        super().__init__(message, hazard, module, location)
        self.hazard = hazard
        self.module = module
        self.location = location

    def __str__(self) -> str:
        return str(self.args[0])


HazardError.__module__ = "esper_guard"  # as users import it, and as test reports can show it


def may_call(*kinds: type[nn.Module]) -> Callable[[Target], bool]:
    """For `Hazard.concerns`: modules of these kinds, and those of classes whose ``forward`` torch did not write."""

    def concerns(target: Target) -> bool:
        return isinstance(target, kinds) or (
            isinstance(target, nn.Module) and not type(target).__module__.startswith("torch.nn.")
        )

    return concerns
