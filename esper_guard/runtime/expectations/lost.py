"""Where a tensor left channels_last, if a tracer was running."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_guard.runtime.formats import layout_of
from esper_guard.runtime.tracing.mode import running_traces
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.line_texts import LineTexts
from esper_guard.trace.table import describe_place, why


def where_lost(tensor: Tensor) -> str | None:
    """The newest line, in the innermost trace of this thread, at which channels_last was lost, and why if that is known.

    One that made a tensor of this shape goes first: what was lost elsewhere need not be what this one was made of.
    """
    if torch.compiler.is_compiling() or layout_of(tensor).state == "channels_last":
        return None
    for trace in running_traces():
        lost = [event for event in trace.events if event.leaves_channels_last]
        same = [event for event in lost if event.shape == tuple(tensor.shape)]
        if lost:
            newest = (same or lost)[-1]
            return "; ".join(filter(None, [describe_place(newest), _why(newest)]))
    return None


def _why(event: LayoutEvent) -> str | None:
    return why(event, LineTexts().read(event.file, event.line))
