"""Watches running code for copies between memory formats."""

from esper_guard.runtime.tracing.tracer import trace_layouts

__all__ = ["trace_layouts"]
