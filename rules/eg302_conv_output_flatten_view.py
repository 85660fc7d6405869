"""# conv-output-flatten-view (EG302)

`view` merges the channels of a convolution's output with its height and width, which raises if it is channels_last.

## What it does

Flags `x.view(x.size(0), -1)`, `x.view(-1, 16 * 5 * 5)`, `x.view(b * c, h, w)` and the like where `x` comes out of
2-D convolutions, max pools, batch norms, activations, dropout or upsampling in sight: modules that the class assigns
to attributes of `self` (`nn.Sequential` included), or functions of `torch.nn.functional`.

## Why is this bad?

Convolutions and pools return channels_last if the model or its input is. In that order the channels of a pixel lie
next to each other, so C can't be merged with H and W, nor N with C, without a copy: `view` raises
`RuntimeError: view size is not compatible with input tensor's size and stride`. It runs in NCHW, and fails for the
first user who converts the model.

## Example

```python
x = self.pool(F.relu(self.conv(x)))
x = x.view(x.size(0), -1)
```

## Use instead

```python
x = self.pool(F.relu(self.conv(x)))
x = x.reshape(x.size(0), -1)
```

## When it stays silent

- `view(b, c, -1)` merges H and W only, `view(b, g, c // g, h, w)` splits C: both are views in either format.
- Anything that may be 1x1, for which every view works: after average pools, max pools with a window that is large or not
  literal, kernels larger than 3 without padding, adaptive pools unless their output is written out and larger, 1x1
  convolutions of a value that is not in sight; `view(-1, n)` with as many features as the convolution has channels, and
  what a linear layer reads that has as many.
- Anything that may have one channel: after `mean(1, keepdim=True)`, `view(-1)`, `view(-1, 1)` where the channels are not a literal of two and more.
- After `contiguous()`, `reshape`, `permute`, or an operator that drops channels_last; where `is_contiguous()` was asked.
- Values that come from elsewhere: parameters, modules made by other classes, items of a `ModuleList`.
- In `try`, and where an exception is expected.

## Fix safety

The fix writes `reshape`, which is the same view for NCHW and a copy for channels_last. It is safe where the result is
only read, or where nothing else reads the convolution's output; else it is unsafe, and where the result is written
into there is none.

## References

- [torch.Tensor.view](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.view.html)
- [Channels last memory format](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from esper_guard.lint.rule import Claim, Finding, Invalid, Proof, Rule, Severity

from ._triggers import MERGING_VIEW, MOST_SIZES

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.modules import Made
    from esper_guard.lint.outline import Outline

    from ._views import Called, View

_CONVOLUTIONS = frozenset(("conv2d", "conv_transpose2d"))
_WIDENING = frozenset("interpolate upsample pixel_shuffle".split())
_ADAPTIVE = frozenset(("adaptive_avg_pool2d", "adaptive_max_pool2d"))
_KEEPING = frozenset("batch_norm group_norm local_response_norm".split())
_COMPUTING_MODULES = ("torch", "torch.nn.functional", "torch.Tensor")
_REDUCING = frozenset("amax amin mean norm prod std sum var".split())
_NEW_CHANNELS = frozenset(("pixel_shuffle", "pixel_unshuffle"))
_FEW_SIZES = 3
_NESTED_TOO_DEEP = 60
_FACTORS_OF_A_SAMPLE = 3
_LARGEST_WITHIN_IMAGES = 3  # larger ones without padding are often as large as the image
_SAMPLES = re.compile(
    r"(?:\.size\(0\)|\.shape\[0\]|(?:\A|\.)(?:[bBnN]|bs|bsz|batch_?(?:size)?|num_(?:samples|images)))\Z"
)
_MAKE_IMAGES = _CONVOLUTIONS | _WIDENING | _ADAPTIVE | {"max_pool2d"}
# Those that write each number where they read it, in whatever order.
_POINTWISE = frozenset(
    """
    alpha_dropout bfloat16 celu clamp clone cpu cuda detach dropout dropout2d elu feature_alpha_dropout float gelu half
    hardsigmoid hardswish hardtanh identity leaky_relu leaky_relu_ mish prelu relu relu6 relu_ rrelu selu sigmoid silu
    softplus tanh to
    """.split()
)


class Image(NamedTuple):
    """What is known of the output of a chain of operators on images."""

    channels: int | None
    is_wide: bool  # more than one pixel, as far as can be told


# The cases' imports and the beginning of their class.
_NET = (
    "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\nclass N(nn.Module):\n"
    "    def __init__(self, k=3):\n        self.c = nn.Conv2d(3, 8, 3)\n"
)
_SIZED = _NET + "    def forward(self, x, y):\n        x = self.c(x)\n        {}\n"
# Sizes that are those of the image itself, and of something else.
_OWN_SIZES = (
    "return x.view(-1, x.size(2), x.size(3))",
    "return x.view(-1, x.shape[2], x.shape[3])",
    "h = x.size(2)\n        w = x.size(3)\n        return x.view(-1, h, w)",
    "b, c, h, w = x.shape\n        return x.view(-1, h, w)",
    "(b, c, h, w) = x.size()\n        return x.view(-1, h, w)",
)
_OTHER_SIZES = (
    "return x.view(-1, y.size(2), y.size(3))",
    "return x.view(-1, y.shape[2], y.shape[3])",
    "return x.view(-1, x.stride(2), x.stride(3))",
    "return x.view(-1, x.names[2], x.names[3])",
    "return x.view(-1, x.shape[0:2], x.shape[3])",
    "h = y.size(2)\n        w = y.shape[3]\n        return x.view(-1, h, w)",
    "b, c, h, w = y.shape\n        return x.view(-1, h, w)",
    "b, c, h, w = x.names\n        return x.view(-1, h, w)",
    "b, c, h, w = x.stride()\n        return x.view(-1, h, w)",
    "for b, c, h, w in x.shape:\n            y = x.view(-1, h, w)\n        return y",
    "x.h, x.w = 2, 3\n        return x.view(-1, x.h, x.w)",
    "return x.view()",
)


class ConvOutputFlattenView(Rule):
    """Looks at each ``view`` with few sizes, then back along what it is called on."""

    code = "EG302"
    name = "conv-output-flatten-view"
    severity = Severity.ERROR
    triggers = MERGING_VIEW
    file_triggers = (rb"onv2d|ranspose2d|ool2d|psampl|interpolate|_shuffle|PixelShuffle",)
    only_with_channels_last = True

    valid = (
        *(_SIZED.replace("{}", use) for use in _OTHER_SIZES),
        _NET
        + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.shape\n        return x.view(b * c, 1, 1, h, w)\n",
        "import torch\nimport torch.nn.functional as F\ndef f(w, x, b, size):\n    m = torch.sum(w * x, dim=1, keepdim=True)\n"
        "    m = F.interpolate(m, size=size)\n    return m.view(b, -1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self, c):\n        self.f = nn.Sequential(nn.Conv2d(c, 9, 2), nn.ReLU())\n"
        "        self.l = nn.Linear(9, 2)\n    def forward(self, x):\n        x = self.f(x)\n        return self.l(x.view(x.size(0), -1))\n",
        _NET
        + "    def forward(self, x):\n        x = F.max_pool2d(self.c(x), (1, x.size(3)))\n        return x.view(x.size(0), -1)\n",
        _NET
        + "    def forward(self, x):\n        x = F.max_pool2d(self.c(x), kernel_size=8)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "    def forward(self, x):\n        x = F.max_pool2d(self.c(x), stride=1, kernel_size=8)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "    def forward(self, x):\n        m = F.interpolate(self.c(x).sum(1, True), scale_factor=2)\n        return m.view(x.size(0), -1)\n",
        _NET
        + "        self.d = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))\n    def forward(self, x):\n        return self.d(x).view(x.size(0), -1)\n",
        _NET
        + "        self.d = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PixelShuffle(2))\n    def forward(self, x):\n        return self.d(x).view(-1)\n",
        _NET
        + "        self.d = nn.Conv2d(3, k, 3)\n    def forward(self, x):\n        return self.d(x).view(-1, 200)\n",
        _NET
        + "        self.d = Position()\n    def forward(self, x):\n        d = self.d()\n        return self.c(x) + d.view(1, -1)\n",
        _NET + "    def forward(self, x, n):\n        return self.c(x).view(-1, n // 4 // 4)\n",
        _NET + "    def forward(self, x, b, t):\n        return self.c(x).view(b * t, 8, -1)\n",
        _NET
        + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.shape\n        return x.view(-1, 8), x.view(b, -1, h * w)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.f = nn.Conv2d(3, 9, 3)\n"
        "        self.l = nn.Sequential(nn.Linear(9, 2), nn.ReLU())\n    def forward(self, x):\n        x = self.f(x)\n"
        "        return self.l(x.view(x.size(0), -1))\n",
        _NET
        + "    def forward(self, x, k):\n        y = self.c(x)\n        return y.view(-1, 64 // 8), y.view(-1, 8 * k)\n",
        _NET
        + "    def forward(self, x, y):\n        b, t, h, w = y.shape\n        x = self.c(x)\n        return x.view(b * t, 8, -1)\n",
        _NET
        + "    def forward(self, x, y):\n        b, t, h, w = sizes_of(y)\n        x = self.c(x)\n        return x.view(b * t, 8, -1)\n",
        _NET
        + "    def forward(self, x, y):\n        x = self.c(x)\n        return x.view(y.size(0) * y.size(1), 8, -1)\n",
        _NET
        + "    def forward(self, x, y):\n        b, t, h, w = y.size()\n        x = self.c(x)\n        return x.view(b * t, 8, -1)\n",
        _NET
        + "    def forward(self, x, y):\n        x = self.c(x)\n        return x.view(y[0] * y[1], 8, -1)\n",
        _NET
        + "    def forward(self, x, fmt):\n        x = self.c(x).to(memory_format=fmt)\n        return x.view(x.size(0), -1)\n",
        _NET + "    def forward(self, x):\n        y = x + self.c(x)\n        return y.view(x.size(0), -1)\n",
        _NET + "    def forward(self, x):\n        return x.view(x.size(0), -1)\n",
        _NET + "    def forward(self, x):\n        x = self.c(x)\n        return x.reshape(x.size(0), -1)\n",
        _NET + "    def forward(self, x):\n        x = self.c(x)\n        return x.view(x.size(0), 8, -1)\n",
        _NET
        + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.shape\n        return x.view(b, 2, c // 2, h, w)\n",
        _NET
        + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.shape\n        return x.view(b, c, h * w)\n",
        _NET
        + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.shape\n        return x.view(c, -1)\n",
        _NET
        + "    def forward(self, x):\n        x = self.c(x).contiguous()\n        return x.view(x.size(0), -1)\n",
        _NET
        + "    def forward(self, x):\n        x = self.c(x).contiguous(memory_format=torch.contiguous_format)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "    def forward(self, x):\n        x = self.c(x).permute(0, 2, 3, 1)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.p = nn.AdaptiveAvgPool2d(1)\n    def forward(self, x):\n        x = self.p(self.c(x))\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.p = nn.AdaptiveAvgPool2d((1, 1))\n    def forward(self, x):\n        x = self.p(self.c(x))\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.p = nn.AdaptiveAvgPool2d(k)\n    def forward(self, x):\n        x = self.p(self.c(x))\n        return x.view(x.size(0), -1)\n",
        _NET
        + "    def forward(self, x):\n        x = F.adaptive_max_pool2d(self.c(x), 1)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "    def forward(self, x):\n        x = F.avg_pool2d(self.c(x), 4)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.d = nn.Conv2d(8, 8, 1)\n    def forward(self, x):\n        x = self.d(F.avg_pool2d(self.c(x), 4))\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.d = nn.Conv2d(3, 8, 1)\n    def forward(self, x):\n        x = self.d(x)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.d = nn.Conv2d(3, 8, (1, 1))\n    def forward(self, x):\n        x = self.d(x)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.d = nn.Conv2d(3, 1, 3)\n    def forward(self, x):\n        x = self.d(x)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.d = nn.Conv2d(3, k, 3)\n    def forward(self, x):\n        return self.d(x).view(-1)\n",
        _NET
        + "        self.d = nn.Conv2d(3, k, 3)\n    def forward(self, x):\n        return self.d(x).view(-1, 1)\n",
        _NET + "    def forward(self, x):\n        return self.c(x).view(-1, 8)\n",
        _NET + "    def forward(self, x):\n        return self.c(x).view(-1, 20)\n",
        _NET + "    def forward(self, x):\n        return self.c(x).view(-1, k)\n",
        _NET + "    def forward(self, x):\n        x = self.c(x)\n        return x.view(x.size(0), 1, -1)\n",
        _NET + "    def forward(self, x):\n        return self.c(x).view(4, 1)\n",
        _NET
        + "    def forward(self, x):\n        x = F.softmax(self.c(x), 1)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.d = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())\n    def forward(self, x):\n        x = self.d(x)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.d = nn.Sequential(nn.Conv2d(3, 8, 3), Block())\n    def forward(self, x):\n        x = self.d(x)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "        self.d = nn.Conv2d(3, 8, 3) if k else Block()\n    def forward(self, x):\n        x = self.d(x)\n        return x.view(x.size(0), -1)\n",
        _NET
        + "    def forward(self, x):\n        x = self.c(x) if self.k else x\n        return x.view(x.size(0), -1)\n",
        _NET + "    def forward(self, x):\n        y = self.c(x) + x\n        return y.view(x.size(0), -1)\n",
        _NET
        + "    def forward(self, x):\n        y = self.c(x)\n        if y.is_contiguous(): return y.view(x.size(0), -1)\n",
        _NET + "    def forward(self, x):\n        x = self.c(x)\n        return x.view(*x.shape[:2], -1)\n",
        _NET + "    def forward(self, x):\n        x = self.c(x)\n        return x.view(x.shape)\n",
        _NET
        + "        self.d = nn.Conv2d(8, 8, 8)\n    def forward(self, x):\n        x = self.d(self.c(x))\n        return x.view(x.size(0), -1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 8, 3)\n"
        "    def forward(self, x):\n        try:\n            return self.c(x).view(x.size(0), -1)\n"
        "        except RuntimeError:\n            return None\n",
    )
    invalid = (
        *(Invalid(_SIZED.replace("{}", use)) for use in _OWN_SIZES),
        Invalid(
            _NET
            + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.shape\n        return x.view(b * c, 1, h, w)\n"
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.shape\n        bc = b * c\n        return x.view(bc, h, w)\n"
        ),
        Invalid(
            _NET + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.shape\n"
            "        return x.view(b * c,  # one row each, for the loss, as in v1, v2\n            h * w)\n"
        ),
        Invalid(
            "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self, c):\n        self.f = nn.Sequential(nn.Conv2d(c, 9, 2), nn.ReLU())\n"
            "        self.l = nn.Linear(36, 2)\n    def forward(self, x):\n        x = self.f(x)\n        return self.l(x.view(x.size(0), -1))\n"
        ),
        Invalid(
            _NET
            + "        self.fc = nn.Linear(3, 4)\n    def forward(self, x):\n        x = F.relu(self.c(x), inplace=True)\n        x = x.view(x.size(0), -1)\n        return self.fc(x)\n",
            fixed=_NET
            + "        self.fc = nn.Linear(3, 4)\n    def forward(self, x):\n        x = F.relu(self.c(x), inplace=True)\n        x = x.reshape(x.size(0), -1)\n        return self.fc(x)\n",
            message="`x`",
        ),
        Invalid(
            _NET + "    def forward(self, x):\n        return self.c(x).view(-1, 8 * 5 * 5)\n",
        ),
        Invalid(
            _NET + "    def forward(self, x):\n        return self.c(x).view(1, 8 * 5 * 5)\n",
        ),
        Invalid(
            _NET + "    def forward(self, x):\n        return self.c(x).view(-1, 8 * 25)\n",
        ),
        Invalid(
            _NET
            + "        self.d = nn.Conv2d(3, k, 3)\n        self.l = nn.Linear(k * 36, 2)\n    def forward(self, x):\n"
            "        x = self.d(x)\n        return self.l(x.view(x.size(0), -1))\n",
        ),
        Invalid(
            _NET + "    def forward(self, x):\n        x = self.c(x)\n        frames = x.size(0)\n"
            "        return x.view(frames, -1), x.view(x.size(0) * x.size(1), -1), x.view(x.shape[0] * x.shape[1], -1)\n",
            findings=3,
        ),
        Invalid(
            _NET
            + "        self.d = nn.LazyConv2d(8, 3)\n    def forward(self, x):\n        return self.d(x).view(-1, 8 * 5 * 5)\n",
        ),
        Invalid(
            _NET + "    def forward(self, x):\n        x = self.c(x)\n        frames, c, h, w = x.shape\n"
            "        return x.view(frames, -1), self.mean.view(1, -1)\n",
        ),
        Invalid(
            _NET
            + "        self.d = nn.Conv2d(3, k, 1)\n    def forward(self, x):\n        y = self.d(x) + self.c(x)\n"
            "        z = self.c(x) + self.d(x)\n        return y.view(-1, 200), z.view(-1, 200)\n",
            findings=2,
        ),
        Invalid(
            _NET
            + "        self.n = nn.BatchNorm2d(8) if k else None\n    def forward(self, x):\n        x = self.n(self.c(x))\n        return x.view(x.size(0), -1)\n",
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        y = F.interpolate(self.c(x).clamp(-3, 3), scale_factor=2)\n"
            "        m = F.interpolate(y.mean(dim=(2, 3), keepdim=True), size=7)\n"
            "        return y.view(x.size(0), -1), m.view(x.size(0), -1)\n",
            findings=2,
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        y = F.adaptive_avg_pool2d(F.max_pool2d(self.c(x), 2), 7)\n"
            "        z = F.adaptive_max_pool2d(x, 7)\n        return y.view(-1), z.view(x.size(0), -1)\n",
            findings=2,
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        y = F.max_pool2d(x, 2)\n        z = F.relu(y)\n        n = x.size(0)\n"
            "        self.c(x).view(n, -1).mul_(2)\n        z.view(n, -1).mul_(2)\n        return y.view(n, -1).mul_(2)\n",
            findings=3,
            fixed=_NET
            + "    def forward(self, x):\n        y = F.max_pool2d(x, 2)\n        z = F.relu(y)\n        n = x.size(0)\n"
            "        self.c(x).reshape(n, -1).mul_(2)\n        z.view(n, -1).mul_(2)\n        return y.view(n, -1).mul_(2)\n",
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        y = F.max_pool2d(x, 2)\n        y.view(y.size(0), -1).mul_(2)\n        z = self.c(x)\n"
            "        z.view(z.size(0), -1).mul_(2)\n        return z.mean()\n",
            findings=2,
            fixed=_NET
            + "    def forward(self, x):\n        y = F.max_pool2d(x, 2)\n        y.reshape(y.size(0), -1).mul_(2)\n        z = self.c(x)\n"
            "        z.view(z.size(0), -1).mul_(2)\n        return z.mean()\n",
        ),
        Invalid(
            _NET
            + "        self.d = nn.Conv2d(3, k, 3)\n    def forward(self, x):\n        return self.d(x).view(-1, k * 5 * 5)\n",
        ),
        Invalid(
            _NET + "    def forward(self, x):\n        return self.c(x).view(-1, 200)\n",
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.shape\n        return x.view(b * c, h, w)\n",
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.size()\n        return x.view(-1, h, w)\n",
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        x = self.c(x)\n        b, c, h, w = x.size()\n        return x.view(b * c, -1)\n",
        ),
        Invalid(
            _NET + "    def forward(self, x):\n        return self.c(x).view(-1)\n",
        ),
        Invalid(
            _NET + "    def forward(self, x):\n        return self.c(x).view((1, -1))\n",
        ),
        Invalid(
            _NET
            + "        self.d = nn.Sequential(Block(), nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.Dropout())\n    def forward(self, x):\n        y = self.d(x)\n        return y.view(len(x), -1), y.view(x.shape[0], -1)\n",
        ),
        Invalid(
            _NET
            + "        self.p = nn.AdaptiveAvgPool2d((6, 6))\n    def forward(self, x):\n        x = self.p(self.c(x))\n        return x.view(x.size(0), -1)\n",
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        x = F.adaptive_avg_pool2d(self.c(x), 7)\n        return x.view(x.size(0), -1)\n",
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        x = F.dropout(torch.relu(F.max_pool2d(x, 2)), 0.5).clamp(0, 1)\n        return x.view(x.size(0), -1)\n",
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        y = self.c(x) + self.c(x) * 2\n        return y.view(x.size(0), -1)\n",
        ),
        Invalid(
            _NET
            + "        self.d = nn.Conv2d(3, 8, 1)\n    def forward(self, x):\n        x = self.d(F.interpolate(x, scale_factor=2))\n        return x.view(x.size(0), -1)\n",
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        y = self.c(x)\n        y.view(x.size(0), -1).mul_(2)\n        return y\n",
            fixed=_NET
            + "    def forward(self, x):\n        y = self.c(x)\n        y.view(x.size(0), -1).mul_(2)\n        return y\n",
        ),
        Invalid(
            _NET
            + "    def forward(self, x):\n        y = self.c(x)\n        z = y.view(x.size(0), -1)\n        z[0] = 1\n        return z\n",
            fixed=_NET
            + "    def forward(self, x):\n        y = self.c(x)\n        z = y.reshape(x.size(0), -1)\n        z[0] = 1\n        return z\n",
        ),
        Invalid(
            _NET
            + "        self.d = nn.Conv2d(8, 8, 7, 1, 3)\n    def forward(self, x):\n        x = self.d(x)\n        return x.view(x.size(0), -1)\n"
        ),
        Invalid(
            _NET
            + "        self.d = nn.Conv2d(8, 8, 7, padding=k)\n    def forward(self, x):\n        x = self.d(x)\n        return x.view(x.size(0), -1)\n"
        ),
    )
    proof = Proof(
        Claim.RAISES,
        flagged="class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(8, 4, 3)\n    def forward(self, x):\n        x = F.relu(self.conv(x))\n"
        "        return x.view(x.size(0), -1)\ndef run(x):\n    return Net()(x)\n",
        recommended="class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(8, 4, 3)\n    def forward(self, x):\n        x = F.relu(self.conv(x))\n"
        "        return x.reshape(x.size(0), -1)\ndef run(x):\n    return Net()(x)\n",
        error="view size is not compatible",
    )

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether there is a ``view`` that may flatten what a call, or a sum, has made."""
        from ._views import called_views

        return any(
            _may_flatten(view) and _may_be_image(view.receiver, outline) for view in called_views(outline)
        )

    def check(self, flow: Flow) -> Iterator[Finding]:
        from ._context import is_expected_to_raise
        from ._views import as_view, is_tested_contiguous

        for call in flow.calls:
            view = as_view(flow, call)
            if view is None or len(view.sizes) > MOST_SIZES or is_tested_contiguous(flow, view.receiver):
                continue
            image = _image(flow, view.receiver)
            if image is None or not image.is_wide or not _merges(flow, view, image):
                continue
            if _is_one_pixel_by_reader(flow, call, image):
                continue
            if not is_expected_to_raise(flow, call):
                yield self._finding(flow, view)

    def _finding(self, flow: Flow, view: View) -> Finding:
        from ._views import flattened

        positions = flow.positions
        receiver = positions.shown(view.receiver)
        return self.finding(
            flow,
            view.call,
            f"`{positions.shown(view.call)}` raises if `{receiver}`, the output of a convolution or pool, is"
            " channels_last: no view can merge its channels with its pixels",
            help="write `reshape` (or `flatten(1)` for one row a sample), which copies only then",
            fix=flattened(flow, view, _is_only_use(flow, view.receiver)),
        )


