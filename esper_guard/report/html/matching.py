"""Which line of one text is which line of another."""

from __future__ import annotations

from collections import defaultdict
from difflib import SequenceMatcher

from esper_guard.report.html.text import lines_of


class Matching:
    """Lines that both texts hold, whatever their indentation and their place; numbers count from 1.

    Args:
        old: the text before; None if it is not known.
        new: the text after. Unless both are known, lines are matched by their numbers.
    """

    def __init__(self, old: str | None, new: str | None) -> None:
        self._by_number = old is None or new is None or old == new
        self._after: dict[int, int] = {}
        if old is not None and new is not None and old != new:
            self._after = _matched(*([line.strip() for line in lines_of(text)] for text in (old, new)))
        self._before = {new: old for old, new in self._after.items()}

    def after(self, line: int) -> int | None:
        """Where a line is now; None if it is gone."""
        return line if self._by_number else self._after.get(line)

    def before(self, line: int) -> int | None:
        """Where a line was; None if it is new."""
        return line if self._by_number else self._before.get(line)


def _matched(old: list[str], new: list[str]) -> dict[int, int]:
    """First what kept its order, then, of the rest, equal lines that stand somewhere else."""
    found: dict[int, int] = {}
    for block in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            found[block.a + offset + 1] = block.b + offset + 1
    taken = set(found.values())
    free: defaultdict[str, list[int]] = defaultdict(list)
    for number in range(len(new), 0, -1):
        if number not in taken and new[number - 1]:
            free[new[number - 1]].append(number)
    for number, line in enumerate(old, 1):
        if number not in found and free.get(line):
            found[number] = free[line].pop()
    return found
