"""Results that nobody measured."""

from __future__ import annotations

from esper_guard.profiling.result import (
    Comparison,
    LineCost,
    Machine,
    Memory,
    Profile,
    Ratio,
    Settings,
    Times,
    Variant,
)
from esper_guard.profiling.statistics import noise_of

MACHINE = Machine(
    esper_guard="0",
    torch="2.13.0",
    python="3.11",
    platform="Linux",
    threads=4,
    devices={"cpu": "A CPU", "cuda:0": "A GPU"},
)


def settings(**changes: object) -> Settings:
    values: dict = {
        "command": "esper-guard profile m:f",
        "target": "m:f",
        "training": True,
        "inputs": ["8x3x32x32 float32"],
        "dtype": None,
        "autocast": None,
        "compiled": False,
        "seed": 0,
        "timed": True,
    }
    return Settings(**{**values, **changes})


def line(**changes: object) -> LineCost:
    values: dict = {
        "kind": "hidden",
        "operator": "aten.clone.default",
        "phase": "forward",
        "source_format": "channels_last",
        "result_format": "nchw",
        "shape": (8, 16, 32, 32),
        "dtype": "float32",
        "bytes": 2**19,
        "count": 1,
        "changes_format": True,
        "file": "model.py",
        "line": 7,
        "text": "x = x.reshape(8, -1)",
        "module": "head",
        "parameter": None,
    }
    return LineCost(**{**values, **changes})


def variant(
    name: str, lines: list[LineCost] | None = None, seconds: float | None = None, **changes: object
) -> Variant:
    memory_format, _, isolation = name.partition(" ")
    values: dict = {
        "name": name,
        "memory_format": memory_format,
        "isolation": isolation or None,
        "lines": lines or [],
        "unseen": [],
        "memory": Memory(forward=2**20, backward=2**21, peak=2**20),
        "times": None
        if seconds is None
        else Times(forward=[seconds], backward=[seconds], step=[2 * seconds]),
    }
    return Variant(**{**values, **changes})


def ratio(name: str, to: str, low: float, high: float) -> Ratio:
    return Ratio(variant=name, to=to, part="step", median=(low + high) / 2, low=low, high=high)


def comparison(
    variants: list[Variant],
    ratios: list[Ratio] | None = None,
    noise: tuple[float, float] | None = (0.99, 1.01),
    rounds: int = 20,
    device: str = "cpu",
    **changes: object,
) -> Comparison:
    found = None
    if noise is not None:
        found = noise_of(ratio(f"{variants[0].name} again", variants[0].name, *noise), [1.0] * rounds)
    values: dict = {
        "workload": "m:f",
        "device": device,
        "variants": variants,
        "ratios": ratios or [],
        "noise": found,
    }
    return Comparison(**{**values, **changes})


def profile(*comparisons: Comparison, **changes: object) -> Profile:
    return Profile(machine=MACHINE, settings=settings(**changes), comparisons=list(comparisons))
