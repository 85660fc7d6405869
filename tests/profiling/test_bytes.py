"""Copies and memory of models whose bytes are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from esper_guard import HAZARDS, HazardError, hazard_guard
from esper_guard.profiling.builtin import BuiltIn, built_ins
from esper_guard.profiling.choices import ISOLATIONS
from esper_guard.profiling.measure import Request, measure
from esper_guard.profiling.memory import memory_of
from esper_guard.profiling.result import Comparison, Variant
from esper_guard.profiling.shapes import Shape
from esper_guard.profiling.step import Step
from esper_guard.profiling.target import parse_target
from tests.conftest import Run
from tests.profiling.conftest import COPIED, COPY_LINE, RESHAPE_LINE

SHAPE = (2, 8, 6, 6)
SIZE = 2 * 8 * 6 * 6 * 4


def bytes_of(target: str | None, built: Sequence[BuiltIn] = (), **options: object) -> Comparison:
    parsed = None if target is None else parse_target(target)
    request = Request(command="", target=parsed, built_ins=built, devices=["cpu"], timed=False, **options)  # type: ignore[arg-type]
    profile, _ = measure(request, lambda what, share: None)
    (comparison,) = profile.comparisons
    return comparison


def copies(variant: Variant) -> list[tuple[str, str, int]]:
    return [
        (line.place, line.kind, line.bytes) for line in variant.lines if line.is_copy and line.changes_format
    ]


def test_known_copies_at_known_lines(folder: Path) -> None:
    comparison = bytes_of("known.py:make")
    nchw, nhwc = comparison.variants
    assert (nchw.name, nhwc.name) == ("NCHW", "NHWC")
    assert nchw.lines == []
    assert copies(nhwc) == [
        (f"known.py:{COPY_LINE}", "explicit", COPIED),
        (f"known.py:{RESHAPE_LINE}", "hidden", COPIED),
    ]
    assert (nhwc.copies, nhwc.copied, nhwc.losses) == (2, 2 * COPIED, 0)
    explicit, hidden = nhwc.lines
    assert explicit.text == "frozen = features.contiguous().detach()"
    assert explicit.rule == "EG101"
    assert explicit.help is not None
    assert hidden.why is not None
    about_copy, about_reshape = comparison.advice[2:4]
    assert about_copy.startswith(f"known.py:{COPY_LINE} `{explicit.text}` copies 512.0 KiB a step")
    assert explicit.help.rstrip(".") in about_copy
    assert about_reshape.startswith(f"known.py:{RESHAPE_LINE} ")
    assert hidden.why in about_reshape


def test_a_remedy_is_of_what_copies(folder: Path) -> None:
    """And not of something else on its line."""
    (folder / "both.py").write_text(
        "from torch import nn\n"
        "class Both(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 1)\n"
        "    def forward(self, images, table):\n"
        "        return self.conv(images).flatten(1).sum() + table.contiguous().detach().sum()\n"
    )
    shapes = [Shape((2, 3, 8, 8), None), Shape((8, 4), None)]
    hidden = bytes_of("both.py:Both", shapes=shapes).variants[1].lines[0]
    assert (hidden.kind, hidden.rule) == ("hidden", None)


def test_a_silenced_line_is_explained_as_well(folder: Path) -> None:
    text = (folder / "known.py").read_text()
    silenced = text.replace("contiguous().detach()", "contiguous().detach()  # noqa: EG101 - a reason")
    (folder / "silenced.py").write_text(f"# esper-guard: ignore-file\n{silenced}")
    explicit = bytes_of("silenced.py:make").variants[1].lines[0]
    assert (explicit.line, explicit.rule) == (COPY_LINE + 1, "EG101")


def test_conversions_that_are_meant_eat_no_gain(folder: Path) -> None:
    (folder / "meant.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Meant(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 1)\n"
        "    def forward(self, tokens):\n"
        "        images = tokens.view(2, 3, 8, 8)\n"
        "        return self.conv(images.to(memory_format=torch.channels_last))\n"
    )
    comparison = bytes_of("meant.py:Meant", shapes=[Shape((2, 192), None)])
    (line,) = comparison.variants[1].lines
    assert (line.place, line.bytes, line.is_meant) == ("meant.py:9", 2 * 192 * 4, True)
    assert not any(sentence.startswith("meant.py") for sentence in comparison.advice)
    assert any("1.5 KiB of the copies are conversions" in sentence for sentence in comparison.advice)


def test_the_command_itself_adds_no_line(folder: Path) -> None:
    (folder / "plain.py").write_text("from torch import nn\nmodel = nn.Conv2d(3, 4, 3)\n")
    for variant in bytes_of("plain.py:model", shapes=[Shape((2, 3, 8, 8), None)]).variants:
        assert variant.lines == []


def step(model: nn.Module, *inputs: torch.Tensor, training: bool = True, channels_last: bool = False) -> Step:
    made = Step(model, inputs, "cpu", channels_last=channels_last, training=training)
    made()
    return made


class Allocating(nn.Module):
    """Makes a tensor, frees it, and makes one of half the size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + x
        half = x[: len(x) // 2]
        return half + half


def test_memory_is_exact() -> None:
    memory = memory_of(step(Allocating(), torch.zeros(1000, 256), training=False))
    assert memory is not None
    size = 1000 * 256 * 4
    assert (memory.forward, memory.backward, memory.peak) == (size + size // 2, 0, size + size // 2)
    assert memory.allocated == size + size // 2


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1024))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_memory_of_a_training_step() -> None:
    memory = memory_of(step(Doubling(), torch.ones(64, 1024)))
    assert memory is not None
    size = 64 * 1024 * 4
    assert memory.forward == size
    assert memory.backward == size + 1024 * 4  # grad * x, summed to the shape of the parameter
    assert memory.peak == 2 * size + 1024 * 4


