"""# unconditional-contiguous-detach (EG101)

A tensor is copied to contiguous_format (NCHW) only to be detached.

## What it does

Flags `x.contiguous().detach()` where no `is_contiguous()` test of `x` guards the copy, in all its spellings:
operations between the two, `torch.detach(x.contiguous())`, `.detach_()`, `.data`,
`memory_format=torch.contiguous_format` given to `contiguous`, `to` or `clone`, and two statements where the copy
feeds nothing but the detach.

## Why is this bad?

`contiguous()` returns `x` itself if `x` is in NCHW order. If `x` is channels_last (NHWC) it copies all of it, on every
call: N*C*H*W*itemsize bytes, for a value that `detach()` alone would have shared. What follows then runs in NCHW.

The copy is often kept as a remedy for a crash in backward. That crash is a null write in PyTorch's CPU GroupNorm
backward (torch 2.0 to 2.13): any channels_last input that needs no gradient hits it, detached or not. The copy does
not even prevent it for 1x1 and single-channel features, for which `contiguous()` returns `x` unchanged.
`esper_guard.harden(model)` cures it where it is, at no copy; `esper-guard doctor` tells whether a machine has it.

## Example

```python
seed_input = host_features.contiguous().detach()
```

## Use instead

```python
seed_input = host_features.detach()
```

## When it stays silent

- Guarded: every path to the copy has asked `x.is_contiguous()`, with or without `memory_format`, and got False: by
  `if`, a ternary, `and`/`or`, an early return, `assert`, `while`, `match`, a comprehension's `if`, a test kept in a
  variable. A test of another value, or made before `x` was bound again, guards nothing.
- Another or an unknown memory format: `torch.channels_last`, `torch.preserve_format`, a variable.
- The copy is needed: it goes to `view`, `reshape`, `numpy()`, `data_ptr()`, DLPack, serialisation, native code.
- `x` is provably no 4-D or 5-D tensor, or no tensor, or what `torch.linalg` made of a matrix; a product by `@` or a
  repeated tensor, which is contiguous.
- `x.detach().contiguous()`: the same copy, but asked for by whoever uses the result.

Where the test came out True, the copy never happens, and the finding says so. A `clone` there copies for another reason.

## Fix safety

The fix removes the copy. It is unsafe: for a channels_last `x` the result has other strides, and it shares memory
with `x`, so that writing to one in place changes the other. Where `x` is known to be contiguous it is safe.

## References

- [torch.Tensor.contiguous](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.contiguous.html)
- [torch.Tensor.detach](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.detach.html)
- [Channels last memory format](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Finding, Fix, Invalid, Proof, Rule, Severity
from esper_guard.lint.torch_names import TENSOR_METADATA

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline

    from ._chains import Copy

# Operations that leave the layout as it is: a copy made before them is as avoidable as one made right before detach().
_BETWEEN = frozenset(
    """
    abs add add_ bfloat16 ceil clamp clamp_ clip clone cpu cuda div div_ double exp float floor half int log long mul
    mul_ nan_to_num neg pin_memory pow relu relu_ requires_grad_ round rsqrt sigmoid sqrt square sub sub_ tanh to type
    type_as xpu
    """.split()
)
_COPIES = frozenset(("contiguous", "contiguous_format"))
_DETACHES = frozenset(("detach", "detach_"))


class UnconditionalContiguousDetach(Rule):
    """Looks at each copy, then at where its result goes."""

    code = "EG101"
    name = "unconditional-contiguous-detach"
    severity = Severity.WARNING
    triggers = (rb"contiguous", rb"detach|\.(?:[\s\\]|#[^\n]*\n)*data\b")

    valid = (
        "import torch\ndef f(r, n):\n    x = torch.randn(n, 256)\n    return x[r * n : n, :].contiguous().detach()\n",
        "def f(m):\n    return m.weight.T.contiguous().detach()\n",
        "def f(x, n):\n    return x.repeat(n, 1, 1, 1).contiguous().detach()\n",
        "def f(x, y):\n    return (x @ y).contiguous().detach()\n",
        "def f(x):\n    return x.detach()\n",
        "def f(x):\n    return x.contiguous()\n",
        "def f(x):\n    return x.detach().contiguous()\n",
        "def f(x):\n    return x.detach() if x.is_contiguous() else x.contiguous().detach()\n",
        "def f(x):\n    if not x.is_contiguous():\n        x = x.contiguous().detach()\n    return x\n",
        "def f(x):\n    if x.is_contiguous():\n        return x.detach()\n    return x.contiguous().detach()\n",
        "def f(x):\n    ok = x.is_contiguous()\n    return x.detach() if ok else x.contiguous().detach()\n",
        "import torch\ndef f(x):\n    return x.contiguous(memory_format=torch.channels_last).detach()\n",
        "import torch\ndef f(x):\n    return x.clone(memory_format=torch.preserve_format).detach()\n",
        "def f(x, fmt):\n    return x.contiguous(memory_format=fmt).detach()\n",
        "def f(x):\n    return x.contiguous().detach().numpy()\n",
        "def f(x, n):\n    return x.contiguous().view(n, -1).detach()\n",
        "def f(x, n):\n    return x.contiguous().detach().view(n, -1)\n",
        "def f(x):\n    return launch(x.contiguous().detach().data_ptr())\n",
        "import torch\ndef f(x, path):\n    y = x.contiguous().detach()\n    torch.save({'x': y}, path)\n",
        "from safetensors.torch import save_file as s\ndef f(d):\n    s({k: v.contiguous().detach() for k, v in d})\n",
        "def f(x):\n    b, n, c = x.shape\n    return x.contiguous().detach()\n",
        "def f(x):\n    assert x.dim() == 3\n    return x.contiguous().detach()\n",
        "def f(x):\n    y = x.contiguous()\n    return y, y.detach()\n",
        "import torch\ndef f(x, k):\n    u, s, v = torch.linalg.svd(x)\n    return u[:, :k].contiguous().detach()\n",
        "import torch\ndef f(x):\n    r = torch.linalg.inv(x)\n    return r.contiguous().detach()\n",
        "import numpy as np\ndef f(x: np.ndarray):\n    return x.contiguous().detach()\n",
        "class Boxes:\n    pass\ndef f(x: Boxes):\n    return x.contiguous().detach()\n",
        (
            "def f(model):\n    held = {}\n    for name, value in model.state_dict().items():\n"
            "        held[name] = value.contiguous().detach()\n    return held\n"
        ),
        (
            "import torch\ndef f(x):\n    if x.is_contiguous():\n"
            "        return x.clone(memory_format=torch.contiguous_format).detach()\n"
        ),
        "def f(x):\n    y = x.contiguous()\n    return y.detach(), y.mT\n",
        "def f(x):\n    y = x.contiguous()\n    return y, x.clone().detach()\n",
        (
            "import torch\ndef f(x, y, args):\n    x = torch.add(y, x.contiguous()).detach()\n"
            "    y = torch.zeros_like(y, memory_format=torch.contiguous_format).detach()\n"
            "    return x, y, torch.clone(*args, memory_format=torch.contiguous_format).detach()\n"
            "def g(x):\n    return torch.ops.aten.clone(x, memory_format=torch.contiguous_format).detach()\n"
        ),
        "def f(x):\n    return x.contiguous().data()\n",
        "def f(x, moved):\n    y = x.contiguous()\n    y.data = moved\n    return y.detach()\n",
        "def f(x, step):\n    y = x.contiguous()\n    y.data -= step\n    return y.detach()\n",
        (
            "import torch\ndef f(x, path):\n    held = {}\n    held['x'] = x.contiguous().detach()\n    torch.save(held, path)\n"
            "def g(x, path):\n    held = []\n    held += [x.contiguous().detach()]\n    torch.save(held, path)\n"
            "def h(x, path):\n    held = []\n    held.append(x.contiguous().detach())\n    torch.save(held, path)\n"
            "def i(x, path):\n    torch.save(dict(x=x.contiguous().detach()), path)\n"
        ),
        "def f(x):\n    y = x.contiguous().detach()\n    def g():\n        return y.numpy()\n    return g\n",
        "class M:\n    def state_dict(self):\n        return {'x': self.x.contiguous().detach().cpu()}\n",
        (
            "import numpy as np\nimport torch\nfrom . import _C\nfrom .kernels import pool_cuda\n"
            "def f(x):\n    return np.square(x.contiguous().detach())\n"
            "def g(x):\n    return _C.pool(x.contiguous().detach().cpu())\n"
            "def h(x):\n    return pool_cuda(x.contiguous().detach())\n"
            "def i(x):\n    return torch.ops.mine.pool(x.contiguous().detach())\n"
            "def j(x):\n    return torch.flatten(x.contiguous().detach(), 1)\n"
        ),
        "import torch\ndef f(x):\n    return x.contiguous().to(memory_format=torch.channels_last).detach()\n",
    )
    invalid = (
        Invalid(
            "import torch\ndef f(x, d):\n    return x.to(d, memory_format=torch.contiguous_format).detach()\n",
            help="leave `memory_format` out",
        ),
        Invalid(
            "import torch\ndef f(x):\n    return x.clone(memory_format=torch.contiguous_format).detach()\n",
            message="clones",
            help="write `x.detach().clone()`, which keeps",
        ),
        Invalid(
            "import torch\ndef f(x):\n    y = x.to(memory_format=torch.contiguous_format)\n    return y.detach()\n",
            message="copies",
            help="write `x.detach()`, which copies nothing and keeps the memory format; the copy feeds nothing but `y.detach()`",
        ),
        Invalid(
            "def f(host_features):\n    return host_features.contiguous().detach()\n",
            safe=False,
            fixed="def f(host_features):\n    return host_features.detach()\n",
            message="`host_features.contiguous().detach()` copies `host_features`",
        ),
        Invalid(
            "def f(x):\n    return x.contiguous().float().detach()\n",
            fixed="def f(x):\n    return x.float().detach()\n",
        ),
        Invalid(
            "import torch as t\ndef f(x):\n    return t.detach(x.contiguous())\n",
            fixed="import torch as t\ndef f(x):\n    return t.detach(x)\n",
        ),
        Invalid(
            "from torch import contiguous_format as cf, detach as d\ndef f(x):\n    return d(x.to(memory_format=cf))\n",
            fixed="from torch import contiguous_format as cf, detach as d\ndef f(x):\n    return d(x)\n",
        ),
        Invalid("def f(x):\n    return x.contiguous().data\n", fixed="def f(x):\n    return x.data\n"),
        Invalid(
            "import torch\ndef f(x):\n    return x.to('cuda', memory_format=torch.contiguous_format).detach()\n",
            fixed="import torch\ndef f(x):\n    return x.to('cuda').detach()\n",
        ),
        Invalid(
            "import torch\ndef f(x):\n    return x.clone(memory_format=torch.contiguous_format).detach()\n",
            fixed="import torch\ndef f(x):\n    return x.clone().detach()\n",
            message="clones `x`",
        ),
        Invalid(
            "import torch\ndef f(x):\n    return x.clone(memory_format=torch.contiguous_format,).detach()\n",
            fixed="import torch\ndef f(x):\n    return x.clone().detach()\n",
        ),
        Invalid(
            "import torch\ndef f(a, b):\n    return torch.Tensor.contiguous(a + b).detach()\n",
            fixed="import torch\ndef f(a, b):\n    return (a + b).detach()\n",
        ),
        Invalid(  # without the copy, x itself would be changed
            "def f(x):\n    return x.contiguous().add_(1).detach()\n",
            fixed="def f(x):\n    return x.contiguous().add_(1).detach()\n",
        ),
        Invalid(
            "def f(x):\n    y = x.contiguous().requires_grad_()\n    return y.detach()\n",
            fixed="def f(x):\n    y = x.contiguous().requires_grad_()\n    return y.detach()\n",
        ),
        Invalid("def f(x):\n    x: T = x.contiguous()\n    return x.detach()\n"),
        Invalid(
            "def f(x):\n    return (x := x.contiguous()).detach()\n",
            fixed="def f(x):\n    return (x := x.contiguous()).detach()\n",
        ),
        Invalid("def f(x, total):\n    total += x.contiguous().data\n    return total\n"),
        Invalid(
            "import torch\ndef f(x):\n    return torch.clone(memory_format=torch.contiguous_format, input=x).detach()\n",
            fixed="import torch\ndef f(x):\n    return torch.clone(input=x).detach()\n",
            message="`x`",
        ),
        Invalid(
            "import torch\ndef f(x):\n    return x.to(dtype=torch.half, memory_format=torch.contiguous_format).detach()\n",
            fixed="import torch\ndef f(x):\n    return x.to(dtype=torch.half).detach()\n",
        ),
        Invalid(
            "import torch\ndef f(x):\n    return torch.Tensor.contiguous(x, memory_format=torch.contiguous_format).detach()\n",
            fixed="import torch\ndef f(x):\n    return x.detach()\n",
        ),
        Invalid(
            "import torch\ndef f(x):\n    return x.to(\n        'cuda',  # if there is one\n"
            "        memory_format=torch.contiguous_format,\n    ).detach()\n",
            fixed="import torch\ndef f(x):\n    return x.to(\n        'cuda',  # if there is one\n"
            "        memory_format=torch.contiguous_format,\n    ).detach()\n",
        ),
        Invalid(
            "import torch\ndef f(x):\n    return torch.Tensor.contiguous(\n        x,  # of the host\n    ).detach()\n",
            fixed="import torch\ndef f(x):\n    return torch.Tensor.contiguous(\n        x,  # of the host\n    ).detach()\n",
        ),
        Invalid(
            "def f(x):\n    return (\n        x  # of the host\n        .contiguous().detach()\n    )\n",
            fixed="def f(x):\n    return (\n        x  # of the host\n        .detach()\n    )\n",
        ),
        Invalid(
            "def f(x):\n    return x.contiguous(  # for the kernel\n    ).detach()\n",
            fixed="def f(x):\n    return x.contiguous(  # for the kernel\n    ).detach()\n",
        ),
        Invalid(
            "def f(x):\n    return x \\\n        .contiguous() \\\n        .detach()\n",
            fixed="def f(x):\n    return x \\\n        .detach()\n",
        ),
        Invalid("def f(x):\n    return x.contiguous().detach().mean((2, 3)).numpy()\n"),
        Invalid("def f(self, x):\n    self.cache()['x'] = x.contiguous().detach()\n"),
        Invalid(
            "import torch\nfrom .trees import flatten\ndef f(self, ctx, x):\n    y = x.contiguous().detach()\n"
            "    ctx.save_for_backward(y)\n    return flatten(y), torch.relu(y), self.heads[0](y)\n"
        ),
        Invalid(
            "def f(x, n):\n    y = x.contiguous()\n    for _ in range(n):\n        y = y.mul(0.5)\n    return y.detach()\n"
        ),
        Invalid(
            "def f(x):\n    y = x.contiguous()\n    log(y.shape, y.size(0))\n    return y.detach()\n",
            fixed="def f(x):\n    y = x\n    log(y.shape, y.size(0))\n    return y.detach()\n",
            message="`x.contiguous()` copies",
        ),
        Invalid(
            "def f(x):\n    return (y := x.contiguous()).detach(), y.float().detach()\n",
            message="`x.contiguous()` copies",
        ),
        Invalid(
            "def f(x):\n    return (\n        x\n        .contiguous()\n        .detach()\n    )\n",
            fixed="def f(x):\n    return (\n        x\n        .detach()\n    )\n",
        ),
        Invalid("def f(x, y):\n    return x if y.is_contiguous() else x.contiguous().detach()\n"),
        Invalid(
            "def f(x):\n    if not x.is_contiguous():\n        x = g(x)\n        return x.contiguous().detach()\n"
        ),
        Invalid(
            "import torch\ndef f(x):\n    if x.is_contiguous(memory_format=torch.channels_last):\n"
            "        return x.contiguous().detach()\n"
        ),
        Invalid(
            "def f(x):\n    if x.is_contiguous():\n        return x.contiguous().detach()\n",
            fixed="def f(x):\n    if x.is_contiguous():\n        return x.detach()\n",
            message="the copy does nothing here",
        ),
        Invalid("def f(x):\n    if not x.is_contiguous():\n        return lambda: x.contiguous().detach()\n"),
        Invalid("def f(x):\n    return f'{x.contiguous().detach()}'\n"),
    )
    proof = Proof(
        Claim.COPIES,
        flagged="def run(x):\n    return x.contiguous().detach()\n",
        recommended="def run(x):\n    return x.detach()\n",
    )

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether something is made contiguous, and something detached."""
        return bool(outline.words & _COPIES and (outline.words & _DETACHES or "data" in outline.attributes))

    def check(self, flow: Flow) -> Iterator[Finding]:
        from ._chains import as_copy

        for call in flow.calls:
            copy = as_copy(flow, call)
            if copy is None or not _may_copy(flow, copy):
                continue
            detached, in_place = _only_detached(flow, call)
            if detached:
                yield self._finding(flow, copy, detached, in_place)

    def _finding(self, flow: Flow, copy: Copy, detached: list[cst.BaseExpression], in_place: bool) -> Finding:
        from esper_guard.lint.flow import ContiguityTest

        from ._chains import removal

        positions = flow.positions
        chain = _chain(flow, copy.call, detached)
        node = chain or copy.call
        receiver, shown = positions.shown(copy.receiver), positions.shown(node)
        useless = ContiguityTest("contiguous_format", True) in flow.facts(copy.receiver).tests
        if useless:
            message = f"`{shown}`: the copy does nothing here, `{receiver}` is contiguous on every path to it"
            advice = f"write `{receiver}.detach()`; if the copy was meant, the test is the wrong way round"
        else:
            verb = "clones" if copy.method == "clone" else "copies"
            message = f"`{shown}` {verb} `{receiver}` into NCHW order on every call if it is channels_last"
            advice = f"write `{receiver}.detach()`, which copies nothing and keeps the memory format"
            if copy.method == "clone":
                advice = f"write `{receiver}.detach().clone()`, which keeps the memory format"
            if chain is None:
                advice += f"; the copy feeds nothing but `{positions.shown(detached[0])}`"
        if copy.method == "to" and len(copy.call.args) > 1:
            advice = "leave `memory_format` out: `to` then keeps the memory format"
        # An operation in place would change the original.
        edit = None if in_place else removal(flow, copy)
        mend = "Remove the copy"
        if not useless:
            mend += f"; strides and aliasing change: the result is laid out like `{receiver}`, and may share its memory"
        fix = None if edit is None else Fix(mend, useless, (edit,))
        return self.finding(flow, node, message, help=advice, fix=fix)


