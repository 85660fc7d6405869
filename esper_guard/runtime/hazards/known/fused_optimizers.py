"""Fused optimizers on the CPU walk parameter, gradient and state in memory order, whatever their strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from esper_guard.runtime.hazards.hazard import Consequence, Hazard, OperatorCure, Target


def triggers(parameters: list[Tensor], *lists: Any, **settings: Any) -> bool:
    """A parameter on the CPU, and a gradient or state of it, that lie in memory in different orders."""
    return next(_misfits(parameters, lists), None) is not None


def repair(native: Callable[..., Any], parameters: list[Tensor], *lists: Any, **settings: Any) -> Any:
    """Step with copies in the parameter's order, and copy them back."""
    aligned = [list(tensors) for tensors in lists]
    for parameter, place, index in _misfits(parameters, lists):
        copy = torch.empty_like(parameter, dtype=lists[place][index].dtype)
        aligned[place][index] = copy.copy_(lists[place][index])
    result = native(parameters, *aligned, **settings)
    for original, used in zip(lists, aligned, strict=True):
        for tensor, copy in zip(original, used, strict=True):
            if copy is not tensor:
                tensor.copy_(copy)
    return result


def _misfits(parameters: list[Tensor], lists: tuple[Any, ...]) -> Iterator[tuple[Tensor, int, int]]:
    """Parameter, and the position of the tensor beside it: which list, which entry."""
    for place, tensors in enumerate(lists):
        for index, (parameter, tensor) in enumerate(zip(parameters, tensors, strict=False)):
            if parameter.is_cpu and parameter.shape == tensor.shape and _order_differs(parameter, tensor):
                yield parameter, place, index


def _order_differs(parameter: Tensor, tensor: Tensor) -> bool:
    strides = zip(parameter.shape, parameter.stride(), tensor.stride(), strict=True)
    return any(size > 1 and ours != theirs for size, ours, theirs in strides)


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