HOST = f"""\
import torch
from torch import nn

class Host(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def isolate(self, x):
        if self.way == "copy":
            return x.contiguous().detach()
        if self.way == "guarded":
            return (x if x.is_contiguous() else x.contiguous()).detach()
        return x.detach()

    def forward(self, images):
        host = self.conv(images)
        seed = self.isolate(host) * self.scale
        return host + (seed - seed.detach())

def make(way):
    return Host(way), torch.randn({SHAPE[0]}, 3, {SHAPE[2]}, {SHAPE[3]})
"""


@pytest.mark.parametrize("way", ["copy", "guarded"])
def test_the_tickets_copy_allocates_the_features_once_more(folder: Path, way: str) -> None:
    (folder / "host.py").write_text(HOST)
    ours = bytes_of("host.py:make('detach')")
    theirs = bytes_of(f"host.py:make('{way}')")
    more = {}
    for variant, other in zip(ours.variants, theirs.variants, strict=True):
        assert variant.memory is not None
        assert other.memory is not None
        more[variant.name] = (other.memory.forward - variant.memory.forward, other.copied - variant.copied)
    assert more["NCHW"] == (0, 0)
    assert more["NHWC"][0] == SIZE
    assert more["NHWC"][1] >= SIZE


@pytest.mark.parametrize("host", ["conv", "resnet", "convnext", "tokens"])
def test_the_built_in_hosts(host: str) -> None:
    (built,) = built_ins([host], ["training"], ["norm"], [2], [8], [16])
    comparison = bytes_of(None, [built])
    assert [variant.name for variant in comparison.variants] == [
        f"{f} {i}" for f in ("NCHW", "NHWC") for i in ISOLATIONS
    ]
    isolating = {
        variant.name: sum(
            line.bytes for line in variant.lines if line.text.startswith("return") and "detach()" in line.text
        )
        for variant in comparison.variants
    }
    positions = {"conv": 16 * 16, "resnet": 4 * 4, "convnext": 4 * 4, "tokens": 4 * 4}[host]
    copied = 2 * 8 * positions * 4
    by_format = {"NCHW": 0, "NHWC": copied} if host != "tokens" else {"NCHW": copied, "NHWC": 0}
    assert isolating == {
        f"{name} {isolation}": 0 if isolation == "detach" else size
        for name, size in by_format.items()
        for isolation in ISOLATIONS
    }
    assert all(
        line.file != "esper_guard/profiling/hosts.py" or line.text
        for variant in comparison.variants
        for line in variant.lines
    )


