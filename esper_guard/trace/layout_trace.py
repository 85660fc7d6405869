"""What was collected, and the questions that it answers."""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from esper_guard.trace.budget import check_budget
from esper_guard.trace.event import LayoutEvent, Level
from esper_guard.trace.span import Span
from esper_guard.trace.tally import Tally, prototype_of


class Cost(NamedTuple):
    """What a line, a module or an operator cost. Numbers of occurrences, and bytes."""

    copies: int = 0
    """Explicit and hidden copies that changed the memory format."""
    bytes: int = 0
    """What these wrote."""
    losses: int = 0
    other_copies: int = 0
    """Explicit and hidden copies that changed strides only."""
    other_bytes: int = 0
    internal: int = 0
    """Copies inside kernels."""
    internal_bytes: int = 0

    @classmethod
    def of(cls, events: Iterable[LayoutEvent]) -> Cost:
        """Of all of them."""
        cost = cls()
        for event in events:
            cost = cost.plus(event)
        return cost

    @classmethod
    def sum(cls, costs: Iterable[Cost]) -> Cost:
        """Together."""
        return cls(*(sum(parts) for parts in zip(cls(), *costs, strict=True)))

    def plus(self, event: LayoutEvent) -> Cost:
        """Together with an event."""
        if event.kind == "loss":
            return self._replace(losses=self.losses + event.count)
        if event.kind == "internal":
            return self._replace(
                internal=self.internal + event.count, internal_bytes=self.internal_bytes + event.bytes
            )
        if event.changes_format:
            return self._replace(copies=self.copies + event.count, bytes=self.bytes + event.bytes)
        return self._replace(
            other_copies=self.other_copies + event.count, other_bytes=self.other_bytes + event.bytes
        )

    @property
    def rank(self) -> tuple[int, ...]:
        """The costliest is the greatest."""
        return (self.bytes, self.copies, self.losses, self.other_bytes, self.internal_bytes)


_generations = itertools.count()


