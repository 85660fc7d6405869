"""# permute-contiguous-into-op (EG104)

An NHWC tensor is permuted to NCHW, copied, and read by an operator that needs no copy.

## What it does

Flags `x.permute(0, 3, 1, 2).contiguous()` (also through transposes, `movedim`, `einops.rearrange` and several statements)
where what reads the copy is in sight: a convolution, a pool, `interpolate`, `pixel_shuffle`, a norm, or elementwise
operators. Modules are known from what the class assigns to `self`; a class that is not torch's counts as a convolution
if its name says so (`conv3x3`, `ConvNormAct`, `PatchEmbed`).

## Why is this bad?

A permuted NHWC tensor has the strides of channels_last already. The copy writes N * C * H * W * itemsize bytes per call to
undo that; a convolution in channels_last then converts it back.

## Example

```python
def forward(self, tokens, size):
    n, _, c = tokens.shape
    x = tokens.reshape(n, *size, c).permute(0, 3, 1, 2).contiguous()
    return torch.nn.functional.max_pool2d(x, 2)
```

## Use instead

```python
def forward(self, tokens, size):
    n, _, c = tokens.shape
    x = tokens.reshape(n, *size, c).permute(0, 3, 1, 2)
    return torch.nn.functional.max_pool2d(x, 2)
```

## When it stays silent

- Where the copy, or what elementwise operators make of it, goes where its layout matters: `view`, `reshape`, a file, a
  pointer, an array, native code. After a convolution or a pool, `reshape` is no objection, `view` is.
- Where something reads it that is not in sight: an unknown function or module, or whoever gets it if it is returned. If a
  convolution, a pool or `interpolate` reads it, too, then returning or storing it besides is no objection.
- Where it is made of a part of each row (`x[:, 1:]`, tokens without the first): it is not dense, and a convolution copies it.
- Where the permuted tensor's layout is not in sight, where two permutes cancel out, for 3-D tensors, and for
  `permute(0, 2, 3, 1)`, which is wanted by most who write it.
- For elementwise operators alone, where a name says that the tensor is no image: a mask, a bias or scores of an attention.
- Under `detach` (that is EG101), where a comment on the line, or above it, gives a reason, in functions that exist for the
  conversion, by their name (`nhwc_to_nchw`), and in tests.

## Fix safety

The fix is unsafe: it removes the copy, so strides change from there on, also those of the operator's result, and the
result of elementwise operators is channels_last.

## References

- [Channels last memory format](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
- What each operator does to a format: docs/operators.md
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Finding, Fix, Invalid, Proof, Rule, Severity

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline

    from ._chains import Copy

_COPIES = rb"\.(?:[\s\\]|#[^\n]*\n)*contiguous[\s\\]*\("
# 4-D tensors that are no images, such as the bias of an attention: only a convolution or the like proves them to be.
_NO_IMAGE = re.compile(r"pos|bias|mask|att|score|logit|head|query|key|value\b", re.IGNORECASE)
_NEED_ORDER = frozenset(("data_ptr", "numpy", "view", "view_as"))
# They say nothing about who needs the copy: whoever reads their result does.
_CONVERSIONS = frozenset("bfloat16 clone cpu cuda double float half identity to type requires_grad_".split())


class PermuteContiguousIntoOp(Rule):
    """Looks at each copy of a permuted tensor, then at who reads it."""

    code = "EG104"
    name = "permute-contiguous-into-op"
    severity = Severity.WARNING
    heeds_reasons = True
    in_tests = False
    triggers = (
        rb"contiguous",
        _COPIES,
        rb"permute|rearrange|transpose|movedim|moveaxis|swapaxes|swapdims",
        rb"(?:permute|rearrange|transpose|movedim|moveaxis|swapaxes|swapdims)(?:[\s\\]*\(|[ \t]+as\b)",
    )

    valid = (
        "import torch.nn.functional as F\ndef f(x, h, w):\n    b, n, c = x.shape\n    x = x[:, 1:, :].reshape(b, h, w, c).permute(0, 3, 1, 2)\n"
        "    return F.max_pool2d(x.contiguous(), 2)\n",
        "import torch.nn.functional as F\ndef f(x, h, w):\n    b, n, c = x.shape\n    x = x[:, :-1, :].reshape(b, h, w, c).permute(0, 3, 1, 2)\n"
        "    return F.max_pool2d(x.contiguous(), 2)\n",
        "import torch.nn.functional as F\ndef f(x):\n    return F.interpolate(\n        # XNNPACK needs contiguous inputs\n"
        "        x.permute(0, 3, 1, 2).contiguous(),\n        size=2,\n    )\n",
        "def f(x):\n    return x.permute(0, 3, 1, 2).contiguous()\n",
        "import torch.nn.functional as F\ndef f(x):\n    return F.max_pool2d(x.permute(0, 3, 1, 2), 2)\n",
        "import torch.nn.functional as F\ndef f(x):\n    return F.max_pool2d(x.permute(0, 2, 3, 1).contiguous(), 2)\n",
        "import torch.nn.functional as F\ndef f(x):\n    return F.relu(x.permute(2, 0, 1).contiguous())\n",
        "import torch.nn.functional as F\ndef f(x):\n    return F.relu(x.permute(0, 2, 1).contiguous())\n",
        "def f(x, y):\n    x = x.permute(0, 3, 1, 2).contiguous()\n    return (x + y).view(4, -1)\n",
        "def f(x, y):\n    x = x.permute(0, 3, 1, 2).contiguous()\n    return (x + y).flatten(1)\n",
        "import torch.nn.functional as F\ndef f(x):\n    x = F.max_pool2d(x.permute(0, 3, 1, 2).contiguous(), 2)\n    return x.view(4, -1)\n",
        "def f(x, y):\n    x = x.permute(0, 3, 1, 2).contiguous()\n    x += y\n    return x.shape\n",
        "def f(x, y):\n    return x.permute(0, 3, 1, 2).contiguous().add_(y)\n",
        "def f(rel_pos, y):\n    return rel_pos.permute(0, 3, 1, 2).contiguous() + y\n",
        "def f(x):\n    return x.permute(0, 3, 1, 2).contiguous().float()\n",
        "import torch.nn.functional as F\ndef f(x):\n    x = F.max_pool2d(x.permute(0, 3, 1, 2).contiguous(), 2)\n"
        "    return x.reshape(4, -1), x.view(4, -1)\n",
        "import torch\ndef f(x, y):\n    return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format) + y\n",
        "from torch import nn\nclass M(nn.Module):\n    def __init__(self, c):\n"
        "        self.proj = nn.Conv2d(c, c, 1) if c else Other(c)\n    def forward(self, x):\n"
        "        return self.proj(x.permute(0, 3, 1, 2).contiguous())\n",
        "def f(x, net):\n    return net(x.permute(0, 3, 1, 2).contiguous())\n",
        "def f(x, y):\n    x = x.permute(0, 3, 1, 2).contiguous()\n    return x, x + y\n",
        "def f(x, y, net):\n    x = x.permute(0, 3, 1, 2).contiguous()\n    return net(x) + x\n",
        "def f(x, y):\n    x = x.permute(0, 3, 1, 2).contiguous()  # the kernel wants NCHW\n    return x + y\n",
        "def nhwc_to_nchw(x, y):\n    return x.permute(0, 3, 1, 2).contiguous() + y\n",
        "def f(x, y):\n    return (x.permute(0, 3, 1, 2).contiguous() + y).numpy()\n",
        "def f(x, y):\n    return x.permute(0, 3, 1, 2).contiguous().detach() * y\n",
        "def f(x, y):\n    x = x.permute(0, 3, 1, 2)\n    if not x.is_contiguous():\n        x = x.contiguous()\n        return x + y\n",
        "def f(x, y):\n    x = x.permute(0, 2, 3, 1)\n    return x.permute(0, 3, 1, 2).contiguous() + y\n",
        "def f(x):\n    x = x.permute(0, 3, 1, 2).contiguous()\n    return x.shape\n",
        "import torch\ndef f(x, y):\n    return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last) + y\n",
        (
            "from torch import nn\nclass M(nn.Module):\n    def __init__(self):\n        self.net = Attention(3)\n"
            "    def forward(self, x):\n        return self.net(x.permute(0, 3, 1, 2).contiguous())\n"
        ),
        (
            "from torch import nn\nclass M(nn.Module):\n    def __init__(self):\n        self.net = nn.Flatten()\n"
            "    def forward(self, x):\n        return self.net(x.permute(0, 3, 1, 2).contiguous())\n"
        ),
    )
    invalid = (
        Invalid(
            "import torch.nn.functional as F\ndef f(x, h, w):\n    x = x[1:, :].reshape(2, h, w, 8).permute(0, 3, 1, 2)\n"
            "    return F.max_pool2d(x.contiguous(), 2)\n"
        ),
        Invalid(
            "import torch.nn.functional as F\ndef f(self, h, w, c):\n"
            "    x = self.tokens[:, self.order].reshape(1, h, w, c).permute(0, 3, 1, 2)\n"
            "    return F.max_pool2d(x.contiguous(), 2)\n"
        ),
        Invalid(
            "def f(x, y):\n    x = x.permute(0, 3, 1, 2).contiguous()\n    log(x.shape)\n    return x + y\n"
        ),
        Invalid(
            "import torch.nn.functional as F\ndef f(x):\n    return F.max_pool2d(x.permute(0, 3, 1, 2).contiguous(), 2)\n",
            safe=False,
            fixed="import torch.nn.functional as F\ndef f(x):\n    return F.max_pool2d(x.permute(0, 3, 1, 2), 2)\n",
            message="max_pool2d",
        ),
        Invalid(
            "from torch import nn\nclass M(nn.Module):\n    def __init__(self, c):\n        super().__init__()\n"
            "        self.proj = nn.Conv2d(c, c, 1) if c else nn.Linear(c, c)\n    def forward(self, x, res):\n"
            "        x = x.reshape(1, 2, 2, -1).permute(0, 3, 1, 2).contiguous()\n        x = self.proj(x)\n        return x + res\n",
            message="`self.proj(x)`",
        ),
        Invalid(
            "from torch import nn\nclass M(nn.Module):\n    def __init__(self, c):\n        super().__init__()\n"
            "        self.pool = nn.MaxPool2d(2) if c else None\n    def forward(self, x):\n"
            "        x = x.permute(0, 3, 1, 2).contiguous()\n        x = self.pool(x)\n        return x.reshape(2, 3, -1)\n"
        ),
        Invalid(
            "from torch import nn\nclass M(nn.Module):\n    def __init__(self, c):\n        super().__init__()\n"
            "        self.embed = PatchEmbed(c)\n    def forward(self, x):\n        out = {}\n"
            "        x = x.permute(0, 3, 1, 2).contiguous()\n        y = self.embed(x)\n        out['x'] = x\n        return y, out\n"
        ),
        Invalid(
            "def f(x, y):\n    x = x.permute(0, 3, 1, 2).contiguous()\n    return x + y\n", message="`x + y`"
        ),
        Invalid(
            "from einops import rearrange\ndef f(self, z, p):\n    if p:\n        z = rearrange(z, 'b h w c -> b c h w').contiguous()\n"
            "    z = 1. / self.scale * z\n    return self.decode(z)\n"
        ),
        Invalid(
            "import torch.nn.functional as F\ndef f(x):\n    b, h, w, c = x.shape\n"
            "    x = x.transpose(1, 3).transpose(2, 3).contiguous()\n    return F.interpolate(x, size=(4, 4))\n"
        ),
        Invalid("def f(x, y):\n    return (x / 255).permute(0, 3, 1, 2).contiguous() + y\n"),
        Invalid(
            "def f(x, y, heads):\n    return x.view(1, 2, 3, heads).permute(0, 3, 1, 2).contiguous() + y\n"
        ),
        Invalid(
            "import torch.nn.functional as F\ndef f(x, w):\n    return F.conv3d(x.permute(0, 4, 1, 2, 3).contiguous(), w)\n"
        ),
        Invalid(
            "import torch.nn.functional as F\ndef f(x):\n    return F.relu(x.permute(0, 3, 1, 2).contiguous().float()) * 2\n"
        ),
        Invalid(
            "import torch\ndef f(x, y):\n    x, y = x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)\n    x = x.contiguous()\n"
            "    return x + y.to(memory_format=torch.contiguous_format)\n",
            fixed="import torch\ndef f(x, y):\n    x, y = x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)\n    x = x.contiguous()\n"
            "    return x + y.to(memory_format=torch.contiguous_format)\n",
        ),
    )
    proof = Proof(
        Claim.COPIES,
        flagged="def run(x, pool):\n    return F.max_pool2d(x.permute(0, 3, 1, 2).contiguous(), 2)\n",
        recommended="def run(x, pool):\n    return F.max_pool2d(x.permute(0, 3, 1, 2), 2)\n",
        inputs="(torch.randn(2, 6, 6, 8), nn.MaxPool2d(2))",
    )

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether something is copied that may be a permuted image."""
        from ._permuted import may_be_permuted_image

        copied = (
            call.func.value for call in outline.called("contiguous") if isinstance(call.func, ast.Attribute)
        )
        return any(may_be_permuted_image(tensor, outline) for tensor in copied)

    def check(self, flow: Flow) -> Iterator[Finding]:
        from ._chains import removal
        from ._permuted import copies_of_permuted, is_by_name

        for copy in copies_of_permuted(flow):
            reader = None if is_by_name(copy) else _reader(flow, copy)
            if reader is None:
                continue
            shown, read = flow.positions.shown(copy.call), flow.positions.shown(reader)
            edit = removal(flow, copy)
            yield self.finding(
                flow,
                copy.call,
                f"`{shown}` copies to NCHW order on every call for `{read}`, which reads any strides",
                help="leave `.contiguous()` out: permuted from NHWC, the tensor is channels_last",
                fix=None if edit is None else Fix("Remove the copy; strides change", False, (edit,)),
            )


