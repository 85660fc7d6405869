"""# copy-before-detach (EG107)

A tensor is copied with its graph, and detached from it right after.

## What it does

Flags `x.clone().detach()`, `x.cpu().detach()`, `x.to(...).detach()`, `x.float().detach()` and chains of these, where `x`
may need a gradient.

## Why is this bad?

The copy is recorded for a backward pass that can't come: one node of the autograd graph (`CloneBackward0`,
`ToCopyBackward0`), about 0.3 us on a CPU, allocated and thrown away. `x.detach().clone()` makes the same copy, with
the same values, strides and dtype, and records nothing. It copies no less, so this rule is off by default.

## Example

```python
target = features.clone().detach()
```

## Use instead

```python
target = features.detach().clone()
```

## When it stays silent

- Where a comment on the line, or above it, gives a reason for the layout.
- `x` has no graph: `.data`, `.grad`, `.detach()` in sight, an entry of a state dict, a factory without
  `requires_grad`, `argmax` and other integers, a comparison.
- Under `torch.no_grad()`, `torch.inference_mode()` or `torch.set_grad_enabled(False)`, as a block or a decorator; in
  `forward` and `backward` of an autograd function, in Lightning's validation, test and predict hooks.
- `memory_format=torch.contiguous_format`: EG101 judges that copy.
- Two statements: the copy may feed something else.

It can't see whether a caller has switched gradients off, or whether `x` needs one. Where `to`, `cpu` or `float` have
nothing to do, nothing is recorded either way.

## Fix safety

The fix swaps the two calls, with their arguments and comments. It is safe: values, strides, dtype, device and aliasing
stay the same.

## References

- [torch.Tensor.detach](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.detach.html)
- [torch.clone](https://docs.pytorch.org/docs/stable/generated/torch.clone.html)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Finding, Fix, Invalid, Proof, Rule, Severity

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline

_COPIES = frozenset("clone cpu cuda xpu to float half double bfloat16".split())
_COPY = re.compile(rf"\.[\s\\]*(?:{'|'.join(sorted(_COPIES))})[\s\\]*\(")
_DETACH = re.compile(r"\)[\s\\]*\.[\s\\]*detach[\s\\]*\(")
_WITHOUT_GRAPH = frozenset(
    """
    detach detach_ argmax argmin argsort nonzero long int short byte char bool bincount bucketize eq ne gt ge lt le
    isnan isinf isfinite logical_and logical_or logical_not logical_xor new_empty new_full new_ones new_zeros
    """.split()
)
_FACTORIES = frozenset(
    """
    arange as_tensor empty empty_like eye from_numpy full full_like linspace ones ones_like rand rand_like randint randn
    randn_like randperm tensor zeros zeros_like argmax argmin argsort
    """.split()
)
_MAX_DEPTH = 20
_GRADIENTS_OFF = re.compile(r"no_grad|inference_mode|set_grad_enabled\(\s*(?:mode\s*=\s*)?False")
_STATE = re.compile(r"state_dict|checkpoint|buffers\(")
_WITHOUT_GRADIENTS = re.compile(r"(?:validation|test|predict)_step|on_(?:validation|test|predict)_\w+")


class CopyBeforeDetach(Rule):
    """Looks at each detach, then at the calls before it in its chain."""

    code = "EG107"
    name = "copy-before-detach"
    severity = Severity.WARNING
    heeds_reasons = True
    default = False
    in_tests = False
    triggers = (rb"detach", _COPY.pattern.encode())
    proof = Proof(
        Claim.RECORDS,
        flagged="def run(x):\n    return x.clone().detach()\n",
        recommended="def run(x):\n    return x.detach().clone()\n",
        inputs="(torch.randn(2, 3, requires_grad=True),)",
    )

    valid = (
        "def f(x):\n    return x.clone().detach()  # the hook must see the copy\n",
        "def f(x):\n    return x.detach().clone()\n",
        "def f(x):\n    return x.clone()\n",
        "def f(x):\n    return x.mean().detach()\n",
        "def f(x):\n    return x.clone().detach(0)\n",
        "def f(x):\n    return x.clone(), x.detach()\n",
        "def f(x):\n    return x.data.clone().detach()\n",
        "def f(x):\n    return x.grad.clone().detach()\n",
        "def f(x):\n    return x.detach().float().detach()\n",
        "def f(x):\n    y = x.detach()\n    return y.clone().detach()\n",
        "def f(x):\n    return x.detach()[0].clone().detach()\n",
        "def f(x):\n    return x.detach().mean().cpu().detach()\n",
        "def f(x):\n    y = x.argmax(1)\n    return y.cpu().detach()\n",
        "def f(x, y):\n    return (x == y).cpu().detach()\n",
        "def f(m):\n    return m.state_dict()['w'].clone().detach()\n",
        "def f(m):\n    return {k: v.clone().detach() for k, v in m.state_dict().items()}\n",
        "def f(m):\n    for b in m.buffers():\n        g(b.clone().detach())\n",
        "import torch\ndef f():\n    x = torch.zeros(3)\n    return x.clone().detach()\n",
        "import torch\ndef f(d):\n    x = torch.zeros(3, device=d)\n    return x.clone().detach()\n",
        "import torch\ndef f(x):\n    return torch.isnan(x).cpu().detach()\n",
        "import torch\ndef f(x):\n    return torch.clone(x).detach()\n",
        "import torch\ndef f(x):\n    with torch.no_grad():\n        return x.clone().detach()\n",
        "import torch\ndef f(x):\n    torch.set_grad_enabled(False)\n    return x.clone().detach()\n",
        "import torch\n@torch.no_grad()\ndef f(x):\n    return x.clone().detach()\n",
        "class A:\n    @torch.no_grad()\n    @wraps(\n        g\n    )\n    # why\n    def f(x):\n        x.cpu().detach()\n",
        "import torch\ndef f(x):\n    @torch.no_grad()\n    def g():\n        return x.clone().detach()\n    return g\n",
        "class A:\n    @staticmethod\n    def forward(ctx, x):\n        return x.clone().detach()\n",
        "class A:\n    def validation_step(self, x):\n        return x.clone().detach()\n",
        "import torch\ndef f(x):\n    return x.clone(memory_format=torch.contiguous_format).detach()\n",
        "import numpy as np\ndef f(x: np.ndarray):\n    return x.clone().detach()\n",
    )
    invalid = (
        Invalid(
            "import torch\ndef f(x):\n    y = x.mean()\n    return y.clone().cpu().detach()\n",
            message="`y.clone().cpu().detach()` records `clone` and `cpu` in the graph of `y`",
            help="call `detach` on `y` first",
        ),
        Invalid(
            "def f(x):\n    return x.clone().detach()\n",
            safe=True,
            fixed="def f(x):\n    return x.detach().clone()\n",
            message="`x.clone().detach()`",
        ),
        Invalid("def f(x):\n    return x.cpu().detach()\n", fixed="def f(x):\n    return x.detach().cpu()\n"),
        Invalid(
            "def f(x, d):\n    return x.to(d, non_blocking=True).float().detach().numpy()\n",
            fixed="def f(x, d):\n    return x.detach().to(d, non_blocking=True).float().numpy()\n",
        ),
        Invalid(
            "def f(x, y):\n    return (x + y).half().detach()\n",
            fixed="def f(x, y):\n    return (x + y).detach().half()\n",
        ),
        Invalid(
            "def f(x, y):\n    return (x.half()).detach()\n",
            fixed="def f(x, y):\n    return (x.detach()).half()\n",
        ),
        Invalid(
            "def f(x):\n    return (\n        x\n        .to(  # where\n            'cpu',\n        )  # first\n"
            "        .detach()  # drop\n    )\n",
            fixed="def f(x):\n    return (\n        x\n        .detach()  # first\n        .to(  # where\n"
            "            'cpu',\n        )  # drop\n    )\n",
        ),
        Invalid(
            "import torch\ndef f(x):\n    return x.clone(memory_format=torch.channels_last).detach()\n",
            fixed="import torch\ndef f(x):\n    return x.detach().clone(memory_format=torch.channels_last)\n",
        ),
        Invalid(
            "import torch\ndef f():\n    x = torch.ones(3, requires_grad=True)\n    return x.clone().detach()\n"
        ),
        Invalid(
            "def f(n):\n    for i in n:\n        x = x.mean()\n        y = x.clone().detach()\n    return y\n"
        ),
        Invalid("def f(x):\n    return g(x).clone().detach()\n"),
        Invalid(
            "import torch\nfrom noise import randn\ndef f(x):\n    y = randn(x).clone().detach()\n"
            "    return y, torch.cos(x).clone().detach()\n",
            findings=2,
        ),
        Invalid(
            "import torch\nclass A:\n    def f(self, x):\n        with torch.no_grad():\n            self.x = x\n"
            "    def g(self, x):\n        return x.clone().detach()\n"
        ),
        Invalid(
            "@wraps(g)\n# no_grad would cut the gradient of the hook\ndef f(x):\n    y = x.mean()\n    return y.clone().detach()\n"
        ),
        Invalid("def f(x):\n    with timed():\n        return x.clone().detach()\n"),
        Invalid(
            "import torch\ndef g(x):\n    with torch.no_grad():\n        pass\n    return x.clone().detach()\n"
        ),
        Invalid(
            "import torch\n@torch.no_grad()\ndef f(x):\n    return x\ndef g(x):\n    return x.clone().detach()\n"
        ),
    )

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether the result of some call is detached."""
        return bool(outline.calls.keys() & _COPIES) and "detach" in outline.calls

    def check(self, flow: Flow) -> Iterator[Finding]:
        from esper_guard.lint.flow import Kind

        for call in flow.calls:
            copies = _copies_before(flow, call)
            if not copies or _is_without_gradients(flow, call):
                continue
            source = _receiver(copies[0])
            if flow.facts(source).kind in (Kind.UNKNOWN, Kind.TENSOR) and not _has_no_graph(flow, source):
                yield self._finding(flow, [*copies, call])

    def _finding(self, flow: Flow, chain: list[cst.Call]) -> Finding:
        from ._chains import unbound

        shown, source = flow.positions.shown(chain[-1]), flow.positions.shown(_receiver(chain[0]))
        names = " and ".join(f"`{unbound(flow, copy)[1]}`" for copy in chain[:-1])
        return self.finding(
            flow,
            chain[-1],
            f"`{shown}` records {names} in the graph of `{source}`, if it has one, and `detach` throws that away",
            help=f"call `detach` on `{source}` first; the copy is the same",
            fix=_swapped(flow, chain),
        )


