"""What each module takes by itself, forward and backward."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from esper_guard.profiling.random_state import reseed
from esper_guard.profiling.result import LineCost, ModuleTime, Spread
from esper_guard.profiling.statistics import spread
from esper_guard.profiling.step import Step

_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 20

NO_MODULE: Final = "(no module)"
ACCUMULATION: Final = "(gradients added up)"

_MODULE: Final = "esper_guard module: "
_BACKWARD: Final = "esper_guard backward"
_NODE: Final = "autograd::engine::evaluate_function: "
_ACCUMULATE: Final = "AccumulateGrad"


class _Context(NamedTuple):
    """What an event is part of."""

    module: str
    is_backward: bool
    is_running: bool
    """Whether a forward runs, if only again in the backward, as a checkpoint has it."""


_Seconds = dict[tuple[str, bool], float]
"""By module and whether it is the backward."""


def module_times(
    steps: Mapping[str, Step],
    lines: Mapping[str, list[LineCost]],
    rounds: int | None,
    seconds: float,
    seed: int,
    progress: Callable[[float], None],
) -> dict[str, list[ModuleTime]]:
    """Of each variant the modules, the slowest first: the medians over rounds in which each variant runs once.

    torch.profiler records the operators; a range around each module's forward says whose they are. Those of the
    backward belong to the module of the forward operator with the same autograd sequence number. No module gets a
    backward hook, since these change the graph. On an accelerator the time is that of its kernels.

    The profiler makes every operator slower by about a microsecond, so modules of many small ones look slower than
    they are. If ``rounds`` is None, as many fit into ``seconds``, but there are 5 to 20 of them.
    """
    samples: dict[str, list[_Seconds]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(seed).shuffle
    begin = time.perf_counter()
    most = _MOST_ROUNDS if rounds is None else rounds
    for done in range(1, most + 1):
        shuffle(order)
        for name in order:
            reseed(seed + done)
            samples[name].append(_profiled(steps[name]))
        spent = time.perf_counter() - begin
        progress(done / most)
        if rounds is None and done >= _FEWEST_ROUNDS and spent * (done + 1) / done > seconds:
            break
    return {name: _summary(steps[name].model, samples[name], lines[name]) for name in steps}


def _profiled(step: Step) -> _Seconds:
    activities = [ProfilerActivity.CPU]
    if step.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    elif step.device.type == "xpu":
        activities.append(ProfilerActivity.XPU)
    step.forget()
    with _ranges(step.model), profile(activities=activities) as profiler:
        step.forward()
        with record_function(_BACKWARD):
            step.backward()
    return _by_module(list(profiler.events() or ()), on_device=len(activities) > 1)


@contextmanager
def _ranges(model: nn.Module) -> Iterator[None]:
    """Around the forward of each module."""
    running: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        def begin(module: nn.Module, arguments: Any) -> None:
            running.append(record_function(_MODULE + name))
            running[-1].__enter__()

        return begin

    def leave(module: nn.Module, arguments: Any, result: Any) -> None:
        running.pop().__exit__(None, None, None)

    handles = []
    for name, module in _named(model):
        handles.append(module.register_forward_pre_hook(enter(name), prepend=False))
        handles.append(module.register_forward_hook(leave, prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            yield name or type(model).__qualname__, module


def _by_module(events: list[Any], on_device: bool) -> _Seconds:
    """The seconds of each module, from the profiler's events."""
    seconds: _Seconds = defaultdict(float)
    owners: dict[
        int, str
    ] = {}  # of autograd's sequence numbers: the newest operator with a number made the node
    on_cpu = [event for event in events if event.device_type.name == "CPU"]
    contexts: dict[int, _Context] = {}
    for event in sorted(on_cpu, key=lambda event: (event.time_range.start, -event.time_range.end)):
        parent = event.cpu_parent
        module, is_backward, is_running = contexts.get(id(parent), _Context(NO_MODULE, False, True))
        if event.name.startswith(_MODULE):
            module, is_running = event.name.removeprefix(_MODULE), True
        elif event.name == _BACKWARD:
            module, is_backward, is_running = NO_MODULE, True, False
        elif event.name.startswith(_NODE):
            added_up = event.name.endswith(_ACCUMULATE)
            module = ACCUMULATION if added_up else owners.get(event.sequence_nr, NO_MODULE)
            is_backward, is_running = True, False
        contexts[id(event)] = _Context(module, is_backward, is_running)
        if is_running and event.sequence_nr >= 0:
            owners[event.sequence_nr] = module
        microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
        seconds[module, is_backward] += microseconds / 1e6
    return seconds


def _summary(model: nn.Module, samples: list[_Seconds], lines: list[LineCost]) -> list[ModuleTime]:
    kinds = {name: type(module).__qualname__ for name, module in _named(model)}
    copied: dict[str, int] = defaultdict(int)
    for line in lines:
        if line.is_copy and line.changes_format:
            copied[line.module or NO_MODULE] += line.bytes
    found = dict.fromkeys(module for sample in samples for module, _ in sample)

    def half(module: str, is_backward: bool) -> Spread:
        return spread([sample.get((module, is_backward), 0.0) for sample in samples])

    times = [
        ModuleTime(
            module=module,
            kind=kinds.get(module, ""),
            forward=half(module, False),
            backward=half(module, True),
            copied=copied[module],
        )
        for module in found
    ]
    return sorted(times, key=lambda each: each.forward.median + each.backward.median, reverse=True)
