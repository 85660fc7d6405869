"""``trace_layouts`` in the places where people put it."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from esper_guard import LayoutTrace, load_trace, merge, trace_layouts
from esper_guard.runtime.tracing import kernel_copies
from tests.conftest import run_python

COPY = 2 * 3 * 4 * 5 * 4
LEVELS = ["dispatch", "deep"]


def image() -> Tensor:
    return torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)


def copy_once() -> Tensor:
    return IMAGE.contiguous()


IMAGE = image()


def number(trace: LayoutTrace) -> int:
    return sum(event.count for event in trace.copies)


@pytest.mark.parametrize("level", LEVELS)
class TestContexts:
    def test_nothing_is_seen_before_or_after(self, level: str) -> None:
        copy_once()
        with trace_layouts(level) as trace:
            copy_once()
        copy_once()
        assert (number(trace), trace.total_bytes) == (1, COPY)

    def test_nested_traces_each_see_what_they_enclose(self, level: str) -> None:
        with trace_layouts(level) as outer:
            copy_once()
            with trace_layouts(level) as inner:
                copy_once()
        assert (number(outer), number(inner)) == (2, 1)
        if level == "deep":
            assert (outer.kernel_copies, inner.kernel_copies) == (2, 1)

    def test_one_object_counts_once_however_often_it_is_entered(self, level: str) -> None:
        tracer = trace_layouts(level)
        with tracer as first:
            with tracer as second:
                copy_once()
            copy_once()
        with tracer:
            copy_once()
        assert first is second is tracer.trace
        assert number(first) == 3

    def test_threads_share_one_trace(self, level: str) -> None:
        tracer = trace_layouts(level)
        start = threading.Barrier(4)

        def work() -> None:
            start.wait()
            for _ in range(50):
                with tracer:
                    copy_once()
            copy_once()  # no longer seen

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert number(tracer.trace) == 200

    def test_other_threads_are_not_seen(self, level: str) -> None:
        with trace_layouts(level) as trace:
            thread = threading.Thread(target=copy_once)
            thread.start()
            thread.join()
        assert trace.events == ()

    def test_an_exception_ends_it(self, level: str) -> None:
        def fail() -> None:
            copy_once()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), trace_layouts(level) as trace:
            fail()
        copy_once()
        assert number(trace) == 1

    def test_an_exception_in_an_operator_ends_it(self, level: str) -> None:
        with pytest.raises(RuntimeError, match="size"), trace_layouts(level) as trace:
            torch.zeros(2, 3).copy_(copy_once())
        copy_once()
        assert number(trace) == 1

    def test_a_function(self, level: str) -> None:
        tracer = trace_layouts(level)

        @tracer
        def work(times: int) -> int:
            """Work."""
            for _ in range(times):
                copy_once()
            return times

        assert work(2) + work(1) == 3
        assert number(tracer.trace) == 3
        assert work.layout_trace is tracer.trace  # type: ignore[attr-defined]
        assert (work.__name__, work.__doc__) == ("work", "Work.")

    def test_a_generator_is_traced_while_it_runs(self, level: str) -> None:
        tracer = trace_layouts(level)

        @tracer
        def work() -> Iterator[int]:
            copy_once()
            got = yield 1
            copy_once()
            try:
                yield got
            except KeyError:
                copy_once()
            return 7

        running = work()
        assert next(running) == 1
        copy_once()
        assert running.send(5) == 5  # type: ignore[attr-defined]
        copy_once()
        with pytest.raises(StopIteration) as end:
            running.throw(KeyError())  # type: ignore[attr-defined]
        assert end.value.value == 7
        assert number(tracer.trace) == 3

    def test_coroutines_are_traced_while_they_run(self, level: str) -> None:
        tracer = trace_layouts(level)

        @tracer
        async def work() -> int:
            copy_once()
            await asyncio.sleep(0)
            copy_once()
            return 3

        async def other() -> None:
            for _ in range(5):
                copy_once()
                await asyncio.sleep(0)

        async def both() -> int:
            return (await asyncio.gather(work(), other()))[0]

        assert asyncio.run(both()) == 3
        assert number(tracer.trace) == 2


class TestMisuse:
    def test_without_parentheses(self) -> None:
        with pytest.raises(TypeError, match="with parentheses"):
            trace_layouts(copy_once)  # type: ignore[arg-type]

    def test_an_unknown_level(self) -> None:
        with pytest.raises(ValueError, match=r"'depe'.*; did you mean 'deep'"):
            trace_layouts("depe")  # type: ignore[arg-type]

    @pytest.mark.parametrize("events", [-1, 1.5, True])
    def test_a_number_of_events(self, events: Any) -> None:
        with pytest.raises(ValueError, match="number of events"):
            trace_layouts(keep_events=events)

    @pytest.mark.parametrize("what", [staticmethod(copy_once), classmethod(copy_once), nn.ReLU])
    def test_what_can_not_be_decorated(self, what: Any) -> None:
        with pytest.raises(TypeError, match="can't decorate"):
            trace_layouts()(what)

    def test_asynchronous_generators(self) -> None:
        async def work() -> AsyncIterator[int]:
            yield 1

        with pytest.raises(TypeError, match="asynchronous generator"):
            trace_layouts()(work)


class TestDeep:
    def test_the_operator_is_as_before(self) -> None:
        """In a process of its own, which has no other threads."""
        code = """
