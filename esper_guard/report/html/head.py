"""The sums of a trace, and what else the head of the report says."""

from __future__ import annotations

from typing import NamedTuple

from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.sizes import format_size


class Sum(NamedTuple):
    """One number."""

    name: str
    number: str
    words: str
    """What else there is to say of it."""


def sums_of(trace: LayoutTrace) -> list[Sum]:
    """Copies, losses, and what is counted apart."""
    lines = len({event.location for event in trace.copies})
    found = [
        Sum("copied", format_size(trace.total_bytes), "between channels_last and NCHW"),
        Sum(
            "copies",
            str(sum(event.count for event in trace.copies)),
            "on 1 line" if lines == 1 else f"on {lines} lines",
        ),
        Sum("losses", str(sum(event.count for event in trace.losses)), "channels_last read, NCHW written"),
    ]
    for name, events, words in (
        ("other copies", trace.other_copies, "of strides only"),
        ("in kernels", trace.internal, "internal"),
    ):
        size = format_size(sum(event.bytes for event in events))
        found.append(Sum(name, str(sum(event.count for event in events)), f"{size}, {words}"))
    if trace.level != "deep" and not trace.internal:
        found[-1] = Sum("in kernels", "not traced", "the deep level does")
    return found


def facts_of(trace: LayoutTrace, files: int) -> list[tuple[str, str]]:
    """Names and values; ``files`` is how many have events."""
    tests = {test for event in trace.events for test in event.tests}
    facts = [("level", trace.level), ("torch", trace.torch_version or "unknown")]
    facts += [] if trace.rank is None else [("rank", str(trace.rank))]
    facts += [("files", str(files))]
    return [*facts, ("tests", str(len(tests)))] if tests else facts
