"""Which name stands for what: imports and classes, read from masked code without parsing it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

_IMPORT = re.compile(r"\bimport[ \t]*(\([^)]*\)|(?:[^\r\n;\\]|\\\r?\n)+)")
_FROM = re.compile(r"(?:^|[\n;:])[ \t\f]*from[ \t]+([.\w]+)[ \t]+(?:\\\r?\n)?[ \t]*\Z")
_CLASS = re.compile(r"^[ \t\f]*class[ \t]+(\w+)[ \t]*(?:\[[^\]]*\][ \t]*)?(\([^)]*\))?", re.MULTILINE)
# What people call these modules, where a snippet leaves its imports out.
_CONVENTIONS = {"torch": "torch", "np": "numpy", "numpy": "numpy"}


class Names(NamedTuple):
    """``imports``: local name to dotted origin. ``classes``: class defined in this file to its bases, as written."""

    imports: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]
    written: frozenset[str]  # the local names that the file really imports
    renamed: Mapping[str, str]  # aliases of what comes from torch, to the names that a search would look for

    def resolve(self, dotted: str) -> str:
        """``t.nn.Linear`` to ``torch.nn.Linear`` where ``t`` is torch; unknown names stay as they are."""
        root, _, rest = dotted.partition(".")
        origin = self.imports.get(root, root)
        return f"{origin}.{rest}" if rest else origin


def names_of(code: str) -> Names:
    """The imports and classes of masked ``code``, wherever in it they stand."""
    imports = dict(_CONVENTIONS)
    written: set[str] = set()
    for match in _IMPORT.finditer(code):
        line = code.rfind("\n", 0, match.start()) + 1
        origin_module = _FROM.search(code, max(0, line - 200), match.start())
        for origin, alias in _aliases(match[1].strip("()")):
            root = origin.partition(".")[0]
            if origin_module is not None:
                name, full = alias or origin, f"{origin_module[1]}.{origin}"
            else:
                name, full = alias or root, origin if alias else root
            imports[name] = full
            written.add(name)
    classes = {
        match[1]: tuple(base.strip() for base in (match[2] or "()")[1:-1].split(",") if base.strip())
        for match in _CLASS.finditer(code)
    }
    renamed = {
        alias: f".{origin}"
        for alias, origin in imports.items()
        if origin.split(".")[0] == "torch" and origin.rpartition(".")[2] != alias
    }
    return Names(imports, classes, frozenset(written), renamed)


@lru_cache(maxsize=4096)  # the same few imports stand in every file of a project
def _aliases(names: str) -> list[tuple[str, str]]:
    pairs = (part.replace("\\", " ").split() for part in names.split(","))
    return [
        (words[0], words[2] if len(words) == 3 and words[1] == "as" else "")
        for words in pairs
        if words and re.fullmatch(r"[\w.]+", words[0])
    ]
