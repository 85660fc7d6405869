"""GroupNorm's backward on the CPU writes through a null pointer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esper_guard.runtime.formats import has_strides, layout_of
from esper_guard.runtime.hazards.hazard import Consequence, Forward, Hazard, OperatorCure, may_call

_SAFE_POSITIONS = 2048  # from here on the kernel takes another path


def triggers(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    samples: int,
    channels: int,
    positions: int,
    groups: int,
    output_mask: Sequence[bool],
) -> bool:
    """A channels_last input on the CPU, of fewer than 2,048 positions, whose gradient nobody asked for."""
    wants_input, *wants_parameters = output_mask
    refused = weight is None and any(wants_parameters)  # torch raises an error of its own
    return (
        not wants_input
        and not refused
        and input.is_cpu
        and positions < _SAFE_POSITIONS
        and has_strides(input)
        and layout_of(input).taken_for == "channels_last"
    )


def repair(native: Callable[..., Any], *arguments: Any) -> tuple[None, Tensor | None, Tensor | None]:
    """Ask for the input's gradient as well, and drop it."""
    *others, (_, wants_weight, wants_bias) = arguments
    _, weight, bias = native(*others, [True, wants_weight, wants_bias])
    return None, weight, bias


def probe() -> bool:
    """The smallest case; kills the process of an affected build."""
    x = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)
    norm = nn.GroupNorm(2, 4)
    norm(x).sum().backward()
    return False


HAZARD = Hazard(
    id="group-norm-null-write",
    title="GroupNorm's backward writes through a null pointer when its channels_last input needs no gradient",
    consequence=Consequence.CRASH,
    devices=("cpu",),
    first="2.0",
    fixed="2.14",
    operators=("native_group_norm_backward.default",),
    forward=Forward(("native_group_norm.default",), result=1, argument=2, features=1, weight=4),
    triggers=triggers,
    probe=probe,
    cure=OperatorCure(repair),
    concerns=may_call(nn.GroupNorm),
    advice="esper_guard.harden(model), or torch 2.14 or newer",
    references=(
        "https://github.com/pytorch/pytorch/pull/89485",
        "aten/src/ATen/native/cpu/group_norm_kernel.cpp",
        "tests/runtime/test_crash_matrix.py",
    ),
)
