"""What ``esper-guard report`` has to say, whatever the form."""

from __future__ import annotations

from typing import NamedTuple

from esper_guard.trace.baseline import News
from esper_guard.trace.budget import Broken
from esper_guard.trace.compare import By, Comparison, Row, rows_of
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.sizes import format_size
from esper_guard.trace.table import plural


class Verdict(NamedTuple):
    """Of bounds, a baseline, or both."""

    broken: tuple[Broken, ...] = ()
    """Bounds that are exceeded."""
    baseline: str | None = None
    """Its path, if the trace was held against one."""
    news: tuple[News, ...] = ()
    """What the baseline does not know of."""
    bounds: tuple[str, ...] = ()
    """``("at most 64.0 MiB copied",)``: those that the trace was held to."""

    @property
    def passed(self) -> bool:
        """Whether nothing is exceeded."""
        return not (self.broken or self.news)

    @property
    def reasons(self) -> list[str]:
        """``["3 layout copies, at most 2 allowed"]``: what is exceeded."""
        return [*map(str, self.broken), *([f"{self.new} not in the baseline"] if self.news else ())]

    @property
    def kept(self) -> list[str]:
        """``["at most 64.0 MiB copied", "nothing that known.json doesn't have"]``: what a trace that passed keeps to."""
        return [
            *self.bounds,
            *([] if self.baseline is None else [f"nothing that {self.baseline} doesn't have"]),
        ]

    @property
    def new(self) -> str:
        """``"1 layout copy and 2 format losses"``: how often what is new, or more, happened beyond the baseline."""
        beyond = {True: 0, False: 0}
        for news in self.news:
            known = news.known.times if news.known else 0
            beyond[news.events[0].is_copy] += max(news.now.times - known, 0)
        counts = [
            plural(number, noun)
            for number, noun in ((beyond[True], "layout copy"), (beyond[False], "format loss"))
            if number
        ]
        return " and ".join(counts) or "larger copies"


class TraceReport(NamedTuple):
    """A trace, and what it was held against."""

    trace: LayoutTrace
    by: By
    rows: int
    """How many to show."""
    traces: tuple[str, ...] = ()
    """Paths of the traces that were added up."""
    verdict: Verdict | None = None
    comparison: Comparison | None = None
    compared_with: tuple[str, ...] = ()
    """Paths of the traces before."""
    levels: tuple[str, str] | None = None
    """Of the traces before and after, if they differ, so that copies inside kernels are not compared."""

    def costs(self) -> list[Row]:
        """What is shown: what changed most if two are compared, else the costliest."""
        return rows_of(self.trace, self.by) if self.comparison is None else list(self.comparison.rows)


def more_than(news: News) -> str:
    """``"new"``, or what the baseline has: ``"was once, 480 B"``, ``"was 480 B, now 960 B"``."""
    if news.known is None:
        return "new"
    before, now = format_size(news.known.size), format_size(news.now.size)
    if news.now.times > news.known.times:
        return f"was {_times(news.known.times)}, {before}"
    if before == now:
        before, now = f"{news.known.size} B", f"{news.now.size} B"
    return f"was {before}, now {now}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def signed(number: int) -> str:
    """``"+2"``, ``"-2"``, ``""``."""
    return f"{number:+d}" if number else ""


def signed_size(size: int) -> str:
    """``"+1.5 KiB"``, ``"-512 B"``, ``""``."""
    return f"{'-' if size < 0 else '+'}{format_size(abs(size))}" if size else ""
