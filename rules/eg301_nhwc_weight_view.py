"""# nhwc-weight-view (EG301)

`view` merges dimensions of a convolution's weight or of a gradient, which raises if it is channels_last.

## What it does

Flags `conv.weight.view(conv.weight.size(0), -1)` and the like on the weight of a 2-D convolution (by what its class
assigns to the attribute, by `isinstance`, as `self.weight` of a class derived from `nn.Conv2d`, as what
`F.conv2d` is given), and `p.view(-1)` for the `p` of a loop over parameters; also on `.data`, `.grad`, `.detach()` of
them, and through other names.

## Why is this bad?

`model.to(memory_format=torch.channels_last)` lays convolution weights out as O, H, W, I in memory, and their gradients
follow. In that order I does not lie next to H, and O not next to I: no view can merge them, so `view` raises
`RuntimeError: view size is not compatible with input tensor's size and stride`. It runs in NCHW, and fails for the
first user who converts the model.

## Example

```python
weight = self.conv.weight.view(self.conv.weight.size(0), -1)
```

## Use instead

```python
weight = self.conv.weight.reshape(self.conv.weight.size(0), -1)
```

## When it stays silent

- Shapes of three and more sizes, which may keep O and I apart (`view(o, i, -1)`) or split them; a leading 1 before the
  first dimension is no size of its own.
- Kernels known to be 1x1, and convolutions of one channel a group: both formats are the same memory for them.
- Weights of linear layers, embeddings, normalisations and modules that are not in sight; names for parameters that no
  loop over parameters and no `F.conv2d` vouches for.
- Under `torch.nn.init`, which comes before any conversion; copies of parameters in one dimension, by their name
  (`master_params`).
- Where `is_contiguous()` was asked, after `contiguous()` or `reshape`, in `try`, where an exception is expected.
- `view(shape)` and `view(dtype)` with a name: what it holds is unknown.

## Fix safety

The fix writes `reshape`, which is the same view for NCHW and a copy for channels_last. It is safe where the result
is only read. Where it is handed on (returned, stored, given to a function) the fix is unsafe, as somebody may write
into it; where it is written into (`view(-1).copy_(...)`) there is none: `reshape` would lose what is written.

## References

- [torch.Tensor.view](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.view.html)
- [Channels last memory format](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Finding, Invalid, Proof, Rule, Severity

from ._triggers import MERGING_VIEW

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.modules import Made
    from esper_guard.lint.outline import Outline

    from ._views import Called, View

_CONVOLUTIONS = frozenset(
    f"torch.nn.{lazy}{name}" for lazy in ("", "Lazy") for name in ("Conv2d", "ConvTranspose2d")
)
_FUNCTIONS = frozenset(f"torch.nn.functional.{name}" for name in ("conv2d", "conv_transpose2d")) | {
    "torch.conv2d",
    "torch.conv_transpose2d",
}
_CONVOLVES = frozenset(("conv2d", "conv_transpose2d"))
_SAME_ORDER = frozenset(
    "abs bfloat16 clone cpu cuda detach double float half requires_grad_ to type type_as".split()
)
_ARE_PARAMETERS = re.compile(r"(?:\A|[._])(?:params|parameters)\Z|\[['\"]params['\"]\]\Z")
# Copies in one dimension, such as those that optimizers in mixed precision keep.
_FLAT = re.compile(r"master|main_|flat|shard|fp32", re.IGNORECASE)
_LISTS_PARAMETERS = frozenset(("parameters", "named_parameters"))
_WRAPPERS = frozenset("filter list reversed sorted tqdm tuple".split())
_CONTAINERS = frozenset(f"torch.nn.{name}" for name in ("Module", "ModuleDict", "ModuleList", "Sequential"))
_IS_POINTWISE = re.compile(r"\bkernel_size\b[^\n]*==[\s(]*1\b")
_BLOCK = re.compile(r"(?:\A|(?<=[\r\n]))([ \t]*)(?:async[ \t]+)?(class|def)[ \t]+(\w+)")
_VIEWED = (
    "import torch\nimport torch.nn as nn\nclass L(nn.Conv2d):\n    def __init__(self):\n        self.fc = nn.Linear(9, 9)\n"
    "    def f(self, x, y):\n        v = self.weight.view(8, -1)\n        {}\n"
)
# What only reads the memory of a view, and what hands it on.
_READS = (
    "return v.norm(dim=1)",
    "return v * 2 - x",
    "return -v",
    "return v > 0",
    "x += v",
    "return torch.linalg.norm(v)",
    "return torch.cat([v, v])",
    "return v.detach().t().sum()",
    "return v[0].item()",
    "return v.shape",
    "y.copy_(v)",
    "return self.fc(v)",
    "return torch.detach(v).sum()",
)
_HANDS_ON = (
    "return v",
    "return g(v)",
    "return v.detach()",
    "return v[0]",
    "return torch.transpose(v, 0, 1)",
    "return {'v': v}",
    "return v.data",
    "return self.register(v)",
    "return self.fc.bias.add(g(v))",
)


class NhwcWeightView(Rule):
    """Looks at each ``view`` with few sizes, then at what it is called on."""

    code = "EG301"
    name = "nhwc-weight-view"
    severity = Severity.ERROR
    triggers = (*MERGING_VIEW, rb"weight|param|conv2d|conv_transpose2d|\[[\"']")
    file_triggers = (rb"onv2d|ranspose2d|parameters|params",)
    only_with_channels_last = True

    valid = (
        "import torch.nn as nn\ndef f(c: nn.Conv2d):\n    nn.init.xavier_uniform_(c.weight.view([c.weight.shape[0], -1]))\n",
        "def f(groups, master_params):\n    return [p.view(-1) for g, p in zip(groups, master_params)]\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 8, 3)\n"
        "    def f(self):\n        return self.c.weight.reshape(8, -1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 8, 3)\n"
        "    def f(self):\n        return self.c.weight.view(8, 3, -1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 8, 1)\n"
        "    def f(self):\n        return self.c.weight.view(8, -1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n"
        "        self.c = nn.Conv2d(3, 8, kernel_size=(1, 1))\n"
        "    def f(self):\n        return self.c.weight.view(8, -1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n"
        "        self.c = nn.Conv2d(8, 8, 3, groups=8)\n    def f(self):\n        return self.c.weight.view(8, -1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self, d):\n"
        "        self.c = nn.Conv2d(d, d, 3, groups=d)\n    def f(self):\n        return self.c.weight.view(8, -1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(1, 8, 3)\n"
        "    def f(self):\n        return self.c.weight.view(8, -1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Linear(3, 8)\n"
        "    def f(self):\n        return self.c.weight.view(-1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def f(self):\n        return self.c.weight.view(-1)\n",
        "import torch.nn as nn\nclass N(nn.Linear):\n    def f(self):\n        return self.weight.view(-1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 8, 3)\n"
        "    def f(self):\n        return self.c.bias.view(1, -1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 8, 3)\n"
        "    def f(self):\n        return self.c.weight.contiguous().view(-1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 8, 3)\n"
        "    def f(self):\n        w = self.c.weight\n        if w.is_contiguous():\n            return w.view(-1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 8, 3)\n"
        "    def f(self):\n        try:\n            return self.c.weight.view(-1)\n        except RuntimeError:\n"
        "            return None\n",
        "import torch\ndef f(model):\n    for p in model.parameters():\n        p.view(torch.uint8)\n",
        "def f(model, shape):\n    for p in model.parameters():\n        p.data.view(shape)\n        p.view(*shape)\n",
        "def f(model):\n    for p in model.parameters():\n        p.exp_avg.view(-1)\n",
        "def f(tensors, params):\n    for t in tensors:\n        t.view(-1)\n    return params\n",
        "def f(weight):\n    return weight.view(weight.size(0), -1)\n",
        "import torch.nn as nn\ndef f(params):\n    fc = nn.Linear(3, 4)\n    return [p.view(-1) for p in fc.parameters()]\n",
        "def f(model):\n    for name, p in model.named_parameters():\n        name.view(-1)\n",
        "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 8, 3)\n"
        "    def f(self):\n        return self.c.weight.view(1, 8, -1)\n",
        (
            "import torch.nn as nn\ndef f(c: nn.Conv2d):\n    try:\n        print(c.weight.view(-1))\n"
            "    except RuntimeError:\n        pass\n"
        ),
        "import torch.nn as nn\nclass L(nn.Linear):\n    def f(self):\n        return [p.view(-1) for p in self.parameters()]\n",
        "def f(params, flats):\n    return [flat.view(-1) for p, flat in zip(params, flats)]\n",
        "def f(params):\n    return [i.view(-1) for i, p in enumerate(params)]\n",
        "import torch.nn as nn\ndef f(c: nn.Conv2d, fmt):\n    w = c.weight\n    return w.sum((2, 3)).view(-1), w.clone(memory_format=fmt).view(-1)\n",
        "import torch.nn as nn\ndef f(c: nn.Conv2d, n):\n    w = c.weight\n    return w.view(1, 8, -1), w.view(n, w.size(0), -1)\n",
        "import torch.nn as nn\ndef f(c: nn.Conv2d, m):\n    return c.weight.mean() + unwrap(m).weight.view(-1)\n",
        "import torch.nn.functional as F\ndef f(x, k):\n    w = make(k)\n    return F.conv2d(x, w), w.view(8, -1)\n",
        (
            "import torch.nn as nn\nimport torch.nn.functional as F\n"
            "def f(x, w, b, c: nn.Conv2d):\n    y = F.conv2d(x, w) + b.view(1, -1) + c.bias.view(1, -1)\n"
            "    return y, x.view(x.size(0), -1)\n"
        ),
        (
            "import torch.nn as nn\nimport torch.nn.functional as F\nclass WS(nn.Conv2d):\n    def forward(self, x):\n"
            "        return F.conv2d(x, self.weight), x.view(x.size(0), -1)\n"
        ),
        (
            "import torch.nn as nn\nclass C(nn.Conv2d):\n    pass\nclass L(nn.Linear):\n    def f(self, weight):\n"
            "        return weight.view(-1)\n"
        ),
        "import torch.nn as nn\nclass C(nn.Conv2d):\n    pass\ndef f(weight):\n    return weight.view(8, -1)\n",
        "import torch.nn.functional as F\ndef f(x, weight, params):\n    return F.embedding(x, weight), weight.view(-1)\n",
        "def f(m):\n    for n, p in m.named_parameters():\n        _, q = split(p)\n        q.view(-1)\n",
        (
            "def f(params, param_stats):\n    for p, flat in params:\n        flat.view(-1)\n    for t in param_stats:\n"
            "        t.view(-1)\n    for t in param_stats.values():\n        t.view(-1)\n    for t in list(param_stats):\n"
            "        t.view(-1)\n    for t in stats(params):\n        t.view(-1)\n    for n, t in named(params):\n"
            "        t.view(-1)\n"
        ),
        "def f(params):\n    return [p.view(-1) for _, p in zip(*params)]\n",
        "import torch.nn as nn\ndef f(c: nn.Conv2d, lead):\n    return c.weight.view(*lead, -1), c.weight.view((*lead, -1))\n",
        "def f(m, q, panel):\n    panel.view()\n    for p in m.parameters():\n        p.view(q.size())\n        p.view(shape_of(q))\n",
        (
            "import pytest\nimport torch.nn as nn\ndef f(self, c: nn.Conv2d):\n    with pytest.raises(RuntimeError):\n"
            "        c.weight.view(-1)\n    self.assertRaises(RuntimeError, lambda: c.weight.view(-1))\n"
        ),
        "def f(params, flats):\n    return [pair.view(-1) for pair in zip(params, flats)]\n",
        (
            "import torch.nn as nn\ndef f(params):\n    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())\n"
            "    return [p.view(-1) for p in net.parameters()]\n"
        ),
        "import torch.nn as nn\ndef f(c: nn.Conv2d):\n    assert c.kernel_size == (1, 1)\n    return c.weight.view(-1)\n",
    )
    invalid = (
        *(Invalid(_VIEWED.replace("{}", use), safe=True) for use in _READS),
        *(Invalid(_VIEWED.replace("{}", use), safe=False) for use in _HANDS_ON),
        Invalid(
            "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 8, 3)\n"
            "    def f(self):\n        return self.c.weight.view(self.c.weight.size(0), -1).mean(1)\n",
            fixed="import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n"
            "        self.c = nn.Conv2d(3, 8, 3)\n"
            "    def f(self):\n        return self.c.weight.reshape(self.c.weight.size(0), -1).mean(1)\n",
            message="`self.c.weight`",
        ),
        Invalid(
            "import torch\nimport torch.nn as nn\ndef f(model):\n    for m in model.modules():\n"
            "        if isinstance(m, (nn.Linear, nn.Conv2d)):\n            w = m.weight.detach()\n"
            "            torch.linalg.norm(torch.Tensor.view(w, (w.shape[0], -1)))\n",
        ),
        Invalid(
            "import torch.nn as nn\ndef f(m: nn.Conv2d):\n    w = m.weight\n    w.data.view(-1).copy_(w.view([-1]))\n",
            findings=2,
            fixed="import torch.nn as nn\ndef f(m: nn.Conv2d):\n    w = m.weight\n"
            "    w.data.view(-1).copy_(w.reshape([-1]))\n",
        ),
        Invalid(
            "import torch.nn as nn\ndef f(m: nn.Conv2d, x):\n    flat = m.weight.data.view(8, -1)\n    flat[0] = x\n",
            fixed="import torch.nn as nn\ndef f(m: nn.Conv2d, x):\n    flat = m.weight.data.view(8, -1)\n    flat[0] = x\n",
        ),
        Invalid(
            "import torch.nn as nn\ndef f(m: nn.Conv2d, x):\n    flat = m.weight.data.view(8, -1)\n    flat += x\n",
            fixed="import torch.nn as nn\ndef f(m: nn.Conv2d, x):\n    flat = m.weight.data.view(8, -1)\n    flat += x\n",
        ),
        Invalid(
            "import torch.nn as nn\ndef f(m: nn.Conv2d, x):\n    m.weight.data.view(-1)[3:].zero_()\n",
            fixed="import torch.nn as nn\ndef f(m: nn.Conv2d, x):\n    m.weight.data.view(-1)[3:].zero_()\n",
        ),
        Invalid(
            "import torch\nimport torch.nn as nn\ndef f(m: nn.Conv2d, x):\n    fill(m.weight.view(-1).zero_())\n"
            "    torch.add(x, x, out=m.weight.view(-1))\n",
            findings=2,
            fixed="import torch\nimport torch.nn as nn\ndef f(m: nn.Conv2d, x):\n    fill(m.weight.view(-1).zero_())\n"
            "    torch.add(x, x, out=m.weight.view(-1))\n",
        ),
        Invalid(
            "import torch\nimport torch.nn.functional as F\nfrom torch import nn\ndef f(c: nn.Conv2d, x):\n    w = c.weight.data\n    w.view(-1)[0] += x\n"
            "    w.view(-1).detach().zero_()\n    torch.relu_(w.view(-1))\n    torch._foreach_zero_([w.view(-1)])\n"
            "    torch.transpose(w.view(8, -1), 0, 1).zero_()\n    F.dropout(w.view(-1)).mul_(2)\n",
            findings=6,
            fixed="import torch\nimport torch.nn.functional as F\nfrom torch import nn\ndef f(c: nn.Conv2d, x):\n    w = c.weight.data\n    w.view(-1)[0] += x\n"
            "    w.view(-1).detach().zero_()\n    torch.relu_(w.view(-1))\n    torch._foreach_zero_([w.view(-1)])\n"
            "    torch.transpose(w.view(8, -1), 0, 1).zero_()\n    F.dropout(w.view(-1)).mul_(2)\n",
        ),
        Invalid(
            "import torch\nimport torch.nn.functional as F\nfrom torch import nn\ndef f(c: nn.Conv2d, x):\n    w = c.weight.data\n    flat = w.view(-1)\n    x += flat[0]\n"
            "    y = flat[1]\n    x += w.view(-1)\n    torch.norm(w.view(-1)).mul_(2)\n    w.view(-1).norm().mul_(2)\n"
            "    return x + y, F.normalize(input=w.view(8, -1), dim=0)\n",
            findings=5,
            fixed="import torch\nimport torch.nn.functional as F\nfrom torch import nn\ndef f(c: nn.Conv2d, x):\n    w = c.weight.data\n    flat = w.reshape(-1)\n    x += flat[0]\n"
            "    y = flat[1]\n    x += w.reshape(-1)\n    torch.norm(w.reshape(-1)).mul_(2)\n    w.reshape(-1).norm().mul_(2)\n"
            "    return x + y, F.normalize(input=w.reshape(8, -1), dim=0)\n",
        ),
        Invalid(
            "import torch\ndef f(model):\n    return torch.cat([p.grad.view(-1) for p in model.parameters()])\n",
            fixed="import torch\ndef f(model):\n    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])\n",
        ),
        Invalid(
            "def f(m):\n    for i, (_, p) in enumerate(m.named_parameters()):\n        p.data.view(-1).sum()\n"
        ),
        Invalid(
            "def f(o):\n    for g in o.param_groups:\n        for p in g['params']:\n            p.view(p.numel()).sum()\n"
        ),
        Invalid("def f(self):\n    for p in self._params:\n        self.all.append(p.grad.view(-1))\n"),
        Invalid(
            "import torch.nn as nn\nimport torch.nn.functional as F\nclass WS(nn.Conv2d):\n    def forward(self, x):\n"
            "        w = self.weight\n        std = w.view(w.size(0), -1).std(dim=1)\n        return F.conv2d(x, w / std)\n"
        ),
        Invalid(
            "import torch.nn.functional as F\ndef ws(x, weight):\n    c = weight.size(0)\n"
            "    flat = weight.view(c, -1)\n    weight = weight / flat.std(1)\n    return F.conv2d(x, weight)\n"
        ),
        Invalid(
            "import torch.nn as nn\ndef f(c: nn.Conv2d):\n    return c.weight.view(1, c.weight.shape[0], -1)\n"
        ),
        Invalid(
            "import torch.nn as nn\nclass WS(nn.Conv2d):\n    def norm(self, weight):\n        w = weight - weight.mean()\n"
            "        return w.view(w.size(0), -1)\n"
        ),
        Invalid("def f(params, more):\n    return [p.view(-1) for n, p in zip(more, params)]\n"),
        Invalid("import torch.nn as nn\nc = nn.Conv2d(3, 8, 3)\nflat = c.weight.view(1, -1)\n"),
        Invalid(
            "import torch.nn as nn\ndef g(c):\n    return c.kernel_size == 1\n"
            "def f(c: nn.Conv2d):\n    o = c.weight.size(0)\n    return c.weight.view(1, o, -1)\n"
        ),
        Invalid(
            "import torch.nn as nn\ndef f(c: nn.Conv2d):\n"
            "    return c.weight.detach().view(1, c.weight.detach().size(0), -1)\n"
        ),
        Invalid(
            "import torch.nn.functional as F\ndef ws(x, w):\n    v = w\n    std = v.view(v.size(0), -1).std(1)\n"
            "    return F.conv2d(x, w / std), F.conv2d(x, bias=None, weight=w)\n"
        ),
        Invalid(
            "import torch.nn as nn\ndef f(c: nn.Conv2d):\n    o, *_ = c.weight.shape\n    return c.weight.view(size=(1, o, -1)), c.weight.view(-1)\n",
            findings=2,
        ),
        Invalid(
            "import torch.nn as nn\ndef f(self, c: nn.Conv2d):\n    with lock:\n        a = c.weight.view(-1)\n"
            "    self.assertEqual(c.weight.view(-1).sum(), 3)\n    try:\n        load(c)\n    except OSError:\n"
            "        b = c.weight.view(-1)\n    try:\n        d = c.weight.view(-1)\n    finally:\n        close(c)\n"
            "    return a, b, d\n",
            findings=4,
        ),
        Invalid("def f(model):\n    return [p.view(-1) for p in unwrap(model).parameters()]\n"),
        Invalid(
            "import torch.nn as nn\nclass N(Mixin, nn.Module):\n    def f(self):\n"
            "        return [p.view(-1) for p in self.parameters()]\n"
        ),
        Invalid(
            "import torch.nn as nn\nclass N(nn.Module):\n    def __init__(self):\n        self.a = nn.Conv2d(3, 8, 3)\n"
            "        self.b = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())\n        self.c = Block()\n    def f(self):\n"
            "        a = [p.view(-1) for p in self.a.parameters()]\n        b = [p.view(-1) for p in self.b.parameters()]\n"
            "        return a, b, [p.view(-1) for p in self.c.parameters()]\n",
            findings=3,
        ),
        Invalid(
            "import torch.nn as nn\nclass L(nn.Conv2d):\n    def f(self):\n        return [p.view(-1) for p in self.parameters()]\n"
        ),
    )
    proof = Proof(
        Claim.RAISES,
        flagged="def run(x):\n    conv = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)\n"
        "    return conv.weight.view(8, -1)\n",
        recommended="def run(x):\n    conv = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)\n"
        "    return conv.weight.reshape(8, -1)\n",
        error="view size is not compatible",
    )

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether there is a ``view`` with few sizes, on a weight or on what a loop over parameters yields."""
        from ._views import called_views

        views = (view for view in called_views(outline) if _may_merge(view))
        return any(_may_be_parameter(view.receiver, outline) for view in views)

    def check(self, flow: Flow) -> Iterator[Finding]:
        from ._context import is_expected_to_raise
        from ._views import as_view, is_tested_contiguous

        for call in flow.calls:
            view = as_view(flow, call)
            if view is None or not _merges(flow, view) or not _can_be_channels_last(flow, view.receiver):
                continue
            if is_tested_contiguous(flow, view.receiver) or is_expected_to_raise(flow, call):
                continue
            if _asks_for_pointwise(flow, call) or _is_initialised(flow, call):
                continue
            yield self._finding(flow, view)

    def _finding(self, flow: Flow, view: View) -> Finding:
        from ._views import flattened

        positions = flow.positions
        receiver = positions.shown(view.receiver)
        return self.finding(
            flow,
            view.call,
            f"`{positions.shown(view.call)}` raises if `{receiver}` is channels_last: no view can merge its dimensions",
            help="write `reshape`, which copies only then; where the result is written into, write to the tensor itself",
            fix=flattened(flow, view, is_owned=False),
        )


