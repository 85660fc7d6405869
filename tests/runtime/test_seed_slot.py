"""SeedSlot: stages, gradients, formats and bytes, and everything that people do to a module."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from esper_guard import (
    HAZARDS,
    FeatureGate,
    IllegalTransitionError,
    SeedSlot,
    SeedStage,
    is_hardened,
    layout_of,
)
from tests.runtime.test_isolation import COPYING, like, make

LEGAL = {
    "dormant": ["germinated"],
    "germinated": ["training", "pruned"],
    "training": ["blending", "pruned"],
    "blending": ["holding", "pruned"],
    "holding": ["fossilized", "blending", "pruned"],
    "fossilized": [],
    "pruned": ["embargoed"],
    "embargoed": ["resetting"],
    "resetting": ["dormant"],
}
ACTIVE = ["training", "blending", "holding", "fossilized"]
INACTIVE = ["dormant", "germinated", "pruned", "embargoed", "resetting"]
BLENDS = ["add", "multiply", "gate"]

each_active_stage = pytest.mark.parametrize("stage", ACTIVE)
each_blend = pytest.mark.parametrize("blend", BLENDS)
each_format = pytest.mark.parametrize("format", ["nchw", "channels_last"])


def conv(channels: int = 4) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1).double()


def slot_at(
    stage: str, seed: nn.Module | None = None, blend: Any = "add", channels: int = 4, **options: Any
) -> SeedSlot:
    """A slot that went to a stage by the shortest way."""
    slot = SeedSlot(blend=blend, **options)
    if stage == "dormant":
        return slot
    gate = FeatureGate(channels).double() if blend == "gate" else None
    slot.germinate(conv(channels) if seed is None else seed, gate=gate)
    if stage in ("pruned", "embargoed", "resetting"):
        slot.prune()
    while slot.stage.value != stage:
        slot.advance()
    return slot


def by_hand(slot: SeedSlot, host: Tensor, seed_features: Tensor, seed_input: Tensor) -> Tensor:
    """What the slot has to return, in plain torch."""
    if slot.stage is SeedStage.TRAINING and slot.alpha == 0:
        return host + (seed_features - seed_features.detach())
    if slot.blend == "multiply":
        return host * (1 + slot.alpha * torch.tanh(seed_features - seed_input))
    if slot.blend == "gate":
        assert slot.gate is not None
        return torch.lerp(host, seed_features, slot.alpha * slot.gate(seed_input).clamp(0, 1))
    return torch.lerp(host, seed_features, slot.alpha)


def formula(slot: SeedSlot, host: Tensor) -> Tensor:
    assert slot.seed is not None
    seed_input = host.detach() if slot.isolate_gradients else host
    return by_hand(slot, host, slot.seed(seed_input), seed_input)


def gradients(result: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(result, inputs, like(result).fill_(0.5), allow_unused=True)


def state_of(slot: SeedSlot) -> tuple[Any, ...]:
    weights = [parameter.detach().clone() for parameter in slot.parameters()]
    return slot.stage, slot.alpha, slot.blend, slot.isolate_gradients, slot.seed, slot.gate, weights


def assert_unchanged(slot: SeedSlot, before: tuple[Any, ...]) -> None:
    *now, weights = state_of(slot)
    assert now == list(before[:-1])
    assert all(map(torch.equal, weights, before[-1]))


# Stages


@pytest.mark.parametrize("wanted", LEGAL)
@pytest.mark.parametrize("stage", LEGAL)
def test_a_slot_goes_where_it_may_and_nowhere_else(stage: str, wanted: str) -> None:
    slot = slot_at(stage)
    before = state_of(slot)
    if wanted in LEGAL[stage]:
        result = slot.germinate(conv()) if wanted == "germinated" else slot.advance(wanted)
        assert result is slot
        assert slot.stage is SeedStage(wanted)
        assert slot.is_active == (wanted in ACTIVE)
        assert (slot.seed is None) == (wanted in ("dormant", "pruned", "embargoed", "resetting"))
        return
    with pytest.raises(IllegalTransitionError) as error:
        slot.advance(wanted)
    assert wanted in str(error.value)
    assert stage in str(error.value)
    assert all(legal in str(error.value) for legal in LEGAL[stage])
    assert_unchanged(slot, before)


def test_stages_go_by_name_and_by_member() -> None:
    slot = slot_at("germinated")
    assert slot.advance("TRAINING").stage is SeedStage.TRAINING
    assert slot.advance(SeedStage.BLENDING).stage is SeedStage.BLENDING
    for nonsense in ("flowering", 3, ""):
        with pytest.raises(ValueError, match=r"there is no stage .*; the stages are dormant, germinated"):
            slot.advance(nonsense)  # type: ignore[arg-type]
    assert slot.stage is SeedStage.BLENDING


def test_advancing_goes_to_the_end_and_then_stops() -> None:
    slot = SeedSlot().germinate(conv())
    assert [slot.advance().stage.value for _ in range(4)] == ACTIVE
    with pytest.raises(IllegalTransitionError, match="fossilized is final"):
        slot.advance()


def test_a_pruned_slot_advances_to_dormant_and_takes_another_seed() -> None:
    slot = slot_at("holding")
    assert slot.prune() is slot
    assert [slot.advance().stage.value for _ in range(3)] == ["embargoed", "resetting", "dormant"]
    with pytest.raises(IllegalTransitionError, match=r"call germinate\(seed\)"):
        slot.advance()
    with pytest.raises(IllegalTransitionError, match=r"call germinate\(seed\)"):
        slot.advance("germinated")
    assert slot.germinate(conv()).advance().stage is SeedStage.TRAINING


@pytest.mark.parametrize("stage", ["dormant", "fossilized", "pruned", "embargoed", "resetting"])
def test_what_cannot_be_pruned(stage: str) -> None:
    slot = slot_at(stage)
    with pytest.raises(IllegalTransitionError, match=f"pruned can't follow|{stage} is final"):
        slot.prune()
    assert slot.stage.value == stage


@pytest.mark.parametrize("stage", [stage for stage in LEGAL if stage != "dormant"])
def test_only_a_dormant_slot_germinates(stage: str) -> None:
    slot = slot_at(stage)
    before = state_of(slot)
    with pytest.raises(IllegalTransitionError, match=f"germinated can't follow|{stage} is final"):
        slot.germinate(conv())
    assert_unchanged(slot, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": torch.relu}, TypeError, "a seed is an nn.Module, not builtin_function_or_method"),
        ({"seed": nn.Conv2d}, TypeError, "a seed is an nn.Module, not type"),
        ({"seed": None}, TypeError, "a seed is an nn.Module, not NoneType"),
        ({"blend": "gate", "gate": torch.sigmoid}, TypeError, "a gate is an nn.Module"),
        ({"blend": "gate"}, ValueError, "the blend 'gate' needs gate="),
        ({"gate": nn.Identity()}, ValueError, "the blend 'add' takes no gate"),
        ({"blend": "multiply", "gate": nn.Identity()}, ValueError, "the blend 'multiply' takes no gate"),
        ({"blend": "mix"}, ValueError, "there is no blend 'mix'; the blends are add, multiply, gate"),
        ({"blend": []}, ValueError, r"there is no blend \[\]"),
    ],
)
def test_what_does_not_germinate_changes_nothing(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    slot = SeedSlot()
    with pytest.raises(error, match=message):
        slot.germinate(**{"seed": nn.Identity(), **arguments})
    assert_unchanged(slot, (SeedStage.DORMANT, 0.0, "add", True, None, None, []))


def test_a_slot_knows_its_blends() -> None:
    with pytest.raises(ValueError, match="there is no blend 'mix'"):
        SeedSlot(blend="mix")  # type: ignore[arg-type]
    assert SeedSlot(blend="multiply").germinate(conv()).blend == "multiply"
    assert SeedSlot().germinate(conv(), blend="multiply").blend == "multiply"
    assert SeedSlot().germinate(conv(), blend="gate", gate=FeatureGate(4)).gate is not None


def test_the_blend_can_be_set_where_the_seed_allows_it() -> None:
    slot = slot_at("blending")
    slot.blend = "multiply"
    assert slot.blend == "multiply"
    for blend, message in (("gate", "germinated without a gate"), ("mix", "there is no blend 'mix'")):
        with pytest.raises(ValueError, match=message):
            slot.blend = blend  # type: ignore[assignment]
    assert slot.blend == "multiply"
    gated = slot_at("blending", blend="gate")
    with pytest.raises(ValueError, match="germinated with a gate"):
        gated.blend = "add"
    gated.prune().blend = "add"
    assert gated.blend == "add"


def test_a_slot_shows_what_it_is() -> None:
    slot = slot_at("blending", blend="multiply", isolate_gradients=False).set_alpha(0.25)
    assert "stage=blending, alpha=0.25, blend=multiply, isolate_gradients=False" in repr(slot)


# Alpha


def test_alpha_is_clamped_and_never_nan() -> None:
    slot = slot_at("blending")
    for given, kept in ((0.3, 0.3), (-1, 0.0), (7, 1.0), (float("inf"), 1.0), (True, 1.0)):
        assert slot.set_alpha(given) is slot
        assert slot.alpha == kept
    with pytest.raises(ValueError, match="alpha is NaN"):
        slot.set_alpha(float("nan"))
    assert slot.alpha == 1.0


def test_stages_set_alpha() -> None:
    slot = SeedSlot().set_alpha(0.7).germinate(conv())
    assert slot.alpha == 0.0
    assert slot.advance("training").alpha == 0.0
    assert slot.advance("blending").set_alpha(0.4).alpha == 0.4
    assert slot.advance("holding").alpha == 1.0
    assert slot.advance("blending").alpha == 1.0
    slot.prune()
    assert slot.alpha == 0.0
    assert slot.seed is None
    assert slot.gate is None
    assert not list(slot.parameters())


@each_blend
@each_format
def test_training_at_alpha_0_is_the_host_and_teaches_the_seed(blend: str, format: str) -> None:
    slot, host = slot_at("training", blend=blend), make(format, 2, 4, 5, 6)
    assert slot.seed is not None
    result = slot(host)
    assert torch.equal(result, host)
    upstream = like(host)
    to_seed = torch.autograd.grad(result, [*slot.seed.parameters()], upstream)
    expected = torch.autograd.grad(slot.seed(host.detach()), [*slot.seed.parameters()], upstream)
    assert all(map(torch.equal, to_seed, expected))


def test_training_above_alpha_0_blends() -> None:
    slot, host = slot_at("training").set_alpha(0.25), make("nchw", 2, 4, 5, 6)
    assert slot.seed is not None
    assert torch.equal(slot(host), torch.lerp(host, slot.seed(host), 0.25))
    assert torch.equal(slot.set_alpha(0)(host), host)


def test_blending_at_alpha_0_does_not_teach_the_seed() -> None:
    slot, host = slot_at("blending"), make("nchw", 2, 4, 5, 6)
    result = slot(host)
    assert torch.equal(result, host)
    assert not any(g.any() for g in torch.autograd.grad(result.sum(), [*slot.parameters()]))


# Formats, copies and bytes: every stage, blend, kind of seed and format of the host


class Attention(nn.Module):
    """Attends over the positions of an image or a volume."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(channels, 2, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.flatten(2).transpose(1, 2)
        attended, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        return attended.transpose(1, 2).reshape(features.shape)


