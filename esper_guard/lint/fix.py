"""Edits to new source: all of a fix or none of it, no two fixes in one place, files replaced in one step."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from esper_guard.lint.finding import Edit, Finding


def apply_fixes(text: str, findings: Iterable[Finding], unsafe: bool) -> tuple[str, list[Finding]]:
    """``text`` with every fix applied that is allowed and touches no other; and the findings that were fixed.

    Fixes that overlap an earlier one are left for a second run over the new text.
    """
    chosen: list[Edit] = []
    fixed: list[Finding] = []
    for finding in findings:
        if finding.fix is None or not (finding.fix.safe or unsafe):
            continue
        edits = [edit for edit in finding.fix.edits if edit not in chosen]
        if any(_overlap(edit, other) for edit in edits for other in chosen):
            continue
        chosen += edits
        fixed.append(finding)
    for edit in sorted(chosen, key=lambda edit: (edit.start, edit.end), reverse=True):
        text = text[: edit.start] + edit.content + text[edit.end :]
    return text, fixed


def _overlap(one: Edit, other: Edit) -> bool:
    if one.start == other.start:
        return True
    return one.start < other.end and other.start < one.end


def write_atomically(path: str, data: bytes) -> None:
    """Replace the file at ``path`` (the target, if it is a link) by ``data``; its mode stays.

    Raises:
        OSError: the folder or the file can't be written. The file is then as it was.
    """
    import tempfile  # not at the top: only fixing needs it, and it costs a fifth of the start-up time

    path = os.path.realpath(path)
    before = os.stat(path)
    if not os.access(path, os.W_OK):
        raise PermissionError(13, "the file is read-only", path)
    descriptor, temporary = tempfile.mkstemp(prefix=".esper-guard-", dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError, AttributeError):  # the owner, where we may set it
            os.chown(temporary, before.st_uid, before.st_gid)
        os.chmod(temporary, stat.S_IMODE(before.st_mode))
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
