"""``guard`` and ``first_loss``: what modules take, return, and pass back."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from esper_guard import MemoryFormatError, MemoryFormatWarning, first_loss, guard, layout_of
from tests.runtime.models import MODELS

NHWC = torch.channels_last


class Lossy(nn.Module):
    """Loses the format in ``middle``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Sequential(nn.ReLU(), nn.Softmax(1))
        self.last = nn.Conv2d(8, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        middle = self.middle(self.first(x))
        return {"logits": self.head(self.last(middle).mean((2, 3))), "features": [middle]}


@pytest.fixture
def model() -> nn.Module:
    return Lossy().to(memory_format=NHWC)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8).to(memory_format=NHWC)


def problem(call: Callable[[], Any]) -> str:
    with pytest.raises(MemoryFormatError) as raised:
        call()
    assert len(str(raised.value).splitlines()) < 10
    return str(raised.value)


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ) + sum(len(parameter._post_accumulate_grad_hooks or ()) for parameter in model.parameters())


class TestWhere:
    def test_the_inputs_of_the_model(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, inputs="channels_last"):
            model(images)
            model(x=images)
            assert "Lossy: input is nchw, expected channels_last" in problem(
                lambda: model(images.contiguous())
            )
            assert "Lossy: input[0]['x'] is nchw" in problem(lambda: model(x=images.contiguous()))

    def test_the_outputs_of_the_model(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, outputs="channels_last"):
            assert "Lossy: output['features'][0] is nchw" in problem(lambda: model(images))

    def test_the_outputs_of_modules_by_pattern(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, outputs={"first": "channels_last", "middle.*": "same as input"}):
            text = problem(lambda: model(images))
        assert "middle.1: output is nchw, expected same as input (channels_last)" in text

    def test_the_last_pattern_counts(self, model: nn.Module, images: Tensor) -> None:
        with guard(
            model, outputs={"*": "channels_last", "middle.1": None, "middle": None, "last": "nchw", "": None}
        ):
            assert "last: output is channels_last, expected nchw" in problem(lambda: model(images))
        with guard(model, outputs={"*": "channels_last", "middle*": None, "": None}):
            model(images)  # the head's are no images

    def test_the_gradients_of_parameters(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, gradients="same as parameter"):
            model(images)["logits"].sum().backward()
        model.zero_grad()
        with guard(model, gradients={"last.weight": "nchw"}):
            assert "last.weight: gradient is channels_last, expected nchw" in problem(
                lambda: model(images)["logits"].sum().backward()
            )

    def test_the_gradients_of_outputs(self, model: nn.Module, images: Tensor) -> None:
        # a mean passes back an expanded gradient
        with guard(model, gradients={"last": "same as output"}):
            text = problem(lambda: model(images)["logits"].sum().backward())
        assert "last: gradient of output is nchw, expected same as output (channels_last)" in text

    def test_of_gradients_a_relation_says_of_what(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, gradients="same as output", fail_fast=False) as guarded:
            model(images)["logits"].sum().backward()
            assert guarded.violations
            assert all("gradient of output" in violation.path for violation in guarded.violations)
            with pytest.raises(MemoryFormatError):
                guarded.remove()

    def test_parameters(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, parameters="channels_last"):
            model(images)
            model.last.weight.data = model.last.weight.data.contiguous()
            assert "last.weight is nchw, expected channels_last" in problem(lambda: model(images))
        with guard(model, parameters={"first.*": "channels_last"}):
            model(images)


