"""# stride-as-format-test (EG303)

A tensor is taken for channels_last because the stride of its channels is 1.

## What it does

Flags `x.stride(1) == 1`, also as `x.stride()[1]`, `x.stride(-3)` or with `!=`, where the outcome chooses
`torch.channels_last`, or is kept, passed or returned under a name such as `channels_last` or `is_nhwc`.

## Why is this bad?

One stride doesn't make a layout. `x.stride(1)` is 1, too, for a (N, C, 1, 1) tensor in NCHW order, for a transposed
tensor such as `y.transpose(1, 3)`, and for a part of a channels_last tensor: what is converted "like its input" then
leaves NCHW, or is copied. With a single channel the stride means nothing at all.

## Example

```python
channels_last = x.stride(1) == 1
```

## Use instead

```python
channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
```

or `esper_guard.layout_of(x)`, which tells the ambiguous layouts apart.

## When it stays silent

- Where nothing in the function says that the outcome decides a memory format: kernels ask for the stride of sequences.
- Where the test has more parts that look at the layout: another stride, `is_contiguous()`, the number of channels.
- Where `x` is provably not 4-D or 5-D; in `assert`; in tests.
- Where a comment on the line, or above it, gives a reason.

## References

- [torch.Tensor.is_contiguous](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.is_contiguous.html)
- [Channels last memory format](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Finding, Invalid, Proof, Rule, Severity

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline

_NAMES = r"channels?_?last|nhwc|ndhwc|\bis_cl\b|\bcl\b"
_NAMED_SO = re.compile(_NAMES, re.IGNORECASE)
_LOOKS_FURTHER = re.compile(
    r"\.stride\(|is_contiguous|shape\[(?:1|-3)\]|size\((?:1|-3)\)|size\(\)\[(?:1|-3)\]"
)
_CHANNELS = ("1", "-3")

_SECOND = (
    rb"stride[\s\\]*\([\s\\]*(?:(?:dim[\s\\]*=[\s\\]*)?(?:1|-[\s\\]*3)\b|\)[\s\\]*\[[\s\\]*(?:1|-[\s\\]*3)\b)"
)
_HEAD = "import torch\nimport torch.nn.functional as F\n"
_CHOICE = "torch.channels_last if {test} else torch.contiguous_format"


def _chosen(test: str, before: str = "pass") -> str:
    return f"{_HEAD}def f(x, y):\n    {before}\n    return y.contiguous(memory_format={_CHOICE.format(test=test)})\n"


class StrideAsFormatTest(Rule):
    """Looks at each comparison of a stride, then at what its outcome decides."""

    code = "EG303"
    name = "stride-as-format-test"
    severity = Severity.WARNING
    heeds_reasons = True
    in_tests = False
    triggers = (rb"stride", _SECOND, _NAMES.replace(r"\bis_cl\b|\bcl\b", r"NHWC|NDHWC|is_cl|cl\b").encode())

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether a stride is compared with something."""
        return any(
            isinstance(node, ast.Compare) and any(map(_is_of_stride, (node.left, *node.comparators)))
            for node in outline.nodes
        )

    valid = (
        _chosen("x.padding(1) == 1", "assert x.stride(1) == 1"),
        f"{_HEAD}def f(x, nhwc):\n    return conv(x, dense=x.stride(1) == 1)\n",
        f"{_HEAD}def f(x, nhwc):\n    if x.stride(1) == 1:\n        x = g(x)\n    return x\n",
        _chosen("x.stride(2) == 1", "step = x.stride(1)"),
        _chosen("x.stride(-1) == 1", "assert x.stride(1) == 1"),
        _chosen("x.stride(1) == 2"),
        _chosen("x.stride(1) > 1"),
        _chosen("x.stride(1) == y.stride(1)"),
        _chosen("x.stride() == 1", "assert x.stride(1) == 1"),
        _chosen("x.stride()[0] == 1", "assert x.stride(1) == 1"),
        _chosen("x.stride(1) == 1 < x.stride(3)"),
        _chosen("x.size(1) == 1", "assert x.stride(1) == 1"),
        _chosen("x.stride(1) == 1 and x.stride(3) == 4"),
        _chosen("x.stride(1) == 1 and not x.is_contiguous()"),
        _chosen("x.shape[1] > 1 and x.stride(1) == 1"),
        _chosen("x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()"),
        _chosen("x.stride(1) == 1", "b, l, d = x.shape"),
        _chosen("ok", "ok = x.stride(1) == 1  # the kernel needs nothing else"),
        f"{_HEAD}def f(x, y):\n    x = x if x.stride(1) == 1 else x.contiguous()\n    return kernel(x)\n",
        f"{_HEAD}def f(x, y):\n    if x.stride(2) != 1 and x.stride(1) != 1:\n        x = x.contiguous()\n    return x\n",
        f"{_HEAD}def f(x):\n    x = x.to(memory_format=torch.channels_last)\n    assert x.stride(1) == 1\n    return x\n",
        f"{_HEAD}def f(x, channels_last):\n    ok = x.stride(1) == 1\n    return ok, channels_last\n",
        f"{_HEAD}def f(x, channels_last):\n    return g(x.stride(1) == 1, channels_last)\n",
    )
    invalid = (
        Invalid(
            f"{_HEAD}def f(x):\n    return torch.contiguous_format if x.stride(1) != 1 else torch.channels_last\n"
        ),
        Invalid(_chosen("x.stride(1) == 1"), message="`x.stride(1) == 1`"),
        Invalid(_chosen("(x.stride(1) == 1)")),
        Invalid(_chosen("x.stride(dim=1) == 1")),
        Invalid(_chosen("x.stride()[1] == 1")),
        Invalid(_chosen("x.stride()[-3] == 1")),
        Invalid(_chosen("x.stride(-3) == 1")),
        Invalid(_chosen("1 == x.stride(1)")),
        Invalid(_chosen("x.ndim > 2 and x.stride(1) == 1")),
        Invalid(_chosen("not (x.stride(1) != 1)")),
        Invalid(_chosen("x.stride(1) == 1", "n, c, h, w = x.shape")),
        Invalid(_chosen("ok", "ok = x.stride(1) == 1")),
        Invalid(f"{_HEAD}def f(x):\n    channels_last = x.stride(1) == 1\n    return g(channels_last)\n"),
        Invalid(f"{_HEAD}def f(self, x):\n    self.is_nhwc = x.dim() == 4 and x.stride(1) == 1\n"),
        Invalid(f"{_HEAD}def is_channels_last(x):\n    return x.stride(1) == 1\n"),
        Invalid(f"{_HEAD}def f(x):\n    return conv(x, channels_last=x.stride(1) == 1)\n"),
        Invalid(
            f"{_HEAD}def f(x, y):\n    if x.stride(1) == 1:\n        y = y.to(memory_format=torch.channels_last)\n    return y\n"
        ),
        Invalid(
            f"{_HEAD}def f(x):\n    if x.stride(1) != 1:\n        x = x.contiguous(memory_format=torch.channels_last)\n    return x\n"
        ),
        Invalid(
            f"{_HEAD}def f(x):\n    if x.stride(1) != 1:\n        fmt = torch.contiguous_format\n    else:\n"
            "        fmt = torch.channels_last\n    return fmt\n"
        ),
    )
    proof = Proof(
        Claim.WRONG,
        flagged=(
            "def run(x):\n    channels_last = x.stride(1) == 1\n    return torch.tensor(channels_last)\n"
        ),
        recommended=(
            "def run(x):\n"
            "    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()\n"
            "    return torch.tensor(channels_last)\n"
        ),
        inputs="(torch.randn(2, 8, 6, 6).transpose(1, 3),)",
        reference="torch.tensor(torch.ops.aten.is_strides_like_format(inputs[0], torch.channels_last))",
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        from esper_guard.lint.flow import can_be_image

        for call in flow.calls:
            found = _test_of_channels(flow, call)
            if found is not None and can_be_image(flow.facts(found[0])) and _decides_format(flow, found[1]):
                yield self._finding(flow, *found)

    def _finding(self, flow: Flow, node: cst.BaseExpression, test: cst.Comparison) -> Finding:
        tensor = flow.positions.shown(node)
        return self.finding(
            flow,
            test,
            f"`{flow.positions.shown(test)}` doesn't tell whether `{tensor}` is channels_last: the stride is 1, too, for "
            "1x1 features in NCHW order and for transposed tensors, and means nothing for a single channel",
            help=f"test `{tensor}.is_contiguous(memory_format=torch.channels_last) and not {tensor}.is_contiguous()`",
        )


def _is_of_stride(node: ast.expr) -> bool:
    from esper_guard.lint.outline import last_name

    call = node.value if isinstance(node, ast.Subscript) else node
    return isinstance(call, ast.Call) and last_name(call.func) == "stride"


def _test_of_channels(flow: Flow, call: cst.Call) -> tuple[cst.BaseExpression, cst.Comparison] | None:
    """The tensor whose second stride ``call`` is or has, and the comparison of that with 1."""
    import libcst as cst

    if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "stride":
        return None
    stride: cst.BaseExpression = call
    dimension = flow.positions.one_line(call.args[0].value) if len(call.args) == 1 else ""
    parent = flow.parent(call)
    if isinstance(parent, cst.Subscript):
        stride = parent
        dimension = ",".join(flow.positions.one_line(element) for element in parent.slice)
    parent = flow.parent(stride)
    test = flow.parent(parent) if isinstance(parent, cst.ComparisonTarget) else parent
    if dimension not in _CHANNELS or not isinstance(test, cst.Comparison) or len(test.comparisons) != 1:
        return None
    compared = test.comparisons[0]
    other = test.left if compared.comparator is stride else compared.comparator
    is_one = isinstance(other, cst.Integer) and other.value == "1"
    is_test = is_one and isinstance(compared.operator, (cst.Equal, cst.NotEqual))
    return (call.func.value, test) if is_test else None


def _decides_format(flow: Flow, test: cst.Comparison) -> bool:
    """Whether the outcome chooses a memory format, or has a name that says so."""
    waiting: list[cst.BaseExpression] = [test]
    seen: set[cst.CSTNode] = set()
    while waiting:
        one = _whole_test(flow, waiting.pop())
        if one in seen or _LOOKS_FURTHER.search(_without(flow, one, test)):
            continue
        seen.add(one)
        if _decides(flow, one):
            return True
        waiting += flow.uses(one)
    return False


def _whole_test(flow: Flow, node: cst.BaseExpression) -> cst.BaseExpression:
    """``not (a and node)`` for ``node``."""
    import libcst as cst

    parent = flow.parent(node)
    while isinstance(parent, (cst.BooleanOperation, cst.UnaryOperation)):
        node, parent = parent, flow.parent(parent)
    return node


def _without(flow: Flow, whole: cst.BaseExpression, part: cst.BaseExpression) -> str:
    shown = flow.positions.one_line
    return shown(whole).replace(" ", "").replace(shown(part).replace(" ", ""), "", 1)


def _decides(flow: Flow, outcome: cst.BaseExpression) -> bool:
    import libcst as cst

    shown = flow.positions.one_line
    parent = flow.parent(outcome)
    if isinstance(parent, cst.IfExp):
        return _mentions_format(parent.body) or _mentions_format(parent.orelse)
    if isinstance(parent, (cst.If, cst.While)):
        branches = [parent.body, *([parent.orelse] if parent.orelse is not None else [])]
        return any(map(_mentions_format, branches))
    if isinstance(parent, cst.Arg):
        return parent.keyword is not None and _NAMED_SO.search(parent.keyword.value) is not None
    if isinstance(parent, cst.Return):
        return _NAMED_SO.search(flow.function_name(parent)) is not None
    return any(_NAMED_SO.search(shown(target)) for target in flow.assigned_to(outcome))


def _mentions_format(branch: cst.CSTNode) -> bool:
    """Whether a name in ``branch`` is that of a memory format: ``torch.channels_last``, ``to_nhwc``."""
    import libcst as cst

    from ._chains import nodes_in

    return any(isinstance(node, cst.Name) and _NAMED_SO.search(node.value) for node in nodes_in(branch))
