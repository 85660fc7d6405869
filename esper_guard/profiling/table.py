"""A profile for the terminal. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection

from esper_guard.profiling.choices import PARTS
from esper_guard.profiling.isolation_table import has_isolations, isolation_cells
from esper_guard.profiling.line_table import concerns_formats, line_cells
from esper_guard.profiling.module_table import doubt_about_modules, module_cells
from esper_guard.profiling.result import (
    Comparison,
    Part,
    Profile,
    Ratio,
    Spread,
    Variant,
)
from esper_guard.profiling.statistics import spread
from esper_guard.trace.sizes import format_size
from esper_guard.trace.table import aligned

ROWS = 10
Cells = list[tuple[str, ...]]
"""Rows of a table, the header first."""
MODULES = "modules by themselves, the largest difference first: milliseconds, median (quartiles)"
ISOLATION = "bytes more than with x.detach(), in one step (and how often those of the copy itself)"


def render_table(profile: Profile, parts: Collection[str] = PARTS) -> str:
    """These parts, for each comparison."""
    blocks = [head(profile)]
    for comparison in profile.comparisons:
        blocks.append(f"{comparison.workload}, {comparison.device}")
        for title, cells, left in _tables(comparison, parts):
            blocks.append("\n".join([title, *aligned(cells, left=left)]))
        doubt = doubt_about_modules(comparison)
        if "modules" in parts and doubt is not None:
            blocks.append(doubt)
        if "advice" in parts:
            blocks.append("\n".join(f"- {sentence}" for sentence in comparison.advice))
    return "\n\n".join(blocks)


def head(profile: Profile) -> str:
    """What was measured, and where, in two lines. The hardware is named where that matters: bytes are the same."""
    machine, settings = profile.machine, profile.settings
    what = [
        settings.target or "built-in host with a SeedSlot",
        "training step" if settings.training else "inference",
    ]
    what += settings.inputs
    what += [f"dtype {settings.dtype}"] if settings.dtype else []
    what += [f"autocast {settings.autocast}"] if settings.autocast else []
    what += ["torch.compile"] if settings.compiled else []
    where = [f"torch {machine.torch}"]
    if settings.timed:
        where.append(threads(machine.threads))
    where += [
        f"{name} ({hardware})" if settings.timed else name for name, hardware in machine.devices.items()
    ]
    return f"{', '.join(what)}\n{', '.join(where)}"


def threads(number: int) -> str:
    """``"2 threads"``."""
    return f"{number} thread" if number == 1 else f"{number} threads"


def _tables(comparison: Comparison, parts: Collection[str]) -> list[tuple[str, Cells, int]]:
    """Titles and cells of a comparison, with how many columns on the left are numbers; only those with something in them."""
    found: list[tuple[str, Cells, int]] = []
    if "bytes" in parts:
        found.append(("bytes in one step", byte_cells(comparison), 0))
    if "isolation" in parts and has_isolations(comparison):
        found.append((ISOLATION, isolation_cells(comparison), 0))
    if "time" in parts and comparison.noise is not None:
        found.append(
            ("time of one step: median (quartiles), and ratio (95 % interval)", time_cells(comparison), 0)
        )
    if "lines" in parts:
        found += [
            (f"lines, {variant.name}: the costliest", line_cells(variant.lines, ROWS), 2)
            for variant in with_lines(comparison)
        ]
    if "modules" in parts and doubt_about_modules(comparison) is None:
        cells = module_cells(comparison, ROWS)
        found += [(MODULES, cells, 0)] if cells else []
    return found


def with_lines(comparison: Comparison) -> list[Variant]:
    """Variants with lines that concern memory formats."""
    return [variant for variant in comparison.variants if any(map(concerns_formats, variant.lines))]


def byte_cells(comparison: Comparison) -> Cells:
    """Copies and memory of each variant."""
    header = ("variant", "layout copies", "copied", "losses", "other copies", "forward", "backward", "peak")
    cells: Cells = [header]
    for variant in comparison.variants:
        memory = variant.memory
        sizes = ("not measured",) * 3
        if memory is not None:
            sizes = (format_size(memory.forward), format_size(memory.backward), format_size(memory.peak))
        copied = (
            str(variant.copies),
            format_size(variant.copied),
            str(variant.losses),
            format_size(variant.other_copied),
        )
        cells.append((variant.name, *(("not seen",) * 4 if variant.unseen else copied), *sizes))
    return cells


def time_cells(comparison: Comparison) -> Cells:
    """Times of each variant, and ratios to the first one."""
    first = comparison.variants[0]
    training = first.times is not None and bool(first.times.backward)
    cells: Cells = [
        ("variant", *(("forward", "backward") if training else ()), "step", f"step / {first.name}")
    ]
    for variant in comparison.variants:
        if variant.times is None:
            continue
        parts: tuple[Part, ...] = ("forward", "backward", "step") if training else ("step",)
        ratio = comparison.ratio(variant.name, first.name)
        row = tuple(milliseconds(spread(variant.times.of(part))) for part in parts)
        cells.append((variant.name, *row, "1" if ratio is None else shown_ratio(ratio)))
    if comparison.noise is not None:
        again = comparison.noise.ratio
        cells.append((again.variant, *("" for _ in cells[0][2:]), shown_ratio(again)))
    return cells


def milliseconds(times: Spread) -> str:
    """``"1.23 ms (1.20 to 1.30)"``; empty for nothing."""
    if not times.high:
        return ""
    return f"{times.median * 1e3:.2f} ms ({times.low * 1e3:.2f} to {times.high * 1e3:.2f})"


def shown_ratio(ratio: Ratio) -> str:
    """``"0.71 (0.68 to 0.74)"``."""
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