def _may_flatten(view: Called) -> bool:
    sizes = view.sizes
    if len(sizes) == 1:
        return True
    products = [isinstance(size, ast.BinOp) for size in sizes]
    if len(sizes) > _FEW_SIZES:
        return products[0]
    if len(sizes) > 2:
        return not any(map(_is_minus_one, sizes[1:]))
    return any(products) or any(map(_is_minus_one, sizes)) or isinstance(sizes[1], ast.Constant)


def _is_minus_one(size: ast.expr) -> bool:
    return isinstance(size, ast.UnaryOp) and isinstance(size.op, ast.USub)


def _may_be_image(tensor: ast.expr, outline: Outline) -> bool:
    """Whether ``tensor`` may be the output of an operator on images, or of a module, and of what keeps them images."""
    from esper_guard.lint.outline import last_name, written

    seen: set[ast.expr] = set()
    waiting = [tensor]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if isinstance(one, ast.Name):
            waiting += outline.values.get(one.id, ())
        elif isinstance(one, ast.BinOp):
            waiting += (one.left, one.right)
        elif isinstance(one, ast.Call):
            name, place = last_name(one.func, outline.names), written(one.func)
            if name in _MAKE_IMAGES or place in outline.values or place == f"self.{name}":
                return True
            if name in _KEEPING | _POINTWISE:
                waiting += [*one.args[:1], *([one.func.value] if isinstance(one.func, ast.Attribute) else [])]
    return False


