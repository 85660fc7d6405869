"""What to write instead of operators that lose channels_last, where something gives the same values and keeps it.

Measured by tests/runtime/test_remedies.py on the CPU with torch 2.13.0: the values and gradients are those of the
operator, and neither the forward nor the backward copies between formats or loses one, in kernels too. How long it
takes was not measured.

`esper_guard.operators.remedy_for` answers questions from it.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Remedy(NamedTuple):
    """Of one operator, or of one case of it."""

    name: str
    """As in `esper_guard.operator_table`."""
    when: str
    """The case, as there; empty if there is only one."""
    lost: str
    """What loses channels_last, as Python.

    ``x`` is an image in channels_last. Of the others, ``y``, ``i``, ``j``, ``index`` (three indices of channels) and
    ``indices`` (of channels, in the shape of an image) are in NCHW, ``mask``, ``source`` (three channels) and
    ``values`` in channels_last; ``y_last``, ``j_last`` and ``mask_nchw`` are the same in the other format.
    """
    instead: str
    """What to write for it."""
    advice: str = ""
    """A phrase that says so, where code would not be clear by itself."""
    condition: str = ""
    """When, or how, in words."""

    @property
    def sentence(self) -> str:
        """``"x.permute(0, 2, 3, 1).cumsum(-1).permute(0, 3, 1, 2) (along channels)"``."""
        said = self.advice or self.instead
        return f"{said} ({self.condition})" if self.condition else said


def _each(
    names: str, lost: str, instead: str, advice: str = "", condition: str = "", when: str = ""
) -> list[Remedy]:
    """The same of several operators; ``NAME`` stands for theirs."""
    return [
        Remedy(name, when, lost.replace("NAME", name), instead.replace("NAME", name), advice, condition)
        for name in names.split()
    ]


_CONVERT = "convert the other operand to channels_last once, where it is made"
_CONVERT_ALL = "convert every input to channels_last once, where it is made"
_FIRST = "put the channels_last operand first, or convert the other one once, where it is made"
_CHANNELS = "along channels"
_LINEAR = {
    "instead": "F.linear(x.permute(0, 2, 3, 1).flatten(1), weight_hwc)",
    "advice": "before a Linear: x.permute(0, 2, 3, 1).flatten(1)",
    "condition": "with the columns of its weight reordered to match, once",
}

# fmt: off
REMEDIES: Final[tuple[Remedy, ...]] = (
    # Operands in two formats
    *_each("add mul multiply maximum minimum max min hypot eq ne not_equal logical_and logical_or logical_xor",
        "torch.NAME(y, x)", "torch.NAME(x, y)", _FIRST),
    *_each("bitwise_and bitwise_or bitwise_xor gcd lcm", "torch.NAME(j, i)", "torch.NAME(i, j)", _FIRST),
    *_each("sub subtract div divide true_divide remainder fmod pow float_power logaddexp gt greater ge greater_equal lt less le less_equal xlogy complex polar",
        "torch.NAME(y, x)", "torch.NAME(y_last, x)", _CONVERT),
    *_each("bitwise_left_shift bitwise_right_shift", "torch.NAME(j, i)", "torch.NAME(j_last, i)", _CONVERT),
    *_each("rsub", "torch.NAME(x, y)", "torch.NAME(x, y_last)", _CONVERT),
    *_each("cat concat concatenate", "torch.NAME([x, y], 1)", "torch.NAME([x, y_last], 1)", _CONVERT_ALL),
    *_each("hstack vstack row_stack dstack column_stack", "torch.NAME([x, y])", "torch.NAME([x, y_last])", _CONVERT_ALL),
    *_each("where", "torch.where(mask_nchw, x, 0.0)", "torch.where(mask, x, 0.0)", "convert every operand to channels_last once, where it is made, the condition too"),
    # Of the NHWC view, which is contiguous
    *_each("softmax log_softmax softmin", "F.NAME(x, 1)", "F.NAME(x.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2)", condition=_CHANNELS),
    *_each("cumsum cumprod logcumsumexp", "x.NAME(1)", "x.permute(0, 2, 3, 1).NAME(-1).permute(0, 3, 1, 2)", condition=_CHANNELS),
    *_each("cummax cummin", "x.NAME(1).values", "x.permute(0, 2, 3, 1).NAME(-1).values.permute(0, 3, 1, 2)", condition=_CHANNELS),
    *_each("topk", "x.topk(2, 1).values", "x.permute(0, 2, 3, 1).topk(2, -1).values.permute(0, 3, 1, 2)", condition=_CHANNELS),
    *_each("index_select", "x.index_select(1, index)", "x.permute(0, 2, 3, 1).index_select(-1, index).permute(0, 3, 1, 2)", condition=_CHANNELS),
    *_each("__getitem__", "x[:, index]", "x.permute(0, 2, 3, 1)[..., index].permute(0, 3, 1, 2)", condition=_CHANNELS, when="indices of a later dimension"),
    *_each("gather", "x.gather(1, indices)", "x.permute(0, 2, 3, 1).gather(-1, indices.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", condition=_CHANNELS),
    *_each("take_along_dim", "x.take_along_dim(indices, 1)", "x.permute(0, 2, 3, 1).take_along_dim(indices.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2)", condition=_CHANNELS),
    *_each("scatter scatter_add", "x.NAME(1, indices, values)", "x.permute(0, 2, 3, 1).NAME(-1, indices.permute(0, 2, 3, 1), values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", condition=_CHANNELS),
    *_each("index_add index_copy", "x.NAME(1, index, source)", "x.permute(0, 2, 3, 1).NAME(-1, index, source.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", condition=_CHANNELS),
    *_each("repeat tile", "x.NAME(1, 2, 3, 1)", "x.permute(0, 2, 3, 1).NAME(1, 3, 1, 2).permute(0, 3, 1, 2)", condition="the numbers in the order N, H, W, C"),
    *_each("layer_norm", "F.layer_norm(x, (C, H, W), weight)", "F.layer_norm(x.permute(0, 2, 3, 1), (H, W, C), weight_hwc).permute(0, 3, 1, 2)", condition="with weight and bias reordered to match, once"),
    *_each("bucketize isin", "torch.NAME(x, numbers)", "torch.NAME(x.permute(0, 2, 3, 1), numbers).permute(0, 3, 1, 2)"),
    *_each("pad", 'F.pad(x, (1, 1, 1, 1), mode="circular")', "x.permute(0, 2, 3, 1).index_select(1, rows).index_select(2, columns).permute(0, 3, 1, 2)", condition="rows is torch.arange(-1, H + 1) % H for one more on each side, columns the same of W", when='mode="circular"'),
    # Something else
    *_each("logsigmoid", "F.logsigmoid(x)", "-F.softplus(-x)"),
    *_each("pow float_power", "torch.NAME(base, x)", "torch.NAME(torch.tensor(base), x)", when="the base is a number"),
    *_each("masked_fill", "x.masked_fill(mask, value)", "torch.where(mask, value, x)", condition="if the mask is channels_last or has one channel"),
    *_each("new_zeros", "x.new_zeros(x.shape)", "torch.zeros_like(x)", condition="if it has the shape of x"),
    *_each("new_ones", "x.new_ones(x.shape)", "torch.ones_like(x)", condition="if it has the shape of x"),
    *_each("new_full", "x.new_full(x.shape, value)", "torch.full_like(x, value)", condition="if it has the shape of x"),
    *_each("contiguous", "x.contiguous()", "x.contiguous(memory_format=torch.channels_last)", condition="or without it"),
    *_each("clone", "x.clone(memory_format=torch.contiguous_format)", "x.clone()", when="memory_format=torch.contiguous_format"),
    *_each("to", "x.to(torch.float64, memory_format=torch.contiguous_format)", "x.to(torch.float64)", "to() without memory_format", when="memory_format=torch.contiguous_format"),
    *_each("flatten", "F.linear(x.flatten(1), weight)", when="channels and positions", **_LINEAR),
    *_each("reshape", "F.linear(x.reshape(2, -1), weight)", when="no view will do", **_LINEAR),
)
# fmt: on
