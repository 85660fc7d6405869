"""Which lines of a file are which lines of an earlier version of it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from esper_guard.trace.line_texts import identity

_NAMED = re.compile(r"(?:async\s+)?(?:def|class)\s+(\w+)")


class Line(NamedTuple):
    """What a line is recognised by."""

    scope: tuple[str, ...]
    """The names of the classes and functions around it, the outermost first."""
    text: str
    """Without indentation and comment."""


def matching_lines(before: str, after: str) -> dict[int, int]:
    """``{line before: line after}``, both counted from 1, for the lines that are still there.

    Lines are the same if their text is, whatever their indentation and comments, in a function or class of the same
    name; several such are matched in their order, unless some of them are gone. Besides, a line whose text is unique in
    both versions is the same wherever it moved to.
    """
    old = lines_in(before)
    new = old if before == after else lines_in(after)
    if old == new:
        return {line: line for line in range(1, len(old) + 1)}
    found = _in_order(old, new)
    _add(found, old, new)
    _add(found, [Line((), line.text) for line in old], [Line((), line.text) for line in new], most=1)
    return dict(sorted(found.items()))


def lines_in(text: str) -> list[Line]:
    """Each line with its scope, as far as the indentation tells."""
    scopes: list[tuple[int, str]] = []
    found = []
    for raw in split_lines(text):
        line = "" if raw.lstrip().startswith("#") else identity(raw)
        if line:
            indent = indentation(raw)
            while scopes and scopes[-1][0] >= indent:
                scopes.pop()
        found.append(Line(tuple(name for _, name in scopes), line))
        named = _NAMED.match(line)
        if named is not None:
            scopes.append((indent, named[1]))
    return found


def indentation(line: str) -> int:
    """In characters."""
    return len(line) - len(line.lstrip())


def unchanged_functions(before: str, after: str, same: dict[int, int]) -> frozenset[int]:
    """The lines of ``after`` in functions (or, outside of functions and classes, in a module) that are as they were.

    Args:
        before: the text before.
        after: the text after.
        same: `matching_lines` of both.
    """
    old = lines_in(before)
    if before == after:
        return frozenset(range(1, len(old) + 1))
    new = lines_in(after)
    sizes, new_sizes = (Counter(line.scope for line in lines if line.text) for lines in (old, new))
    kept: Counter[tuple[str, ...]] = Counter()
    for line, now in same.items():
        if old[line - 1].text and old[line - 1].scope == new[now - 1].scope:
            kept[new[now - 1].scope] += 1
    intact = {scope for scope, size in new_sizes.items() if sizes[scope] == size == kept[scope]}
    return frozenset(at for at, line in enumerate(new, start=1) if line.scope in intact)


def split_lines(text: str) -> list[str]:
    """Its lines, as Python counts them, each without its ending."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _in_order(old: Sequence[Line], new: Sequence[Line]) -> dict[int, int]:
    start = _common(old, new)
    end = _common(old[start:][::-1], new[start:][::-1])
    found = {line: line for line in range(1, start + 1)}
    found |= {len(old) - back: len(new) - back for back in range(end)}
    middle = SequenceMatcher(None, old[start : len(old) - end], new[start : len(new) - end], autojunk=False)
    for block in middle.get_matching_blocks():
        for offset in range(block.size):
            found[start + block.a + offset + 1] = start + block.b + offset + 1
    return found


def _common(some: Sequence[Line], others: Sequence[Line]) -> int:
    """How many lines both begin with."""
    return next(
        (at for at, (one, other) in enumerate(zip(some, others, strict=False)) if one != other),
        min(len(some), len(others)),
    )


def _add(found: dict[int, int], old: Sequence[Line], new: Sequence[Line], most: int | None = None) -> None:
    """Match what is left, where there are as many of a kind in both (and no more than ``most``)."""
    places, now_places = _places(old, found.keys()), _places(new, found.values())
    sizes, new_sizes = Counter(old), Counter(new)
    for line, at in places.items():
        now_at = now_places.get(line, [])
        if len(at) == len(now_at) and (most is None or sizes[line] == new_sizes[line] <= most):
            found.update(zip(at, now_at, strict=True))


def _places(lines: Sequence[Line], taken: Iterable[int]) -> dict[Line, list[int]]:
    left = set(range(1, len(lines) + 1)).difference(taken)
    places: dict[Line, list[int]] = defaultdict(list)
    for at in sorted(left):
        if lines[at - 1].text:
            places[lines[at - 1]].append(at)
    return places
