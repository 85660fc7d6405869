"""Fused optimizers on the CPU walk parameter, gradient and state in memory order, whatever their strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from esper_guard.runtime.hazards.hazard import Consequence, Hazard, OperatorCure, Target


def triggers(parameters: list[Tensor], *lists: Any, **settings: Any) -> bool:
    """A parameter on the CPU with gaps in memory, or with a gradient or state that lies in another order."""
    return any(
        parameter.is_cpu and not _aligned([parameter, *beside])
        for parameter, beside in _with_what_is_beside(parameters, lists)
    )


def repair(native: Callable[..., Any], parameters: list[Tensor], *lists: Any, **settings: Any) -> Any:
    """Step with dense copies in one order, and copy back what the step writes."""
    replaced = [parameters, *lists]
    for index, (parameter, beside) in enumerate(_with_what_is_beside(parameters, lists)):
        if _aligned([parameter, *beside]):
            continue
        for place, tensors in enumerate(replaced):
            if index < len(tensors) and tensors[index].shape == parameter.shape:
                copy = torch.empty_like(parameter, dtype=tensors[index].dtype)
                replaced[place] = [*tensors[:index], copy.copy_(tensors[index]), *tensors[index + 1 :]]
    result = native(*replaced, **settings)
    for place, (originals, used) in enumerate(zip((parameters, *lists), replaced, strict=True)):
        if place == _GRADIENTS and settings.get("grad_scale") is None:
            continue  # only read then, and an expanded gradient could not be written
        for original, copy in zip(originals, used, strict=True):
            if copy is not original and not _overlaps(original):
                original.copy_(copy)
    return result


_GRADIENTS = 1


def _with_what_is_beside(
    parameters: list[Tensor], lists: tuple[Any, ...]
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Each parameter, with its gradient and those of its states that have a value for each of its elements."""
    for index, parameter in enumerate(parameters):
        beside = [tensors[index] for tensors in lists if index < len(tensors)]
        yield parameter, [tensor for tensor in beside if tensor.shape == parameter.shape]


def _aligned(tensors: list[Tensor]) -> bool:
    """Whether tensors of one shape have their elements in one order, with no gaps."""
    orders = [
        sorted(
            (stride, dimension, size)
            for dimension, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True))
            if size > 1
        )
        for t in tensors
    ]
    if any(order != orders[0] for order in orders):
        return False
    packed = 1
    for stride, _, size in orders[0]:
        if stride != packed:
            return False
        packed *= size
    return True


def _overlaps(tensor: Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def probe() -> bool:
    """A step with an NCHW state after the weight became channels_last, fused against not."""

    def weight_after_two_steps(fused: bool) -> Tensor:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3, 2, 5))
        optimizer = torch.optim.Adam([weight], lr=0.1, fused=fused)
        weight.grad = torch.randn(4, 3, 2, 5)
        optimizer.step()
        weight.data = weight.data.to(memory_format=torch.channels_last)
        weight.grad = torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last)
        optimizer.step()
        return weight.detach()

    return not torch.allclose(weight_after_two_steps(True), weight_after_two_steps(False), atol=1e-3)


def _concerns(target: Target) -> bool:
    return isinstance(target, torch.optim.Optimizer) and any(
        group.get("fused") for group in target.param_groups
    )


_NAMES = ("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_")

HAZARD = Hazard(
    id="fused-optimizer-layout",
    title="a fused optimizer pairs the wrong elements when a parameter and its gradient or state differ in layout",
    consequence=Consequence.WRONG_NUMBERS,
    devices=("cpu",),
    operators=tuple(f"{name}.{overload}" for name in _NAMES for overload in ("default", "tensor_lr")),
    triggers=triggers,
    probe=probe,
    cure=OperatorCure(repair),
    concerns=_concerns,
    advice="esper_guard.harden(optimizer), or convert the model before making the optimizer and loading its state",
    references=(
        "https://github.com/pytorch/pytorch/pull/123074",
        "https://github.com/pytorch/pytorch/issues/106951",
        "tests/runtime/test_hazards.py",
    ),
)
