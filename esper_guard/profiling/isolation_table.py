"""What each way to cut the gradient off costs over the first one, in bytes and in multiples of one copy. Needs no torch."""

from __future__ import annotations

from esper_guard.profiling.result import Comparison, Variant
from esper_guard.trace.sizes import format_size

HEADER = ("variant", "copied", "forward", "backward", "peak")


def isolation_cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row for each variant that is not the first of its memory format: what it does more than that one.

    In brackets, how often the bytes of the copy itself (N * C * H * W * itemsize) that is.
    """
    rows: list[tuple[str, ...]] = [HEADER]
    for variant in comparison.variants:
        first = next(other for other in comparison.variants if other.memory_format == variant.memory_format)
        if variant is not first:
            rows.append((variant.name, *_more(variant, first)))
    return rows


def has_isolations(comparison: Comparison) -> bool:
    """Whether there is anything to compare."""
    return (
        any(variant.isolation is not None for variant in comparison.variants)
        and len(isolation_cells(comparison)) > 1
    )


def _more(variant: Variant, first: Variant) -> list[str]:
    copy = _asked_for(variant) - _asked_for(first)
    copied = _shown(variant.copied + variant.other_copied - first.copied - first.other_copied, copy)
    if variant.memory is None or first.memory is None:
        return [copied, *("not measured",) * 3]
    differences = (
        variant.memory.forward - first.memory.forward,
        variant.memory.backward - first.memory.backward,
        variant.memory.peak - first.memory.peak,
    )
    return [copied, *(_shown(difference, copy) for difference in differences)]


def _asked_for(variant: Variant) -> int:
    """The bytes of the copies that lines ask for: here the one that isolates."""
    return sum(line.bytes for line in variant.lines if line.kind == "explicit")


def _shown(size: int, copy: int) -> str:
    if not size:
        return "0"
    sign = "+" if size > 0 else "-"
    multiple = f" ({size / copy:.3g}x)" if copy else ""
    return f"{sign}{format_size(abs(size))}{multiple}"
