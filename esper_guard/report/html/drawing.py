"""The icicle as the page draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from esper_guard.report.html.icicle import Box
from esper_guard.trace.sizes import format_size

ROW: Final = 24
"""Height of a box, in pixels."""
_USUAL_WIDTH = 1080
_CHARACTER = 7.2
"""Width of one, in pixels; the script fits labels to the width that the picture really has."""


class ShownBox(NamedTuple):
    """A box; places and widths are in percent of the picture's width."""

    box: Box
    left: str
    width: str
    top: int
    """In pixels."""
    label: str
    title: str


def drawn(boxes: Sequence[Box]) -> list[ShownBox]:
    """Each of them."""
    whole = boxes[0].width if boxes else 1
    return [
        ShownBox(
            box,
            f"{100 * box.start / whole:.4f}",
            f"{100 * box.width / whole:.4f}",
            box.depth * ROW,
            _fitting(box, _USUAL_WIDTH * box.width / whole),
            f"{box.name or box.label}: {format_size(box.width)}, {100 * box.width / whole:.0f} %",
        )
        for box in boxes
    ]


def height_of(boxes: Sequence[Box]) -> int:
    """In pixels."""
    return ROW * (1 + max((box.depth for box in boxes), default=0))


def _fitting(box: Box, width: float) -> str:
    """The whole name if ``width`` pixels hold it, or else as much of its last part as they hold."""
    room = int((width - 8) / _CHARACTER)
    for text in (box.name, box.label):
        if text and len(text) <= room:
            return text
    return f"{box.label[: room - 1]}\N{HORIZONTAL ELLIPSIS}" if room > 2 else ""
