"""Traces as JSON files: versioned, validated, and never executed."""

from __future__ import annotations

import linecache
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from esper_guard.atomic import write_atomically
from esper_guard.trace.event import Count, LayoutEvent, Level
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.span import Span
from esper_guard.trace.tally import prototype_of

FORMAT: Final = "esper-guard layout trace"
VERSION: Final = 2


class _Head(Struct):
    """As much as any version has."""

    format: Literal["esper-guard layout trace"]
    version: Annotated[int, Meta(ge=1)]


class _AnyFormat(Struct):
    format: str


class SavedFile(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is known of a source file."""

    text: str | None = None
    """As it was when the trace was saved; null if it could not be read."""
    executed: list[Span] = []
    """Calls in which operators ran, as arrays: line, column, end of line, end of column."""


class SavedTrace(Struct, kw_only=True, forbid_unknown_fields=True):
    """The file's content."""

    format: Literal["esper-guard layout trace"]
    version: Literal[1, 2]
    level: Level
    torch: str | None
    rank: Count | None
    keep_events: Count
    calls: dict[str, Count]
    kernel_copies: Count | None
    unseen: list[str]
    events: list[LayoutEvent]
    raw_events: list[LayoutEvent]
    files: dict[str, SavedFile] = {}
    """By the name that events have; since version 2."""


def save_trace(trace: LayoutTrace, path: str | os.PathLike[str]) -> Path:
    """See `LayoutTrace.save`."""
    target = path_of(trace, path)
    content = encode(trace, {**_sources_of(trace), **trace.sources})
    write_atomically(target, msgspec.json.format(content, indent=1) + b"\n")
    return target


def encode(trace: LayoutTrace, sources: Mapping[str, str] | None = None) -> bytes:
    """The file's content, in one line; ``sources`` are the texts of files, by name."""
    texts, executed = trace.sources if sources is None else sources, trace.executed_calls
    files = {
        file: SavedFile(
            text=texts.get(file), executed=sorted(executed.get(file, ()), key=lambda span: span.rank)
        )
        for file in {**executed, **texts}
    }
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
        files=files,
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
            f"{path}: no layout trace: {_what_it_is(content) or error}; write one with trace.save() or `esper-guard trace`"
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


def format_of(content: bytes) -> str | None:
    """What a file says that it is; None if it says nothing."""
    try:
        return msgspec.json.decode(content, type=_AnyFormat).format
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _what_it_is(content: bytes) -> str | None:
    """``"it is an esper-guard profile"``, of another file of ours."""
    found = format_of(content)
    ours = found is not None and found != FORMAT and found.startswith("esper-guard ")
    return f"it is an {found}" if ours else None


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
    for file, known in saved.files.items():
        trace.note_executed(file, *known.executed)
        if known.text is not None:
            trace.sources[file] = known.text
    return trace


def _sources_of(trace: LayoutTrace) -> dict[str, str]:
    """The texts of the files that a trace names, as Python read them."""
    named = {event.file for event in trace.events if event.file is not None} | trace.executed.keys()
    texts = {file: _text_of(file) for file in sorted(named - trace.sources.keys())}
    return {file: text for file, text in texts.items() if text}


def _text_of(file: str) -> str:
    try:
        return "".join(linecache.getlines(file)).encode("utf-8", "backslashreplace").decode()
    except ValueError:  # a name that no file can have
        return ""


def schema() -> dict[str, Any]:
    """The JSON schema of the file (docs/trace.schema.json)."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(SavedTrace)}
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(made))  # its tuples are lists in the file
    return found
