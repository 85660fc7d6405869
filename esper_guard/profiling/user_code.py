"""What the user's code meets while it is loaded and measured. Needs no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def running_user_code(source: str) -> Iterator[None]:
    """As a program without arguments: ``sys.argv`` is ``[source]``. What it prints goes to stderr: stdout is the report's.

    Afterwards the working directory is what it was, too.
    """
    arguments, folder = sys.argv, os.getcwd()
    sys.argv = [source]
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = arguments
        os.chdir(folder)
