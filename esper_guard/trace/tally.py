"""Occurrences of one event, added up."""

from __future__ import annotations

from msgspec.structs import replace

from esper_guard.trace.event import LayoutEvent


def prototype_of(event: LayoutEvent) -> LayoutEvent:
    """What equal occurrences have in common."""
    return replace(
        event,
        bytes=0,
        count=1,
        source_shape=(),
        shape=(),
        shapes_vary=False,
        tests=(),
        start_ns=None,
        duration_ns=None,
        thread=None,
    )


class Tally:
    """A running sum, with the shapes of the costliest occurrence."""

    __slots__ = ("_bytes", "_count", "_largest", "_prototype", "_shapes", "_tests", "_vary")

    def __init__(self, prototype: LayoutEvent) -> None:
        self._prototype = prototype
        self._count = self._bytes = 0
        self._largest = -1
        self._shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self._tests: dict[str, None] = {}
        self._vary = False

    def add(self, size: int, source_shape: tuple[int, ...], shape: tuple[int, ...], count: int = 1) -> None:
        """``count`` occurrences of ``size`` bytes together."""
        shapes = (source_shape, shape)
        self._vary = self._vary or (self._count > 0 and shapes != self._shapes)
        self._count += count
        self._bytes += size
        if size > self._largest * count:
            self._largest, self._shapes = size // count, shapes

    def include(self, event: LayoutEvent) -> None:
        """All the occurrences of an event."""
        self.add(event.bytes, event.source_shape, event.shape, event.count)
        self._vary = self._vary or event.shapes_vary
        self._tests.update(dict.fromkeys(event.tests))

    def event(self) -> LayoutEvent:
        """The sum as it stands."""
        source_shape, shape = self._shapes
        return replace(
            self._prototype,
            count=self._count,
            bytes=self._bytes,
            source_shape=source_shape,
            shape=shape,
            shapes_vary=self._vary,
            tests=tuple(self._tests),
        )

    def single(
        self, size: int, shapes: tuple[tuple[int, ...], tuple[int, ...]], times: tuple[int, int], thread: int
    ) -> LayoutEvent:
        """One occurrence; ``times`` are its start and duration in nanoseconds."""
        start, duration = times
        source_shape, shape = shapes
        return replace(
            self._prototype,
            bytes=size,
            source_shape=source_shape,
            shape=shape,
            start_ns=start,
            duration_ns=duration,
            thread=thread,
        )
