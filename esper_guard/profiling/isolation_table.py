"""What each way to cut the gradient off costs over the first one, in bytes and in multiples of one copy. Needs no torch."""

from __future__ import annotations

from esper_guard.profiling.result import Arm, Comparison
from esper_guard.trace.sizes import format_size

HEADER = ("arm", "copied", "forward", "backward", "peak")


def isolation_cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row for each arm that is not the first of its memory format: what it does more than that one.

    In brackets, how often the bytes of the copy itself (N * C * H * W * itemsize) that is.
    """
    rows: list[tuple[str, ...]] = [HEADER]
    for arm in comparison.arms:
        first = next(other for other in comparison.arms if other.memory_format == arm.memory_format)
        if arm is not first:
            rows.append((arm.name, *_more(arm, first)))
    return rows


def has_isolations(comparison: Comparison) -> bool:
    """Whether there is anything to compare."""
    return any(arm.isolation is not None for arm in comparison.arms) and len(isolation_cells(comparison)) > 1


def _more(arm: Arm, first: Arm) -> list[str]:
    copy = _asked_for(arm) - _asked_for(first)
    copied = _shown(arm.copied + arm.other_copied - first.copied - first.other_copied, copy)
    if arm.memory is None or first.memory is None:
        return [copied, *("not measured",) * 3]
    differences = (
        arm.memory.forward - first.memory.forward,
        arm.memory.backward - first.memory.backward,
        arm.memory.peak - first.memory.peak,
    )
    return [copied, *(_shown(difference, copy) for difference in differences)]


def _asked_for(arm: Arm) -> int:
    """The bytes of the copies that lines ask for: here the one that isolates."""
    return sum(line.bytes for line in arm.lines if line.kind == "explicit")


def _shown(size: int, copy: int) -> str:
    if not size:
        return "0"
    sign = "+" if size > 0 else "-"
    multiple = f" ({size / copy:.3g}x)" if copy else ""
    return f"{sign}{format_size(abs(size))}{multiple}"