def _may_merge(view: Called) -> bool:
    first = view.sizes[0]
    return len(view.sizes) <= 2 or (isinstance(first, ast.Constant) and first.value == 1)


def _may_be_parameter(tensor: ast.expr, outline: Outline) -> bool:
    """Whether ``tensor`` may be a weight or a parameter by its name, or made of one, or given to a convolution."""
    if not _CONVOLVES.isdisjoint(outline.words):
        return True
    words = (word for node in outline.sources(tensor) for word in _words_of(node))
    return any("weight" in word or "param" in word for word in words)


def _words_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def _asks_for_pointwise(flow: Flow, node: cst.CSTNode) -> bool:
    """Whether the function has asked for a kernel of 1x1 before ``node``."""
    *_, root = flow.ancestors(node)
    start = flow.positions.span(root)[0]
    text = flow.positions.source.text
    return _IS_POINTWISE.search(text, start, flow.positions.span(node)[0]) is not None


def _is_initialised(flow: Flow, view: cst.Call) -> bool:
    """Whether the view is given to `torch.nn.init`: parameters are new then, and nobody has converted them."""
    import libcst as cst

    argument = flow.parent(view)
    call = flow.parent(argument) if isinstance(argument, cst.Arg) else None
    return isinstance(call, cst.Call) and flow.origin(call.func).startswith("torch.nn.init.")


