"""What is written instead of an operator gives the same values and gradients, and keeps channels_last.

The table is esper_guard/remedies.py.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as users write it
from torch import Tensor

from esper_guard import LayoutEvent, layout_of, trace_layouts
from esper_guard.operator_table import OPERATORS
from esper_guard.operators import remedy_for
from esper_guard.remedies import REMEDIES, Remedy
from tests.runtime.test_operators import laid_out, operands

pytestmark = pytest.mark.skipif(
    not str(torch.__version__).startswith("2.13.0"), reason="measured with torch 2.13.0"
)
SIZES = {"C": 4, "H": 6, "W": 6}


def names_for(remedy: Remedy) -> dict[str, Any]:
    """What its expressions are evaluated with; the gradient of ``x`` is wanted."""
    names = operands("channels_last", "nchw")
    around = torch.arange(-1, 7) % 6
    weight = torch.rand(3, 144) if "linear" in remedy.lost else torch.rand(4, 6, 6)
    names |= {
        **SIZES,
        "index": names["idx"],
        "indices": names["j"] % 4,
        "mask": laid_out(names["m"], "channels_last"),
        "mask_nchw": names["m"],
        "values": laid_out(names["y"], "channels_last"),
        "source": laid_out(names["y"][:, :3], "channels_last"),
        "j_last": laid_out(names["j"], "channels_last"),
        "numbers": names["g"],
        "rows": around,
        "columns": around,
        "value": 0.5,
        "base": 3.0,
        "weight": weight,
        "weight_hwc": weight.unflatten(-1, (4, 6, 6)).permute(0, 2, 3, 1).flatten(1)
        if weight.dim() == 2
        else weight.permute(1, 2, 0).contiguous(),
    }
    names["x"].requires_grad_()
    names["y_last"] = laid_out(names["y"], "channels_last")
    return names


def run(remedy: Remedy, call: str) -> tuple[Tensor, Tensor | None, list[LayoutEvent]]:
    """The result, the gradient of ``x``, and what changed a format."""
    names = names_for(remedy)
    with warnings.catch_warnings(), trace_layouts("deep") as trace:
        warnings.simplefilter("ignore")
        result: Tensor = eval(call, names)
        if result.requires_grad:
            real = result.abs() if result.is_complex() else result
            real.backward(torch.ones_like(real))
    return result.detach(), names["x"].grad, [event for event in trace.events if event.changes_format]


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda one: f"{one.name}, {one.when}")
def test_what_is_written_instead(remedy: Remedy) -> None:
    result, gradient, events = run(remedy, remedy.lost)
    assert [event for event in events if event.leaves_channels_last and event.phase == "forward"]
    same, same_gradient, left = run(remedy, remedy.instead)
    assert left == []
    torch.testing.assert_close(same, result)
    assert (gradient is None) is (same_gradient is None)
    if gradient is not None:
        torch.testing.assert_close(same_gradient, gradient, rtol=1e-4, atol=1e-5)
    assert same.dim() < 4 or layout_of(same).taken_for == "channels_last"


def test_a_mask_of_one_channel() -> None:
    x = torch.rand(2, 4, 6, 6).to(memory_format=torch.channels_last)
    mask = torch.rand(2, 1, 6, 6) > 0.5
    with trace_layouts("deep") as trace:
        filled = torch.where(mask, 0.5, x)
    assert not trace.events
    assert torch.equal(filled, x.masked_fill(mask, 0.5))


def test_along_positions_as_well() -> None:
    x = torch.rand(2, 4, 6, 6).to(memory_format=torch.channels_last)
    with trace_layouts("deep") as trace:
        soft = F.softmax(x.permute(0, 2, 3, 1), 1).permute(0, 3, 1, 2)
    assert not trace.events
    torch.testing.assert_close(soft, F.softmax(x, 2))


def test_each_is_of_an_operator_that_loses_something() -> None:
    cases = {(case.name, case.when) for case in OPERATORS}
    assert {(remedy.name, remedy.when) for remedy in REMEDIES} <= cases
    assert len({(remedy.name, remedy.when) for remedy in REMEDIES}) == len(REMEDIES)


@pytest.mark.parametrize(
    ("operator", "line", "said"),
    [
        ("aten._softmax.default", "x.softmax(1)", "F.softmax(x.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2) (along channels)"),
        ("aten._softmax.default", "nn.functional.softmin(x, 1)", "F.softmin(x.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2) (along channels)"),
        ("aten.mul.Tensor", "y * x", "put the channels_last operand first, or convert the other one once, where it is made"),
        ("aten.sub.Tensor", "y - x", "convert the other operand to channels_last once, where it is made"),
        ("aten.pow.Tensor_Tensor", "y ** x", "convert the other operand to channels_last once, where it is made"),
        ("aten.pow.Scalar", "2 ** x", "torch.pow(torch.tensor(base), x)"),
        ("aten.index.Tensor", "x[:, kept]", "x.permute(0, 2, 3, 1)[..., index].permute(0, 3, 1, 2) (along channels)"),
        ("aten.clone.default", "x.flatten(1)", "before a Linear: x.permute(0, 2, 3, 1).flatten(1) (with the columns of its weight reordered to match, once)"),
        ("aten.clone.default", "x.reshape(len(x), -1)", "before a Linear: x.permute(0, 2, 3, 1).flatten(1) (with the columns of its weight reordered to match, once)"),
        ("aten.clone.default", "x.reshape(n, c // 2, 2, h, w)", None),
        ("aten.clone.default", "", None),
        ("aten.clone.default", "F.instance_norm(x)", None),
        ("aten.grid_sampler_2d.default", "F.grid_sample(x, grid)", None),
        ("aten.relu.default", "x.relu()", None),
        ("mine.own.default", "", None),
    ],
)  # fmt: skip
def test_what_is_said_of_an_operator(operator: str, line: str, said: str | None) -> None:
    assert remedy_for(operator, "cpu", line) == said


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert remedy_for("aten._softmax.default", "cuda:0", "x.softmax(1)") is None
