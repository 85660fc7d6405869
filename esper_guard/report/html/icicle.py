"""Where bytes go by module: each module a box as wide as what it and the modules in it copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

WHOLE = "all modules"
_DEEPEST = 24
"""What is deeper is part of the box around it."""
_NARROWEST = 4_000
"""Boxes below this part of the whole are left out; the table has them."""


class Box(NamedTuple):
    """One module; places and widths are in bytes of the whole."""

    name: str
    """Dotted, from the outermost module; empty for the whole."""
    label: str
    depth: int
    start: int
    width: int


def lay_out(sizes: Mapping[str, int]) -> list[Box]:
    """A box for the whole, then each module's, the parents before their children and the widest child first.

    Args:
        sizes: bytes by dotted module name, without what the modules in it copied.
    """
    totals: dict[str, int] = {}
    children: dict[str, dict[str, None]] = {}
    for name, size in sizes.items():
        if size <= 0:
            continue
        totals[""] = totals.get("", 0) + size
        for path, parent in _paths(name):
            totals[path] = totals.get(path, 0) + size
            children.setdefault(parent, {})[path] = None
    if not totals:
        return []
    boxes: list[Box] = []
    waiting = [Box("", WHOLE, 0, 0, totals[""])]
    while waiting:
        box = waiting.pop()
        boxes.append(box)
        inside: list[Box] = []
        start = box.start
        for name in sorted(children.get(box.name, ()), key=lambda name: (-totals[name], name)):
            label = name[len(box.name) + 1 :] if box.name else name
            inside.append(Box(name, label, box.depth + 1, start, totals[name]))
            start += totals[name]
        waiting += reversed([each for each in inside if each.width * _NARROWEST >= totals[""]])
    return boxes


def _paths(name: str) -> list[tuple[str, str]]:
    """Each module around a module, and itself, with its parent; the outermost ones only if they are too many."""
    found: list[tuple[str, str]] = []
    parent = ""
    end = -1
    while True:
        end = name.find(".", end + 1)
        path = name if end < 0 else name[:end]
        if path and path != parent:
            found.append((path, parent))
            parent = path
        if end < 0 or len(found) == _DEEPEST:
            return found
