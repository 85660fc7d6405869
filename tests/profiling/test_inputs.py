"""What a factory may give as inputs, and what an error says about them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esper_guard.profiling.failures import ProfileError
from esper_guard.profiling.result import load_profile
from esper_guard.profiling.step import Step
from tests.profiling.conftest import Command

INPUTS = """\
from collections import UserDict
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType

import torch
from torch import nn


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor
    name: str = "a"


class Holder:
    def __init__(self, images):
        self.__images = [images]

    @property
    def images(self):
        return self.__images[0]


class Net(nn.Module):
    def __init__(self, images=lambda batch: batch):
        super().__init__()
        self.conv, self.images = nn.Conv2d(16, 4, 1), images

    def forward(self, batch, scale=1.0):
        return self.conv(torch.relu(self.images(batch))) * scale


def images():
    return torch.randn(8, 16, 4, 4)


def plain():
    return Net(), images()


def dataclass():
    return Net(lambda batch: batch.images), Batch(images())


def holder():
    return Net(lambda batch: batch.images), [Holder(images())]


def mapping():
    return Net(lambda batch: batch["images"]), [UserDict(images=images())]


def one_dict():
    return Net(lambda batch: batch["images"]), ({"images": images()},)


def keywords():
    return Net(), {"scale": 2.0, "batch": images()}


def locked():
    return Net(), [images(), Lock()]


def wrong():
    return Net(), torch.randn(2, 3, 4, 4)


def needs_a_key():
    def of(batch):
        raise KeyError("no 'lr' in the configuration")

    return Net(of)


def old_weight_norm():
    return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 1))), torch.ones(1, 3, 4, 4)


def half():
    net = Net()
    net.conv.requires_grad_(False).double()
    return net
"""


@pytest.fixture(autouse=True)
def inputs(folder: Path) -> None:
    (folder / "inputs.py").write_text(INPUTS)


@pytest.mark.parametrize("factory", ["dataclass", "holder", "mapping", "one_dict", "keywords"])
def test_inputs_of_any_class_are_converted(command: Command, folder: Path, factory: str) -> None:
    for name in ("plain", factory):
        done = command(
            f"inputs.py:{name}",
            "--no-time",
            "--dtype",
            "float64",
            "--device",
            "cpu",
            "--json",
            f"{name}.json",
        )
        assert done.exit_code == 0, done.output
    plain, other = (load_profile(folder / f"{name}.json") for name in ("plain", factory))
    for ours, theirs in zip(plain.comparisons[0].variants, other.comparisons[0].variants, strict=True):
        assert (ours.copied, ours.memory, len(ours.lines)) == (
            theirs.copied,
            theirs.memory,
            len(theirs.lines),
        )
    if factory != "holder":  # whose tensors can only be found by copying it
        assert other.settings.inputs == ["8x16x4x4 float32"]


class Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Keeping(nn.Module):
    def forward(self, *arguments: object) -> Tensor:
        self.arguments = arguments
        return torch.ones(())


def test_every_step_has_inputs_of_its_own() -> None:
    image = torch.ones(2, 3, 4, 4)
    given = (image, [image], Held(image), nn.Parameter(image), "text", None)
    step = Step(Keeping(), given, "cpu", channels_last=True, training=False, dtype=torch.float64, keywords={})
    step()
    first, (second,), held, parameter, text, nothing = step.model.arguments
    assert first is second is held.tensor
    for tensor in (first, parameter):
        assert tensor.dtype == torch.float64
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert (text, nothing) == ("text", None)
    assert given[2].tensor is image
    assert image.is_contiguous()


def test_inputs_that_can_not_be_copied_are_refused() -> None:
    with pytest.raises(ProfileError, match="can't copy them: cannot pickle 'generator' object; give tensors"):
        Step(Keeping(), ((tensor for tensor in ()),), "cpu", channels_last=True, training=False)


REMEDY = "give the inputs that it takes with --input"


@pytest.mark.parametrize(
    ("arguments", "message", "tells_of_inputs"),
    [
        (["wrong"], "with inputs 2x3x4x4 float32: the inputs are those that the factory gives", False),
        (["wrong", "--input", "2x3x4x4"], REMEDY, True),
        (["plain", "--input", "2x16x4x4", "--input", "1", "--input", "1"], REMEDY, True),
        (["plain", "--input", "2x16x4x4:int64"], f"{REMEDY} 8x3x224x224, once for each argument, with their dtype as in", True),
        (["needs_a_key", "--input", "2x16x4x4"], r"KeyError: .* on cpu with inputs 2x16x4x4 float32$", False),
        (["half", "--input", "2x16x4x4:float32", "--autocast", "bfloat16"], "measure it without --autocast bfloat16", False),
        (["locked"], "inputs.py:locked: each variant needs a copy of the inputs, but .*'_thread.lock'", False),
        (["old_weight_norm"], r"can't copy this Sequential: .*pull/103001; torch.nn.utils.parametrizations.weight_norm instead", False),
        (["plain", "--input", "999999999x999999999"], r"--input 999999999x999999999 can't be allocated \(.*\): give smaller sizes", False),
        (["plain", "--input", "9999999999999999999999"], "can't be allocated", False),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_remedies_are_of_the_error(
    command: Command, arguments: list[str], message: str, tells_of_inputs: bool
) -> None:
    import re

    done = command(f"inputs.py:{arguments[0]}", *arguments[1:], "--no-time", "--device", "cpu")
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert re.search(message, line), line
    assert (REMEDY in line) == tells_of_inputs


def test_a_built_in_model_that_is_too_large_is_refused(command: Command) -> None:
    done = command("--batch", "999999999", "--resolution", "999999", "--no-time", "--device", "cpu")
    assert "give smaller sizes with --batch, --channels and --resolution" in done.stderr
