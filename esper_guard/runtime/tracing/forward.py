"""Which line of the forward a node of the backward belongs to.

Autograd numbers its nodes in the order of the forward, on each thread; `torch.autograd._get_sequence_nr` tells the
next number. Every operator that makes a node is dispatched right after it has made it, so that the number before is
its own. In the backward the running node knows its number.
"""

from __future__ import annotations

import weakref
from functools import cache, lru_cache
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from esper_guard.runtime.callsite import MODULE_CALL, is_the_users, running_path

LIMIT = 2**16
"""Nodes remembered; a backward over a longer forward finds no line for the oldest."""


class Place(NamedTuple):
    """A place in the user's code, as far as it is known."""

    code: CodeType | None = None
    instruction: int = -1
    module: str | None = None

    @property
    def file(self) -> str | None:
        """As UTF-8 can write it."""
        return (
            None if self.code is None else self.code.co_filename.encode("utf-8", "backslashreplace").decode()
        )

    @property
    def line(self) -> int | None:
        return None if self.code is None else _line(self.code, self.instruction)

    @property
    def function(self) -> str | None:
        return None if self.code is None else getattr(self.code, "co_qualname", self.code.co_name)


NOWHERE = Place()

_autograd: Any = torch.autograd  # torch exports it, but does not say so
next_number = _autograd._get_sequence_nr
running_node = torch._C._current_autograd_node


_Entry: TypeAlias = tuple[int, Any, "CodeType | None", int, "str | None"]
"""Number, operator if it is known, and place."""


class Forward:
    """The places of the newest `LIMIT` nodes that one thread made."""

    def __init__(self) -> None:
        self._places: dict[int, _Entry] = {}  # by number modulo LIMIT
        self._users: dict[str, bool] = {}
        self._paths: dict[int, tuple[weakref.ref[nn.Module], str | None]] = {}  # of modules that are alive

    def remember(self, number: int, operator: Any, frame: FrameType | None) -> None:
        """The call from this frame made the node with this number."""
        found, module = self.walk(frame)
        if found is not None:
            self._places[number % LIMIT] = (number, operator, found.f_code, found.f_lasti, module)

    def repeat(self, number: int, first: int) -> None:
        """The nodes from ``first`` on were made in the same place as the one with this number."""
        entry = self._places.get(number % LIMIT)
        if entry is not None and entry[0] == number:
            for other in range(first, number):
                self._places[other % LIMIT] = (other, None, *entry[2:])

    def put(self, number: int, place: Place) -> None:
        """The place of the node with this number."""
        self._places[number % LIMIT] = (number, None, *place)

    def find(self, number: int, node: str | None = None) -> Place:
        """The place of the node with this number; `NOWHERE` if it was not seen.

        Threads number their nodes independently. So the ``node`` has to be named after the operator, if it is given.
        """
        entry = self._places.get(number % LIMIT)
        if entry is None or entry[0] != number:
            return NOWHERE
        _, operator, code, instruction, module = entry
        if node is not None and operator is not None and not _is_of(node, operator):
            return NOWHERE
        return Place(code, instruction, module)

    def walk(self, frame: FrameType | None) -> tuple[FrameType | None, str | None]:
        """The innermost frame of the user's code, and the path of the running module. No engine may lie between."""
        users, module, innermost = self._users, None, frame
        while frame is not None:  # written for speed: it runs for each operator that autograd records
            code = frame.f_code
            is_users = users.get(code.co_filename)
            if is_users is None:
                is_users = users[code.co_filename] = is_the_users(code.co_filename)
            if is_users:
                break
            if module is None and code.co_name == MODULE_CALL:
                module = frame.f_locals["self"]
            frame = frame.f_back
        outer = frame
        while module is None and outer is not None:
            if outer.f_code.co_name == MODULE_CALL:
                module = outer.f_locals["self"]
            outer = outer.f_back
        if module is None:
            return frame, None
        known = self._paths.get(id(module)) or self._learn(module, innermost)
        return frame, known[1]

    def place(self, frame: FrameType | None) -> Place:
        """Where a frame was called from."""
        found, module = self.walk(frame)
        return Place(None, -1, module) if found is None else Place(found.f_code, found.f_lasti, module)

    def _learn(self, module: nn.Module, frame: FrameType | None) -> tuple[weakref.ref[nn.Module], str | None]:
        path = running_path(frame)  # of another one, if torch.compile made this one around the user's
        key, paths = id(module), self._paths
        known = paths[key] = (weakref.ref(module, lambda gone: paths.pop(key, None)), path)
        return known


@cache
def _is_of(node: str, operator: Any) -> bool:
    """Whether a node of the backward has the name of an operator: MulBackward0 of aten.mul_.Tensor."""
    namespace, _, base = operator._schema.name.partition("::")
    # an operator of somebody's own; prim::device, which fake tensors ask for in between; a lazy conjugation made real
    if namespace != "aten" or base == "clone":
        return True
    name = node.rpartition("::")[2].lower().rpartition("backward")[0].replace("_", "")
    return str(base).replace("_", "").lower() in (name, f"{name}copy", f"{name}forward", f"foreach{name}")


@lru_cache(maxsize=10_000)
def _line(code: CodeType, instruction: int) -> int | None:
    for start, end, line in code.co_lines():
        if start <= instruction < end:
            return line
    return None
