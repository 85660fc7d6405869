"""``[tool.esper-guard]`` in pyproject.toml, or esper-guard.toml, to a typed and validated Config."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import msgspec

from esper_guard.nearest import did_you_mean

OWN_FILE = "esper-guard.toml"
PROJECT_FILE = "pyproject.toml"
_TABLE = "tool.esper-guard"

OutputFormat = Literal["full", "concise", "json"]

# Folders that are nobody's source, the same as ruff's.
DEFAULT_EXCLUDE = (
    ".bzr .direnv .eggs .git .git-rewrite .hg .mypy_cache .nox .pants.d .pytype .ruff_cache .svn .tox .venv "
    "__pypackages__ _build buck-out dist node_modules site-packages venv"
).split()


class ConfigError(Exception):
    """A configuration that can't be used: names the file, the line and the remedy."""


class Config(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """The settings of one project. Paths and patterns are relative to ``folder``; patterns are as in .gitignore."""

    select: list[str] | None = None
    extend_select: list[str] = []
    ignore: list[str] = []
    per_file_ignores: dict[str, list[str]] = {}
    exclude: list[str] | None = None
    extend_exclude: list[str] = []
    respect_gitignore: bool = True
    force_exclude: bool = False
    assume_channels_last: Literal["auto"] | bool = "auto"
    unsafe_fixes: bool = False
    output_format: OutputFormat = "full"


class Project(msgspec.Struct, frozen=True):
    """A Config and the folder it was found in. ``file`` is None for the defaults."""

    config: Config
    folder: str
    file: str | None = None

    def __hash__(self) -> int:
        return hash((self.folder, self.file))


def defaults() -> Project:
    return Project(Config(), os.getcwd())


@cache
def find(folder: str) -> Project | None:
    """The nearest configuration at or above ``folder`` (absolute), or None.

    A pyproject.toml without the table does not count.

    Raises:
        ConfigError: the nearest one is not valid.
    """
    for name in (OWN_FILE, PROJECT_FILE):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            project = load(path, optional=name == PROJECT_FILE)
            if project is not None:
                return project
    parent = os.path.dirname(folder)
    return None if parent == folder else find(parent)


def load(path: str, optional: bool = False) -> Project | None:
    """Read one configuration file. ``optional``: None instead of an error where it has no table of ours.

    Raises:
        ConfigError: unreadable, not TOML, an unknown key, or a value of the wrong type.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ConfigError(f"{path}: can't read the configuration: it is not a regular file")
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: can't read the configuration: {error.strerror}") from None
    if optional and b"esper-guard" not in data:
        return None
    document = _parse(path, data)
    in_project = os.path.basename(path) == PROJECT_FILE
    tools = document.get("tool", {}) if in_project else {}
    table = (tools.get("esper-guard") if isinstance(tools, dict) else None) if in_project else document
    if table is None:
        if optional:
            return None
        raise ConfigError(f"{path}: there is no [{_TABLE}] table; add one, or name another file")
    text = data.decode("utf-8", "replace")
    if not isinstance(table, dict):
        line = _line_of(text, "esper-guard", in_project)
        raise ConfigError(f"{path}:{line}: 'esper-guard' has to be a table: [{_TABLE}]")
    return Project(_validated(path, text, table, in_project), os.path.dirname(os.path.abspath(path)), path)


def _parse(path: str, data: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
        return document
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+), column (\d+)", str(error))
        where = f"{path}:{line[1]}:{line[2]}" if line else path
        raise ConfigError(f"{where}: not valid TOML: {error}") from None


def _validated(path: str, text: str, table: Mapping[str, Any], in_project: bool) -> Config:
    known = [field.encode_name for field in msgspec.structs.fields(Config)]
    for key in table:
        if key not in known:
            line = _line_of(text, key, in_project)
            raise ConfigError(f"{path}:{line}: unknown key '{key}'{did_you_mean(key, known)}")
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        found = re.search(r" - at `\$\.([\w-]+)", str(error))
        key = found[1] if found else ""
        what = re.sub(r" - at `.*", "", str(error))
        choices = _choices(key)
        value = table.get(key)
        hint = did_you_mean(value, choices) if choices and isinstance(value, str) else ""
        allowed = f" (one of {', '.join(choices)})" if choices else ""
        line = _line_of(text, key, in_project)
        raise ConfigError(f"{path}:{line}: '{key}' is not valid: {what}{allowed}{hint}") from None


def _choices(key: str) -> list[str]:
    return {
        "output-format": ["full", "concise", "json"],
        "assume-channels-last": ["auto", "true", "false"],
    }.get(key, [])


def _line_of(text: str, key: str, in_project: bool) -> int:
    """The line of ``key`` in our table: TOML parsers give no positions."""
    inside = not in_project
    table_line = 1
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header:
            name = re.sub(r"[\"'\s]", "", header[1])
            own = name == _TABLE if in_project else False
            table_line = number if own else table_line
            inside = own
            if name in (f"{_TABLE}.{key}", key):
                return number
        elif inside and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]", line):
            return number
    return table_line
