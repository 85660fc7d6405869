"""Errors of the user's own code, in one line. Needs no torch."""

from __future__ import annotations

import traceback
from typing import Final

_MOST: Final = 300


class ProfileError(Exception):
    """What can't be measured. The message names what, the place and the remedy."""


def described(error: BaseException) -> str:
    """``"RuntimeError: view size is not compatible ... (model.py:12)"``: the innermost line of the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_foreign(frame.filename)]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    lines = str(error).strip().splitlines()
    message = lines[0] if lines else "without a message"
    return f"{type(error).__name__}: {message[:_MOST]}{where}"


def _is_foreign(filename: str) -> bool:
    """Not the user's own code, as far as can be told without torch."""
    path = filename.replace("\\", "/")
    return filename.startswith("<frozen") or "/esper_guard/" in path or "/site-packages/torch/" in path
