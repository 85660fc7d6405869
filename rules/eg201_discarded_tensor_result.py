"""# discarded-tensor-result (EG201)

An out-of-place tensor method as a statement: its result is thrown away.

## What it does

Flags statements such as `x.to(device)`, `x.float()` or `x.detach()` where `x` is proven to be a tensor.

## Why is this bad?

These methods leave the tensor as it is and return a new one, so the statement does nothing: the tensor stays on its
device, in its dtype, in its memory format, attached to its graph. Modules are different (`model.to(device)` works in
place), which is why the mistake is easy to make, and why the receiver has to be proven a tensor.

## Example

```python
adj = torch.zeros(n, n)
adj.to(memory_format=torch.channels_last)
```

## Use instead

```python
adj = torch.zeros(n, n)
adj = adj.to(memory_format=torch.channels_last)
```

## When it stays silent

- Without evidence in the function that the receiver is a tensor. Evidence is a factory or another function of torch,
  `torch.nn.functional`, an annotation, `isinstance`, a method that only tensors have, arithmetic with a tensor,
  an element of a data loader's batch that takes `memory_format`.
- Where the call is made for something else than its result: in `try`, under `with pytest.raises(...)`, a profiler or
  a tracer, or to start a device (`torch.zeros(1).cuda()`).
- With keywords that the tensors' methods don't take: it is the method of something else.
- Methods that act in place or wait for a device: `x.add_(1)`, `x.item()`, `x.cpu()` on a line of its own.

## Fix safety

The fix assigns the result back. It is unsafe, because it changes what the program does, and offered only for
conversions (`to`, `float`, `detach`, ...) of a name or attribute.

## References

- [torch.Tensor.to](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.to.html)
- [torch.nn.Module.to](https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.to)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Finding, Fix, Invalid, Proof, Rule, Severity

from ._statements import EVIDENCE, statements_calling

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline
    from esper_guard.lint.tensors import Tensors

_CONVERSIONS = "to|type|type_as|float|half|double|bfloat16|int|long|short|bool|byte|char|cfloat|cdouble|cuda|xpu|detach|contiguous"
_SHAPES = (
    "view|view_as|reshape|reshape_as|permute|transpose|t|squeeze|unsqueeze|flatten|unflatten|expand|expand_as|repeat|"
    "swapaxes|swapdims|movedim|moveaxis|flip|roll|repeat_interleave"
)
_VALUES = (
    "clamp|clip|abs|neg|add|sub|mul|div|pow|exp|sqrt|rsqrt|square|round|floor|ceil|relu|sigmoid|tanh|softmax|"
    "log_softmax|masked_fill|masked_scatter|index_fill|index_add|index_copy|scatter|scatter_add|nan_to_num|clone|"
    "cumsum|tril|triu"
)
_METHODS = f"{_CONVERSIONS}|{_SHAPES}|{_VALUES}"
_DISCARDABLE = frozenset(_METHODS.split("|"))
# Those that the methods take.
_KEYWORDS = frozenset(
    """
    alpha copy decimals device dim dim0 dim1 dims dtype exponent index mask max memory_format min nan neginf
    non_blocking other output_size posinf reduce repeats rounding_mode shape shifts size sizes source src value
    """.split()
)
_STARTS_A_DEVICE = frozenset(("cuda", "to", "xpu"))
# Context managers under which a call is made to see it fail or to be recorded.
_ON_PURPOSE = re.compile(
    r"raises|assert|warns|profil|trace|tracing|record|capture|count|flop|timer|timeit|fails|benchmark|(?<!inference_)Mode\b",
    re.IGNORECASE,
)


class DiscardedTensorResult(Rule):
    """Looks at each expression statement."""

    code = "EG201"
    name = "discarded-tensor-result"
    severity = Severity.ERROR
    triggers = (statements_calling(_METHODS),)
    file_triggers = (EVIDENCE,)

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether a statement is such a call on what may be a tensor."""
        from esper_guard.lint.tensors import Tensors

        tensors = Tensors(outline)
        return any(
            isinstance(node, ast.Expr) and _may_be_discarded(node.value, outline, tensors)
            for node in outline.nodes
        )

    valid = (
        "import torch\ndef f(model: torch.nn.Module, d):\n    model.to(d)\n",
        "def f(x, d):\n    x.to(d)\n",
        "class Loss:\n    def f(self, x):\n        self.log_softmax(x)\n        self.to(x)\n",
        "import torch\ndef f(d):\n    x = torch.zeros(3)\n    x = x.to(d)\n    return x\n",
        "import torch\ndef f(x: torch.Tensor):\n    x.add_(1)\n    x.requires_grad_()\n    x.item()\n",
        "def f(m, d):\n    ids = m.generate(max_new_tokens=9, return_dict_in_generate=True)\n    ids.to(d)\n    return ids\n",
        "def f(m, d):\n    ids = m.generate(d)\n    ids.to(d)\n    return ids\n",
        "import torch\ndef f(x: torch.Tensor):\n    x.backward()\n    x.cpu()\n",
        "import torch, pytest\ndef f(x: torch.Tensor):\n    with pytest.raises(RuntimeError):\n        x.view(7)\n",
        "import torch\ndef f(x: torch.Tensor):\n    try:\n        x.view(-1)\n    except RuntimeError:\n        pass\n",
        "import torch\ndef f():\n    torch.zeros(1).cuda()\n",
        "import torch\ndef f(x, heat):\n    heat.of(x).expand_as(x, out_file=1)\n    heat.of(x).unsqueeze(0, plot=True)\n",
        "import torch\nclass Boxes:\n    pass\ndef f(b: Boxes):\n    b.clamp(0, 1, inplace=True)\n",
        "import torch\nclass Net(torch.nn.Module):\n    def f(self, d):\n        self.net.to(d)\n        self.to(d)\n",
        "import torch\ndef f(x, d):\n    if not isinstance(x, torch.Tensor):\n        x.to(d)\n",
        "import torch\ndef f(d):\n    x = torch.zeros(3)\n    x = Batch(x)\n    x.to(d)\n",
    )
    invalid = (
        Invalid(
            "import torch\ndef f(d):\n    x = torch.zeros(3)\n    x.to(d)\n    return x\n",
            safe=False,
            fixed="import torch\ndef f(d):\n    x = torch.zeros(3)\n    x = x.to(d)\n    return x\n",
            message="`x.to(d)`",
        ),
        Invalid("import torch\ndef f(x: torch.Tensor):\n    x.detach()\n    return x\n"),
        Invalid(
            "def f(self, d, **inputs):\n    ids = self.model.generate(**inputs, max_new_tokens=9)\n    ids.to(d)\n    return ids\n"
        ),
        Invalid("from torch import Tensor\ndef f(x: Tensor | None, d):\n    x.to(d)\n    return x\n"),
        Invalid("import torch\ndef f(x, d):\n    if isinstance(x, torch.Tensor):\n        x.to(d)\n"),
        Invalid(
            "import torch.nn.functional as F\ndef f(x, d):\n    y = F.relu(x).view(3, 4)\n    y.to(d)\n    return y\n"
        ),
        Invalid(
            "import torch\ndef f(x: torch.Tensor, y, d):\n    x.copy_(y).to(d)\n    return x\n",
            message="`.to(...)` after `x.copy_(y)`",
        ),
        Invalid("def f(x, d):\n    y = x.unsqueeze(0)\n    y.half()\n    return y\n"),
        Invalid("import torch\ndef f(x, y):\n    z = torch.cos(y) * x - 1\n    z.detach()\n    return z\n"),
        Invalid("import torch\ndef f(self):\n    self.w = torch.ones(3)\n    self.w.float()\n"),
        Invalid(
            "import torch\ndef f(loader, d):\n    x, y = next(iter(loader))\n    x = x.to(d)\n"
            "    x.to(memory_format=torch.channels_last)\n    return x\n"
        ),
        Invalid("import torch\ndef f(d):\n    for v in [torch.ones(3), torch.ones(2)]:\n        v.to(d)\n"),
        Invalid(
            "import torch\ndef f(x: torch.Tensor):\n    if x.numel(): x.clamp(0, 1)\n",
            fixed="import torch\ndef f(x: torch.Tensor):\n    if x.numel(): x.clamp(0, 1)\n",
        ),
        Invalid(
            "import torch\ndef f(x: torch.Tensor):\n    x.permute(0, 2, 1).contiguous()\n    return x\n",
            message="`x.permute(0, 2, 1).contiguous()` does nothing",
        ),
        Invalid(
            "import torch\ndef f(x: torch.Tensor, d):\n    (\n        x\n        .to(d)\n    )\n    return x\n",
            fixed="import torch\ndef f(x: torch.Tensor, d):\n    (\n        x\n        .to(d)\n    )\n    return x\n",
        ),
        Invalid(
            "import torch\ndef f(x: torch.Tensor, d):\n    x.to(\n        d,\n    )\n    (x.grad\n      .data).half()\n",
            findings=2,
            fixed="import torch\ndef f(x: torch.Tensor, d):\n    x = x.to(\n        d,\n    )\n    (x.grad\n      .data).half()\n",
        ),
        Invalid(
            "import torch\ndef f(x: torch.Tensor):\n    x.cpu().data.float()\n    x[0].half()\n    return x\n",
            findings=2,
            fixed="import torch\ndef f(x: torch.Tensor):\n    x.cpu().data.float()\n    x[0].half()\n    return x\n",
        ),
        Invalid(
            "import torch\ndef f(x: torch.Tensor, d):\n    'Warm up, and move.'\n    print(x)\n    x.add_(1)\n"
            "    torch.softmax(x, 1)\n    x.to(d)\n    return x\n"
        ),
        Invalid(
            "import torch\nclass Heat:\n    def f(self, x: torch.Tensor):\n        self.expand_as(x)\n        x.detach()\n"
        ),
        Invalid("import torch\ndef f(x: torch.Tensor):\n    x.cfloat()\n    return x\n"),
        Invalid("import torch\ndef f(a):\n    torch.from_numpy(a).float()\n    return a\n"),
        Invalid(
            "import torch\ndef f(x: torch.Tensor, d):\n    try:\n        load(x)\n    except OSError:\n        x.half()\n"
            "    try:\n        x.to(d)\n    finally:\n        close()\n",
            findings=2,
        ),
        Invalid(
            "import torch\ndef f(x: torch.Tensor, d):\n"
            "    with lock, torch.inference_mode(), torch.autocast(d, enabled=not tracing):\n        x.to(d)\n    return x\n"
        ),
        Invalid(
            "import torch\ndef f():\n    try:\n        def g(x: torch.Tensor):\n            x.detach()\n            return x\n"
            "        run(g)\n    except OSError:\n        pass\n"
        ),
    )
    proof = Proof(
        Claim.NOTHING,
        flagged="def run(x: torch.Tensor):\n    x.to(torch.float64)\n    x.clamp(0, 1)\n    x.permute(0, 2, 3, 1)\n    return x\n",
        recommended="def run(x: torch.Tensor):\n    x = x.to(torch.float64)\n    return x\n",
        reference="inputs[0]",
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        import libcst as cst

        from esper_guard.lint.flow import Kind

        for statement in flow.statements:
            call = statement.value
            if not isinstance(call, cst.Call) or not isinstance(call.func, cst.Attribute):
                continue
            receiver, method = call.func.value, call.func.attr.value
            if method not in _DISCARDABLE or flow.origin(call.func) or _is_anothers(call):
                continue
            if isinstance(receiver, cst.Name) and receiver.value in ("self", "cls"):
                continue  # a method of the class itself, which may have that name, too
            facts = flow.facts(receiver)
            is_tensor = facts.kind is Kind.TENSOR or flow.facts(call).kind is Kind.TENSOR
            if is_tensor and not _is_on_purpose(flow, statement, receiver, method):
                yield self._finding(flow, call, receiver, method)

    def _finding(self, flow: Flow, call: cst.Call, receiver: cst.BaseExpression, method: str) -> Finding:
        shown, written = flow.positions.shown(receiver), flow.positions.shown(call)
        is_place = flow.is_place(receiver)
        idle = f"`.{method}(...)` after `{shown}`" if _is_in_place(receiver) else f"`{written}`"
        return self.finding(
            flow,
            call,
            f"{idle} does nothing: `{method}` returns a new tensor and leaves `{shown}` as it is",
            help=f"write `{shown} = {written}`" if is_place else "use the result, or remove the statement",
            fix=_fix(flow, call, receiver, method) if is_place else None,
        )


def _may_be_discarded(call: ast.expr, outline: Outline, tensors: Tensors) -> bool:
    from esper_guard.lint.outline import written

    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    receiver, method = call.func.value, call.func.attr
    place = written(receiver)
    if method not in _DISCARDABLE or place in ("self", "cls"):
        return False
    is_function = bool(outline.names.resolve_function(written(call.func))) and place not in outline.values
    return not is_function and (tensors.may_hold(receiver) or tensors.may_hold(call))


def _is_in_place(receiver: cst.BaseExpression) -> bool:
    """``x.copy_(y)``, which works whatever happens to its result."""
    import libcst as cst

    function = receiver.func if isinstance(receiver, cst.Call) else None
    return isinstance(function, cst.Attribute) and function.attr.value.endswith("_")


def _is_anothers(call: cst.Call) -> bool:
    """Whether a keyword tells that it is no method of a tensor, or that it writes into what it is given."""
    keywords = {arg.keyword.value for arg in call.args if arg.keyword is not None}
    return not keywords <= _KEYWORDS


def _is_on_purpose(flow: Flow, statement: cst.Expr, receiver: cst.BaseExpression, method: str) -> bool:
    """Where a call is made to see it fail, to be recorded, or to start a device."""
    import libcst as cst

    from ._context import is_managed

    starts = (
        method in _STARTS_A_DEVICE and isinstance(receiver, cst.Call) and bool(flow.origin(receiver.func))
    )
    return starts or is_managed(flow, statement, _ON_PURPOSE)


def _fix(flow: Flow, call: cst.Call, receiver: cst.BaseExpression, method: str) -> Fix | None:
    """Assign the result back: for a conversion, that is what was meant."""
    import libcst as cst

    positions = flow.positions
    start, _ = positions.span(call)
    if method not in _CONVERSIONS.split("|") or call.lpar:
        return None
    if not isinstance(receiver, (cst.Name, cst.Attribute)):
        return None
    place = positions.text(receiver)
    if re.search(r"[\r\n]", place):
        return None
    return Fix("Assign the result", False, (positions.edit(start, start, f"{place} = "),))
