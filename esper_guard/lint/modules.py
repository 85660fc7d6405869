"""What the modules of a class are: ``self.conv = nn.Conv2d(...)``, read from its text without running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from esper_guard.lint.imports import Names

NONE = "None"
UNKNOWN = "?"
_CONTAINERS = frozenset(("torch.nn.Sequential", "torch.nn.ModuleList"))
_STOP = re.compile(r"[][(){}\n;]")
_CLASS = re.compile(r"^([ \t]*)class[ \t]+(\w+)\b", re.MULTILINE)
_OWN_ATTRIBUTE = re.compile(r"(?<![\w.])self\.(\w+)[ \t]*(?::[^=\n]*)?=(?!=)")
_MAX_BASES = 5


class Made(NamedTuple):
    """A call that may have made a module. Arguments are literals; one that is not is None in ``known``."""

    origin: str  # "torch.nn.Conv2d"; NONE for no module at all; UNKNOWN for what is no call
    arguments: tuple[object, ...] = ()
    keywords: tuple[tuple[str, object], ...] = ()
    parts: tuple[Made, ...] = ()  # what a container was made of

    def argument(self, position: int, keyword: str) -> object:
        """The literal given for a parameter; None if it is not given, or not literal."""
        for name, value in self.keywords:
            if name == keyword:
                return value
        return self.arguments[position] if position < len(self.arguments) else None


def made_by(node: ast.expr, names: Names) -> tuple[Made, ...]:
    """Every call that the value of ``node`` may come from."""
    if isinstance(node, ast.IfExp):
        return _distinct(made_by(node.body, names) + made_by(node.orelse, names))
    if isinstance(node, ast.BoolOp):
        return _distinct(tuple(one for value in node.values for one in made_by(value, names)))
    if isinstance(node, ast.Constant) and node.value is None:
        return (Made(NONE),)
    if not isinstance(node, ast.Call):
        return (Made(UNKNOWN),)
    if isinstance(node.func, ast.Attribute) and node.func.attr in (
        "to",
        "cuda",
        "cpu",
        "eval",
        "train",
        "half",
    ):
        return made_by(node.func.value, names)
    written = _dotted(node.func)
    if written is None:
        return (Made(UNKNOWN),)
    origin = names.resolve(written)
    keywords = tuple((k.arg, _literal(k.value)) for k in node.keywords if k.arg is not None)
    parts = _parts(node, names) if origin in _CONTAINERS else ()
    return (Made(origin, tuple(map(_literal, node.args)), keywords, parts),)


def parsed(text: str, names: Names) -> tuple[Made, ...]:
    """``made_by`` for the text of one expression."""
    try:
        return made_by(ast.parse(f"({text}\n)", mode="eval").body, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return (Made(UNKNOWN),)


def _parts(call: ast.Call, names: Names) -> tuple[Made, ...]:
    """The children of a container; UNKNOWN stands for any number of them that can't be told."""
    items: list[ast.expr] = list(call.args)
    if len(items) == 1 and isinstance(items[0], (ast.List, ast.Tuple)):
        items = items[0].elts
    elif len(items) == 1 and isinstance(items[0], (ast.ListComp, ast.GeneratorExp)):
        items = [items[0].elt]
    if not items:
        return (Made(UNKNOWN),)
    return tuple(one for item in items for one in made_by(item, names))


def _literal(node: ast.expr) -> object:
    try:
        value = ast.literal_eval(node)
        value = tuple(value) if isinstance(value, list) else value
        hash(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return value


def _dotted(node: ast.expr) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _distinct(made: tuple[Made, ...]) -> tuple[Made, ...]:
    return tuple(dict.fromkeys(made))


class Classes:
    """The classes of one file, by where they stand. Nothing is read before the first question."""

    def __init__(self, text: str, code: str, names: Names) -> None:
        self._text = text
        self._code = code
        self._names = names
        self._known: dict[tuple[int, str], tuple[Made, ...]] = {}
        self._values: dict[
            int, dict[str, list[int]]
        ] = {}  # of a class: where the value of each attribute begins

    def attribute(self, offset: int, name: str) -> frozenset[Made]:
        """What ``self.name`` may be in the function at ``offset``; empty if its class assigns no such attribute."""
        start = self._around(offset)
        return frozenset() if start is None else frozenset(self._attribute(start, name, _MAX_BASES))

    @cached_property
    def _spans(self) -> dict[int, tuple[int, str]]:
        """Where each class begins, where it ends, and its name."""
        from esper_guard.lint.slices import block_end

        return {
            match.start(): (block_end(self._code, match.end(), match[1]), match[2])
            for match in _CLASS.finditer(self._code)
        }

    def _around(self, offset: int) -> int | None:
        """The innermost class around ``offset``."""
        around = [start for start, (end, _) in self._spans.items() if start < offset < end]
        return max(around, default=None)

    def _attribute(self, start: int, name: str, depth: int) -> tuple[Made, ...]:
        key = (start, name)
        if key not in self._known:
            made = _distinct(
                tuple(one for text in self._assigned(start, name) for one in parsed(text, self._names))
            )
            if not made and depth:
                bases = self._names.classes.get(self._spans[start][1], ())
                starts = [at for at, (_, known) in self._spans.items() if known in bases]
                made = _distinct(tuple(m for at in starts for m in self._attribute(at, name, depth - 1)))
            self._known[key] = made
        return self._known[key]

    def _assigned(self, start: int, name: str) -> Iterator[str]:
        """The text of everything that the class assigns to ``self.name``."""
        if start not in self._values:
            found = self._values[start] = {}
            for match in _OWN_ATTRIBUTE.finditer(self._code, start, self._spans[start][0]):
                found.setdefault(match[1], []).append(match.end())
        for at in self._values[start].get(name, ()):
            yield self._text[at : self._end_of_expression(at)].strip()

    def _end_of_expression(self, position: int) -> int:
        depth = 0
        for stop in _STOP.finditer(self._code, position):
            token = stop.group()
            if token in "([{":
                depth += 1
            elif token in ")]}":
                depth -= 1
            elif depth <= 0 and not self._code.endswith("\\", position, stop.start()):
                return stop.start()
        return len(self._code)
