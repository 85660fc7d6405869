"""# noop-contiguity-guard (EG102)

A test of `is_contiguous()` in front of `contiguous()`, which makes the same test itself.

## What it does

Notes `x if x.is_contiguous() else x.contiguous()` and its forms as statements, also with `.detach()` on both sides.

## Why is this bad?

`contiguous()` already returns `x` itself where `x.is_contiguous()`. The guarded form has the same values, strides,
aliasing and cost: a channels_last tensor is not `is_contiguous()`, so it is copied to NCHW just the same. The guard
reads like protection from that copy, and is none.

## Example

```python
y = x.detach() if x.is_contiguous() else x.contiguous().detach()
```

## Use instead

`x.detach()` where any memory format will do. Where only dense formats will do, name the ones that may pass:

```python
if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
    y = x.detach()
else:
    y = x.contiguous().detach()
```

## When it stays silent

The test names a memory format, asks anything more, or the two sides differ in more than the copy.

It is a note: it never changes the exit status.

## Fix safety

The fix lets channels_last pass, too. It is unsafe: such tensors keep their strides from then on, and the result
shares memory with `x`. It is offered only where `torch` is imported.

## References

- [torch.Tensor.contiguous](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.contiguous.html)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Finding, Fix, Invalid, Proof, Rule, Severity

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline
# The test alone decides: after it come at most brackets, comments and the end of the test.
_DECIDES = rb"is_contiguous[\s\\]*\([\s\\]*\)(?:[\s\\)]|#[^\n]*\n)*(?::|else\b)"


class NoopContiguityGuard(Rule):
    """Compares the two sides of each guarded copy: without ``.contiguous()`` they must be the same."""

    code = "EG102"
    name = "noop-contiguity-guard"
    severity = Severity.NOTE
    triggers = (rb"contiguous", rb"is_contiguous", _DECIDES, rb"\.(?:[\s\\]|#[^\n]*\n)*contiguous[\s\\]*\(")

    valid = (
        "def f(x):\n    return x.contiguous()\n",
        "import torch\ndef f(x):\n    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()\n",
        "def f(x, y):\n    return x if y.is_contiguous() else x.contiguous()\n",
        "def f(x, ready):\n    return x if x.is_contiguous() and ready else x.contiguous()\n",
        "def f(x):\n    return x if not x.is_contiguous() else x.contiguous()\n",
        "def f(x):\n    if not x.is_contiguous():\n        warn('copying')\n        x = x.contiguous()\n    return x\n",
        "def f(x):\n    return x.detach() if x.is_contiguous() else x.contiguous()\n",
        (
            "import torch\ndef f(x, y, ready):\n    if x.is_contiguous():\n"
            "        log(x.is_contiguous() if ready else x.contiguous().is_contiguous())\n"
            "    y = y if y.is_pinned() else y.contiguous()\n"
            "    x = x if x.is_contiguous() and ready else x.contiguous()\n"
            "    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()\n"
        ),
        "def f(x):\n    return x.contiguous() if ~x.is_contiguous() else x\n",
        "def f(self, x):\n    if not x.is_contiguous():\n        x = x.contiguous()\n        self.copies += 1\n    return x\n",
        (
            "def f(self, x):\n    if not x.is_contiguous():\n        x = x.contiguous()\n"
            "    elif self.verbose:\n        log('contiguous')\n    return x\n"
        ),
        (
            "def f(self, x):\n    if x.is_contiguous():\n        self.hits += 1\n        log(self.hits)\n"
            "    else:\n        x = x.contiguous()\n    return x\n"
        ),
        (
            "def f(x, ready):\n    if x.is_contiguous():\n        return x\n    elif not ready:\n"
            "        return None\n    return x.contiguous()\n"
        ),
        (
            "def f(x, ready):\n    if not ready:\n        return None\n    elif x.is_contiguous():\n"
            "        return x\n    return x.contiguous()\n"
        ),
        (
            "def f(x, path):\n    if x.is_contiguous():\n        with open(path) as file:\n            dump(x, file)\n"
            "    else:\n        dump(x.contiguous())\n"
        ),
        "def f(xs):\n    for x in xs:\n        if x.is_contiguous():\n            return x\n    return x.contiguous()\n",
        "def f(x):\n    y = x.view(-1) if x.is_contiguous() else x.view(-1)\n    return y.contiguous(), x.contiguous()\n",
    )
    invalid = (
        Invalid(
            "import torch\ndef f(x):\n    return x if x.is_contiguous() else x.contiguous()\n",
            safe=False,
            fixed="import torch\ndef f(x):\n    return x if x.is_contiguous() or "
            "x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()\n",
        ),
        Invalid("def f(x):\n    return x.detach() if x.is_contiguous() else x.contiguous().detach()\n"),
        Invalid(
            "import numpy as np\ndef f(x):\n    return x.contiguous() if not x.is_contiguous() else x\n",
            fixed="import numpy as np\ndef f(x):\n    return x.contiguous() if not x.is_contiguous() else x\n",
        ),
        Invalid(
            "import math\nimport torch as t\ndef f(x):\n    if not x.is_contiguous(): x = x.contiguous()\n    return x\n",
            fixed="import math\nimport torch as t\ndef f(x):\n    if not (x.is_contiguous() or "
            "x.is_contiguous(memory_format=t.channels_last)): x = x.contiguous()\n    return x\n",
        ),
        Invalid(
            "import torch\ndef f(x):\n    if not x.is_contiguous():\n        x = x.contiguous()\n    return x\n",
            fixed="import torch\ndef f(x):\n    if not (x.is_contiguous() or "
            "x.is_contiguous(memory_format=torch.channels_last)):\n        x = x.contiguous()\n    return x\n",
        ),
        Invalid(
            "def f(x):\n    if x.is_contiguous():\n        y = x.detach()\n"
            "    else:\n        y = x.contiguous().detach()\n    return y\n"
        ),
        Invalid("def f(x):\n    if x.is_contiguous():\n        return x\n    return x.contiguous()\n"),
        Invalid("def f(self):\n    self.b = self.b if self.b.is_contiguous() else self.b.contiguous()\n"),
    )
    proof = Proof(
        Claim.COPIES,
        flagged="def run(x):\n    return x if x.is_contiguous() else x.contiguous()\n",
        recommended="def run(x):\n    nhwc = torch.channels_last\n"
        "    return x if x.is_contiguous() or x.is_contiguous(memory_format=nhwc) else x.contiguous()\n",
    )

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether a test for contiguity alone decides, of something that is also made contiguous."""
        copied = {
            ast.dump(call.func.value)
            for call in outline.called("contiguous")
            if isinstance(call.func, ast.Attribute)
        }
        tests = (node.test for node in outline.nodes if isinstance(node, (ast.If, ast.IfExp)))
        return any(_is_test_of(test, copied) for test in tests)

    def check(self, flow: Flow) -> Iterator[Finding]:
        for test in flow.calls:
            receiver = _noop_guard_of(flow, test)
            if receiver is not None:
                yield self._finding(flow, test, receiver)

    def _finding(self, flow: Flow, test: cst.Call, receiver: cst.BaseExpression) -> Finding:
        shown = flow.positions.shown(receiver)
        return self.finding(
            flow,
            test,
            f"this test changes nothing: `{shown}.contiguous()` makes it itself, and still copies a channels_last tensor",
            help=f"to let channels_last pass, add `or {shown}.is_contiguous(memory_format=torch.channels_last)`",
            fix=_fix(flow, test, receiver),
        )


