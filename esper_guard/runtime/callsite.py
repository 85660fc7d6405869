"""Who makes a call: the line of the user's code, and the path of the running module."""

from __future__ import annotations

import os
import sys
import sysconfig
import weakref
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

import esper_guard

MODULE_CALL: Final = nn.Module._wrapped_call_impl.__name__
"""The function that runs a module's hooks and forward; its local ``self`` is the module."""

_WRAPPERS = ("torch._dynamo.", "torch.fx.", "torch.jit.")  # modules that torch makes around the user's


class CallSite(NamedTuple):
    """A call in the forward."""

    location: str | None = None
    """``"file:line"`` of the user's code."""
    module: str | None = None
    """The innermost running module's name within the outermost: ``"features.3.norm"``; its class if it is alone."""


@cache
def is_the_users(filename: str) -> bool:
    """Whether code of this file is the user's: not torch's, this package's, the standard library's, or generated."""
    packages = [Path(module.__file__ or "").parent for module in (torch, esper_guard)]
    standard_library = sysconfig.get_path("stdlib") + os.sep
    return not (
        filename.startswith(("<frozen", "<esper_guard", *(f"{package}{os.sep}" for package in packages)))
        or filename.endswith("typing_extensions.py")
        or is_compiled(filename)
        or (filename.startswith(standard_library) and f"{os.sep}site-packages{os.sep}" not in filename)
    )


def is_compiled(filename: str) -> bool:
    """Whether code of this file was made by torch.fx or torch.compile."""
    return filename.startswith("<eval_with_key>") or f"{os.sep}torchinductor_" in filename


def current_site() -> CallSite:
    """The call being made: the innermost line outside of torch and of this package, and the running module."""
    frame = sys._getframe(1)
    users = users_frame(frame)
    location = None if users is None else f"{users.f_code.co_filename}:{users.f_lineno}"
    return CallSite(location, running_path(frame))


def users_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user's code."""
    return next((outer for outer in _frames(frame) if is_the_users(outer.f_code.co_filename)), None)


def running_path(frame: FrameType | None) -> str | None:
    """The name of the innermost module whose call this frame is part of, as `path_of` gives it."""
    module = running_module(frame)
    return None if module is None else path_of(module, frame)


def running_module(frame: FrameType | None) -> nn.Module | None:
    """The innermost module whose call this frame is part of; a frame is as good as any that it called."""
    return next(_modules(frame), None)


def path_of(module: nn.Module, frame: FrameType | None) -> str:
    """The name of a running module within the outermost one that runs; its class if it is that one."""
    known_root, path = _paths.get(module, (None, ""))
    root = None if known_root is None else known_root()
    outermost = module
    for outermost in _modules(frame):  # noqa: B007 - the last one
        pass
    if root is not None and (root is outermost or any(child is outermost for child in root.modules())):
        return path  # a recomputing checkpoint starts in the middle of the model
    names = (name for name, child in outermost.named_modules() if child is module and name)
    path = next(names, type(module).__qualname__)
    _paths[module] = (weakref.ref(outermost), path)
    return path


def name_of(parameter: Tensor) -> str | None:
    """A parameter's name in one of the models that `path_of` has seen running, if any of them has it."""
    roots = {id(root): root for known, _ in list(_paths.values()) if (root := known()) is not None}
    for root in roots.values():
        for name, candidate in root.named_parameters():
            if candidate is parameter:
                return name
    return None


_paths: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[nn.Module], str]] = weakref.WeakKeyDictionary()


def _modules(frame: FrameType | None) -> Iterator[nn.Module]:
    for outer in _frames(frame):
        if outer.f_code.co_name == MODULE_CALL:
            module = outer.f_locals.get("self")
            if isinstance(module, nn.Module) and not type(module).__module__.startswith(_WRAPPERS):
                yield module


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