def _is_one_pixel_by_reader(flow: Flow, view: cst.Call, image: Image) -> bool:
    """Whether a linear layer reads as many features as there are channels: the image is a single pixel then."""
    import libcst as cst

    for use in flow.uses(view):
        argument = flow.parent(use)
        call = flow.parent(argument) if isinstance(argument, cst.Arg) else None
        for made in flow.callees.get(call, ()) if isinstance(call, cst.Call) else ():
            first = made.parts[0] if made.parts else made
            if image.channels is not None and first.argument(0, "in_features") == image.channels:
                return True
    return False


def _merges(flow: Flow, view: View, image: Image) -> bool:
    """Whether the sizes merge channels with pixels or samples, of an image of many pixels and several channels."""
    from esper_guard.lint.flow.literals import whole_number

    numbers = [whole_number(size) for size in view.sizes]
    if image.channels == 1:
        return False
    if _merges_samples(flow, view):
        return True
    if len(numbers) == 1 or numbers in ([-1, 1], [1, -1]):
        return image.channels is not None
    if len(numbers) > 2:
        return False
    if numbers[1] == -1:
        return _counts_samples(flow, view.sizes[0], view.receiver)
    return _counts_features(view.sizes[1], image)


def _merges_samples(flow: Flow, view: View) -> bool:
    """``view(b * c, h, w)`` and ``view(-1, h, w)``."""
    from ._views import dimension_read

    first, *others = view.sizes
    if [dimension_read(flow, size, view.receiver) for size in others] == [2, 3]:
        return True
    factors = _factors(first)
    return {dimension_read(flow, one, view.receiver) for one in factors} == {0, 1}


