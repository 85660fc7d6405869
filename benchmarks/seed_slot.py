"""What a SeedSlot costs in a training step, and what one call of the runtime costs, as ratios in one run.

    python benchmarks/seed_slot.py [--rounds N] [--quick] [--device cuda] [--json PATH]

Four minutes on two cores; ``--quick`` takes one small shape and half a minute. Markdown on stdout.

A step is the forward and the backward of a seed in the stage TRAINING at alpha 0, on features that need a gradient.
The seed's input is isolated by

- slot: `SeedSlot`;
- plain: ``host.detach()``, the rest of the formula by hand, so that slot / plain is what the slot itself costs;
- copy: ``host.contiguous().detach()``;
- guarded: ``host.detach() if host.is_contiguous() else host.contiguous().detach()``.

Every seed is hardened, so that none crashes. The variants run in turn, in a new random order in each round. A ratio
is the median over the rounds of time / time of the same round, with the 95 % interval of that median in brackets;
slot / slot is the same code twice, so its interval is the noise. A cell counts as slower beyond noise if the 99.9 %
interval lies above 1 and the median above the noise. Bytes come from torch's profiler; layout copies are the calls
of ``aten::copy_``, also those inside kernels, between tensors of different strides. oneDNN's own reorders are
invisible to both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler talks; it is read when torch is imported

import torch
from paired import Case, Ratio, interleave, ratio, table
from torch import Tensor, nn
from torch.profiler import profile, record_function

import esper_guard
from esper_guard.runtime.hazards import protection
from esper_guard.runtime.tracing import kernel_copies

MIB = 2**20
SHAPES = ((32, 64, 56, 56), (8, 256, 28, 28), (128, 512, 7, 7))
QUICK_SHAPES = ((8, 32, 14, 14),)
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
ALLOCATED = ("forward", "backward", "peak")


@dataclass
class Memory:
    forward: int
    """Bytes allocated, whether freed again or not."""
    backward: int
    peak: int
    copies: int
    copied: int


def make_seed(kind: str, channels: int, memory_format: torch.memory_format) -> nn.Module:
    if kind == "norm":
        return nn.GroupNorm(8, channels)
    seed = nn.Conv2d(channels, channels, 3, padding=1)
    return seed if kind == "conv, NCHW weights" else seed.to(memory_format=memory_format)


ISOLATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda host: host.detach(),
    "copy": lambda host: host.contiguous().detach(),  # noqa: EG101
    "guarded": lambda host: host.detach() if host.is_contiguous() else host.contiguous().detach(),  # noqa: EG102
}


class Step:
    """A training step of one variant; host, seed and gradient are its own."""

    def __init__(self, variant: str, seed: nn.Module, host: Tensor) -> None:
        self.seed = esper_guard.harden(deepcopy(seed))
        self.host = host.detach().clone().requires_grad_()
        self.outgoing = torch.ones_like(host)
        if variant.startswith("slot"):
            self.forward: Callable[[], Tensor] = self._slotted
            self.slot = esper_guard.SeedSlot().germinate(self.seed).advance("training")
        else:
            self.forward = self._by_hand
            self.isolate = ISOLATIONS[variant]

    def _slotted(self) -> Tensor:
        return self.slot(self.host)

    def _by_hand(self) -> Tensor:
        seed = self.seed(self.isolate(self.host))
        return self.host + (seed - seed.detach())

    def forget(self) -> None:
        self.host.grad = None
        self.seed.zero_grad(set_to_none=True)

    def __call__(self) -> None:
        self.forget()
        result = self.forward()
        with record_function("backward"):
            result.backward(self.outgoing)
        if self.host.is_cuda:
            torch.cuda.synchronize()


@contextmanager
def layout_copies() -> Iterator[list[int]]:
    """The bytes of each copy between tensors of different strides, made meanwhile."""
    sizes: list[int] = []

    def count(target: Tensor, source: Tensor) -> None:
        if target.shape == source.shape and target.stride() != source.stride():
            sizes.append(target.numel() * target.element_size())

    kernel_copies.install()
    try:
        with kernel_copies.watching(count, count):
            yield sizes
    finally:
        kernel_copies.uninstall()


def memory_of(step: Step) -> Memory:
    step()
    with layout_copies() as sizes:
        step()
    step.forget()
    with profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    middle = next(event.start_ns() for event in events if event.name() == "backward")
    device = step.host.device.type
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]" and event.device_type().name.lower() == device
    )
    allocated = peak = 0
    for _, change in changes:
        allocated += change
        peak = max(peak, allocated)
    return Memory(
        forward=sum(change for when, change in changes if change > 0 and when < middle),
        backward=sum(change for when, change in changes if change > 0 and when >= middle),
        peak=peak,
        copies=len(sizes),
        copied=sum(sizes),
    )


def measure_cell(
    shape: tuple[int, ...], kind: str, host_format: str, arguments: argparse.Namespace
) -> tuple[dict[str, Memory], dict[int, dict[str, list[float]]]]:
    """The memory of each variant, and its times for each number of threads."""
    torch.manual_seed(0)
    memory_format = FORMATS[host_format]
    host = torch.randn(shape, device=arguments.device).to(memory_format=memory_format)
    seed = make_seed(kind, shape[1], memory_format).to(arguments.device)
    steps = {name: Step(name, seed, host) for name in ("slot", "slot again", *ISOLATIONS)}
    memories = {name: memory_of(step) for name, step in steps.items()}
    times = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        cases = {name: Case(timeit.Timer(step)) for name, step in steps.items()}
        times[threads] = interleave(cases, arguments.rounds)
    return memories, times


def measure_steps(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    cells = []
    for shape in QUICK_SHAPES if arguments.quick else SHAPES:
        for host_format in FORMATS:
            kinds = ["conv", "norm"] if host_format == "NCHW" else ["conv", "conv, NCHW weights", "norm"]
            for kind in kinds:
                memories, times = measure_cell(shape, kind, host_format, arguments)
                cells.append(
                    {
                        "host": "x".join(map(str, shape)),
                        "format": host_format,
                        "seed": kind,
                        "memory": {name: asdict(memory) for name, memory in memories.items()},
                        "seconds": times,
                    }
                )
    return cells


def in_mib(sizes: list[int], sign: str = "") -> str:
    return " / ".join(f"{size / MIB:{sign}.1f}" if size else "0" for size in sizes)


def print_memory(cells: list[dict[str, Any]]) -> None:
    rows = []
    for cell in cells:
        memory = cell["memory"]
        plain = [memory["plain"][part] for part in ALLOCATED]
        more = {
            name: [memory[name][part] - size for part, size in zip(ALLOCATED, plain, strict=True)]
            for name in memory
        }
        copies = {name: f"{memory[name]['copies']} ({in_mib([memory[name]['copied']])})" for name in memory}
        row = [cell["host"], cell["format"], cell["seed"], in_mib(plain)]
        row += [in_mib(more[name], "+") for name in ("slot", "guarded", "copy")]
        rows.append([*row, copies["slot"], copies["copy"]])
    header = "host, format, seed, plain, slot: more, guarded: more, copy: more, copies: slot, copies: copy"
    table("MiB allocated: forward / backward / peak, and layout copies", header.split(", "), rows)


def print_times(cells: list[dict[str, Any]]) -> None:
    rows = []
    for cell in cells:
        for threads, times in cell["seconds"].items():
            row = [cell["host"], cell["format"], cell["seed"], str(threads)]
            row += [f"{statistics.median(times[name]) * 1e3:.2f}" for name in ("slot", "plain", "copy")]
            others = ("slot again", "plain", "guarded", "copy")
            rows.append(row + [str(ratio(times["slot"], times[name])) for name in others])
    header = "host, format, seed, threads, slot ms, plain ms, copy ms"
    ratios = "slot / slot, slot / plain, slot / guarded, slot / copy"
    table("Time of a step", [*header.split(", "), *ratios.split(", ")], rows)


def claims_of(cells: list[dict[str, Any]]) -> list[str]:
    extra = max(
        cell["memory"]["slot"][part] - cell["memory"]["plain"][part]
        for cell in cells
        for part in (*ALLOCATED, "copied")
    )
    ratios: dict[str, list[tuple[Ratio, Ratio, str]]] = {"plain": [], "guarded": [], "copy": []}
    worse: dict[str, list[str]] = {name: [] for name in ratios}
    for cell in cells:
        for threads, times in cell["seconds"].items():
            where = f"{cell['host']} {cell['format']}, {cell['seed']}, threads: {threads}"
            noise = ratio(times["slot"], times["slot again"])
            for name, found in ratios.items():
                found.append((ratio(times["slot"], times[name]), noise, where))
                # there are so many cells that 95 % intervals would find some by chance
                sure = ratio(times["slot"], times[name], 3.29)
                if sure.low > 1 and sure.median > max(noise.high, 1 / noise.low):
                    worse[name].append(f"{sure} {where}")
    claims = [f"extra bytes of SeedSlot over plain detach: max {extra}"]
    labels = {"plain": "plain detach", "guarded": "the guarded copy", "copy": "the ticket's copy"}
    for name, found in ratios.items():
        slowest, noise, where = max(found)
        fastest = min(found)
        claims.append(
            f"slowest cell relative to {labels[name]}: {slowest} (noise {noise}), {where}; "
            f"fastest: {fastest[0].median:.2f}, {fastest[2]}"
        )
        claims.append(f"cells slower than {labels[name]} beyond noise: {'; '.join(worse[name]) or 'none'}")
    return claims


@contextmanager
def removing() -> Iterator[None]:
    """Leave torch's operators as they were; elsewhere they keep the way through Python, for other threads' sake."""
    try:
        yield
    finally:
        while protection._installed:
            protection._installed.popitem()[1].remove()


@contextmanager
def hardened(module: nn.Module) -> Iterator[None]:
    with removing():
        esper_guard.harden(module)
        yield
        esper_guard.unharden(module)


@contextmanager
def guarded() -> Iterator[None]:
    with removing(), esper_guard.hazard_guard():
        yield


@contextmanager
def after_a_guard() -> Iterator[None]:
    with removing():
        with esper_guard.hazard_guard():
            pass
        yield


def timer(statement: str, **names: Any) -> timeit.Timer:
    return timeit.Timer(statement, globals=names)


def backward_timer(result: Tensor, wanted: list[Any]) -> timeit.Timer:
    statement = "f(result, wanted, outgoing, retain_graph=True)"
    outgoing = torch.ones_like(result)
    return timer(statement, f=torch.autograd.grad, result=result, wanted=wanted, outgoing=outgoing)


def layout_groups() -> Iterator[tuple[str, dict[str, Case]]]:
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = {
        "nchw": torch.randn(2, 3, 4, 5),
        "channels_last": last,
        "ambiguous": torch.randn(2, 1, 4, 5),
        "ghost": last[0].unsqueeze(0),
        "strided": last[:, :2],
    }
    suggest = torch._prims_common.suggest_memory_format
    for state, tensor in tensors.items():
        assert esper_guard.layout_of(tensor).state == state
        yield (
            f"layout_of, {state}",
            {
                "is_contiguous()": Case(timer("t.is_contiguous()", t=tensor)),
                "layout_of": Case(timer("f(t)", f=esper_guard.layout_of, t=tensor)),
                "suggest_memory_format": Case(timer("f(t)", f=suggest, t=tensor)),
            },
        )


def norm_groups() -> Iterator[tuple[str, dict[str, Case]]]:
    # The features need their gradient, so that the native call is safe.
    features = torch.randn(8, 16, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    for norm in (nn.GroupNorm(4, 16), nn.BatchNorm2d(16)):
        result = norm(features)
        wanted = [features, *norm.parameters()]
        backward = backward_timer(result, wanted)
        for part, clock in {"forward": timer("f(x)", f=norm, x=features), "backward": backward}.items():
            yield (
                f"{type(norm).__name__}, {part}",
                {
                    "native": Case(clock),
                    "harden": Case(clock, lambda norm=norm: hardened(norm)),
                    "hazard_guard": Case(clock, guarded),
                    "after hazard_guard": Case(clock, after_a_guard),
                },
            )


def cure_group() -> tuple[str, dict[str, Case]]:
    """GroupNorm's backward where the native one crashes, against the nearest that doesn't."""
    norm = nn.GroupNorm(8, 256)
    parameters = list(norm.parameters())

    def case(memory_format: torch.memory_format, input_too: bool, cured: bool) -> Case:
        features = torch.randn(8, 256, 28, 28).to(memory_format=memory_format).requires_grad_(input_too)
        result = norm(features)
        clock = backward_timer(result, [features, *parameters] if input_too else parameters)
        return Case(clock, (lambda: hardened(norm)) if cured else nullcontext)

    cases = {
        "NHWC, native, all gradients": case(torch.channels_last, True, False),
        "NHWC, cured, parameters only": case(torch.channels_last, False, True),
        "NCHW, native, parameters only": case(torch.contiguous_format, False, False),
    }
    return "GroupNorm, backward, 8x256x28x28", cases


def guard_group() -> tuple[str, dict[str, Case]]:
    """Entering and leaving a guard; the first one of a process registers with torch."""
    clock = timer("with guard: pass", guard=esper_guard.hazard_guard())
    registering = timer("with removing(), guard: pass", removing=removing, guard=esper_guard.hazard_guard())
    cases = {"later": Case(clock, after_a_guard), "the first": Case(registering)}
    return "with hazard_guard(): pass", cases


def blend_groups() -> Iterator[tuple[str, dict[str, Case]]]:
    host = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    seed = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    slot = esper_guard.SeedSlot().germinate(nn.Identity()).advance("training")
    names = {**vars(torch), **{name: getattr(esper_guard, name) for name in esper_guard.__all__}}
    names |= {
        "host": host,
        "seed": seed,
        "gate": torch.rand(2, 1, 1, 1),
        "identity": nn.Identity(),
        "slot": slot,
    }
    pairs = {
        "isolate": ("host.detach()", "isolate(host)"),
        "straight_through": ("host + (seed - seed.detach())", "straight_through(host, seed)"),
        "blend_add": ("lerp(host, seed, 0.3)", "blend_add(host, seed, 0.3)"),
        "blend_multiply": (
            "host * (1 + 0.3 * tanh(seed - host.detach()))",
            "blend_multiply(host, seed, 0.3)",
        ),
        "blend_gate": ("lerp(host, seed, 0.3 * gate)", "blend_gate(host, seed, 0.3, gate)"),
        "SeedSlot": ("s = identity(host.detach()); host + (s - s.detach())", "slot(host)"),
    }
    for name, (formula, ours) in pairs.items():
        yield (
            name,
            {
                "the bare formula": Case(timeit.Timer(formula, globals=names)),
                "esper_guard": Case(timeit.Timer(ours, globals=names)),
            },
        )


def measure_calls(rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    groups = (*layout_groups(), *norm_groups(), cure_group(), guard_group(), *blend_groups())
    return [{"call": name, "seconds": interleave(cases, rounds)} for name, cases in groups]


def print_calls(calls: list[dict[str, Any]]) -> None:
    rows = []
    for call in calls:
        first, *_ = call["seconds"].values()
        for name, times in call["seconds"].items():
            median = statistics.median(times)
            more = f"{(median - statistics.median(first)) * 1e6:+.2f}" if times is not first else ""
            against = str(ratio(times, first)) if times is not first else ""
            rows.append([call["call"], name, f"{median * 1e6:.2f}", more, against])
    header = ["call", "variant", "us", "more than the first", "ratio to the first"]
    table("Time of a call, one thread, on the CPU", header, rows)


def print_group_norm_copies(arguments: argparse.Namespace) -> None:
    """GroupNorm on a device other than the CPU gives up channels_last, with copies."""
    rows = []
    for shape in QUICK_SHAPES if arguments.quick else SHAPES:
        features = torch.randn(shape, device=arguments.device).to(memory_format=torch.channels_last)
        norm = nn.GroupNorm(8, shape[1]).to(arguments.device)
        features.requires_grad_()
        with layout_copies() as forward:
            result = norm(features)
        with layout_copies() as backward:
            result.backward(torch.ones_like(features))
        gradient = features.grad
        assert gradient is not None
        layouts = [str(esper_guard.layout_of(tensor)) for tensor in (features, result, gradient)]
        rows.append(["x".join(map(str, shape)), *layouts, in_mib([sum(forward)]), in_mib([sum(backward)])])
    header = "host, input, result, gradient, forward: copied MiB, backward: copied MiB"
    table(f"GroupNorm and channels_last on {arguments.device}", header.split(", "), rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one small shape")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="also write every time and byte to this file")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here: measuring on the CPU.")
        arguments.device = "cpu"
    arguments.threads = (
        [1, min(2, os.cpu_count() or 1)] if arguments.device == "cpu" else [torch.get_num_threads()]
    )

    print(
        f"torch {torch.__version__}, {os.cpu_count()} processors, {arguments.device}, {arguments.rounds} rounds"
    )
    # The calls come first: the cures that they are compared with last as long as a hardened seed.
    calls = measure_calls(arguments.rounds)
    print_calls(calls)
    cells = measure_steps(arguments)
    print_memory(cells)
    print_times(cells)
    if arguments.device != "cpu":
        print_group_norm_copies(arguments)
    claims = claims_of(cells)
    print("\n### In short\n")
    for claim in claims:
        print(f"- {claim}")
    if arguments.json is not None:
        about = {"torch": torch.__version__, "device": arguments.device, "rounds": arguments.rounds}
        report = {**about, "calls": calls, "steps": cells, "claims": claims}
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