def _merges(flow: Flow, view: View) -> bool:
    """Whether four dimensions can't fit the sizes but by merging those that lie apart."""
    from esper_guard.lint.flow.literals import whole_number

    from ._views import dimension_read

    sizes = view.sizes
    if len(sizes) == 3 and whole_number(sizes[0]) == 1:
        return dimension_read(flow, sizes[1], view.receiver) == 0 or _reads_output_channels(
            flow, sizes[1], view
        )
    return len(sizes) <= 2


def _reads_output_channels(flow: Flow, size: cst.BaseExpression, view: View) -> bool:
    """``c.weight.shape[0]`` in a view of ``c.weight``, as written."""
    shown = flow.positions.one_line(view.receiver)
    return flow.positions.one_line(size) in (f"{shown}.shape[0]", f"{shown}.size(0)")


def _can_be_channels_last(flow: Flow, tensor: cst.BaseExpression) -> bool:
    """Whether ``tensor`` is the weight of a convolution, a parameter, or a gradient or copy of one."""
    import libcst as cst

    seen: set[cst.CSTNode] = set()
    waiting = [tensor]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if _is_convolution_weight(flow, one) or _is_from_parameters(flow, one):
            return True
        if isinstance(one, cst.Name):
            waiting += flow.loads(one)
            made_by = flow.made_by(one)
            waiting += [made_by] if isinstance(made_by, (cst.Call, cst.BinaryOperation)) else []
        elif isinstance(one, cst.Attribute) and one.attr.value in ("data", "grad"):
            waiting.append(one.value)
        elif isinstance(one, cst.Call):
            waiting += _kept(flow, one)
        elif isinstance(one, cst.BinaryOperation):
            waiting.append(one.left)
    return False


