"""isolate and the blends: no bytes copied, the host's strides, and the gradients of the maths."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from esper_guard import blend_add, blend_gate, blend_multiply, isolate, layout_of, straight_through
from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS

# torch calls its own deprecated torch.jit, in Inductor and for forward derivatives
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")

aten = torch.ops.aten
COPYING = (aten.clone, aten._to_copy, aten.copy_, aten.contiguous)


class LayoutCopies(TorchDispatchMode):
    """Records every copy, as what it returned. The backward of CPU tensors runs on this thread, so it is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in COPYING:
            self.made.append((func.overloadpacket.__name__, result))
        return result


def _channels_last(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.double).to(memory_format=CHANNELS_LAST_FORMATS[len(shape)])


FORMATS: dict[str, Callable[..., Tensor]] = {
    "nchw": lambda *shape: torch.randn(shape, dtype=torch.double),
    "channels_last": _channels_last,
    "permuted": lambda n, c, *space: torch.randn(n, *space, c, dtype=torch.double).movedim(-1, 1),
    "reshaped": lambda *shape: _channels_last(*shape).reshape(shape),
    "image": lambda n, *shape: _channels_last(3, *shape)[1:2],
    "ghost": lambda *shape: _channels_last(*shape)[0].unsqueeze(0),
    "transposed": lambda b, t, c: torch.randn(b, c, t, dtype=torch.double).transpose(1, 2),
    "sequence first": lambda b, t, c: torch.randn(t, b, c, dtype=torch.double).transpose(0, 1),
}
OF_RANK = {
    3: ["nchw", "transposed", "sequence first"],
    4: ["nchw", "channels_last", "permuted", "reshaped"],
    5: ["nchw", "channels_last", "permuted", "reshaped"],
}
SHAPES = [
    (2, 3, 4, 5),
    (2, 3, 1, 1),
    (2, 1, 4, 5),
    (1, 3, 4, 5),
    (1, 1, 1, 1),
    (0, 3, 4, 5),
    (2, 3, 2, 3, 4),
    (2, 5, 3),
]


def make(format: str, *shape: int, grad: bool = True) -> Tensor:
    return FORMATS[format](*shape).detach().requires_grad_(grad)


