"""Whether a test is to fail for what it copied or lost."""

from __future__ import annotations

from collections.abc import Sequence

from esper_guard.integrations.pytest_plugin.marker import Marked
from esper_guard.trace.baseline import Baseline, Known
from esper_guard.trace.budget import exceeded, explain, matches
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.table import costliest, describe_place, plural

_LISTED_BY = "--layout-report=json:trace.json; esper-guard report trace.json --by event -n 1000"


def exceeds_marker(marked: Marked, trace: LayoutTrace, events: Sequence[LayoutEvent]) -> str | None:
    """What to say of a test that does what its marker forbids; ``events`` are those of the trace that count."""
    counted = [event for event in events if not any(matches(event, pattern) for pattern in marked.ignore)]
    left = [event for event in counted if marked.format is not None and _leaves(event, marked.format)]
    help = "help: keep the format there; what is meant to be copied can be left out with ignore=['FILE:LINE']"
    if left:
        times = sum(event.count for event in left)
        first = describe_place(costliest(left)[0])
        headline = f"{marked.format} was left {'once' if times == 1 else f'{times} times'}: {first}"
        return f"{explain(headline, left, trace.unseen, _LISTED_BY)}\n{help}"
    problem = exceeded(counted, trace.unseen, marked.max_copies, marked.max_bytes, listed_by=_LISTED_BY)
    return None if problem is None else f"{problem}\n{help}"


def exceeds_baseline(baseline: Baseline, events: Sequence[LayoutEvent], path: str = "PATH") -> str | None:
    """What to say of a test that does what no test of the session may, or more of it than is known.

    Args:
        baseline: what is known; empty if there is no baseline.
        events: what the test did.
        path: of the baseline, as an option would name it.
    """
    blamed = baseline.exceeded(events)
    if not blamed:
        return None
    copies = sum(event.count for event in blamed if event.is_copy)
    losses = sum(event.count for event in blamed if event.kind == "loss")
    counts = [plural(copies, "layout copy")] if copies else []
    counts += [plural(losses, "format loss")] if losses else []
    known = [baseline.entries[place] for place in baseline.measure(blamed) if place in baseline.entries]
    why = " that the baseline does not know of" if baseline.entries else ""
    if known:
        why = f", where the baseline allows {sum(worst.times for worst in known)} in one test"
    headline = f"{' and '.join(counts)}{why}: {describe_place(costliest(blamed)[0])}"
    accept = f"accept it: --layout-baseline={path} --layout-update"
    return f"{explain(headline, blamed, (), _LISTED_BY)}\nhelp: keep the format there, or {accept}"


def held_against(kinds: Sequence[str], events: Sequence[LayoutEvent]) -> list[LayoutEvent]:
    """The events of these kinds: "copy", "loss", "ghost"."""
    return [event for event in events if any(_is(event, kind) for kind in kinds)]


def is_of_kinds(place: Known, kinds: Sequence[str]) -> bool:
    """Whether an entry of the baseline is what events of these kinds make."""
    return any(_is_kind(place.kind, place.change, kind) for kind in kinds)


def _is_kind(what: str, change: str, kind: str) -> bool:
    if kind == "ghost":
        return "ghost" in change
    return what in ("explicit", "hidden") if kind == "copy" else what == "loss"


def _is(event: LayoutEvent, kind: str) -> bool:
    if not event.changes_format or event.kind == "internal":
        return False
    return _is_kind(event.kind, f"{event.source} -> {event.destination}", kind)


def _leaves(event: LayoutEvent, format: str) -> bool:
    """Whether a tensor comes out in another format than this one."""
    if format == "contiguous_format":
        return event.changes_format and event.is_copy and "channels_last" in event.destination
    return event.leaves_channels_last
