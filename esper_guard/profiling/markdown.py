"""A profile as Markdown. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from esper_guard.profiling.choices import PARTS
from esper_guard.profiling.isolation_table import HEADER, has_isolations, isolation_cells
from esper_guard.profiling.line_table import line_cells
from esper_guard.profiling.module_table import doubt_about_modules, module_cells
from esper_guard.profiling.result import Comparison, Profile
from esper_guard.profiling.table import (
    ISOLATION,
    MODULES,
    ROWS,
    Cells,
    byte_cells,
    head,
    time_cells,
    with_lines,
)
from esper_guard.report.gfm import code, prose

_TEXTS = {"workload", "device", "variant", "kind", "operator", "where", "line", "module", "class"}
"""Columns of words; the others hold figures."""


def render_markdown(profile: Profile, parts: Collection[str] = PARTS) -> str:
    """The command, then these parts; a newline at the end.

    There is nothing in it that changes from run to run if no time was measured.
    """
    comparisons = profile.comparisons
    several = len(comparisons) > 1
    shared, rests = told_apart([each.workload for each in comparisons])
    leads = [_lead(each, rest, profile) for each, rest in zip(comparisons, rests, strict=True)]
    about = [head(profile)]
    if shared and profile.settings.target is None:  # or the head has it
        about.append(f"all: {shared}" if several else shared)
    blocks = [f"```sh\n{profile.settings.command}\n```", prose("\n".join(about)).replace("\n", "  \n")]
    if "bytes" in parts:
        blocks.append(_table(_joined([byte_cells(each) for each in comparisons], leads)))
    isolating = [(each, lead) for each, lead in zip(comparisons, leads, strict=True) if has_isolations(each)]
    if isolating and "isolation" in parts:
        cells = _joined([isolation_cells(each) for each, _ in isolating], [lead for _, lead in isolating])
        blocks += [f"{ISOLATION.capitalize()}:", *_without_zeros(cells)]
    timed = [(each, lead) for each, lead in zip(comparisons, leads, strict=True) if each.noise is not None]
    if timed and "time" in parts:
        blocks.append("Time of one step: median (quartiles), and ratio (95 % interval).")
        blocks.append(_table(_joined([time_cells(each) for each, _ in timed], [lead for _, lead in timed])))
    for comparison in comparisons:
        details = _details(comparison, parts)
        if several and details:
            details.insert(0, f"**{_name(comparison)}**")
        blocks += details
    return "\n\n".join(blocks) + "\n"


def _details(comparison: Comparison, parts: Collection[str]) -> list[str]:
    blocks = []
    for variant in with_lines(comparison) if "lines" in parts else ():
        header, *rows = line_cells(variant.lines, ROWS)
        coded = [header, *((*row[:-2], code(row[-2]), code(row[-1])) for row in rows)]
        blocks += [f"Lines, {variant.name}, the costliest:", _table(coded)]
    doubt, modules = doubt_about_modules(comparison), module_cells(comparison, ROWS)
    if "modules" in parts and doubt is not None:
        blocks.append(doubt)
    elif "modules" in parts and modules:
        header, *rows = modules
        blocks += [
            f"{MODULES.capitalize()}.",
            _table([header, *((code(row[0]), code(row[1]), *row[2:]) for row in rows)]),
        ]
    if "advice" in parts:
        blocks.append("\n".join(f"- {prose(sentence)}" for sentence in comparison.advice))
    return blocks


def told_apart(names: Sequence[str]) -> tuple[str, list[str]]:
    """What all names have in common, and the rest of each; a comma separates their parts.

    >>> told_apart(["conv host, training, 14x14", "conv host, training, 28x28"])
    ('conv host, training', ['14x14', '28x28'])
    """
    parts = [name.split(", ") for name in names]
    if len(set(map(len, parts))) > 1:
        return "", list(names)
    differs = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    shared = [part for part, other in zip(parts[0], differs, strict=True) if not other]
    rests = [[part for part, other in zip(each, differs, strict=True) if other] for each in parts]
    return ", ".join(shared), [", ".join(rest) for rest in rests]


def _lead(comparison: Comparison, rest: str, profile: Profile) -> dict[str, str]:
    """The cells on the left that tell a comparison from the others, by the names of their columns."""
    lead = {"workload": _plain(rest)} if rest else {}
    return {**lead, "device": comparison.device} if len(profile.machine.devices) > 1 else lead


def _joined(tables: Sequence[Cells], leads: Sequence[dict[str, str]]) -> Cells:
    """The tables of all comparisons in one."""
    headers = [cells[0] for cells in tables]
    header = headers[0] if len(set(headers)) == 1 else (*headers[0][:-1], "step / first variant")
    return [
        (*leads[0], *header),
        *((*lead.values(), *row) for cells, lead in zip(tables, leads, strict=True) for row in cells[1:]),
    ]


def _without_zeros(cells: Cells) -> Iterator[str]:
    """The table, with the rows that are all zero in a sentence below it."""
    figures = len(HEADER) - 1
    rows = [row for row in cells[1:] if set(row[-figures:]) != {"0"}]
    if rows:
        yield _table([cells[0], *rows])
    by_arm: dict[str, list[tuple[str, ...]]] = {}
    for *lead, variant in (row[:-figures] for row in cells[1:] if row not in rows):
        by_arm.setdefault(variant, []).append(tuple(lead))
    variants = Counter(row[-figures - 1] for row in cells[1:])
    zeros = [_where(variant, leads, len(leads) == variants[variant]) for variant, leads in by_arm.items()]
    if zeros:
        yield f"Not a byte more: {'; '.join(zeros)}."


def _where(variant: str, leads: Sequence[tuple[str, ...]], everywhere: bool) -> str:
    """``"NCHW copy (everywhere)"``, ``"NHWC copy (tokens host, training; tokens host, holding)"``."""
    if not any(leads):
        return variant
    return f"{variant} ({'everywhere' if everywhere else '; '.join(map(', '.join, leads))})"


def _name(comparison: Comparison) -> str:
    return f"{comparison.workload}, {comparison.device}"


def _table(cells: Cells) -> str:
    header, *rows = cells
    ruler = ["---" if name in _TEXTS else "---:" for name in header]
    return "\n".join(_row(row) for row in (header, ruler, *rows))


def _row(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"


def _plain(text: str) -> str:
    """A target may hold any literal."""
    return prose(text).replace("|", "\\|")
