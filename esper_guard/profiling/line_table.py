"""The lines that cost most, a row for each. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable

from esper_guard.profiling.result import LineCost
from esper_guard.trace.sizes import format_size


def line_cells(lines: Iterable[LineCost], rows: int) -> list[tuple[str, ...]]:
    """Copies between memory formats and losses; the same in several modules is one row. The header alone if there are none."""
    groups: dict[tuple[str, ...], list[LineCost]] = {}
    for line in filter(concerns_formats, lines):
        groups.setdefault((line.place, kind_of(line), line.operator), []).append(line)
    cells: list[tuple[str, ...]] = [("bytes", "times", "kind", "operator", "where", "line")]
    for (place, kind, operator), several in list(groups.items())[:rows]:
        first = several[0]
        size = "" if first.kind == "loss" else format_size(sum(line.bytes for line in several))
        times = sum(line.count for line in several)
        modules = modules_of(several)
        where = f"{place} ({modules})" if modules else place
        cells.append((size, str(times), kind, operator, where, first.text))
    return cells


def concerns_formats(line: LineCost) -> bool:
    """Whether it copies between memory formats or loses one, and does not merely change strides."""
    return line.changes_format or not line.is_copy


def kind_of(line: LineCost) -> str:
    """``"hidden, backward"``."""
    return line.kind if line.phase == "forward" else f"{line.kind}, {line.phase}"


def modules_of(lines: Iterable[LineCost]) -> str:
    """``"stages.2.1 and 2 more"``; empty if none is known."""
    modules = list(dict.fromkeys(line.module for line in lines if line.module is not None))
    more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
    return f"{modules[0]}{more}" if modules else ""
