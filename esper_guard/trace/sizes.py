"""Numbers of bytes, read and written for people."""

from __future__ import annotations

import re

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_size(size: int | str) -> int:
    """Bytes of ``"2 MiB"``, ``"1.5GB"``, ``"4096"`` or 4096. kB, MB, GB are powers of 1000; KiB, MiB, GiB of 1024.

    Raises:
        ValueError: no size of this form, or a negative one.
        TypeError: neither a number nor a string.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise TypeError(
            f"a size is a number of bytes or a string like '2 MiB', not {type(size).__qualname__}"
        )
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"a size can't be negative: {size}")
        return size
    found = _SIZE.fullmatch(size.strip())
    unit = _UNITS.get(found[2].lower() or "b") if found else None
    if found is None or unit is None:
        raise ValueError(
            f"'{size}' is no size: write a number of bytes, or one with kB, MB, GB, KiB, MiB or GiB"
        )
    whole, _, fraction = found[1].partition(".")
    return int(whole) * unit + int(fraction or 0) * unit // int(10 ** len(fraction))


def format_size(size: int) -> str:
    """``"512 B"``, ``"1.5 KiB"``, ``"73.5 MiB"``."""
    if size < 2**10:
        return f"{size} B"
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 2**10:.1f} KiB"
