"""Programs that are hard on a tracer, each of which it once failed."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import os
import pickle
import random
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils import _python_dispatch

from esper_guard import assert_layout_equivalent, load_trace, merge, predict_layouts, trace_layouts
from tests.conftest import run_python

LAST = torch.channels_last


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 4, 5)).to(memory_format=LAST)


class TestOddTensors:
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    @pytest.mark.parametrize("inference", [False, True])
    def test_nested_tensors(self, inference: bool) -> None:
        def work() -> Tensor:
            nested = torch.nested.nested_tensor([torch.ones(3, 4, 8), torch.ones(3, 2, 8)])
            return (nested.transpose(2, 3).contiguous() * 2).to_padded_tensor(0.0)

        with torch.inference_mode(inference):
            plain = work()
            with trace_layouts("deep"):
                traced = work()
        assert torch.equal(plain, traced)

    def test_channels_last_and_sparse(self) -> None:
        dense, sparse = image(), torch.randn(2, 3, 4, 5).to_sparse()
        expected = dense + sparse
        with trace_layouts():
            assert torch.equal(dense + sparse, expected)

    @pytest.mark.filterwarnings("ignore:.*quantiz")
    def test_quantised_tensors_while_the_profiler_runs(self) -> None:
        quantised = torch.quantize_per_tensor(image(), 0.1, 0, torch.quint8)
        with profile(activities=[ProfilerActivity.CPU]), trace_layouts() as trace:
            quantised.contiguous()
        assert len(trace.copies) == 1

    def test_nothing_to_unbind(self) -> None:
        with trace_layouts():
            assert torch.zeros(0, 3, 4, 5).unbind(0) == ()

    def test_an_operator_that_writes_into_a_keyword_argument(self) -> None:
        def fill_it(*, target: Tensor) -> None:
            target.fill_(1)

        library: Any = torch.library
        ours = library.Library("esper_guard_tests", "FRAGMENT")
        try:
            ours.define("fill_it(*, Tensor(a!) target) -> ()")
            ours.impl("fill_it", fill_it, "CPU")
            target = torch.zeros(2)
            with trace_layouts():
                torch.ops.esper_guard_tests.fill_it(target=target)
            assert target.sum() == 2
        finally:
            ours._destroy()

    def test_shape_propagation_on_fake_tensors_is_no_copy(self) -> None:
        with trace_layouts() as trace, FakeTensorMode():
            image().contiguous().reshape(-1)
        assert trace.events == ()

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_export_is_no_copy(self) -> None:
        class Model(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.contiguous() * 2

        x = image()
        with trace_layouts() as trace:
            torch.export.export(Model(), (x,))
        assert trace.copies == ()

    @pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63)])
    def test_large_numbers(self, number: int) -> None:
        def fill() -> Tensor:
            target = torch.zeros(2, dtype=torch.uint64 if number > 0 else torch.int64)
            return torch.ops.aten.copy_.default(target, number)

        try:
            expected = fill()
        except (RuntimeError, ValueError):
            pytest.skip("this torch release refuses it")
        with trace_layouts("deep"):
            assert torch.equal(fill(), expected)


def qkv(x: Tensor) -> Tensor:
    weight = torch.ones(3 * x.shape[1], x.shape[1])
    n, c, h, w = x.shape
    tokens = functional.linear(x.permute(0, 2, 3, 1), weight).view(n, h, w, 3, c)
    q, k, v = tokens.permute(3, 0, 4, 1, 2).unbind(0)
    return x + q * k + v + tokens.permute(3, 0, 4, 1, 2)[0]


def sorted_elsewhere(x: Tensor) -> Tensor:
    _, indices = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).sort(1)
    return x.gather(1, indices)


def shared_convolution(x: Tensor) -> Tensor:
    weight = torch.ones(3, 3, 1, 2, requires_grad=True)
    permuted = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    result = functional.conv2d(x, weight) + functional.conv2d(permuted, weight)
    result.sum().backward()
    return result


NCHW_PROGRAMS = {
    "queries, keys and values": qkv,
    "indices of a permuted tensor": sorted_elsewhere,
    "a convolution of both": shared_convolution,
    "a kernel's own strides": lambda x: x + torch.fft.irfft(torch.fft.rfft(x, dim=1), n=3, dim=1),
    "unpooling": lambda x: functional.max_unpool2d(
        *functional.max_pool2d(
            x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 2, return_indices=True
        ),
        kernel_size=2,
    ),
}


class TestLosses:
    @pytest.mark.parametrize("name", NCHW_PROGRAMS)
    def test_nothing_is_lost_in_nchw_programs(self, name: str) -> None:
        with trace_layouts() as trace:
            NCHW_PROGRAMS[name](torch.randn(2, 3, 4, 6))
        assert trace.losses == ()

    @pytest.mark.parametrize(
        "between",
        [
            lambda x: x.to(torch.bfloat16),
            lambda x: x.double(),
            lambda x: x.clone(),
            lambda x: torch.cat([x, x], -1),
            lambda x: functional.linear(x, torch.ones(8, x.shape[-1])),
        ],
    )
    def test_the_choice_survives_what_is_done_between_permutes(self, between: Any) -> None:
        x = image(2, 8, 4, 5)
        with trace_layouts() as trace:
            between(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(1)
        assert [event.operator for event in trace.losses] == ["aten._softmax.default"]

    def test_a_gather_that_makes_other_dimensions(self) -> None:
        x = image(2, 8, 6, 6)
        batch, rows, columns = (
            torch.tensor([0, 1]),
            torch.tensor([[0, 1], [2, 3]]),
            torch.tensor([[1, 2], [3, 4]]),
        )
        with trace_layouts() as trace:
            x[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        assert trace.losses == ()

    def test_images_of_one_channel_are_a_choice(self) -> None:
        """Both features and weight are ambiguous; what comes out of a converted model is channels_last by choice."""
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Softmax2d()).to(memory_format=LAST)
        x = image(2, 1, 6, 6)
        with trace_layouts() as trace:
            model(x)
        assert len(trace.losses) == 1

    def test_a_layer_norm_between_permutes_keeps_the_choice(self) -> None:
        """ConvNeXt's way: the format is still somebody's choice afterwards."""
        x, norm = image(2, 8, 4, 5), nn.LayerNorm(8)
        with trace_layouts() as trace:
            norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(1)
        assert [event.operator for event in trace.losses] == ["aten._softmax.default"]

    def test_an_operator_that_also_writes_into_an_argument(self) -> None:
        x = image()
        with trace_layouts() as trace:
            result = functional.rrelu(x, training=True)
        assert len(trace.losses) == (not result.is_contiguous(memory_format=LAST))


class TestLines:
    @pytest.mark.parametrize(
        "function",
        [
            lambda x: functional.logsigmoid(x),
            lambda x: functional.layer_norm(x, [5]),
            lambda x: functional.silu(x * 1, inplace=True),
            lambda x: functional.grid_sample(x, torch.zeros(2, 4, 5, 2), align_corners=False),
        ],
    )
    def test_a_node_that_is_not_named_after_its_operator(self, function: Any) -> None:
        x = image().requires_grad_()
        with trace_layouts() as trace:
            function(x).backward(torch.ones(2, 3, 4, 5))
        backward = [event for event in trace.losses if event.phase == "backward"]
        assert backward
        assert {event.line for event in backward} == {function.__code__.co_firstlineno}

    def test_a_view_that_autograd_makes_anew(self) -> None:
        x = image().requires_grad_()
        with trace_layouts() as trace:
            y = x * 1
            view = y[:, :2]
            y.add_(1)
            view.reshape(2, -1).sum().backward()
        copies = [event for event in trace.copies if event.parameter is None]
        assert all(event.line is not None for event in copies)

    def test_a_graph_of_another_thread_gets_no_line_rather_than_a_wrong_one(self) -> None:
        results: list[Tensor] = []

        def forward() -> None:
            x = image().requires_grad_()
            results.append((x * 1).reshape(2, -1).exp())

        thread = threading.Thread(target=forward)
        thread.start()
        thread.join()
        with trace_layouts() as trace:
            unrelated = image().requires_grad_()
            for _ in range(20):
                unrelated = unrelated * 2
            results[0].sum().backward()
        wrong = [event for event in trace.events if event.phase == "backward" and event.line is not None]
        assert [event.operator for event in wrong if "mul" not in event.operator] == []

    def test_a_tracer_that_was_left_in_between(self) -> None:
        tracer = trace_layouts()
        x = image().requires_grad_()
        with tracer:
            y = (x * 1).contiguous()
        z = y * 2
        gradient = image()
        with tracer as trace:
            z.backward(gradient)
        lines = {event.line for event in trace.copies if event.parameter is None}
        assert lines == {self.test_a_tracer_that_was_left_in_between.__code__.co_firstlineno + 4}

    def test_a_coroutine_that_was_suspended_in_between(self) -> None:
        x = image().requires_grad_()

        @trace_layouts()
        async def step() -> None:
            y = (x * 1).reshape(2, -1)
            await asyncio.sleep(0)
            y.sum().backward()

        asyncio.run(step())
        trace = step.layout_trace  # type: ignore[attr-defined]
        assert {event.line for event in trace.copies if event.parameter is None} == {
            step.__wrapped__.__code__.co_firstlineno + 2  # type: ignore[attr-defined]
        }

    def test_a_part_on_its_own_and_in_the_whole(self) -> None:
        class Copying(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.contiguous()

        whole = nn.Sequential()
        whole.back = nn.Sequential(Copying())
        with trace_layouts() as trace:
            whole.back(image())
            whole(image())
        assert [(event.module, event.count) for event in trace.copies if event.source == "channels_last"] == [
            ("0", 1),
            ("back.0", 1),
        ]

    def test_a_module_of_two_models(self) -> None:
        shared = nn.Flatten()
        models = [nn.Sequential(), nn.Sequential()]
        models[0].a = models[1].b = shared
        with trace_layouts() as trace:
            for model in models:
                model(image())
        assert [event.module for event in trace.copies if event.kind == "hidden"] == ["a", "b"]


class TestLife:
    def test_an_interrupt_leaves_nothing_behind(self) -> None:
        """In a process of its own, which is interrupted while it traces in inference mode, again and again."""
        code = """
