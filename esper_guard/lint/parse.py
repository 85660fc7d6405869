"""Text to syntax, guarded: LibCST's native parser would end the process on code nested too deeply.

CPython's own parser goes first (it refuses such code with an exception, and is ten times faster); LibCST decides
where the two differ, because it also knows the syntax of Pythons newer than the one that runs.
"""

from __future__ import annotations

import ast
import gc
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from esper_guard.lint.source import Source, SourceError

if TYPE_CHECKING:
    import libcst as cst

_DEEPEST_BRACKETS = 200  # CPython's own limit
_DEEPEST_TREE = 3000  # what LibCST is known to survive on the stack that the engine gives it
_TOO_DEEP = "the code is nested too deeply to be parsed"


def check_syntax(source: Source) -> ast.Module | None:
    """CPython's tree of ``source``; None where only LibCST knows its syntax.

    Raises:
        SourceError: with the place of the error.
    """
    try:
        with (
            warnings.catch_warnings(),
            _recursion_limit(_DEEPEST_TREE // 3),
        ):  # CPython allows three levels a frame
            warnings.simplefilter("ignore")
            tree = ast.parse(source.text)
        if sys.version_info < (3, 11) and _is_deeper_than(tree, _DEEPEST_TREE):
            raise RecursionError
        return tree
    except (RecursionError, MemoryError):
        raise SourceError(_TOO_DEEP) from None
    except (SyntaxError, ValueError) as error:
        if _bracket_depth(source.text) > _DEEPEST_BRACKETS:
            raise SourceError(_TOO_DEEP, getattr(error, "lineno", None) or 1) from None
        if not _libcst_accepts(source.text):
            row, column = getattr(error, "lineno", None) or 1, getattr(error, "offset", None) or 1
            message = getattr(error, "msg", None) or str(error)
            raise SourceError(f"syntax error: {message}", row, max(column, 1)) from None
        return None


def parse_module(text: str) -> cst.Module:
    """The concrete syntax tree of a slice that ``check_syntax`` has let pass.

    Raises:
        SourceError: LibCST doesn't accept it all the same (a form feed before an indented line, for one).
    """
    import libcst as cst

    try:
        return cst.parse_module(text)
    except cst.ParserSyntaxError as error:
        what = error.message.rstrip(". ")
        raise SourceError(f"Python accepts this code, LibCST does not: {what}", error.raw_line) from None


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Trees are built from many long-lived objects: collecting while parsing costs 14 to 25 % and frees nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _recursion_limit(frames: int) -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _is_deeper_than(tree: ast.AST, limit: int) -> bool:
    """CPython 3.10 builds trees of any depth; later ones refuse, or are stopped by the limit on recursion."""
    level, depth = [tree], 0
    while level and depth <= limit:
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
    return depth > limit


def _bracket_depth(text: str) -> int:
    deepest = depth = 0
    for bracket in re.findall(r"[\[({\])}]", text):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    return deepest


def _libcst_accepts(text: str) -> bool:
    import libcst as cst

    try:
        cst.parse_module(text)
    except (cst.ParserSyntaxError, RecursionError):
        return False
    except Exception:  # noqa: BLE001 - LibCST raises plain exceptions for some malformed input
        return False
    return True
