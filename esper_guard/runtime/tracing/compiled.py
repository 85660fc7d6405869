"""Regions of torch.compile that ran while somebody traced: what happens inside of one can't be seen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from esper_guard.runtime.fork_lock import ForkLock

_HOMES = ("torch._inductor.output_code", "torch._inductor.codecache")  # from torch 2.6 on, and before

Notice = Callable[[], None]

_lock: Final = ForkLock()
_notices: list[Notice] = []
_original: tuple[Any, Any] | None = None


def watch(notice: Notice) -> bool:
    """Call ``notice`` whenever a region that Inductor compiled runs; whether that is possible yet.

    Before torch.compile is used for the first time there is nothing to watch, and nothing is imported for it.
    """
    with _lock():
        _notices.append(notice)
        return _install()


def unwatch(notice: Notice) -> None:
    """End one `watch`."""
    global _original
    with _lock():
        _notices.remove(notice)
        if not _notices and _original is not None:
            kind, run = _original
            kind.__call__ = run
            _original = None


def has_compiled() -> bool:
    """Whether anything was compiled in this process, by more than a backend that runs operators as they are."""
    utils = sys.modules.get("torch._dynamo.utils")
    return _graph() is not None and utils is not None and bool(utils.counters["stats"]["unique_graphs"])


def _install() -> bool:
    global _original
    graph = _graph()
    if graph is None:
        return False
    if _original is None:
        run = graph.__call__

        def noticed(self: Any, *args: Any, **kwargs: Any) -> Any:
            for notice in tuple(_notices):
                notice()
            return run(self, *args, **kwargs)

        _original = (graph, run)
        graph.__call__ = noticed
    return True


def _graph() -> Any:
    for home in _HOMES:
        graph = getattr(sys.modules.get(home), "CompiledFxGraph", None)
        if graph is not None:
            return graph
    return None