def like(tensor: Tensor) -> Tensor:
    """Other values of the same strides."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).normal_()


def formats_of(shape: tuple[int, ...]) -> list[str]:
    return OF_RANK[len(shape)] + (["image", "ghost"] if shape[0] == 1 and len(shape) > 3 else [])


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], str, str]:
    """A shape, a host's format and a seed's."""
    rank = draw(st.integers(3, 5))
    shape = (draw(st.integers(0, 3)), *(draw(st.integers(1, 3)) for _ in range(rank - 1)))
    formats = st.sampled_from(formats_of(shape))
    return shape, draw(formats), draw(formats)


BLENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "add": lambda host, seed: blend_add(host, seed, 0.25),
    "multiply": lambda host, seed: blend_multiply(host, seed, 0.25),
    "gate": lambda host, seed: blend_gate(
        host, seed, 0.5, torch.linspace(0, 1, host.shape[0], dtype=host.dtype)
    ),
}
each_blend = pytest.mark.parametrize("blend", BLENDS.values(), ids=BLENDS)


# isolate

VIEWS = {
    "nchw": lambda: make("nchw", 2, 3, 4, 5),
    "channels_last": lambda: make("channels_last", 2, 3, 4, 5),
    "channels_last_3d": lambda: make("channels_last", 2, 3, 4, 5, 6),
    "1x1": lambda: make("channels_last", 2, 3, 1, 1),
    "ghost": lambda: make("ghost", 1, 3, 4, 5),
    "tokens": lambda: make("transposed", 2, 3, 4),
    "empty": lambda: make("channels_last", 0, 3, 4, 5),
    "scalar": lambda: torch.tensor(1.0, requires_grad=True),
    "slice": lambda: make("channels_last", 2, 6, 4, 5)[:, 2:4, 1:],
    "expanded": lambda: make("channels_last", 1, 3, 4, 5).expand(2, 3, 4, 5),
    "conjugate": lambda: torch.randn(2, 3, dtype=torch.cfloat, requires_grad=True).conj(),
}


def assert_same_memory(view: Tensor, original: Tensor) -> None:
    assert view.untyped_storage().data_ptr() == original.untyped_storage().data_ptr()
    assert view.storage_offset() == original.storage_offset()
    assert view.shape == original.shape
    assert view.stride() == original.stride()
    assert view.dtype == original.dtype


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_isolate_copies_nothing_and_cuts_the_gradient(view: Callable[[], Tensor]) -> None:
    x = view()
    with LayoutCopies() as copies:
        isolated = isolate(x)
    assert not copies.made
    assert_same_memory(isolated, x)
    assert torch.equal(isolated, x)
    assert not isolated.requires_grad
    assert isolated.grad_fn is None
    assert x.requires_grad


@pytest.mark.parametrize(
    "context",
    [
        nullcontext,
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
    ids=["plain", "no_grad", "enable_grad", "inference_mode", "autocast"],
)
def test_isolate_in_any_mode(context: Callable[[], AbstractContextManager[Any]]) -> None:
    outside = make("channels_last", 2, 3, 4, 5)
    with context():
        for x in (outside, outside * 2):
            isolated = isolate(x)
            assert_same_memory(isolated, x)
            assert not isolated.requires_grad


def _times_itself(x: Tensor) -> Tensor:
    return (isolate(x) * x).sum()


def test_isolate_under_function_transforms() -> None:
    x, tangent = make("channels_last", 2, 3, 4, 5, grad=False), torch.randn(2, 3, 4, 5, dtype=torch.double)
    func = torch.func
    assert torch.equal(func.grad(_times_itself)(x), x)  # twice that if it leaked
    assert torch.equal(func.vmap(func.grad(_times_itself))(x), x)
    assert torch.equal(func.vmap(func.vmap(func.grad(_times_itself)), in_dims=1, out_dims=1)(x), x)
    second = func.grad(lambda y: func.grad(_times_itself)(y).sum())(x)
    assert not second.any()  # the first derivative is isolated
    value, derivative = func.jvp(_times_itself, (x,), (tangent,))
    assert torch.allclose(value, (x * x).sum())
    assert torch.allclose(derivative, (x * tangent).sum())
    assert torch.equal(func.jacfwd(_times_itself)(x), x)
    per_sample = func.vmap(func.jacrev(lambda y: isolate(y) * func.jacrev(_times_itself)(y)))(x.flatten(1))
    assert not per_sample.any()
    assert torch.equal(func.vmap(isolate)(x), x)


def test_isolate_compiles_into_one_graph() -> None:
    x = make("channels_last", 2, 3, 4, 5)
    compiled = torch.compile(_times_itself, fullgraph=True, backend="aot_eager")
    compiled(x).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, x.detach())


class Tagged(Tensor):
    """Overrides ``__torch_function__``."""

    asked: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.asked.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapped(Tensor):
    """Holds another tensor and hands every operator on to it, through ``__torch_dispatch__``."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, requires_grad=inner.requires_grad
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(Wrapped, lambda x: x.inner, (args, kwargs or {}))
        return pytree.tree_map_only(Tensor, Wrapped, func(*args, **kwargs))


def test_isolate_keeps_a_subclass_that_overrides_functions() -> None:
    x = make("channels_last", 2, 3, 4, 5).as_subclass(Tagged)
    Tagged.asked.clear()
    isolated = isolate(x)
    assert Tagged.asked == ["detach"]
    assert type(isolated) is Tagged
    assert_same_memory(isolated, x)
    assert not isolated.requires_grad


def test_isolate_keeps_a_subclass_that_wraps() -> None:
    x = Wrapped(make("channels_last", 2, 3, 4, 5))
    isolated = isolate(x)
    assert isinstance(isolated, Wrapped)
    assert x.requires_grad
    assert not isolated.requires_grad
    assert isolated.stride() == x.stride()
    assert_same_memory(isolated.inner, x.inner)


@pytest.mark.parametrize("thing", [None, 1.0, [torch.zeros(2)], (torch.zeros(2),), {}, nn.Identity()])
def test_isolate_takes_nothing_but_a_tensor(thing: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(thing).__qualname__};"):
        isolate(thing)


# Values and gradients


