"""What a report is held against: a baseline of its own, or an earlier trace."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from esper_guard.trace import baseline, saved
from esper_guard.trace.baseline import Baseline, name_of
from esper_guard.trace.checkouts import renamed_files
from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.line_texts import LineTexts

if TYPE_CHECKING:
    from esper_guard.trace.layout_trace import LayoutTrace


def is_held(event: LayoutEvent) -> bool:
    """Whether bounds and baselines of a run count it: a copy that changes the format, or a loss."""
    return event.kind == "loss" or (event.is_copy and event.changes_format)


def load_known(path: Path, trace: LayoutTrace) -> tuple[Baseline, LayoutTrace | None]:
    """What ``path`` holds, to hold ``trace`` against it: sums of a whole run, as the trace has them.

    Returns:
        The baseline, and the earlier trace if it is one.

    Raises:
        OSError: it can't be read.
        ValueError: it is neither a trace nor a baseline of reports, a damaged one, or of a newer version; the message
            names the file.
    """
    texts = LineTexts(trace.sources, numbered=True)
    kind = saved.format_of(path.read_bytes())
    if kind == baseline.FORMAT:
        known, earlier, root = Baseline.load(path, "run", texts), None, path.parent
    elif kind == saved.FORMAT:
        earlier, root = saved.load_trace(path), Path.cwd()
        known = Baseline(root, measured(earlier, root), "run", texts)
    else:
        raise ValueError(
            f"{path}: neither a layout trace nor a layout baseline: write one with --baseline PATH --update-baseline"
        )
    before = {place.file for place in known.entries if place.file is not None}
    known.renamed(renamed_files(before, names_in(trace.events, root)))
    return known, earlier


def load_own(path: Path) -> Baseline:
    """A baseline of reports, which may be overwritten.

    Raises:
        OSError: it can't be read.
        ValueError: it is something else.
    """
    if saved.format_of(path.read_bytes()) == saved.FORMAT:
        raise ValueError(
            f"{path}: a layout trace, which --update-baseline won't overwrite: give another path"
        )
    return Baseline.load(path, "run")


def measured(
    trace: LayoutTrace, root: Path, events: Iterable[LayoutEvent] | None = None
) -> dict[baseline.Known, baseline.Worst]:
    """What a run did (``events`` of it), by what that is recognised by."""
    texts = LineTexts(trace.sources, numbered=True)
    held = filter(is_held, trace.events if events is None else events)
    return Baseline(root, of="run", texts=texts).measure(held)


def names_in(events: Iterable[LayoutEvent], root: Path) -> set[str]:
    """What the files of events go by."""
    return {name_of(file, root) for file in {event.file for event in events} if file is not None}
