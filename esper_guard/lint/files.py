"""Paths to source files: folders walked, .gitignore and excludes honoured, nothing followed in circles."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import msgspec

from esper_guard.config import DEFAULT_EXCLUDE, Project

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

SUFFIXES = (".py", ".pyi", ".pyw")
ProjectOf = Callable[[str], Project]


class PatternError(ValueError):
    """A pattern that no .gitignore could hold either."""


class SourceFile(msgspec.Struct, frozen=True):
    """A file to check. ``path`` is as the user would write it."""

    path: str
    is_named: bool  # given on the command line, rather than found in a folder


def discover(paths: Sequence[str], project_of: ProjectOf) -> Iterator[SourceFile]:
    """The files that ``paths`` stand for, each once, in a stable order.

    A named file is taken whatever its suffix, and even where it is excluded (unless ``force-exclude`` is set).
    Links to folders are not followed, except where one is named.
    """
    seen: set[str] = set()
    for path in paths:
        found = _walk(path, project_of) if os.path.isdir(path) else _named(path, project_of)
        for file in found:
            absolute = os.path.abspath(file.path)
            if absolute not in seen:
                seen.add(absolute)
                yield file


def read(path: str) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it is missing, unreadable, or not a regular file (nothing that could block is ever opened).
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise OSError(0, f"broken link to {os.readlink(path)}", path) from None
        raise
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFIFO: "a pipe",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device",
            stat.S_IFDIR: "a folder",
        }
        raise OSError(0, f"{kinds.get(stat.S_IFMT(mode), 'special')}, not a regular file", path)
    with open(path, "rb") as file:
        return file.read()


def _named(path: str, project_of: ProjectOf) -> Iterator[SourceFile]:
    absolute = os.path.abspath(path)
    project = project_of(os.path.dirname(absolute))
    if project.config.force_exclude and _excluded_by_any_folder(absolute, project):
        return
    yield SourceFile(path, True)


def _excluded_by_any_folder(absolute: str, project: Project) -> bool:
    """Whether the file, or a folder between it and the project, is excluded."""
    while absolute != project.folder and len(absolute) > len(project.folder):
        if _is_excluded(absolute, os.path.isdir(absolute), project):
            return True
        absolute = os.path.dirname(absolute)
    return False


def _walk(root: str, project_of: ProjectOf) -> Iterator[SourceFile]:
    project = project_of(os.path.abspath(root))
    if project.config.force_exclude and _excluded_by_any_folder(os.path.abspath(root), project):
        return
    ignored = _ignore_files_above(os.path.abspath(root))
    yield from _walk_folder(root, project_of, ignored)


def _walk_folder(
    folder: str, project_of: ProjectOf, ignored: tuple[tuple[str, GitIgnoreSpec], ...]
) -> Iterator[SourceFile]:
    absolute = os.path.abspath(folder)
    project = project_of(absolute)
    own = _ignore_file(os.path.join(absolute, ".gitignore"))
    if own is not None:
        ignored = (*ignored, (absolute, own))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield SourceFile(folder, False)  # reading it reports what is wrong
        return
    for entry in entries:
        is_folder = entry.is_dir(follow_symlinks=False)
        if not is_folder and not entry.name.endswith(SUFFIXES):
            continue
        if entry.is_symlink() and os.path.isdir(entry.path):
            continue
        target = os.path.join(absolute, entry.name)
        if _is_excluded(target, is_folder, project):
            continue
        if project.config.respect_gitignore and _is_ignored(target, is_folder, ignored):
            continue
        path = entry.name if folder == "." else os.path.join(folder, entry.name)
        if is_folder:
            yield from _walk_folder(path, project_of, ignored)
        else:
            yield SourceFile(path, False)


def _is_excluded(absolute: str, is_folder: bool, project: Project) -> bool:
    config = project.config
    if config.exclude is None and os.path.basename(absolute) in _DEFAULT_EXCLUDE:
        return True
    patterns = (*(config.exclude or ()), *config.extend_exclude)
    return bool(patterns) and matches(patterns, absolute, project.folder, is_folder)


def matches(patterns: tuple[str, ...], absolute: str, folder: str, is_folder: bool = False) -> bool:
    """Whether a path matches one of these patterns, written as in a .gitignore in ``folder``."""
    relative = os.path.relpath(absolute, folder).replace(os.sep, "/")
    if relative.startswith("../"):
        return False
    return bool(_spec(patterns).match_file(relative + "/" if is_folder else relative))


@cache
def _spec(patterns: tuple[str, ...]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise PatternError(str(error)) from None


def _ignore_file(path: str) -> GitIgnoreSpec | None:
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = file.read().split("\n")
    except OSError:
        return None
    return _spec(tuple(line for line in lines if _is_pattern(line)))


def _is_pattern(line: str) -> bool:
    """Git passes over lines that are no pattern."""
    try:
        _spec((line,))
    except ValueError:
        return False
    return True


def _ignore_files_above(folder: str) -> tuple[tuple[str, GitIgnoreSpec], ...]:
    """The .gitignore files between the root of the repository and ``folder``, and the repository's own excludes."""
    found: list[tuple[str, GitIgnoreSpec]] = []
    current = folder
    while True:
        git = os.path.join(current, ".git")
        if os.path.exists(git):
            own = _ignore_file(os.path.join(git, "info", "exclude"))
            return ((current, own), *reversed(found)) if own is not None else tuple(reversed(found))
        parent = os.path.dirname(current)
        if parent == current:
            return ()  # no repository: only what lies below the folder counts
        spec = _ignore_file(os.path.join(parent, ".gitignore"))
        if spec is not None:
            found.append((parent, spec))
        current = parent


def _is_ignored(absolute: str, is_folder: bool, ignored: tuple[tuple[str, GitIgnoreSpec], ...]) -> bool:
    """As git decides: the last file that has an opinion wins."""
    for folder, spec in reversed(ignored):
        relative = os.path.relpath(absolute, folder).replace(os.sep, "/")
        verdict = spec.check_file(relative + "/" if is_folder else relative).include
        if verdict is not None:
            return verdict
    return False


_DEFAULT_EXCLUDE = frozenset(DEFAULT_EXCLUDE)
