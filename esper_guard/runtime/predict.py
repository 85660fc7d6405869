"""``predict_layouts``: what `trace_layouts` would see, without data and without running a kernel."""

from __future__ import annotations

import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from esper_guard.runtime.callsite import is_the_users
from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS, has_strides
from esper_guard.runtime.model_copy import as_written, check_module, copy_as_written
from esper_guard.runtime.tracing.mode import TracingMode
from esper_guard.trace.layout_trace import LayoutTrace

_UNPREDICTABLE: tuple[type[Exception], ...] = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
)


def predict_layouts(
    model: nn.Module,
    *inputs_or_shapes: Any,
    train: bool = False,
    move_to: torch.memory_format | None = None,
    keep_events: int = 0,
) -> LayoutTrace:
    """The trace that a run of ``model(*inputs)`` would give at the dispatch level.

    >>> trace = predict_layouts(model, (8, 3, 224, 224), train=True, move_to=torch.channels_last)
    >>> trace.assert_max(copies=0)

    The model is copied with fake tensors in the place of its own, so that it needs no memory, and nothing of it
    changes. Its hooks run on the copy; what they write elsewhere, they write. Every copy is as in the traced run, with
    operator, line and bytes (tests/runtime/test_predict.py). A format loss depends on the strides that a kernel
    writes, which fake tensors know for most kernels.

    Args:
        model: on any device (one on ``meta`` is predicted for the CPU); of a compiled model the code as written.
        inputs_or_shapes: for each argument a tensor, of which only metadata are read; a tuple of sizes, such as
            ``(N, C, H, W)``, for a tensor of the model's dtype on its device (for another dtype give a tensor, such as
            ``torch.empty(2, 3, dtype=torch.long)``); or any other value, which is passed on. Nested tensors in lists
            and dicts are found.
        train: in training mode, with the backward from gradients like the outputs (``torch.ones_like``). Otherwise in
            evaluation mode, without gradients.
        move_to: predict for ``model.to(memory_format=move_to)`` and inputs converted in the same way: all of rank 4
            for `torch.channels_last`, of rank 5 for `torch.channels_last_3d`.
        keep_events: as for `trace_layouts`.

    Raises:
        TypeError: no module, or one that can't be copied.
        ValueError: the model is lazy and was never run; or a parameter has the wrong rank for ``move_to``.
        RuntimeError: what the model does depends on data, or an operator has no fake implementation; the message
            names the operator and the line. Other errors are the model's own.
    """
    check_module(model, "predict_layouts")
    model = as_written(model)
    if move_to is not None and not isinstance(move_to, torch.memory_format):
        raise TypeError(f"move_to is a torch.memory_format, such as torch.channels_last, not {move_to!r}")
    mode = _mode_of(model)
    fake = _fake_copy(model, mode, move_to)
    fake.train(train)
    inputs = [_fake_input(value, model, mode, move_to) for value in inputs_or_shapes]
    trace = LayoutTrace("dispatch", keep_events, torch_version=str(torch.__version__))
    try:
        with _eagerly(), mode, TracingMode(trace, fakes=True), torch.set_grad_enabled(train):
            result = fake(*inputs)
            if train:
                _backward(result)
    except _UNPREDICTABLE as error:
        raise RuntimeError(_unpredictable(error)) from error
    return trace


def _mode_of(model: nn.Module) -> FakeTensorMode:
    """The model's own, if it is fake already, because several don't mix."""
    for tensor in (*model.parameters(), *model.buffers()):
        if isinstance(tensor, FakeTensor):
            return tensor.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def _eagerly() -> AbstractContextManager[Any]:
    """Compiled code would read memory that fake tensors don't have. Before Dynamo is imported there is none."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return cast("AbstractContextManager[Any]", torch._dynamo.config.patch(disable=True))


def _fake_copy(model: nn.Module, mode: FakeTensorMode, move_to: torch.memory_format | None) -> nn.Module:
    memo: dict[int, Any] = {}
    for prefix, module in model.named_modules():
        tensors = {**vars(module), **module._parameters, **module._buffers}
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                path = f"{prefix}.{name}".lstrip(".")
                registered = name in module._parameters or name in module._buffers
                memo[id(tensor)] = _fake_state(tensor, path, mode, move_to if registered else None)
    memo[id(memo)] = list(memo.values())  # deepcopy's own way of keeping what it copied alive
    remedy = "; give it a __deepcopy__, or trace a real run with trace_layouts()"
    return copy_as_written(model, "predict_layouts", remedy, memo)


def _fake_state(
    tensor: Tensor, path: str, mode: FakeTensorMode, move_to: torch.memory_format | None
) -> Tensor:
    if nn.parameter.is_lazy(tensor):
        raise ValueError(f"{path} is not initialised yet: run the model once, or give its sizes")
    try:
        fake = _fake(tensor, mode, move_to if tensor.dim() in CHANNELS_LAST_FORMATS else None)
    except RuntimeError as error:
        raise ValueError(f"{path} has {tensor.dim()} dimensions, which {move_to} does not fit") from error
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake


def _fake(tensor: Tensor, mode: FakeTensorMode, move_to: torch.memory_format | None) -> Tensor:
    if not has_strides(tensor) or type(tensor) not in (Tensor, nn.Parameter, FakeTensor):
        return cast(Tensor, mode.from_tensor(tensor))
    strides = tensor.stride()
    if move_to is not None:
        strides = torch.empty_like(tensor, device="meta", memory_format=move_to).stride()
    with mode:
        return torch.empty_strided(
            tensor.shape,
            strides,
            dtype=tensor.dtype,
            device=_device(tensor.device),
            requires_grad=tensor.requires_grad,
        )


def _device(device: torch.device) -> torch.device:
    """Kernels for meta tensors give them other strides than a real device's do."""
    return torch.device("cpu") if device.type == "meta" else device


def _fake_input(
    value: Any, model: nn.Module, mode: FakeTensorMode, move_to: torch.memory_format | None
) -> Any:
    if isinstance(value, tuple) and value and all(type(size) is int for size in value):
        like = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
        with mode:
            value = torch.empty(value, dtype=like.dtype, device=_device(like.device))
    return pytree.tree_map_only(Tensor, lambda tensor: _moved(tensor, mode, move_to), value)


def _moved(tensor: Tensor, mode: FakeTensorMode, move_to: torch.memory_format | None) -> Tensor:
    fits = move_to in (torch.contiguous_format, CHANNELS_LAST_FORMATS.get(tensor.dim()))
    return _fake(tensor, mode, move_to if fits else None)


def _backward(result: Any) -> None:
    outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def _unpredictable(error: Exception) -> str:
    operator = getattr(error, "func", None) or error
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if is_the_users(frame.filename)]
    where = f" at {lines[-1].filename}:{lines[-1].lineno}" if lines else ""
    return (
        f"predict_layouts() can't follow {operator}{where}: its result depends on data, or it has no fake "
        "implementation; trace a real run with trace_layouts()"
    )