def _counts_samples(flow: Flow, size: cst.BaseExpression, tensor: cst.BaseExpression) -> bool:
    """Whether ``size`` is the first dimension: of this tensor, of another that has as many samples, or by its name."""
    from ._views import dimension_read

    if dimension_read(flow, size, tensor) is not None:
        return dimension_read(flow, size, tensor) == 0
    return _SAMPLES.search(flow.positions.one_line(size)) is not None


def _counts_features(size: cst.BaseExpression, image: Image) -> bool:
    """Whether ``size`` is that of all channels and pixels of a sample: ``16 * 5 * 5``, or a multiple of the channels."""
    from esper_guard.lint.flow.literals import whole_number

    number = whole_number(size)
    if number is None or image.channels is None:
        return len(_factors(size)) >= _FACTORS_OF_A_SAMPLE
    return number > image.channels and number % image.channels == 0


def _factors(size: cst.BaseExpression) -> list[cst.BaseExpression]:
    import libcst as cst

    if not isinstance(size, cst.BinaryOperation) or not isinstance(size.operator, cst.Multiply):
        return [size]
    return _factors(size.left) + _factors(size.right)


def _is_only_use(flow: Flow, receiver: cst.BaseExpression) -> bool:
    """Whether nothing but the view (and questions for the shape) reads what an operator has made anew."""
    import libcst as cst

    made_by = flow.made_by(receiver)
    if not isinstance(made_by, cst.Call) or not _is_made_anew(flow, made_by):
        return False
    others = (load for load in flow.loads(receiver) if load is not receiver)
    return all(_asks_for_shape(flow, load) for load in others)