def _receiver(call: cst.Call) -> cst.BaseExpression:
    import libcst as cst

    assert isinstance(call.func, cst.Attribute)
    return call.func.value


def _copies_before(flow: Flow, call: cst.Call) -> list[cst.Call]:
    """The copies of which ``call`` detaches the last one, in the order in which they are made."""
    import libcst as cst

    from ._chains import as_copy

    if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "detach" or call.args:
        return []
    copies: list[cst.Call] = []
    one = call.func.value
    while isinstance(one, cst.Call) and isinstance(one.func, cst.Attribute):
        if one.func.attr.value not in _COPIES or flow.origin(one.func):
            break
        if as_copy(flow, one) is not None:
            return []
        copies.insert(0, one)
        one = one.func.value
    return copies


def _has_no_graph(flow: Flow, node: cst.BaseExpression, depth: int = 0) -> bool:
    """Whether the value of ``node`` needs no gradient, as far as the function shows."""
    import libcst as cst

    if depth > _MAX_DEPTH:  # in a loop, a value may be made of itself
        return False
    if _STATE.search(flow.positions.one_line(node)):
        return True
    if flow.is_place(node):
        made_by = flow.made_by(node)
        if isinstance(made_by, cst.BaseExpression) and not flow.is_place(made_by):
            return _has_no_graph(flow, made_by, depth + 1)
        if isinstance(made_by, cst.CSTNode) and _is_from_state(flow, made_by):
            return True
    if isinstance(node, cst.Attribute):
        return node.attr.value in ("data", "grad")
    if isinstance(node, cst.Subscript):
        return _has_no_graph(flow, node.value, depth + 1)
    return isinstance(node, cst.Comparison) or (
        isinstance(node, cst.Call) and _returns_no_graph(flow, node, depth)
    )


