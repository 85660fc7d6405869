"""Text from outside in GitHub-flavoured Markdown: in code spans, where nothing in it means anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from esper_guard.report.text import shown

MOST = 200
"""How many characters of a text are shown."""
_SPECIAL = re.compile(r"[\\<&*#\[\]$~]|(?<!\w)_|_(?!\w)")
"""What could mean something in a paragraph."""
_CUT = "\N{HORIZONTAL ELLIPSIS}"
_TICKS = 79
"""The longest run of backticks in a code span: GitHub knows none that starts with more than 80."""


def span(text: str, most: int = MOST) -> str:
    """A code span, outside of tables. Mentions and references to issues in it are none to GitHub.

    Control characters become U+FFFD; spaces at both ends go; a run of 80 or more backticks is cut.
    """
    one_line = re.sub(f"`{{{_TICKS + 1},}}", "`" * (_TICKS - 1) + _CUT, " ".join(shown(text).split()))
    if len(one_line) > most:
        one_line = f"{one_line[: most - 1].rstrip()}{_CUT}"
    if not one_line:
        return ""
    longest = max(map(len, re.findall("`+", one_line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if one_line.startswith("`") or one_line.endswith("`") else ""
    return f"{fence}{pad}{one_line}{pad}{fence}"


def code(text: str, most: int = MOST) -> str:
    """A `span` for a cell of a table."""
    return span(text, most).replace("|", "\\|")


def prose(text: str) -> str:
    """Words with code between backticks: all else means nothing to Markdown, and code is a `span`."""
    parts = text.split("`")
    return "".join(span(part) if at % 2 else _SPECIAL.sub(r"\\\g<0>", part) for at, part in enumerate(parts))


def row(cells: Iterable[str]) -> str:
    """A row of a table, of cells that are Markdown."""
    return f"| {' | '.join(cells)} |\n"


def head(titles: Sequence[str], numbers: int) -> str:
    """The first two rows; the first ``numbers`` columns are aligned to the right."""
    ruler = ["--:" if at < numbers else "---" for at in range(len(titles))]
    return f"{row(titles)}{row(ruler)}"
