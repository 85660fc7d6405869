"""Bytes to hits: which rules could possibly apply to a file, at the cost of one pass over its bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from esper_guard.lint.rule import Rule, Trigger

# Statements that only Python 2 could parse, where they begin a line. A match is a suspicion, which the parser confirms.
_PYTHON_2 = tuple(
    re.compile(pattern)
    for pattern in (
        rb"print[ \t]+[\"'\w%]",
        rb"exec[ \t]+[\"'\w]",
        rb"raise[ \t]+[\w.]+[ \t]*,",
    )
)
_SUPPRESSION = re.compile(rb"#[ \t]*esper-guard[ \t]*:|#[ \t]*noqa[ \t]*:[^\n]*[A-Z]+[0-9]", re.IGNORECASE)


@cache
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern)


def rules_for_file(rules: Iterable[type[Rule]], data: bytes) -> list[type[Rule]]:
    """The rules each of whose triggers matches in a file; rules share many, which are tried once."""
    known: dict[Trigger, bool] = {}
    hit = []
    for rule in rules:
        for trigger in (*rule.triggers, *rule.file_triggers):
            if trigger not in known:
                known[trigger] = matches(trigger, data)
            if not known[trigger]:
                break
        else:
            hit += [rule] if rule.triggers else []
    return hit


def matches(trigger: Trigger, text: bytes) -> bool:
    """Whether ``trigger`` matches anywhere in ``text``."""
    if not isinstance(trigger, bytes):
        return next(iter(trigger(text)), None) is not None
    if words := _plain_words(trigger):
        return words[0] in text or any(word in text for word in words[1:])
    return _compiled(trigger).search(text) is not None


@cache
def _plain_words(trigger: bytes) -> Sequence[bytes]:
    """The words of ``contiguous|detach``, which are found much faster than a pattern is; empty for any other."""
    words = trigger.split(b"|")
    return words if all(re.escape(word) == word for word in words) else ()


def offsets(trigger: Trigger, text: bytes) -> Iterable[int]:
    """Where ``trigger`` matches in ``text``."""
    if not isinstance(trigger, bytes):
        return trigger(text)
    if words := _plain_words(trigger):
        return (at for word in words for at in _occurrences(word, text))
    return (match.start() for match in _compiled(trigger).finditer(text))


def _occurrences(word: bytes, text: bytes) -> Iterator[int]:
    at = text.find(word)
    while at >= 0:
        yield at
        at = text.find(word, at + 1)


def looks_like_python_2(data: bytes) -> bool:
    for pattern in _PYTHON_2:
        for match in pattern.finditer(data):
            line = max(data.rfind(b"\n", 0, match.start()), data.rfind(b"\r", 0, match.start())) + 1
            if not data[line : match.start()].strip():
                return True
    return False


def mentions_suppression(data: bytes, rules: Iterable[type[Rule]]) -> bool:
    """Whether a comment might silence a rule of ours, by its code or by our name."""
    prefixes = {rule.code.rstrip("0123456789").encode() for rule in rules}
    if not any(word in data for word in (b"esper-guard", b"ESPER-GUARD", *prefixes)):
        return False
    return _SUPPRESSION.search(data) is not None
