"""Single events for Chrome's and Perfetto's trace viewers.

The format: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from esper_guard.atomic import write_atomically
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import LayoutTrace


def save_chrome(trace: LayoutTrace, path: str | os.PathLike[str]) -> Path:
    """See `LayoutTrace.to_chrome`."""
    raw = trace.raw_events
    if trace.events and not raw:
        raise ValueError(
            "the trace kept no single events, so there are no times to show: trace_layouts(keep_events=10_000)"
        )
    content = {
        "displayTimeUnit": "ms",
        "traceEvents": [_entry(event, trace.rank or 0) for event in raw],
    }
    target = Path(path)
    write_atomically(target, msgspec.json.encode(content))
    return target


def _entry(event: LayoutEvent, process: int) -> dict[str, Any]:
    details = msgspec.to_builtins(event)
    return {
        "name": event.label,
        "cat": f"layout,{event.kind}",
        "ph": "X",
        "ts": (event.start_ns or 0) / 1000,
        "dur": (event.duration_ns or 0) / 1000,
        "pid": process,
        "tid": event.thread or 0,
        "args": {name: value for name, value in details.items() if not name.endswith("_ns")},
    }
