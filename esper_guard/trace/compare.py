"""What lines, modules and operators cost, and what they cost before."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from esper_guard.trace.baseline import name_of
from esper_guard.trace.checkouts import renamed_files
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.known import names_in
from esper_guard.trace.layout_trace import Cost, LayoutTrace
from esper_guard.trace.line_texts import LineTexts

By: TypeAlias = Literal["line", "module", "operator"]


class Row(NamedTuple):
    """A line, a file, a module or an operator."""

    name: str
    """As `LayoutTrace.by_line` and the like have it; of a line that moved, where it is now."""
    file: str | None = None
    """Of a line or a file."""
    lines: tuple[int, ...] = ()
    """Of a line. Several where a comparison takes lines of the same text together."""
    code: str = ""
    modules: tuple[str, ...] = ()
    """Those that ran the line."""
    cost: Cost = Cost()
    before: Cost = Cost()

    @property
    def difference(self) -> Cost:
        """What it costs more than before; below zero if it is less."""
        return Cost(*(now - then for now, then in zip(self.cost, self.before, strict=True)))


class Comparison(NamedTuple):
    """Of two runs."""

    rows: tuple[Row, ...]
    """What changed first, by how much it did; then what didn't."""
    files: tuple[Row, ...]
    sums: Row


def rows_of(trace: LayoutTrace, by: By) -> list[Row]:
    """A row for each line, module or operator, the costliest first."""
    if by != "line":
        costs = trace.by_module() if by == "module" else trace.by_operator()
        return [Row(name, cost=cost) for name, cost in costs.items()]
    events: dict[str, list[LayoutEvent]] = {}
    for event in trace.events:
        events.setdefault(event.location, []).append(event)
    texts = LineTexts(trace.sources)
    rows = []
    for location, several in events.items():
        file, line = several[0].file, several[0].line
        lines = () if line is None else (line,)
        modules = _modules_of(several)
        rows.append(Row(location, file, lines, texts.read(file, line), modules, Cost.of(several)))
    return sorted(rows, key=lambda row: row.cost.rank, reverse=True)


def compare(before: LayoutTrace, after: LayoutTrace, by: By, root: Path) -> Comparison:
    """Both side by side.

    Lines are matched by their text and their file's name below ``root`` or ``site-packages``, whatever their number;
    lines of a file with the same text are one row. Copies inside kernels are left out if one of the runs could not
    see them.
    """
    kernels = before.level == after.level
    renamed = renamed_files(names_in(before.events, root), names_in(after.events, root))
    then, now = _places(before, by, root, renamed, kernels), _places(after, by, root, {}, kernels)
    rows = [
        now.get(key, then.get(key, Row("")))._replace(
            cost=now[key].cost if key in now else Cost(), before=then[key].cost if key in then else Cost()
        )
        for key in {**now, **then}
    ]
    files: dict[str, Row] = {}
    for (file, _), row in [*now.items(), *then.items()]:
        if file is not None:
            files.setdefault(file, Row(row.file or file, row.file))
    for (file, _), row in now.items():
        if file is not None:
            files[file] = files[file]._replace(cost=Cost.sum((files[file].cost, row.cost)))
    for (file, _), row in then.items():
        if file is not None:
            files[file] = files[file]._replace(before=Cost.sum((files[file].before, row.cost)))
    sums = Row(
        "all",
        cost=Cost.sum(row.cost for row in rows),
        before=Cost.sum(row.before for row in rows),
    )
    return Comparison(tuple(_by_change(rows)), tuple(_by_change(files.values())), sums)


def _places(
    trace: LayoutTrace, by: By, root: Path, renamed: dict[str, str], kernels: bool
) -> dict[tuple[str | None, str], Row]:
    """Rows by what they are recognised by: the file's name and the line's text, or the name alone."""
    if by != "line":
        return {(None, row.name): row._replace(cost=_seen(row.cost, kernels)) for row in rows_of(trace, by)}
    texts = LineTexts(trace.sources, numbered=True)
    places: dict[tuple[str | None, str], Row] = {}
    for row in rows_of(trace, "line"):  # the costliest first, which then names them
        row = row._replace(cost=_seen(row.cost, kernels))
        if row.file is None:
            places[None, row.name] = row
            continue
        name = name_of(row.file, root)
        key = (renamed.get(name, name), texts.key(row.file, row.lines[0] if row.lines else None))
        same = places.get(key)
        if same is not None:
            modules = tuple(dict.fromkeys([*same.modules, *row.modules]))
            row = same._replace(
                lines=(*same.lines, *row.lines), modules=modules, cost=Cost.sum((same.cost, row.cost))
            )
        places[key] = row
    return places


def _seen(cost: Cost, kernels: bool) -> Cost:
    return cost if kernels else cost._replace(internal=0, internal_bytes=0)


def _by_change(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=_change, reverse=True)


def _change(row: Row) -> tuple[tuple[int, ...], ...]:
    return (tuple(map(abs, row.difference.rank)), row.cost.rank)


def _modules_of(events: Iterable[LayoutEvent]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(event.module for event in events if event.module is not None))