class LayoutTrace:
    """The copies and format losses of a run. `trace_layouts` fills it; it may be read at any time.

    Memory does not grow with the length of the run: occurrences are added up by line, module, operator, phase,
    layouts, dtype and device. ``keep_events`` newest ones are kept one by one besides, in `raw_events`.

    Args:
        level: what was watched; ``"deep"`` includes copies inside of kernels.
        keep_events: how many single events to keep, with their times.
        torch_version: of the run.
        rank: of the process in a distributed run, None if it is in none.
    """

    def __init__(
        self,
        level: Level = "dispatch",
        keep_events: int = 0,
        *,
        torch_version: str | None = None,
        rank: int | None = None,
    ) -> None:
        self.level: Level = level
        self.keep_events = keep_events
        self.torch_version = torch_version
        self.rank = rank
        self.clear()

    def clear(self) -> None:
        """Forget what was collected."""
        self._lock = threading.RLock()  # reentrant, because the garbage collector may run code that is traced
        self.generation = next(_generations)
        """Another one after each `clear`."""
        self.calls: Counter[str] = Counter()
        """How often operators that copy were called, whether or not that changed anything about strides."""
        self.kernel_copies: int | None = 0 if self.level == "deep" else None
        """Deep level: all calls of ``aten::copy_``, those inside of kernels included, as torch.profiler counts them."""
        self.sources: dict[str, str] = {}
        """The text of the traced files, by `LayoutEvent.file`, as it was when the trace was saved: of a loaded trace."""
        self._executed: dict[str, set[Span]] = {}
        self._unseen: dict[str, None] = {}
        self._tallies: dict[LayoutEvent, Tally] = {}
        self._raw: deque[LayoutEvent] = deque(maxlen=self.keep_events)

    @property
    def events(self) -> tuple[LayoutEvent, ...]:
        """All, in the order in which each occurred for the first time."""
        with self._lock:
            return tuple(tally.event() for tally in list(self._tallies.values()))

    @property
    def raw_events(self) -> tuple[LayoutEvent, ...]:
        """The ``keep_events`` newest occurrences one by one, each with its time and thread."""
        with self._lock:
            return tuple(self._raw.copy())

    @property
    def unseen(self) -> tuple[str, ...]:
        """What the tracer knows that it could not see, a phrase each, such as a region of torch.compile."""
        return tuple(self._unseen)

    @property
    def executed(self) -> dict[str, frozenset[int]]:
        """The lines on which operators ran, by file: where no event is, nothing was copied or lost."""
        return {file: frozenset(span.line for span in spans) for file, spans in self.executed_calls.items()}

    @property
    def executed_calls(self) -> dict[str, frozenset[Span]]:
        """The calls that ran them, by file."""
        with self._lock:
            return {file: frozenset(spans) for file, spans in self._executed.items()}

    @property
    def copies(self) -> tuple[LayoutEvent, ...]:
        """Explicit and hidden copies between channels_last and NCHW."""
        return self._where(lambda event: event.is_copy and event.changes_format)

    @property
    def other_copies(self) -> tuple[LayoutEvent, ...]:
        """Explicit and hidden copies that changed strides but no memory format.

        Such as a transposed 3-D tensor, or a slice, made contiguous.
        """
        return self._where(lambda event: event.is_copy and not event.changes_format)

    @property
    def losses(self) -> tuple[LayoutEvent, ...]:
        """Where operators read channels_last and wrote NCHW."""
        return self._where(lambda event: event.kind == "loss")

    @property
    def internal(self) -> tuple[LayoutEvent, ...]:
        """Copies inside of kernels that changed strides (deep level). Nobody's line is to blame for them."""
        return self._where(lambda event: event.kind == "internal")

    @property
    def total_bytes(self) -> int:
        """What `copies` wrote, in bytes."""
        return sum(event.bytes for event in self.copies)

    @property
    def first_loss(self) -> LayoutEvent | None:
        """Where channels_last was lost first: a loss, or a copy to NCHW."""
        return next((event for event in self.events if event.leaves_channels_last), None)

    def by_line(self) -> dict[str, Cost]:
        """``{"file:line": cost}``, the costliest first. Gradients are under ``"parameter NAME"``."""
        return self._by(lambda event: event.location)

    def by_module(self) -> dict[str, Cost]:
        """``{"layers.0.conv": cost}``, the costliest first. What no module did is under ``"(no module)"``."""
        return self._by(lambda event: event.module or "(no module)")

    def by_operator(self) -> dict[str, Cost]:
        """``{"aten.clone.default": cost}``, the costliest first."""
        return self._by(lambda event: event.operator)

    def assert_max(
        self,
        *,
        copies: int | None = None,
        bytes: int | str | None = None,
        losses: int | None = None,
        ignore: Iterable[str] = (),
    ) -> None:
        """Fail if there were more; a bound that is not given is none. Warn if something could not be seen.

        Args:
            copies: occurrences of explicit and hidden copies between channels_last and NCHW.
            bytes: what they wrote: a number, or a string like ``"2 MiB"``.
            losses: occurrences of format losses.
            ignore: what is meant to be copied, or is somebody else's, as shell patterns (``*``, ``?``, ``[...]``) of what not to count: a file or the end of its path
                (``"model.py"``, ``"model.py:41"``), a module (``"backbone.*"``), an operator
                (``"aten.clone.*"``), or ``"parameter NAME"``.

        Raises:
            AssertionError: a bound is exceeded; the message lists the costliest lines.
            TypeError: no bound is given, or one has the wrong type.
            ValueError: a bound is negative, or no size.
        """
        __tracebackhide__ = True
        check_budget(self.events, self.unseen, copies, bytes, losses, ignore)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the trace as JSON, for `load_trace` and ``esper-guard report``; its schema is docs/trace.schema.json.

        ``{rank}`` and ``{pid}`` in the path become the rank of a distributed run (0 if it is none) and the number of
        the process, so that each has a file of its own. The file is replaced as a whole or not at all.

        Returns:
            The path that was written.

        Raises:
            OSError: it can't be written.
        """
        from esper_guard.trace.saved import save_trace

        return save_trace(self, path)

    def to_chrome(self, path: str | os.PathLike[str]) -> Path:
        """Write `raw_events` for chrome://tracing and Perfetto.

        Returns:
            The path that was written.

        Raises:
            ValueError: no single events were kept, although there were some; ask for them with ``keep_events``.
            OSError: it can't be written.
        """
        from esper_guard.trace.chrome import save_chrome

        return save_chrome(self, path)

    def __str__(self) -> str:
        """A table of the costliest events."""
        from esper_guard.trace.table import render_trace

        return render_trace(self)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _lock=threading.RLock(), generation=next(_generations))

    def __repr__(self) -> str:
        copies, losses = (sum(event.count for event in events) for events in (self.copies, self.losses))
        return f"<LayoutTrace: {copies} copies, {self.total_bytes} bytes, {losses} losses>"

    def tally(self, prototype: LayoutEvent) -> Tally:
        """Where occurrences like this one are added up; ``count``, ``bytes`` and shapes don't matter."""
        with self._lock:
            return self._tallies.setdefault(prototype, Tally(prototype))

    def count(self, operator: str, number: int = 1) -> None:
        """A call of an operator that copies."""
        with self._lock:
            self.calls[operator] += number

    def count_kernel_copy(self) -> None:
        """A call of ``aten::copy_``, wherever it came from."""
        with self._lock:
            self.kernel_copies = (self.kernel_copies or 0) + 1

    def add(self, tally: Tally, size: int, source_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """One occurrence, of ``size`` bytes."""
        with self._lock:
            tally.add(size, source_shape, shape)

    def keep(self, event: LayoutEvent) -> None:
        """A single event."""
        with self._lock:
            self._raw.append(event)

    def include(self, other: LayoutTrace, tests: tuple[str, ...] = ()) -> None:
        """Add up what another trace of the same level holds; ``tests`` are those that it is of, if they are known."""
        for event in other.events:
            self.tally(prototype_of(event)).include(replace(event, tests=event.tests or tests))
        for event in other.raw_events:
            self.keep(event)
        for file, spans in other.executed_calls.items():
            self.note_executed(file, *spans)
        for file, text in other.sources.items():
            if self.sources.setdefault(file, text) != text:
                self.note_unseen(
                    f"which lines of {file} are the same: it changed between the traces added up here"
                )
        self.calls.update(dict(other.calls))
        self._unseen.update(other._unseen)
        if other.kernel_copies is not None:
            self.kernel_copies = (self.kernel_copies or 0) + other.kernel_copies

    def note_executed(self, file: str, *calls: Span) -> None:
        """Operators ran in these calls."""
        with self._lock:
            self._executed.setdefault(file, set()).update(calls)

    def note_unseen(self, sentence: str) -> None:
        """Something that happened where the tracer can't look."""
        self._unseen[sentence] = None

    def _where(self, wanted: Callable[[LayoutEvent], bool]) -> tuple[LayoutEvent, ...]:
        return tuple(event for event in self.events if wanted(event))

    def _by(self, name: Callable[[LayoutEvent], str]) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        for event in self.events:
            key = name(event)
            costs[key] = costs.get(key, Cost()).plus(event)
        return dict(sorted(costs.items(), key=lambda item: item[1].rank, reverse=True))


def merge(traces: Iterable[LayoutTrace]) -> LayoutTrace:
    """One trace of several: of ranks, workers, or runs.

    Raises:
        ValueError: no traces, or of different levels, whose numbers can't be added up.
        TypeError: something else than traces.
    """
    several = [traces] if isinstance(traces, LayoutTrace) else list(traces)
    for trace in several:
        if not isinstance(trace, LayoutTrace):
            raise TypeError(f"merge() takes traces, not {type(trace).__qualname__}")
    if not several:
        raise ValueError("merge() needs at least one trace")
    levels = sorted({trace.level for trace in several})
    if len(levels) > 1:
        raise ValueError(
            f"traces of different levels ({', '.join(levels)}) can't be merged: compare them instead"
        )
    versions = {trace.torch_version for trace in several}
    ranks = {trace.rank for trace in several}
    merged = LayoutTrace(
        several[0].level,
        sum(trace.keep_events for trace in several),
        torch_version=versions.pop() if len(versions) == 1 else None,
        rank=ranks.pop() if len(ranks) == 1 else None,
    )
    for trace in several:
        merged.include(trace)
    return merged
