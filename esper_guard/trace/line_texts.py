"""The text of lines, by which they are recognised after edits above them."""

from __future__ import annotations

import linecache
from collections.abc import Mapping


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
        """What the line is recognised by."""
        return self.read(file, line) or (f"line {line}" if self._numbered else "")

    def _split(self, file: str) -> list[str]:
        if file not in self._lines:
            self._lines[file] = self._sources[file].split("\n")
        return self._lines[file]


def _now(file: str) -> list[str]:
    try:
        return linecache.getlines(file)
    except ValueError:  # a name that no file can have
        return []
