"""Every event names the line that the user wrote: in the forward, the backward, and a recomputation."""

from __future__ import annotations

import functools
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from esper_guard import LayoutEvent, trace_layouts


def here(offset: int = 0) -> int:
    """The caller's line, or one below it."""
    return sys._getframe(1).f_lineno + offset


def features(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 5, 5).to(memory_format=torch.channels_last).requires_grad_()


def copies(function: Callable[..., Any], *arguments: Any) -> list[LayoutEvent]:
    with trace_layouts() as trace:
        function(*arguments)
    return list(trace.copies)


def helper(x: Tensor) -> Tensor:
    return x.contiguous()


def decorated(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    @functools.wraps(function)
    def wrapper(x: Tensor) -> Tensor:
        return function(x)

    return wrapper


@decorated
def decorated_helper(x: Tensor) -> Tensor:
    return x.contiguous()


HELPER = helper.__code__.co_firstlineno + 1
DECORATED = decorated_helper.__wrapped__.__code__.co_firstlineno + 2  # type: ignore[attr-defined]
# fmt: off
PLACES: dict[str, tuple[Callable[[Tensor], Any], int, str]] = {
    "a line": (lambda x: x.contiguous(), here(), "explicit"),
    "a helper": (lambda x: helper(x), HELPER, "explicit"),
    "a decorated helper": (lambda x: decorated_helper(x), DECORATED, "explicit"),
    "a comprehension": (lambda x: [part.contiguous() for part in [x]], here(), "explicit"),
    "a generator": (lambda x: list(part.contiguous() for part in [x]), here(), "explicit"),  # noqa: C400
    "a walrus": (lambda x: (y := x.contiguous(), y), here(), "explicit"),
    "an f-string": (lambda x: f"{x.contiguous().shape}", here(), "explicit"),
    "a functional call": (lambda x: functional.instance_norm(x), here(), "hidden"),
    "a function of torch": (lambda x: torch.clone(x, memory_format=torch.contiguous_format), here(), "explicit"),
    "a method as a function": (lambda x: Tensor.contiguous(x), here(), "explicit"),
    "map": (lambda x: list(map(helper, [x])), HELPER, "explicit"),
    "partial": (lambda x: functools.partial(helper, x)(), HELPER, "explicit"),
    "reshape": (lambda x: x.reshape(-1), here(), "hidden"),
    "a chain": (lambda x: x.relu().reshape(-1).sum(), here(), "hidden"),
    "an argument": (lambda x: torch.abs(x.contiguous()), here(), "explicit"),
    "hidden around explicit": (lambda x: x.contiguous(memory_format=torch.channels_last).reshape(-1), here(), "hidden"),
    "a conversion and a cast": (lambda x: x.to(torch.float64, memory_format=torch.contiguous_format), here(), "explicit"),
}
# fmt: on


@pytest.mark.parametrize("name", PLACES)
def test_the_innermost_line_of_the_user(name: str) -> None:
    function, line, kind = PLACES[name]
    (event,) = copies(function, features().detach())
    assert (event.file, event.line, event.kind) == (__file__, line, kind)


def test_each_line_of_a_chain_over_several_lines() -> None:
    def chained(x: Tensor) -> Tensor:
        return (
            x.relu()
            .contiguous()
            .to(
                memory_format=torch.channels_last,
            )
            .flatten(1)
        )

    first = chained.__code__.co_firstlineno
    found = [(event.kind, event.line) for event in copies(chained, features().detach())]
    assert found == [("explicit", first + 3), ("explicit", first + 4), ("hidden", first + 7)]


def test_code_without_a_source_has_a_line() -> None:
    namespace: dict[str, Any] = {}
    exec("def f(x):\n    y = x\n    return y.reshape(-1)", namespace)  # noqa: S102
    (event,) = copies(namespace["f"], features().detach())
    assert (event.file, event.line, event.kind, event.function) == ("<string>", 3, "hidden", "f")


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), Inner(), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.to(memory_format=torch.channels_last))


def test_modules_by_their_path() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Outer()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.relu())

    model, x = Model(), features()
    with trace_layouts() as trace:
        model(x).sum().backward()
        Inner()(x.detach())
        x.detach().contiguous()
    assert [event.module for event in trace.copies if event.phase == "forward"] == [
        "body.layers.1",
        "Inner",
        None,
    ]
    line = Inner.forward.__code__.co_firstlineno + 1
    assert {event.line for event in trace.copies if event.module is not None} == {line}, (
        "as is the backward's"
    )


