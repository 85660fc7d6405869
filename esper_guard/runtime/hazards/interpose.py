"""A Python function in front of a native operator.

It is registered at the dispatch key BackendSelect: below autograd, autocast, functorch and every Python mode, so
that it sees the very call that reaches the backend, from eager code, from C++ and from compiled graphs that keep the
operator; and above the backends, so that it replaces nothing. Tried on torch 2.4.1, 2.8.0, 2.13.0, 2.14.1 and 2.15.0.
A call pays about 5 us for the way through Python (benchmarks/seed_slot.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Handler = Callable[..., Any]

_KEY = "BackendSelect"


class Interposition:
    """``handler(operator, *args, **kwargs)`` instead of every call of an ``aten`` operator.

    ``operator(*args, **kwargs)`` goes on to the native kernel. The handler runs on whatever thread makes the call.
    It is safe to make one while other threads call the operator.

    Args:
        name: of the operator and overload, such as ``"native_group_norm_backward.default"``.

    Raises:
        AttributeError: this torch has no such operator.
    """

    def __init__(self, name: str, handler: Handler) -> None:
        base, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, base), overload)
        below = torch._C._dispatch_keyset_full_after(getattr(torch._C.DispatchKey, _KEY))

        def interposed(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            remaining = keyset & below

            def native(*args: Any, **kwargs: Any) -> Any:
                return operator.redispatch(remaining, *args, **kwargs)

            return handler(native, *args, **kwargs)

        library: Any = torch.library  # torch left its methods untyped
        self._library = library.Library("aten", "IMPL")
        qualified = base if overload == "default" else f"{base}.{overload}"
        self._library.impl(qualified, interposed, _KEY, with_keyset=True)

    def remove(self) -> None:
        """Restore the way without Python.

        Only where no other thread can be calling the operator: torch reads its dispatch table without a lock, so a
        thread that is about to call the handler would find it gone, and crash.
        """
        self._library._destroy()


def has_operator(name: str) -> bool:
    """Whether this torch has an ``aten`` operator and overload."""
    base, _, overload = name.partition(".")
    packet = getattr(torch.ops.aten, base, None)
    return packet is not None and overload in packet.overloads()