def _returns_no_graph(flow: Flow, call: cst.Call, depth: int) -> bool:
    import libcst as cst

    module, _, name = flow.origin(call.func).rpartition(".")
    if module == "torch" and name in _FACTORIES:
        return not any(arg.keyword is not None and arg.keyword.value == "requires_grad" for arg in call.args)
    if not isinstance(call.func, cst.Attribute):
        return False
    return call.func.attr.value in _WITHOUT_GRAPH or _has_no_graph(flow, call.func.value, depth + 1)


def _is_from_state(flow: Flow, target: cst.CSTNode) -> bool:
    """Whether ``target`` takes the entries of a state dict, or buffers, in a loop."""
    import libcst as cst

    for ancestor in flow.ancestors(target):
        if isinstance(ancestor, (cst.For, cst.CompFor)):
            return _STATE.search(flow.positions.one_line(ancestor.iter)) is not None
    return False


def _is_without_gradients(flow: Flow, node: cst.CSTNode) -> bool:
    """Whether nothing is recorded there: gradients are off in the block, or in the function."""
    import libcst as cst

    for ancestor in flow.ancestors(node):
        if isinstance(ancestor, cst.With):
            if any(_GRADIENTS_OFF.search(flow.positions.one_line(item.item)) for item in ancestor.items):
                return True
        elif isinstance(ancestor, cst.FunctionDef):
            first = ancestor.params.params[0].name.value if ancestor.params.params else ""
            if first == "ctx" or _WITHOUT_GRADIENTS.fullmatch(ancestor.name.value):
                return True
            if _GRADIENTS_OFF.search(_decorators(flow, ancestor)):
                return True
    return any(_GRADIENTS_OFF.search(flow.positions.one_line(one.value)) for one in flow.statements)


