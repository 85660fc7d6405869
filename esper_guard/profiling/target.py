"""``module:factory`` and ``file.py:factory``: what the user names, read and loaded. Needs no torch."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from esper_guard.profiling.failures import USER_ERRORS, ProfileError, described

_FORMS = (
    "write it as module:factory or file.py:factory, with arguments if need be: "
    'module:factory("name", classes=10)'
)


class TargetError(ProfileError):
    """A target that can't be read or loaded. The message names it, the place and the remedy."""


@dataclass(frozen=True)
class Target:
    """A target, taken apart."""

    text: str
    source: str
    """A module's name, or the path of a file that ends in ``.py``."""
    attribute: str
    """Of the module, with dots."""
    called: bool
    """Whether arguments are given, if only ``()``."""
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        return self.source.endswith(".py")


def parse_target(text: str) -> Target:
    """Take a target apart; nothing is imported or evaluated.

    Raises:
        TargetError: it has another form, or an argument is no literal.
    """
    for at, character in enumerate(text):
        if character != ":" or not text[:at].strip():
            continue
        factory = _factory(text[at + 1 :])
        if factory is not None:  # a drive's colon has a path after it
            return _taken_apart(text, text[:at].strip(), factory)
    raise TargetError(f"'{text}' names no factory: {_FORMS}")


def _factory(text: str) -> ast.expr | None:
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    named = node.func if isinstance(node, ast.Call) else node
    return node if _dotted(named) is not None else None


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    return None


def _taken_apart(text: str, source: str, factory: ast.expr) -> Target:
    if not isinstance(factory, ast.Call):
        return Target(text, source, _dotted(factory) or "", called=False)
    arguments = [_literal(text, node) for node in factory.args]
    keywords: dict[str, Any] = {}
    for keyword in factory.keywords:
        if keyword.arg is None:
            raise TargetError(
                f"'{text}': write each argument out: **{ast.unparse(keyword.value)} can't be used"
            )
        keywords[keyword.arg] = _literal(text, keyword.value)
    return Target(text, source, _dotted(factory.func) or "", True, tuple(arguments), keywords)


def _literal(text: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise TargetError(
            f"'{text}': the argument {ast.unparse(node)} is no literal (a number, string, True, None, or a list, "
            "tuple, dict or set of such): write a factory of your own that passes it on"
        ) from None


def load_target(target: Target) -> Any:
    """Import the module and return what the target names: what the factory made, or the object itself.

    The current folder (for a file, its folder) comes first in ``sys.path``, as for ``python -m`` and ``python file``. A
    file of a package is imported by its dotted name from the folder above the package, so that relative imports work;
    its own folder then comes last.

    Raises:
        TargetError: there is no such file, module or name, or the import or the factory raised something or
            exits.
    """
    module = _module_of_file(target) if target.is_file else _module(target.source)
    found: Any = module
    for name in target.attribute.split("."):
        if not hasattr(found, name):
            raise TargetError(f"{target.source} has no '{target.attribute}'; it has {_names(module)}")
        found = getattr(found, name)
    if not target.called and not callable(found):
        return found
    from torch import nn

    if isinstance(found, nn.Module):
        if target.called:
            raise TargetError(
                f"'{target.text}': {target.attribute} is a module already: name it without arguments"
            )
        return found
    if not callable(found):
        raise TargetError(
            f"'{target.text}': {target.attribute} is a {type(found).__qualname__}, not a function"
        )
    try:
        return found(*target.arguments, **target.keywords)
    except USER_ERRORS as error:
        with_what = (
            f"; pass arguments as in {target.source}:{target.attribute}(10)"
            if _lacks_arguments(error)
            else ""
        )
        raise TargetError(f"{target.text} raised {described(error)}{with_what}") from error


def _lacks_arguments(error: BaseException) -> bool:
    """The factory itself, and not what it calls."""
    below = None if error.__traceback__ is None else error.__traceback__.tb_next
    return isinstance(error, TypeError) and below is None and " missing " in str(error)


def _module(source: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if source == missing or source.startswith(f"{missing}."):
            raise TargetError(
                f"there is no module '{missing}' in {os.getcwd()} or among the installed packages; "
                "for a file write its path: folder/file.py:factory"
            ) from error
        raise TargetError(f"importing {source} raised {described(error)}") from error
    except USER_ERRORS as error:
        raise TargetError(f"importing {source} raised {described(error)}") from error


def _module_of_file(target: Target) -> ModuleType:
    path = os.path.abspath(target.source)
    if not os.path.isfile(path):
        raise TargetError(f"there is no file '{target.source}'")
    packaged = _packaged(path)
    if packaged is not None:
        return _module_in_package(target, *packaged)
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    stem = os.path.splitext(os.path.basename(path))[0]
    name = stem if stem.isidentifier() and stem not in sys.modules else f"_esper_guard_target_{stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except USER_ERRORS as error:
        sys.modules.pop(name, None)
        by_name = (
            ": name it from the folder above its package, as in package.module:factory"
            if isinstance(error, ImportError) and "no known parent package" in str(error)
            else ""
        )
        raise TargetError(f"running {target.source} raised {described(error)}{by_name}") from error
    return module


def _packaged(path: str) -> tuple[str, str] | None:
    """The folder above the package that a file is in, and its dotted name from there; None if it has no such name."""
    folder, name = os.path.split(os.path.splitext(path)[0])
    names = [] if name == "__init__" else [name]
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder, name = os.path.split(folder)
        names.insert(0, name)
    in_package = os.path.isfile(os.path.join(os.path.dirname(path), "__init__.py"))
    if not in_package or not all(map(str.isidentifier, names)):
        return None
    taken = sys.modules.get(names[0])
    if taken is not None and os.path.join(folder, names[0]) not in map(
        os.path.abspath, getattr(taken, "__path__", [])
    ):
        return None
    return folder, ".".join(names)


def _module_in_package(target: Target, root: str, name: str) -> ModuleType:
    sys.path.insert(0, root)
    sys.path.append(os.path.dirname(os.path.abspath(target.source)))  # last: a package may have a types.py
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except USER_ERRORS as error:
        raise TargetError(f"importing {target.source} as {name} raised {described(error)}") from error


def _names(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]
    return ", ".join(own[:20]) or "nothing that could be called"
