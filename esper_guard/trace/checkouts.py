"""The same files, where a project lay in another folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

_PACKAGES = "site-packages/", "dist-packages/"


def renamed_files(before: Iterable[str], after: Iterable[str]) -> dict[str, str]:
    """``{"base/model.py": "head/model.py"}``: what files of one run are called in another one.

    Names are those of `esper_guard.trace.baseline.name_of`. A file of both runs is the same file. Of the others, one
    folder is taken for another: the pair that makes most names equal, and of several such the one that has the longest
    names in common. If that is still more than one, nothing is renamed.
    """
    all_old, all_new = set(_own(before)), set(_own(after))
    old, new = all_old - all_new, all_new - all_old
    by_end: dict[str, list[str]] = defaultdict(list)
    for name in new:
        by_end[PurePosixPath(name).name].append(name)
    ranks: dict[tuple[str, str], tuple[int, int]] = {}
    for name in sorted(old):
        for other in sorted(by_end[PurePosixPath(name).name]):
            move, parts = _move(name, other)
            files, common = ranks.get(move, (0, 0))
            ranks[move] = (files + 1, common + parts)
    best = [move for move, rank in ranks.items() if rank == max(ranks.values())]
    if len(best) != 1:
        return {}
    source, target = best[0]
    renamed = {name: f"{target}{name[len(source) :]}" for name in sorted(old) if name.startswith(source)}
    return {name: other for name, other in renamed.items() if other in new}


def _own(names: Iterable[str]) -> Iterable[str]:
    return (name for name in names if not name.startswith((*_PACKAGES, "<")))


def _move(name: str, other: str) -> tuple[tuple[str, str], int]:
    """What is left of both without the folders and the name at their ends that are equal; and how many those are."""
    parts, others = name.split("/"), other.split("/")
    common = 0
    while parts and others and parts[-1] == others[-1]:
        parts.pop()
        others.pop()
        common += 1
    return ("".join(f"{part}/" for part in parts), "".join(f"{part}/" for part in others)), common