def _is_made_anew(flow: Flow, call: cst.Call) -> bool:
    operators = [one for way in _operators(flow, call) for one in way[-1:]]
    return all(name in _CONVOLUTIONS or name in ("max_pool2d", "batch_norm") for name, _ in operators)


def _asks_for_shape(flow: Flow, node: cst.BaseExpression) -> bool:
    import libcst as cst

    parent = flow.parent(node)
    return isinstance(parent, cst.Attribute) and parent.attr.value in (
        "shape",
        "size",
        "dim",
        "ndim",
        "numel",
    )


# -- the chain that makes an image -----------------------------------------------------------------------------------

Step = tuple[str, "Made | None"]


def _image(flow: Flow, node: cst.BaseExpression, depth: int = 0) -> Image | None:
    """What is known of ``node``, if it is the output of a chain of operators on images."""
    import libcst as cst

    if depth > _NESTED_TOO_DEEP:
        return None
    if isinstance(node, cst.Name):
        made_by = flow.made_by(node)
        return _image(flow, made_by, depth + 1) if isinstance(made_by, cst.BaseExpression) else None
    if isinstance(node, cst.BinaryOperation):
        return _image_of_sum(flow, node, depth)
    if not isinstance(node, cst.Call):
        return None
    source = _argument(flow, node)
    before = _image(flow, source, depth + 1) if source is not None else None
    if _keeps_one_channel(flow, node):
        return Image(1, is_wide=True)
    images = {_after(way, before) for way in _operators(flow, node)}
    return images.pop() if len(images) == 1 else None