class TestWhen:
    def test_all_at_the_end(self, model: nn.Module, images: Tensor) -> None:
        guarded = guard(model, inputs="nchw", outputs={"*": "channels_last"}, fail_fast=False)

        def run() -> None:
            with guarded:
                for _ in range(3):
                    model(images)

        with pytest.raises(MemoryFormatError) as raised:
            run()
        paths = [violation.path for violation in raised.value.violations]
        assert paths == ["Lossy: input", "middle.1: output", "middle: output", "Lossy: output['features'][0]"]
        assert tuple(guarded.violations) == raised.value.violations

    def test_remove_reports(self, model: nn.Module, images: Tensor) -> None:
        guarded = guard(model, outputs={"*": "channels_last"}, fail_fast=False)
        model(images)
        assert "middle.1: output is nchw" in problem(guarded.remove)
        assert hooks_of(model) == 0
        guarded.remove()
        model(images)

    def test_without_a_violation(self, model: nn.Module, images: Tensor) -> None:
        guarded = guard(
            model, inputs="channels_last", parameters="channels_last", gradients="same as parameter"
        )
        assert hooks_of(model)
        model(images)["logits"].sum().backward()
        guarded.remove()
        assert hooks_of(model) == 0
        assert guarded.violations == ()
        with pytest.raises(RuntimeError, match="was removed"), guarded:
            pass

    def test_an_error_of_the_body_goes_first(self, model: nn.Module, images: Tensor) -> None:
        with pytest.raises(KeyError), guard(model, outputs="channels_last", fail_fast=False):  # noqa: PT012
            model(images)
            raise KeyError
        assert hooks_of(model) == 0

    def test_nothing_was_checked(self, model: nn.Module) -> None:
        with (
            pytest.warns(MemoryFormatWarning, match="the model was not called") as caught,
            guard(model, inputs="nchw"),
        ):
            pass
        assert caught[0].filename == __file__

    def test_a_gradient_after_the_end(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, gradients="nchw"):
            with pytest.raises(MemoryFormatError):
                model(images)["logits"].sum().backward()
            loss = model(images)["logits"].sum()
        loss.backward()


