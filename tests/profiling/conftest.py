"""A model with known copies, and the command in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from esper_guard.cli.profile import profile

KNOWN = """\
import torch
from torch import nn


class Known(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.side = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * 32 * 32, 10)

    def forward(self, images):
        features = self.stem(images)
        frozen = features.contiguous().detach()
        side = self.side(frozen)
        flat = features.reshape(features.shape[0], -1)
        return self.head(flat), side


def make():
    return Known(), torch.randn(8, 3, 32, 32)
"""
COPY_LINE, RESHAPE_LINE = 14, 16
COPIED = 8 * 16 * 32 * 32 * 4
"""What each of these lines copies, in bytes."""

Command = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with known.py in it; ``sys.path`` is put back."""
    (tmp_path / "known.py").write_text(KNOWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def command(folder: Path) -> Command:
    """``command("known.py:make", "--no-time")``, in `folder`."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(profile, list(arguments))

    return run
