"""What is measured: a model, or variants of one, with inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from esper_guard.profiling.builtin import BuiltIn
from esper_guard.profiling.failures import ProfileError
from esper_guard.profiling.shapes import Shape
from esper_guard.profiling.target import Target, load_target

INPUT_REMEDY = "give the inputs that it takes with --input 8x3x224x224, once for each argument"


class Workload(NamedTuple):
    """Models that do the same work on the same inputs."""

    name: str
    models: dict[str | None, nn.Module]
    """By the way of isolation; one under None if it is the user's model."""
    inputs: tuple[Any, ...]


def built_in_workload(built_in: BuiltIn, isolations: Sequence[str], seed: int) -> Workload:
    """The built-in model in one size, with each of these ways of isolation and the same weights in each."""
    models: dict[str | None, nn.Module] = {}
    for isolation in isolations:
        torch.manual_seed(seed)
        models[isolation] = built_in.build(isolation)
    return Workload(built_in.name, models, (torch.randn(built_in.input_sizes),))


def target_workload(target: Target, shapes: Sequence[Shape], seed: int) -> Workload:
    """What the user names.

    Raises:
        ProfileError: it can't be loaded, gives no module, or no inputs are known.
    """
    torch.manual_seed(seed)
    made = load_target(target)
    inputs: tuple[Any, ...] = ()
    if isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[0], nn.Module):
        made, given = made
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
        inputs = tuple(_random(shape, dtype) for shape in shapes)
    if not inputs:
        raise ProfileError(f"{target.text} gives no inputs: name their shapes, as in --input 8x3x224x224")
    if any(nn.parameter.is_lazy(tensor) for tensor in (*made.parameters(), *made.buffers())):
        with torch.no_grad():
            made(*inputs)  # or each variant would make weights of its own
    return Workload(target.text, {None: made}, inputs)


def shown_inputs(inputs: tuple[Any, ...]) -> list[str]:
    """``["8x3x224x224 float32"]``, of the tensors."""
    return [
        f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"
        for tensor in pytree.tree_leaves(inputs)
        if isinstance(tensor, Tensor)
    ]


def _random(shape: Shape, default: torch.dtype) -> Tensor:
    """Normally distributed, or zeros and ones of dtypes that can't be."""
    dtype: torch.dtype = default if shape.dtype is None else getattr(torch, shape.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape.sizes).to(dtype)
    return torch.randint(0, 2, shape.sizes).to(dtype)