class TestModels:
    @pytest.mark.parametrize("name", MODELS)
    def test_a_guarded_model_computes_the_same(self, name: str) -> None:
        torch.manual_seed(0)
        model = MODELS[name]().to(memory_format=NHWC).eval()
        images = torch.randn(2, 3, 16, 16).to(memory_format=NHWC)
        expected = model(images)
        anything = {"*": lambda tensor: True}
        with guard(model, inputs=anything, outputs=anything, gradients=anything, parameters=anything):
            result = model(images)
            result.sum().backward()
        assert torch.equal(result, expected)
        assert result.stride() == expected.stride()

    def test_it_is_called_several_times_and_shared(self, images: Tensor) -> None:
        shared = nn.Conv2d(3, 3, 1)
        model = nn.Sequential(shared, shared, nn.Softmax(1), shared).to(memory_format=NHWC)
        with guard(model, inputs={"0": "channels_last"}):
            assert "0: input is nchw" in problem(lambda: model(images))

    def test_checkpoints(self, images: Tensor) -> None:
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).to(memory_format=NHWC)
        with guard(
            model,
            inputs="channels_last",
            outputs={"*": "same as input"},
            gradients={"0.*": "same as parameter"},
        ):
            out = checkpoint(model, images.requires_grad_(), use_reentrant=False)
            out.square().sum().backward()

    def test_a_copy_is_guarded_and_does_not_copy_the_guard(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, outputs={"middle.1": "channels_last"}) as guarded:
            copied = copy.deepcopy(model)
            problem(lambda: copied(images))
            assert len(guarded.violations) == 1
        copied(images)

    def test_the_parameters_of_a_copy_are_the_copys(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, parameters="channels_last"):
            copied = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
            problem(lambda: copied(images))
            model(images)

    def test_inputs_are_compared_as_they_came(self, images: Tensor) -> None:
        class Changes(nn.Module):
            def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
                batch["x"] = batch.pop("x").contiguous()
                return {"x": batch["x"]}

        class Fails(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise KeyError

        changes = Changes()
        with guard(changes, outputs="same as input"):
            assert "output['x'] is nchw" in problem(lambda: changes({"x": images}))
        model = nn.Sequential(Fails())
        with guard(model, outputs={"*": "same as input"}):
            with pytest.raises(KeyError):
                model(images)
            model[0] = nn.Identity()
            model(images)

    def test_what_stands_in_a_parameters_place(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, parameters="channels_last"):
            values = {name: tensor.detach() for name, tensor in model.named_parameters()}
            torch.func.functional_call(model, values, (images,))
            values["last.weight"] = values["last.weight"].contiguous()
            assert "last.weight is nchw" in problem(
                lambda: torch.func.functional_call(model, values, (images,))
            )
            parametrize.register_parametrization(model.first, "weight", nn.Identity())
            model.head = nn.Identity()
            model(images)

    def test_calls_that_end_with_an_exception_leave_nothing(self, images: Tensor) -> None:
        class Fails(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise KeyError

        model = nn.Sequential(Fails())
        with guard(model, outputs={"*": "same as input"}):
            for _ in range(1000):
                with pytest.raises(KeyError):
                    model(images)
            (hook,) = model._forward_pre_hooks.values()
            (entered,) = [
                cell.cell_contents for cell in hook.__closure__ if hasattr(cell.cell_contents, "leave")
            ]
            assert len(entered._calls) < 300
            model[0] = nn.Identity()
            model(images)

    def test_names_of_shared_weights(self, images: Tensor) -> None:
        model = nn.ModuleDict({"enc": nn.Conv2d(3, 3, 1), "dec": nn.Conv2d(3, 3, 1)})
        model["dec"].weight = model["enc"].weight
        model["again"] = model["enc"]
        model.forward = lambda x: model["again"](x)  # type: ignore[method-assign]
        with guard(model, parameters={"dec.*": "contiguous"}, outputs={"again": "channels_last"}) as guarded:
            assert len(guarded._handles) == 2
            model(images)
            assert "again: output is nchw" in problem(
                lambda: model(images[:, :, :1].contiguous()[:, :, [0, 0]])
            )

    def test_lazy_modules(self, images: Tensor) -> None:
        model = nn.Sequential(nn.LazyConv2d(4, 3))
        with guard(model, parameters="contiguous", gradients="same as parameter"):
            model(images).sum().backward()
        assert first_loss(nn.Sequential(nn.LazyConv2d(4, 3)), images) is None

    def test_sparse_gradients(self) -> None:
        model = nn.Embedding(10, 4, sparse=True)
        with guard(model, gradients="same as parameter"):
            model(torch.tensor([1, 2])).sum().backward()

    def test_a_leaf_that_is_returned(self, images: Tensor) -> None:
        leaf = images.clone().requires_grad_()
        model = nn.Sequential(nn.Identity())
        with guard(model, gradients={"*": "channels_last"}):
            for _ in range(5):
                model(leaf)
        assert not leaf._backward_hooks

    def test_gradients_in_one_graph(self, images: Tensor) -> None:
        torch._dynamo.reset()
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).to(memory_format=NHWC)
        with guard(model, inputs="channels_last", gradients="same as output"):
            torch.compile(model, backend="eager", fullgraph=True)(images)
        torch._dynamo.reset()

    def test_other_threads(self, model: nn.Module, images: Tensor) -> None:
        with guard(model, outputs={"*": "channels_last"}, fail_fast=False) as guarded:
            thread = threading.Thread(target=model, args=(images,))
            thread.start()
            thread.join()
            assert len(guarded.violations) == 3
            with pytest.raises(MemoryFormatError):
                guarded.remove()

    def test_nothing_is_kept_alive(self, model: nn.Module, images: Tensor) -> None:
        guarded = guard(model, inputs="channels_last", gradients="same as parameter")
        for _ in range(3):
            model(images)["logits"].sum().backward()
        before = len(guarded._handles)
        tensor = images.clone()
        reference = weakref.ref(tensor)
        model(tensor)
        assert len(guarded._handles) == before
        del tensor
        gc.collect()
        assert reference() is None
        guarded.remove()
        model_reference = weakref.ref(model)
        del model
        assert model_reference is not None

    def test_the_numbers_stay(self, model: nn.Module, images: Tensor) -> None:
        expected = model(images)["logits"]
        with guard(model, inputs="channels_last", gradients="same as parameter", parameters="channels_last"):
            result = model(images)["logits"]
            assert torch.equal(result, expected)
            assert layout_of(result) == layout_of(expected)

    def test_compiled(self, images: Tensor) -> None:
        torch._dynamo.reset()
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).to(memory_format=NHWC)
        with guard(model, inputs="channels_last", outputs={"*": "same as input"}):
            compiled = torch.compile(model, backend="eager")
            compiled(images)
            assert "input is nchw" in problem(lambda: compiled(images.contiguous()))
        torch._dynamo.reset()


