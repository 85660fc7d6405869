"""How much a step allocates, and the most at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch.profiler import ProfilerActivity, profile, record_function

from esper_guard.profiling.devices import of_device
from esper_guard.profiling.result import Memory
from esper_guard.profiling.step import Step

_BACKWARD: Final = "esper_guard backward"


def memory_of(step: Step) -> Memory | None:
    """Of one step that has run before; None if the device doesn't count.

    On the CPU every call of torch's allocator, exact to the byte, as torch.profiler records it. On other devices the
    allocator's own statistics, of the bytes that were asked for where it knows them.

    That includes what kernels ask this allocator for. On the CPU those of oneDNN do so for the operands that they reorder
    and for their scratch memory: a convolution of 8x16x32x32 into 32 channels, kernel 3, inference, allocates 2.5 MiB in
    NCHW and 1.03 MiB in channels_last, of which 1 MiB is the result. What libraries allocate elsewhere (cuDNN's
    handles) is in neither.
    """
    step.forget()
    with _without_garbage():
        return _on_cpu(step) if step.device.type == "cpu" else _on_accelerator(step)


@contextmanager
def _without_garbage() -> Iterator[None]:
    """Nothing old is freed meanwhile, which would lower the sum."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _on_cpu(step: Step) -> Memory:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step.forward()
        with record_function(_BACKWARD):
            step.backward()
    assert profiler.profiler is not None
    events: list[Any] = profiler.profiler.kineto_results.events()
    middle = next(event.start_ns() for event in events if event.name() == _BACKWARD)
    changes = sorted(
        (
            (event.start_ns(), event.nbytes())
            for event in events
            if event.name() == "[memory]" and event.device_type().name == "CPU"
        ),
        key=lambda change: change[0],
    )
    total = peak = forward = backward = 0
    for when, change in changes:
        total += change
        peak = max(peak, total)
        if change > 0 and when < middle:
            forward += change
        elif change > 0:
            backward += change
    return Memory(forward=forward, backward=backward, peak=peak)


def _on_accelerator(step: Step) -> Memory | None:
    module = of_device(step.device.type)
    if not all(hasattr(module, name) for name in ("memory_stats", "reset_peak_memory_stats", "synchronize")):
        return None
    module.synchronize(step.device)
    module.reset_peak_memory_stats(step.device)
    before = module.memory_stats(step.device)
    counted = next(
        (name for name in ("requested_bytes", "allocated_bytes") if f"{name}.all.peak" in before), ""
    )
    if not counted:
        return None
    step.forward()
    module.synchronize(step.device)
    between = module.memory_stats(step.device)
    step.backward()
    module.synchronize(step.device)
    after = module.memory_stats(step.device)
    allocated = f"{counted}.all.allocated"
    return Memory(
        forward=between[allocated] - before[allocated],
        backward=after[allocated] - between[allocated],
        peak=after[f"{counted}.all.peak"] - before[f"{counted}.all.current"],
    )
