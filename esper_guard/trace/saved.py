"""Traces as JSON files: versioned, validated, and never executed."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from esper_guard.atomic import write_atomically
from esper_guard.trace.event import Count, LayoutEvent, Level
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.tally import prototype_of

FORMAT: Final = "esper-guard layout trace"
VERSION: Final = 1


class _Head(Struct):
    """As much as any version has."""

    format: Literal["esper-guard layout trace"]
    version: Annotated[int, Meta(ge=1)]


class SavedTrace(Struct, kw_only=True, forbid_unknown_fields=True):
    """The file's content."""

    format: Literal["esper-guard layout trace"]
    version: Literal[1]
    level: Level
    torch: str | None
    rank: Count | None
    keep_events: Count
    calls: dict[str, Count]
    kernel_copies: Count | None
    unseen: list[str]
    events: list[LayoutEvent]
    raw_events: list[LayoutEvent]


def save_trace(trace: LayoutTrace, path: str | os.PathLike[str]) -> Path:
    """See `LayoutTrace.save`."""
    target = path_of(trace, path)
    write_atomically(target, msgspec.json.format(encode(trace), indent=1) + b"\n")
    return target


def encode(trace: LayoutTrace) -> bytes:
    """The file's content, in one line."""
    saved = SavedTrace(
        format=FORMAT,
        version=VERSION,
        level=trace.level,
        torch=trace.torch_version,
        rank=trace.rank,
        keep_events=trace.keep_events,
        calls=dict(trace.calls),
        kernel_copies=trace.kernel_copies,
        unseen=list(trace.unseen),
        events=list(trace.events),
        raw_events=list(trace.raw_events),
    )
    return msgspec.json.encode(saved)


def path_of(trace: LayoutTrace, path: str | os.PathLike[str]) -> Path:
    """A path with ``{rank}`` and ``{pid}`` replaced."""
    return Path(os.fspath(path).replace("{rank}", str(trace.rank or 0)).replace("{pid}", str(os.getpid())))


def load_trace(path: str | os.PathLike[str]) -> LayoutTrace:
    """Read what `LayoutTrace.save` wrote. Nothing in the file is executed, whatever it holds.

    Raises:
        OSError: it can't be read.
        ValueError: it is no trace, a damaged one, or of a newer version; the message names the file and the place.
    """
    content = Path(path).read_bytes()
    try:
        head = msgspec.json.decode(content, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: no layout trace: {error}; write one with trace.save() or `esper-guard trace`"
        ) from error
    if head.version > VERSION:
        raise ValueError(
            f"{path}: a layout trace of version {head.version}; this esper-guard reads up to version {VERSION}: upgrade it"
        )
    try:
        saved = msgspec.json.decode(content, type=SavedTrace)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: a damaged layout trace: {error}; record it again") from error
    return _trace_of(saved)


def decode(content: bytes | str) -> LayoutTrace:
    """The trace that `encode` wrote, without a word for anything else."""
    return _trace_of(msgspec.json.decode(content, type=SavedTrace))


def _trace_of(saved: SavedTrace) -> LayoutTrace:
    trace = LayoutTrace(saved.level, saved.keep_events, torch_version=saved.torch, rank=saved.rank)
    trace.calls = Counter(saved.calls)
    trace.kernel_copies = saved.kernel_copies
    for sentence in saved.unseen:
        trace.note_unseen(sentence)
    for event in saved.events:
        trace.tally(prototype_of(event)).include(event)
    for event in saved.raw_events:
        trace.keep(event)
    return trace


def schema() -> dict[str, Any]:
    """The JSON schema of the file (docs/trace.schema.json)."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(SavedTrace)}
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(made))  # its tuples are lists in the file
    return found