@pytest.mark.parametrize("host", ["conv", "resnet", "convnext", "tokens"])
@pytest.mark.parametrize("resolution", [8, 14, 17])
def test_the_features_are_those_that_the_slot_gets(host: str, resolution: int) -> None:
    (built,) = built_ins([host], ["training"], ["conv"], [2], [8], [resolution])
    model = built.build("detach")
    seen = []
    model.slot.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))  # type: ignore[union-attr, operator]
    model(torch.randn(built.input_sizes))
    assert seen == [built.feature_sizes]


def test_what_each_isolation_costs_is_said() -> None:
    comparison = bytes_of(None, built_ins(["conv"], ["blending"], ["conv"], [2], [8], [16]))
    about = [sentence for sentence in comparison.advice if " instead of `x.detach()`" in sentence]
    assert len(about) == 4
    assert about[0].endswith("in NCHW: no byte more is copied or allocated.")
    assert about[2].startswith(
        "`x.contiguous().detach()` instead of `x.detach()` in NHWC: the step copies 16.0 KiB more"
    )
    assert [line.rule for line in comparison.variant("NHWC copy").lines] == ["EG101"]
    assert [line.rule for line in comparison.variant("NHWC guarded").lines] == ["EG102"]


def test_a_crash_is_cured_and_said(run: Run, tmp_path: Path) -> None:
    """In a process of its own, since the cure holds for a whole process."""
    (tmp_path / "crash.py").write_text("from torch import nn\ndef make():\n    return nn.GroupNorm(2, 4)\n")
    arguments = ("crash.py:make", "--input", "2x4x3x3", "--no-time", "--device", "cpu")
    done = run("profile", *arguments)
    assert done.returncode == 0, done.stderr
    affected = HAZARDS["group-norm-null-write"].affects()
    said = "is not safe in channels_last on this torch: GroupNorm's backward writes through a null pointer"
    assert (said in done.stdout) == affected


@pytest.mark.skipif(not HAZARDS["group-norm-null-write"].affects(), reason="this torch release is sound")
@pytest.mark.parametrize("target", [None, "crash.py:make"])
def test_cures_end_with_the_measurement(folder: Path, target: str | None) -> None:
    (folder / "crash.py").write_text(
        "from torch import nn\nmodel = nn.GroupNorm(2, 4)\ndef make():\n    return model\n"
    )
    built = built_ins(["conv"], ["training"], ["norm"], [2], [8], [8]) if target is None else []
    bytes_of(target, built, shapes=[] if target is None else [Shape((2, 4, 3, 3), None)])
    images = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)
    with hazard_guard(), pytest.raises(HazardError):
        nn.GroupNorm(2, 4)(images).sum().backward()


def test_tokens_have_no_format(folder: Path) -> None:
    (folder / "tokens.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(4, 4)\n")
    comparison = bytes_of("tokens.py:make", shapes=[Shape((2, 3, 4), None)])
    assert comparison.advice[0].startswith(
        "channels_last changes nothing here: no parameter, buffer or input is"
    )
    assert bytes_of("tokens.py:make", shapes=[Shape((2, 3, 4, 4), None)]).has_formats


def test_bytes_are_the_same_in_every_run(folder: Path) -> None:
    assert bytes_of("known.py:make") == bytes_of("known.py:make")