def test_a_sequential_names_its_layer_and_the_line_that_runs_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
    with trace_layouts() as trace:
        model(images)
    (event,) = trace.copies
    assert (event.line, event.module, event.kind) == (here(-2), "1", "hidden")


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 3 * gradient.contiguous() * x**2


def test_a_backward_method_and_a_hook_are_lines_of_the_backward() -> None:
    x = features()
    y = x * 2

    def hook(gradient: Tensor) -> Tensor:
        return gradient.contiguous()

    y.register_hook(hook)
    with trace_layouts() as trace:
        Cube.apply(y).backward(torch.ones_like(y))
    found = [(event.kind, event.line, event.phase) for event in trace.copies if event.parameter is None]
    assert found == [("explicit", Cube.backward.__code__.co_firstlineno + 3, "backward")]

    z = features() * 2
    z.register_hook(hook)
    with trace_layouts() as trace:
        (z * 2).backward(torch.ones_like(z))
    event = trace.copies[0]
    line = hook.__code__.co_firstlineno + 1
    assert (event.kind, event.line, event.phase) == ("explicit", line, "backward")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.relu().contiguous()).relu()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_recomputes(reentrant: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=reentrant)

    model, x = Model(), features()
    with trace_layouts() as trace:
        result = model(x)
        result.backward(torch.ones_like(result))
    line = Block.forward.__code__.co_firstlineno + 1
    asked = [
        (event.kind, event.line, event.phase, event.module)
        for event in trace.copies
        if event.kind == "explicit"
    ]
    assert asked == [("explicit", line, phase, "block") for phase in ("forward", "recompute")]
    assert {event.line for event in trace.events if event.parameter is None} == {line}


def test_a_gradient_goes_to_the_name_of_its_parameter() -> None:
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)), features().detach()  # NCHW weights
    with trace_layouts() as trace:
        model(x).sum().backward()
    found = {(event.parameter, event.file, event.line, event.bytes) for event in trace.copies}
    assert found == {("0.weight", None, None, 4 * 4 * 9 * 4), ("1.weight", None, None, 4 * 4 * 9 * 4)}
    assert "parameter 0.weight" in trace.by_line()


def test_a_backward_of_a_forward_that_was_not_traced_has_no_line() -> None:
    y = features().contiguous() * 2
    with trace_layouts() as trace:
        y.reshape(-1).sum().backward()
    assert {event.location for event in trace.events} <= {"parameter (a leaf tensor)", "(unknown)"} | {
        f"{__file__}:{here(-2)}"
    }


def test_a_write_into_a_view_is_put_down_to_its_line() -> None:
    x = features()
    with trace_layouts() as trace:
        canvas = torch.zeros(2, 4, 7, 7).to(memory_format=torch.channels_last) * 1
        canvas[:, :, 1:6, 1:6] = x
        with torch.no_grad():
            canvas.abs()
        result = canvas * 2
        result.backward(torch.ones_like(result).contiguous())
    lines = {event.line for event in trace.events if event.phase == "backward" and event.parameter is None}
    assert lines <= {here(-6), here(-3)}
    assert here(-7) in lines


def test_the_second_derivative_goes_to_the_forward() -> None:
    x = features()
    with trace_layouts() as trace:
        y = x.contiguous() ** 3
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        first.sum().backward()
    assert {event.line for event in trace.events if event.parameter is None} == {here(-3)}