def _conv_of(rank: int, **options: Any) -> nn.Module:
    kind = {4: nn.Conv2d, 5: nn.Conv3d}[rank]
    return kind(4, 4, 3, padding=1, **options)


SEEDS: dict[str, Callable[[int], nn.Module]] = {
    "conv": _conv_of,
    "depthwise conv": lambda rank: _conv_of(rank, groups=4),
    "GroupNorm": lambda rank: nn.GroupNorm(2, 4),
    "attention": lambda rank: Attention(4),
    "MLP": lambda rank: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)),
}
HOSTS = {
    "NCHW": ("nchw", (2, 4, 5, 6)),
    "NHWC": ("channels_last", (2, 4, 5, 6)),
    "NCDHW": ("nchw", (2, 4, 2, 3, 4)),
    "NDHWC": ("channels_last", (2, 4, 2, 3, 4)),
    "tokens": ("nchw", (2, 5, 4)),
    "transposed tokens": ("transposed", (2, 5, 4)),
}
CASES = [
    (seed, host)
    for seed in SEEDS
    for host, (_, shape) in HOSTS.items()
    if (seed == "MLP") == (len(shape) == 3)
]


class Allocations(TorchDispatchMode):
    """The copies that operators make, and the bytes of all storages that they return anew."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        if func.overloadpacket in COPYING:
            self.copies.append(str(func))
        given = {x.untyped_storage().data_ptr() for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
                self.bytes += result.untyped_storage().nbytes()
        return results


def run(
    function: Callable[[Tensor], Tensor], host: Tensor, parameters: list[nn.Parameter]
) -> tuple[Tensor, Any, list[str], int]:
    """The result and its gradients, and which copies and how many bytes the two take."""
    upstream = like(host).fill_(0.5)
    with Allocations() as allocations:
        result = function(host)
        given = torch.autograd.grad(result, [host, *parameters], upstream, allow_unused=True)
    return result, given, allocations.copies, allocations.bytes


@each_active_stage
@each_blend
@pytest.mark.parametrize(("seed", "host"), CASES)
def test_format_in_is_format_out_and_costs_nothing(stage: str, blend: str, seed: str, host: str) -> None:
    format, shape = HOSTS[host]
    features, module = make(format, *shape), SEEDS[seed](len(shape)).double()
    slot = slot_at(stage, module, blend)
    if stage in ("blending", "fossilized"):
        slot.set_alpha(0.25)
    parameters = list(slot.parameters())

    result, given, copies, allocated = run(slot, features, parameters)
    assert result.stride() == features.stride()
    assert layout_of(result) == layout_of(features)

    expected, wanted, copies_by_hand, allocated_by_hand = run(
        lambda host: formula(slot, host), features, parameters
    )
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    torch.testing.assert_close(given, wanted, rtol=0, atol=0)
    assert copies == copies_by_hand
    assert allocated == allocated_by_hand

    _, _, copies_alone, _ = run(lambda host: module(host.detach()), features, list(module.parameters()))
    assert copies == copies_alone


@pytest.mark.parametrize("format", ["nchw", "channels_last"])
@pytest.mark.parametrize("stage", ["training", "blending"])
@each_blend
def test_the_profiler_sees_no_other_bytes_either(stage: str, blend: str, format: str) -> None:
    features, slot = make(format, 2, 4, 16, 16), slot_at(stage, blend=blend)

    def allocated(function: Callable[[Tensor], Tensor]) -> int:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profiler:
            run(function, features, list(slot.parameters()))
        events = profiler.profiler.kineto_results.events()
        return sum(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)

    allocated(slot)
    assert allocated(slot) == allocated(lambda host: formula(slot, host)) > 0


@pytest.mark.parametrize("stage", INACTIVE)
def test_an_inactive_slot_returns_what_it_was_given(stage: str) -> None:
    slot, host = slot_at(stage), make("channels_last", 2, 4, 5, 6)
    assert slot(host) is host
    assert slot(host, alpha_override=0.5) is host


@each_active_stage
@each_blend
@each_format
@pytest.mark.parametrize(
    "shape", [(2, 4, 1, 1), (2, 1, 5, 6), (1, 4, 5, 6), (0, 4, 5, 6), (1, 1, 1, 1)], ids=str
)
def test_dimensions_of_size_1_and_0(stage: str, blend: str, format: str, shape: tuple[int, ...]) -> None:
    slot, host = slot_at(stage, blend=blend, channels=shape[1]), make(format, *shape)
    slot.set_alpha(0.25)
    result = slot(host)
    assert result.stride() == host.stride()
    torch.testing.assert_close(result, formula(slot, host))
    given, wanted = (
        gradients(result, host, *slot.parameters()),
        gradients(formula(slot, host), host, *slot.parameters()),
    )
    torch.testing.assert_close(given, wanted)


# Gradients


def _network(slot: nn.Module | None) -> nn.Sequential:
    torch.manual_seed(0)
    stem, head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
    return nn.Sequential(stem, nn.ReLU(), *([] if slot is None else [slot]), head).double()


@each_blend
@each_format
def test_the_host_cannot_feel_a_seed_in_training(blend: str, format: str) -> None:
    slot, images = slot_at("training", blend=blend), make(format, 2, 3, 5, 6)
    for network in (alone := _network(None), together := _network(slot)):
        network(images).square().sum().backward()
    for name in ("weight", "bias"):
        for ours, theirs in ((together[0], alone[0]), (together[-1], alone[-1])):
            assert torch.equal(getattr(ours, name).grad, getattr(theirs, name).grad)
    assert slot.seed is not None
    assert all(p.grad is not None and p.grad.any() for p in slot.seed.parameters())


@each_format
@pytest.mark.parametrize("stage", ["blending", "holding", "fossilized"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_host_gets_its_own_share_of_the_gradient_and_no_more(
    stage: str, alpha: float, format: str
) -> None:
    slot, host = slot_at(stage).set_alpha(alpha), make(format, 2, 4, 5, 6)
    upstream = like(host)
    (to_host,) = torch.autograd.grad(slot(host), host, upstream)
    assert torch.equal(to_host, (1 - alpha) * upstream)


@each_active_stage
@each_blend
@each_format
def test_without_isolation_the_host_feels_the_seed(stage: str, blend: str, format: str) -> None:
    slot, host = slot_at(stage, blend=blend, isolate_gradients=False), make(format, 2, 4, 5, 6)
    if stage != "training":
        slot.set_alpha(0.25)
    given, wanted = gradients(slot(host), host), gradients(formula(slot, host), host)
    torch.testing.assert_close(given, wanted)

    slot.isolate_gradients = True
    isolated = gradients(slot(host), host)
    assert not torch.allclose(isolated[0], given[0])
    torch.testing.assert_close(isolated, gradients(formula(slot, host), host))
    slot.isolate_gradients = False
    torch.testing.assert_close(gradients(slot(host), host), given)


@each_blend
@each_format
@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (2, 4, 1, 1)], ids=str)
def test_gradcheck(blend: str, format: str, shape: tuple[int, ...]) -> None:
    slot = slot_at("blending", blend=blend, isolate_gradients=False).set_alpha(0.3)
    names, parameters = zip(*slot.named_parameters(), strict=True)

    def call(host: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(slot, dict(zip(names, values, strict=True)), (host,))

    assert gradcheck(call, (make(format, *shape), *parameters))
    slot.isolate_gradients = True
    assert gradcheck(lambda *values: call(make(format, *shape, grad=False).fill_(0.5), *values), parameters)


# What a seed may return


@each_active_stage
@pytest.mark.parametrize(
    ("seed", "shape"),
    [(nn.Conv2d(4, 5, 1), (2, 5, 6, 6)), (nn.Conv2d(4, 4, 3), (2, 4, 4, 4)), (nn.Flatten(), (2, 144))],
    ids=str,
)
def test_a_seed_that_changes_the_shape_is_an_error_that_names_it(
    stage: str, seed: nn.Module, shape: tuple[int, ...]
) -> None:
    slot = slot_at(stage, copy.deepcopy(seed))
    with pytest.raises(ValueError, match="keeps the shape") as error:
        slot(torch.zeros(2, 4, 6, 6))
    for part in (type(seed).__name__, str(shape), "(2, 4, 6, 6)"):
        assert part in str(error.value)


def test_a_seed_that_would_broadcast_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"returned shape \(2, 4, 1, 1\) for features of shape \(2, 4, 6, 6\)"
    ):
        slot_at("blending", nn.AdaptiveAvgPool2d(1))(torch.zeros(2, 4, 6, 6))


def test_a_seed_that_returns_no_tensor_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"the seed \(LSTM\) returned tuple, not a tensor"):
        slot_at("training", nn.LSTM(4, 4, batch_first=True))(torch.zeros(2, 5, 4))


class InPlace(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.mul_(2)


@each_format
@pytest.mark.parametrize("isolate_gradients", [True, False])
@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (nn.Sequential(nn.ReLU(inplace=True), conv()), r"the seed \(Sequential\) .*\(inplace=True: 0\)"),
        (nn.ReLU(inplace=True), r"the seed \(ReLU\) .*\(inplace=True: ReLU\)"),
        (InPlace(), r"the seed \(InPlace\) wrote to its input, .* and the host reads it, too: make it"),
    ],
)
def test_a_seed_that_changes_the_host_is_an_error(
    seed: nn.Module, message: str, isolate_gradients: bool, format: str
) -> None:
    slot = slot_at("training", seed, isolate_gradients=isolate_gradients)
    with pytest.raises(RuntimeError, match=message):
        slot(make(format, 2, 4, 5, 6) + 0)


def test_a_gate_that_changes_the_host_is_an_error() -> None:
    slot = SeedSlot().germinate(conv(), blend="gate", gate=InPlace()).advance().advance()
    with pytest.raises(RuntimeError, match=r"the gate \(InPlace\) wrote to its input"):
        slot(make("nchw", 2, 4, 5, 6))


def test_a_seed_may_work_in_place_on_what_is_its_own() -> None:
    slot = slot_at("training", nn.Sequential(conv(), nn.ReLU(inplace=True)))
    host = make("channels_last", 2, 4, 5, 6)
    assert torch.equal(slot(host), host)
    with torch.inference_mode():
        assert torch.equal(slot(host * 1), host)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
@pytest.mark.parametrize("blend", ["add", "multiply"])
@pytest.mark.parametrize("stage", ["training", "blending"])
def test_features_are_floating_point_numbers(dtype: torch.dtype, blend: str, stage: str) -> None:
    class ToDouble(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.double()

    with pytest.raises(TypeError, match=str(dtype)):
        slot_at(stage, ToDouble(), blend)(torch.ones(2, 4, 5, 6, dtype=dtype))


def test_a_seed_of_another_dtype_is_converted_once() -> None:
    class Half(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.to(torch.bfloat16, memory_format=torch.contiguous_format)

    slot, host = slot_at("blending", Half()).set_alpha(0.25), make("channels_last", 2, 4, 5, 6).float()
    result, _, copies, _ = run(slot, host, [])
    assert (result.dtype, result.stride()) == (torch.float32, host.stride())
    assert copies == ["aten._to_copy.default"] * 2  # the seed's own, and its way back


# alpha_override


@each_active_stage
@each_blend
@each_format
def test_one_fused_pass_is_many_separate_ones(stage: str, blend: str, format: str) -> None:
    slot, host = slot_at(stage, blend=blend), make(format, 3, 4, 5, 6)
    alphas = [0.0, 0.25, 1.0]
    before = slot.alpha
    for override in (torch.tensor(alphas).reshape(3, 1, 1, 1), torch.tensor(alphas, dtype=torch.double)):
        fused = slot(host, alpha_override=override)
        assert fused.stride() == host.stride()
        separate = [slot(row[None], alpha_override=alpha) for row, alpha in zip(host, alphas, strict=True)]
        torch.testing.assert_close(fused, torch.cat(separate))
        parameters = list(slot.parameters())
        torch.testing.assert_close(
            gradients(fused, host, *parameters), gradients(torch.cat(separate), host, *parameters)
        )
    assert slot.alpha == before


@each_active_stage
@each_blend
def test_an_override_is_that_alpha_also_in_training(stage: str, blend: str) -> None:
    slot, host = slot_at(stage, blend=blend), make("nchw", 2, 4, 5, 6)
    overridden = slot(host, alpha_override=0.25)
    assert not torch.equal(overridden, slot(host))
    assert torch.equal(overridden, slot.set_alpha(0.25)(host))


def test_an_override_of_0_in_training_does_not_teach_the_seed() -> None:
    slot, host = slot_at("training"), make("nchw", 2, 4, 5, 6)
    result = slot(host, alpha_override=0.0)
    assert torch.equal(result, host)
    assert not any(g.any() for g in torch.autograd.grad(result.sum(), [*slot.parameters()]))


def test_an_override_that_fits_nothing_is_an_error() -> None:
    slot, host = slot_at("blending"), torch.zeros(2, 4, 5, 6).double()
    with pytest.raises(ValueError, match=r"\(3, 1, 1, 1\).*\(2, 4, 5, 6\)"):
        slot(host, alpha_override=torch.zeros(3, 1, 1, 1))
    with pytest.raises(ValueError, match="alpha is NaN"):
        slot(host, alpha_override=float("nan"))


# Under autocast, checkpointing, torch.compile, functional calls and DDP


@each_active_stage
@each_blend
@each_format
@pytest.mark.parametrize("kind", ["conv", "GroupNorm"])
def test_under_autocast(stage: str, blend: str, format: str, kind: str) -> None:
    seed = SEEDS[kind](4)
    slot, host = (
        slot_at(stage, seed, blend).float(),
        make(format, 2, 4, 5, 6).detach().float().requires_grad_(),
    )
    if stage == "blending":
        slot.set_alpha(0.25)
    for features in (host, host.detach().bfloat16().requires_grad_()):
        with torch.autocast("cpu", torch.bfloat16):
            result = slot(features)
            seed_dtype = seed(features.detach()).dtype
        assert result.dtype == features.dtype
        assert result.stride() == features.stride()
        exact = formula(copy.deepcopy(slot).float(), features.float())
        torch.testing.assert_close(result.float(), exact, rtol=0.05, atol=0.05)
        result.sum().backward()
        assert all(p.grad is not None for p in seed.parameters())
        with torch.autocast("cpu", torch.bfloat16), Allocations() as alone:
            seed(features.detach())
        with torch.autocast("cpu", torch.bfloat16), Allocations() as ours:
            slot(features)
        if blend != "gate":
            assert len(ours.copies) == len(alone.copies) + (seed_dtype != features.dtype)


@each_active_stage
@each_blend
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(stage: str, blend: str, reentrant: bool) -> None:
    slot, host = slot_at(stage, blend=blend), make("channels_last", 2, 4, 5, 6)
    if stage == "blending":
        slot.set_alpha(0.25)
    slot(host).square().sum().backward()
    expected = [x.grad for x in (host, *slot.parameters())]
    for x in (host, *slot.parameters()):
        x.grad = None
    result = checkpoint(slot, host, use_reentrant=reentrant)
    assert result.stride() == host.stride()
    assert torch.equal(result, slot(host))
    result.square().sum().backward()
    torch.testing.assert_close([x.grad for x in (host, *slot.parameters())], expected)


@each_blend
@each_format
def test_one_graph_for_every_stage_and_alpha(blend: str, format: str, compile_anew: Any) -> None:
    slot, counter = slot_at("germinated", blend=blend), CompileCounter()
    compiled = compile_anew(slot, counter)
    for stage in ACTIVE:
        slot.advance(stage)
        for alpha in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0):
            host = make(format, 2, 4, 5, 6)
            slot.set_alpha(alpha)
            result = compiled(host)
            torch.testing.assert_close(result, formula(slot, host))
            assert result.stride() == host.stride()
    assert counter.frame_count == 2  # one for the straight-through estimator and one to blend


@each_active_stage
@each_blend
def test_the_backward_of_compiled_code(stage: str, blend: str, compile_anew: Any) -> None:
    slot, host = slot_at(stage, blend=blend), make("channels_last", 2, 4, 5, 6)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = compile_anew(slot, counter)
    compilations = []
    for alpha in (0.25, 0.5, 0.75):
        slot.set_alpha(alpha)
        result = compiled(host)
        compilations.append(counter.frame_count)
        assert result.stride() == host.stride()
        inputs = (host, *slot.parameters())
        torch.testing.assert_close(gradients(result, *inputs), gradients(formula(slot, host), *inputs))
    assert compilations == [compilations[0]] * 3


def test_an_inactive_slot_compiles_and_so_does_an_override(compile_anew: Any) -> None:
    slot, host = SeedSlot(), make("channels_last", 3, 4, 5, 6)
    compiled = compile_anew(nn.Sequential(slot, nn.Identity()), "eager")
    assert torch.equal(compiled(host), host)
    slot.germinate(conv()).advance()
    assert torch.equal(compiled(host), host)
    compiled = compile_anew(slot, "eager")
    for override in (0.25, 0.5, 0.75, torch.tensor([0.0, 0.5, 1.0]), torch.rand(3, 1, 1, 1)):
        torch.testing.assert_close(compiled(host, override), slot(host, override))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_backward_that_is_still_to_come_keeps_its_alpha(compiled: bool, compile_anew: Any) -> None:
    slot, host = slot_at("blending").set_alpha(0.25), make("nchw", 2, 4, 5, 6)
    call = compile_anew(slot, "aot_eager") if compiled else slot
    first = call(host)
    second = call(host) if not compiled else slot.set_alpha(0.5)(host)
    slot.set_alpha(0.75)
    (to_host,) = torch.autograd.grad(first.sum(), host)
    assert torch.equal(to_host, torch.full_like(host, 0.75))
    slot.advance("holding").prune()
    torch.autograd.grad(second.sum(), host)


def test_an_alpha_set_in_inference_mode_can_be_trained_with(compile_anew: Any) -> None:
    slot, host = slot_at("blending"), make("nchw", 2, 4, 5, 6)
    with torch.inference_mode():
        slot.set_alpha(0.25)
    (to_host,) = torch.autograd.grad(compile_anew(slot, "aot_eager")(host).sum(), host)
    assert torch.equal(to_host, torch.full_like(host, 0.75))


@each_active_stage
@each_blend
def test_functional_calls(stage: str, blend: str) -> None:
    slot, host = slot_at(stage, blend=blend), make("channels_last", 2, 4, 5, 6)
    slot.set_alpha(0.25)
    other = {name: torch.rand_like(parameter) for name, parameter in slot.named_parameters()}
    expected = copy.deepcopy(slot)
    expected.load_state_dict({**slot.state_dict(), **other})
    torch.testing.assert_close(torch.func.functional_call(slot, other, (host,)), expected(host))
    weights = {name: torch.stack([value, value + 1]) for name, value in other.items()}
    each = torch.func.vmap(lambda values: torch.func.functional_call(slot, values, (host,)))(weights)
    torch.testing.assert_close(each[0], expected(host))


def test_gradients_of_every_sample() -> None:
    slot, host = slot_at("blending").set_alpha(0.25), make("channels_last", 3, 4, 5, 6, grad=False)
    weights = {name: parameter.detach() for name, parameter in slot.named_parameters()}

    def loss(values: dict[str, Tensor], features: Tensor) -> Tensor:
        return torch.func.functional_call(slot, values, (features[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, host)
    for index, features in enumerate(host):
        torch.testing.assert_close(
            {name: g[index] for name, g in each.items()}, torch.func.grad(loss)(weights, features)
        )


DATA_PARALLEL = """
import copy, os, sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from esper_guard import SeedSlot

rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
slot = SeedSlot().germinate(nn.Conv2d(4, 4, 3, padding=1)).advance("training")
network = nn.Sequential(nn.Conv2d(3, 4, 1), slot, nn.Conv2d(4, 2, 1)).to(memory_format=torch.channels_last).double()
reference = copy.deepcopy(network)
parallel = DistributedDataParallel(network)
images = torch.randn(2, 2, 3, 5, 6, dtype=torch.double)
for alpha in (0.0, 0.25, 0.75):
    for each in (slot, reference[1]):
        each.set_alpha(alpha)
    for each in (parallel, reference):
        each.zero_grad()
    features = []
    hook = slot.register_forward_hook(lambda module, given, result: features.extend((*given, result)))
    parallel(images[rank].to(memory_format=torch.channels_last)).square().mean().backward()
    hook.remove()
    assert features[0].stride() == features[1].stride() == (120, 1, 24, 4)
    for part in images:
        (reference(part).square().mean() / 2).backward()
    for (name, ours), theirs in zip(network.named_parameters(), reference.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert slot.alpha == alpha
distributed.destroy_process_group()
print("same gradients")
"""


def _start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_data_parallel(tmp_path: Path) -> None:
    for process in [_start(DATA_PARALLEL, str(rank), str(tmp_path / "store")) for rank in range(2)]:
        output, errors = process.communicate(timeout=120)
        assert output.endswith("same gradients\n"), errors
        assert "strides do not match" not in errors


# Copies, state dicts, dtypes and devices


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda slot: pickle.loads(pickle.dumps(slot))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("stage", LEGAL)
def test_a_duplicate_is_the_same_and_on_its_own(
    stage: str, duplicate: Callable[[SeedSlot], SeedSlot]
) -> None:
    slot, host = slot_at(stage, blend="gate", isolate_gradients=False), make("channels_last", 2, 4, 5, 6)
    if slot.is_active:
        slot.set_alpha(0.25)
    twin = duplicate(slot)
    assert repr(twin) == repr(slot)
    assert torch.equal(twin(host), slot(host))
    before = state_of(slot)
    if twin.is_active:
        twin.set_alpha(0.5)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
    if twin.stage is not SeedStage.DORMANT and LEGAL[stage]:
        twin.advance(LEGAL[stage][-1])
    assert_unchanged(slot, before)


def saved(slot: SeedSlot) -> Any:
    """Its state dict, by way of a file."""
    file = io.BytesIO()
    torch.save(slot.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("stage", LEGAL)
@each_blend
def test_a_state_dict_holds_everything(stage: str, blend: str) -> None:
    slot = slot_at(stage, blend=blend, isolate_gradients=False)
    if slot.is_active:
        slot.set_alpha(0.3)
    fresh = slot_at("dormant" if slot.seed is None else "germinated", blend=blend)
    assert not fresh.load_state_dict(saved(slot), strict=True).missing_keys
    host = make("channels_last", 2, 4, 5, 6)
    assert torch.equal(fresh(host), slot(host))
    assert (fresh.stage, fresh.alpha, fresh.blend) == (slot.stage, slot.alpha, slot.blend)
    assert fresh.is_active == slot.is_active
    assert fresh.isolate_gradients is False
    torch.testing.assert_close(gradients(fresh(host), host), gradients(slot(host), host))
    if LEGAL[stage]:
        advanced = fresh.germinate(conv()) if stage == "dormant" and blend != "gate" else fresh
        if stage != "dormant":
            advanced = fresh.advance()
            assert advanced.stage.value == LEGAL[stage][0]


def test_the_keys_of_a_state_dict() -> None:
    slot = slot_at("blending", blend="gate")
    keys = {key for key in slot.state_dict() if not key.startswith("gate.")}
    assert keys == {"_extra_state", "seed.weight", "seed.bias"}


@pytest.mark.parametrize("trained", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("loading", [torch.contiguous_format, torch.channels_last])
def test_weights_of_one_format_go_into_a_slot_of_the_other(
    trained: torch.memory_format, loading: torch.memory_format
) -> None:
    slot = slot_at("blending").to(memory_format=trained).set_alpha(0.3)
    fresh = slot_at("germinated").to(memory_format=loading)
    fresh.load_state_dict(saved(slot), strict=True)
    assert isinstance(fresh.seed, nn.Conv2d)
    assert fresh.seed.weight.is_contiguous(memory_format=loading)
    for format in ("nchw", "channels_last"):
        host = make(format, 2, 4, 5, 6)
        result = fresh(host)
        torch.testing.assert_close(result, slot(host))
        assert result.stride() == host.stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "convert", [lambda slot, dtype: slot.to(dtype), lambda slot, dtype: slot._apply(lambda x: x.to(dtype))]
)
def test_dtypes(dtype: torch.dtype, convert: Callable[[SeedSlot, torch.dtype], SeedSlot]) -> None:
    slot = slot_at("blending").float().set_alpha(0.3)
    fresh = convert(slot_at("germinated"), dtype)
    fresh.load_state_dict(saved(slot), strict=True)
    assert {parameter.dtype for parameter in fresh.parameters()} == {dtype}
    host = make("channels_last", 2, 4, 5, 6).to(dtype)
    result = fresh(host)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), slot(host.float()).double(), rtol=0.02, atol=0.02)
    assert fresh.alpha == 0.3
    assert convert(fresh, dtype).alpha == 0.3


def test_a_conversion_keeps_alpha_exact_in_compiled_code_too(compile_anew: Any) -> None:
    slot = slot_at("blending").set_alpha(0.3).half().bfloat16().to(torch.float16).double()
    host = make("nchw", 2, 4, 5, 6)
    torch.testing.assert_close(compile_anew(slot, "eager")(host), formula(slot, host), rtol=1e-14, atol=1e-14)
    assert slot.alpha == 0.3


def test_from_the_meta_device() -> None:
    slot = slot_at("blending", blend="gate").set_alpha(0.3)
    with torch.device("meta"):
        born_there = slot_at("germinated", blend="gate")
    for fresh in (born_there, slot_at("germinated", blend="gate").to("meta")):
        assert all(parameter.is_meta for parameter in fresh.parameters())
        shape = fresh.advance()(torch.empty(2, 4, 5, 6, device="meta", dtype=torch.double)).shape
        assert shape == (2, 4, 5, 6)
        loaded = fresh.to_empty(device="cpu")
        loaded.load_state_dict(saved(slot), strict=True)
        host = make("channels_last", 2, 4, 5, 6)
        assert torch.equal(loaded(host), slot(host))
        assert loaded.alpha == 0.3
        assert {x.device.type for x in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}


@pytest.mark.parametrize("stage", ["dormant", "blending"])
def test_from_the_meta_device_by_assignment(stage: str, compile_anew: Any) -> None:
    slot, host = slot_at(stage), make("channels_last", 2, 4, 5, 6)
    if slot.is_active:
        slot.set_alpha(0.3)
    with torch.device("meta"):
        fresh = slot_at("dormant" if stage == "dormant" else "germinated")
    fresh.load_state_dict(saved(slot), assign=True)
    for loaded in (fresh, fresh.to("cpu")):
        assert torch.equal(loaded(host), slot(host))
        torch.testing.assert_close(compile_anew(loaded, "eager")(host), slot(host))


def test_an_average_of_models_is_the_same_compiled(compile_anew: Any) -> None:
    slot, host = slot_at("blending").set_alpha(0.2), make("nchw", 2, 4, 5, 6)
    average = torch.optim.swa_utils.AveragedModel(slot, use_buffers=True)
    slot.set_alpha(0.8)
    average.update_parameters(slot)
    assert average.module.alpha == 0.2
    torch.testing.assert_close(compile_anew(average, "eager")(host), average(host))
    average.module.set_extra_state(slot.get_extra_state())
    assert torch.equal(average(host), slot(host))


def test_emptying_keeps_alpha_for_compiled_code(compile_anew: Any) -> None:
    slot = slot_at("blending").set_alpha(0.3).to("meta").to_empty(device="cpu")
    assert slot.seed is not None
    nn.init.ones_(slot.seed.weight)
    nn.init.ones_(slot.seed.bias)
    host = make("nchw", 2, 4, 5, 6)
    torch.testing.assert_close(compile_anew(slot, "eager")(host), formula(slot, host))


def _with_extra(**changes: Any) -> Callable[[], Any]:
    def state() -> Any:
        slot = slot_at("training")
        return {**slot.state_dict(), "_extra_state": {**slot.get_extra_state(), **changes}}

    return state


@pytest.mark.parametrize(
    ("into", "blend", "state", "message"),
    [
        ("germinated", "add", lambda: saved(slot_at("dormant")), r"saved without a seed \(stage dormant\)"),
        ("blending", "add", lambda: saved(slot_at("pruned")), r"saved without a seed \(stage pruned\)"),
        ("dormant", "add", lambda: saved(slot_at("blending")), r"saved with a seed \(stage blending\)"),
        ("embargoed", "add", lambda: saved(slot_at("germinated")), r"saved with a seed \(stage germinated\)"),
        ("blending", "add", lambda: saved(slot_at("blending", blend="gate")), "saved with the blend 'gate'"),
        ("blending", "gate", lambda: saved(slot_at("blending")), "saved with the blend 'add'"),
        ("blending", "add", _with_extra(version=2), "saved by another release"),
        ("blending", "add", _with_extra(stage="flowering"), "there is no stage 'flowering'"),
        ("blending", "add", _with_extra(stage=None), "there is no stage None"),
        ("blending", "add", _with_extra(blend="mix"), "there is no blend 'mix'"),
        ("blending", "add", _with_extra(alpha=None), "extra state of a SeedSlot is damaged"),
        ("blending", "add", _with_extra(alpha=float("nan")), "extra state of a SeedSlot is damaged"),
        (
            "blending",
            "add",
            lambda: {**slot_at("training").state_dict(), "_extra_state": {}},
            "not the extra state",
        ),
        (
            "blending",
            "add",
            lambda: {**slot_at("training").state_dict(), "_extra_state": None},
            "not the extra state",
        ),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_that_does_not_fit_changes_nothing(
    into: str, blend: str, state: Callable[[], Any], message: str, strict: bool
) -> None:
    slot = slot_at(into, blend=blend)
    before = state_of(slot)
    with pytest.raises(ValueError, match=message):
        slot.set_extra_state(state()["_extra_state"])
    assert_unchanged(slot, before)
    with pytest.raises(RuntimeError, match=message):
        slot.load_state_dict(state(), strict=strict)
    assert state_of(slot)[:-1] == before[:-1]
    host = make("nchw", 2, 4, 5, 6)
    assert torch.equal(slot(host), formula(slot, host) if slot.is_active else host)


def test_an_error_in_loading_names_the_slot() -> None:
    network = nn.ModuleDict({"blocks": nn.ModuleList([SeedSlot(), slot_at("blending")])})
    fresh = nn.ModuleDict({"blocks": nn.ModuleList([SeedSlot(), SeedSlot()])})
    with pytest.raises(RuntimeError, match=r"\tblocks\.1: the SeedSlot was saved with a seed"):
        fresh.load_state_dict(network.state_dict())
    with pytest.raises(RuntimeError, match=r"\tthe SeedSlot was saved with a seed"):
        SeedSlot().load_state_dict(slot_at("blending").state_dict())
    first, second = slot_at("blending"), nn.Linear(2, 2)
    network, fresh = nn.Sequential(first, second), nn.Sequential(SeedSlot(), nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match=r"\t0: the SeedSlot was saved with a seed"):
        fresh.load_state_dict(network.state_dict(), strict=False)
    assert torch.equal(fresh[1].weight, second.weight)


def test_errors_of_the_users_own_hooks_stay_what_they_are() -> None:
    class TheirsError(ValueError):
        pass

    def refuse(*arguments: Any) -> None:
        raise TheirsError("no")

    slot = SeedSlot()
    slot._register_load_state_dict_pre_hook(refuse)
    with pytest.raises(TheirsError):
        slot.load_state_dict(SeedSlot().state_dict())


# Hardening

GROUP_NORM = HAZARDS["group-norm-null-write"]
NORMS = """
import torch
from esper_guard import SeedSlot, is_hardened

for shape in ((2, 4, 3, 3), (2, 4, 1, 1), (2, 1, 3, 3), (2, 4, 2, 3, 3)):
    gradients = []
    for nhwc in (False, True):
        torch.manual_seed(0)
        seed = torch.nn.GroupNorm(1, shape[1]).double()
        slot = SeedSlot().germinate(seed).advance("training")
        host = torch.randn(shape, dtype=torch.double)
        if nhwc:
            host = host.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
        host.requires_grad_()
        slot(host).square().sum().backward()
        gradients.append((host.grad, seed.weight.grad, seed.bias.grad))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs)
