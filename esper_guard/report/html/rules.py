"""Pages of rules as HTML."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup

from esper_guard.lint.rule import Rule
from esper_guard.report.html.text import lines_of, visible

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_PAGE = re.compile(r"(?:.*/)?([A-Z]+[0-9]+)\.md")
_LEVEL_BELOW = 2


def rule_page(rule: type[Rule], shown: Collection[str]) -> Markup:
    """What a rule does and why, without its title; ``shown`` are the codes of the rules that the report explains."""
    _, _, body = rule.documentation().partition("\n")
    tokens = _markdown().parse(visible_lines(body))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1:]) + _LEVEL_BELOW)}"
        for inner in token.children or ():
            if inner.type == "link_open":
                _aim(inner, shown)
    rendered: str = _markdown().renderer.render(tokens, _markdown().options, {})
    return Markup(rendered)


def recommended_code(rule: type[Rule]) -> list[str]:
    """The first example below "Use instead"."""
    tokens = _markdown().parse(rule.documentation())
    titles = [
        at for at, token in enumerate(tokens) if token.type == "inline" and token.content == "Use instead"
    ]
    for token in tokens[titles[0] :] if titles else ():
        if token.type == "fence":
            return lines_of(token.content.rstrip("\n"))
    return []


def visible_lines(text: str) -> str:
    """Text of several lines with what can't be seen written out."""
    return "\n".join(visible(line) for line in lines_of(text))


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def _aim(link: Token, shown: Collection[str]) -> None:
    """A link to another rule leads to its place in the report."""
    target = str(link.attrs.get("href", ""))
    page = _PAGE.fullmatch(target)
    if page is not None:
        link.attrs["href"] = f"#rule-{page[1]}" if page[1] in shown else "#rules"
    elif not target.startswith(("https:", "http:")):
        link.attrs["href"] = "#rules"
    else:
        link.attrs["rel"] = "noreferrer"