def _keeps_one_channel(flow: Flow, call: cst.Call) -> bool:
    """``x.mean(1, keepdim=True)``, ``torch.sum(x, dim=1, keepdim=True)``, ``x.sum(1)``."""
    from esper_guard.lint.flow.literals import whole_number

    from ._chains import unbound

    _, method, arguments = unbound(flow, call)
    named = {one.keyword.value: one.value for one in arguments if one.keyword is not None}
    dim = named.get("dim", arguments[0].value if arguments else None)
    return method in _REDUCING and dim is not None and whole_number(dim) in (1, -3)


def _image_of_sum(flow: Flow, node: cst.BinaryOperation, depth: int) -> Image | None:
    """``a + b`` of two images; one with a number."""
    import libcst as cst

    numbers = (cst.Integer, cst.Float)
    left = _image(flow, node.left, depth + 1)
    if left is None or isinstance(node.right, numbers):
        return left
    right = _image(flow, node.right, depth + 1)
    return None if right is None else Image(left.channels or right.channels, left.is_wide or right.is_wide)


def _argument(flow: Flow, call: cst.Call) -> cst.BaseExpression | None:
    """The tensor that ``call`` works on."""
    from ._chains import unbound

    if call in flow.callees or flow.origin(call.func).startswith("torch.nn.functional."):
        return call.args[0].value if call.args else None
    return unbound(flow, call)[0]