@pytest.fixture(
    params=[("nchw", "nchw"), ("channels_last", "channels_last"), ("channels_last", "nchw")], ids=str
)
def pair(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    """A host and a seed that need gradients, and the gradient of what is made of them."""
    host, seed = (make(format, 2, 3, 4, 5) for format in request.param)
    return host, seed, like(host)


Pair = tuple[Tensor, Tensor, Tensor]


def test_straight_through_is_the_host_with_the_gradient_of_both(pair: Pair) -> None:
    host, seed, upstream = pair
    result = straight_through(host, seed)
    assert torch.equal(result, host)
    for gradient in torch.autograd.grad(result, (host, seed), upstream):
        assert torch.equal(gradient, upstream)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_straight_through_shows_a_diverged_seed(value: float) -> None:
    host, seed = torch.zeros(3), torch.tensor([0.0, value, 0.0])
    assert straight_through(host, seed).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_blend_add_is_a_convex_mix(pair: Pair, alpha: float) -> None:
    host, seed, upstream = pair
    result = blend_add(host, seed, alpha)
    torch.testing.assert_close(result, (1 - alpha) * host + alpha * seed, rtol=1e-14, atol=1e-14)
    to_host, to_seed = torch.autograd.grad(result, (host, seed), upstream)
    assert torch.equal(to_host, (1 - alpha) * upstream)
    assert torch.equal(to_seed, alpha * upstream)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_blend_multiply_modulates(pair: Pair, alpha: float) -> None:
    host, seed, upstream = pair
    modulation = torch.tanh(seed - host).detach()
    result = blend_multiply(host, seed, alpha)
    torch.testing.assert_close(result, host * (1 + alpha * modulation), rtol=1e-14, atol=1e-14)
    to_host, to_seed = torch.autograd.grad(result, (host, seed), upstream)
    assert torch.equal(to_host, upstream * (1 + alpha * modulation))  # and nothing by way of the modulation
    torch.testing.assert_close(to_seed, upstream * host.detach() * alpha * (1 - modulation**2))


def test_blend_gate_mixes_by_alpha_times_gate(pair: Pair) -> None:
    host, seed, upstream = pair
    gate = torch.tensor([0.25, 0.75], dtype=torch.double, requires_grad=True)
    amplitude = (0.5 * gate.detach()).reshape(2, 1, 1, 1)
    result = blend_gate(host, seed, 0.5, gate)
    torch.testing.assert_close(result, (1 - amplitude) * host + amplitude * seed, rtol=1e-14, atol=1e-14)
    to_host, to_seed, to_gate = torch.autograd.grad(result, (host, seed, gate), upstream)
    torch.testing.assert_close(to_host, (1 - amplitude) * upstream)
    torch.testing.assert_close(to_seed, amplitude * upstream)
    torch.testing.assert_close(to_gate, (0.5 * upstream * (seed - host)).sum([1, 2, 3]))


def test_the_gate_gets_no_gradient_outside_of_its_range() -> None:
    gate = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True)
    host, seed = torch.zeros(3, 2, 2, 2), torch.ones(3, 2, 2, 2)
    blend_gate(host, seed, 1.0, gate).sum().backward()
    assert gate.grad is not None
    assert gate.grad.tolist() == [0, 8, 0]


GRADCHECKED: dict[str, Callable[..., Tensor]] = {
    "add": blend_add,
    "multiply, input attached": lambda host, seed, alpha: blend_multiply(host, seed, alpha, seed_input=host),
    "gate": lambda host, seed, alpha: blend_gate(host, seed, alpha, 0.75),
    "gate's gate": lambda host, seed, gate: blend_gate(host, seed, 0.75, gate),
}