import signal, torch
from torch.utils._python_dispatch import _get_current_dispatch_mode
from esper_guard import trace_layouts
x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
def interrupt(*arguments):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
interrupted = 0
with torch.inference_mode():
    for _ in range(400):
        try:
            with trace_layouts():
                signal.setitimer(signal.ITIMER_REAL, 0.0005)
                while True:
                    x.reshape(2, -1)
                    x.contiguous()
        except KeyboardInterrupt:
            interrupted += 1
        assert _get_current_dispatch_mode() is None
print(interrupted)
"""
        done = run_python(code)
        assert done.stdout == "400\n", done.stderr

    def test_the_garbage_collector_may_copy_tensors(self) -> None:
        """In a process of its own, because the failure is a deadlock."""
        code = """
import gc, torch
from esper_guard import trace_layouts
x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
class Copying:
    def __init__(self): self.cycle = self
    def __del__(self): x.contiguous()
gc.set_threshold(1)
with trace_layouts(keep_events=5) as trace:
    for _ in range(30):
        Copying()
        x.reshape(-1)
        len(trace.events), trace.raw_events, str(trace)
print("done")
"""
        done = run_python(code)
        assert done.stdout == "done\n", done.stderr

    def test_leaves_are_not_kept_alive(self) -> None:
        alive: list[weakref.ref[Tensor]] = []
        with trace_layouts() as trace:
            for _ in range(5):
                x = image().requires_grad_()
                alive.append(weakref.ref(x))
                x.contiguous().sum().backward()
                x.softmax(1).backward(torch.ones(2, 3, 4, 5))
            del x
            gc.collect()
            assert [reference() for reference in alive] == [None] * 5
        assert trace.events

    def test_clearing_while_it_runs(self) -> None:
        x = image()
        with trace_layouts() as trace:
            for _ in range(2):
                x.contiguous()
                found = [event.count for event in trace.copies]
                trace.clear()
        assert found == [1]
        assert trace.events == ()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_forked_worker_sees_lines_that_its_parent_saw(self, tmp_path: Path) -> None:
        import multiprocessing

        x = image()

        def work() -> Tensor:
            return x.contiguous()

        with trace_layouts(save=tmp_path / "t.json"):
            work()
            child = multiprocessing.get_context("fork").Process(target=work)
            child.start()
            child.join()
        counts = [load_trace(path).copies[0].count for path in tmp_path.iterdir()]
        assert counts == [1, 1]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_fork_while_another_thread_enters(self) -> None:
        """In a process of its own, because the failure is a deadlock of the child."""
        code = """
