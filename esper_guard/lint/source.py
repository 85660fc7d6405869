"""The text of one file, and where things stand in it."""

from __future__ import annotations

import bisect
import codecs
import re
from functools import cached_property

import msgspec

_NEWLINE = re.compile(r"\r\n?|\n")


class SourceError(Exception):
    """A file that can't be read, decoded or parsed; ``row`` and ``column`` are 1-based."""

    def __init__(self, message: str, row: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.row = row
        self.column = column


class Location(msgspec.Struct, frozen=True, order=True):
    """A place in a file: ``row`` and ``column`` count from 1, columns in characters."""

    row: int
    column: int


class Source:
    """A decoded file. Offsets are characters of ``text``, whose line endings are kept as they are."""

    def __init__(self, path: str, text: str, encoding: str = "utf-8", bom: bool = False) -> None:
        self.path = path
        self.text = text
        self.encoding = encoding
        self.bom = bom

    @classmethod
    def from_bytes(cls, path: str, data: bytes) -> Source:
        """Decode ``data`` as Python would (PEP 263: byte order mark, coding cookie, else UTF-8).

        Raises:
            SourceError: NUL bytes, an unknown encoding, or bytes that are not valid in it.
        """
        if b"\0" in data:
            row, column = _position(data, data.index(b"\0"))
            raise SourceError(
                "the file contains a NUL byte: it is binary, or not saved as UTF-8", row, column
            )
        bom = data.startswith(codecs.BOM_UTF8)
        encoding = "utf-8"
        try:
            if not data.isascii() or b"coding" in data[:400]:
                encoding = _encoding(data)
            text = data[len(codecs.BOM_UTF8) if bom else 0 :].decode(encoding)
        except UnicodeDecodeError as error:
            row, column = _position(data, error.start)
            raise SourceError(
                f"the file is not valid {encoding}: {error.reason}; "
                "save it as UTF-8, or name its encoding in a coding cookie",
                row,
                column,
            ) from None
        except (SyntaxError, LookupError, UnicodeError) as error:
            raise SourceError(f"the file can't be decoded: {error}") from None
        return cls(path, text, encoding, bom)

    def to_bytes(self, text: str) -> bytes:
        """Encode ``text`` the way this file was: same encoding, same byte order mark."""
        return (codecs.BOM_UTF8 if self.bom else b"") + text.encode(self.encoding)

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(match.end() for match in _NEWLINE.finditer(self.text))]

    def location(self, offset: int) -> Location:
        row = bisect.bisect_right(self._line_starts, offset)
        return Location(row, offset - self._line_starts[row - 1] + 1)

    def offset(self, row: int, column: int) -> int:
        return self._line_starts[row - 1] + column - 1

    def line(self, row: int) -> str:
        """One line without its line ending; rows past the end are empty."""
        starts = self._line_starts
        if row > len(starts):
            return ""
        end = starts[row] if row < len(starts) else len(self.text)
        return self.text[starts[row - 1] : end].rstrip("\r\n")


def _encoding(data: bytes) -> str:
    import io
    import tokenize

    # Two lines are all that PEP 263 looks at; feeding more would make a bad byte far below fail here, unplaced.
    head = b"\n".join(_NEWLINE_BYTES.split(data, 2)[:2])
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(head).readline)
    except SyntaxError:
        if _COOKIE.search(head):
            raise
        return "utf-8"
    return "utf-8" if encoding == "utf-8-sig" else encoding


_NEWLINE_BYTES = re.compile(rb"\r\n?|\n")
_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=]", re.MULTILINE)


def _position(data: bytes, offset: int) -> tuple[int, int]:
    lines = _NEWLINE_BYTES.split(data[:offset])
    return len(lines), len(lines[-1].decode("utf-8", "replace")) + 1
