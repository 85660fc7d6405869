"""What kind of operator is dispatched."""

from __future__ import annotations

import enum
import re
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

aten = torch.ops.aten
COMPOSITE_KERNEL: Final = torch._C.DispatchKey.CompositeImplicitAutograd


class Sort(enum.Enum):
    """How the tracer treats an operator."""

    COPY = enum.auto()
    """Its first argument is copied into its result."""
    COPY_INTO = enum.auto()
    """Its second argument is copied into its first."""
    COPY_LISTS_INTO = enum.auto()
    PERMUTE = enum.auto()
    """A view that may change the order of dimensions, or their meaning."""
    COMPUTE = enum.auto()
    """It makes a tensor of its own."""
    WRITE = enum.auto()
    """It writes into one of its arguments."""
    COMPOSITE = enum.auto()
    """It consists of others, as far as the device has no kernel for it; then dispatched in inference mode only."""
    OTHER = enum.auto()
    """Other views, results that are no tensor or a list of tensors."""


_SORTS: Final = {
    aten.clone.default: Sort.COPY,
    aten._to_copy.default: Sort.COPY,
    aten.copy_.default: Sort.COPY_INTO,
    aten._foreach_copy_.default: Sort.COPY_LISTS_INTO,
    aten.permute.default: Sort.PERMUTE,
    aten.transpose.int: Sort.PERMUTE,
    aten.view.default: Sort.PERMUTE,
    aten._reshape_alias.default: Sort.PERMUTE,
    aten.as_strided.default: Sort.PERMUTE,
    aten.select.int: Sort.PERMUTE,
    aten.unbind.int: Sort.PERMUTE,
    aten.squeeze.default: Sort.PERMUTE,
    aten.squeeze.dim: Sort.PERMUTE,
    aten.squeeze.dims: Sort.PERMUTE,
    aten.unsqueeze.default: Sort.PERMUTE,
    aten.diagonal.default: Sort.PERMUTE,
    aten.unfold.default: Sort.PERMUTE,
    # the caller gives the strides
    aten.new_empty_strided.default: Sort.OTHER,
    aten.empty_strided.default: Sort.OTHER,
}

_SENSITIVE: Final = re.compile(
    # their composites compute something else, in the last digits, while a dispatch mode is active
    "aten::(linalg_|fft_|norm|frobenius_norm|nuclear_norm|matrix_rank|pinverse|svd|det|logdet|slogdet|cond)"
)
_FEATURES: Final = {
    # a weight's format decides that of the result, but a result in NCHW for NCHW features loses nothing
    aten.convolution.default: (0,),
    aten.convolution_overrideable.default: (0,),
    aten.convolution_backward.default: (0, 1),
    aten.convolution_backward_overrideable.default: (0, 1),
}


def sort_of(operator: Any) -> Sort:
    """How to treat an operator. Of the ones that are not listed, its schema tells."""
    known = _SORTS.get(operator)
    if known is not None:
        return known
    schema = getattr(operator, "_schema", None)
    if schema is None or not torch._C._dispatch_has_kernel(operator.name()):
        return Sort.OTHER  # a higher-order operator, or metadata of a fake tensor, such as prim::device
    # not operator.has_kernel_for_dispatch_key: it counts decompositions in Python, which eager code never runs
    if torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd"):
        return Sort.OTHER if _SENSITIVE.match(schema.name) else Sort.COMPOSITE
    returns = schema.returns
    first = returns[0] if returns else None
    if first is not None and first.alias_info is None and str(first.type) in ("Tensor", "Optional[Tensor]"):
        return Sort.COMPUTE
    return Sort.WRITE if schema.is_mutable else Sort.OTHER


@cache
def has_own_kernel(operator: str, device: str) -> bool:
    """Whether a device has a kernel for an operator that is otherwise made of others."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(operator, torch._C._dispatch_key_for_device(device))
    )


@cache
def reads_images(operator: Any) -> bool:
    """Whether it makes a batch of its 3-D inputs, so that (C, H, W) is a format there."""
    return operator in (aten.stack.default,)


def reorders(operator: Any, args: tuple[Any, ...]) -> bool:
    """Whether the result's second dimension is not that of the input, so that its strides tell of no format."""
    if operator is aten.index.Tensor:  # indices apart from each other come first in the result
        at = [position for position, index in enumerate(args[1]) if index is not None]
        return at != list(range(at[0], at[-1] + 1)) if at else False
    return operator in (aten.permute_copy.default, aten.transpose_copy.int)


def features_of(operator: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments whose memory format the result should have."""
    features = _FEATURES.get(operator)
    return args if features is None else tuple(args[at] for at in features)


def tensors_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """All of them, those in lists included."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [item for item in value if isinstance(item, Tensor)]
    return found
