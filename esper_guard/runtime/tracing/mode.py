"""The dispatch modes that compare layouts before and after each operator."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter_ns
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from esper_guard.runtime.compiling import keep_dynamo_out
from esper_guard.runtime.formats import CHANNELS_LAST, CHANNELS_LAST_FORMATS, NCHW, has_strides, layout_of
from esper_guard.runtime.tracing.comparison import (
    Change,
    change,
    expanded,
    is_channels_last,
    is_nchw,
    result_of_copy,
)
from esper_guard.runtime.tracing.entered_modes import entered_modes
from esper_guard.runtime.tracing.executed import ExecutedCalls
from esper_guard.runtime.tracing.forward import next_number
from esper_guard.runtime.tracing.kernel_copies import watching
from esper_guard.runtime.tracing.locate import running_backward
from esper_guard.runtime.tracing.operators import (
    COMPOSITE_KERNEL,
    Sort,
    features_of,
    has_own_kernel,
    reads_images,
    reorders,
    sort_of,
    tensors_in,
)
from esper_guard.runtime.tracing.provenance import Provenance
from esper_guard.runtime.tracing.recorder import Recorder, profiler_runs
from esper_guard.trace.layout_trace import LayoutTrace

if TYPE_CHECKING:
    from typing_extensions import Self

Arguments: TypeAlias = tuple[Any, ...]
Keywords: TypeAlias = dict[str, Any]
Handler: TypeAlias = "Callable[[TracingMode, Any, Arguments, Keywords], Any]"

_PLAIN_TENSORS: Final = frozenset({Tensor, torch.nn.Parameter})
_WITHOUT_DATA: Final = frozenset({FakeTensor, FunctionalTensor})
_MOST_NODES: Final = 1024
"""That one operator makes: a foreach operator one for each tensor."""
_CHANNELS_LAST: Final = frozenset(CHANNELS_LAST_FORMATS.values())


class TracingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what one thread does, and the backward of it on any thread."""

    def __init__(self, trace: LayoutTrace, *, fakes: bool = False) -> None:
        """``fakes``: whether fake tensors are what is traced; else they are somebody's way to learn of shapes."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = trace
        self._fakes = fakes
        self._recorder = Recorder(trace)
        self._locator = self._recorder.locator
        self._forward = self._locator.forward
        self._provenance = Provenance()
        self._executed = ExecutedCalls(trace)
        self._thread = threading.get_ident()
        self._number = next_number()
        self._written = -1  # the next number when autograd was about to make a node for a write into a view

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's own way to keep Dynamo out imports it, and costs 2 us for each operator: see `keep_dynamo_out`."""
        return not hasattr(torch._C._dynamo.eval_frame, "set_code_exec_strategy")

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled code shall run compiled; what can't be seen of it is said in the trace."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        if types and not _PLAIN_TENSORS.issuperset(types):
            if any(map(_takes_over, types)):
                return NotImplemented  # then the subclass runs, and what it does to plain tensors comes here
            if not (self._fakes or _WITHOUT_DATA.isdisjoint(types)):
                return func(*args, **(kwargs or {}))
        self._executed.note(sys._getframe(1))
        number = next_number()
        if number != self._number and threading.get_ident() == self._thread:
            self._remember_node(number, func, sys._getframe(1))
        known = _handlers.get(id(func)) or _find_handler(func)
        handler = known[1]
        if handler is None:
            return func(*args, **(kwargs or {}))
        return handler(self, func, args, kwargs or {})

    def resume(self) -> None:
        """Go on after a while in which other code may have made nodes."""
        self._number = next_number()

    def __enter__(self) -> Self:
        with entered_modes.lock():
            entered_modes.enter()
            super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        with entered_modes.lock():
            super().__exit__(*error)  # type: ignore[no-untyped-call]
            entered_modes.leave()

    def _remember_node(self, number: int, func: Any, frame: FrameType) -> None:
        before, self._number = self._number, number
        written = self._written == before
        if written:  # the first new node belongs to the write, which was the operator before
            self._forward.put(before, self._forward.find(before - 1))
            before += 1
        if before == number:
            return
        alone = number - before == 1
        if running_backward() != -1:
            self._locator.remember_in_backward(number - 1, frame)
        else:
            self._forward.remember(number - 1, func if alone else None, frame)
        if not (alone or written):
            # such as an operator in place: its own, and that of a copy of what it overwrites
            self._forward.repeat(number - 1, max(before, number - _MOST_NODES))

    def enter_compiled(self) -> None:
        """A compiled region runs, in which no operator may come here. Autograd has just made its node."""
        if threading.get_ident() != self._thread:
            return
        frame, number = sys._getframe(1), next_number()
        if number != self._number:
            self._remember_node(number, None, frame)
        place = self._locator.locate(frame).place
        where = f"{place.function} ({place.file}:{place.line})" if place.file else "a function"
        self._trace.note_unseen(f"what torch.compile made of {where}")

    def compute(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Run an operator that makes a tensor, and see whether that lost the format."""
        result = func(*args, **kwargs)
        first = result
        if type(result) is tuple:
            first = result[0]
            if self._provenance.known:
                self._follow(args, kwargs, result[1:])
        if not isinstance(first, Tensor):
            return result
        if self._provenance.known:
            self._provenance.flow(args, first)
        rank = first.dim()
        if (rank == 4 or rank == 5) and has_strides(first):
            if first.is_contiguous():
                if _any_not_contiguous(args) or (kwargs and _any_not_contiguous(kwargs.values())):
                    self._compare(func, args, kwargs, first)
            elif (
                self._provenance.known
                or not first.is_contiguous(memory_format=CHANNELS_LAST_FORMATS[rank])
                or not (args and _is_not_contiguous(args[0]))
            ):
                self._compare(func, args, kwargs, first)
        return result

    def permute(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Run a view, and remember which tensors became channels_last by it."""
        result = func(*args, **kwargs)
        if type(result) is list and not result:  # unbind of nothing
            return result
        before, view = args[0], result[0] if type(result) is list else result
        strided = view.dim() > 2 and has_strides(view) and has_strides(before)
        if strided and not (before.is_contiguous() and view.is_contiguous()):
            was, now = is_channels_last(before), is_channels_last(view)
            if was != now:
                self._provenance.note_view(before, was)
        return result

    def copy(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Run an operator that returns a copy of its first argument."""
        self._trace.count(str(func))
        source = args[0]
        requested = kwargs.get("memory_format")
        started = perf_counter_ns()
        with self._label_of_copy(func, source, requested) if profiler_runs() else nullcontext():
            result = func(*args, **kwargs)
        changed = self._change(source, result)
        if changed is not None:
            self._recorder.copied(func, changed, source, result, started)
        if self._provenance.known and requested not in _CHANNELS_LAST:
            if not is_channels_last(result):
                self._provenance.flow(args, result)
            elif is_channels_last(source):
                self._provenance.note_result(result, self._provenance.chosen(source))
        return result

    def copy_into(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Run an operator that copies its second argument into its first."""
        self._trace.count(str(func))
        destination, source = args[:2]
        self._expect_slices(args)
        changed = self._change(source, destination) if isinstance(source, Tensor) else None
        started = perf_counter_ns()
        if changed is None:
            return func(*args, **kwargs)
        with self._recorder.labelled(func, changed, destination):
            result = func(*args, **kwargs)
        self._recorder.copied(func, changed, source, destination, started)
        return result

    def copy_lists_into(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Run an operator that copies the tensors of one list into those of another."""
        self._trace.count(str(func))
        started = perf_counter_ns()
        result = func(*args, **kwargs)
        for destination, source in zip(*args[:2], strict=False):
            changed = self._change(source, destination)
            if changed is not None:
                self._recorder.copied(func, changed, source, destination, started)
        return result

    def write(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Run an operator that writes into an argument."""
        self._expect_slices(args)
        return func(*args, **kwargs)

    def decompose(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Run what an operator consists of, under this mode, unless the device has a kernel for the whole."""
        tensors = tensors_in(args, kwargs)
        if not all(map(has_strides, tensors)):
            return func(*args, **kwargs)
        if has_own_kernel(func.name(), tensors[0].device.type if tensors else "cpu"):
            return self.compute(func, args, kwargs)
        _python_dispatch._push_mode(self)  # not `with self`, which an interrupt may enter and never leave
        try:
            return func._op_dk(COMPOSITE_KERNEL, *args, **kwargs)
        finally:
            _python_dispatch._pop_mode()

    def _label_of_copy(
        self, func: Any, source: Tensor, requested: torch.memory_format | None
    ) -> AbstractContextManager[Any]:
        if not has_strides(source) or source.is_quantized:
            return nullcontext()
        result = result_of_copy(source, requested)
        return self._recorder.labelled(func, self._change(source, result), result)

    def _change(self, source: Tensor, destination: Tensor) -> Change | None:
        """As `change`, and what a view of channels_last memory hides from it."""
        changed = change(source, destination)
        if changed is None or changed.changes_format or not self._provenance.known:
            return changed
        hidden = self._provenance.hides_channels_last(source)
        return Change(CHANNELS_LAST, NCHW, True) if hidden and destination.is_contiguous() else changed

    def _expect_slices(self, args: Arguments) -> None:
        target = args[0] if args else None
        into_view = torch.is_grad_enabled() and isinstance(target, Tensor) and target._is_view()
        if into_view and any(isinstance(value, Tensor) and value.requires_grad for value in args):
            self._written = self._number

    def _follow(self, args: Arguments, kwargs: Keywords, others: Arguments) -> None:
        """Further results, such as indices, are as little a choice as what they were computed from."""
        if not self._any_chosen(tensors_in(args, kwargs)):
            for other in others:
                if isinstance(other, Tensor) and is_channels_last(other):
                    self._provenance.note_result(other, chosen=False)

    def _any_chosen(self, tensors: list[Tensor]) -> bool:
        """Whether one that kernels take for channels_last is so by choice."""
        return any(
            tensor.dim() in CHANNELS_LAST_FORMATS
            and has_strides(tensor)
            and layout_of(tensor).taken_for == "channels_last"
            and self._provenance.chosen(tensor)
            for tensor in tensors
        )

    def _compare(self, func: Any, args: Arguments, kwargs: Keywords, first: Tensor) -> None:
        if not is_nchw(first):
            by_itself = "memory_format" not in kwargs and is_channels_last(first)
            if by_itself and not self._any_chosen(tensors_in(args, kwargs)):
                self._provenance.note_result(first, chosen=False)
            return
        if (
            not first.numel()
            or kwargs.get("memory_format") is torch.contiguous_format
            or reorders(func, args)
        ):
            return
        images = reads_images(func)
        for tensor in tensors_in(features_of(func, args), kwargs):
            image = images and tensor.dim() == 3
            if (
                (image or tensor.dim() in CHANNELS_LAST_FORMATS)
                and is_channels_last(tensor)
                and self._provenance.chosen(tensor)
            ):
                before = layout_of(tensor.unsqueeze(0) if image else tensor)
                self._recorder.lost(func, Change(before, layout_of(first), True), tensor, first)
                return


class DeepTracingMode(TracingMode):  # type: ignore[no-untyped-call]
    """Sees the copies inside of kernels as well."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        copies_by_itself = sort_of(func) in _COPYING

        def copied(destination: Tensor, source: Tensor) -> None:
            self._trace.count_kernel_copy()
            changed = None if copies_by_itself else change(source, destination)
            if changed is not None and (changed.changes_format or not expanded(source)):
                self._recorder.copied_inside(func, changed, source, destination)

        with watching(self, copied):
            return super().__torch_dispatch__(func, types, args, kwargs)


def running_traces() -> list[LayoutTrace]:
    """Those that this thread writes, the innermost first."""
    modes = reversed(_python_dispatch._get_current_dispatch_mode_stack())
    return [mode._trace for mode in modes if isinstance(mode, TracingMode)]


for _mode in (TracingMode, DeepTracingMode):
    keep_dynamo_out(_mode.__torch_dispatch__.__code__)

_COPYING: Final = frozenset({Sort.COPY, Sort.COPY_INTO, Sort.COPY_LISTS_INTO})
_HANDLER_OF: Final[dict[Sort, Handler | None]] = {
    Sort.COPY: TracingMode.copy,
    Sort.COPY_INTO: TracingMode.copy_into,
    Sort.COPY_LISTS_INTO: TracingMode.copy_lists_into,
    Sort.PERMUTE: TracingMode.permute,
    Sort.COMPUTE: TracingMode.compute,
    Sort.WRITE: TracingMode.write,
    Sort.COMPOSITE: TracingMode.decompose,
    Sort.OTHER: None,
}
_handlers: dict[int, tuple[Any, Handler | None]] = {}  # by id: hashing an operator runs Python code


def _find_handler(func: Any) -> tuple[Any, Handler | None]:
    known = (func, _HANDLER_OF[sort_of(func)])  # the operator, so that its id stays its own
    _handlers[id(func)] = known
    return known


def _takes_over(kind: type) -> bool:
    """Whether a tensor subclass handles operators itself."""
    ours = kind.__torch_dispatch__  # type: ignore[attr-defined]
    return kind not in _PLAIN_TENSORS | _WITHOUT_DATA and ours is not torch._C._disabled_torch_dispatch_impl


def _is_not_contiguous(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_contiguous()


def _any_not_contiguous(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if value.dim() > 2 and has_strides(value) and not value.is_contiguous():
                return True
        elif isinstance(value, list) and _any_not_contiguous(value):
            return True
    return False
