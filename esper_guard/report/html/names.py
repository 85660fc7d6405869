"""File names as short as they can be without being mistaken for one another."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath


def short_names(files: Iterable[str]) -> dict[str, str]:
    """Each file's name below the working directory, ``site-packages``, or else the folder that the others share."""
    several = list(dict.fromkeys(files))
    here = os.getcwd() + os.sep
    names = {file: _below(file, here) for file in several}
    elsewhere = [file for file, name in names.items() if name is None]
    shared = _shared_folder(elsewhere)
    short = {
        file: (file.removeprefix(shared) if name is None else name).replace("\\", "/")
        for file, name in names.items()
    }
    taken = Counter(short.values())
    return {file: name if taken[name] == 1 else file for file, name in short.items()}


def _below(file: str, folder: str) -> str | None:
    for installed in ("site-packages", "dist-packages"):
        parts = PurePath(file.replace("\\", "/")).parts
        if installed in parts:  # first, because an environment may lie below the folder
            return "/".join(parts[parts.index(installed) :])
    return file.removeprefix(folder) if file.startswith(folder) else None


def _shared_folder(files: list[str]) -> str:
    """Of absolute paths, with the separator at its end; empty if there is none."""
    folders = [os.path.dirname(file) for file in files if os.path.isabs(file)]
    if not folders:
        return ""
    try:
        shared = os.path.commonpath(folders)
    except ValueError:  # on different drives
        return ""
    return shared if shared.endswith(os.sep) else shared + os.sep
