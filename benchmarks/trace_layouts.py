"""What tracing costs for each operator, and what it finds, beside what else there is.

    python benchmarks/trace_layouts.py [--rounds N] [--skip-finds] [--json PATH]

Two minutes on two cores. Markdown on stdout.

Cost: a training step of a small ResNet on tiny images, one thread, so that nearly all of its time is overhead. The
variants run in turn, in a new random order in each round: nothing, a TorchDispatchMode that does nothing,
`trace_layouts` at both levels, torch's FlopCounterMode and DebugMode (both record nothing that they need not), and
torch.profiler with stacks and memory, its events included. A cost is time beyond "nothing" of the same round, by the
number of dispatched operators; a ratio is the median over the rounds, with its 95 % interval. "After tracing" is
the bare step again, once a trace of each level has ended.

Finds: the technique of PyTorch's channels_last tutorial, which puts a wrapper in the place of every function of
torch, torch.nn.functional and torch.Tensor, and reports a call that got a channels_last tensor and returned a 4-D one
that is not. It is written anew here, and reports instead of raising. Both watch the same training steps and single operators.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import timeit
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler talks; it is read when torch is imported

import torch
from paired import Case, interleave, ratio, table
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from esper_guard import harden, trace_layouts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.runtime.models import MODELS, ResNet
from tests.runtime.test_trace_operators import ROWS, features

LAST = torch.channels_last


class NoOp(TorchDispatchMode):
    calls = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class Counting(NoOp):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def debug_mode() -> AbstractContextManager[Any] | None:
    try:
        from torch.utils._debug_mode import DebugMode
    except ImportError:
        return None
    return DebugMode()


@contextmanager
def profiled() -> Iterator[None]:
    with profile(activities=[ProfilerActivity.CPU], with_stack=True, profile_memory=True) as profiler:
        yield
    profiler.events()


def training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        result = model(images)
        result.backward(torch.ones_like(result))

    return step


def measure_costs(rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    step = training_step(ResNet().to(memory_format=LAST), torch.randn(1, 3, 16, 16).to(memory_format=LAST))
    step()
    with Counting() as counting:
        step()
    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "nothing": nullcontext,
        "no-op mode": NoOp,
        "trace_layouts()": trace_layouts,
        'trace_layouts("deep")': lambda: trace_layouts("deep"),
        "FlopCounterMode": lambda: FlopCounterMode(display=False),
        "torch.profiler": profiled,
    }
    if debug_mode() is not None:
        contexts["DebugMode"] = debug_mode  # type: ignore[assignment]

    def steps(context: Callable[[], AbstractContextManager[Any]]) -> Callable[[], None]:
        def run() -> None:
            with context():
                for _ in range(5):
                    step()

        return run

    before = timeit.Timer(step)
    bare = [before.timeit(5) for _ in range(rounds)]
    cases = {name: Case(timeit.Timer(steps(context))) for name, context in contexts.items()}
    seconds = interleave(cases, rounds)
    after = [before.timeit(5) for _ in range(rounds)]
    return {"operators": counting.calls * 5, "seconds": seconds, "before": bare, "after": after}


def print_costs(costs: dict[str, Any]) -> None:
    seconds, operators = costs["seconds"], costs["operators"]
    added = {
        name: [time - bare for time, bare in zip(times, seconds["nothing"], strict=True)]
        for name, times in seconds.items()
        if name != "nothing"
    }
    rows = [
        [
            name,
            f"{statistics.median(times) / operators * 1e6:.1f}",
            str(ratio(times, added["no-op mode"])),
            str(ratio(times, added["trace_layouts()"])),
        ]
        for name, times in added.items()
    ]
    title = f"Cost for each of {operators // 5} dispatched operators of a training step"
    table(title, ["within", "us", "ratio to the no-op mode", "ratio to trace_layouts()"], rows)
    print(f"\nThe bare step after tracing, to the same before: {ratio(costs['after'], costs['before'])}")


class Wrappers:
    """The tutorial's technique: wrap what can be wrapped, and look at arguments and results."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.wrapped: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        for owner in (torch, functional, Tensor):
            for name in dir(owner):
                self._wrap(owner, name)

    def __exit__(self, *error: object) -> None:
        for owner, name, original in reversed(self.wrapped):
            setattr(owner, name, original)

    def _wrap(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)
        plumbing = "_" if owner is not Tensor else "__"  # of Tensor operators such as __add__ are wrapped
        skipped = name.startswith(plumbing) and name not in OPERATORS
        if skipped or not callable(original) or isinstance(original, type) or name in PLUMBING:
            return

        @functools.wraps(original, assigned=("__name__", "__doc__"))
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            was = any(self._is_last(value) for value in (*args, *kwargs.values()))
            result = original(*args, **kwargs)
            if was and self._lost(result):
                self.found[f"{getattr(owner, '__name__', owner)}.{name}"] += 1
            return result

        try:
            setattr(owner, name, wrapper)
        except (AttributeError, TypeError):
            return
        self.wrapped.append((owner, name, original))

    def _is_last(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(self._is_last, value))
        plain = isinstance(value, Tensor) and value.layout is torch.strided and value.dim() == 4
        return plain and IS_CONTIGUOUS(value, memory_format=LAST) and not IS_CONTIGUOUS(value)

    def _lost(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(self._lost, value))
        plain = isinstance(value, Tensor) and value.layout is torch.strided and value.dim() == 4
        return plain and not IS_CONTIGUOUS(value, memory_format=LAST)


