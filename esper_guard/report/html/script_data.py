"""What the script of the page filters and sums up, as JSON that nothing in a page can end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from esper_guard.report.html.events import kind_of
from esper_guard.report.html.text import visible
from esper_guard.trace.event import LayoutEvent

_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


class _Table:
    """Values by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}

    def number(self, value: object) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def values(self) -> list[object]:
        return list(self._numbers)


def script_data(events: Sequence[LayoutEvent], files: Mapping[str, int], names: Iterable[str]) -> Markup:
    """The events in short; places without a file have negative numbers.

    Args:
        events: in the order of the trace.
        files: the number of each file in the report.
        names: of the files, in the order of their numbers.
    """
    modules, operators, tests, sets, places = (_Table() for _ in range(5))
    for name in names_of_modules(events):
        modules.number(name)
    rows = [
        [
            -1 - places.number(event.location) if event.file is None else files[event.file],
            event.line or 0,
            kind_of(event),
            event.phase,
            operators.number(event.operator),
            modules.number(event.module or "(no module)"),
            sets.number(tuple(tests.number(test) for test in event.tests)),
            event.bytes,
            event.count,
        ]
        for event in events
    ]
    return embedded(
        {
            "files": list(names),
            "places": places.values,
            "operators": operators.values,
            "modules": modules.values,
            "tests": tests.values,
            "sets": sets.values,
            "events": rows,
        }
    )


def names_of_modules(events: Iterable[LayoutEvent]) -> list[str]:
    """In the order of their numbers, as `LayoutTrace.by_module` has them."""
    return list(dict.fromkeys(event.module or "(no module)" for event in events))


def embedded(data: object) -> Markup:
    """JSON for ``<script type="application/json">``."""
    return Markup(json.dumps(_visible(data), separators=(",", ":")).translate(_ESCAPES))


def _visible(data: object) -> object:
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, dict):
        return {key: _visible(value) for key, value in data.items()}
    return [_visible(value) for value in data] if isinstance(data, list | tuple) else data
