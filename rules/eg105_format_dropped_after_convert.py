"""# format-dropped-after-convert (EG105)

A tensor is converted to channels_last, and the next operator writes NCHW again.

## What it does

Flags an operator that drops the format (`softmax`, `layer_norm`, `cat` with an NCHW tensor, `index_select`, `repeat`, ...,
also as a module of `torch.nn` that the class assigns to `self`) where its input was converted by
`to(memory_format=torch.channels_last)` or `contiguous(memory_format=torch.channels_last)` in the same function, directly or
through operators that keep the format. What each operator does is a table, measured on the CPU.

## Why is this bad?

The conversion has copied the whole tensor for nothing: everything behind the operator runs in NCHW. In a network whose
weights are channels_last each following convolution converts it once more.

## Example

```python
def forward(self, x):
    x = x.to(memory_format=torch.channels_last)
    x = torch.softmax(x, dim=1)
    return self.conv(x)
```

## Use instead

```python
def forward(self, x):
    x = torch.softmax(x, dim=1)
    return self.conv(x.to(memory_format=torch.channels_last))
```

## When it stays silent

- Where the result is converted again, or asked for its shape only: then nothing of it is lost.
- Where an operator stands between that is not in the table, or whose effect depends on its arguments, or a module that is
  not torch's: what the format is then can't be told.
- Where the result goes where its layout matters (a file, an array, `view`, ...), is reduced, or is a loss.
- Where a comment on the line, or above it, gives a reason. In tests.
- The table was measured on the CPU; a GPU may keep what the CPU drops.

## References

- What each operator does to a format: docs/operators.md
- [Channels last memory format](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Finding, Invalid, Proof, Rule, Severity

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline

_JOINS = frozenset(("cat", "concat", "concatenate"))


class FormatDroppedAfterConvert(Rule):
    """Looks at each operator that reads a converted tensor."""

    code = "EG105"
    name = "format-dropped-after-convert"
    severity = Severity.WARNING
    heeds_reasons = True
    in_tests = False
    triggers = (rb"channels_last", rb"memory_format[\s\\]*=|contiguous[\s\\]*\(")

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether something that is converted to channels_last is read by what may be an operator that drops it."""
        return any(_may_drop(call, outline) for call in _readers_of_converted(outline))

    valid = (
        "import torch\ndef f(x, y):\n    y = y.to(memory_format=torch.channels_last)\n"
        "    x = x.to(memory_format=torch.contiguous_format)\n    return x.softmax(1), torch.cat([y, y])\n",
        "import torch\ndef f(x, y):\n    y = y.to(memory_format=torch.channels_last)\n"
        "    return torch.cat([y, y]), x.permute(0, 3, 1, 2).softmax(1)\n",
        "import torch\nfrom torch import nn\nclass M(nn.Module):\n    def __init__(self):\n        self.m = nn.Softmax(1)\n"
        "    def forward(self, x):\n        x = self.start(x.to(memory_format=torch.channels_last))\n        return self.m()\n",
        "import torch\nfrom torch import nn\nclass M(nn.Module):\n    def __init__(self, c):\n        self.m = nn.Softmax(1) if c else nn.ReLU()\n    def forward(self, x):\n        return self.m(x.to(memory_format=torch.channels_last))\n",
        "import torch\nfrom torch import nn\nclass M(nn.Module):\n    def __init__(self, c):\n        self.m = nn.Sequential(nn.Softmax(1), nn.Conv2d(3, 3, 1))\n    def forward(self, x):\n        return self.m(x.to(memory_format=torch.channels_last))\n",
        "import torch\ndef f(x, y):\n    y = y.to(memory_format=torch.channels_last)\n"
        "    return torch.cat([y, y]), torch.cat([x, torch.zeros(1, 3, 4, 4)])\n",
        "import torch\ndef f(xs):\n    xs = xs.to(memory_format=torch.channels_last)\n    return torch.cat(xs)\n",
        "import torch\ndef f(x):\n    return torch.softmax(x, 1)\n",
        "import torch\ndef f(x):\n    return torch.relu(x.to(memory_format=torch.channels_last))\n",
        (
            "import torch\ndef f(x):\n    x = x.to(memory_format=torch.channels_last)\n"
            "    return torch.softmax(x, 1).to(memory_format=torch.channels_last)\n"
        ),
        "import torch\ndef f(x):\n    x = x.to(memory_format=torch.contiguous_format)\n    return x.softmax(1)\n",
        "import torch\ndef f(x, net):\n    x = net(x.to(memory_format=torch.channels_last))\n    return x.softmax(1)\n",
        "import torch\ndef f(x):\n    x = x.to(memory_format=torch.channels_last)\n    return x.softmax(1).shape\n",
        "import torch\ndef f(x):\n    x = x.to(memory_format=torch.channels_last)\n    return x.softmax(1).sum()\n",
        "import torch\ndef f(x):\n    x = x.to(memory_format=torch.channels_last)\n    return x.softmax(1).flatten(1)\n",
        "import torch\ndef f(x):\n    x = x.to(memory_format=torch.channels_last)\n    return x.softmax(1)  # faster in NCHW\n",
        "import torch\ndef f(x, y):\n    x = x.to(memory_format=torch.channels_last)\n    return torch.cat([x, y])\n",
        "import torch\ndef f(x):\n    x = x.to(memory_format=torch.channels_last)\n    return torch.cat([x, x])\n",
        "import torch\ndef f(x):\n    return x.permute(0, 3, 1, 2).softmax(1)\n",
    )
    invalid = (
        Invalid(
            "import torch\ndef f(x):\n    return x.to(memory_format=torch.channels_last).softmax(1).to(torch.float64)\n"
        ),
        Invalid(
            "import torch\ndef f(x, conv):\n    x = x.to(memory_format=torch.channels_last)\n    x = torch.softmax(x, 1)\n    return conv(x)\n",
            message="`torch.softmax(x, 1)`",
        ),
        Invalid(
            "import torch\nfrom torch import nn\nclass M(nn.Module):\n    def __init__(self):\n        self.norm = nn.InstanceNorm2d(3)\n"
            "        self.conv = nn.Conv2d(3, 3, 1)\n    def forward(self, x):\n        x = x.to(memory_format=torch.channels_last)\n"
            "        return self.conv(self.norm(self.conv(x)))\n",
            message="instance_norm",
        ),
        Invalid(
            "import torch\ndef f(x, i):\n    x = x.contiguous(memory_format=torch.channels_last).relu()\n    return x.index_select(0, i)\n"
        ),
        Invalid(
            "import torch\ndef f(x):\n    x = x.to(memory_format=torch.channels_last)\n    y = torch.zeros(1, 3, 4, 4)\n"
            "    return torch.cat([x, y], dim=1)\n",
            message="cat",
        ),
        Invalid(
            "import torch\nimport torch.nn.functional as F\ndef f(x):\n    x = x.to(memory_format=torch.channels_last_3d)\n"
            "    return F.log_softmax(x, dim=1)\n"
        ),
    )
    proof = Proof(
        Claim.LOSES,
        flagged="def run(x):\n    x = x.to(memory_format=torch.channels_last)\n    return torch.softmax(x, 1)\n",
        recommended="def run(x):\n    return torch.softmax(x, 1).to(memory_format=torch.channels_last)\n",
        inputs="(torch.randn(2, 8, 6, 6),)",
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        for call in flow.calls:
            dropped = _dropped(flow, call)
            if dropped is None or _does_not_matter(flow, call):
                continue
            operator, tensor = dropped
            shown = flow.positions.shown
            yield self.finding(
                flow,
                call,
                f"`{shown(call)}` writes NCHW: `{shown(tensor)}` was converted to channels_last, and {operator} drops it",
                help="convert after it, or not at all",
            )


def _readers_of_converted(outline: Outline) -> Iterator[ast.Call]:
    """The calls on or with something that is converted in sight."""
    from esper_guard.lint.outline import written

    conversions = set(outline.conversions)
    converted = {
        place
        for place, values in outline.values.items()
        if any(value is not None and not conversions.isdisjoint(ast.walk(value)) for value in values)
    }
    for call in (node for node in outline.nodes if isinstance(node, ast.Call)):
        for part in (node for read in _read_by(call) for node in ast.walk(read)):
            if part in conversions or written(part) in converted:
                yield call
                break


def _read_by(call: ast.Call) -> list[ast.expr]:
    receiver = [call.func.value] if isinstance(call.func, ast.Attribute) else []
    return [*receiver, *call.args, *(keyword.value for keyword in call.keywords)]


def _may_drop(call: ast.Call, outline: Outline) -> bool:
    """Whether it is an operator that drops the format, or may be a module, which isn't known by its name."""
    from esper_guard.lint.outline import last_name, written
    from esper_guard.operators import Effect, effect_of

    name, place = last_name(call.func, outline.names), written(call.func)
    is_module = place.startswith("self.") or place in outline.values
    return is_module or name in _JOINS or effect_of(name) is Effect.DROPS


def _dropped(flow: Flow, call: cst.Call) -> tuple[str, cst.BaseExpression] | None:
    """The operator that drops a format, and the converted tensor that it reads."""
    import libcst as cst

    from esper_guard.operators import Effect, effect_of

    from ._chains import unbound

    tensor = call.args[0].value if call.args else None
    module, _, function = flow.origin(call.func).rpartition(".")
    if flow.callees.get(call):
        names = _of_modules(flow, call)
    elif module == "torch.nn.functional":
        names = {function}
    else:
        tensor, name, _ = unbound(flow, call)
        names = {name}
    if tensor is None or len(names) != 1:
        return None
    operator = names.pop()
    if operator in _JOINS:
        return _mixed(flow, tensor, operator) if isinstance(tensor, (cst.List, cst.Tuple)) else None
    return (operator, tensor) if effect_of(operator) is Effect.DROPS and _is_converted(flow, tensor) else None


def _of_modules(flow: Flow, call: cst.Call) -> set[str]:
    """The operator that the module runs; several if that depends, none if it is a chain of them."""
    from esper_guard.lint.flow.operators import ways_of

    ways = set(ways_of(flow.callees[call]))
    return {way[0] for way in ways} if all(len(way) == 1 for way in ways) else set()


def _mixed(flow: Flow, tensors: cst.List | cst.Tuple, operator: str) -> tuple[str, cst.BaseExpression] | None:
    """`cat` keeps channels_last only if all of its tensors are."""
    from esper_guard.lint.flow.layouts import MADE

    converted = [element.value for element in tensors.elements if _is_converted(flow, element.value)]
    others = [element.value for element in tensors.elements if flow.facts(element.value).layout == MADE]
    return (f"{operator} with an NCHW tensor", converted[0]) if converted and others else None


def _is_converted(flow: Flow, tensor: cst.BaseExpression) -> bool:
    from esper_guard.lint.flow.layouts import Origin

    layout = flow.facts(tensor).layout
    return layout is not None and layout.is_channels_last and layout.origin is Origin.CONVERTED


def _does_not_matter(flow: Flow, call: cst.Call) -> bool:
    """Whether the result is converted again, only asked for its shape, reduced, or goes where NCHW is needed."""
    from esper_guard.lint.flow.consumers import How, consumers
    from esper_guard.lint.flow.formats import named_format

    from ._chains import method_called_on
    from ._needs import needs_contiguous

    found = list(consumers(flow, call))
    if all(one.how is How.METADATA for one in found):
        return True
    for one in found:
        if one.operators & _REDUCTIONS:
            return True
    for use in flow.uses(call):
        called = method_called_on(flow, use)
        if called and named_format(called[0], called[1].args, flow.names) not in ("", "?"):
            return True
    return needs_contiguous(flow, call)


_REDUCTIONS = frozenset("sum mean max min amax amin argmax argmin norm prod std var all any item".split())
