"""Which file of a trace is which file here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property

from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.recorded import Recorded, Run
from esper_guard.trace.span import Span

_PACKAGES = "site-packages", "dist-packages"


class Recordings:
    """Traces, by file. Each keeps the lines of the files that it was recorded from."""

    def __init__(self, traces: Iterable[LayoutTrace]) -> None:
        self._traces = [_Files(trace) for trace in traces]

    @property
    def unseen(self) -> tuple[str, ...]:
        """What the tracer could not see, a phrase each."""
        return tuple(dict.fromkeys(phrase for each in self._traces for phrase in each.trace.unseen))

    def of(self, path: str) -> Recorded | None:
        """What is recorded of the file at ``path``; None if nothing is.

        A trace from another folder or machine names files otherwise. Then one folder is taken for another: that by
        which most of the trace's files are found here, of those that are not where the trace says.
        """
        runs = [run for each in self._traces if (run := each.of(path)) is not None]
        return Recorded(tuple(runs)) if runs else None

    def lost(self) -> dict[str, int]:
        """Files with copies that are not there any more, by their names in the trace, with the number of copies."""
        lost: dict[str, int] = {}
        for each in self._traces:
            for file, copies in each.lost().items():
                lost[file] = lost.get(file, 0) + copies
        return lost


class _Files:
    """Of one trace."""

    def __init__(self, trace: LayoutTrace) -> None:
        self.trace = trace
        self._moves: set[tuple[str, str]] = set()

    def of(self, path: str) -> Run | None:
        real = os.path.realpath(path)
        file = self._by_place.get(real)
        if file is None:
            file = self._moved(real)
        return None if file is None else self._run(file)

    def lost(self) -> dict[str, int]:
        lost: dict[str, int] = {}
        for event in self.trace.copies:
            file = event.file
            if file in self._missing and not any(_exists(_at(file, *move)) for move in self._moves):
                lost[file] = lost.get(file, 0) + event.count
        return lost

    def _run(self, file: str) -> Run:
        calls = self._calls.get(file, frozenset())
        text = self.trace.sources.get(file)
        return Run(tuple(self._events.get(file, ())), calls, text, not self.trace.unseen)

    def _moved(self, real: str) -> str | None:
        """The file that was moved to ``real``, with others or by at least one folder of the same name."""
        here = real.replace(os.sep, "/")
        if _is_installed(here):
            return next((file for file in self._installed if _below(file) == _below(here)), None)
        name = here.rpartition("/")[2]
        ranks: dict[str, tuple[int, int]] = {}
        for file in self._missing:
            if _parts(file)[-1] == name:
                agreeing = _agreement(file, here)
                move = _without(file, agreeing), _without(here, agreeing)
                ranks[file] = (sum(_exists(_at(other, *move)) for other in self._missing), agreeing)
        best = max(ranks.values(), default=(0, 0))
        found = [file for file, rank in ranks.items() if rank == best]
        if len(found) != 1 or max(best) < 2:
            return None
        agreeing = best[1]
        self._moves.add((_without(found[0], agreeing), _without(here, agreeing)))
        return found[0]

    @cached_property
    def _names(self) -> tuple[str, ...]:
        named = [event.file for event in self.trace.events if event.file is not None]
        return tuple(dict.fromkeys([*named, *self._calls]))

    @cached_property
    def _calls(self) -> dict[str, frozenset[Span]]:
        return self.trace.executed_calls

    @cached_property
    def _by_place(self) -> dict[str, str]:
        return {os.path.realpath(file): file for file in self._names if _exists(file)}

    @cached_property
    def _missing(self) -> tuple[str, ...]:
        """Those of nobody's package that are not where the trace says."""
        return tuple(
            file for file in self._names if not (_is_installed(file) or _exists(file) or file.startswith("<"))
        )

    @cached_property
    def _installed(self) -> tuple[str, ...]:
        return tuple(file for file in self._names if _is_installed(file) and not _exists(file))

    @cached_property
    def _events(self) -> dict[str, list[LayoutEvent]]:
        events: dict[str, list[LayoutEvent]] = {}
        for event in self.trace.events:
            if event.file is not None and event.line is not None:
                events.setdefault(event.file, []).append(event)
        return events


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a name that no file can have
        return False


def _parts(path: str) -> list[str]:
    return path.replace("\\", "/").split("/")


def _is_installed(path: str) -> bool:
    return not set(_PACKAGES).isdisjoint(_parts(path))


def _below(path: str) -> Sequence[str]:
    """The parts below the folder of packages."""
    parts = _parts(path)
    return parts[max(at for at, part in enumerate(parts) if part in _PACKAGES) :]


def _agreement(file: str, other: str) -> int:
    """How many parts of two paths agree, from the end."""
    pairs = list(zip(reversed(_parts(file)), reversed(_parts(other)), strict=False))
    return next((at for at, (one, two) in enumerate(pairs) if one != two), len(pairs))


def _without(path: str, parts: int) -> str:
    """The path without its last parts."""
    return "/".join(_parts(path)[:-parts])


def _at(file: str, source: str, target: str) -> str:
    """Where a file is if one folder is another; a name that nothing has if it doesn't lie in that folder."""
    name = "/".join(_parts(file))
    return f"{target}{name[len(source) :]}" if name.startswith(f"{source}/") else ""
