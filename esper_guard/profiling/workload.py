"""What is measured: a model, or variants of one, with inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper_guard.profiling.builtin import BuiltIn
from esper_guard.profiling.failures import USER_ERRORS, ProfileError, described, first_line
from esper_guard.profiling.random_state import reseed
from esper_guard.profiling.remedies import remedy
from esper_guard.profiling.shapes import Shape
from esper_guard.profiling.structure import tensors_in
from esper_guard.profiling.target import Target, load_target
from esper_guard.runtime.hazards import unharden


@dataclass(frozen=True)
class Workload:
    """Models that do the same work on the same inputs."""

    name: str
    models: dict[str | None, nn.Module]
    """By the way of isolation; one under None if it is the user's model."""
    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    """Inputs by name."""
    own_inputs: bool = False
    """Whether the user's factory gave them."""
    hardened: list[nn.Module] = field(default_factory=list)
    """Models that were hardened for the measurement, as far as that is known, and their copies."""

    @contextmanager
    def unhardened_afterwards(self) -> Iterator[None]:
        """Cures hold for a whole process: they end with the measurement that needed them."""
        try:
            yield
        finally:
            for model in self.hardened:
                unharden(model)
            self.hardened.clear()

    @property
    def shown_inputs(self) -> list[str]:
        """``["8x3x224x224 float32"]``, of the tensors."""
        return [
            f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"
            for tensor in tensors_in((self.inputs, self.keywords))
        ]

    @property
    def with_inputs(self) -> str:
        """``"with inputs 8x3x224x224 float32"``."""
        return f"with inputs {', '.join(self.shown_inputs) or 'no tensors'}"


def built_in_workload(built_in: BuiltIn, isolations: Sequence[str], seed: int) -> Workload:
    """The built-in model in one size, with each of these ways of isolation and the same weights in each.

    Raises:
        ProfileError: it can't be allocated.
    """
    models: dict[str | None, nn.Module] = {}
    try:
        for isolation in isolations:
            reseed(seed)
            models[isolation] = built_in.build(isolation)
        images = torch.randn(built_in.input_sizes)
        return Workload(built_in.name, models, (images,), {}, hardened=[*models.values()])
    except (RuntimeError, MemoryError) as error:
        for model in models.values():
            unharden(model)
        raise ProfileError(
            f"{built_in.name} can't be made: {described(error)}: give smaller sizes with --batch, --channels and "
            "--resolution"
        ) from error


def target_workload(target: Target, shapes: Sequence[Shape], seed: int) -> Workload:
    """What the user names.

    Raises:
        ProfileError: it can't be loaded, gives no module, or no inputs are known or can be made.
    """
    reseed(seed)
    made = load_target(target)
    inputs: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[0], nn.Module):
        made, given = made
        if isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
            keywords = dict(given)
        else:
            inputs = tuple(given) if isinstance(given, tuple | list) else (given,)
    if not isinstance(made, nn.Module):
        raise ProfileError(
            f"{target.text} gives a {type(made).__qualname__}: it has to give an nn.Module, or a tuple of a module "
            "and its inputs"
        )
    if shapes:
        dtype = next(
            (tensor.dtype for tensor in made.parameters() if tensor.is_floating_point()), torch.float32
        )
        inputs, keywords = tuple(_random(shape, dtype) for shape in shapes), {}
    if not inputs and not keywords:
        raise ProfileError(f"{target.text} gives no inputs: name their shapes, as in --input 8x3x224x224")
    workload = Workload(target.text, {None: made}, inputs, keywords, own_inputs=not shapes)
    if any(nn.parameter.is_lazy(tensor) for tensor in (*made.parameters(), *made.buffers())):
        _make_weights(workload, made)
    return workload


def _make_weights(workload: Workload, model: nn.Module) -> None:
    """Of lazy modules; or each variant would make weights of its own."""
    try:
        with torch.no_grad():
            model(*workload.inputs, **workload.keywords)
    except USER_ERRORS as error:
        raise ProfileError(
            f"{workload.name} raised {described(error)} {workload.with_inputs}, when its lazy modules were to make "
            f"their weights{remedy(error, own_inputs=workload.own_inputs)}"
        ) from error


def _random(shape: Shape, default: torch.dtype) -> Tensor:
    """Normally distributed, or zeros and ones of dtypes that can't be."""
    dtype: torch.dtype = default if shape.dtype is None else getattr(torch, shape.dtype)
    try:
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(shape.sizes).to(dtype)
        return torch.randint(0, 2, shape.sizes).to(dtype)
    except (RuntimeError, TypeError, MemoryError) as error:
        raise ProfileError(
            f"--input {'x'.join(map(str, shape.sizes))} can't be allocated ({first_line(error)}): give smaller sizes"
        ) from error
