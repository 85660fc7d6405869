"""A training or inference step of one variant, in halves that can be measured apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from esper_guard.profiling.failures import USER_ERRORS, ProfileError, first_line
from esper_guard.profiling.remedies import is_out_of_memory
from esper_guard.profiling.structure import copy_with, gradient_of_mean_square, tensors_in
from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS, has_strides
from esper_guard.runtime.hazards import HazardError
from esper_guard.runtime.model_copy import copy_as_written


class NoGradientError(Exception):
    """Nothing that the model returns needs a gradient, so that there is no backward."""


class StepError(Exception):
    """The model raised something, or exits; the cause is that."""


class Step:
    """A model and its inputs, both its own, on one device in one memory format.

    Args:
        model: copied; its 4-D and 5-D parameters and buffers are converted, to NCHW as well as to channels_last.
        inputs: copied and converted in the same way, wherever in them a tensor is; tensors of other ranks only go to
            the device.
        device: where it runs.
        channels_last: the memory format: channels_last for rank 4, channels_last_3d for rank 5.
        training: forward and backward in training mode; the backward starts from the gradients that the sum of the mean
            squares of what the first step returned would have, so that no loss is measured. Else a forward without gradients
            in evaluation mode.
        dtype: of floating-point parameters, buffers and inputs; None leaves them as they are.
        autocast: the dtype of autocast in the forward.
        compiled: by torch.compile, for these very shapes and strides.
        keywords: inputs by name, converted like the others.

    Raises:
        ProfileError: the model or the inputs can't be copied.
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
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.training = training
        self.compiled = compiled
        self.model = _copied(model).to(self.device, dtype).train(training)
        self.model.zero_grad(set_to_none=True)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor.data = _converted(tensor.data, channels_last)

        def prepare(tensor: Tensor) -> Tensor:
            wanted = dtype if tensor.is_floating_point() else None
            moved = tensor.detach().to(self.device, wanted or tensor.dtype, copy=True)
            prepared = _converted(moved, channels_last).requires_grad_(tensor.requires_grad and training)
            self._tensors.append(prepared)
            return prepared

        self._tensors: list[Tensor] = []
        self._weights = [*self.model.parameters(), *self.model.buffers()]
        self._inputs, self._keywords = _copied_inputs(prepare, (inputs, dict(keywords or {})))
        self._call: Any = torch.compile(self.model, dynamic=False) if compiled else self.model
        self._autocast = autocast
        self._outputs: list[Tensor] = []
        self._gradients: list[Tensor] = []

    @property
    def has_formats(self) -> bool:
        """Whether any parameter, buffer or input is of a rank that has a channels_last format."""
        return any(tensor.dim() in CHANNELS_LAST_FORMATS for tensor in (*self._weights, *self._tensors))

    def forget(self) -> None:
        """The gradients and the graph of the step before."""
        self._outputs = []
        self.model.zero_grad(set_to_none=True)
        for tensor in self._tensors:
            tensor.grad = None

    def forward(self) -> None:
        """The forward; in training the graph is kept for `backward`.

        Raises:
            StepError: the model raised something.
            NoGradientError: there is nothing to go backward from.
        """
        try:
            with nullcontext() if self.training else torch.no_grad(), self._autocasting():
                result = self._call(*self._inputs, **self._keywords)
        except HazardError:
            raise
        except USER_ERRORS as error:
            raise StepError from error
        if not self.training:
            return
        self._outputs = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
        if not self._outputs:
            raise NoGradientError
        if list(map(_form, self._outputs)) != list(map(_form, self._gradients)):
            self._gradients = [gradient_of_mean_square(output) for output in self._outputs]

    def backward(self) -> None:
        """The backward of the last `forward`, whose graph is freed; nothing in inference.

        Raises:
            StepError: it raised something.
        """
        if not self.training:
            return
        outputs, self._outputs = self._outputs, []
        try:
            torch.autograd.backward(outputs, self._gradients)
        except HazardError:
            raise
        except USER_ERRORS as error:
            raise StepError from error

    def __call__(self) -> None:
        """The whole step, with gradients made anew."""
        self.forget()
        self.forward()
        self.backward()

    def _autocasting(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._autocast is None else torch.autocast(self.device.type, self._autocast)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy_as_written(model, "esper-guard profile")
    except TypeError as error:
        cause = error.__cause__ or error
        reason, remedy = first_line(cause), ""
        if "graph leaves" in reason:
            remedy = (
                "; torch.nn.utils.parametrizations.weight_norm instead of torch.nn.utils.weight_norm can be, and "
                "so can a module without tensors of a graph in its attributes"
            )
        elif is_out_of_memory(cause):
            remedy = "; a smaller model could be, or --no-time makes one copy fewer"
        raise ProfileError(
            f"each variant needs a copy of the model, but copy.deepcopy can't copy this {type(model).__qualname__}: "
            f"{reason}{remedy}"
        ) from error


def _copied_inputs(replacement: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    try:
        return copy_with(replacement, inputs)
    except RuntimeError:  # of the device: no memory, or a dtype that it doesn't have
        raise
    except Exception as error:
        raise ProfileError(
            f"each variant needs a copy of the inputs, but copy.deepcopy can't copy them: {first_line(error)}; give "
            "tensors, or lists, dicts and dataclasses of them"
        ) from error


def _form(tensor: Tensor) -> tuple[object, ...]:
    strides = tensor.stride() if has_strides(tensor) else ()
    return tensor.shape, strides, tensor.dtype


def _converted(tensor: Tensor, channels_last: bool) -> Tensor:
    rank = tensor.dim()
    if rank not in CHANNELS_LAST_FORMATS or not has_strides(tensor):
        return tensor
    return tensor.to(memory_format=CHANNELS_LAST_FORMATS[rank] if channels_last else torch.contiguous_format)