import threading, torch
from esper_guard import trace_layouts
from esper_guard.runtime.tracing.kernel_copies import is_installed
found = [is_installed()]
with trace_layouts("deep"):
    found.append(is_installed())
found.append(is_installed())
try:
    with trace_layouts("deep"):
        raise KeyError
except KeyError:
    found.append(is_installed())
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
with trace_layouts("deep"):
    pass
found.append(is_installed())  # the thread may be copying
end.set()
thread.join()
with trace_layouts("deep") as trace:
    torch.zeros(1, 2, 2, 2).to(memory_format=torch.channels_last)
found += [is_installed(), len(trace.copies) == 1 == trace.kernel_copies]
print(found)
"""
        done = run_python(code, check=True)
        assert done.stdout == "[False, True, False, False, True, False, True]\n"

    def test_a_build_without_it_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Refusing:
            def __init__(self, *arguments: Any) -> None:
                raise RuntimeError("no such key")

        monkeypatch.setattr(kernel_copies, "_interposition", None)
        monkeypatch.setattr(kernel_copies, "Interposition", Refusing)
        with pytest.raises(RuntimeError, match=r"level='deep'.*no such key"), trace_layouts("deep"):
            pass
        with trace_layouts("dispatch") as trace:
            copy_once()
        assert number(trace) == 1

    def test_a_build_that_does_not_come_by_is_refused(self) -> None:
        """In a process of its own, where nothing comes by from an earlier trace."""
        code = """
from esper_guard import trace_layouts
from esper_guard.runtime.tracing import kernel_copies

class Blind:
    def __init__(self, *arguments): pass
    def remove(self): print("removed")

kernel_copies.Interposition = Blind
try:
    with trace_layouts("deep"):
        print("entered")
except RuntimeError as error:
    print("level='deep'" in str(error), kernel_copies.is_installed())
