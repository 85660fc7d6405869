"""The text of the traced files, as it was when they were traced if the trace knows it."""

from __future__ import annotations

import linecache
import os
import stat
import sys

from esper_guard.lint.source import Source, SourceError
from esper_guard.trace.layout_trace import LayoutTrace


def texts_of(trace: LayoutTrace) -> dict[str, str]:
    """By file, for the files that events name and whose text is known."""
    files = dict.fromkeys(event.file for event in trace.events if event.file is not None)
    return {file: text for file in files if (text := text_of(trace, file)) is not None}


def text_of(trace: LayoutTrace, file: str) -> str | None:
    """What the trace kept of a file, or else what the file holds now; None if neither is there."""
    return trace.sources[file] if file in trace.sources else _read(file)


def has_own_sources(trace: LayoutTrace) -> bool:
    """Whether the trace kept the text of its files."""
    return bool(trace.sources)


def is_of_now(trace: LayoutTrace, file: str) -> bool:
    """Whether `text_of` has to read what the file holds now, which need not be what was traced."""
    return file not in trace.sources and not _is_typed(file)


def _read(file: str) -> str | None:
    """Python files of the project and of installed packages, and what was typed: a trace names whatever it likes."""
    if _is_typed(file):
        return "".join(linecache.getlines(file)) or None
    if not file.endswith((".py", ".pyw")):
        return None
    try:
        path = os.path.realpath(file)
        if not _is_ours(path) or not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as content:
            return Source.from_bytes(file, content.read()).text
    except (OSError, ValueError, SourceError):  # ValueError: no name of a file
        return None


def _is_typed(file: str) -> bool:
    """In this process: cells of notebooks, which have names of files that are not there."""
    known = linecache.cache.get(file, ())
    has_time = len(known) != 4 or known[1] is not None  # as what was read from files has
    return not has_time and not os.path.exists(file)


def _is_ours(path: str) -> bool:
    """Whether a file is below the working directory, installed, or of a module that this process has loaded."""
    installed = [entry for entry in sys.path if os.path.basename(entry) in ("site-packages", "dist-packages")]
    folders = tuple(os.path.join(os.path.realpath(folder), "") for folder in (os.getcwd(), *installed))
    return path.startswith(folders) or _is_loaded(path)


def _is_loaded(path: str) -> bool:
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get(
            "__file__"
        )  # looked up so, because some modules make attributes
        if not isinstance(file, str) or os.path.basename(file) != os.path.basename(path):
            continue
        if os.path.realpath(file) == path:
            return True
    return False
