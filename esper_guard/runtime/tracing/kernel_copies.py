"""The copies that operators make inside of their kernels: all calls of ``aten::copy_``, wherever they come from.

A Python function stands in front of the operator while somebody watches. Taking it away while another thread calls the
operator would crash that thread, because torch reads its dispatch table without a lock; it then stays, with nothing
to do, and costs each call about 5 us (tests/runtime/test_hazards.py, benchmarks/trace_layouts.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from esper_guard.runtime.fork_lock import ForkLock
from esper_guard.runtime.hazards.interpose import Interposition

Watcher = Callable[[Tensor, Tensor], None]
"""Called with destination and source after each copy."""

_cuda: Any = torch.cuda  # torch left it untyped
_lock: Final = ForkLock()
_users = 0
_interposition: Interposition | None = None
_watchers: dict[int, dict[object, Watcher]] = {}
_WRAPPED = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}


@contextmanager
def watching(owner: object, watcher: Watcher) -> Iterator[None]:
    """Tell the watcher about each copy that this thread makes meanwhile; of one owner's the innermost only."""
    mine = _watchers.setdefault(threading.get_ident(), {})
    outer = mine.get(owner)
    mine[owner] = watcher
    try:
        yield
    finally:
        if outer is None:
            del mine[owner]
        else:
            mine[owner] = outer


def install() -> None:
    """Begin to see copies; each call needs one of `uninstall`.

    Raises:
        RuntimeError: this build of torch can't be watched.
    """
    global _users, _interposition
    with _lock():
        if _interposition is None:
            try:
                _interposition = Interposition("copy_.default", _copy)
                seen = _sees_copies()
            except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
                _interposition = None
                raise RuntimeError(f"{_REFUSAL} ({error})") from error
            if not seen:
                _interposition.remove()
                _interposition = None
                raise RuntimeError(_REFUSAL)
        _users += 1


def uninstall() -> None:
    """End one `install`."""
    global _users, _interposition
    with _lock():
        _users -= 1
        if not _users and _interposition is not None and _alone():
            _interposition.remove()
            _interposition = None
            _watchers.clear()


def is_installed() -> bool:
    """Whether calls of ``aten::copy_`` take the way through Python."""
    return _interposition is not None


_REFUSAL = (
    f"trace_layouts(level='deep') can't watch aten::copy_ on this build of torch ({torch.__version__}): "
    "use level='dispatch', or torch.profiler"
)


def _alone() -> bool:
    """Whether no other thread can be copying: neither a Python thread nor autograd's for an accelerator."""
    return threading.active_count() == 1 and not _cuda.is_initialized()


def _sees_copies() -> bool:
    seen: list[Tensor] = []
    with watching(_sees_copies, lambda destination, source: seen.append(source)):
        torch.zeros(1).copy_(torch.ones(1))
    return len(seen) == 1


def _dtype_of(number: complex) -> torch.dtype:
    if type(number) is int and number >= 2**63:
        return torch.uint64
    return _WRAPPED[type(number)]


def _copy(
    native: Callable[..., Tensor], destination: Tensor, source: Tensor | complex, *args: Any, **kwargs: Any
) -> Tensor:
    if not isinstance(source, Tensor):  # Python sees a tensor made of a number as the number
        source = torch.tensor(source, dtype=_dtype_of(source))
    result = native(destination, source, *args, **kwargs)
    for watcher in tuple(_watchers.get(threading.get_ident(), {}).values()):
        watcher(destination, source)
    return result
