"""Comments that give a reason for how memory is laid out: somebody chose it, so nothing is reported.

They stand on the lines of what they explain, or right above.
"""

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
    """Whether a comment on the lines of ``finding``, or above, says why memory is laid out as it is there."""
    row = finding.location.row
    while row > 1 and source.line(row - 1).lstrip().startswith("#"):
        row -= 1
    first = source.offset(row, 1)
    last = source.offset(finding.end_location.row, 1)
    end = last + len(source.line(finding.end_location.row))
    comments = (source.text[c.start : c.end] for c in masked.comments if first <= c.start < end)
    return any(_WHY.search(comment) for comment in comments)
