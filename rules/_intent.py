"""Functions that exist to change the layout, by their name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow

_CONVERTER = re.compile(
    r"nhwc|nchw|channels?_?(?:first|last)|hwc_?(?:to|2)|(?:to|2)_?chw|contiguous|memory_format", re.IGNORECASE
)


def is_converter(flow: Flow, node: cst.CSTNode) -> bool:
    """Whether the function around ``node`` exists to change the layout, by its name: ``nhwc_to_nchw``."""
    return _CONVERTER.search(flow.function_name(node)) is not None
