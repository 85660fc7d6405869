"""Slicing loses nothing: the sliced result equals the whole-file result, finding by finding."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from esper_guard.lint.check import check_source
from esper_guard.lint.engine import with_deep_stack
from esper_guard.lint.finding import Finding
from esper_guard.lint.registry import all_rules
from esper_guard.lint.source import Source, SourceError

CODES = frozenset(all_rules())


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in ("site-packages", "__pycache__"))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith((".py", ".pyi")))


def _both(path: Path) -> tuple[list[Finding], list[Finding]] | None:
    try:
        source = Source.from_bytes(str(path), path.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check_source(source, CODES), check_source(source, CODES, sliced=False)
    except SourceError:
        return None  # deliberately broken files in the standard library's own tests


def _compare(paths: list[Path]) -> list[str]:
    different = []
    for path in paths:
        both = _both(path)
        if both is not None and both[0] != both[1]:
            different.append(f"{path}: sliced {both[0]} whole {both[1]}")
    return different


def _compare_deep(paths: list[Path]) -> list[str]:
    return with_deep_stack(partial(_compare, paths))


def _compare_all(paths: list[Path]) -> list[str]:
    batches = [paths[start::16] for start in range(16)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [line for lines in pool.map(_compare_deep, batches) for line in lines]


@pytest.mark.slow
def test_sliced_equals_whole_on_the_installed_torch() -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    paths = list(_python_files(Path(spec.origin).parent))
    assert len(paths) > 1000
    assert _compare_all(paths) == []


@pytest.mark.slow
def test_sliced_equals_whole_on_the_standard_library() -> None:
    paths = list(_python_files(Path(sysconfig.get_path("stdlib"))))
    assert len(paths) > 100
    assert _compare_all(paths) == []
