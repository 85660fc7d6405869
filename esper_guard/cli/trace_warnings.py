"""What users should know of a trace before they believe what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper_guard.lint.engine import Report
    from esper_guard.trace.recorded import Recorded
    from esper_guard.trace.recordings import Recordings

_MOST_PHRASES = 3


def warnings_about(
    recordings: Recordings, recorded: dict[str, Recorded], reports: Sequence[Report]
) -> Iterator[str]:
    """A sentence each.

    Args:
        recordings: the traces.
        recorded: what they hold of the files that were checked, by path.
        reports: of these files.
    """
    if not recorded:
        yield "the trace has no line of the files checked: was it recorded from other ones?"
        return
    if recordings.unseen:
        yield f"the trace is not whole, so that no zero counts: {_few(recordings.unseen)}"
    for file, copies in recordings.lost().items():
        number = "1 copy" if copies == 1 else f"{copies} copies"
        yield f"the trace has {number} in {file}, which is not there any more; record it again"
    for path, known in recorded.items():
        if not known.has_text:
            yield f"the trace holds no text of {path}: what it says may be of other lines; record it again"
    for report in reports:
        if report.gone:
            lines = "1 measured line" if report.gone == 1 else f"{report.gone} measured lines"
            yield f"the trace is older than {report.path}: {lines} changed since; record it again"


def _few(phrases: Sequence[str]) -> str:
    more = len(phrases) - _MOST_PHRASES
    return "; ".join([*phrases[:_MOST_PHRASES], *([f"and {more} more"] if more > 0 else [])])
