"""Where a call comes from, in the forward, in the backward, and where a checkpoint runs the forward again."""

from __future__ import annotations

from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import checkpoint
from torch.utils.weak import WeakIdKeyDictionary

from esper_guard.runtime.callsite import MODULE_CALL, is_the_users, name_of, running_path, users_frame
from esper_guard.runtime.tracing.asked import AskedCopies
from esper_guard.runtime.tracing.forward import NOWHERE, Forward, Place, running_node
from esper_guard.trace.event import Phase

_ENGINE = "_engine_run_backward"
_CHECKPOINT = checkpoint.__file__

running_backward = torch._C._current_graph_task_id
"""The number of the backward that runs on this thread, or -1."""


class Origin(NamedTuple):
    """Of a call."""

    place: Place
    phase: Phase
    asked: bool = False
    """Whether the line asks for a copy by name."""
    parameter: str | None = None
    """Whose gradient is accumulated."""


class Locator:
    """Finds the origin of calls, with what it remembers of the forward."""

    def __init__(self) -> None:
        self.forward = Forward()
        self._asked = AskedCopies()
        self._parameters: Any = WeakIdKeyDictionary()

    def remember_in_backward(self, number: int, frame: FrameType | None) -> None:
        """A node was made in a recomputation, or because the backward is itself differentiated."""
        self.forward.put(number, self.locate(frame).place)

    def locate(self, frame: FrameType | None) -> Origin:
        """The origin of the call that this frame makes."""
        if running_backward() != -1:
            return self._in_backward(frame)
        found, module = users_frame(frame), running_path(frame)
        if found is None:
            return Origin(Place(None, -1, module), "forward")
        return Origin(Place(found.f_code, found.f_lasti, module), "forward", self._asked.asked(found))

    def _in_backward(self, frame: FrameType | None) -> Origin:
        users, phase, in_module = _until_engine(frame)
        if users is None:
            return self._of_node()
        if phase == "recompute" or in_module:
            place = self.forward.place(frame)
        else:  # a hook or a backward method: they belong to the module of the forward
            place = Place(users.f_code, users.f_lasti, self._of_node().place.module)
        return Origin(place, phase, self._asked.asked(users))

    def _of_node(self) -> Origin:
        node = running_node()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            return Origin(NOWHERE, "backward", parameter=self._name(variable))
        if node is None:
            return Origin(NOWHERE, "backward")
        name = None if isinstance(node, torch._C._FunctionBase) else node.name()
        return Origin(self.forward.find(node._sequence_nr(), name), "backward")

    def _name(self, variable: Tensor) -> str:
        if not isinstance(variable, nn.Parameter):
            return "(a leaf tensor)"
        name: str | None = self._parameters.get(variable)
        if name is None:
            name = self._parameters[variable] = name_of(variable) or "(of no module that ran)"
        return name


def _until_engine(frame: FrameType | None) -> tuple[FrameType | None, Phase, bool]:
    """Of the Python code that the engine runs: the innermost user's frame, the phase, and whether a module runs."""
    found: FrameType | None = None
    phase: Phase = "backward"
    in_module = False
    while frame is not None and frame.f_code.co_name != _ENGINE:
        code = frame.f_code
        if found is None and is_the_users(code.co_filename):
            found = frame
        if code.co_filename == _CHECKPOINT:
            phase = "recompute"
        in_module = in_module or code.co_name == MODULE_CALL
        frame = frame.f_back
    return found, phase, in_module
