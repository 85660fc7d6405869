"""The text of lines, by which they are recognised after edits above them."""

from __future__ import annotations

import linecache
import re
from collections.abc import Mapping

_COMMENT = re.compile(r"\s#")


class LineTexts:
    """As they were when a trace was saved, or else as the files say now.

    Args:
        sources: texts of files, by the names that events have (`LayoutTrace.sources`).
        numbered: whether a line of which no text is known goes by its number.
    """

    def __init__(self, sources: Mapping[str, str] | None = None, *, numbered: bool = False) -> None:
        self._sources = sources or {}
        self._numbered = numbered
        self._lines: dict[str, list[str]] = {}

    def read(self, file: str | None, line: int | None) -> str:
        """The line without its indentation; empty if it is not known."""
        if file is None or not line:
            return ""
        lines = self._split(file) if file in self._sources else _now(file)
        return lines[line - 1].strip() if line <= len(lines) else ""

    def key(self, file: str | None, line: int | None) -> str:
        """What the line is recognised by: its `identity`, or its number."""
        return identity(self.read(file, line)) or (f"line {line}" if self._numbered else "")

    def _split(self, file: str) -> list[str]:
        if file not in self._lines:
            self._lines[file] = self._sources[file].split("\n")
        return self._lines[file]


def identity(text: str) -> str:
    """What a line is recognised by: its text without a comment at its end and without whitespace around it.

    Of a line that is a comment, the comment. What looks like a comment inside a string goes as well.
    """
    return _COMMENT.split(text.strip(), maxsplit=1)[0].rstrip()


def _now(file: str) -> list[str]:
    try:
        return linecache.getlines(file)
    except ValueError:  # a name that no file can have
        return []
