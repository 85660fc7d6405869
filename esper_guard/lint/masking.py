"""Code with its strings and comments blanked, character for character."""

from __future__ import annotations

import re
from typing import NamedTuple

_START = re.compile(
    r"""
    (?P<comment>\#[^\r\n]*)
    | (?P<prefix>\b[A-Za-z]{1,2})?(?P<quote>\"{3}|'{3}|\"|')
    """,
    re.VERBOSE,
)
_STRING_PREFIXES = frozenset(("r", "b", "u", "br", "rb", "f", "fr", "rf", "t", "tr", "rt"))
_REST = {
    '"""': re.compile(r'[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""', re.DOTALL),
    "'''": re.compile(r"[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''", re.DOTALL),
    '"': re.compile(r'[^"\\\r\n]*(?:\\(?:\r\n|.)[^"\\\r\n]*)*"', re.DOTALL),
    "'": re.compile(r"[^'\\\r\n]*(?:\\(?:\r\n|.)[^'\\\r\n]*)*'", re.DOTALL),
}
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
    match = _START.search(text)
    while match:
        start = match.start()
        if match["comment"] is not None:
            end = match.end()
            filler = " " * (end - start)
            comments.append(Span(start, end))
        else:
            prefix = (match["prefix"] or "").lower()
            if prefix not in _STRING_PREFIXES:
                start, prefix = match.start("quote"), ""
            end = _string_end(text, match.end(), match["quote"], prefix)
            filler = '"' + "_" * (end - start - 2) + '"'
            if "f" in prefix or "t" in prefix:
                interpolations.append(Span(start, end))
        pieces.append(text[done:start])
        pieces.append(filler)
        done = end
        match = _START.search(text, end)
    pieces.append(text[done:])
    return Masked("".join(pieces), comments, interpolations)


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
            prefix = re.search(r"[A-Za-z]{0,2}\Z", text[max(0, stop.start() - 2) : stop.start()])
            name = prefix.group().lower() if prefix else ""
            position = _string_end(text, position, token, name if name in _STRING_PREFIXES else "")
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
