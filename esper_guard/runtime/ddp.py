"""``check_ddp``: whether gradients have the strides of their parameters."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from esper_guard.runtime.formats import has_strides
from esper_guard.runtime.model_copy import check_module
from esper_guard.runtime.tracing.comparison import same_strides


class StrideMismatch(NamedTuple):
    """A parameter whose gradient has other strides."""

    name: str
    shape: tuple[int, ...]
    parameter_strides: tuple[int, ...]
    gradient_strides: tuple[int, ...]
    harmless: bool
    """Whether they differ in dimensions of size 1 only, so that every element lies at the same place."""

    def __str__(self) -> str:
        verdict = "harmless, only dimensions of size 1 differ" if self.harmless else "each use converts"
        return (
            f"{self.name} of shape {self.shape}: the gradient has the strides {self.gradient_strides}, "
            f"the parameter {self.parameter_strides} ({verdict})"
        )


def check_ddp(model: nn.Module) -> tuple[StrideMismatch, ...]:
    """The parameters whose gradients have other strides, those that cost something first.

    DistributedDataParallel gathers gradients in buckets, in views with the strides that the parameters had when it was
    made, or, unless ``find_unused_parameters=True``, after the first backward. It warns where strides differ. Usual
    causes: the model was converted to channels_last after it was wrapped; ``.grad`` was assigned; or dimensions of
    size 1, which are harmless, though DDP warns of them as well. A bucket's strides show only where the gradients
    are its views (``gradient_as_bucket_view=True``); convert before wrapping in any case.

    Args:
        model: after a backward, wrapped in DDP or not; best after the second step.

    Returns:
        Nothing if all is well.

    Raises:
        TypeError: no module.
        ValueError: no parameter has a gradient yet.
    """
    check_module(model, "check_ddp")
    found = []
    gradients = 0
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None or not (has_strides(gradient) and has_strides(parameter)):
            continue
        gradients += 1
        ours, theirs = parameter.stride(), gradient.stride()
        if ours != theirs:
            harmless = same_strides(parameter.shape, ours, theirs)
            found.append(StrideMismatch(name, tuple(parameter.shape), ours, theirs, harmless))
    if not gradients:
        raise ValueError("no parameter has a gradient yet: run a backward first, before zero_grad()")
    return tuple(sorted(found, key=lambda mismatch: mismatch.harmless))
