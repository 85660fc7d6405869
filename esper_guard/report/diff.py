"""What fixing changes, as a patch that can be applied."""

from __future__ import annotations

import re

from esper_guard.lint.engine import FixedFile
from esper_guard.lint.source import Source

# What git and patch take for a line: nothing that str.splitlines() would add.
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_NO_NEWLINE = b"\n\\ No newline at end of file\n"


def diff(file: FixedFile) -> bytes:
    """A unified diff, in the encoding of the file."""
    from difflib import diff_bytes, unified_diff

    assert file.data is not None
    encoding = Source.from_bytes(file.report.path, file.data)
    before, after = _LINE.findall(encoding.to_bytes(file.before)), _LINE.findall(file.data)
    path = file.report.path.encode("utf-8", "surrogateescape")
    lines = diff_bytes(unified_diff, before, after, path, path)
    return b"".join(line if line.endswith(b"\n") else line + _NO_NEWLINE for line in lines)