def _kept(flow: Flow, call: cst.Call) -> list[cst.BaseExpression]:
    """What ``call`` returns in the same order of dimensions: ``w`` for ``w.detach()``."""
    from ._chains import memory_format_argument, unbound

    receiver, method, arguments = unbound(flow, call)
    if receiver is None or method not in _SAME_ORDER or memory_format_argument(arguments, method) is not None:
        return []
    return [receiver]


def _is_convolution_weight(flow: Flow, node: cst.BaseExpression) -> bool:
    import libcst as cst

    if isinstance(node, cst.Attribute) and node.attr.value == "weight":
        if isinstance(node.value, cst.Name) and node.value.value == "self":
            return any(base in _CONVOLUTIONS for base in _bases_around(flow, node))
        return any(_is_wide(made) for made in flow.facts(node.value).made)
    return isinstance(node, cst.Name) and _is_given_to_convolution(flow, node)


def _is_wide(made: Made) -> bool:
    """A convolution whose weight has more than one channel, and a kernel larger than 1x1, as far as is known."""
    if made.origin not in _CONVOLUTIONS:
        return False
    groups = dict(made.keywords).get("groups", 1)
    return (
        made.argument(2, "kernel_size") not in (1, (1, 1))
        and groups == 1
        and made.argument(0, "in_channels") != 1
    )


