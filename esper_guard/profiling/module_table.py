"""What each module takes in either memory format, side by side. Needs no torch."""

from __future__ import annotations

from typing import Final

from esper_guard.profiling.result import Comparison, ModuleTime, Spread, Variant
from esper_guard.profiling.statistics import spread
from esper_guard.trace.sizes import format_size

_DISTURBED: Final = 2.0
"""Times the step that its modules add up to; the profiler alone makes them about 1.2."""


def module_cells(comparison: Comparison, rows: int) -> list[tuple[str, ...]]:
    """A row for each module, the largest difference between the memory formats first; no rows if nothing was timed.

    Medians with quartiles, in milliseconds, of what a module takes without the modules in it.
    """
    shown = first_of_each_format(comparison)
    if len(shown) < 2:
        return []
    first, last = shown
    before = {time.module: time for time in first.modules}
    after = {time.module: time for time in last.modules}
    halves = ["forward", *(["backward"] if any(time.backward.high for time in after.values()) else [])]
    header = ["module", "class"]
    header += [f"{variant.memory_format} {half}" for half in halves for variant in shown]
    cells = [(*header, f"{last.memory_format} / {first.memory_format}", "copied")]
    names = sorted(
        (name for name in before if name in after and _total(before[name]) + _total(after[name])),
        key=lambda name: -abs(_total(after[name]) - _total(before[name])),
    )
    for name in names[:rows]:
        pair = before[name], after[name]
        times = [milliseconds(getattr(time, half)) for half in halves for time in pair]
        ratio = f"{_total(after[name]) / _total(before[name]):.2f}" if _total(before[name]) else ""
        copied = format_size(after[name].copied) if after[name].copied else ""
        cells.append((name, after[name].kind, *times, ratio, copied))
    return cells


def doubt_about_modules(comparison: Comparison) -> str | None:
    """Why the times of modules say nothing, if they don't: they have to add up to about the step."""
    for variant in first_of_each_format(comparison):
        if variant.times is None:
            continue
        factor = sum(map(_total, variant.modules)) / spread(variant.times.step).median
        if factor > _DISTURBED:
            return (
                f"Modules are not shown: those of {variant.name} add up to {factor:.1f} times the step, so something "
                "disturbed the profiler. Close other programs, or try --threads 1."
            )
    return None


def first_of_each_format(comparison: Comparison) -> list[Variant]:
    """The first variant of each memory format, if its modules were timed."""
    formats = dict.fromkeys(variant.memory_format for variant in comparison.variants)
    first = [
        next(variant for variant in comparison.variants if variant.memory_format == name) for name in formats
    ]
    return [variant for variant in first if variant.modules]


def milliseconds(times: Spread) -> str:
    """``"1.23 (1.20 to 1.30)"``; empty for nothing."""
    if not times.high:
        return ""
    return f"{times.median * 1e3:.2f} ({times.low * 1e3:.2f} to {times.high * 1e3:.2f})"


def _total(time: ModuleTime) -> float:
    return time.forward.median + time.backward.median
