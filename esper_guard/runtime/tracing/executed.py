"""The lines on which operators ran: a measured zero says something of these only."""

from __future__ import annotations

from types import CodeType, FrameType

from esper_guard.runtime.callsite import is_the_users
from esper_guard.runtime.tracing.forward import Place
from esper_guard.trace.layout_trace import LayoutTrace


class ExecutedLines:
    """Of one thread; each instruction is told to the trace once."""

    def __init__(self, trace: LayoutTrace) -> None:
        self._trace = trace
        self._generation = trace.generation
        self._users: dict[str, bool] = {}
        self._seen: dict[tuple[int, int], CodeType] = {}  # with the code, so that its id stays its own

    def note(self, frame: FrameType | None) -> None:
        """An operator runs, called from this frame."""
        users = self._users
        while frame is not None:  # written for speed: it runs for each operator
            code = frame.f_code
            is_users = users.get(code.co_filename)
            if is_users is None:
                is_users = users[code.co_filename] = is_the_users(code.co_filename)
            if is_users:
                break
            frame = frame.f_back
        else:
            return
        if self._generation != self._trace.generation:  # it was cleared
            self._generation = self._trace.generation
            self._seen.clear()
        instruction = (id(code), frame.f_lasti)
        if instruction not in self._seen:
            self._seen[instruction] = code
            place = Place(code, frame.f_lasti)
            if place.file is not None and place.line is not None:
                self._trace.note_executed(place.file, place.line)
