"""The text of the traced files, as it was when they were traced if the trace knows it."""

from __future__ import annotations

import linecache
import os
import stat

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


def _read(file: str) -> str | None:
    """Python files and cells only: a trace of somebody else must not bring any other file into the report."""
    is_cell = file.startswith("<") and file.endswith(">")
    if not is_cell and not file.endswith((".py", ".pyw")):
        return None
    try:
        if not is_cell and stat.S_ISREG(os.stat(file).st_mode):
            with open(file, "rb") as content:
                return Source.from_bytes(file, content.read()).text
    except FileNotFoundError:
        pass
    except (OSError, ValueError, SourceError):  # ValueError: no name of a file
        return None
    return "".join(linecache.getlines(file)) or None  # what was typed in this process
