"""Text that shows all that it holds: nothing in it reorders, hides or ends anything."""

from __future__ import annotations

import re
from unicodedata import category

from markupsafe import Markup

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that show nothing. Not U+FE0E and U+FE0F, which are part of signs that people write."""
_NEWLINE = re.compile(r"\r\n?|\n")  # what ends a line of Python, unlike str.splitlines()
_LONGEST = 2_000


def visible(text: str) -> str:
    """With what can't be seen written out: controls, bidirectional marks, lone surrogates, blank letters. Tabs stay.

    >>> visible("a\\u202eb")
    'a\u2039U+202E\u203ab'
    """
    if text.isprintable() and not _BLANK.search(text):
        return text
    return "".join(_shown(char) for char in text)


def finalize(value: object) -> object:
    """What a template writes for a value, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def lines_of(text: str) -> list[str]:
    """Its lines, as Python counts them, each without its ending."""
    return _NEWLINE.split(text)


def shortened(line: str) -> str:
    """A line that somebody can still look at."""
    if len(line) <= _LONGEST:
        return line
    return f"{line[:_LONGEST]} ... and {len(line) - _LONGEST} more characters"


def _shown(char: str) -> str:
    if char == "\t" or (category(char) not in _INVISIBLE and not _BLANK.match(char)):
        return char
    return f"\u2039U+{ord(char):04X}\u203a"
