"""What kind of project a file stands in: a test or not, one that uses channels_last or not."""

from __future__ import annotations

import os
import re

from esper_guard.lint import files

_ROOTS = (".git", "pyproject.toml", "setup.py", "setup.cfg")
_TEST_FOLDERS = frozenset(("tests", "test"))
_TEST_FILE = re.compile(r"test_.*|.*_test|conftest")
# By its name in torch, by the methods that libraries call it through, or by what only computes in it.
_MENTION = re.compile(
    rb"channels_?last|ChannelsLast|apex\.contrib\.(?:groupbn|bottleneck)|\bnhwc\b", re.IGNORECASE
)


def is_test(path: str) -> bool:
    """Whether a file is a test, by its name or a folder's (as pytest and unittest find them)."""
    relative = os.path.relpath(path) if os.path.isabs(path) else path
    *folders, name = os.path.normpath(relative).split(os.sep)
    return bool(_TEST_FILE.fullmatch(os.path.splitext(name)[0])) or bool(_TEST_FOLDERS & set(folders))


def root_of(path: str) -> str:
    """The folder of the project around a file: the nearest with a repository or a packaging file, else its own."""
    own = folder = os.path.dirname(os.path.abspath(path))
    while not any(os.path.exists(os.path.join(folder, name)) for name in _ROOTS):
        parent = os.path.dirname(folder)
        if parent == folder:
            return own
        folder = parent
    return folder


def mentions_channels_last(path: str) -> bool:
    """Whether a file mentions channels_last, also in a comment, or imports a library that computes in it."""
    try:
        return _MENTION.search(files.read(path)) is not None
    except OSError:
        return False
