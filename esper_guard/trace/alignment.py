"""Which lines of a file are which lines of an earlier version of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher


def matching_lines(before: str, after: str) -> dict[int, int]:
    """``{line before: line after}``, both counted from 1, for the lines that are still there.

    Lines are the same if their text is, whatever their indentation, and if they come in the same order; besides, a line
    whose text is unique in both versions is the same wherever it moved to.
    """
    old, new = _lines(before), _lines(after)
    if old == new:
        return {line: line for line in range(1, len(old) + 1)}
    start = _common(old, new)
    end = _common(old[start:][::-1], new[start:][::-1])
    found = {line: line for line in range(1, start + 1)}
    found |= {len(old) - back: len(new) - back for back in range(end)}
    middle = SequenceMatcher(None, old[start : len(old) - end], new[start : len(new) - end], autojunk=False)
    for block in middle.get_matching_blocks():
        for offset in range(block.size):
            found[start + block.a + offset + 1] = start + block.b + offset + 1
    return dict(sorted({**_unique(old, new), **found}.items()))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]


def _common(some: Sequence[str], others: Sequence[str]) -> int:
    """How many lines both begin with."""
    return next(
        (at for at, (one, other) in enumerate(zip(some, others, strict=False)) if one != other),
        min(len(some), len(others)),
    )


def _unique(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    once, now_once = ({text for text, times in Counter(lines).items() if times == 1} for lines in (old, new))
    places = {text: line for line, text in enumerate(new, start=1) if text in now_once}
    return {line: places[text] for line, text in enumerate(old, start=1) if text in once and text in places}
