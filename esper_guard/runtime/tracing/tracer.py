"""``trace_layouts``: who copied how much, where, and where channels_last was lost."""

from __future__ import annotations

import functools
import glob
import multiprocessing.util
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast, get_args

import torch
from torch.utils import _python_dispatch

from esper_guard.nearest import did_you_mean
from esper_guard.runtime.decorating import check_decorated
from esper_guard.runtime.tracing import compiled, kernel_copies
from esper_guard.runtime.tracing.mode import DeepTracingMode, TracingMode
from esper_guard.runtime.tracing.steps import within
from esper_guard.trace.event import Level
from esper_guard.trace.layout_trace import LayoutTrace
from esper_guard.trace.saved import path_of

Function = TypeVar("Function", bound=Callable[..., Any])

_LEVELS: tuple[Level, ...] = get_args(Level)


class _Entered(threading.local):
    """What one thread has entered."""

    def __init__(self) -> None:
        self.depth = 0
        self.mode: TracingMode | None = None
        self.watched = False
        """Whether compiled code could be noticed from the beginning."""


class trace_layouts:  # noqa: N801 - used like a function
    """Within it, every copy between memory formats, and every loss of channels_last, is written into a trace.

    >>> with trace_layouts() as trace:
    ...     loss(model(images), labels).backward()
    >>> print(trace)
    >>> trace.assert_max(copies=0, bytes="2 MiB")

    Also a decorator of functions, coroutine functions and generator functions, whose attribute ``layout_trace`` is then
    the trace. It can be nested (each trace sees what it encloses), entered again while it is entered (everything counts
    once), entered again later, and entered in several threads at once: one object has one trace, ``.trace``.

    It sees what the thread that entered it does, with the backward that this thread starts, whatever threads autograd
    runs it on; other threads enter it themselves. In a forked process (a DataLoader's worker) it starts empty. Only
    shapes and strides are read: there is no synchronisation with a GPU, and nothing is kept alive.

    The dispatch level sees ``clone``, ``_to_copy`` and ``copy_`` (and so ``contiguous``, ``to``, ``reshape`` and all else
    that is made of them), and operators whose 4-D or 5-D result left channels_last. The deep level also sees the
    copies that operators make inside of their kernels, and counts them apart as internal; only oneDNN's and cuDNN's
    own reorders stay invisible. Regions of ``torch.compile`` run compiled: they are named in ``trace.unseen``.

    Cost: for each operator 1.3 times what an empty dispatch mode costs, at the deep level 3 times
    (benchmarks/trace_layouts.py, docs/tracing.md). Outside of it: nothing.

    Args:
        level: ``"dispatch"`` or ``"deep"``.
        keep_events: how many of the newest single events to keep, with times, for `LayoutTrace.raw_events` and
            `LayoutTrace.to_chrome`.
        save: a path to write the trace to when the thread that made this object leaves it, also after an exception
            (see `LayoutTrace.save`). Forked processes write theirs beside it when they end, with
            ``.worker-PID`` in the name; those that an earlier run left there are removed.

    Raises:
        ValueError: there is no such level, or ``keep_events`` is negative.
        TypeError: what is decorated is a class, a static or class method (put the tracer below that decorator), an
            asynchronous generator function, or no function.
        FileNotFoundError: there is no folder to save in.
        RuntimeError: on entering, if this build of torch does not allow the deep level.
    """

    def __init__(
        self, level: Level = "dispatch", *, keep_events: int = 0, save: str | os.PathLike[str] | None = None
    ) -> None:
        if callable(level):
            raise TypeError("trace_layouts takes a level: write @trace_layouts(), with parentheses")
        if level not in _LEVELS:
            raise ValueError(
                f"there is no level '{level}' ({' or '.join(_LEVELS)}){did_you_mean(str(level), _LEVELS)}"
            )
        if isinstance(keep_events, bool) or not isinstance(keep_events, int) or keep_events < 0:
            raise ValueError(f"keep_events is a number of events, not {keep_events!r}")
        self.trace = LayoutTrace(level, keep_events, torch_version=str(torch.__version__), rank=_rank())
        self._save = None if save is None else _checked(save)
        self._thread = threading.get_ident()
        self._began = False
        self._entered = _Entered()
        if hasattr(os, "register_at_fork"):
            _live.add(self)
            multiprocessing.util.register_after_fork(self, trace_layouts._save_in_worker)

    def __enter__(self) -> LayoutTrace:
        entered = self._entered
        if not entered.depth:
            self._begin(entered)
        entered.depth += 1
        return self.trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered = self._entered
        if not entered.depth:
            raise RuntimeError("trace_layouts was left more often than it was entered")
        entered.depth -= 1
        if not entered.depth:
            try:
                self._end(entered, kind, error, trace)
            finally:
                if self._save is not None and threading.get_ident() == self._thread:
                    self._write(self._save, in_flight=error is not None)

    def __call__(self, function: Function) -> Function:
        check_decorated(function, "trace_layouts", "with trace_layouts() as trace:")
        wrapped = functools.wraps(function)(within(function, lambda: self))
        wrapped.layout_trace = self.trace  # type: ignore[attr-defined]
        return cast(Function, wrapped)

    def _begin(self, entered: _Entered) -> None:
        deep = self.trace.level == "deep"
        if self._save is not None and not self._began:
            _remove_worker_files(path_of(self.trace, self._save))
        self._began = True
        if deep:
            kernel_copies.install()
        if entered.mode is None:
            entered.mode = (DeepTracingMode if deep else TracingMode)(self.trace)
        mode = entered.mode  # the same one again, so that it knows the forward of a backward to come
        mode.resume()
        self.trace.rank = _rank() if self.trace.rank is None else self.trace.rank
        entered.watched = compiled.watch(mode.enter_compiled)
        mode.__enter__()

    def _end(
        self,
        entered: _Entered,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert entered.mode is not None
        entered.mode.__exit__(kind, error, trace)
        while _python_dispatch._get_current_dispatch_mode() is entered.mode:
            _python_dispatch._pop_mode()  # an interrupt came between a push and what would have popped it
        compiled.unwatch(entered.mode.enter_compiled)
        if not entered.watched and compiled.has_compiled():
            self.trace.note_unseen("what torch.compile made here: it was used for the first time")
        if self.trace.level == "deep":
            kernel_copies.uninstall()

    def _write(self, path: str, in_flight: bool) -> None:
        try:
            self.trace.save(path)
        except OSError as error:
            if not in_flight:
                raise
            warnings.warn(f"the layout trace could not be saved: {error}", stacklevel=3)

    def _save_in_worker(self) -> None:
        if self._save is not None and self._entered.depth:
            own = _worker_file(path_of(self.trace, self._save), str(os.getpid()))
            multiprocessing.util.Finalize(None, self.trace.save, args=(own,), exitpriority=0)


def _checked(path: str | os.PathLike[str]) -> str:
    """Absolute, because the program may change its folder; and writable, as far as that can be told beforehand."""
    absolute = os.path.abspath(path)
    folder = os.path.dirname(absolute)
    if "{" not in folder and not os.path.isdir(folder):
        raise FileNotFoundError(2, "trace_layouts(save=...): there is no such folder", folder)
    return absolute


def _worker_file(path: Path, process: str) -> Path:
    return path.with_name(f"{path.stem}.worker-{process}{path.suffix}")


def _remove_worker_files(path: Path) -> None:
    """Those of an earlier run, whose trace is about to be replaced."""
    for stale in path.parent.glob(f"{glob.escape(path.stem)}.worker-*{glob.escape(path.suffix)}"):
        stale.unlink(missing_ok=True)


_live: weakref.WeakSet[trace_layouts] = weakref.WeakSet()


def _start_empty() -> None:
    for tracer in _live:
        tracer.trace.clear()


if hasattr(os, "register_at_fork"):  # what the parent saw is the parent's to save
    os.register_at_fork(after_in_child=_start_empty)


def _rank() -> int | None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else None
