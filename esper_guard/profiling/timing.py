"""How long the variants of a comparison take, measured in turn."""

from __future__ import annotations

import random
import time
import timeit
from collections.abc import Callable, Mapping
from typing import Final

from torch.utils import benchmark

from esper_guard.profiling.random_state import reseed
from esper_guard.profiling.result import Times
from esper_guard.profiling.statistics import FEWEST_ROUNDS
from esper_guard.profiling.step import Step

SAMPLE_SECONDS: Final = 0.02
MOST_ROUNDS: Final = 200
_LONGEST_SAMPLE: Final = 0.2
_WARM_UP_STEPS: Final = 2


def time_steps(
    steps: Mapping[str, Step],
    rounds: int | None,
    seconds: float,
    seed: int,
    progress: Callable[[float], None],
) -> dict[str, Times]:
    """One sample of each variant in each round, in a new random order in each.

    A sample is as many steps as take the fastest variant 20 ms, and none more than 0.2 s, at least one; its time is
    their mean. All samples of a round begin with the same random state, and each round with another, so that a model
    that draws numbers does the same work in every variant. Forward and backward are timed alternately, each by a
    timer of the standard library with the clock of `torch.utils.benchmark`, which waits for the accelerator. (That
    package's own ``Timer.timeit`` runs the statement at least twice before it reads the clock, and a backward can run
    once only.) So the backward belongs to the very forward before it; nothing is subtracted, and no graph is kept for
    a second backward, which compiled code would refuse.
    Freeing the graph counts to the backward, setting gradients to None counts to neither.

    The step on the CPU is the sum of the halves. An accelerator may work on one half while the other is being launched, so
    that there whole steps are timed besides, one after the other.

    Args:
        steps: by the name of the variant.
        rounds: how many; None: as many as fit into ``seconds``, from 6 to 200.
        seconds: the time to spend if ``rounds`` is None.
        seed: of the orders, and of what the model draws.
        progress: is told the share that is done.

    Raises:
        StepError: a step raised something; see `Step`, also for what else there is.
    """
    samplers = {name: _Sampler(step) for name, step in steps.items()}
    order, shuffle = list(samplers), random.Random(seed).shuffle
    begin = time.perf_counter()
    taken = []
    for sampler in samplers.values():
        reseed(seed)
        taken.append(sampler.warm_up())
    number = max(1, round(min(SAMPLE_SECONDS / min(taken), _LONGEST_SAMPLE / max(taken))))
    done = 0
    while not _is_over(done, rounds, seconds, time.perf_counter() - begin):
        shuffle(order)
        for name in order:
            reseed(seed + done)
            samplers[name].sample(number)
        done += 1
        spent = (time.perf_counter() - begin) / seconds
        progress(min(1.0, done / rounds if rounds is not None else spent))
    return {name: sampler.times for name, sampler in samplers.items()}


def _is_over(done: int, rounds: int | None, seconds: float, spent: float) -> bool:
    if rounds is not None:
        return done >= rounds
    return done >= MOST_ROUNDS or (done >= FEWEST_ROUNDS and spent * (done + 1) / max(done, 1) > seconds)


class _Sampler:
    """Of one variant."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._forward = timeit.Timer(step.forward, timer=benchmark.timer)
        self._backward = timeit.Timer(step.backward, timer=benchmark.timer)
        self._whole = timeit.Timer(step, timer=benchmark.timer)
        self.times = Times(forward=[], backward=[], step=[])

    def warm_up(self) -> float:
        """Run a little, and return the seconds that a step takes."""
        for _ in range(_WARM_UP_STEPS):
            taken = self._whole.timeit(1)
        return max(taken, 1e-6)

    def sample(self, number: int) -> None:
        """One sample of each part, of that many steps."""
        forward = backward = 0.0
        for _ in range(number):
            self._step.forget()
            forward += self._forward.timeit(1)
            if self._step.training:
                backward += self._backward.timeit(1)
        self.times.forward.append(forward / number)
        if self._step.training:
            self.times.backward.append(backward / number)
        if self._step.device.type == "cpu":
            self.times.step.append((forward + backward) / number)
        else:
            self.times.step.append(self._whole.timeit(number) / number)
