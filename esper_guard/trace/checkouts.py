"""The same files, where a project lay in another folder."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

_PACKAGES = "site-packages/", "dist-packages/"


def renamed_files(before: Iterable[str], after: Iterable[str]) -> dict[str, str]:
    """``{"base/model.py": "head/model.py"}``: what files of one run are called in another one.

    Names are those of `esper_guard.trace.baseline.name_of`. Two runs that share a file are of one checkout, and
    nothing is renamed. Otherwise one folder is taken for another: the pair that makes most names equal. If several do,
    nothing is.
    """
    old, new = set(_own(before)), set(_own(after))
    if old & new or not old or not new:
        return {}
    by_end: dict[str, list[str]] = defaultdict(list)
    for name in new:
        by_end[PurePosixPath(name).name].append(name)
    moves = Counter(
        _move(name, other) for name in sorted(old) for other in sorted(by_end[PurePosixPath(name).name])
    )
    best = moves.most_common(2)
    if not best or (len(best) == 2 and best[0][1] == best[1][1]):
        return {}
    (source, target), _ = best[0]
    renamed = {name: f"{target}{name[len(source) :]}" for name in sorted(old) if name.startswith(source)}
    return {name: other for name, other in renamed.items() if other in new}


def _own(names: Iterable[str]) -> Iterable[str]:
    return (name for name in names if not name.startswith((*_PACKAGES, "<")))


def _move(name: str, other: str) -> tuple[str, str]:
    """What is left of both without the folders and the name at their ends that are equal."""
    parts, others = name.split("/"), other.split("/")
    while parts and others and parts[-1] == others[-1]:
        parts.pop()
        others.pop()
    return "".join(f"{part}/" for part in parts), "".join(f"{part}/" for part in others)
