"""What a checked call costs, beside a bare assertion and the type checkers that people use.

    python benchmarks/expects.py [--rounds 15]

Needs beartype and jaxtyping (the "dev" extra). Each function takes one tensor and returns it; all check that it is
channels_last, and are measured in turn, round by round, in one process and one thread.
"""

from __future__ import annotations

import argparse
import os
import timeit
from collections.abc import Callable
from typing import Annotated

import torch
from beartype import beartype
from beartype.vale import Is
from jaxtyping import Float, jaxtyped
from paired import Case, interleave, ratio, table
from torch import Tensor

from esper_guard import ChannelsLast, expects

channels_last = torch.channels_last


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def undecorated(x):  # type: ignore[no-untyped-def]
    return x


def bare(x):  # type: ignore[no-untyped-def]
    assert x.is_contiguous(memory_format=torch.channels_last)
    return x


@expects(x="channels_last")
def ours(x):  # type: ignore[no-untyped-def]
    return x


@expects
def ours_annotated(x: ChannelsLast):  # type: ignore[no-untyped-def]
    return x


@expects(x="channels_last", returns="channels_last")
def ours_both(x):  # type: ignore[no-untyped-def]
    return x


@expects(x="channels_last", returns="same as x")
def ours_same(x):  # type: ignore[no-untyped-def]
    return x


@expects(x="channels_last", ambiguous="reject")
def ours_strict(x):  # type: ignore[no-untyped-def]
    return x


@expects(x="channels_last")
def ours_container(x):  # type: ignore[no-untyped-def]
    return x


@beartype
def with_beartype(x: Annotated[Tensor, Is[is_channels_last]]):  # type: ignore[no-untyped-def]
    return x


@beartype
def with_beartype_ours(x: ChannelsLast):  # type: ignore[no-untyped-def]
    return x


@jaxtyped(typechecker=beartype)
def with_both(x: Annotated[Float[Tensor, "n c h w"], Is[is_channels_last]]):  # type: ignore[no-untyped-def]
    return x


def case(function: Callable[..., object], argument: object) -> Case:
    return Case(timeit.Timer("f(x)", globals={"f": function, "x": argument}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    container = [x, {"a": x, "b": [x, x]}]
    cases = {
        "undecorated": case(undecorated, x),
        "bare assert": case(bare, x),
        '@expects(x="channels_last")': case(ours, x),
        "@expects, x: ChannelsLast": case(ours_annotated, x),
        "beartype": case(with_beartype, x),
        "beartype, x: ChannelsLast": case(with_beartype_ours, x),
        "jaxtyping + beartype": case(with_both, x),
        "argument and result": case(ours_both, x),
        'returns="same as x"': case(ours_same, x),
        'ambiguous="reject"': case(ours_strict, x),
        "a container of 4 tensors": case(ours_container, container),
    }
    print(f"torch {torch.__version__}, {os.cpu_count()} processors, {arguments.rounds} rounds")
    seconds = interleave(cases, arguments.rounds)
    assertion = seconds["bare assert"]
    rows = [
        [name, f"{sorted(times)[len(times) // 2] * 1e9:.0f}", str(ratio(times, assertion))]
        for name, times in seconds.items()
    ]
    table("Time of a call", ["function", "ns", "ratio to the bare assert"], rows)


if __name__ == "__main__":
    main()
