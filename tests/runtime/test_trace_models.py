"""Whole networks: no false event, the profiler's counts, and predictions equal to runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from esper_guard import LayoutTrace, harden, predict_layouts, trace_layouts
from esper_guard.runtime.hazards import protection
from tests.runtime.models import MODELS

FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
RUNS = [
    pytest.param(name, memory_format, train, id=f"{name}-{memory_format}-{'train' if train else 'inference'}")
    for name in MODELS
    for memory_format in FORMATS
    for train in (True, False)
]
# fmt: off
COPIES = {
    # The gradient of a Linear that follows a permute is a permuted view, which mm has to make dense.
    ("ConvNeXt", "NCHW", True): [
        ("hidden", "aten.clone.default", "backward", "blocks.1.shrink", False),
        ("hidden", "aten.clone.default", "backward", "blocks.0.shrink", False),
    ],
    ("ConvNeXt", "NHWC", True): [
        ("hidden", "aten.clone.default", "backward", "blocks.1.shrink", False),
        ("hidden", "aten.clone.default", "backward", "blocks.0.shrink", False),
        # mean((2, 3)) returns an expanded gradient, and the addition to the block's own follows it
        ("loss", "aten.add.Tensor", "backward", "blocks.1.depthwise", True),
        ("loss", "aten.add.Tensor", "backward", "blocks.0.depthwise", True),
    ],
    # Tokens transposed and viewed as an image are channels_last, so the convolution after them makes the gradient
    # of its weight in channels_last, and autograd copies that into the weight's own format.
    ("attention", "NCHW", True): [
        ("hidden", "aten.copy_.default", "backward", None, True),
        ("hidden", "aten.clone.default", "backward", "Attention", False),
    ],
    ("attention", "NHWC", True): [("hidden", "aten.clone.default", "backward", "Attention", False)],
}
# fmt: on


@pytest.fixture(autouse=True)
def _nothing_stays_protected() -> Iterator[None]:
    yield
    protection.end_all()


def prepare(name: str, memory_format: str, train: bool) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = harden(MODELS[name]()).to(memory_format=FORMATS[memory_format]).train(train)
    return model, torch.randn(2, 3, 16, 16).to(memory_format=FORMATS[memory_format])


def step(model: nn.Module, images: torch.Tensor) -> None:
    if model.training:
        model.zero_grad()
        result = model(images)
        result.backward(torch.ones_like(result))
    else:
        with torch.inference_mode():
            model(images)


def traced(model: nn.Module, images: torch.Tensor, level: str) -> LayoutTrace:
    with trace_layouts(level) as trace:
        step(model, images)
    return trace


@contextmanager
def profiled() -> Iterator[list[int]]:
    """The number of calls of aten::copy_."""
    copies: list[int] = []
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        yield copies
    copies.append(sum(event.name == "aten::copy_" for event in profiler.events()))


@pytest.mark.parametrize(("name", "memory_format", "train"), RUNS)
def test_no_event_is_false(name: str, memory_format: str, train: bool) -> None:
    trace = traced(*prepare(name, memory_format, train), "dispatch")
    found = [(e.kind, e.operator, e.phase, e.module, e.changes_format) for e in trace.events]
    assert sorted(map(str, found)) == sorted(map(str, COPIES.get((name, memory_format, train), [])))


@pytest.mark.parametrize(("name", "memory_format", "train"), RUNS)
def test_the_deep_level_counts_what_the_profiler_counts(name: str, memory_format: str, train: bool) -> None:
    model, images = prepare(name, memory_format, train)
    with profiled() as expected:
        step(model, images)
    trace = traced(model, images, "deep")
    assert [trace.kernel_copies] == expected
    assert [event for event in trace.events if event.kind != "internal"] == list(
        traced(model, images, "dispatch").events
    )


@pytest.mark.parametrize(("name", "memory_format", "train"), RUNS)
def test_predictions_equal_the_run(name: str, memory_format: str, train: bool) -> None:
    predicted = predict_layouts(MODELS[name](), (2, 3, 16, 16), train=train, move_to=FORMATS[memory_format])
    trace = traced(*prepare(name, memory_format, train), "dispatch")
    assert [event for event in predicted.events if event.is_copy] == [e for e in trace.events if e.is_copy]
    if not torch.__version__.startswith("2.14"):  # there GroupNorm's result on fake tensors is NCHW
        assert predicted.events == trace.events


@pytest.mark.parametrize(("name", "memory_format", "train"), RUNS)
@pytest.mark.parametrize("level", ["dispatch", "deep"])
def test_tracing_changes_no_number(name: str, memory_format: str, train: bool, level: str) -> None:
    results = []
    for watched in (False, True):
        model, images = prepare(name, memory_format, train)
        if watched:
            traced(model, images, level)
        else:
            step(model, images)
        results.append([parameter.grad for parameter in model.parameters()] + list(model.buffers()))
    for plain, other in zip(*results, strict=True):
        assert (plain is None) == (other is None)
        if plain is not None:
            assert torch.equal(plain, other)
            assert plain.stride() == other.stride()
