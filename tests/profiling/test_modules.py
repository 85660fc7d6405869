"""Which module the time is put down to."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from esper_guard.profiling.module_times import NO_MODULE, module_times
from esper_guard.profiling.result import ModuleTime
from esper_guard.profiling.step import Step
from tests.profiling.made_up import line


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(256, 256)
        self.block = nn.Sequential(nn.Linear(256, 256), nn.ReLU(inplace=True))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.first(x)).softmax(1)


class Recomputing(Nested):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)


def times(model: nn.Module, training: bool = True) -> dict[str, ModuleTime]:
    step = Step(model, (torch.randn(64, 256),), "cpu", channels_last=False, training=training)
    step()
    shares: list[float] = []
    found = module_times(
        {"variant": step}, {"variant": [line(module="first", bytes=512)]}, 3, 1.0, 0, shares.append
    )
    assert shares == [1 / 3, 2 / 3, 1.0]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in step.model.modules())
    return {time.module: time for time in found["variant"]}


def test_forward_and_backward_of_each_module() -> None:
    found = times(Nested())
    kinds = {name: time.kind for name, time in found.items() if time.kind}
    assert kinds == {
        "Nested": "Nested", "first": "Linear", "block": "Sequential", "block.0": "Linear", "block.1": "ReLU"
    }  # fmt: skip
    for name in ("Nested", "first", "block.0", "block.1"):
        assert found[name].forward.median > 0, name
        assert found[name].backward.median > 0, name
        assert found[name].forward.low <= found[name].forward.median <= found[name].forward.high
    assert found["block"].backward.median == 0  # it computes nothing itself
    assert found["first"].copied == 512
    assert (
        found["block.0"].backward.median > found["block.1"].backward.median
    )  # two products of matrices, and a mask


def test_inference_has_no_backward() -> None:
    found = times(Nested(), training=False)
    assert all(time.backward.median == 0 for name, time in found.items() if name != NO_MODULE)
    assert found["first"].forward.median > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_forward_belongs_to_the_backward_of_its_module(reentrant: bool) -> None:
    plain, recomputing = times(Nested()), times(Recomputing(reentrant))
    none = recomputing[NO_MODULE].backward.median if NO_MODULE in recomputing else 0
    assert recomputing["block.0"].backward.median > none
    assert set(recomputing) - {"Recomputing"} <= set(plain) | {NO_MODULE}
