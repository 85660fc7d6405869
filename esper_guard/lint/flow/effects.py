"""What a call may change behind the caller's back."""

from __future__ import annotations

from esper_guard.lint.torch_names import TENSOR_METHODS

_PURE_BUILTINS = frozenset(
    """
    abs all any bool bytes callable dict divmod enumerate filter float format frozenset getattr hasattr hash hex id int
    isinstance issubclass iter len list map max min next oct ord pow print range repr reversed round set slice sorted
    str sum super tuple type vars zip
    """.split()
)
_PURE_MODULES = (
    "torch.",
    "numpy.",
    "math.",
    "einops.",
    "logging.",
    "warnings.",
    "time.",
    "functools.",
    "itertools.",
)
_PURE_METHODS = TENSOR_METHODS | frozenset(
    """
    is_contiguous dim size stride numel nelement element_size data_ptr ndimension is_floating_point is_complex get_device
    item tolist numpy items keys values get copy format join split strip startswith endswith count index
    """.split()
)
# In-place methods of tensors that change shape or strides: what was asked of the layout before is void.
CHANGES_LAYOUT = frozenset(
    """
    as_strided_ resize_ resize_as_ set_ squeeze_ swapaxes_ swapdims_ t_ transpose_ unsqueeze_ swap_tensors
    """.split()
)


def is_pure_function(origin: str) -> bool:
    """Whether a function, known by its full name, leaves the objects it is given as they are."""
    return origin in _PURE_BUILTINS or origin.startswith(_PURE_MODULES)


def is_pure_method(name: str) -> bool:
    return name in _PURE_METHODS or (name.endswith("_") and not name.endswith("__"))