import os, threading
from esper_guard import trace_layouts
from esper_guard.runtime.tracing import compiled, entered_modes, kernel_copies
locks = [kernel_copies._lock, compiled._lock, entered_modes.entered_modes.lock]
held, end = threading.Event(), threading.Event()
def hold():
    with locks[0](), locks[1](), locks[2]():
        held.set()
        end.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if not child:
    with trace_layouts("deep"):
        pass
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
end.set()
"""
        done = run_python(code, timeout=60)
        assert done.stdout == "7\n", done.stderr

    def test_threads_that_leave_in_another_order(self) -> None:
        """torch's own flags must not stay set."""
        flags = {name: value for name, value in vars(_python_dispatch).items() if name.startswith("_is_in_")}
        tracer = trace_layouts()
        inside, leave = threading.Event(), threading.Event()

        def work() -> None:
            with tracer:
                inside.set()
                leave.wait()

        thread = threading.Thread(target=work)
        with tracer:
            thread.start()
            inside.wait()
        leave.set()
        thread.join()
        assert {name: getattr(_python_dispatch, name) for name in flags} == flags

    def test_leaving_more_often_than_entering(self) -> None:
        tracer = trace_layouts()
        with tracer:
            pass
        with pytest.raises(RuntimeError, match="more often"):
            tracer.__exit__(None, None, None)
        with tracer as trace:
            image().contiguous()
        assert trace.copies

    def test_a_trace_can_be_copied_and_sent(self) -> None:
        with trace_layouts(keep_events=3) as trace:
            image().contiguous()
        for other in (pickle.loads(pickle.dumps(trace)), copy.deepcopy(trace)):
            assert other.events == trace.events
            assert merge([trace, other]).total_bytes == 2 * trace.total_bytes

    def test_a_relative_path_means_the_folder_of_the_beginning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path)
        with trace_layouts(save="t.json"):
            os.chdir("other")
        assert (tmp_path / "t.json").exists()

    def test_a_decorated_generator_function_is_one(self) -> None:
        @trace_layouts()
        def work() -> Iterator[int]:
            yield 1

        assert inspect.isgeneratorfunction(work)
        assert list(work()) == [1]

    def test_a_file_name_that_is_no_text(self, tmp_path: Path) -> None:
        namespace: dict[str, Any] = {}
        code = compile("def f(x):\n    return x.contiguous()\n", "odd\udcff.py", "exec")
        exec(code, namespace)  # noqa: S102
        with trace_layouts(save=tmp_path / "t.json") as trace:
            namespace["f"](image())
        assert trace.copies[-1].file == "odd\\udcff.py"
        assert load_trace(tmp_path / "t.json").events == trace.events