def _bases_around(flow: Flow, node: cst.CSTNode) -> list[str]:
    """The full names of the bases of the class around ``node``."""
    start = flow.positions.span(node)[0]
    text = flow.positions.source.text
    line = text[max(text.rfind("\n", 0, start), text.rfind("\r", 0, start)) + 1 : start]
    indentation = len(line) - len(line.lstrip())
    for found in reversed(list(_BLOCK.finditer(text, 0, start))):
        if len(found[1]) < indentation:
            indentation = len(found[1])
            if found[2] == "class":
                return [flow.names.resolve(base) for base in flow.names.classes.get(found[3], ())]
    return []


def _is_given_to_convolution(flow: Flow, name: cst.Name) -> bool:
    """Whether a parameter of the function is, by its name, the weight of ``F.conv2d`` in it, or of the class."""
    import libcst as cst

    if not isinstance(flow.made_by(name), cst.Param):
        return False
    if name.value == "weight" and any(base in _CONVOLUTIONS for base in _bases_around(flow, name)):
        return True
    return any(_is_weight_of(call, name) for call in flow.calls if flow.origin(call.func) in _FUNCTIONS)


def _is_weight_of(call: cst.Call, name: cst.Name) -> bool:
    import libcst as cst

    weights = [
        argument.value
        for index, argument in enumerate(call.args)
        if (argument.keyword.value == "weight" if argument.keyword is not None else index == 1)
    ]
    return any(isinstance(weight, cst.Name) and weight.value == name.value for weight in weights)


