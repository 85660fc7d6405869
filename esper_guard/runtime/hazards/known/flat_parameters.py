"""LBFGS and ``parameters_to_vector`` flatten with ``.view``, which channels_last weights refuse."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esper_guard.runtime.formats import has_strides
from esper_guard.runtime.hazards.hazard import Consequence, Hazard, Target, TargetCure


def triggers(parameters: Iterable[Tensor]) -> bool:
    """Parameters, or gradients, of which one can't be viewed as a vector."""
    return any(not _viewable(parameter) for parameter in parameters)


def _viewable(tensor: Tensor) -> bool:
    try:
        tensor.view(-1)
    except RuntimeError:
        return False
    return True


def _apply(optimizer: torch.optim.LBFGS) -> None:
    optimizer.__dict__["_gather_flat_grad"] = partial(_gather_contiguous, optimizer)


def _undo(optimizer: torch.optim.LBFGS) -> None:
    optimizer.__dict__.pop("_gather_flat_grad", None)


def _gather_contiguous(optimizer: Any) -> Any:
    for parameter in optimizer._params:
        if parameter.grad is not None and has_strides(parameter.grad):
            parameter.grad = parameter.grad.contiguous()
    return type(optimizer)._gather_flat_grad(optimizer)


def _concerns(target: Target) -> bool:
    return isinstance(target, torch.optim.LBFGS)


def probe() -> bool:
    """Both calls on a channels_last weight."""
    return _raises(_step) or _raises(_flatten)


def _step() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    optimizer: Any = torch.optim.LBFGS([weight])

    def closure() -> float:
        loss = weight.square().sum()
        weight.grad = torch.autograd.grad(loss, weight)[0]
        return loss.item()

    optimizer.step(closure)


def _flatten() -> None:
    torch.nn.utils.parameters_to_vector([torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)])


def _raises(call: Any) -> bool:
    try:
        call()
    except RuntimeError:
        return True
    return False


HAZARD = Hazard(
    id="flat-parameter-view",
    title="torch.optim.LBFGS and parameters_to_vector raise on channels_last weights",
    consequence=Consequence.ERROR,
    devices=None,
    triggers=triggers,
    probe=probe,
    cure=TargetCure(_apply, _undo),
    concerns=_concerns,
    advice="esper_guard.harden(optimizer) for LBFGS; torch.cat([p.reshape(-1) for p in parameters]) for the vector",
    references=(
        "https://github.com/pytorch/pytorch/issues/130346",
        "torch/optim/lbfgs.py, torch/nn/utils/convert_parameters.py",
    ),
)
