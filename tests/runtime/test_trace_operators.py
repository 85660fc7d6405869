"""What the tracer sees of each operator that loses, keeps or copies a memory format, at both levels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import default_collate

from esper_guard import LayoutEvent, LayoutTrace, trace_layouts

LAST = "channels_last"
OTHER = torch.randn(2, 4, 5, 5)
INDEX = torch.tensor([0, 1])
INDICES = torch.zeros(2, 4, 5, 5, dtype=torch.long)
GRID = torch.zeros(2, 5, 5, 2)
WEIGHT = torch.randn(4, 4, 3, 3)
SIZE = 2 * 4 * 5 * 5 * 4
"""Bytes of the features."""
INTO_LEAF = ("hidden", "copy_", "nchw", LAST, SIZE)
"""What autograd copies into the gradient of a channels_last leaf when NCHW comes back."""


class Seen(NamedTuple):
    """What an event has to say."""

    kind: str
    operator: str
    source: str
    destination: str
    bytes: int


class Row(NamedTuple):
    """An operator, and the events of its forward, of its backward, and inside of its kernels."""

    run: Callable[[Tensor], Any]
    forward: list[tuple[Any, ...]]
    backward: list[tuple[Any, ...]]
    internal: tuple[tuple[Any, ...], ...] = ()


def lost(operator: str, size: int = SIZE) -> tuple[Any, ...]:
    return ("loss", operator, LAST, "nchw", size)


def inside(operator: str, size: int = SIZE) -> tuple[Any, ...]:
    return ("internal", operator, LAST, "nchw", size)


def set_item(x: Tensor) -> Tensor:
    target = torch.zeros(2, 4, 5, 5)
    target[:] = x
    return target


# fmt: off
ROWS = {
    # operators that lose channels_last
    "softmax": Row(lambda x: x.softmax(1), [lost("_softmax")], [INTO_LEAF], (inside("_softmax"),)),
    "log_softmax": Row(lambda x: x.log_softmax(1), [lost("_log_softmax")], [INTO_LEAF], (inside("_log_softmax"),)),
    "layer_norm": Row(lambda x: functional.layer_norm(x, [5]), [lost("native_layer_norm")], [lost("native_layer_norm_backward"), INTO_LEAF], (inside("native_layer_norm"), inside("native_layer_norm_backward"),)),
    "instance_norm": Row(lambda x: functional.instance_norm(x), [("hidden", "clone", LAST, "nchw", SIZE)], [INTO_LEAF]),
    "grid_sample": Row(lambda x: functional.grid_sample(x, GRID, align_corners=False), [lost("grid_sampler_2d")], [lost("grid_sampler_2d_backward"), INTO_LEAF]),
    "cat with NCHW": Row(lambda x: torch.cat([x, OTHER], 1), [lost("cat", 2 * SIZE)], [("hidden", "copy_", "strided(nchw)", LAST, SIZE)]),
    "cat with NCHW first": Row(lambda x: torch.cat([OTHER, x], 1), [lost("cat", 2 * SIZE)], [("hidden", "copy_", "strided(nchw)", LAST, SIZE)]),
    "NCHW + NHWC": Row(lambda x: OTHER + x, [lost("add")], [INTO_LEAF]),
    "masked_fill": Row(lambda x: x.masked_fill(OTHER > 0, 0.0), [lost("masked_fill")], [INTO_LEAF], (inside("masked_fill"),)),
    "index_select": Row(lambda x: x.index_select(1, INDEX), [lost("index_select", SIZE // 2)], [INTO_LEAF], (inside("index_select"),)),
    "x[:, index]": Row(lambda x: x[:, INDEX], [lost("index", SIZE // 2)], [INTO_LEAF]),
    "gather": Row(lambda x: x.gather(1, INDICES), [lost("gather")], [INTO_LEAF]),
    "repeat": Row(lambda x: x.repeat(1, 2, 1, 1), [lost("repeat", 2 * SIZE)], [INTO_LEAF]),
    "repeat_interleave": Row(lambda x: x.repeat_interleave(2, 1), [("hidden", "clone", LAST, "nchw", 2 * SIZE)], [INTO_LEAF]),
    "tile": Row(lambda x: x.tile(1, 2, 1, 1), [lost("repeat", 2 * SIZE)], [INTO_LEAF]),
    "cumsum": Row(lambda x: x.cumsum(1), [lost("cumsum")], [INTO_LEAF]),
    "topk": Row(lambda x: x.topk(2, 1)[0], [lost("topk", SIZE // 2)], [INTO_LEAF]),
    "circular pad": Row(lambda x: functional.pad(x, (1, 1, 1, 1), mode="circular"), [lost("new_empty", 2 * 4 * 7 * 7 * 4), ("hidden", "copy_", LAST, "strided(nchw)", SIZE)], [INTO_LEAF]),
    "fractional_max_pool": Row(lambda x: functional.fractional_max_pool2d(x, 2, output_size=2), [lost("fractional_max_pool2d", 2 * 4 * 2 * 2 * 4)], [lost("fractional_max_pool2d_backward"), INTO_LEAF], (inside("fractional_max_pool2d"),)),
    "new_zeros": Row(lambda x: x.new_zeros(x.shape), [lost("new_zeros")], []),
    "default_collate": Row(lambda x: default_collate(list(x)), [("loss", "stack", "ghost", "nchw", SIZE)], [INTO_LEAF]),
    # copies
    "contiguous": Row(lambda x: x.contiguous(), [("explicit", "clone", LAST, "nchw", SIZE)], [INTO_LEAF]),
    "clone": Row(lambda x: x.clone(memory_format=torch.contiguous_format), [("explicit", "clone", LAST, "nchw", SIZE)], [INTO_LEAF]),
    "to a format": Row(lambda x: x.to(memory_format=torch.contiguous_format), [("explicit", "_to_copy", LAST, "nchw", SIZE)], [INTO_LEAF]),
    "to a dtype and a format": Row(lambda x: x.to(torch.float64, memory_format=torch.contiguous_format), [("explicit", "_to_copy", LAST, "nchw", 2 * SIZE)], [INTO_LEAF]),
    "copy_": Row(lambda x: torch.zeros(2, 4, 5, 5).copy_(x), [("explicit", "copy_", LAST, "nchw", SIZE)], [INTO_LEAF]),
    "reshape": Row(lambda x: x.reshape(2, -1), [("hidden", "clone", LAST, "nchw", SIZE)], [INTO_LEAF]),
    "flatten": Row(lambda x: x.flatten(1), [("hidden", "clone", LAST, "nchw", SIZE)], [INTO_LEAF]),
    "ravel": Row(lambda x: x.ravel(), [("hidden", "clone", LAST, "nchw", SIZE)], [INTO_LEAF]),
    "matmul": Row(lambda x: x.detach() @ OTHER, [("hidden", "clone", LAST, "nchw", SIZE)], []),
    # conv with mixed formats: its kernel copies the weight, or the features
    "conv, NCHW weight": Row(lambda x: functional.conv2d(x.detach(), WEIGHT), [], [], (("internal", "convolution", "nchw", LAST, 576),)),
    "conv, NCHW features": Row(lambda x: functional.conv2d(OTHER, WEIGHT.to(memory_format=torch.channels_last)), [("explicit", "_to_copy", "nchw", LAST, 576)], [], (("internal", "convolution", "nchw", LAST, SIZE),)),
    # the same order, or none at all
    "to a dtype": Row(lambda x: x.to(torch.float64), [], []),
    "clone as it is": Row(lambda x: x.clone(), [], []),
    "NHWC + NCHW": Row(lambda x: x + OTHER, [], []),
    "a bias": Row(lambda x: x + torch.ones(4, 1, 1), [], []),
    "mean": Row(lambda x: x * x.mean((2, 3), keepdim=True), [], []),
    # transposed or sliced, and made dense
    "tokens": Row(lambda x: x.flatten(2).transpose(1, 2).contiguous(), [], []),
    "a slice": Row(lambda x: OTHER[:, :2].contiguous(), [("explicit", "clone", "strided(nchw)", "nchw", SIZE // 2)], []),
    "transposed": Row(lambda x: OTHER[0].transpose(0, 1).contiguous(), [("explicit", "clone", "strided(nchw)", "nchw", SIZE // 2)], []),
    "NHWC order": Row(lambda x: OTHER.permute(0, 2, 3, 1).contiguous(), [("explicit", "clone", "strided(nchw)", "nchw", SIZE)], []),
}
KEEPING: dict[str, Callable[[Tensor], Any]] = {
    "conv": lambda x: functional.conv2d(x, WEIGHT.to(memory_format=torch.channels_last)),
    "batch_norm": lambda x: functional.batch_norm(x, torch.zeros(4), torch.ones(4), training=True),
    "group_norm": lambda x: functional.group_norm(x, 2),
    "max_pool": lambda x: functional.max_pool2d(x, 2),
    "avg_pool": lambda x: functional.avg_pool2d(x, 2),
    "adaptive_avg_pool": lambda x: functional.adaptive_avg_pool2d(x, 2),
    "interpolate nearest": lambda x: functional.interpolate(x, scale_factor=2),
    "interpolate bilinear": lambda x: functional.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "interpolate bicubic": lambda x: functional.interpolate(x, scale_factor=2.0, mode="bicubic"),
    "pixel_shuffle": lambda x: functional.pixel_shuffle(x, 2),
    "constant pad": lambda x: functional.pad(x, (1, 1, 1, 1)),
    "reflect pad": lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
    "roll": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(2),
    "dropout": lambda x: functional.dropout(x),
    "gelu": lambda x: functional.gelu(x),
    "silu": lambda x: functional.silu(x),
    "relu in place": lambda x: (x * 1).relu_(),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "deepcopy": lambda x: copy.deepcopy(x.detach()),
}
# fmt: on


def features() -> Tensor:
    return torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last).requires_grad_()


def run(function: Callable[[Tensor], Any], level: str, x: Tensor) -> LayoutTrace:
    with trace_layouts(level) as trace:
        result = function(x)
        if isinstance(result, Tensor) and result.requires_grad:
            result.backward(torch.ones_like(result))
    return trace


def seen(event: LayoutEvent) -> Seen:
    operator = event.operator.split(".")[1]
    return Seen(event.kind, operator, event.source, event.destination, event.bytes)


@pytest.mark.parametrize("level", ["dispatch", "deep"])
@pytest.mark.parametrize("name", ROWS)
def test_each_row(name: str, level: str) -> None:
    row = ROWS[name]
    trace = run(row.run, level, features())
    phases = {"forward": row.forward, "backward": row.backward}
    for phase, expected in phases.items():
        found = [
            event
            for event in trace.events
            if event.phase == phase
            and event.kind != "internal"
            and (phase == "forward" or event.changes_format)
        ]
        assert [seen(event) for event in found] == expected, phase
        for event in found:
            if event.parameter is None:
                assert (event.file, event.line) == (__file__, row.run.__code__.co_firstlineno)
            else:
                assert event.parameter == "(a leaf tensor)"
                assert event.file is None
    internal = [seen(event) for event in trace.internal if event.changes_format or event.phase == "forward"]
    assert [event for event in internal if event in row.internal] == (
        list(row.internal) if level == "deep" else []
    )
    assert trace.total_bytes == sum(
        event[-1] for events in phases.values() for event in events if changes_format(event)
    )


@pytest.mark.parametrize("name", [*ROWS, *KEEPING])
def test_the_deep_level_counts_what_the_profiler_counts(name: str) -> None:
    """In the same run: torch runs some operators otherwise within a dispatch mode, such as the backward of an index."""
    function = ROWS[name].run if name in ROWS else KEEPING[name]
    x = features() * 1
    with trace_layouts("deep") as trace, profile(activities=[ProfilerActivity.CPU]) as profiler:
        result = function(x)
        if isinstance(result, Tensor) and result.requires_grad:
            result.backward(torch.ones_like(result))
    copies = [event for event in profiler.events() if event.name == "aten::copy_"]
    assert trace.kernel_copies == sum(not is_inside_a_copy(event) for event in copies)


def is_inside_a_copy(event: Any) -> bool:
    """The profiler records a call that goes through a dispatch mode twice, one in the other."""
    while event.cpu_parent is not None:
        event = event.cpu_parent
        if event.name == "aten::copy_":
            return True
    return False


def changes_format(event: tuple[Any, ...]) -> bool:
    kind, _, source, destination, _ = event
    return kind in ("explicit", "hidden") and (LAST in source) != (LAST in destination)


@pytest.mark.parametrize("name", ["tokens", "a slice", "transposed", "NHWC order"])
def test_what_changes_strides_only_is_counted_apart(name: str) -> None:
    trace = run(ROWS[name].run, "dispatch", features())
    assert trace.copies == () == trace.losses
    assert sum(event.count for event in trace.other_copies) == len(ROWS[name].forward)


@pytest.mark.parametrize("name", KEEPING)
def test_operators_that_keep_the_format_are_silent(name: str) -> None:
    x = features()
    with trace_layouts() as trace:
        KEEPING[name](x)
    assert [event for event in trace.events if event.kind != "explicit"] == []


def test_an_item_that_is_set_is_asked_for() -> None:
    trace = run(set_item, "dispatch", features())
    (event,) = [event for event in trace.events if event.phase == "forward"]
    assert seen(event) == ("explicit", "copy_", LAST, "nchw", SIZE)
    assert event.line == set_item.__code__.co_firstlineno + 2


def test_the_kernels_that_write_nchw_copy_nothing() -> None:
    """What only the strides of the result tell: cat, gather, cumsum."""
    for name in ("cat with NCHW", "gather", "cumsum"):
        trace = run(ROWS[name].run, "deep", features().detach())
        assert trace.internal == ()
        assert len(trace.losses) == 1


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda: torch.randn(2, 1, 4, 5), None, id="one channel"),
        pytest.param(lambda: torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last), None, id="1x1"),
        pytest.param(
            lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)[0].unsqueeze(0),
            ("explicit", "ghost", "nchw", 240),
            id="ghost",
        ),
        pytest.param(
            lambda: torch.randn(1, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d),
            ("explicit", LAST, "nchw", 480),
            id="5-D",
        ),
        pytest.param(lambda: torch.randn(0, 3, 4, 5).to(memory_format=torch.channels_last), None, id="empty"),
    ],
)
def test_dimensions_of_size_1_are_ignored(
    make: Callable[[], Tensor], expected: tuple[Any, ...] | None
) -> None:
    x = make()
    with trace_layouts() as trace:
        x.contiguous()
        x.to(memory_format=torch.contiguous_format)
    found = {
        (event.kind, event.source, event.destination, event.bytes // event.count) for event in trace.events
    }
    assert found == ({expected} if expected else set())


def test_a_ghost_is_lost_where_a_kernel_takes_it_for_nchw() -> None:
    ghost = torch.randn(2, 3, 4, 6).to(memory_format=torch.channels_last)[0].unsqueeze(0)
    with trace_layouts() as trace:
        ghost.relu()
        functional.max_pool2d(ghost, 2)
    (event,) = trace.events
    assert (event.kind, event.source, event.destination) == ("loss", "ghost", "nchw")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_tensors_without_strides_are_left_alone() -> None:
    sparse = torch.randn(2, 3, 4, 5).to_sparse()
    nested = torch.nested.nested_tensor([torch.randn(3, 4, 4), torch.randn(3, 2, 2)])
    with trace_layouts("deep") as trace:
        (sparse + sparse).to_dense()
        nested.clone()
        torch.quantize_per_tensor(torch.randn(2, 3, 4, 5), 0.1, 0, torch.quint8).clone()
        torch.randn(2, 3, 4, 5).to_mkldnn().to_dense()
    assert trace.copies == () == trace.losses