class TestModels:
    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_compiled_parts_are_predicted_as_written(self) -> None:
        """In a process of its own: compiled kernels would read memory that fake tensors don't have."""
        code = """
import torch
from torch import nn
from esper_guard import predict_layouts
convolution = torch.compile(nn.Conv2d(3, 4, 3))
tail = torch.compile(lambda x: (x.relu() + 1).flatten(1))
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(convolution)
    def forward(self, x):
        return tail(self.first(x))
model = Model()
model(torch.randn(2, 3, 8, 8))
print(len(predict_layouts(model, (2, 3, 8, 8), move_to=torch.channels_last).copies))
"""
        done = run_python(code, timeout=200)
        assert done.stdout == "1\n", done.stderr

    def test_train_without_a_result(self) -> None:
        class Model(nn.Conv2d):
            def train(self, mode: bool = True) -> None:  # type: ignore[override]
                super().train(mode)

        model = Model(3, 4, 3)
        assert predict_layouts(model, (2, 3, 8, 8), move_to=LAST).events == ()
        assert_layout_equivalent(model, torch.randn(2, 3, 8, 8), backend=None)

    def test_a_model_that_is_fake_already(self) -> None:
        with FakeTensorMode():
            model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
        assert len(predict_layouts(model, (2, 3, 8, 8), move_to=LAST).copies) == 1

    def test_random_numbers_of_python(self) -> None:
        class Stochastic(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList(nn.ReLU() for _ in range(8))

            def forward(self, x: Tensor) -> Tensor:
                for layer in self.layers:
                    if random.random() < 0.5:
                        x = layer(x)
                return x

        before = random.getstate()
        assert_layout_equivalent(Stochastic(), torch.randn(2, 3, 4, 5), backend=None)
        assert random.getstate() == before

    def test_buffers_are_compared(self) -> None:
        class Remembering(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("seen", torch.zeros(()))

            def forward(self, x: Tensor) -> Tensor:
                self.seen += x.stride(1)
                return x

        with pytest.raises(AssertionError, match="buffer 'seen' differs"):
            assert_layout_equivalent(Remembering(), torch.randn(2, 3, 4, 5), backend=None)

    def test_a_model_that_can_not_be_copied(self) -> None:
        model = nn.ReLU()
        model.lock = threading.Lock()
        with pytest.raises(TypeError, match="can't copy this ReLU"):
            assert_layout_equivalent(model, torch.randn(2, 3, 4, 5))