def _reader(flow: Flow, copy: Copy) -> cst.BaseExpression | None:
    """The operator that the copy was made for, if it needs none; None if anything else may need it."""
    from esper_guard.lint.flow.consumers import How, consumers

    readers: dict[bool, cst.BaseExpression] = {}  # by whether it is a convolution, a pool or the like
    leaves = False
    waiting: list[cst.BaseExpression] = [copy.call]
    while waiting:
        for one in consumers(flow, waiting.pop()):
            if one.how is How.LEAVES:
                leaves = True
            elif one.result is not None and one.operators <= _CONVERSIONS:
                waiting.append(one.result)
            elif one.how is How.OPERATOR and _reads_any_strides(one.operators):
                is_spatial = _is_spatial(one.operators)
                readers.setdefault(is_spatial, one.node)
                if one.result is not None and _is_needed_in_order(flow, one.result, is_spatial):
                    return None
            elif one.how is not How.METADATA:
                return None
    if leaves or _NO_IMAGE.search(_root(flow, copy.receiver)):
        return readers.get(True)
    return readers.get(True) or readers.get(False)


def _root(flow: Flow, node: cst.BaseExpression) -> str:
    """What a chain of methods begins with: ``rel_pos`` in ``rel_pos.float().permute(0, 3, 1, 2)``."""
    import libcst as cst

    while isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
        node = node.func.value
    return flow.positions.one_line(node)


