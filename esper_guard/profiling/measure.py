"""From a request to a `Profile`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import torch
from msgspec.structs import replace
from torch import nn

from esper_guard.profiling.advice import advise
from esper_guard.profiling.builtin import BuiltIn
from esper_guard.profiling.choices import ISOLATIONS
from esper_guard.profiling.devices import available_devices, check_device, machine
from esper_guard.profiling.failures import USER_ERRORS, ProfileError, described
from esper_guard.profiling.layout_copies import line_costs, trace_step
from esper_guard.profiling.memory import memory_of
from esper_guard.profiling.module_times import module_times
from esper_guard.profiling.random_state import reseed
from esper_guard.profiling.remedies import remedy
from esper_guard.profiling.result import (
    AGAIN,
    Comparison,
    MemoryFormat,
    Noise,
    Part,
    Profile,
    Ratio,
    Settings,
    Times,
    Variant,
)
from esper_guard.profiling.shapes import Shape
from esper_guard.profiling.statistics import noise_of, paired_ratio
from esper_guard.profiling.step import NoGradientError, Step, StepError
from esper_guard.profiling.target import Target
from esper_guard.profiling.timing import time_steps
from esper_guard.profiling.workload import Workload, built_in_workload, target_workload
from esper_guard.runtime.hazards import HAZARDS, HazardError, harden, hazard_guard
from esper_guard.runtime.hazards.hazard import Consequence
from esper_guard.trace.layout_trace import LayoutTrace

Progress = Callable[[str, float], None]
"""Is told what is being done, and the share of the whole that is done."""

_MODULE_ROUNDS = 20
"""The most, if a number of rounds is asked for."""
_MODULE_SHARE = 0.2
"""Of the time for the rounds."""
_FORMATS: tuple[MemoryFormat, ...] = ("NCHW", "NHWC")
_COMPILATIONS = 64
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure, and how."""

    command: str
    target: Target | None = None
    shapes: Sequence[Shape] = ()
    built_ins: Sequence[BuiltIn] = ()
    """What to measure without a target."""
    isolations: Sequence[str] = tuple(ISOLATIONS)
    """Of these."""
    training: bool = True
    devices: Sequence[str] = ()
    """Empty: the CPU and the accelerator, if there is one."""
    dtype: str | None = None
    autocast: str | None = None
    compiled: bool = False
    threads: int | None = None
    rounds: int | None = None
    seconds: float = 20.0
    """For each comparison, if ``rounds`` is None."""
    timed: bool = True
    seed: int = 0


@dataclass(frozen=True)
class _Way:
    name: str
    memory_format: MemoryFormat
    isolation: str | None


def measure(request: Request, progress: Progress) -> tuple[Profile, LayoutTrace]:
    """Measure everything that is asked for.

    Returns:
        The profile, and the trace of the first NHWC variant.

    Raises:
        ProfileError: the model can't be loaded or run; the message names the remedy.
    """
    devices = list(dict.fromkeys(request.devices)) or available_devices()
    try:
        for device in devices:
            check_device(device)
    except ValueError as error:
        raise ProfileError(str(error)) from error
    comparisons: list[Comparison] = []
    traces: list[LayoutTrace] = []
    inputs: list[str] = []
    with _prepared(request):
        number = (1 if request.target is not None else len(request.built_ins)) * len(devices)
        for workload in _workloads(request):
            inputs = [] if request.target is None else workload.shown_inputs
            for device in devices:
                at = len(comparisons)

                def within(what: str, share: float, at: int = at) -> None:
                    progress(what, (at + share) / number)

                with workload.unhardened_afterwards():
                    comparison, trace = _compare(request, workload, device, within)
                comparisons.append(comparison)
                traces.append(trace)
        here = machine(devices)
    settings = _settings(request, inputs)
    advised = [replace(each, advice=advise(each, here, settings)) for each in comparisons]
    return Profile(machine=here, settings=settings, comparisons=advised), traces[0]


def _workloads(request: Request) -> Iterator[Workload]:
    if request.target is not None:
        yield target_workload(request.target, request.shapes, request.seed)
    for built_in in request.built_ins if request.target is None else ():
        yield built_in_workload(built_in, request.isolations, request.seed)


def _settings(request: Request, inputs: list[str]) -> Settings:
    return Settings(
        command=request.command,
        target=None if request.target is None else request.target.text,
        training=request.training,
        inputs=inputs,
        dtype=request.dtype,
        autocast=request.autocast,
        compiled=request.compiled,
        seed=request.seed,
        timed=request.timed,
    )