def _decorators(flow: Flow, function: cst.FunctionDef) -> str:
    """The lines of decorators above a function; a slice doesn't have them."""
    start, _ = flow.positions.span(function)
    *above, line = re.split(r"\r\n?|\n", flow.positions.source.text[:start])
    indent = len(line.removesuffix("async "))
    found: list[str] = []
    end = 0  # the lines from there on belong to a decorator only if one starts above them
    for one in reversed(above):
        text = one.lstrip()
        is_inside = len(one) - len(text) > indent or text.startswith((")", "#"))
        if not (text.startswith("@") or is_inside):
            break
        found.append(text)
        end = len(found) if text.startswith("@") else end
    return "\n".join(one for one in found[:end] if not one.startswith("#"))


def _swapped(flow: Flow, chain: list[cst.Call]) -> Fix:
    """``detach()`` at the place of the first copy, each copy at that of the next; all between them stays."""
    import libcst as cst

    positions = flow.positions
    spans = []
    for call in chain:
        assert isinstance(call.func, cst.Attribute)
        spans.append((positions.span(call.func.attr)[0], positions.span(call)[1]))
    texts = [positions.source.text[start:end] for start, end in (spans[-1], *spans[:-1])]
    edits = (positions.edit(start, end, text) for (start, end), text in zip(spans, texts, strict=True))
    return Fix("Detach before the copy", True, tuple(edits))
