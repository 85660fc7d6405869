"""Layouts that somebody chose: a comment on the line, or a function's name, says so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow

_WHY = re.compile(
    r"contiguous|stride|layout|memory|cop(?:y|ies)|kernel|cuda|triton|tensorrt|onnx|export|require|need|must|necessary|"
    r"deliberate|purpose|important|faster|slower|speed|perf|avoid|workaround|otherwise|because|since|\bbug\b|issue",
    re.IGNORECASE,
)
_CONVERTER = re.compile(
    r"nhwc|nchw|channels?_?(?:first|last)|hwc_?(?:to|2)|(?:to|2)_?chw|contiguous|memory_format", re.IGNORECASE
)


def is_documented(flow: Flow, node: cst.CSTNode) -> bool:
    """Whether a comment on the lines of ``node`` gives a reason for how memory is laid out there."""
    return _WHY.search(flow.positions.comments_on(node)) is not None


def is_converter(flow: Flow, node: cst.CSTNode) -> bool:
    """Whether the function around ``node`` exists to change the layout, by its name: ``nhwc_to_nchw``."""
    return _CONVERTER.search(flow.function_name(node)) is not None
