"""Python source as HTML, with few classes, because a page holds many lines."""

from __future__ import annotations

from functools import cache
from typing import Any

from markupsafe import Markup, escape

from esper_guard.report.html.text import lines_of, shortened, visible

CLASSES = {"k": "keyword", "s": "string", "c": "comment", "m": "number", "f": "function", "b": "builtin"}
"""By class, what it is of; style.css has a colour for each."""

_LONG = 140
_MOST_IN_LONG_LINES = 100_000
_MOST = 1_000_000
"""In characters. The lexer takes minutes for some text that is larger, or has much in long lines."""


def highlighted(text: str) -> list[Markup]:
    """The lines of ``text``, escaped, with spans around what has a colour; large text has none."""
    shown = [shortened(line) for line in lines_of(text)]
    sizes = [0 if line.isspace() else len(line) for line in shown]
    if sum(sizes) > _MOST or sum(size for size in sizes if size > _LONG) > _MOST_IN_LONG_LINES:
        return [plain(line) for line in shown]
    # without what stands in blank lines, of which the lexer takes quadratic time
    lexed = _lexed("\n".join("" if line.isspace() else line for line in shown))
    return [plain(line) if line.isspace() else code for line, code in zip(shown, lexed, strict=True)]


def plain(line: str) -> Markup:
    """A line, escaped, without colours."""
    return escape(visible(line))


def _lexed(lexed: str) -> list[Markup]:
    lines: list[list[str]] = [[]]
    for _, token, value in _lexer().get_tokens_unprocessed(lexed):
        name = _class_of(token)
        for number, part in enumerate(value.split("\n")):
            if number:
                lines.append([])
            if part:
                shown = str(escape(visible(part)))
                lines[-1].append(f'<span class="{name}">{shown}</span>' if name and part.strip() else shown)
    return [Markup("".join(parts)) for parts in lines]


@cache
def _lexer() -> Any:
    from pygments.lexers.python import PythonLexer  # type: ignore[import-untyped]

    return PythonLexer()


@cache
def _class_of(token: Any) -> str:
    from pygments.token import Token  # type: ignore[import-untyped]

    classes = {
        Token.Keyword: "k",
        Token.Operator.Word: "k",
        Token.Literal.String: "s",
        Token.Literal.Number: "m",
        Token.Comment: "c",
        Token.Name.Function: "f",
        Token.Name.Class: "f",
        Token.Name.Decorator: "f",
        Token.Name.Builtin: "b",
        Token.Name.Builtin.Pseudo: "",
        Token.Name.Exception: "b",
    }
    while token is not None:
        if token in classes:
            return classes[token]
        token = token.parent
    return ""