def _is_from_parameters(flow: Flow, node: cst.BaseExpression) -> bool:
    """Whether ``node`` is what a loop over parameters yields."""
    import libcst as cst

    target = flow.made_by(node)
    if not isinstance(node, cst.Name) or not isinstance(target, cst.Name):
        return False
    path: list[int] = []  # where the target stands in the tuples around it, innermost first
    child: cst.CSTNode = target
    for ancestor in flow.ancestors(target):
        if isinstance(ancestor, (cst.For, cst.CompFor)):
            return _yields_parameters(flow, ancestor.iter, path[::-1])
        if isinstance(ancestor, (cst.Tuple, cst.List)):
            path.append(next(at for at, element in enumerate(ancestor.elements) if element is child))
        elif not isinstance(ancestor, cst.Element):
            return False
        child = ancestor
    return False


def _yields_parameters(flow: Flow, iterable: cst.BaseExpression, path: list[int]) -> bool:
    """Whether the items of ``iterable`` hold parameters at ``path``, such as ``[1, 0]`` in ``i, (p, q)``."""
    import libcst as cst

    if not isinstance(iterable, cst.Call):
        written = flow.positions.one_line(iterable)
        return not path and bool(_ARE_PARAMETERS.search(written)) and not _FLAT.search(written)
    function = iterable.func
    if isinstance(function, cst.Attribute) and function.attr.value in _LISTS_PARAMETERS:
        expected = [1] if function.attr.value == "named_parameters" else []
        return path == expected and _may_own_convolution(flow, function.value)
    name = function.value if isinstance(function, cst.Name) else ""
    if name == "zip" and path and path[0] < len(iterable.args):
        return _yields_parameters(flow, iterable.args[path[0]].value, path[1:])
    if name == "enumerate" and path[:1] == [1]:
        return _yields_parameters(flow, iterable.args[0].value, path[1:])
    return name in _WRAPPERS and any(_yields_parameters(flow, one.value, path) for one in iterable.args)


def _may_own_convolution(flow: Flow, module: cst.BaseExpression) -> bool:
    import libcst as cst

    if isinstance(module, cst.Name) and module.value == "self":
        known = [base for base in _bases_around(flow, module) if base.startswith("torch.nn.")]
        return all(base in _CONVOLUTIONS or base in _CONTAINERS for base in known)
    made = flow.facts(module).made
    return not made or any(map(_has_convolution, made))


def _has_convolution(made: Made) -> bool:
    """Whether a module may be, or hold, a convolution whose weight can be channels_last."""
    if made.parts:
        return any(map(_has_convolution, made.parts))
    return _is_wide(made) or not made.origin.startswith("torch.nn.")
