"""Writes what one thread's operators did into a trace, with where they were called from."""

from __future__ import annotations

import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor

from esper_guard.runtime.tracing.comparison import Change
from esper_guard.runtime.tracing.forward import Place
from esper_guard.runtime.tracing.locate import Locator, Origin
from esper_guard.trace.event import Kind, LayoutEvent
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.tally import Tally

_MOST_TALLIES = 10_000  # found at once; the others in the trace


def profiler_runs() -> bool:
    """Whether torch.profiler records, so that labels would be seen."""
    return torch.autograd.profiler._is_profiler_enabled


class Recorder:
    """Of one thread, and of the backward of its forward."""

    def __init__(self, trace: LayoutTrace) -> None:
        self.trace = trace
        self.locator = Locator()
        self._tallies: dict[tuple[object, ...], tuple[Place, Tally]] = {}
        self._generation = trace.generation

    def copied(self, operator: Any, changed: Change, source: Tensor, result: Tensor, started: int) -> None:
        """A copy that the user's line, or an operator on it, made."""
        now = perf_counter_ns()
        origin = self.locator.locate(sys._getframe(1))
        self._add(operator, _kind_of(origin), origin, changed, source, result, (started, now - started))

    def copied_inside(self, operator: Any, changed: Change, source: Tensor, result: Tensor) -> None:
        """A copy that a kernel of the operator made."""
        times = (perf_counter_ns(), 0)
        origin = self.locator.locate(sys._getframe(1))
        self._add(operator, "internal", origin, changed, source, result, times)

    def lost(self, operator: Any, changed: Change, source: Tensor, result: Tensor) -> None:
        """An operator that read channels_last and wrote NCHW."""
        times = (perf_counter_ns(), 0)
        origin = self.locator.locate(sys._getframe(1))
        if profiler_runs():
            with _label(_prototype(str(operator), "loss", origin, changed, result)):
                pass
        self._add(operator, "loss", origin, changed, source, result, times)

    def labelled(self, operator: Any, changed: Change | None, result: Tensor) -> AbstractContextManager[Any]:
        """In torch.profiler's timeline, name the copy that is being made, if it is one between layouts."""
        if changed is None or not profiler_runs():
            return nullcontext()
        origin = self.locator.locate(sys._getframe(1))
        return _label(_prototype(str(operator), _kind_of(origin), origin, changed, result))

    def _add(
        self,
        operator: Any,
        kind: Kind,
        origin: Origin,
        changed: Change,
        source: Tensor,
        result: Tensor,
        times: tuple[int, int],
    ) -> None:
        place = origin.place
        where = (id(place.code), place.instruction, place.module, origin.phase, origin.parameter)
        key = (str(operator), kind, changed, where, result.dtype, result.device)
        if self._generation != self.trace.generation:  # it was cleared
            self._generation = self.trace.generation
            self._tallies.clear()
        known = self._tallies.get(key)
        if known is None:
            if len(self._tallies) >= _MOST_TALLIES:
                self._tallies.clear()
            tally = self.trace.tally(_prototype(str(operator), kind, origin, changed, result))
            self._tallies[key] = (place, tally)  # the place, so that the id of its code stays its own
        else:
            _, tally = known
        size = result.numel() * result.element_size()
        shapes = (tuple(source.shape), tuple(result.shape))
        self.trace.add(tally, size, *shapes)
        if self.trace.keep_events:
            self.trace.keep(tally.single(size, shapes, times, threading.get_native_id()))


def _prototype(operator: str, kind: Kind, origin: Origin, changed: Change, result: Tensor) -> LayoutEvent:
    place = origin.place
    return LayoutEvent(
        kind=kind,
        operator=operator,
        source=str(changed.source),
        destination=str(changed.destination),
        source_shape=(),
        shape=(),
        dtype=str(result.dtype).removeprefix("torch."),
        device=str(result.device),
        phase=origin.phase,
        bytes=0,
        changes_format=changed.changes_format,
        file=place.file,
        line=place.line,
        function=place.function,
        module=place.module,
        parameter=origin.parameter,
    )


def _kind_of(origin: Origin) -> Kind:
    return "explicit" if origin.asked else "hidden"


def _label(event: LayoutEvent) -> AbstractContextManager[Any]:
    return torch.profiler.record_function(f"esper_guard {event.label}")
