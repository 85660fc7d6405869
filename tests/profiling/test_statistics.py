"""Intervals, noise, and what is claimed."""

from __future__ import annotations

import math
import random

import pytest

from esper_guard.profiling.result import Noise, Ratio
from esper_guard.profiling.statistics import (
    is_faster,
    is_quiet,
    is_slower,
    median_interval,
    noise_of,
    paired_ratio,
    spread,
)


def test_a_spread() -> None:
    found = spread([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    alone = spread([7.0])
    assert (alone.low, alone.median, alone.high) == (7.0, 7.0, 7.0)


@pytest.mark.parametrize("rounds", [6, 7, 13, 25, 60])
def test_the_interval_covers_the_median_as_often_as_it_says(rounds: int) -> None:
    """Of a skewed distribution, too."""
    generator = random.Random(rounds)
    covered = 0
    for _ in range(2000):
        low, high = median_interval([generator.expovariate(math.log(2)) for _ in range(rounds)])
        covered += low <= 1 <= high
    assert 0.94 <= covered / 2000 <= 0.99


def test_the_interval_of_six_values_is_all_of_them() -> None:
    assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert median_interval([float(value) for value in range(9)]) == (1.0, 7.0)
    assert median_interval([2.0, 1.0]) == (1.0, 2.0)


def test_what_slows_a_whole_round_down_cancels_out() -> None:
    base = [1.0, 5.0, 1.0, 9.0, 2.0, 1.0, 7.0]
    ratio = paired_ratio("a", "b", "step", [0.8 * time for time in base], base)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((0.8, 0.8, 0.8))


def ratio(low: float, high: float) -> Ratio:
    return Ratio(variant="a", to="b", part="step", median=(low + high) / 2, low=low, high=high)


def noise(low: float, high: float, rounds: int = 20) -> Noise:
    return noise_of(ratio(low, high), [1.0] * rounds)


def test_the_floor_is_the_far_end_of_the_same_code_against_itself() -> None:
    assert noise(0.99, 1.03).floor == pytest.approx(0.03)
    assert noise(0.8, 1.03).floor == pytest.approx(0.25)


def test_what_is_quiet() -> None:
    assert is_quiet(noise(0.98, 1.02))
    assert not is_quiet(noise(0.9, 1.02))
    assert not is_quiet(noise(1.01, 1.02))


@pytest.mark.parametrize(
    ("found", "of_noise", "faster", "slower"),
    [
        ((0.70, 0.75), (0.98, 1.02), True, False),
        ((1.10, 1.20), (0.98, 1.02), False, True),
        ((0.97, 0.99), (0.96, 1.02), False, False),
        ((0.90, 1.10), (0.98, 1.02), False, False),
        ((1.01, 1.20), (0.98, 1.02), False, False),
        ((0.70, 0.75), (0.50, 1.02), False, False),
    ],
)
def test_a_difference_has_to_exceed_the_noise(
    found: tuple[float, float], of_noise: tuple[float, float], faster: bool, slower: bool
) -> None:
    assert is_faster(ratio(*found), noise(*of_noise)) == faster
    assert is_slower(ratio(*found), noise(*of_noise)) == slower


def test_too_few_rounds_claim_nothing() -> None:
    assert is_faster(ratio(0.5, 0.6), noise(1.0, 1.0, rounds=6))
    assert not is_faster(ratio(0.5, 0.6), noise(1.0, 1.0, rounds=5))
    assert not is_slower(ratio(1.5, 1.6), noise(1.0, 1.0, rounds=5))
