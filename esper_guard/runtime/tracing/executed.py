"""The calls in which operators ran: a measured zero says something of these only."""

from __future__ import annotations

import sys
from itertools import islice
from types import CodeType, FrameType

from esper_guard.runtime.callsite import is_compiled, is_the_users
from esper_guard.runtime.tracing.forward import Place
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.span import Span

_FOREIGN, _USERS, _COMPILED = range(3)


class ExecutedCalls:
    """Of one thread; each instruction is told to the trace once."""

    def __init__(self, trace: LayoutTrace) -> None:
        self._trace = trace
        self._generation = trace.generation
        self._kinds: dict[str, int] = {}
        self._seen: dict[tuple[int, int], CodeType] = {}  # with the code, so that its id stays its own

    def note(self, frame: FrameType | None) -> None:
        """An operator runs, called from this frame.

        What compiled code calls says nothing of the line that called the compiled code, since what that asks for may have
        become a kernel that is not seen.
        """
        kinds = self._kinds
        while frame is not None:  # written for speed: it runs for each operator
            code = frame.f_code
            kind = kinds.get(code.co_filename)
            if kind is None:
                kind = kinds[code.co_filename] = _kind_of(code.co_filename)
            if kind:
                break
            frame = frame.f_back
        else:
            return
        if kind == _COMPILED:
            return
        if self._generation != self._trace.generation:  # it was cleared
            self._generation = self._trace.generation
            self._seen.clear()
        instruction = (id(code), frame.f_lasti)
        if instruction not in self._seen:
            self._seen[instruction] = code
            place = Place(code, frame.f_lasti)
            if place.file is not None and place.line is not None:
                self._trace.note_executed(place.file, _span_of(code, frame.f_lasti, place.line))


def _kind_of(filename: str) -> int:
    if is_compiled(filename):
        return _COMPILED
    return _USERS if is_the_users(filename) else _FOREIGN


def _span_of(code: CodeType, instruction: int, line: int) -> Span:
    if sys.version_info < (3, 11):
        return Span(line)
    first, last, column, end = next(islice(code.co_positions(), instruction // 2, None))
    if first is None or last is None or column is None or end is None:
        return Span(line)
    return Span(first, column, last, end)