@contextmanager
def _prepared(request: Request) -> Iterator[None]:
    """The number of threads, and Dynamo's limit, as they are asked for; afterwards as they were."""
    threads = torch.get_num_threads()
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    try:
        if request.compiled:
            config = torch._dynamo.config
            limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
            with config.patch({limit: _COMPILATIONS}):
                yield
        else:
            yield
    finally:
        torch.set_num_threads(threads)


def _compare(
    request: Request, workload: Workload, device: str, progress: Callable[[str, float], None]
) -> tuple[Comparison, LayoutTrace]:
    ways = [
        _Way(memory_format if isolation is None else f"{memory_format} {isolation}", memory_format, isolation)
        for memory_format, isolation in product(_FORMATS, workload.models)
    ]
    where = f"{workload.name} on {device}"
    progress(f"{where}: first steps", 0.0)
    steps, hardened = _running(request, workload, device, ways)
    with _guarded(request, workload, device, "when it ran once more, to be traced"):
        traces = {name: _alike(request, trace_step, step) for name, step in steps.items()}
    lines = {name: line_costs(trace) for name, trace in traces.items()}
    with _guarded(request, workload, device, "when it ran once more, to count what it allocates"):
        memories = {name: _alike(request, memory_of, step) for name, step in steps.items()}
    times: dict[str, Times] = {}
    modules = {}
    if request.timed:
        first = ways[0]
        again = f"{first.name} {AGAIN}"
        timed_steps = {**steps, again: _tried_step(request, workload, device, first, ran_before=False)}
        with _guarded(request, workload, device, "when it ran many times, to be timed"):
            times = time_steps(
                timed_steps,
                request.rounds,
                request.seconds,
                request.seed,
                lambda share: progress(f"{where}: rounds", 0.05 + 0.85 * share),
            )
        if not request.compiled:
            with _guarded(request, workload, device, "when it ran many times, to time its modules"):
                modules = module_times(
                    steps,
                    lines,
                    None if request.rounds is None else min(request.rounds, _MODULE_ROUNDS),
                    request.seconds * _MODULE_SHARE,
                    request.seed,
                    lambda share: progress(f"{where}: modules", 0.9 + 0.1 * share),
                )
    variants = [
        Variant(
            name=way.name,
            memory_format=way.memory_format,
            isolation=way.isolation,
            lines=lines[way.name],
            unseen=list(traces[way.name].unseen),
            memory=memories[way.name],
            times=times.get(way.name),
            modules=modules.get(way.name, []),
        )
        for way in ways
    ]
    ratios = _ratios(variants, times, request) if times else []
    comparison = Comparison(
        workload=workload.name,
        device=device,
        variants=variants,
        ratios=ratios,
        noise=_noise(variants[0], times, request) if times else None,
        hardened=hardened,
        has_formats=any(step.has_formats for step in steps.values()),
    )
    channels_last = next(way for way in ways if way.memory_format == "NHWC")
    return comparison, traces[channels_last.name]


def _running(
    request: Request, workload: Workload, device: str, ways: list[_Way]
) -> tuple[dict[str, Step], str | None]:
    """Steps that have run, and what would have happened to them had they not been hardened."""
    hardened = _built_in_hazard(workload, device)
    try:
        return _tried(request, workload, device, ways), hardened
    except HazardError as error:
        hardened = _hazard_named(error)
    for model in workload.models.values():
        workload.hardened.append(harden(model))
    try:
        return _tried(request, workload, device, ways), hardened
    except HazardError as error:
        raise ProfileError(
            f"{workload.name} can't be measured on {device}, not even hardened: {error}"
        ) from error


def _tried(request: Request, workload: Workload, device: str, ways: list[_Way]) -> dict[str, Step]:
    """Steps that have run twice; a call that would crash the process raises a HazardError."""
    steps: dict[str, Step] = {}
    for way in ways:
        steps[way.name] = _tried_step(request, workload, device, way, ran_before=bool(steps))
    return steps


def _tried_step(request: Request, workload: Workload, device: str, way: _Way, ran_before: bool) -> Step:
    reseed(request.seed)
    try:
        step = _step(request, workload, device, way)
    except ProfileError as error:
        raise ProfileError(f"{workload.name}: {error}") from error
    except USER_ERRORS as error:
        raise ProfileError(
            f"{workload.name} can't be put on {device}: {described(error)}{_remedy(request, workload, error)}"
        ) from error
    only_channels_last = ran_before and way.memory_format == "NHWC"
    guarded = _guarded(request, workload, device, only_channels_last=only_channels_last)
    with guarded, hazard_guard(_hazards_on(step.device.type)):
        step()
        step()
    return step


