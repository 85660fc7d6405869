"""What a traced run did to memory formats, as data: no torch is needed to load, query or print it."""

from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import Cost, LayoutTrace, merge
from esper_guard.trace.saved import load_trace

__all__ = ["Cost", "LayoutEvent", "LayoutTrace", "load_trace", "merge"]
