"""Medians, their intervals, and what of a difference is noise. Needs no torch."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Final

from esper_guard.profiling.result import Noise, Part, Ratio, Spread

FEWEST_ROUNDS: Final = 6
"""The 95 % interval of a median of fewer values would have to be wider than all of them."""
QUIET: Final = 0.05
"""A noise floor above this is worth a warning."""
_RESAMPLES: Final = 1000


def spread(samples: Sequence[float]) -> Spread:
    """The median and the quartiles."""
    if len(samples) < 2:
        return Spread(median=samples[0], low=samples[0], high=samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median=median, low=low, high=high)


def median_interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the median; the same for the same seed."""
    generator = random.Random(seed)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    tail = _RESAMPLES * 25 // 1000
    return medians[tail], medians[-1 - tail]


def paired_ratio(
    variant: str, to: str, part: Part, ours: Sequence[float], theirs: Sequence[float], seed: int
) -> Ratio:
    """Of samples that were taken in the same rounds, so that what slows a whole round down cancels out.

    Args:
        variant: whose times are ``ours``, in seconds.
        to: whose times are ``theirs``.
        part: of the step.
        ours: one sample for each round.
        theirs: as many.
        seed: of the resampling.
    """
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    low, high = median_interval(ratios, seed)
    return Ratio(variant=variant, to=to, part=part, median=statistics.median(ratios), low=low, high=high)


def noise_of(again: Ratio, samples: list[float]) -> Noise:
    """What the ratio of a variant to itself says about the machine: the far end of its interval is the floor.

    Args:
        again: the ratio.
        samples: the seconds of the variant that was measured again, one for each round.
    """
    floor = max(again.high, 1 / again.low) - 1
    return Noise(ratio=again, floor=floor, rounds=len(samples), samples=samples)


def is_quiet(noise: Noise) -> bool:
    """Whether the machine can tell differences of 5 %, and found none between the same code and itself."""
    return noise.floor <= QUIET and noise.ratio.low <= 1 <= noise.ratio.high


def is_slower(ratio: Ratio, noise: Noise) -> bool:
    """Whether the whole interval lies above what noise makes."""
    return noise.rounds >= FEWEST_ROUNDS and ratio.low > 1 + noise.floor


def is_faster(ratio: Ratio, noise: Noise) -> bool:
    """Whether the whole interval lies below what noise makes."""
    return noise.rounds >= FEWEST_ROUNDS and ratio.high < 1 / (1 + noise.floor)
