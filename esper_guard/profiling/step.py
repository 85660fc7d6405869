"""A training or inference step of one variant, in halves that can be measured apart."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from esper_guard.profiling.structure import gradient_of_mean_square, tensors_in
from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS, has_strides
from esper_guard.runtime.model_copy import copy_as_written


class NoGradientError(Exception):
    """Nothing that the model returns needs a gradient, so that there is no backward."""


class Step:
    """A model and its inputs, both its own, on one device in one memory format.

    Args:
        model: copied; its 4-D and 5-D parameters and buffers are converted, to NCHW as well as to channels_last.
        inputs: converted in the same way; tensors of other ranks only go to the device.
        device: where it runs.
        channels_last: the memory format: channels_last for rank 4, channels_last_3d for rank 5.
        training: forward and backward in training mode; the backward starts from the gradients that the sum of the mean
            squares of what the first step returned would have, so that no loss is measured. Else a forward without gradients
            in evaluation mode.
        dtype: of floating-point parameters, buffers and inputs; None leaves them as they are.
        autocast: the dtype of autocast in the forward.
        compiled: by torch.compile, for these very shapes and strides.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...],
        device: str,
        *,
        channels_last: bool,
        training: bool,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.training = training
        self.compiled = compiled
        self.model = copy_as_written(model, "esper-guard profile").to(self.device, dtype).train(training)
        self.model.zero_grad(set_to_none=True)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor.data = _converted(tensor.data, channels_last)

        def prepare(tensor: Tensor) -> Tensor:
            wanted = dtype if tensor.is_floating_point() else None
            moved = tensor.detach().to(self.device, wanted or tensor.dtype, copy=True)
            return _converted(moved, channels_last).requires_grad_(tensor.requires_grad and training)

        self._inputs = pytree.tree_map_only(Tensor, prepare, inputs)
        self._call: Any = torch.compile(self.model, dynamic=False) if compiled else self.model
        self._autocast = autocast
        self._outputs: list[Tensor] = []
        self._gradients: list[Tensor] = []

    def forget(self) -> None:
        """The gradients and the graph of the step before."""
        self._outputs = []
        self.model.zero_grad(set_to_none=True)
        for tensor in pytree.tree_leaves(self._inputs):
            if isinstance(tensor, Tensor):
                tensor.grad = None

    def forward(self) -> None:
        """The forward; in training the graph is kept for `backward`."""
        if not self.training:
            with torch.no_grad(), self._autocasting():
                self._call(*self._inputs)
            return
        with self._autocasting():
            result = self._call(*self._inputs)
        self._outputs = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
        if not self._outputs:
            raise NoGradientError
        if list(map(_form, self._outputs)) != list(map(_form, self._gradients)):
            self._gradients = [gradient_of_mean_square(output) for output in self._outputs]

    def backward(self) -> None:
        """The backward of the last `forward`, whose graph is freed; nothing in inference."""
        if self.training:
            outputs, self._outputs = self._outputs, []
            torch.autograd.backward(outputs, self._gradients)

    def __call__(self) -> None:
        """The whole step, with gradients made anew."""
        self.forget()
        self.forward()
        self.backward()

    def _autocasting(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._autocast is None else torch.autocast(self.device.type, self._autocast)


def _form(tensor: Tensor) -> tuple[object, ...]:
    strides = tensor.stride() if has_strides(tensor) else ()
    return tensor.shape, strides, tensor.dtype


def _converted(tensor: Tensor, channels_last: bool) -> Tensor:
    rank = tensor.dim()
    if rank not in CHANNELS_LAST_FORMATS or not has_strides(tensor):
        return tensor
    return tensor.to(memory_format=CHANNELS_LAST_FORMATS[rank] if channels_last else torch.contiguous_format)
