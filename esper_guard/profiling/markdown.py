"""A profile as Markdown. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from esper_guard.profiling.choices import PARTS
from esper_guard.profiling.isolation_table import has_isolations, isolation_cells
from esper_guard.profiling.result import Comparison, Profile
from esper_guard.profiling.table import (
    ISOLATION,
    Cells,
    byte_cells,
    head,
    line_cells,
    module_cells,
    shown_by_module,
    time_cells,
)
from esper_guard.report.gfm import code

_FIGURES = {"bytes", "times", "copied"}


def render_markdown(profile: Profile, parts: Collection[str] = PARTS) -> str:
    """The command, then these parts; a newline at the end.

    There is nothing in it that changes from run to run if no time was measured.
    """
    several = len(profile.comparisons) > 1
    blocks = [f"```sh\n{profile.settings.command}\n```", head(profile).replace("\n", "  \n")]
    if "bytes" in parts:
        blocks.append(_table(_joined([(each, byte_cells(each)) for each in profile.comparisons], several)))
    isolations = [(each, isolation_cells(each)) for each in profile.comparisons if has_isolations(each)]
    if isolations and "isolation" in parts:
        blocks += [f"{ISOLATION.capitalize()}:", _table(_joined(isolations, several))]
    timed = [(each, time_cells(each)) for each in profile.comparisons if each.noise is not None]
    if timed and "time" in parts:
        blocks.append("Time of one step: median (quartiles), and ratio (95 % interval).")
        blocks.append(_table(_joined(timed, several)))
    for comparison in profile.comparisons:
        details = _details(comparison, parts)
        if several and details:
            details.insert(0, f"**{_name(comparison)}**")
        blocks += details
    return "\n\n".join(blocks) + "\n"


def _details(comparison: Comparison, parts: Collection[str]) -> list[str]:
    blocks = []
    for arm in comparison.arms if "lines" in parts else ():
        if arm.memory_format == "NHWC" and arm.lines:
            header, *rows = line_cells(arm)
            coded = [header, *((*row[:-2], code(row[-2]), code(row[-1])) for row in rows)]
            blocks += [f"Lines, {arm.name}, the costliest:", _table(coded)]
    for arm in shown_by_module(comparison) if "modules" in parts else ():
        header, *rows = module_cells(arm)
        blocks += [
            f"Modules, {arm.name}, the slowest by themselves: median (quartiles).",
            _table([header, *((code(row[0]), *row[1:]) for row in rows)]),
        ]
    if "advice" in parts:
        blocks.append("\n".join(f"- {sentence}" for sentence in comparison.advice))
    return blocks


def _joined(found: Sequence[tuple[Comparison, Cells]], several: bool) -> Cells:
    """The tables of all comparisons in one."""
    if not several:
        return found[0][1]
    headers = [cells[0] for _, cells in found]
    header = headers[0] if len(set(headers)) == 1 else (*headers[0][:-1], "step / first arm")
    return [
        ("workload", "device", *header),
        *((_plain(each.workload), each.device, *row) for each, cells in found for row in cells[1:]),
    ]


def _name(comparison: Comparison) -> str:
    return f"{comparison.workload}, {comparison.device}"


def _table(cells: Cells) -> str:
    header, *rows = cells
    ruler = ["---:" if name in _FIGURES else "---" for name in header]
    return "\n".join(_row(row) for row in (header, ruler, *rows))


def _row(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"


def _plain(text: str) -> str:
    """A target may hold any literal."""
    return text.replace("|", "\\|")