@pytest.mark.parametrize("blend", GRADCHECKED.values(), ids=GRADCHECKED)
@pytest.mark.parametrize(
    ("shape", "host", "seed"),
    [
        ((2, 3, 2, 2), "nchw", "channels_last"),
        ((2, 3, 2, 2), "channels_last", "nchw"),
        ((2, 3, 1, 1), "channels_last", "nchw"),  # the strides of such a result are set by views
        ((2, 1, 2, 2), "channels_last", "channels_last"),
        ((1, 3, 2, 2), "ghost", "nchw"),
        ((2, 3, 1, 2, 2), "channels_last", "nchw"),
        ((2, 1, 3), "transposed", "nchw"),
    ],
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradcheck(
    blend: Callable[..., Tensor], shape: tuple[int, ...], host: str, seed: str, per_sample: bool
) -> None:
    alpha = torch.full((shape[0],) if per_sample else (), 0.3, dtype=torch.double, requires_grad=True)
    inputs = (make(host, *shape), make(seed, *shape), alpha)
    assert gradcheck(blend, inputs)
    assert gradgradcheck(blend, inputs)


def test_multiply_leaks_no_gradient_by_an_isolated_input() -> None:
    host, network = make("channels_last", 2, 3, 4, 5), nn.Conv2d(3, 3, 3, padding=1).double()
    seed_input = isolate(host)
    seed = network(seed_input)
    upstream = like(host)
    result = blend_multiply(host, seed, 0.5, seed_input=seed_input)
    (gradient,) = torch.autograd.grad(result, host, upstream)
    assert torch.equal(gradient, upstream * (1 + 0.5 * torch.tanh(seed - seed_input)))


def test_multiply_has_the_full_gradient_of_an_attached_input() -> None:
    network, upstream = nn.Conv2d(3, 3, 3, padding=1).double(), make("nchw", 2, 3, 4, 5, grad=False)
    host = make("channels_last", 2, 3, 4, 5)
    by_hand = host * (1 + 0.5 * torch.tanh(network(host) - host))
    (expected,) = torch.autograd.grad(by_hand, host, upstream)
    result = blend_multiply(host, network(host), 0.5, seed_input=host)
    (gradient,) = torch.autograd.grad(result, host, upstream)
    torch.testing.assert_close(gradient, expected)
    assert not torch.allclose(gradient, upstream * (1 + 0.5 * torch.tanh(network(host) - host)))


# Bounds

ANY_NUMBER = st.floats(allow_nan=False, allow_subnormal=False)  # torch may flush those to 0


@given(ANY_NUMBER, ANY_NUMBER)
def test_alpha_and_gate_are_clamped(alpha: float, gate: float) -> None:
    host, seed = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    a, g = (min(max(value, 0.0), 1.0) for value in (alpha, gate))
    assert torch.equal(blend_add(host, seed, alpha), torch.full_like(host, a))
    assert torch.equal(blend_add(host, seed, torch.tensor(alpha)), torch.full_like(host, a))
    assert torch.allclose(blend_gate(host, seed, alpha, gate), torch.full_like(host, a * g))
    assert torch.allclose(
        blend_gate(host, seed, alpha, torch.tensor([gate, gate])), torch.full_like(host, a * g)
    )


@given(*(st.floats(-bound, bound, allow_subnormal=False) for bound in (2, 1e6, 1e6)))
def test_the_factor_of_multiply_is_bounded(alpha: float, seed: float, seed_input: float) -> None:
    host = torch.ones(1, 1, 1, 1, dtype=torch.double)
    factor = blend_multiply(host, host * seed, alpha, seed_input=host * seed_input).item()
    a = min(max(alpha, 0.0), 1.0)
    assert 1 - a <= factor <= 1 + a


def test_multiply_is_the_host_where_the_seed_returns_its_input() -> None:
    host, seed_input = make("channels_last", 2, 3, 4, 5), make("nchw", 2, 3, 4, 5)
    assert torch.equal(blend_multiply(host, seed_input, 1.0, seed_input=seed_input), host)
    assert torch.equal(blend_multiply(host, host, 1.0), host)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zero", [0.0, -1.0, torch.tensor(0.0), torch.zeros(2)], ids=str)
def test_alpha_0_is_the_host_bit_for_bit(dtype: torch.dtype, zero: float | Tensor) -> None:
    host = make("channels_last", 2, 3, 4, 5, grad=False).to(dtype)
    seed = 1000 * make("nchw", 2, 3, 4, 5, grad=False).to(dtype)
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    for result in (
        straight_through(host, seed),
        blend_add(host, seed, zero),
        blend_multiply(host, seed, zero),
        blend_gate(host, seed, zero, 1.0),
        blend_gate(host, seed, 1.0, zero),
    ):
        assert torch.equal(result.view(bits), host.view(bits))


# Strides and copies


@settings(max_examples=300)
@given(layouts(), st.sampled_from(sorted(BLENDS)))
def test_the_result_has_the_strides_of_the_host_and_nothing_is_copied(
    layout: tuple[tuple[int, ...], str, str], blend: str
) -> None:
    shape, host_format, seed_format = layout
    host, seed = make(host_format, *shape), make(seed_format, *shape)
    with LayoutCopies() as copies:
        result = BLENDS[blend](host, seed)
        torch.autograd.grad(result, (host, seed), like(result))
    assert result.stride() == host.stride()
    assert layout_of(result) == layout_of(host)
    assert not copies.made


@each_blend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_formats_that_matter_most(
    blend: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    for host_format in formats_of(shape):
        for seed_format in formats_of(shape):
            host, seed = make(host_format, *shape), make(seed_format, *shape)
            with LayoutCopies() as copies:
                result = blend(host, seed)
                torch.autograd.grad(result, (host, seed), like(result))
            assert result.stride() == host.stride(), (host_format, seed_format)
            assert not copies.made


@each_blend
def test_a_strided_host_keeps_what_kernels_take_it_for(blend: Callable[[Tensor, Tensor], Tensor]) -> None:
    for host in (make("channels_last", 2, 6, 4, 5)[:, 1:4], make("channels_last", 2, 6, 4, 5)[:, :3, :1, :1]):
        result = blend(host, make("nchw", *host.shape))
        assert layout_of(result).taken_for == "channels_last"


@each_blend
@pytest.mark.parametrize("format", ["nchw", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1), (2, 3, 2, 4, 5)], ids=str)
@pytest.mark.parametrize(
    ("host_dtype", "seed_dtype"),
    [(torch.float32, torch.bfloat16), (torch.float32, torch.float64), (torch.bfloat16, torch.float32)],
)
def test_another_dtype_costs_one_conversion_that_also_converts_the_format(
    blend: Callable[[Tensor, Tensor], Tensor],
    format: str,
    shape: tuple[int, ...],
    host_dtype: torch.dtype,
    seed_dtype: torch.dtype,
) -> None:
    host = make(format, *shape, grad=False).to(host_dtype).requires_grad_()
    other = {"nchw": "channels_last", "channels_last": "nchw"}[format]
    seed = make(other, *shape, grad=False).to(seed_dtype).requires_grad_()
    with LayoutCopies() as copies:
        result = blend(host, seed)
    assert result.dtype == host_dtype
    assert result.stride() == host.stride()
    features = [(name, copy) for name, copy in copies.made if copy.shape == host.shape]
    assert [name for name, _ in features] == ["_to_copy"]
    assert layout_of(features[0][1]) == layout_of(host)
    assert torch.equal(result, blend(host, seed.to(host_dtype)))
    with LayoutCopies() as copies:
        to_host, to_seed = torch.autograd.grad(result, (host, seed), like(result))
    assert [name for name, copy in copies.made if copy.shape == host.shape] == ["_to_copy"]
    assert (to_host.dtype, to_seed.dtype) == (host_dtype, seed_dtype)


def test_tokens_of_another_dtype_are_converted_once() -> None:
    host, seed = make("transposed", 2, 3, 4).float(), make("nchw", 2, 3, 4).bfloat16()
    with LayoutCopies() as copies:
        result = blend_add(host, seed, 0.5)
    assert [name for name, _ in copies.made] == ["_to_copy"]
    assert (result.dtype, result.stride()) == (torch.float32, host.stride())


# Alpha's shapes


def _blends_by(alpha: Any) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    return {
        "add": lambda host, seed: blend_add(host, seed, alpha),
        "multiply": lambda host, seed: blend_multiply(host, seed, alpha),
        "gate's alpha": lambda host, seed: blend_gate(host, seed, alpha, 0.5),
        "gate's gate": lambda host, seed: blend_gate(host, seed, 0.5, alpha),
    }


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 2), (3, 4, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("format", ["nchw", "other"])
def test_alpha_is_a_number_or_a_value_for_each_sample(shape: tuple[int, ...], format: str) -> None:
    host = make("nchw" if format == "nchw" else OF_RANK[len(shape)][1], *shape)
    seed = make("nchw", *shape)
    values = torch.tensor([0.1, 0.5, 0.9], dtype=torch.double)
    for name, blend in _blends_by(0.5).items():
        expected = blend(host, seed)
        for half in (
            torch.tensor(0.5),
            torch.tensor([0.5]),
            torch.full((1, 1, 1, 1), 0.5),
            torch.full((3,), 0.5),
        ):
            result = _blends_by(half)[name](host, seed)
            torch.testing.assert_close(result, expected, msg=name)
            assert result.stride() == host.stride()
    for name in _blends_by(0.5):
        rows = zip(values.tolist(), host, seed, strict=True)
        expected = torch.stack([_blends_by(a)[name](h[None], s[None])[0] for a, h, s in rows])
        per_sample = [3] + [1] * (len(shape) - 1)
        for alpha in (values, values[:, None], values.reshape(3, 1, 1, 1), values.reshape(per_sample)):
            result = _blends_by(alpha)[name](host, seed)
            torch.testing.assert_close(result, expected, msg=name)
            assert result.stride() == host.stride()


def test_alpha_may_have_a_value_for_each_channel_or_feature() -> None:
    host, seed = make("channels_last", 2, 3, 4, 5), make("nchw", 2, 3, 4, 5)
    channels = torch.rand(1, 3, 1, 1, dtype=torch.double)
    torch.testing.assert_close(blend_add(host, seed, channels), host + channels * (seed - host))
    everything = torch.rand(2, 3, 4, 5, dtype=torch.double)
    torch.testing.assert_close(blend_add(host, seed, everything), host + everything * (seed - host))


def test_alpha_does_not_raise_the_dtype() -> None:
    host, seed = make("nchw", 2, 3, 4, 5).float(), make("nchw", 2, 3, 4, 5).float()
    for alpha in (torch.tensor(0.5, dtype=torch.double), torch.rand(2, dtype=torch.double), torch.tensor(1)):
        for blend in _blends_by(alpha).values():
            assert blend(host, seed).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (2,)], ids=["one", "per sample"])