class TestSwitch:
    def test_off(self, model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ESPER_GUARD", "off")
        with guard(model, inputs="nchw", outputs={"*": "nchw"}, gradients="nchw", parameters="nchw"):
            assert hooks_of(model) == 0
            model(images)

    def test_warn(self, model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ESPER_GUARD", "warn")
        with pytest.warns(MemoryFormatWarning, match="input is channels_last"), guard(model, inputs="nchw"):
            model(images)


class TestMisuse:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({}, TypeError, "nothing to expect"),
            ({"inputs": "chanels_last"}, ValueError, "did you mean 'channels_last'"),
            ({"inputs": 3}, TypeError, "can't be expected"),
            ({"outputs": {"midle.*": "nchw"}}, ValueError, r"matches 'midle.\*'"),
            ({"outputs": {"heat": "nchw"}}, ValueError, "did you mean 'head'"),
            ({"parameters": {"first": "nchw"}}, ValueError, "matches 'first'"),
            ({"outputs": "same as output"}, ValueError, "'same as input' is"),
            ({"inputs": "same as x"}, ValueError, "no relation here"),
            ({"inputs": "nchw", "ambiguous": "hints"}, ValueError, "did you mean 'hint'"),
        ],
    )
    def test_arguments(self, model: nn.Module, arguments: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            guard(model, **arguments)
        assert hooks_of(model) == 0

    def test_what_is_no_module(self) -> None:
        with pytest.raises(TypeError, match="takes a module"):
            guard(lambda x: x, inputs="nchw")  # type: ignore[arg-type]


class TestFirstLoss:
    def test_it_names_module_line_and_operator(self, images: Tensor) -> None:
        class Block(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                y = x.relu()
                return torch.cat([torch.zeros(y.shape), y], 1)

        model = nn.Sequential(nn.Conv2d(3, 3, 1), Block(), nn.Softmax(1)).to(memory_format=NHWC)
        lost = first_loss(model, images)
        assert lost is not None
        line = Block.forward.__code__.co_firstlineno + 2
        assert (lost.module, lost.file, lost.line, lost.operator) == ("1", __file__, line, "aten.cat.default")
        assert str(lost).endswith(
            f"test_model_guard.py:{line} (1): loss, once: aten.cat.default channels_last -> nchw, 2x6x8x8 float32"
        )

    def test_a_copy_loses_it_too(self, images: Tensor) -> None:
        class Block(nn.Module):
            def forward(self, x: Tensor, scale: int = 1) -> Tensor:
                return x.contiguous() * scale

        lost = first_loss(nn.Sequential(Block()), images)
        assert lost is not None
        assert (lost.kind, lost.module) == ("explicit", "0")
        assert first_loss(Block(), images, scale=2) is not None

    def test_none_is_lost(self, images: Tensor) -> None:
        assert first_loss(nn.Conv2d(3, 3, 1).to(memory_format=NHWC), images) is None

    def test_the_model_stays_as_it_is(self, images: Tensor) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=NHWC)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        first_loss(model, images)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert model.training
        given, state = images.clone(), torch.get_rng_state()
        assert first_loss(nn.Sequential(nn.ReLU(inplace=True), nn.Dropout()), images) is None
        assert torch.equal(images, given)
        assert torch.equal(torch.get_rng_state(), state)

    def test_nothing_to_lose(self) -> None:
        with pytest.raises(ValueError, match="nothing is in channels_last"):
            first_loss(nn.Conv2d(3, 3, 1), torch.randn(2, 3, 4, 4))
        with pytest.raises(TypeError, match="takes a module"):
            first_loss(print)  # type: ignore[arg-type]
