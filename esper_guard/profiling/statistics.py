"""Medians, their intervals, and what of a difference is noise. Needs no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

from esper_guard.profiling.result import Noise, Part, Ratio, Spread

FEWEST_ROUNDS: Final = 6
"""The 95 % interval of a median of fewer values would have to be wider than all of them."""
QUIET: Final = 0.05
"""A noise floor above this is worth a warning."""
_TAIL: Final = 0.025
"""On either side of a 95 % interval."""


def spread(samples: Sequence[float]) -> Spread:
    """The median and the quartiles."""
    if len(samples) < 2:
        return Spread(median=samples[0], low=samples[0], high=samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median=median, low=low, high=high)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Two of the values that have the median between them with at least 95 % confidence, whatever is distributed how.

    Each value lies below the median with probability 1/2, so how many do is a binomial number (the interval of the sign
    test). Of fewer than 6 values the lowest and the highest, which is less than 95 %.
    """
    ordered = sorted(values)
    number = len(ordered)
    below = outside = 0
    while outside + math.comb(number, below) <= _TAIL * 2**number:
        outside += math.comb(number, below)
        below += 1
    left_out = max(0, below - 1)
    return ordered[left_out], ordered[-1 - left_out]


def paired_ratio(variant: str, to: str, part: Part, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of samples that were taken in the same rounds, so that what slows a whole round down cancels out.

    Args:
        variant: whose times are ``ours``, in seconds.
        to: whose times are ``theirs``.
        part: of the step.
        ours: one sample for each round.
        theirs: as many.
    """
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    low, high = median_interval(ratios)
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
