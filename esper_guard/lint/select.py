"""From ``select`` and ``ignore`` to the rules that run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from esper_guard.lint.rule import Rule
from esper_guard.nearest import did_you_mean

ALL = "ALL"
ALWAYS = ("EG001",)  # whatever is selected, a file that could not be checked is no clean file


class UnknownCodeError(Exception):
    """A code or prefix that no rule has."""


def selected(
    rules: Mapping[str, type[Rule]],
    select: Collection[str] | None,
    extend_select: Collection[str],
    ignore: Collection[str],
) -> frozenset[str]:
    """The codes that run. As in ruff the longer prefix wins, and ``ignore`` wins between equals.

    Raises:
        UnknownCodeError: with the nearest known one.
    """
    for specifier in (*(select or ()), *extend_select, *ignore):
        check_specifier(specifier, rules)
    chosen = []
    for code, rule in rules.items():
        wanted = _specificity(code, (*(select or ()), *extend_select))
        if rule.default if select is None else code in ALWAYS:
            wanted = max(wanted, 0)
        if wanted >= 0 and wanted > _specificity(code, ignore):
            chosen.append(code)
    return frozenset(chosen)


def without(codes: frozenset[str], ignore: Iterable[str]) -> frozenset[str]:
    """``codes`` less those that a specifier of ``ignore`` covers."""
    ignored = tuple(ignore)
    return frozenset(code for code in codes if _specificity(code, ignored) < 0)


def check_specifier(specifier: str, rules: Mapping[str, type[Rule]]) -> None:
    if specifier != ALL and not any(code.startswith(specifier) and specifier for code in rules):
        known = [*rules, *sorted({code[:3] for code in rules}), ALL]
        hint = did_you_mean(specifier, known) or f"; there are {', '.join(rules)}"
        raise UnknownCodeError(f"there is no rule or prefix '{specifier}'{hint}")


def _specificity(code: str, specifiers: Iterable[str]) -> int:
    """How many characters of ``code`` the longest matching specifier names: 0 for ALL, -1 for none."""
    return max((0 if s == ALL else len(s) for s in specifiers if s == ALL or code.startswith(s)), default=-1)
