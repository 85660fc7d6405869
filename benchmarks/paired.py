"""Variants timed in turn, in a new random order in each round, and compared as ratios."""

from __future__ import annotations

import random
import statistics
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

SAMPLE_SECONDS = 0.02


class Ratio(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass
class Case:
    timer: timeit.Timer
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


def interleave(cases: dict[str, Case], rounds: int) -> dict[str, list[float]]:
    """Seconds for each case and round."""
    order, shuffle = list(cases), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in order}
    numbers = dict.fromkeys(order, 1)
    for name, case in cases.items():
        with case.within():
            case.timer.timeit(1)
            while (taken := case.timer.timeit(numbers[name])) < SAMPLE_SECONDS:
                numbers[name] = max(numbers[name] + 1, int(SAMPLE_SECONDS / max(taken, 1e-9) * numbers[name]))
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            with cases[name].within():
                times[name].append(cases[name].timer.timeit(numbers[name]) / numbers[name])
    return times


def ratio(ours: list[float], theirs: list[float], deviations: float = 1.96) -> Ratio:
    """The interval is 95 % by default; 3.29 standard deviations make it 99.9 %."""
    values = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    rank = max(
        0, int((len(values) - deviations * len(values) ** 0.5) / 2)
    )  # the binomial interval of a median
    return Ratio(statistics.median(values), values[rank], values[-1 - rank])


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n")
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |", flush=True)