def _may_copy(flow: Flow, copy: Copy) -> bool:
    """Not guarded, a tensor of rank 4 or 5 as far as we know that may lie otherwise, and no entry of a state dict."""
    from esper_guard.lint.flow import ContiguityTest, can_be_image
    from esper_guard.lint.flow.layouts import MADE

    facts = flow.facts(copy.receiver)
    guarded = any(not test.outcome for test in facts.tests) or (
        copy.method == "clone" and ContiguityTest("contiguous_format", True) in facts.tests
    )
    if guarded or facts.layout == MADE or not can_be_image(facts):
        return False
    return not _is_from_state_dict(flow, copy.receiver) and not _is_factor(flow, copy.receiver)


def _is_factor(flow: Flow, receiver: cst.BaseExpression) -> bool:
    """Whether it is, or is a slice of, what a factorisation of a matrix returned: no image."""
    import libcst as cst

    while isinstance(receiver, cst.Subscript):
        receiver = receiver.value
    made_by = flow.made_by(receiver)
    if not isinstance(made_by, cst.CSTNode):
        return False
    assigned = next((a for a in (made_by, *flow.ancestors(made_by)) if isinstance(a, cst.Assign)), None)
    value = assigned.value if assigned is not None else made_by
    return isinstance(value, cst.Call) and flow.origin(value.func).startswith(("torch.linalg.", "torch.svd"))