# fmt: off
STEPS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.contiguous(),
    lambda x: x.to(memory_format=torch.channels_last),
    lambda x: x.reshape(2, -1).view(x.shape),
    lambda x: x.flatten(2).transpose(1, 2).reshape(2, -1).view(2, 5, 5, 4).permute(0, 3, 1, 2),
    lambda x: x.softmax(1),
    lambda x: torch.cat([x, x.contiguous()], 1)[:, ::2],
    lambda x: functional.layer_norm(x, [5]),
    lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    lambda x: x.index_select(1, torch.tensor([3, 1, 0, 2])),
    lambda x: functional.conv2d(x, torch.ones(4, 4, 3, 3), padding=1),
    lambda x: functional.instance_norm(x),
    lambda x: functional.pad(x, (1, 1, 1, 1), mode="circular")[:, :, 1:-1, 1:-1],
    lambda x: (x * 1).index_fill_(1, torch.tensor([1]), 0.5),
    lambda x: torch.stack([x, x.relu()]).sum(0),
    lambda x: x.roll(1, 1) + x.flip(2).contiguous(),
    lambda x: Cube.apply(x),
    lambda x: torch.einsum("nchw,cd->ndhw", x, torch.ones(4, 4)),
    lambda x: functional.interpolate(x, scale_factor=2.0)[:, :, ::2, ::2],
    lambda x: functional.silu(x * 1, inplace=True).contiguous(),
    lambda x: (x.contiguous() * 1).mul_(x),
    lambda x: (x * 1).sigmoid_().softmax(1),
    lambda x: torch.zeros_like(x, memory_format=torch.contiguous_format).index_add(1, torch.arange(4), x),
    lambda x: torch.func.functional_call(torch.nn.Conv2d(4, 4, 1), {"weight": torch.ones(4, 4, 1, 1)}, (x,)),
]
# fmt: on


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_backward_lines_agree_with_anomaly_mode() -> None:
    """Against the tracebacks that anomaly mode keeps in each node, in random networks."""
    choose = random.Random(0)
    checked = 0
    for _ in range(150):
        steps = choose.choices(STEPS, k=5)
        with compared_with_anomaly_mode() as pairs:
            y = features()
            for step in steps:
                y = step(y) * 2
            y.backward(torch.ones_like(y))
        for found, expected in pairs:
            assert found == expected
        checked += len(pairs)
    assert checked > 200


@contextmanager
def compared_with_anomaly_mode() -> Iterator[list[tuple[int | None, int]]]:
    """The line of each copy in the backward, with the line that anomaly mode knows."""
    pairs: list[tuple[int | None, int]] = []
    in_python = Cube.backward.__code__.co_firstlineno + 3
    with torch.autograd.set_detect_anomaly(True, check_nan=False), trace_layouts(keep_events=1) as trace:
        keep = trace.keep

        def kept(event: LayoutEvent) -> None:
            keep(event)
            node = torch._C._current_autograd_node()
            stack = node.metadata.get("traceback_") if node is not None else None
            if event.phase == "backward" and stack and event.parameter is None and event.line != in_python:
                lines = re.findall(rf'File "{re.escape(__file__)}", line (\d+)', "".join(stack))
                pairs.append((event.line, int(lines[-1])))

        trace.keep = kept  # type: ignore[method-assign]
        yield pairs


class TestExecutedLines:
    """Those on which an operator ran, so that a copy that isn't there was really not made."""

    def run(self, x: Tensor, copies: bool) -> int:
        start = here()
        y = x.contiguous().detach()  # noqa: EG101 - the copy is what the test is about
        if copies:
            y = y.to(memory_format=torch.channels_last)
        functional.relu(
            y,
        )
        return start

    def lines(self, x: Tensor, copies: bool) -> set[int]:
        with trace_layouts() as trace:
            start = self.run(x, copies)
        assert set(trace.executed) == {__file__}
        return {line - start for line in trace.executed[__file__]}

    def test_with_copies_and_without(self) -> None:
        assert self.lines(features(), copies=True) == {1, 3, 4}
        assert self.lines(torch.randn(2, 3, 4, 4), copies=False) == {1, 4}

    def test_without_gradients(self) -> None:
        with torch.inference_mode():
            assert self.lines(features(), copies=False) == {1, 4}

    def test_in_modules(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))
        x = features()
        with trace_layouts() as trace:
            line = here(+1)
            model(x).sum().backward()
        assert trace.executed == {__file__: {line}}

    def test_of_several_runs(self) -> None:
        tracer, x = trace_layouts(), features()
        for copies in (False, True):
            with tracer:
                start = self.run(x, copies)
        assert {line - start for line in tracer.trace.executed[__file__]} == {1, 3, 4}
        tracer.trace.clear()
        with tracer:
            self.run(x, copies=False)
        assert {line - start for line in tracer.trace.executed[__file__]} == {1, 4}
