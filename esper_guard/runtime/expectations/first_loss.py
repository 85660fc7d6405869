"""``first_loss``: which module of a model drops channels_last first."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from esper_guard.runtime.expectations.leaves import is_uninitialised, leaves_of
from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS, has_strides, layout_of
from esper_guard.runtime.model_copy import check_module, copy_as_written
from esper_guard.runtime.tracing import trace_layouts
from esper_guard.trace.event import LayoutEvent


def first_loss(model: nn.Module, *inputs: Any, **keywords: Any) -> LayoutEvent | None:
    """Run a model once, and find where channels_last is lost first in its forward.

    >>> lost = first_loss(model, images)
    >>> print(lost)
    model.py:41 (backbone.attention): loss, once: aten._softmax.default channels_last -> nchw, 2x8x4x4 float32

    Deep copies of the model and of its inputs run, without gradients, in the mode (train or eval) that the model is in;
    of a compiled one the code as written. The CPU's random numbers go on as if nothing had happened. Only operators that the dispatcher sees are compared (`trace_layouts`).

    Args:
        model: with weights in channels_last, or to be run with inputs that are; or both.
        inputs: of its forward, such as images (N, C, H, W); ``keywords`` likewise.

    Returns:
        The event: its ``module``, ``file``, ``line``, ``operator`` and shapes. None if nothing is lost.

    Raises:
        TypeError: it is no module, or one that can't be copied.
        ValueError: neither a parameter nor an input is in channels_last, so that there is nothing to lose.
    """
    check_module(model, "first_loss")
    given = [tensor for _, tensor in leaves_of((inputs, keywords), "input")]
    if not any(map(_is_channels_last, [*model.parameters(), *given])):
        raise ValueError(
            "first_loss(): nothing is in channels_last, so nothing can be lost: convert the model and its inputs with "
            "`.to(memory_format=torch.channels_last)`"
        )
    copied = copy_as_written(model, "first_loss")
    own_inputs, own_keywords = _pytree.tree_map_only(Tensor, _copied, (inputs, keywords))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), trace_layouts() as trace:
        copied(*own_inputs, **own_keywords)
    return trace.first_loss


def _copied(tensor: Tensor) -> Tensor:
    """With the same strides, which clone() would change if they have gaps."""
    return copy.deepcopy(tensor.detach())


def _is_channels_last(tensor: Tensor) -> bool:
    return (
        not is_uninitialised(tensor)
        and tensor.dim() in CHANNELS_LAST_FORMATS
        and has_strides(tensor)
        and layout_of(tensor).taken_for == "channels_last"
    )