"""
        done = run_python(code, check=True)
        assert done.stdout == "removed\nTrue False\n"

    @pytest.mark.parametrize("value", [0.1, 7, True, 1 + 2j])
    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex128]
    )
    def test_numbers_are_copied_exactly(self, value: complex, dtype: torch.dtype) -> None:
        if isinstance(value, complex) and not dtype.is_complex:
            pytest.skip("torch refuses it")

        def fill() -> Tensor:
            target = torch.zeros(2, 2, dtype=dtype)
            target[0] = value
            return target

        plain = fill()
        with trace_layouts("deep"):
            assert torch.equal(fill(), plain)


class TestSurroundings:
    def test_autocast(self) -> None:
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        with trace_layouts() as trace, torch.autocast("cpu", torch.bfloat16):
            model(IMAGE).float().sum().backward()
        assert trace.copies == () == trace.losses
        assert trace.calls["aten._to_copy.default"] > 0

    def test_inference_mode(self) -> None:
        with torch.inference_mode(), trace_layouts() as trace:
            flat = image().reshape(2, -1)
            image().contiguous()
            nn.functional.linear(flat, torch.ones(2, flat.shape[1]))
        kinds = [(event.kind, event.destination) for event in trace.copies if event.source == "channels_last"]
        assert kinds == [("hidden", "nchw"), ("explicit", "nchw")]

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_torch_func(self) -> None:
        x = image()

        def loss(x: Tensor) -> Tensor:
            return (x.contiguous() ** 2).sum()

        with trace_layouts() as trace:
            torch.func.grad(loss)(x)
            torch.func.vmap(lambda one: one * 2)(x)
            torch.func.jvp(loss, (x,), (x,))
            torch.func.functional_call(nn.Conv2d(3, 4, 1), {"bias": torch.zeros(4)}, (x,))
        assert {event.line for event in trace.copies} == {loss.__code__.co_firstlineno + 1}

    def test_a_subclass_is_seen_through(self) -> None:
        two = pytest.importorskip("torch.testing._internal.two_tensor")
        pair = two.TwoTensor(image(), image())
        with trace_layouts() as trace:
            pair.contiguous()
        (event,) = trace.copies
        assert (event.kind, event.count, event.bytes) == ("explicit", 2, 2 * COPY)

    def test_a_subclass_of_the_user(self) -> None:
        class Logged(Tensor):
            names: list[str] = []  # noqa: RUF012

            @classmethod
            def __torch_function__(
                cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
            ) -> Any:
                cls.names.append(getattr(func, "__name__", str(func)))
                return super().__torch_function__(func, types, args, kwargs or {})

        x = image().as_subclass(Logged)
        if torch.__version__ < "2.5":
            pytest.skip("torch 2.4 can't run such a subclass under any dispatch mode")
        with trace_layouts() as trace:
            result = x.contiguous()
        assert isinstance(result, Logged)
        assert number(trace) == 1

    def test_other_modes(self) -> None:
        class Counting(TorchDispatchMode):
            calls = 0

            def __torch_dispatch__(
                self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
            ) -> Any:
                self.calls += 1
                return func(*args, **(kwargs or {}))

        with Counting() as outer, trace_layouts() as trace, Counting() as inner:
            copy_once()
        assert outer.calls == inner.calls == 1
        assert number(trace) == 1

    @pytest.mark.parametrize("level", LEVELS)
    def test_labels_in_the_profiler(self, level: str, tmp_path: Path) -> None:
        x = image().requires_grad_()
        with profile(activities=[ProfilerActivity.CPU]) as profiler, trace_layouts(level) as trace:
            y = (x * 1).reshape(2, -1)
            x.softmax(1)
            y.sum().backward()
        labels = [event.name for event in profiler.events() if event.name.startswith("esper_guard")]
        assert sorted(labels) == sorted(
            f"esper_guard {event.kind}: {event.source} -> {event.destination} at {event.location}"
            for event in trace.events
            if event.kind != "internal"
        )
        assert len(labels) == 3
        profiler.export_chrome_trace(str(tmp_path / "profile.json"))
        exported = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
        assert set(labels) <= {event.get("name") for event in exported}

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_compiled_code_says_what_is_not_seen(self) -> None:
        torch._dynamo.reset()

        def work(x: Tensor) -> Tensor:
            return torch.relu(x + 1).contiguous() * 2

        fast = torch.compile(work)
        with trace_layouts() as first:
            fast(IMAGE)
        with trace_layouts() as second:
            fast(IMAGE)
        for trace in (first, second):
            assert trace.unseen or number(trace) == 1  # torch 2.5 to 2.8 run it eagerly under a dispatch mode
        if second.unseen:
            assert next(iter(second.unseen)).endswith(f"work ({__file__}:{work.__code__.co_firstlineno})")
        with trace_layouts() as eager:
            work(IMAGE)
        assert not eager.unseen
        torch._dynamo.reset()


class Images(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return IMAGE.contiguous()[0]


class TestProcesses:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_workers_write_their_own_trace(self, tmp_path: Path, workers: int) -> None:
        with trace_layouts(save=tmp_path / "trace.json") as trace:
            copy_once()
            list(
                DataLoader(Images(), num_workers=workers, multiprocessing_context="fork" if workers else None)
            )
        assert number(trace) == (1 if workers else 5)
        files = sorted(tmp_path.iterdir())
        assert len(files) == 1 + workers
        assert files[0].name.startswith("trace.")
        assert number(merge(map(load_trace, files))) == 5

    def test_what_was_saved_is_what_was_seen_even_after_an_exception(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), trace_layouts(save=tmp_path / "t-{rank}.json") as trace:
            copy_once().view(-1, 7)
        assert load_trace(tmp_path / "t-0.json").events == trace.events

    def test_worker_files_of_an_earlier_run_are_removed(self, tmp_path: Path) -> None:
        for name in ("t.worker-12.json", "t.json", "other.worker-12.json"):
            (tmp_path / name).write_text("old")
        with trace_layouts(save=tmp_path / "t.json"):
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == ["other.worker-12.json", "t.json"]

    def test_a_folder_that_is_not_there_is_noticed_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="there is no such folder"):
            trace_layouts(save=tmp_path / "none" / "t.json")

    def test_a_trace_that_can_not_be_saved_hides_no_error(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        tracer = trace_layouts(save=folder / "t.json")

        def fail() -> None:
            folder.rmdir()
            raise KeyError("the user's own")

        with pytest.warns(UserWarning, match="could not be saved"), pytest.raises(KeyError), tracer:
            fail()
        folder.mkdir()
        with pytest.raises(FileNotFoundError), tracer:
            folder.rmdir()

    def test_the_rank_of_a_launcher(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "3")
        with trace_layouts(save=tmp_path / "t-{rank}.json") as trace:
            copy_once()
        assert trace.rank == 3
        assert load_trace(tmp_path / "t-3.json").rank == 3


class TestMemory:
    @pytest.mark.slow
    def test_a_million_events_take_no_more_than_a_thousand(self) -> None:
        small = torch.zeros(1, 2, 1, 2).to(memory_format=torch.channels_last)
        target = torch.zeros(1, 2, 1, 2)
        wide = torch.zeros(1, 2, 2, 2).to(memory_format=torch.channels_last)

        def work(times: int) -> None:
            for _ in range(times):
                target.copy_(small)

        with torch.no_grad(), trace_layouts(keep_events=100) as trace:
            work(1000)
            wide.contiguous()
            gc.collect()
            tracemalloc.start()
            work(100_000)
            gc.collect()
            grown, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            work(900_000)
        assert sum(event.count for event in trace.events) == 1_001_001
        assert len(trace.raw_events) == 100
        assert grown < 100_000

    def test_nodes_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from esper_guard.runtime.tracing import forward

        monkeypatch.setattr(forward, "LIMIT", 16)

        def lines(nodes: int) -> set[str]:
            x = image().requires_grad_()
            with trace_layouts() as trace:
                y = nn.functional.layer_norm(x, [5])
                for _ in range(nodes):
                    y = y + 1
                y.sum().backward()
            return {
                event.location.removeprefix(f"{__file__}:")
                for event in trace.losses
                if event.phase == "backward"
            }

        line = str(lines.__code__.co_firstlineno + 3)
        assert lines(10) == {line}
        assert lines(20) == {"(unknown)"}

    def test_nothing_is_kept_alive(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
        x = image()
        with trace_layouts(keep_events=10) as trace:
            y = model(x)
            y.sum().backward()
        references = [weakref.ref(thing) for thing in (model, x, y, model[0].weight)]
        del model, x, y
        gc.collect()
        assert [reference() for reference in references] == [None] * 4
        assert trace.events


def test_the_sweep_of_permuted_tensors() -> None:
    """Those that are gone are forgotten, and a storage at the same address is not mistaken for them."""
    from esper_guard.runtime.tracing.provenance import Provenance

    provenance = Provenance()
    for _ in range(2000):
        provenance.note_result(torch.empty(4), chosen=False)
    assert len(provenance.known) < 1100
    assert provenance.chosen(torch.empty(4))


PERMUTED: dict[str, Callable[[Tensor], Any]] = {
    "added to NCHW": lambda x: x + x.flatten(2).transpose(1, 2).relu().transpose(1, 2).view(x.shape),
    "scaled first": lambda x: x + 2 * x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "through a convolution": lambda x: (
        x
        + nn.functional.conv2d(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), torch.ones(3, 3, 1, 1))
    ),
    "stacked images": lambda x: torch.stack(
        [one.permute(2, 0, 1) for one in x.permute(0, 2, 3, 1).contiguous()]
    ),
    "softmax": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).softmax(1),
}


@pytest.mark.parametrize("name", PERMUTED)
def test_a_permuted_view_is_nobodys_choice_of_a_format(name: str) -> None:
    with trace_layouts() as trace:
        PERMUTED[name](torch.randn(2, 3, 4, 5))
    assert trace.losses == ()


def test_a_converted_weight_makes_it_a_choice() -> None:
    weight = torch.ones(3, 3, 1, 2).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 5, 3)
    with trace_layouts() as trace:
        nn.functional.conv2d(x.permute(0, 3, 1, 2), weight).softmax(1)
    assert [event.operator for event in trace.losses] == ["aten._softmax.default"]


VIEWS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "channel shuffle": (lambda x: x.view(2, 2, 2, 6, 6).transpose(1, 2).reshape(2, 4, 6, 6), 1),
    "space to depth": (
        lambda x: x.view(2, 4, 3, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 16, 3, 3),
        1,
    ),
    "tokens, channels first": (lambda x: x.flatten(2).contiguous(), 1),
    "heads": (lambda x: x.view(2, 2, 2, 36).contiguous(), 1),
    "tokens, channels last": (lambda x: x.flatten(2).transpose(1, 2).contiguous(), 0),
    "patches, channels last": (
        lambda x: x.view(2, 4, 3, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(2, 9, 16),
        0,
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_hides_no_format(name: str) -> None:
    view, expected = VIEWS[name]
    x = torch.randn(2, 4, 6, 6)
    with trace_layouts() as trace:
        view(x.to(memory_format=torch.channels_last))
    found = [(event.source, event.destination) for event in trace.copies][1:]
    assert found == [("channels_last", "nchw")] * expected
    with trace_layouts() as trace:
        view(x)
    assert trace.copies == () == trace.losses


def test_a_view_of_a_chosen_tensor_and_back_stays_a_choice() -> None:
    x = image()
    with trace_layouts() as trace:
        torch.randn(2, 3, 4, 5) + x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)
    assert len(trace.losses) == 1
