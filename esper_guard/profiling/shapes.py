"""``8x3x224x224`` and ``8x128:int64``: inputs as the command line names them. Needs no torch."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from esper_guard.profiling.choices import DTYPES

_SHAPE: Final = re.compile(r"(\d+(?:x\d+)*)(?::(\w+))?")


class Shape(NamedTuple):
    """Of one input."""

    sizes: tuple[int, ...]
    dtype: str | None
    """torch's name; None: that of the model."""


def parse_shape(text: str) -> Shape:
    """Sizes with an x between them, and a dtype after a colon if it is not that of the model.

    Raises:
        ValueError: it has another form; the message names the remedy.
    """
    found = _SHAPE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"'{text}' is no shape: write sizes as in 8x3x224x224, or with a dtype 8x128:int64")
    dtype = found[2]
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"'{text}': there is no dtype '{dtype}'; there are {', '.join(DTYPES)}")
    return Shape(tuple(int(size) for size in found[1].split("x")), dtype)
