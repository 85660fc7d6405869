"""Errors of the user's own code, in one line. Needs no torch."""

from __future__ import annotations

import os
import sysconfig
import traceback
from typing import Final

USER_ERRORS: Final = (Exception, SystemExit)
"""What the user's code may raise: an exit in it must not end the profile, an interrupt must."""
_MOST: Final = 300
_STANDARD_LIBRARY: Final = sysconfig.get_path("stdlib").replace("\\", "/") + "/"


class ProfileError(Exception):
    """What can't be measured. The message names what, the place and the remedy."""


def described(error: BaseException) -> str:
    """``"RuntimeError: view size is not compatible ... (model.py:12)"``: the innermost line of the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_foreign(frame.filename)]
    where = f" ({own[-1].filename.removeprefix(os.getcwd() + os.sep)}:{own[-1].lineno})" if own else ""
    message = first_line(error)
    shown = message if len(message) <= _MOST else f"{message[:_MOST]}..."
    return f"{type(error).__name__}: {shown}{where}"


def first_line(error: BaseException) -> str:
    """Of its message, whole."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "without a message"


def _is_foreign(filename: str) -> bool:
    """Not the user's own code, as far as can be told without torch."""
    path = filename.replace("\\", "/")
    if path.startswith(_STANDARD_LIBRARY):
        return "-packages/" not in path or "/site-packages/torch/" in path
    return path.startswith("<frozen") or "/esper_guard/" in path or "/site-packages/torch/" in path