IS_CONTIGUOUS = Tensor.is_contiguous
OPERATORS = frozenset("__add__ __radd__ __sub__ __mul__ __rmul__ __truediv__ __matmul__ __getitem__".split())
PLUMBING = frozenset(
    "is_contiguous dim size stride is_tensor is_storage typename get_default_dtype set_default_dtype manual_seed "
    "seed initial_seed get_rng_state set_rng_state is_grad_enabled is_inference_mode_enabled backward has_torch_function "
    "has_torch_function_unary has_torch_function_variadic handle_torch_function overload boolean_dispatch "
    "is_autocast_enabled is_autocast_cpu_enabled get_autocast_dtype assert_int_or_pair register_hook "
    "set_grad_enabled is_deterministic_algorithms_warn_only_enabled are_deterministic_algorithms_enabled".split()
)


def measure_finds() -> list[dict[str, Any]]:
    finds = []
    for name, row in ROWS.items():
        finds.append(find(name, functools.partial(run_row, row.run, features())))
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = harden(make()).to(memory_format=LAST)
        images = torch.randn(2, 3, 16, 16).to(memory_format=LAST)
        finds.append(find(f"{name}, a training step", training_step(model, images)))
    return finds


def run_row(function: Callable[[Tensor], Any], x: Tensor) -> None:
    x.grad = None
    result = function(x)
    if isinstance(result, Tensor) and result.requires_grad:
        result.backward(torch.ones_like(result))


def find(name: str, run: Callable[[], None]) -> dict[str, Any]:
    wrappers = Wrappers()
    with wrappers:
        run()
    with trace_layouts("deep") as trace:
        run()
    events = [event for event in trace.events if event.changes_format]
    ours = Counter[str]()
    for event in events:
        ours[f"{event.kind}, {event.phase}"] += event.count
    return {
        "case": name,
        "tutorial": dict(wrappers.found),
        "ours": dict(ours),
        "bytes": trace.total_bytes,
        "wrapped": len(wrappers.wrapped),
    }


def print_finds(finds: list[dict[str, Any]]) -> None:
    rows = []
    for found in finds:
        tutorial = "; ".join(f"{name} {times}x" for name, times in found["tutorial"].items()) or "-"
        ours = "; ".join(f"{times} {name}" for name, times in found["ours"].items()) or "-"
        rows.append([found["case"], tutorial, ours, str(found["bytes"] or "")])
    title = (
        f"What each finds (the tutorial's technique wraps {finds[0]['wrapped']} attributes and names no line)"
    )
    table(
        title, ["channels_last case", "tutorial's technique", 'trace_layouts("deep")', "bytes copied"], rows
    )
    missed = [f["case"] for f in finds if f["ours"] and not f["tutorial"]]
    only = [f["case"] for f in finds if f["tutorial"] and not f["ours"]]
    print(f"\nFound by trace_layouts only: {len(missed)} ({', '.join(missed)})")
    print(f"Found by the tutorial's technique only: {len(only)} ({', '.join(only) or 'none'})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--skip-finds", action="store_true", help="costs only")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} processors, {arguments.rounds} rounds")
    costs = measure_costs(arguments.rounds)
    print_costs(costs)
    finds = [] if arguments.skip_finds else measure_finds()
    if finds:
        print_finds(finds)
    if arguments.json is not None:
        report = {"torch": torch.__version__, "costs": costs, "finds": finds}
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