print("alive")
"""


def test_a_group_norm_seed_lives_in_a_channels_last_host() -> None:
    process = _start(NORMS)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "alive\n"), errors


def test_germinating_hardens_what_can_crash_here() -> None:
    seed, gate = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)), nn.Sequential(nn.GroupNorm(2, 4))
    SeedSlot().germinate(seed, blend="gate", gate=gate)
    assert is_hardened(seed[1]) is is_hardened(gate) is GROUP_NORM.affects()


def test_germinating_hardens_nothing_if_told_so() -> None:
    seed, gate = nn.GroupNorm(2, 4), nn.GroupNorm(2, 4)
    SeedSlot().germinate(seed, blend="gate", gate=gate, harden=False)
    assert not is_hardened(seed)
    assert not is_hardened(gate)


def test_a_seed_that_does_not_germinate_is_not_hardened() -> None:
    seed = nn.GroupNorm(2, 4)
    with pytest.raises(ValueError, match="takes no gate"):
        SeedSlot().germinate(seed, gate=nn.Identity())
    with pytest.raises(IllegalTransitionError):
        slot_at("training").germinate(seed)
    assert not is_hardened(seed)


# FeatureGate


@pytest.mark.parametrize("shape", [(3, 5, 8), (3, 8, 4, 5), (3, 8, 2, 4, 5), (0, 8, 4, 5)], ids=str)
def test_a_feature_gate_has_one_value_for_each_sample(shape: tuple[int, ...]) -> None:
    gate = FeatureGate(8).double()
    features = make("nchw", *shape)
    values = gate(features)
    assert values.shape == (shape[0], *[1] * (len(shape) - 1))
    assert ((values > 0) & (values < 1)).all()
    pooled = features.mean(1) if len(shape) == 3 else features.flatten(2).mean(2)
    torch.testing.assert_close(values.flatten(), torch.sigmoid(gate.score(pooled)).flatten())
    assert not shape[0] or all(
        g.any() for g in torch.autograd.grad(values.sum(), [*gate.score[2].parameters()])
    )


def test_a_feature_gate_checks_what_it_is_given() -> None:
    for channels, hidden in ((0, None), (-1, 4), (4, 0)):
        with pytest.raises(ValueError, match="channels and hidden of at least 1"):
            FeatureGate(channels, hidden)
    for shape in ((2, 8), (2, 8, 1, 1, 1, 1)):
        with pytest.raises(ValueError, match="rank 3 to 5"):
            FeatureGate(8)(torch.zeros(shape))
