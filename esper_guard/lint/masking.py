"""Code with its strings and comments blanked, character for character."""

from __future__ import annotations

import re
from typing import NamedTuple

_PREFIX = re.compile(r"(?<!\w)[A-Za-z]{1,2}\Z")
_STRING_PREFIXES = frozenset(("r", "b", "u", "br", "rb", "f", "fr", "rf", "t", "tr", "rt"))
_REST = {
    '"""': re.compile(r'[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""', re.DOTALL),
    "'''": re.compile(r"[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''", re.DOTALL),
    '"': re.compile(r'[^"\\\r\n]*(?:\\(?:\r\n|.)[^"\\\r\n]*)*"', re.DOTALL),
    "'": re.compile(r"[^'\\\r\n]*(?:\\(?:\r\n|.)[^'\\\r\n]*)*'", re.DOTALL),
}
# A comment, or a whole string; the quote alone where that never ends.
_TOKEN = re.compile(
    r"\#[^\r\n]*|" + "|".join(f"{quote}{rest.pattern}|{quote}" for quote, rest in _REST.items()), re.DOTALL
)
_FIELD_STOP = re.compile(r"""[][(){}:!]|\#[^\r\n]*|"{3}|'{3}|"|'""")
_LITERAL_STOP = re.compile(r"""\\[^{}]|\{\{|\}\}|[{}]|"{3}|'{3}|"|'""", re.DOTALL)


_BRACE = re.compile(r"[{}]")


class MaskingError(ValueError):
    """A string that never ends: the parser will say where."""


class Span(NamedTuple):
    start: int
    end: int


class Masked(NamedTuple):
    """``code`` is as long as the text it came from; strings have become ``"___"``, comments spaces."""

    code: str
    comments: list[Span]
    interpolations: list[Span]  # f-strings and t-strings: blanked in ``code``, yet they hold code


def mask(text: str) -> Masked:
    """Blank the strings and comments of ``text``.

    Raises:
        MaskingError: a string literal is not closed.
    """
    pieces: list[str] = []
    comments: list[Span] = []
    interpolations: list[Span] = []
    done = 0
    search = _TOKEN.search
    while match := search(text, done):
        start, end = match.span()
        if text[start] == "#":
            filler = " " * (end - start)
            comments.append(Span(start, end))
        else:
            prefix = _prefix_before(text, start, done) if text[start - 1].isalpha() else ""
            if "f" in prefix or "t" in prefix:
                quote = text[start] * (3 if text.startswith(text[start] * 3, start) else 1)
                end = _interpolated_end(text, start + len(quote), quote)
                interpolations.append(Span(start - len(prefix), end))
            elif text[start:end] in _REST:
                raise MaskingError(f"unterminated string at offset {start}")
            start -= len(prefix)
            filler = '"' + "_" * (end - start - 2) + '"'
        pieces += (text[done:start], filler)
        done = end
    pieces.append(text[done:])
    code = "".join(pieces)
    if "\r" in code:  # every line ends in a bare \n from here on; offsets stay as they are
        code = code.replace("\\\r\n", " \\\n").replace("\r\n", " \n").replace("\r", "\n")
    return Masked(code, comments, interpolations)


def _prefix_before(text: str, quote: int, first: int) -> str:
    """The letters of a string's prefix, lower case; ``first`` is where the code before it begins."""
    if quote == first or not text[quote - 1].isalpha():
        return ""
    match = _PREFIX.search(text, max(first, quote - 3), quote)
    prefix = match.group().lower() if match else ""
    return prefix if prefix in _STRING_PREFIXES else ""


def _string_end(text: str, start: int, quote: str, prefix: str) -> int:
    if "f" in prefix or "t" in prefix:
        return _interpolated_end(text, start, quote)
    rest = _REST[quote].match(text, start)
    if rest is None:
        raise MaskingError(f"unterminated string at offset {start}")
    return rest.end()


def _interpolated_end(text: str, position: int, quote: str) -> int:
    """The end of an f-string whose opening quote ends at ``position`` (PEP 701: fields may nest the quote)."""
    while stop := _LITERAL_STOP.search(text, position):
        token, position = stop.group(), stop.end()
        if token.startswith(quote):
            return stop.start() + len(quote)
        if token == "{":
            position = _field_end(text, position, quote)
    raise MaskingError(f"unterminated f-string at offset {position}")


def _field_end(text: str, position: int, quote: str) -> int:
    """The offset after the ``}`` that closes a replacement field opened just before ``position``."""
    depth = 0
    while stop := _FIELD_STOP.search(text, position):
        token, position = stop.group(), stop.end()
        if token[0] in "([{":
            depth += 1
        elif token == "}" and depth == 0:
            return position
        elif token[0] in ")]}":
            depth -= 1
        elif token[0] in "\"'":
            position = _string_end(text, position, token, _prefix_before(text, stop.start(), 0))
        elif token == ":" and depth == 0:
            return _format_spec_end(text, position, quote)
    raise MaskingError(f"unterminated replacement field at offset {position}")


def _format_spec_end(text: str, position: int, quote: str) -> int:
    """A format specification: quotes are plain characters here, nested fields are not."""
    while stop := _BRACE.search(text, position):
        position = stop.end()
        if stop.group() == "}":
            return position
        position = _field_end(text, position, quote)
    raise MaskingError(f"unterminated format specification at offset {position}")