def _operators(flow: Flow, call: cst.Call) -> list[list[Step]]:
    """The operators that ``call`` runs, for each of the modules it may be a call of."""
    from ._chains import memory_format_argument, unbound

    made = flow.callees.get(call)
    if made is not None:
        return [list(_steps(one)) for one in made]
    module, _, name = flow.origin(call.func).rpartition(".")
    if module in _COMPUTING_MODULES:
        return [[(name, _as_made(call, name))]]
    _, method, arguments = unbound(flow, call)
    if memory_format_argument(arguments, method) is not None:
        return []
    return [[(method, None)]]


def _as_made(call: cst.Call, name: str) -> Made | None:
    """What ``F.conv2d(...)`` is given, as far as its output goes by it: nothing is known of a weight."""
    from esper_guard.lint.flow.literals import whole_number
    from esper_guard.lint.modules import Made

    named = [arg.value for arg in call.args if arg.keyword is not None and arg.keyword.value == "kernel_size"]
    sizes = named or [argument.value for argument in call.args[1:2]]
    return Made(name, (whole_number(sizes[0]),) if sizes else ())


def _steps(made: Made) -> Iterator[Step]:
    from esper_guard.lint.flow.operators import operator_of_class
    from esper_guard.lint.modules import NONE

    if made.origin == "torch.nn.Sequential":
        for part in made.parts:
            yield from _steps(part)
    elif made.origin != NONE:
        yield operator_of_class(made.origin), made


