"""The backward of BatchNorm and InstanceNorm on the CPU mixes up the memory orders of one-image batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from esper_guard.runtime.formats import GHOST, has_strides, layout_of
from esper_guard.runtime.hazards.hazard import Consequence, Forward, Hazard, OperatorCure, may_call


def triggers(grad_output: Tensor, input: Tensor, *others: Any) -> bool:
    """One of gradient and input is a ghost (channels_last in memory, NCHW by its strides), the other is NCHW."""
    if not input.is_cpu or input.dim() not in (4, 5) or input.shape[0] != 1:
        return False
    if not (has_strides(input) and has_strides(grad_output)):
        return False
    if layout_of(grad_output) == GHOST:
        return layout_of(input) != GHOST and input.is_contiguous()
    return layout_of(input) == GHOST and grad_output.is_contiguous()


def repair(native: Callable[..., Any], grad_output: Tensor, input: Tensor, *others: Any) -> Any:
    """Give the ghost the strides of the format that its memory has; moves no bytes."""
    return native(_channels_last(grad_output), _channels_last(input), *others)


def _channels_last(tensor: Tensor) -> Tensor:
    if layout_of(tensor) != GHOST:
        return tensor
    strides = list(tensor.stride())
    strides[0] = tensor.numel()  # a ghost has one sample
    unit = [dimension for dimension, size in enumerate(tensor.shape) if size == 1 and dimension > 1]
    for dimension in reversed(unit):
        inner = dimension + 1 if dimension + 1 < tensor.dim() else 1
        strides[dimension] = strides[inner] * tensor.shape[inner]
    return tensor.as_strided(tensor.shape, strides)


def probe() -> bool:
    """InstanceNorm of one image, with a channels_last gradient, against the same gradient in NCHW."""
    norm = nn.InstanceNorm2d(4, affine=True).double()
    x, gradient = torch.randn(2, 1, 4, 5, 6, dtype=torch.double)

    def weight_gradient(memory_format: torch.memory_format) -> Tensor:
        return torch.autograd.grad(norm(x), norm.weight, gradient.to(memory_format=memory_format))[0]

    return not torch.allclose(weight_gradient(torch.contiguous_format), weight_gradient(torch.channels_last))


HAZARD = Hazard(
    id="batch-norm-ghost-gradient",
    title="InstanceNorm's and BatchNorm's backward of a one-image batch reads channels_last memory as NCHW",
    consequence=Consequence.WRONG_NUMBERS,
    devices=("cpu",),
    operators=("native_batch_norm_backward.default", "batch_norm_backward.default"),
    forward=Forward(
        (
            "native_batch_norm.default",
            "_batch_norm_with_update.default",
            "_batch_norm_with_update_functional.default",
            "_batch_norm_no_update.default",
        ),
        result=1,
        argument=5,
        features=1,
        weight=2,
    ),
    triggers=triggers,
    probe=probe,
    cure=OperatorCure(repair),
    concerns=may_call(nn.modules.batchnorm._NormBase),
    advice="esper_guard.harden(model), or make the gradient of its result contiguous",
    references=("aten/src/ATen/native/Normalization.cpp", "tests/runtime/test_hazards.py"),
)