def test_a_share_near_1_is_not_rounded_away_in_16_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    host = make("channels_last", 2, 3, 4, 5, grad=False).to(dtype).requires_grad_()
    seed, upstream = make("nchw", 2, 3, 4, 5, grad=False).to(dtype), torch.ones_like(host)
    for alpha in (0.998, 0.999, 0.9999):
        share = torch.full(shape, alpha, dtype=torch.double)
        for result in (blend_add(host, seed, share), blend_gate(host, seed, 1.0, share)):
            assert result.dtype == dtype
            assert result.stride() == host.stride()
            torch.testing.assert_close(result, blend_add(host, seed, alpha))
            (to_host,) = torch.autograd.grad(result, host, upstream)
            torch.testing.assert_close(
                to_host.double(), torch.full_like(host, 1 - alpha).double(), rtol=0.01, atol=0
            )


@pytest.mark.parametrize("name", _blends_by(0.5))
@pytest.mark.parametrize(
    "alpha", [(3,), (4,), (2, 3), (2, 3, 4), (1, 2), (2, 3, 1, 5), (0,), (1, 1, 1, 1, 2)], ids=str
)
def test_an_alpha_that_fits_nothing_is_an_error_that_names_both_shapes(
    name: str, alpha: tuple[int, ...]
) -> None:
    host = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="does not broadcast") as error:
        _blends_by(torch.zeros(alpha))[name](host, host)
    assert str(alpha) in str(error.value)
    assert "(2, 3, 4, 4)" in str(error.value)
    assert str(error.value).startswith("gate" if name == "gate's gate" else "alpha")


