"""layout_of against torch's own predicates, on every small shape and stride, and on every kind of tensor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from esper_guard import Layout, layout_of

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


MEMORY = torch.zeros(100_000)
UPSAMPLE = {4: torch.ops.aten.upsample_nearest2d.default, 5: torch.ops.aten.upsample_nearest3d.default}


def kernels_take_for(tensor: Tensor) -> str:
    """Asked of a kernel: C++'s ``suggest_memory_format`` decides the strides of what upsampling returns.

    Its Python copy, ``torch._prims_common.suggest_memory_format``, is wrong about some tensors before torch 2.9.
    """
    if tensor.numel() == 0:
        return "nchw"
    larger = UPSAMPLE[tensor.dim()](tensor, [3] * (tensor.dim() - 2))
    return "channels_last" if larger.stride(1) == 1 else "nchw"


def expected(tensor: Tensor) -> tuple[str, str | None]:
    """State and hint by torch's own predicates alone."""
    taken_for = kernels_take_for(tensor)
    nchw = tensor.is_contiguous()
    channels_last = tensor.is_contiguous(memory_format=CHANNELS_LAST[tensor.dim()])
    if nchw and channels_last:
        return "ambiguous", taken_for
    if nchw:
        return "nchw", None
    if channels_last:
        return ("channels_last" if taken_for == "channels_last" else "ghost"), None
    return "strided", taken_for


def small_tensors(rank: int) -> Iterator[Tensor]:
    sizes = (0, 1, 2) if rank == 4 else (1, 2)
    strides = (0, 1, 2, 3, 4, 8) if rank == 4 else (0, 1, 2, 4)
    for shape in itertools.product(sizes, repeat=rank):
        for stride in itertools.product(strides, repeat=rank):
            yield MEMORY.as_strided(shape, stride)


@pytest.mark.parametrize("rank", [4, 5])
def test_agrees_with_torch_on_every_small_shape_and_stride(rank: int) -> None:
    states = set()
    for tensor in small_tensors(rank):
        layout = layout_of(tensor)
        assert layout == expected(tensor), (tuple(tensor.shape), tensor.stride())
        assert layout.taken_for == kernels_take_for(tensor)
        states.add(layout)
    assert len(states) == 7  # five states, two of them with either hint


@given(
    st.integers(4, 5).flatmap(
        lambda rank: st.tuples(
            st.lists(st.integers(0, 5), min_size=rank, max_size=rank),
            st.lists(st.integers(0, 700), min_size=rank, max_size=rank),
        )
    )
)
def test_agrees_with_torch_on_any_shape_and_stride(layout: tuple[list[int], list[int]]) -> None:
    tensor = MEMORY.as_strided(*layout)
    assert layout_of(tensor) == expected(tensor)


@given(st.permutations(range(4)), st.lists(st.integers(1, 4), min_size=4, max_size=4), st.integers(0, 3))
def test_agrees_with_torch_on_permuted_and_sliced_tensors(
    order: list[int], shape: list[int], sliced: int
) -> None:
    tensor = torch.zeros(shape).permute(order).narrow(sliced, 0, max(1, shape[order[sliced]] // 2))
    assert layout_of(tensor) == expected(tensor)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.empty(2, 3, 4, 5), "nchw"),
        (torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last), "channels_last"),
        (torch.empty(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), "channels_last"),
        (torch.empty(2, 1, 4, 5), "ambiguous(nchw)"),
        (torch.empty(2, 1, 4, 5).to(memory_format=torch.channels_last), "ambiguous(channels_last)"),
        (torch.empty(2, 3, 1, 1), "ambiguous(nchw)"),
        (torch.empty(2, 3, 1, 1).to(memory_format=torch.channels_last), "ambiguous(channels_last)"),
        (torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)[0].unsqueeze(0), "ghost"),
        (torch.empty(2, 4, 4, 5).to(memory_format=torch.channels_last)[:, :2], "strided(channels_last)"),
        (torch.empty(2, 3, 4, 5)[:, :, ::2], "strided(nchw)"),
        (torch.empty(2, 7, 5), "nchw"),
        (torch.empty(2, 5, 7).transpose(1, 2), "strided(nchw)"),
        (torch.empty(3), "nchw"),
        (torch.empty(()), "nchw"),
    ],
)
def test_the_states_by_name(tensor: Tensor, text: str) -> None:
    layout = layout_of(tensor)
    assert str(layout) == text
    assert layout.state == text.partition("(")[0]
    assert layout == Layout(layout.state, layout.hint)


