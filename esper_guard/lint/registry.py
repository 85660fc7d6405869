"""The rules there are: ours, one a file in ``esper_guard.rules``, and those of installed packages."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType

from esper_guard.lint.rule import Rule

ENTRY_POINTS = "esper_guard.rules"


class RuleError(Exception):
    """A rule package that can't be loaded, or a code that two rules claim."""


@cache
def all_rules() -> dict[str, type[Rule]]:
    """Every rule by its code, in the order of the codes.

    Raises:
        RuleError: an entry point that can't be imported, or two rules with one code.
    """
    rules: dict[str, type[Rule]] = {}
    for module in (*_own_modules(), *_third_party_modules()):
        for rule in _rules_of(module):
            known = rules.setdefault(rule.code, rule)
            if known is not rule:
                raise RuleError(
                    f"rule code {rule.code} is claimed by both {known.__module__} and {rule.__module__}; "
                    "uninstall one of the packages, or rename its rule"
                )
    return dict(sorted(rules.items()))


def _own_modules() -> Iterator[ModuleType]:
    package = importlib.import_module("esper_guard.rules")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            yield importlib.import_module(f"esper_guard.rules.{module.name}")


def _third_party_modules() -> Iterator[ModuleType]:
    if not _entry_points_exist():
        return
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS):
        try:
            loaded = entry.load()
        except Exception as error:
            raise RuleError(f"the rule package '{entry.value}' can't be imported: {error!r}") from error
        yield loaded if isinstance(loaded, ModuleType) else sys.modules[loaded.__module__]


def _entry_points_exist() -> bool:
    """Whether any installed package names our group: importlib.metadata alone would double the start-up time."""
    needle = f"[{ENTRY_POINTS}]".encode()
    for folder in sys.path:
        try:
            entries = [entry.path for entry in os.scandir(folder or ".")]
        except OSError:
            continue
        for path in entries:
            if path.endswith((".dist-info", ".egg-info")):
                try:
                    with open(os.path.join(path, "entry_points.txt"), "rb") as file:
                        if needle in file.read():
                            return True
                except OSError:
                    continue
    return False


def _rules_of(module: ModuleType) -> Iterator[type[Rule]]:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Rule) and value.__module__ == module.__name__:
            yield value