@each_blend
@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (1, 3, 4, 4), (2, 3, 4), (3, 4, 4), ()], ids=str)
def test_features_of_two_shapes_are_an_error_that_names_both(
    blend: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="the seed has shape") as error:
        blend(torch.zeros(2, 3, 4, 4), torch.zeros(shape))
    assert str(shape) in str(error.value)
    assert "(2, 3, 4, 4)" in str(error.value)


def test_a_seed_input_of_another_shape_is_an_error() -> None:
    host = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"the seed_input has shape \(2, 3, 1, 1\), the host \(2, 3, 4, 4\)"):
        blend_multiply(host, host, 0.5, seed_input=torch.zeros(2, 3, 1, 1))


@pytest.mark.parametrize("name", _blends_by(0.5))
def test_nan_is_no_alpha(name: str) -> None:
    host = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"(alpha|gate) is NaN"):
        _blends_by(float("nan"))[name](host, host)


# Compiling and mapping


@each_blend
def test_blends_compile_into_one_graph(blend: Callable[[Tensor, Tensor], Tensor], compile_anew: Any) -> None:
    for shape in SHAPES:
        for host_format in formats_of(shape):
            compiled = compile_anew(blend, backend="aot_eager")
            host, seed = make(host_format, *shape), make("nchw", *shape)
            result = compiled(host, seed)
            torch.testing.assert_close(result, blend(host, seed))
            assert layout_of(result).taken_for == layout_of(host).taken_for, (shape, host_format)
            upstream = like(host)
            gradients = torch.autograd.grad(result, (host, seed), upstream)
            wanted = torch.autograd.grad(blend(host, seed), (host, seed), upstream)
            torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize("blend", [BLENDS["straight_through"], BLENDS["add"], BLENDS["multiply"]])