def _is_test_of(test: ast.expr, receivers: set[str]) -> bool:
    """Whether ``test`` is ``x.is_contiguous()``, or not that, with one of the receivers for ``x``."""
    if isinstance(test, ast.UnaryOp):
        test = test.operand
    return (
        isinstance(test, ast.Call)
        and isinstance(test.func, ast.Attribute)
        and test.func.attr == "is_contiguous"
        and ast.dump(test.func.value) in receivers
    )


def _noop_guard_of(flow: Flow, test: cst.Call) -> cst.BaseExpression | None:
    """``x`` if ``test`` is ``x.is_contiguous()`` and does no more than decide between ``x`` and ``x.contiguous()``."""
    import libcst as cst

    if not isinstance(test.func, cst.Attribute) or test.func.attr.value != "is_contiguous" or test.args:
        return None
    receiver, node, parent = test.func.value, test, flow.parent(test)
    negated = isinstance(parent, cst.UnaryOperation) and isinstance(parent.operator, cst.Not)
    if negated:
        node, parent = parent, flow.parent(parent)  # type: ignore[assignment, arg-type]
    if not isinstance(parent, (cst.IfExp, cst.If)) or parent.test is not node:
        return None
    shown = flow.positions.one_line(receiver)
    if_true, if_false = _sides(flow, parent, shown)
    plain, copying = (if_false, if_true) if negated else (if_true, if_false)
    if copying is None or f"{shown}.contiguous()" not in copying:
        return None
    return receiver if copying.replace(f"{shown}.contiguous()", shown) == plain else None


def _sides(flow: Flow, node: cst.IfExp | cst.If, shown: str) -> tuple[str | None, str | None]:
    """What is computed where the test of ``shown`` is true, and where it is false, each as one line of code."""
    import libcst as cst

    one_line = flow.positions.one_line
    if isinstance(node, cst.IfExp):
        return one_line(node.body), one_line(node.orelse)
    if_true = _only_statement(node.body.body)
    if_false: cst.CSTNode | None = None
    if isinstance(node.orelse, cst.Else):
        if_false = _only_statement(node.orelse.body.body)
    elif node.orelse is None and isinstance(if_true, cst.Return):
        block = flow.parent(node)
        if isinstance(block, cst.IndentedBlock):
            if_false = _only_statement(block.body[block.body.index(node) + 1 :][:1])
    elif node.orelse is None and if_true is not None:
        return one_line(if_true), f"{shown} = {shown}"  # the name keeps what it has
    return (one_line(if_true) if if_true else None, one_line(if_false) if if_false else None)


def _only_statement(body: Sequence[cst.CSTNode]) -> cst.CSTNode | None:
    import libcst as cst

    if len(body) == 1 and isinstance(body[0], cst.SimpleStatementLine):
        body = body[0].body
    return body[0] if len(body) == 1 and isinstance(body[0], cst.BaseSmallStatement) else None


def _fix(flow: Flow, test: cst.Call, receiver: cst.BaseExpression) -> Fix | None:
    import libcst as cst

    imports = flow.names.imports
    torch = next((name for name in flow.names.written if imports[name] == "torch"), None)
    if torch is None:
        return None
    positions = flow.positions
    start, end = positions.span(test)
    written = positions.text(receiver)
    wider = f"{positions.text(test)} or {written}.is_contiguous(memory_format={torch}.channels_last)"
    if isinstance(flow.parent(test), cst.UnaryOperation):
        wider = f"({wider})"
    return Fix("Let channels_last pass, too", False, (positions.edit(start, end, wider),))