def _after(steps: Iterable[Step], image: Image | None) -> Image | None:
    for name, made in steps:
        image = _after_one(name, made, image)
    return image


def _after_one(name: str, made: Made | None, image: Image | None) -> Image | None:
    if name in _CONVOLUTIONS and made is not None:
        return _after_convolution(made, image)
    if name in _ADAPTIVE:
        is_large = _is_larger_than_one(made)
        return Image(image.channels if image is not None else None, True) if is_large else None
    if name == "max_pool2d":
        return _after_pool(made, image)
    if name in _WIDENING:
        channels = image.channels if image is not None and name not in _NEW_CHANNELS else None
        return Image(channels, True)
    return image if name in _KEEPING or name in _POINTWISE else None


def _after_pool(made: Made | None, image: Image | None) -> Image:
    """A window that isn't literal, or large, may be the whole image."""
    window = None if made is None else made.argument(0, "kernel_size")
    is_wide = window is not None and not _is_more(window, _LARGEST_WITHIN_IMAGES)
    return Image(image.channels if image is not None else None, is_wide)


def _after_convolution(made: Made, image: Image | None) -> Image:
    """A kernel of several pixels works on images and leaves some; one as large as its input leaves a single pixel."""
    channels = made.argument(0 if "Lazy" in made.origin else 1, "out_channels")
    kernel = made.argument(1 if "Lazy" in made.origin else 2, "kernel_size")
    padding = dict(made.keywords).get("padding", made.arguments[4] if len(made.arguments) > 4 else 0)
    is_wide = _is_more(kernel, 1) or (image is not None and image.is_wide)
    if _is_more(kernel, _LARGEST_WITHIN_IMAGES) and padding in (0, (0, 0)):
        is_wide = False
    return Image(channels if isinstance(channels, int) else None, is_wide)


def _is_more(size: object, limit: int) -> bool:
    if isinstance(size, tuple):
        return any(_is_more(one, limit) for one in size)
    return isinstance(size, int) and size > limit


def _is_larger_than_one(made: Made | None) -> bool:
    return made is not None and _is_more(made.argument(0, "output_size"), 1)
