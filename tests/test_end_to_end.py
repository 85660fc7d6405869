"""The whole way, on the example: run its test, trace, lint with the trace, fix, run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper_guard import load_trace
from tests.conftest import ROOT

TEST = """\
import json

import torch
from slot import CopyingSlot
from torch import nn


def test_train():
    torch.manual_seed(0)
    host = nn.Conv2d(3, 16, 3, padding=1)
    slot = CopyingSlot(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()))
    model = nn.Sequential(host, slot).double().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.randn(4, 3, 16, 16, dtype=torch.double).to(memory_format=torch.channels_last)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with open("losses.json", "w") as file:
        json.dump([losses, *(p.tolist() for p in model.parameters())], file)
"""
COPY = 4 * 16 * 16 * 16 * 8  # N * C * H * W * itemsize of the features, in bytes
STEPS = 3


def run(folder: Path, *command: str, status: int) -> str:
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_trace_lint_fix_and_trace_again(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "slot.py", tmp_path)
    (tmp_path / "test_slot.py").write_text(TEST)
    pytest_run = "pytest -p no:cacheprovider -q --layout-trace=dispatch --layout-report".split()
    check = "esper_guard check slot.py --trace before.json --output-format json".split()

    run(tmp_path, *pytest_run, "json:before.json", status=0)
    before = load_trace(tmp_path / "before.json")
    in_slot = [event for event in before.copies if event.file == str(tmp_path / "slot.py")]
    assert [(event.kind, event.count, event.bytes) for event in in_slot] == [
        ("explicit", STEPS, STEPS * COPY)
    ]

    (finding, *others) = json.loads(run(tmp_path, *check, status=1))
    assert (finding["code"], finding["location"]["row"]) == ("EG101", in_slot[0].line)
    assert finding["measured"] == {
        "copies": STEPS,
        "bytes": STEPS * COPY,
        "losses": 0,
        "other_copies": 0,
        "other_bytes": 0,
        "modules": ["1"],
        "tests": ["test_slot.py::test_train"],
    }
    assert [entry["code"] for entry in others] == ["EG102"]  # of the class that did not run

    numbers = json.loads((tmp_path / "losses.json").read_text())
    run(tmp_path, *check, "--fix", "--unsafe-fixes", status=0)

    run(tmp_path, *pytest_run, "json:after.json", status=0)
    after = load_trace(tmp_path / "after.json")
    assert str(tmp_path / "slot.py") not in {event.file for event in after.copies}
    assert after.total_bytes == before.total_bytes - STEPS * COPY
    assert in_slot[0].line in after.executed[str(tmp_path / "slot.py")]
    torch.testing.assert_close(json.loads((tmp_path / "losses.json").read_text()), numbers)

    bounds = ["--max-bytes", str(after.total_bytes), "--max-copies"]
    copies = sum(event.count for event in after.copies)
    run(tmp_path, "esper_guard", "report", "after.json", *bounds, str(copies), status=0)
    run(tmp_path, "esper_guard", "report", "before.json", *bounds, str(copies), status=1)
