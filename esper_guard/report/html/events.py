"""Events as the report shows them: in words, and those together that differ in module and shape only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.sizes import format_size
from esper_guard.trace.table import why

_WORDS = {
    "explicit": "The line asks for this copy.",
    "hidden": "The operator makes this copy; the line does not ask for it.",
    "loss": "No copy, but an operator read channels_last and wrote NCHW: what reads that runs in NCHW, or copies it back.",
    "internal": "Copied inside a kernel, so no line of yours asks for it or can leave it out.",
}
_OF_THE_BACKWARD = "The backward of this line makes this copy; the line does not ask for it."
_STRIDES_ONLY = " Only strides changed, not the memory format."
_TESTS = 12


class Row(NamedTuple):
    """One event of a group."""

    number: int
    """Its place in the trace."""
    bytes: int
    size: str
    times: str
    shape: str
    module: str
    tests: int


class Group(NamedTuple):
    """Events of one line by the same operator with the same outcome."""

    kind: str
    title: str
    words: str
    operator: str
    change: str
    where: str
    """``"float32, cuda:0, forward"``."""
    phase: str
    why: str | None
    rows: list[Row]


class Tests(NamedTuple):
    """Those that ran a line."""

    shown: list[str]
    more: int
    """How many are left out."""

    @property
    def number(self) -> int:
        """Of all."""
        return len(self.shown) + self.more


def groups_of(numbered: Iterable[tuple[int, LayoutEvent]], code: str = "") -> list[Group]:
    """The costliest first; ``code`` is the text of their line, if it is known."""
    groups: dict[tuple[object, ...], list[tuple[int, LayoutEvent]]] = {}
    for number, event in numbered:
        alike = (event.kind, event.operator, change_of(event), event.dtype, event.device, event.phase)
        groups.setdefault((*alike, event.changes_format), []).append((number, event))
    return sorted((_group(several, code) for several in groups.values()), key=_importance)


def tests_of(numbered: Iterable[tuple[int, LayoutEvent]]) -> Tests:
    """Those that ran any of the events."""
    several = sorted({test for _, event in numbered for test in event.tests})
    return Tests(several[:_TESTS], max(0, len(several) - _TESTS))


def kind_of(event: LayoutEvent) -> str:
    """What the report counts it as: "explicit", "hidden", "loss", "other" (strides only) or "internal"."""
    return "other" if event.is_copy and not event.changes_format else event.kind


def change_of(event: LayoutEvent) -> str:
    """``"channels_last -> nchw"``; NCHW says nothing about a matrix."""
    states: tuple[str, ...] = (event.source, event.destination)
    if len(event.shape) not in (4, 5) and not event.changes_format:
        states = tuple(
            {"nchw": "contiguous", "strided(nchw)": "strided"}.get(state, state) for state in states
        )
    return " -> ".join(states)


def _group(numbered: Sequence[tuple[int, LayoutEvent]], code: str) -> Group:
    event = numbered[0][1]
    words = _OF_THE_BACKWARD if event.kind == "hidden" and event.phase == "backward" else _WORDS[event.kind]
    return Group(
        kind=kind_of(event),
        title=event.kind if event.kind == "loss" else f"{event.kind} copy",
        words=words if event.changes_format or not event.is_copy else words + _STRIDES_ONLY,
        operator=event.operator,
        change=change_of(event),
        where=f"{event.dtype}, {event.device}, {event.phase}",
        phase=event.phase,
        why=why(event, code),
        rows=[_row(number, each) for number, each in sorted(numbered, key=lambda item: -item[1].bytes)],
    )


def _row(number: int, event: LayoutEvent) -> Row:
    shapes = [_shape(shape) for shape in (event.source_shape, event.shape)]
    most = "up to " if event.shapes_vary else ""
    return Row(
        number,
        event.bytes,
        format_size(event.bytes),
        "once" if event.count == 1 else f"{event.count} times",
        most + (shapes[1] if shapes[0] == shapes[1] else " -> ".join(shapes)),
        event.module or "(no module)",
        len(event.tests),
    )


def _shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes)) or "scalar"


def _importance(group: Group) -> tuple[object, ...]:
    order = {"loss": 1, "other": 2, "internal": 3}.get(group.kind, 0)
    return (order, -sum(row.bytes for row in group.rows), group.operator, group.change, group.phase)
