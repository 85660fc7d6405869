"""From a trace to the page: what the templates show."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

import esper_guard
from esper_guard.lint.registry import all_rules
from esper_guard.report.html.compare import Comparison, compare
from esper_guard.report.html.drawing import ROW, drawn, height_of
from esper_guard.report.html.events import Group, Tests, groups_of, tests_of
from esper_guard.report.html.files import SHARES, File, Hit, Numbered, file_of, margin_of
from esper_guard.report.html.findings import advice_on
from esper_guard.report.html.head import facts_of, sums_of
from esper_guard.report.html.icicle import lay_out
from esper_guard.report.html.names import short_names
from esper_guard.report.html.rules import rule_page
from esper_guard.report.html.script_data import names_of_modules, script_data
from esper_guard.report.html.security import policy_of
from esper_guard.report.html.sources import is_of_now, texts_of
from esper_guard.report.html.text import finalize, visible
from esper_guard.trace.layout_trace import Cost, LayoutTrace
from esper_guard.trace.sizes import format_size

_TOP_LINES = 50
_MANY_LINES = 20_000
"""Of source; from so many on, browsers take seconds to open a page with all of them in colour."""


class Lineless(NamedTuple):
    """Events without a line."""

    number: int
    name: str
    cost: Cost
    margin: str
    groups: list[Group]
    tests: Tests


class ShownRule(NamedTuple):
    """A rule that explains something."""

    code: str
    name: str
    page: Markup


def render(trace: LayoutTrace, before: LayoutTrace | None, title: str) -> str:
    """The page."""
    style, script = Markup(_resource("style.css")), Markup(_resource("script.js"))
    content = {**_content(trace, before), "title": title, "style": style, "script": script}
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(content, policy=policy_of(style, script), version=esper_guard.__version__)
    )


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    made.filters.update(size=format_size, ticks=_ticks)
    return made


def _content(trace: LayoutTrace, before: LayoutTrace | None) -> dict[str, Any]:
    events = trace.events
    comparison = None if before is None else compare(before, trace)
    files = _files(trace, comparison)
    sizes: dict[str, int] = {}
    for event in trace.copies:
        name = event.module or "(no module)"
        sizes[name] = sizes.get(name, 0) + event.bytes
    boxes = lay_out(sizes)
    lines = [(file, hit) for file in files for hit in file.hits]
    lines.sort(key=lambda item: (*(-part for part in item[1].cost.rank), item[0].number, item[1].number))
    total, executed = trace.total_bytes, trace.executed
    return {
        "trace": trace,
        "sums": sums_of(trace),
        "facts": facts_of(trace, len(files)),
        "total": total,
        "comparison": comparison,
        "files": files,
        "numbers": {file.path: file.number for file in files},
        "anchors": {(file.path, hit.number) for file, hit in lines},
        "lines": lines[:_TOP_LINES],
        "more_lines": max(0, len(lines) - _TOP_LINES),
        "modules": trace.by_module(),
        "module_numbers": {name: number for number, name in enumerate(names_of_modules(events))},
        "boxes": drawn(boxes),
        "height": height_of(boxes),
        "row": ROW,
        "lineless": _lineless(trace),
        "rules": _rules(hit for _, hit in lines),
        "shares": SHARES,
        "has_executed": any(executed.get(file.path) for file in files),
        "data": script_data(
            events, {file.path: file.number for file in files}, [file.name for file in files]
        ),
    }


def _files(trace: LayoutTrace, comparison: Comparison | None) -> list[File]:
    """By what they copied, the costliest first."""
    by_file: dict[str, dict[int, list[Numbered]]] = {}
    costs: dict[str, Cost] = {}
    for number, event in enumerate(trace.events):
        if event.file is not None:
            by_file.setdefault(event.file, {}).setdefault(event.line or 0, []).append((number, event))
            costs[event.file] = costs.get(event.file, Cost()).plus(event)
    texts = texts_of(trace)
    is_light = sum(text.count("\n") for text in texts.values()) > _MANY_LINES
    copying = {event.file for event in trace.events if event.kind != "internal"}
    advice = advice_on({file: text for file, text in texts.items() if file in copying}, trace.events)
    names = short_names(by_file)
    total, executed = trace.total_bytes, trace.executed
    ordered = sorted(by_file, key=lambda file: (*(-part for part in costs[file].rank), names[file]))
    changed = {} if comparison is None else comparison.by_line
    gone = [] if comparison is None else [change for change in comparison.lines if change.is_gone]
    return [
        file_of(
            number,
            path,
            names[path],
            texts.get(path),
            by_file[path],
            total,
            advice.get(path, ()),
            {line: changed[path, line] for line in by_file[path] if (path, line) in changed},
            [change for change in gone if change.place.file == path],
            executed.get(path, ()),
            is_light,
            is_of_now(trace, path),
        )
        for number, path in enumerate(ordered)
    ]


def _lineless(trace: LayoutTrace) -> list[Lineless]:
    places: dict[str, list[Numbered]] = {}
    costs: dict[str, Cost] = {}
    for number, event in enumerate(trace.events):
        if event.file is None:
            places.setdefault(event.location, []).append((number, event))
            costs[event.location] = costs.get(event.location, Cost()).plus(event)
    numbers = {name: number for number, name in enumerate(places)}
    ordered = sorted(places, key=lambda name: (*(-part for part in costs[name].rank), name))
    return [
        Lineless(
            numbers[name],
            name,
            costs[name],
            margin_of(costs[name]),
            groups_of(places[name]),
            tests_of(places[name]),
        )
        for name in ordered
    ]


def _rules(hits: Iterable[Hit]) -> list[ShownRule]:
    codes = sorted({item.code for hit in hits for item in hit.advice})
    rules = all_rules()
    return [ShownRule(code, rules[code].name, rule_page(rules[code], codes)) for code in codes]


def _ticks(text: str) -> Markup:
    """What stands between backticks as code."""
    parts = (escape(visible(part)) for part in text.split("`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts)
    )


def _resource(name: str) -> str:
    return resources.files("esper_guard.report.html").joinpath(name).read_text("utf-8")
