"""Triggers that rules share: what is tried once per file serves them all."""

from __future__ import annotations

import re
from collections.abc import Iterator

MOST_SIZES = 4
_FEW_SIZES = 3
_VIEW = re.compile(rb"view[\s\\]*\(((?:[^()\n]|\([^()\n]*\))*)(\)?)")
_NAME = re.compile(rb"\s*[A-Za-z_][\w.]*,?\s*")
_IN_BRACKETS = re.compile(rb"\([^()]*\)")


def _views(text: bytes) -> Iterator[int]:
    """The calls of ``view`` with few sizes, as far as one line tells: with many, nothing is merged."""
    for view in _VIEW.finditer(text):
        if view[2] and _NAME.fullmatch(view[1]):
            continue  # a shape, or a dtype
        sizes = _IN_BRACKETS.sub(b"", view[1]).rstrip(b", \t").count(b",") + 1
        is_unbound = text.endswith(b"Tensor.", 0, view.start())
        merges_first = sizes <= MOST_SIZES + is_unbound and b"*" in view[1]
        if not view[2] or sizes <= _FEW_SIZES + is_unbound or merges_first:
            yield view.start()


MERGING_VIEW = (rb"view", _views)
