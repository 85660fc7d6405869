"""What the user's own code does while it is measured: exits, prints, draws, fails late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from esper_guard.profiling.result import load_profile
from esper_guard.profiling.step import Step
from esper_guard.profiling.timing import time_steps
from tests.conftest import Run
from tests.profiling.conftest import Command

MODELS = """\
import argparse
import os
import sys
import threading

import numpy
import torch
from torch import nn

arguments = argparse.ArgumentParser().parse_args()
print("imported", sys.argv)


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        return self.conv(images)


class Exits(Conv):
    def forward(self, images):
        raise SystemExit("enough")


class Interrupted(Conv):
    def forward(self, images):
        raise KeyboardInterrupt


class Printing(Conv):
    def forward(self, images):
        print("a step")
        return super().forward(images)


class Moving(Conv):
    def forward(self, images):
        os.chdir("/")
        return super().forward(images)


class Watching(Conv):
    def forward(self, images):
        print("threads:", [type(thread).__name__ for thread in threading.enumerate()])
        return super().forward(images)


class Drawing(Conv):
    # each draw that comes out small allocates a MiB

    def forward(self, images):
        for draw in [*torch.rand(20).tolist(), *numpy.random.rand(20)]:
            if draw < 0.5:
                torch.empty(2**18)
        return super().forward(images)


class Third(Conv):
    calls = 0

    def forward(self, images):
        self.calls += 1
        if self.calls == LAST:
            raise ValueError("once too often")
        return super().forward(images)


LAST = 3


def fifth():
    global LAST
    LAST = 5
    return Third()


class Thrice(Conv):
    copies = 0

    def __deepcopy__(self, memo):
        Thrice.copies += 1
        if Thrice.copies == 3:
            raise MemoryError("out of memory")
        return Thrice()


def backward(gradient):
    raise LookupError("in the backward")


class Backward(Conv):
    def forward(self, images):
        result = super().forward(images)
        result.register_hook(backward)
        return result


class Lazy(Conv):
    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(4, 5)
"""
SHAPE = ("--input", "2x3x4x4", "--device", "cpu")


@pytest.fixture
def models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(sys.modules, "models", raising=False)
    (folder / "models.py").write_text(MODELS)
    return folder


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Exits"], "models.py:Exits raised SystemExit: enough (models.py:25) on cpu with inputs 2x3x4x4 float32"),
        (["Third"], "raised ValueError: once too often (models.py:67) on cpu with inputs 2x3x4x4 float32, when it ran "
            "once more, to be traced: a step has to run many times"),
        (["fifth", "--rounds", "2"], "when it ran many times, to be timed: a step has to run many times"),
        (["Thrice", "--rounds", "2"], "can't copy this Thrice: out of memory; a smaller model could be, or --no-time"),
        (["Backward"], "raised LookupError: in the backward (models.py:"),
        (["Lazy"], "with inputs 2x3x4x4 float32, when its lazy modules were to make their weights: give the inputs"),
    ],
)  # fmt: skip
def test_errors_at_any_time_are_one_line(command: Command, arguments: list[str], message: str) -> None:
    timed = "--rounds" in arguments
    name, *options = arguments
    done = command(f"models.py:{name}", *SHAPE, *options, *([] if timed else ["--no-time"]))
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line


@pytest.mark.usefixtures("models")
def test_an_exit_is_an_error_and_an_interrupt_is_one(run: Run) -> None:
    exits = run("profile", "models.py:Exits", *SHAPE, "--no-time")
    assert (exits.returncode, exits.stdout) == (2, "")
    assert "Traceback" not in exits.stderr
    interrupted = run("profile", "models.py:Interrupted", *SHAPE, "--no-time")
    assert interrupted.returncode == 130
    assert interrupted.stderr.endswith("Interrupted.\n")


@pytest.mark.usefixtures("models")
def test_a_target_has_arguments_and_a_stdout_of_its_own(command: Command) -> None:
    before = sys.argv
    done = command("models.py:Printing", *SHAPE, "--no-time", "--markdown", "-")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("```sh\n")
    assert "a step" not in done.stdout
    assert "imported ['models.py']\na step\n" in done.stderr
    assert sys.argv is before


@pytest.mark.usefixtures("models")
def test_a_target_that_changes_the_folder(command: Command, folder: Path) -> None:
    done = command("models.py:Moving", *SHAPE, "--no-time", "--json", "p.json")
    assert done.exit_code == 0, done.output
    assert (folder / "p.json").is_file()
    assert Path.cwd() == folder


@pytest.mark.usefixtures("models")
def test_nothing_draws_the_bar_while_the_model_runs(run: Run) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    done = run("profile", "models.py:Watching", *SHAPE, "--no-time", "--json", "-", stderr=theirs,
               stdout=subprocess.PIPE, capture_output=False, env={"TERM": "xterm"})  # fmt: skip
    os.close(theirs)
    drawn = b""
    with suppress(OSError):  # which is how Linux says that the other end is closed
        while more := os.read(ours, 2**16):
            drawn += more
    os.close(ours)
    assert json.loads(done.stdout)["format"] == "esper-guard profile"
    assert b"first steps" in drawn
    assert b"threads: ['_MainThread']" in drawn
    assert b"Refresh" not in drawn


@pytest.mark.usefixtures("models")
def test_every_variant_draws_the_same_numbers(command: Command, folder: Path) -> None:
    done = command("models.py:Drawing", *SHAPE, "--no-time", "--json", "p.json", "-q")
    assert done.exit_code == 0, done.output
    memories = [variant.memory for variant in load_profile(folder / "p.json").comparisons[0].variants]
    drawn = {
        memory.forward // 2**20 for memory in memories if memory is not None
    }  # what kernels need is less
    assert len(drawn) == 1
    assert drawn != {0}


class Noting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.drawn: list[float] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.drawn.append(torch.rand(()).item())
        return self.weight * images


def test_every_round_draws_other_numbers_and_they_are_the_same_in_all_variants() -> None:
    steps = {
        name: Step(Noting(), (torch.ones(2, 3, 4, 4),), "cpu", channels_last=name == "NHWC", training=True)
        for name in ("NCHW", "NHWC")
    }
    time_steps(steps, 3, 1.0, 0, lambda share: None)
    first, second = (step.model.drawn for step in steps.values())
    assert first == second
    assert len(set(first[2:])) == len(first) - 2  # after the warm-up
