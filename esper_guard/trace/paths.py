"""Names of files as reports show them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_LINES = 3


def relative_to_here(file: str) -> str:
    """Relative to the working directory, with forward slashes, if the file lies there or in ``GITHUB_WORKSPACE``.

    A name that is relative already is taken to be relative to the working directory or else to ``GITHUB_WORKSPACE``,
    if there is such a file. Anything else stays as it is.
    """
    here, workspace = os.getcwd(), os.environ.get("GITHUB_WORKSPACE", "")
    path = file
    if not os.path.isabs(path):
        there = os.path.join(workspace, path)
        if not workspace or _is_file(path) or not _is_file(there):
            return path.replace(os.sep, "/")
        path = there
    if any(_is_below(path, folder) for folder in (here, workspace) if folder):
        return Path(os.path.relpath(path, here)).as_posix()
    return path.replace(os.sep, "/")


def place(file: str, lines: Sequence[int]) -> str:
    """``"model.py:4"``, ``"model.py:4, 7"``."""
    more = f" and {len(lines) - _LINES} more" if len(lines) > _LINES else ""
    numbers = f":{', '.join(map(str, lines[:_LINES]))}{more}" if lines else ""
    return f"{relative_to_here(file)}{numbers}"


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a name that no file can have
        return False
