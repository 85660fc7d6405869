"""Which name stands for what: imports and classes, read from masked code without parsing it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

# Each begins with plain letters, which is what makes the search fast; what stands before is looked at afterwards.
_IMPORT = re.compile(r"import(?=[ \t(])[ \t]*(\([^)]*\)|(?:[^\r\n;\\]|\\\r?\n)+)")
_FROM = re.compile(r"(?:^|[\n;:])[ \t\f]*from[ \t]+([.\w]+)[ \t]+(?:\\\r?\n)?[ \t]*\Z")
_CLASS = re.compile(r"class[ \t]+(\w+)[ \t]*(?:\[[^\]]*\][ \t]*)?(\([^)]*\))?")
_BLANK_BEFORE = re.compile(r"(?:^|[\n;:])[ \t\f]*\Z")
# What people call these modules, where a snippet leaves its imports out.
_CONVENTIONS = {"torch": "torch", "np": "numpy", "numpy": "numpy", "einops": "einops"}
# Packages of which we know what a name imported from them is.
_KNOWN_PACKAGES = frozenset(("torch", "numpy", "einops"))


class Names(NamedTuple):
    """``imports``: local name to dotted origin. ``classes``: class defined in this file to its bases, as written."""

    imports: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]
    written: frozenset[str]  # the local names that the file really imports
    modules: frozenset[str]  # those that name a module, rather than an object that has methods
    renamed: Mapping[str, str]  # aliases of what comes from torch, to the names that a search would look for

    def resolve(self, dotted: str) -> str:
        """``t.nn.Linear`` to ``torch.nn.Linear`` where ``t`` is torch; unknown names stay as they are."""
        root, _, rest = dotted.partition(".")
        origin = self.imports.get(root, root)
        return f"{origin}.{rest}" if rest else origin

    def resolve_function(self, dotted: str) -> str:
        """The same for what is called: ``""`` where the name is a method of some object."""
        root, dot, _ = dotted.partition(".")
        return "" if dot and root not in self.modules else self.resolve(dotted)


def names_of(code: str) -> Names:
    """The imports and classes of masked ``code``, wherever in it they stand."""
    imports = dict(_CONVENTIONS)
    written: set[str] = set()
    modules = set(_CONVENTIONS)
    for match in _IMPORT.finditer(code):
        before = max(0, match.start() - 200), match.start()
        origin_module = _FROM.search(code, *before)
        if origin_module is None and not _BLANK_BEFORE.search(code, *before):
            continue
        for origin, alias in _aliases(match[1].strip("()")):
            root = origin.partition(".")[0]
            if origin_module is not None:
                name, full = alias or origin, f"{origin_module[1]}.{origin}"
            else:
                name, full = alias or root, origin if alias else root
            imports[name] = full
            written.add(name)
            if origin_module is None or full.partition(".")[0] in _KNOWN_PACKAGES:
                modules.add(name)
            else:
                modules.discard(name)
    classes = {
        match[1]: tuple(base.strip() for base in (match[2] or "()")[1:-1].split(",") if base.strip())
        for match in _CLASS.finditer(code)
        if _BLANK_BEFORE.search(code, max(0, match.start() - 100), match.start())
    }
    renamed = {
        alias: f".{origin}"
        for alias, origin in imports.items()
        if origin.split(".")[0] == "torch" and origin.rpartition(".")[2] != alias
    }
    return Names(imports, classes, frozenset(written), frozenset(modules), renamed)


@lru_cache(maxsize=4096)  # the same few imports stand in every file of a project
def _aliases(names: str) -> list[tuple[str, str]]:
    pairs = (part.replace("\\", " ").split() for part in names.split(","))
    return [
        (words[0], words[2] if len(words) == 3 and words[1] == "as" else "")
        for words in pairs
        if words and re.fullmatch(r"[\w.]+", words[0])
    ]