@pytest.mark.parametrize("shape", [(3, 1, 5), (3, 1, 1), (1, 4, 5), (3, 2, 1, 1), (1, 3)], ids=str)
def test_blends_compile_for_any_batch(
    blend: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], compile_anew: Any
) -> None:
    for host_format, seed_format in itertools.product(formats_of((8, *shape))[:2], repeat=2):
        compiled = compile_anew(blend, backend="aot_eager")
        for batch in (8, 5, 3):
            host, seed = make(host_format, batch, *shape), make(seed_format, batch, *shape)
            result = compiled(host, seed)
            torch.testing.assert_close(result, blend(host, seed))
            assert layout_of(result).taken_for == layout_of(host).taken_for


@each_blend
def test_blends_of_two_dtypes_compile(blend: Callable[[Tensor, Tensor], Tensor], compile_anew: Any) -> None:
    host = make("channels_last", 2, 3, 4, 5, grad=False).float()
    seed = make("nchw", 2, 3, 4, 5, grad=False).bfloat16()
    result = compile_anew(blend, backend="aot_eager")(host, seed)
    assert result.dtype == torch.float32
    assert result.stride() == host.stride()


def test_a_number_may_change_between_calls_of_compiled_code(compile_anew: Any) -> None:
    host, seed = make("channels_last", 2, 3, 4, 5), make("nchw", 2, 3, 4, 5)
    compiled = compile_anew(blend_gate, backend="aot_eager")
    for alpha in (0.25, 0.5, 0.75, 1.5, -1.0):
        torch.testing.assert_close(compiled(host, seed, alpha, alpha), blend_gate(host, seed, alpha, alpha))


@pytest.mark.skipif(
    torch.__version__ < "2.8", reason="the Inductor of torch 2.4 drops strides of size-1 dimensions"
)
@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 1, 4, 5)], ids=str)
def test_inductor_keeps_the_strides_that_fit_both_formats(shape: tuple[int, ...], compile_anew: Any) -> None:
    host, seed = make("channels_last", *shape, grad=False), make("nchw", *shape, grad=False)
    assert compile_anew(BLENDS["multiply"])(host, seed).stride() == host.stride()


@pytest.mark.parametrize("dimension", [0, 1, -1])
@pytest.mark.parametrize("format", ["nchw", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1)], ids=str)
def test_blends_can_be_mapped(shape: tuple[int, ...], format: str, dimension: int) -> None:
    hosts = torch.stack([make(format, *shape, grad=False) for _ in range(3)], dimension)
    seeds = torch.stack([make("nchw", *shape, grad=False) for _ in range(3)], dimension)
    alphas = torch.tensor([0.0, 0.3, 1.0], dtype=torch.double)
    samples = torch.rand(3, 2, dtype=torch.double)
    rows = list(zip(hosts.unbind(dimension), seeds.unbind(dimension), alphas, samples, strict=True))
    vmap, dims = torch.func.vmap, (dimension, dimension)

    result = vmap(straight_through, dims)(hosts, seeds)
    torch.testing.assert_close(result, torch.stack([h for h, *_ in rows]))
    for blend in (blend_add, blend_multiply):
        result = vmap(blend, (*dims, 0))(hosts, seeds, alphas)
        torch.testing.assert_close(result, torch.stack([blend(h, s, a) for h, s, a, _ in rows]))
        result = vmap(blend, (*dims, 0))(hosts, seeds, samples)
        torch.testing.assert_close(result, torch.stack([blend(h, s, a) for h, s, _, a in rows]))
    result = vmap(blend_gate, (*dims, 0, 0))(hosts, seeds, alphas, samples)
    torch.testing.assert_close(result, torch.stack([blend_gate(*row) for row in rows]))


def test_blends_have_forward_derivatives() -> None:
    host, seed, tangent = (make("channels_last", 2, 3, 1, 1, grad=False) for _ in range(3))
    for blend, factor in ((straight_through, 1.0), (BLENDS["add"], 0.25)):
        _, derivative = torch.func.jvp(lambda s, blend=blend: blend(host, s), (seed,), (tangent,))
        torch.testing.assert_close(derivative, factor * tangent)