def _is_spatial(names: frozenset[str]) -> bool:
    from esper_guard.lint.flow.operators import BY_NAME, CONVOLUTIONS, POOLS, RESIZES

    return bool(names & (CONVOLUTIONS | POOLS | RESIZES | {BY_NAME}))


def _reads_any_strides(names: frozenset[str]) -> bool:
    """All of them do, or it is a convolution in one configuration and `linear` in the other."""
    from esper_guard.lint.flow.operators import ELEMENTWISE, NORMS

    if any(name.endswith("_") for name in names):
        return False  # without the copy it would write into the original
    others = {name for name in names if not _is_spatial(frozenset((name,)))}
    return others <= (ELEMENTWISE | NORMS) - {"detach"} or (
        _is_spatial(names) and others <= {"linear", *ELEMENTWISE, *NORMS}
    )


def _is_needed_in_order(flow: Flow, result: cst.BaseExpression, is_spatial: bool) -> bool:
    """Whether what the operator returns goes where its layout matters. A copy by `reshape` is a smaller evil after a pool."""
    from ._chains import method_called_on
    from ._needs import needs_contiguous

    uses = flow.uses(result)
    reshapes = [
        use for use in uses if (called := method_called_on(flow, use)) and called[0] in ("reshape", "flatten")
    ]
    if is_spatial and len(reshapes) == len(uses):
        return False
    return needs_contiguous(flow, result)