def _alike(request: Request, measured: Callable[[Step], _T], step: Step) -> _T:
    """From the same random state for every variant."""
    reseed(request.seed)
    return measured(step)


@contextmanager
def _guarded(
    request: Request, workload: Workload, device: str, when: str = "", *, only_channels_last: bool = False
) -> Iterator[None]:
    """What the model raises becomes a ProfileError; what we do wrong doesn't."""
    try:
        yield
    except NoGradientError as error:
        raise ProfileError(
            f"nothing that {workload.name} returns needs a gradient: measure it with --inference"
        ) from error
    except StepError as error:
        cause = error.__cause__ or error
        if only_channels_last:
            said = (
                f"{workload.name} runs in NCHW on {device}, but in channels_last it raised {described(cause)}"
            )
        else:
            said = f"{workload.name} raised {described(cause)} on {device} {workload.with_inputs}"
        after = f", {when}" if when else ""
        done = _remedy(request, workload, cause, only_channels_last, only_later=bool(when))
        raise ProfileError(f"{said}{after}{done}") from error


def _remedy(
    request: Request,
    workload: Workload,
    error: BaseException,
    only_channels_last: bool = False,
    only_later: bool = False,
) -> str:
    options = {"--dtype": request.dtype, "--autocast": request.autocast}
    return remedy(
        error,
        own_inputs=request.target is None or workload.own_inputs,
        precision=[f"{option} {value}" for option, value in options.items() if value is not None],
        only_channels_last=only_channels_last,
        only_later=only_later,
    )


def _step(request: Request, workload: Workload, device: str, way: _Way) -> Step:
    step = Step(
        workload.models[way.isolation],
        workload.inputs,
        device,
        channels_last=way.memory_format == "NHWC",
        training=request.training,
        dtype=None if request.dtype is None else getattr(torch, request.dtype),
        autocast=None if request.autocast is None else getattr(torch, request.autocast),
        compiled=request.compiled,
        keywords=workload.keywords,
    )
    workload.hardened.append(step.model)  # if its original is
    return step


def _hazards_on(kind: str) -> list[str]:
    """Those that crash or corrupt on a kind of device; a guard against others would only slow operators down."""
    return [
        hazard.id
        for hazard in HAZARDS.values()
        if hazard.consequence in (Consequence.CRASH, Consequence.WRONG_NUMBERS)
        and kind in (hazard.devices or (kind,))
    ]


def _hazard_named(error: HazardError) -> str:
    hazard = HAZARDS[error.hazard]
    where = "" if error.location is None else f" at {error.location}"
    return f"{hazard.title}{where} ({hazard.id}: {hazard.consequence.value}); every variant was cured of it by esper_guard.harden"


def _built_in_hazard(workload: Workload, device: str) -> str | None:
    """What SeedSlot cures without being asked."""
    hazard = HAZARDS["group-norm-null-write"]
    slotted = next(iter(workload.models)) in ISOLATIONS
    norms = any(
        isinstance(part, nn.GroupNorm) for model in workload.models.values() for part in model.modules()
    )
    if slotted and norms and torch.device(device).type in (hazard.devices or ()) and hazard.affects():
        return f"{hazard.title} (torch {torch.__version__}); SeedSlot hardens its seed against that"
    return None


def _ratios(variants: list[Variant], times: dict[str, Times], request: Request) -> list[Ratio]:
    """Each variant against the first, and each way of isolation against the first one in the same memory format."""
    pairs = [(variant.name, variants[0].name) for variant in variants[1:]]
    for variant in variants:
        ours = next(other for other in variants if other.memory_format == variant.memory_format)
        if variant is not ours and (variant.name, ours.name) not in pairs:
            pairs.append((variant.name, ours.name))
    return [_ratio(name, to, part, times, request) for name, to in pairs for part in _parts(request)]


def _noise(first: Variant, times: dict[str, Times], request: Request) -> Noise:
    again = _ratio(f"{first.name} {AGAIN}", first.name, "step", times, request)
    return noise_of(again, times[again.variant].step)


def _ratio(name: str, to: str, part: Part, times: dict[str, Times], request: Request) -> Ratio:
    return paired_ratio(name, to, part, times[name].of(part), times[to].of(part))


def _parts(request: Request) -> tuple[Part, ...]:
    return ("step", "forward", "backward") if request.training else ("step",)
