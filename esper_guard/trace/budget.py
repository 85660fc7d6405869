"""Bounds on what a run may copy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from esper_guard.trace.event import LayoutEvent
from esper_guard.trace.sizes import format_size, parse_size
from esper_guard.trace.table import costliest, describe, plural

LISTED_BY = "trace.events"
"""How to see all events where there is a trace."""
_SHOWN = 4


def check_budget(
    events: Sequence[LayoutEvent],
    unseen: Sequence[str],
    copies: int | None,
    size: int | str | None,
    losses: int | None,
    ignore: Iterable[str],
) -> None:
    """Raise AssertionError if the events exceed a bound; see `LayoutTrace.assert_max`."""
    __tracebackhide__ = True
    if copies is None and size is None and losses is None:
        raise TypeError("assert_max() needs a bound: copies, bytes or losses")
    for name, bound in (("copies", copies), ("losses", losses)):
        check_bound("assert_max", name, bound)
    if isinstance(ignore, str):
        raise TypeError("assert_max(ignore=...) takes a list of patterns, not a string")
    patterns = list(ignore)
    counted = [event for event in events if not any(matches(event, pattern) for pattern in patterns)]
    message = exceeded(counted, unseen, copies, None if size is None else parse_size(size), losses)
    if message is not None:
        raise AssertionError(message)
    if unseen:
        warnings.warn(f"assert_max() can't tell of {'; '.join(unseen)}, which was not seen", stacklevel=3)


class Broken(NamedTuple):
    """A bound that is exceeded."""

    bound: Literal["copies", "bytes", "losses"]
    found: int
    allowed: int

    def __str__(self) -> str:
        """``"3 layout copies, at most 2 allowed"``."""
        if self.bound == "bytes":
            found, allowed = format_size(self.found), format_size(self.allowed)
            if found == allowed:
                found, allowed = f"{self.found} B", f"{self.allowed} B"
            return f"{found} copied, at most {allowed} allowed"
        noun = "layout copy" if self.bound == "copies" else "format loss"
        return f"{plural(self.found, noun)}, at most {self.allowed} allowed"


def allowed(copies: int | None = None, size: int | None = None, losses: int | None = None) -> list[str]:
    """``["at most 2 layout copies", "at most 64.0 MiB copied"]``: what these bounds say; ``size`` is in bytes."""
    bounds = [] if copies is None else [f"at most {plural(copies, 'layout copy')}"]
    bounds += [] if size is None else [f"at most {format_size(size)} copied"]
    bounds += [] if losses is None else [f"at most {plural(losses, 'format loss')}"]
    return bounds


def exceeded(
    events: Sequence[LayoutEvent],
    unseen: Sequence[str],
    copies: int | None = None,
    size: int | None = None,
    losses: int | None = None,
    listed_by: str = LISTED_BY,
) -> str | None:
    """What to say if events that change formats exceed a bound; ``size`` is in bytes. None if they don't."""
    bounds = broken(events, copies, size, losses)
    if not bounds:
        return None
    return explain("; ".join(map(str, bounds)), blamed_for(events, bounds), unseen, listed_by)


def broken(
    events: Sequence[LayoutEvent],
    copies: int | None = None,
    size: int | None = None,
    losses: int | None = None,
) -> list[Broken]:
    """The bounds that events that change formats exceed; ``size`` is in bytes."""
    copied = [event for event in events if event.changes_format and event.is_copy]
    number, total = sum(event.count for event in copied), sum(event.bytes for event in copied)
    losing = sum(event.count for event in events if event.kind == "loss")
    found: list[Broken] = []
    if copies is not None and number > copies:
        found.append(Broken("copies", number, copies))
    if size is not None and total > size:
        found.append(Broken("bytes", total, size))
    if losses is not None and losing > losses:
        found.append(Broken("losses", losing, losses))
    return found


def blamed_for(events: Sequence[LayoutEvent], bounds: Sequence[Broken]) -> list[LayoutEvent]:
    """Those that count for the bounds: copies, then losses."""
    names = {one.bound for one in bounds}
    copied = [event for event in events if event.changes_format and event.is_copy]
    lost = [event for event in events if event.kind == "loss"]
    return [*(copied if names & {"copies", "bytes"} else ()), *(lost if "losses" in names else ())]


def explain(
    headline: str,
    blamed: Sequence[LayoutEvent],
    unseen: Sequence[str] = (),
    listed_by: str = LISTED_BY,
) -> str:
    """A headline, and below it the costliest of the events that are to blame; ``listed_by`` is how to see all."""
    worst = costliest(blamed)
    lines = [headline, *(f"  {describe(event)}" for event in worst[:_SHOWN])]
    if len(worst) > _SHOWN:
        lines.append(f"  and {len(worst) - _SHOWN} more; to see all: {listed_by}")
    if unseen:
        more = f", and {len(unseen) - 1} more" if len(unseen) > 1 else ""
        lines.append(f"  not seen: {unseen[0]}{more}")
    return "\n".join(lines)


def check_bound(caller: str, name: str, bound: object) -> None:
    """Raise TypeError or ValueError if it is neither a number of events nor None."""
    if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int)):
        raise TypeError(f"{caller}({name}=...) takes a number, not {type(bound).__qualname__}")
    if bound is not None and bound < 0:
        raise ValueError(f"{caller}({name}={bound}): a bound can't be negative")


def matches(event: LayoutEvent, pattern: str) -> bool:
    """Whether a shell pattern names the event: its place, file, module, operator or parameter."""
    places = [] if event.file is None else [event.file.replace("\\", "/"), event.location.replace("\\", "/")]
    names = [event.operator, event.location, *([] if event.module is None else [event.module])]
    return any(fnmatchcase(name, pattern) for name in [*places, *names]) or any(
        fnmatchcase(place, f"*/{pattern}") for place in places
    )
