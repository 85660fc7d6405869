"""``@pytest.mark.memory_format``."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from esper_guard.nearest import did_you_mean

FORMATS = ("channels_last", "channels_last_3d", "contiguous_format")
_NAMES = {
    **{name: name for name in FORMATS},
    "contiguous": "contiguous_format",
    "nchw": "contiguous_format",
    "nhwc": "channels_last",
}
_KEYS = ("format", "max_copies", "max_bytes", "ignore")


class MarkerError(ValueError):
    """The marker's arguments are wrong."""


class Marked(NamedTuple):
    """What a test is held to."""

    format: str | None
    """torch's name of the format that is not to be left."""
    max_copies: int | None
    max_bytes: int | None
    ignore: tuple[str, ...]

    @classmethod
    def of(cls, marker: pytest.Mark) -> Marked:
        """Read it.

        Raises:
            MarkerError: it has a key or a value that is not allowed.
        """
        values = dict(marker.kwargs)
        unknown = [key for key in values if key not in _KEYS]
        if unknown:
            raise MarkerError(
                f"there is no argument '{unknown[0]}' ({', '.join(_KEYS)}){did_you_mean(unknown[0], _KEYS)}"
            )
        if len(marker.args) > 1 or (marker.args and "format" in values):
            raise MarkerError("it takes one format; everything else goes by name")
        format = marker.args[0] if marker.args else values.get("format")
        copies, size = values.get("max_copies"), values.get("max_bytes")
        if format is copies is size is None:
            raise MarkerError("it expects nothing: give a format, max_copies or max_bytes")
        return cls(
            None if format is None else _format(format),
            _number(copies),
            _size(size),
            _patterns(values.get("ignore", ())),
        )


def _format(written: Any) -> str:
    """A name, or a `torch.memory_format`, without importing torch."""
    text = str(written).removeprefix("torch.")
    if text not in _NAMES:
        raise MarkerError(f"'{text}' is no memory format ({', '.join(_NAMES)}){did_you_mean(text, _NAMES)}")
    return _NAMES[text]


def _number(written: Any) -> int | None:
    if written is None:
        return None
    if isinstance(written, bool) or not isinstance(written, int) or written < 0:
        raise MarkerError(f"max_copies is a number of copies, not {written!r}")
    return written


def _size(written: Any) -> int | None:
    from esper_guard.trace.sizes import parse_size

    if written is None:
        return None
    try:
        return parse_size(written)
    except (TypeError, ValueError) as error:
        raise MarkerError(f"max_bytes: {error}") from error


def _patterns(written: Any) -> tuple[str, ...]:
    if not isinstance(written, list | tuple) or not all(isinstance(pattern, str) for pattern in written):
        raise MarkerError(f"ignore is a list of patterns, not {written!r}")
    return tuple(written)
