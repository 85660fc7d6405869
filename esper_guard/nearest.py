"""What somebody probably meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The entry of ``known`` most like ``word``, or None where nothing comes near."""
    from difflib import SequenceMatcher

    ranked = sorted((-SequenceMatcher(None, word.lower(), other.lower()).ratio(), other) for other in known)
    return ranked[0][1] if ranked and ranked[0][0] <= -0.6 else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'X'?"``, or nothing."""
    other = nearest(word, known)
    return f"; did you mean '{other}'?" if other else ""