def _is_from_state_dict(flow: Flow, receiver: cst.BaseExpression) -> bool:
    import libcst as cst

    made_by = flow.made_by(receiver)
    if not isinstance(made_by, cst.CSTNode):
        return False
    for ancestor in flow.ancestors(made_by):
        if isinstance(ancestor, (cst.For, cst.CompFor)):
            return "state_dict" in flow.positions.shown(ancestor.iter)
    return False


def _only_detached(flow: Flow, node: cst.BaseExpression) -> tuple[list[cst.BaseExpression], bool]:
    """Every expression that detaches the value of ``node``, none if anything else is done with it; whether in place."""
    from ._chains import attribute_read, memory_format_argument, method_called_on
    from ._needs import needs_contiguous

    found: list[cst.BaseExpression] = []
    in_place = False
    waiting, seen = [node], {node}
    while waiting:
        for use in flow.uses(waiting.pop()):
            read = attribute_read(flow, use)
            called = method_called_on(flow, use)
            if (read is not None and read.attr.value in TENSOR_METADATA) or (
                called and called[0] in TENSOR_METADATA
            ):
                continue
            if read is not None and read.attr.value == "data":
                found.append(read)
            elif called and called[0] in ("detach", "detach_"):
                found.append(called[1])
                in_place |= called[0].endswith("_")
            elif (
                called
                and called[0] in _BETWEEN
                and memory_format_argument(list(called[1].args), called[0]) is None
            ):
                in_place |= called[0].endswith("_")
                if called[1] not in seen:
                    seen.add(called[1])
                    waiting.append(called[1])
            else:
                return [], False
    return [] if any(needs_contiguous(flow, detached) for detached in found) else found, in_place


def _chain(flow: Flow, copy: cst.Call, detached: list[cst.BaseExpression]) -> cst.BaseExpression | None:
    """The one expression that both copies and detaches, if it is one."""
    if len(detached) == 1 and detached[0] in flow.ancestors(copy):
        return detached[0]
    return None