NHWC = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)


def test_fake_tensors() -> None:
    with FakeTensorMode() as mode:
        assert str(layout_of(mode.from_tensor(NHWC))) == "channels_last"


def test_meta_tensors() -> None:
    for tensor in (NHWC, NHWC.contiguous(), NHWC[:, :2], NHWC[0].unsqueeze(0), NHWC[:, :1, :1, :1]):
        on_meta = torch.empty_strided(tensor.shape, tensor.stride(), device="meta")
        assert layout_of(on_meta) == layout_of(tensor)


class Named(Tensor):
    """A subclass that torch functions go through."""


class Wrapper(Tensor):
    """A subclass that holds another tensor and has strides of its own."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:  # noqa: PYI034
        wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        unwrapped = pytree.tree_map_only(Wrapper, lambda each: each.inner, (arguments, keywords or {}))
        return function(*unwrapped[0], **unwrapped[1])


@pytest.mark.parametrize("tensor", [NHWC.as_subclass(Named), Wrapper(NHWC), torch.nn.Parameter(NHWC)])
def test_subclasses(tensor: Tensor) -> None:
    assert str(layout_of(tensor)) == "channels_last"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_as_any_other() -> None:
    per_tensor = torch.quantize_per_tensor(NHWC, 0.1, 0, torch.qint8)
    assert str(layout_of(per_tensor)) == "channels_last"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("make", "kind", "remedy"),
    [
        (lambda: torch.ones(2, 3).to_sparse(), "sparse_coo", "to_dense()"),
        (lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]), "nested", "unbind()"),
    ],
)
def test_tensors_without_strides_get_a_clear_answer(make, kind: str, remedy: str) -> None:
    with pytest.raises(TypeError, match=kind) as error:
        layout_of(make())
    assert remedy in str(error.value)


@pytest.mark.parametrize("tensor", [NHWC, NHWC.contiguous()])
def test_folds_into_a_compiled_graph(tensor: Tensor) -> None:
    def double_channels_last(x: Tensor) -> Tensor:
        return x * 2 if layout_of(x).state == "channels_last" else x

    compiled = torch.compile(double_channels_last, fullgraph=True, backend="eager")
    assert torch.equal(compiled(tensor), double_channels_last(tensor))


def test_under_vmap_it_sees_one_sample() -> None:
    seen = []
    batch = torch.ones(7, 2, 4, 5, 3).permute(0, 1, 4, 2, 3)
    torch.func.vmap(lambda x: seen.append(str(layout_of(x))) or x)(batch)
    assert seen == ["channels_last"]


@pytest.mark.parametrize("thing", [None, [1, 2], (2, 3, 4, 5), torch.nn.Identity()])
def test_only_tensors_have_a_layout(thing: object) -> None:
    with pytest.raises(TypeError, match=f"takes a tensor, not {type(thing).__qualname__}"):
        layout_of(thing)


def test_what_the_guide_says_about_ghosts() -> None:
    ghost = NHWC[0].unsqueeze(0)
    assert str(layout_of(NHWC[:1])) == "channels_last"
    assert str(layout_of(torch.nn.functional.max_pool2d(ghost, 2))) == "nchw"
    assert str(layout_of(torch.nn.functional.interpolate(ghost, scale_factor=2))) == "nchw"
    assert str(layout_of(torch.nn.functional.group_norm(ghost, 1))) == "nchw"
    assert str(layout_of(ghost.contiguous(memory_format=torch.channels_last))) == "ghost"
    copied = ghost.to(memory_format=torch.channels_last)
    assert str(layout_of(copied)) == "channels_last"
    assert copied.data_ptr() != ghost.data_ptr()
    repaired = ghost.permute(0, 2, 3, 1).squeeze(0).unsqueeze(0).permute(0, 3, 1, 2)
    assert str(layout_of(repaired)) == "channels_last"
    assert repaired.data_ptr() == ghost.data_ptr()
    assert torch.equal(repaired, ghost)
