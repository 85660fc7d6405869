"""The five layout states of a tensor.

``is_contiguous()`` answers yes or no, and both answers mislead: a (2, 1, 4, 5) tensor is contiguous and
channels_last at once, and a one-image batch can be channels_last in memory while every kernel takes it for NCHW.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

State = Literal["nchw", "channels_last", "ambiguous", "ghost", "strided"]
Hint = Literal["nchw", "channels_last"]


class Layout(NamedTuple):
    """What `layout_of` answers. Compares as the tuple ``(state, hint)``, prints as ``ambiguous(channels_last)``.

    ``state`` is one of

    - ``"nchw"``: dense, the last dimension varies fastest (`torch.contiguous_format`, at any rank);
    - ``"channels_last"``: dense, the channels vary fastest (`torch.channels_last`, or `channels_last_3d` at rank 5);
    - ``"ambiguous"``: both at once, because of dimensions of size 1 or 0;
    - ``"ghost"``: channels_last in memory, but the stride of a dimension of size 1 makes kernels take it for NCHW;
    - ``"strided"``: neither, such as a slice or a transposed view.

    ``hint`` is the format that kernels take the tensor for, where the state does not say it: ``"nchw"`` or
    ``"channels_last"`` for ambiguous and strided, None for the others.
    """

    state: State
    hint: Hint | None = None

    @property
    def taken_for(self) -> Hint:
        """The format that kernels take the tensor for, as C++'s ``suggest_memory_format`` decides it."""
        return "channels_last" if "channels_last" in self else "nchw"

    def __str__(self) -> str:
        return f"{self.state}({self.hint})" if self.hint else self.state


NCHW: Final = Layout("nchw")
CHANNELS_LAST: Final = Layout("channels_last")
GHOST: Final = Layout("ghost")
AMBIGUOUS_NCHW: Final = Layout("ambiguous", "nchw")
AMBIGUOUS_CHANNELS_LAST: Final = Layout("ambiguous", "channels_last")
STRIDED_NCHW: Final = Layout("strided", "nchw")
STRIDED_CHANNELS_LAST: Final = Layout("strided", "channels_last")

CHANNELS_LAST_FORMATS: Final = {4: torch.channels_last, 5: torch.channels_last_3d}
"""torch's name for the format, by rank."""


def layout_of(tensor: Tensor) -> Layout:
    """Which of the five layout states a tensor is in.

    Only shape and strides are read: no data, no synchronisation, about a microsecond. Meta and fake tensors,
    quantised tensors and subclasses work, and ``torch.compile(fullgraph=True)`` folds the answer into the graph.

    Args:
        tensor: of any shape. torch knows channels_last for (N, C, H, W) and (N, C, D, H, W) only, so that at any
            other rank, such as tokens (B, T, C), the answer is nchw or strided(nchw).

    Raises:
        TypeError: the argument is no tensor, or one that has no strides: sparse, nested, or in oneDNN's own layout.
        ValueError: an uninitialised parameter of a lazy module (torch's own message).

    Source: agrees with ``Tensor.is_contiguous``, and with the format that a kernel gives its result by C++'s
    ``suggest_memory_format``, on every small shape and stride (tests/runtime/test_formats.py; torch 2.4.1 to 2.15.0).
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"layout_of() takes a tensor, not {type(tensor).__qualname__}")
    if not has_strides(tensor):
        raise TypeError(_no_strides(tensor))
    order = _INNERMOST_FIRST.get(tensor.dim())
    if order is None:
        return NCHW if tensor.is_contiguous() else STRIDED_NCHW
    sizes, strides = tensor.shape, tensor.stride()
    dense, taken = True, strides[1] != 0
    packed, inner = 1, 0
    for dimension in order:
        size, stride = sizes[dimension], strides[dimension]
        if size != 1:
            dense = dense and stride == packed
            packed *= size
        taken = taken and size != 0 and stride >= inner and not (dimension == 0 and inner == strides[1])
        inner = stride * size if size > 1 else stride
    if tensor.is_contiguous():
        if not dense:
            return NCHW
        return AMBIGUOUS_CHANNELS_LAST if taken else AMBIGUOUS_NCHW
    if dense:
        return CHANNELS_LAST if taken else GHOST
    return STRIDED_CHANNELS_LAST if taken else STRIDED_NCHW


def has_strides(tensor: Tensor) -> bool:
    """Whether a tensor has strides at all, so that `layout_of` has an answer."""
    return tensor.layout is torch.strided and not tensor.is_nested


# The rules of c10/core/MemoryFormat.h and TensorImpl.h, which Python can't ask for cheaply, nor under vmap: "dense"
# is is_contiguous(memory_format=channels_last), "taken" is suggest_memory_format() == channels_last.
_INNERMOST_FIRST: Final = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}


def _no_strides(tensor: Tensor) -> str:
    kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    remedy = "unbind() it" if tensor.is_nested else "to_dense() it"
    return (
        f"a {kind} tensor has no strides, so no memory format: {remedy} first "
        f"(shape {tuple(tensor.shape) if not tensor.is_nested else f'of {tensor.size(0)} parts'})"
    )
