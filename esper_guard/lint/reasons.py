"""Comments that give a reason for how memory is laid out on their line: somebody chose it, so nothing is reported."""

from __future__ import annotations

import re

from esper_guard.lint.finding import Finding
from esper_guard.lint.masking import Masked
from esper_guard.lint.source import Source

_WHY = re.compile(
    r"contiguous|stride|layout|memory|cop(?:y|ies)|kernel|cuda|triton|tensorrt|onnx|export|require|need|must|necessary|"
    r"deliberate|purpose|important|faster|slower|speed|perf|avoid|workaround|otherwise|because|since|\bbug\b|issue",
    re.IGNORECASE,
)


def gives_reason(source: Source, masked: Masked, finding: Finding) -> bool:
    """Whether a comment on the lines of ``finding`` says why memory is laid out as it is there."""
    first = source.offset(finding.location.row, 1)
    last = source.offset(finding.end_location.row, 1)
    end = last + len(source.line(finding.end_location.row))
    comments = (source.text[c.start : c.end] for c in masked.comments if first <= c.start < end)
    return any(_WHY.search(comment) for comment in comments)
