"""``assert_layout_equivalent`` and ``check_ddp``."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper_guard import HAZARDS, assert_layout_equivalent, check_ddp
from tests.conftest import run_python
from tests.runtime.models import MODELS

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")
IMAGES = torch.randn(2, 3, 16, 16)


class Wrong(nn.Module):
    """Reads memory, where it should read values: another result for other strides."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "value":
            return x + x.stride(1)
        if self.how == "gradient":
            return _WrongGradient.apply(x)
        if self.how == "format":
            return x.contiguous()
        if self.how == "compiled":
            return x + 1 if torch.compiler.is_compiling() else x
        return x


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.last = x.stride(1) == 1
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * (2 if ctx.last else 1)


class Network(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
        self.middle = nn.Sequential(nn.BatchNorm2d(4), Wrong(how))
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_sound_models_pass(name: str, train: bool) -> None:
    assert_layout_equivalent(MODELS[name](), IMAGES, train=train, backend="aot_eager")


@pytest.mark.slow
def test_a_sound_model_passes_compiled_by_inductor() -> None:
    assert_layout_equivalent(MODELS["ResNet"](), IMAGES)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("value", "channels_last eager against NCHW eager: what 'middle.1' returns differs"),
        ("gradient", "the gradient differs that comes to the result of 'middle.0' from 'middle.1'"),
        (
            "compiled",
            "in 'middle.1', compiled on its own as well: NCHW compiled against NCHW eager: the outputs",
        ),
    ],
)
def test_the_first_module_that_differs_is_named(how: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_layout_equivalent(Network(how), IMAGES, backend="eager")


def test_a_lost_format_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Wrong("format"), nn.ReLU())
    with pytest.raises(AssertionError, match=r"output 0 .* is NCHW.*the first module to return NCHW is '1'"):
        assert_layout_equivalent(model, IMAGES, backend=None)
    assert_layout_equivalent(model, IMAGES, backend=None, strides=False)


def test_tolerances() -> None:
    class Slightly(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1e-5 * (x.stride(1) == 1)

    with pytest.raises(AssertionError, match="Slightly"):
        assert_layout_equivalent(Slightly(), IMAGES, backend=None)
    assert_layout_equivalent(Slightly(), IMAGES, rtol=0, atol=1e-4, backend=None)
    with pytest.raises(TypeError, match="both"):
        assert_layout_equivalent(Slightly(), IMAGES, rtol=0)


def test_the_instance_norm_bug_is_found() -> None:
    """One image, and a channels_last gradient: torch's own wrong numbers (HAZARDS)."""
    assert HAZARDS["batch-norm-ghost-gradient"].affects()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 4, 3))
    with pytest.raises(AssertionError, match=r"gradient of parameter '1\.weight' differs"):
        assert_layout_equivalent(model, torch.randn(1, 3, 9, 9), backend=None)


@pytest.mark.skipif(not HAZARDS["group-norm-null-write"].affects(), reason="this torch release is sound")
def test_a_crash_raises() -> None:
    class Detaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.detach())

    with pytest.raises(RuntimeError, match="group-norm-null-write"):
        assert_layout_equivalent(Detaching(), IMAGES, backend=None)


def test_without_float64_the_models_own_dtype_is_used() -> None:
    class OnlyFloat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise NotImplementedError("'kernel' not implemented for 'Double'")
            return x * 2

    assert_layout_equivalent(OnlyFloat(), IMAGES, backend=None)


def test_an_error_of_the_model_is_its_own() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        assert_layout_equivalent(nn.Conv2d(5, 4, 3), IMAGES, backend=None)


def test_nothing_of_the_model_changes() -> None:
    model = MODELS["ResNet"]().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    images = IMAGES.clone()
    assert_layout_equivalent(model, images, train=True, backend="eager")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(images, IMAGES)
    assert images.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_inputs() -> None:
    class Several(nn.Module):
        def forward(self, a: Tensor, b: Tensor | None = None, *, scale: int = 1) -> dict[str, Tensor]:
            return {"sum": a * scale if b is None else a + b}

    assert_layout_equivalent(Several(), (IMAGES, IMAGES), backend=None)
    assert_layout_equivalent(Several(), {"a": IMAGES, "b": IMAGES, "scale": 3}, backend=None)
    assert_layout_equivalent(nn.AvgPool3d(2), torch.randn(1, 3, 4, 4, 4), backend=None, strides=False)
    assert_layout_equivalent(nn.Embedding(5, 3), torch.tensor([1, 2]), backend=None)
    with pytest.raises(TypeError, match="takes a module"):
        assert_layout_equivalent(torch.relu, IMAGES)  # type: ignore[arg-type]


class TestDdp:
    def test_equal_strides_are_silent(self) -> None:
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        model(IMAGES).sum().backward()
        assert check_ddp(model) == ()

    def test_harmless_and_real(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))
        for at, convolution in enumerate(model):
            weight = convolution.weight
            weight.grad = torch.zeros_like(weight).to(memory_format=torch.channels_last)
            assert weight.grad.stride() != weight.stride(), at
        real, harmless = check_ddp(model)
        assert (real.name, real.harmless) == ("0.weight", False)
        assert (harmless.name, harmless.harmless) == ("1.weight", True)
        assert "(27, 1, 9, 3)" in str(real)
        assert "harmless" in str(harmless)

    def test_misuse(self) -> None:
        with pytest.raises(ValueError, match="run a backward first"):
            check_ddp(nn.Conv2d(3, 4, 3))
        with pytest.raises(TypeError, match="takes a module"):
            check_ddp([])  # type: ignore[arg-type]

    @pytest.mark.slow
    def test_a_model_converted_after_it_was_wrapped(self) -> None:
        """In a process of its own, with a real process group."""
        code = """
import tempfile, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from esper_guard import check_ddp, trace_layouts
dist.init_process_group("gloo", init_method="file://" + tempfile.mktemp(), rank=0, world_size=1)
images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
for after in (False, True):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    if not after:
        model = model.to(memory_format=torch.channels_last)
    model = DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=True)
    if after:
        model = model.to(memory_format=torch.channels_last)
    for _ in range(2):
        model.zero_grad()
        with trace_layouts() as trace:
            model(images).sum().backward()
    print([mismatch.name for mismatch in check_ddp(model)], trace.rank)
"""
        done = run_python(code, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"})
        lines = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]
        assert lines == ["[] 0", "['module.0.weight', 'module.1.weight'] 0"], done.stderr
