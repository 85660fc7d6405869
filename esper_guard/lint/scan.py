"""Bytes to hits: which rules could possibly apply to a file, at the cost of one pass over its bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from esper_guard.lint.rule import Rule, Trigger

# Statements that only Python 2 could parse. A match is a suspicion, which the parser then confirms or drops.
_PYTHON_2 = re.compile(
    rb"\n[ \t]*(?:print[ \t]+[\"'\w%]|exec[ \t]+[\"'\w]|raise[ \t]+[\w.]+[ \t]*,|except[ \t]+[\w.]+[ \t]*,[ \t]*\w+[ \t]*:)"
)
_SUPPRESSION = re.compile(rb"#[ \t]*esper-guard[ \t]*:|#[ \t]*noqa[ \t]*:[^\n]*[A-Z]+[0-9]+", re.IGNORECASE)


@cache
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern)


def rules_hit(rules: Iterable[type[Rule]], texts: Sequence[bytes]) -> list[type[Rule]]:
    """The rules each of whose triggers matches in one of ``texts`` (a file, or the pieces of a function)."""
    return [
        rule
        for rule in rules
        if rule.triggers and all(any(_matches(trigger, text) for text in texts) for trigger in rule.triggers)
    ]


def _matches(trigger: Trigger, text: bytes) -> bool:
    return _compiled(trigger).search(text) is not None if isinstance(trigger, bytes) else trigger(text)


def looks_like_python_2(data: bytes) -> bool:
    return _PYTHON_2.search(b"\n" + data) is not None


def mentions_suppression(data: bytes) -> bool:
    return _SUPPRESSION.search(data) is not None
