"""Which devices there are, and what they are called."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import torch

from esper_guard import __version__
from esper_guard.profiling.result import Machine


def available_devices() -> list[str]:
    """``"cpu"``, and the accelerator if there is one."""
    accelerators = [name for name in ("cuda", "xpu", "mps") if _is_available(name)]
    return ["cpu", *accelerators[:1]]


def check_device(device: str) -> None:
    """Raise a ValueError that names what there is, if torch can't compute on a device; it can't on "meta"."""
    try:
        torch.ones(1, device=device).add(1).item()
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"torch can't use the device '{device}' ({reason}); there are {', '.join(available_devices())}"
        ) from error


def machine(devices: list[str]) -> Machine:
    """This one."""
    return Machine(
        esper_guard=__version__,
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=platform.platform(),
        threads=torch.get_num_threads(),
        devices={device: _name(device) for device in devices},
    )


def of_device(device: str) -> Any:
    """torch's module for a kind of device: ``torch.cuda`` for ``"cuda:1"``; None if there is none."""
    return getattr(torch, torch.device(device).type, None)


def _is_available(name: str) -> bool:
    if name == "mps":
        return torch.backends.mps.is_available()
    module = getattr(torch, name, None)
    return module is not None and module.is_available()


def _name(device: str) -> str:
    kind = torch.device(device).type
    if kind == "cpu":
        return _processor()
    get_name = getattr(of_device(device), "get_device_name", None)
    return kind if get_name is None else str(get_name(torch.device(device)))


def _processor() -> str:
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
