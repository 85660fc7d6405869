"""``predict_layouts`` where models are odd, and what it must not touch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from esper_guard import LayoutEvent, predict_layouts, trace_layouts

LAST = torch.channels_last


class Flattening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


def copies(trace: Any) -> list[LayoutEvent]:
    """Without the line: of modules that torch wrote, it is the line that calls the model."""
    return [replace(event, file=None, line=None, function=None) for event in trace.events if event.is_copy]


def real(model: nn.Module, *inputs: Any, train: bool = False) -> list[LayoutEvent]:
    model = copy.deepcopy(model).to(memory_format=LAST).train(train)
    moved = [value.to(memory_format=LAST) if getattr(value, "ndim", 0) == 4 else value for value in inputs]
    with trace_layouts() as trace, torch.set_grad_enabled(train):
        result = model(*moved)
        if result.requires_grad:
            result.backward(torch.ones_like(result))
    return copies(trace)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).reshape(2, -1)


class PlainAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(1, 3, 6, 6)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("view", torch.rand(4, 3)[::2].t())

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * x).contiguous() + self.steps


class NonLeaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1))
        self.cached = self.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.cached).flatten(1)


MODELS = {
    "flattening": Flattening,
    "tied weights": Tied,
    "plain attributes": PlainAttribute,
    "a cached result": NonLeaf,
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten()),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.Flatten()),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()),
    "instance norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.PixelShuffle(2), nn.Flatten()),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("train", [False, True])
def test_equal_to_the_traced_run(name: str, train: bool) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    images = torch.randn(2, 3, 6, 6)
    if name == "a cached result":
        if train:
            pytest.skip("its graph can be used once only")
        assert len(copies(predict_layouts(model, images, move_to=LAST))) == 1
        return
    for given in (images, (2, 3, 6, 6)):
        assert copies(predict_layouts(model, given, train=train, move_to=LAST)) == real(
            model, images, train=train
        )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("train", [False, True])
def test_the_model_is_not_touched(name: str, train: bool) -> None:
    model = MODELS[name]().train(not train)
    images = torch.randn(2, 3, 6, 6, requires_grad=True)
    calls: list[Any] = []
    model.register_forward_hook(lambda *arguments: calls.append(1))

    def state() -> list[Any]:
        tensors = [*model.parameters(), *model.buffers(), images]
        facts = [(id(t), t.data_ptr(), t.stride(), t._version, t.grad, t.requires_grad) for t in tensors]
        return [
            *facts,
            [module.training for module in model.modules()],
            list(vars(model)),
            torch.get_rng_state().sum(),
        ]

    before = state()
    values = [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]
    predict_layouts(model, images, train=train and name != "a cached result", move_to=LAST)
    assert state() == before
    for value, tensor in zip(values, (*model.parameters(), *model.buffers()), strict=True):
        assert torch.equal(value, tensor)


def test_without_data() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64 * 998 * 998, 10))
    trace = predict_layouts(model, (16, 3, 1000, 1000), move_to=LAST)
    (event,) = trace.copies
    assert event.bytes == 16 * 64 * 998 * 998 * 4
    assert event.device == "cpu"


def test_5d() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Flatten())
    trace = predict_layouts(model, (2, 3, 5, 5, 5), move_to=torch.channels_last_3d)
    (event,) = trace.copies
    assert (event.source, event.bytes) == ("channels_last", 2 * 4 * 27 * 4)
    with pytest.raises(ValueError, match=r"0\.weight has 5 dimensions"):
        predict_layouts(model, (2, 3, 5, 5, 5), move_to=LAST)


def test_other_arguments_are_passed_on() -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor, more: dict[str, list[Tensor]], flag: bool, name: str) -> Any:
            assert flag
            assert name == "a"
            return {"out": (x.flatten(1), more["b"][0].flatten(1))}

    images = torch.randn(2, 3, 6, 6)
    trace = predict_layouts(Several(), (2, 3, 6, 6), {"b": [images]}, True, "a", train=True, move_to=LAST)
    assert sum(event.count for event in trace.copies) == 2


def test_a_half_model_gets_half_inputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).bfloat16()
    (event,) = predict_layouts(model, (2, 3, 6, 6), move_to=LAST).copies
    assert event.dtype == "bfloat16"


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_compiled_model_is_predicted_as_written() -> None:
    model = Flattening()
    expected = predict_layouts(model, (2, 3, 6, 6), move_to=LAST).events
    assert len(expected) == 1
    assert predict_layouts(torch.compile(model), (2, 3, 6, 6), move_to=LAST).events == expected
    model.compile()
    assert predict_layouts(model, (2, 3, 6, 6), move_to=LAST).events == expected


class Selecting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


class Asking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


@pytest.mark.parametrize(("model", "line"), [(Selecting, 2), (Asking, 2)])
def test_what_depends_on_data_is_named(model: type[nn.Module], line: int) -> None:
    first = model.forward.__code__.co_firstlineno
    with pytest.raises(
        RuntimeError, match=rf"can't follow aten\..* at .*test_predict.py:{first + 1}: .*trace_layouts"
    ):
        predict_layouts(model(), (2, 3, 6, 6))


def test_misuse() -> None:
    with pytest.raises(TypeError, match="takes a module"):
        predict_layouts(torch.relu, (2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight is not initialised"):
        predict_layouts(nn.LazyConv2d(4, 3), (2, 3, 6, 6))

    class Uncopyable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock = __import__("threading").Lock()

    with pytest.raises(TypeError, match=r"can't copy this .*Uncopyable.*trace_layouts"):
        predict_layouts(Uncopyable(), (2, 3))
