"""# wrong-rank-channels-last (EG304)

A memory format is asked of a tensor that has not as many dimensions as the format.

## What it does

Flags `memory_format=torch.channels_last` for a tensor that provably has not four dimensions, and
`torch.channels_last_3d` for one that has not five: in `to`, `contiguous`, `clone`, `cuda`, `float` and the like, in
`torch.empty`, `torch.empty_like`, `torch.zeros_like` and their kind. Flags also `module.to(memory_format=...)` for a
module with a convolution of the other rank.

## Why is this bad?

PyTorch raises `RuntimeError: required rank 4 tensor to use channels_last format` (rank 5 for `channels_last_3d`).
`nn.Module.to` converts every parameter of four or five dimensions, so a single `Conv3d` makes a model's conversion to
`channels_last` fail, and a `Conv2d` that to `channels_last_3d`. Parameters of other ranks are left alone.

## Example

```python
volume = torch.randn(2, 3, 8, 32, 32)
volume = volume.to(memory_format=torch.channels_last)
```

## Use instead

```python
volume = torch.randn(2, 3, 8, 32, 32)
volume = volume.to(memory_format=torch.channels_last_3d)
```

## When it stays silent

- Where the rank is not proven in the function: by sizes written out, `unsqueeze`, `flatten`, `permute`, an unpacked
  `shape`, a test or `assert` of the rank, an annotation of jaxtyping.
- Where the format is a variable that may hold another one.
- In `try`, under `pytest.raises(...)`, in what `assertRaises` is given.
- `is_contiguous(memory_format=...)`, which is False then and does not raise.
- Modules made elsewhere, and lazy ones.

## Fix safety

For what provably has five dimensions the fix writes `channels_last_3d` (for four, `channels_last`). It is unsafe: another rank
may have been meant.

## References

- [torch.memory_format](https://docs.pytorch.org/docs/stable/tensor_attributes.html#torch.memory_format)
- [torch.nn.Module.to](https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.to)
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
    from esper_guard.lint.modules import Made
    from esper_guard.lint.outline import Outline

_RANKS = {"torch.channels_last": 4, "torch.channels_last_3d": 5}
# What tells the rank of a tensor.
_SIZED = frozenset(
    "empty expand new_empty new_ones new_zeros ones permute rand randn repeat reshape view zeros".split()
)
_RANKED = frozenset("flatten moveaxis movedim ravel rearrange t transpose unsqueeze".split())
_MODULES = re.compile(r"Conv|Sequential|Module")
_ASKED = frozenset("dim ndim ndimension shape size".split())
_FORMAT_OF = {4: "channels_last", 5: "channels_last_3d"}
_BETTER = {1 << rank: name for rank, name in _FORMAT_OF.items()}
_ADVICE = {
    **{
        1 << rank: f"write `torch.{name}`, the format for {rank} dimensions"
        for rank, name in _FORMAT_OF.items()
    },
    0: "convert the modules of each rank on their own, each to its format",
}
_NO_FORMAT = "leave `memory_format` out: there is no channels_last for other than 4 and 5 dimensions"
_CONVERT = frozenset(
    "to contiguous clone cpu cuda float double half bfloat16 int long short byte char bool type xpu".split()
)
_LIKE = frozenset(f"{name}_like" for name in ("empty", "full", "ones", "rand", "randint", "randn", "zeros"))
_WEIGHT_RANKS = {
    "torch.nn.Conv2d": 4,
    "torch.nn.ConvTranspose2d": 4,
    "torch.nn.Conv3d": 5,
    "torch.nn.ConvTranspose3d": 5,
}


class WrongRankChannelsLast(Rule):
    """Compares the rank of what is converted with that of the format."""

    code = "EG304"
    name = "wrong-rank-channels-last"
    severity = Severity.ERROR
    triggers = (rb"channels_last", rb"memory_format[\s\\]*=|contiguous[\s\\]*\(")

    valid = (
        "import torch\ndef f():\n    return torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)\n",
        "import torch\ndef f():\n    return torch.randn(1, 2, 3, 4, 5).to(memory_format=torch.channels_last_3d)\n",
        "import torch\ndef f(x):\n    return x.to(memory_format=torch.channels_last)\n",
        "import torch\ndef f(*s):\n    return torch.randn(*s).to(memory_format=torch.channels_last)\n",
        "import torch\ndef f():\n    return torch.randn(2, 3).is_contiguous(memory_format=torch.channels_last)\n",
        "import torch\ndef f():\n    return torch.randn(2, 3).to(memory_format=torch.contiguous_format)\n",
        "import torch\ndef f(fmt):\n    return torch.randn(2, 3).to(memory_format=fmt)\n",
        "import torch\ndef f(c):\n    fmt = torch.channels_last if c else torch.preserve_format\n"
        "    return torch.randn(2, 3).to(memory_format=fmt)\n",
        "import torch\ndef f():\n    try:\n        torch.randn(2).to(memory_format=torch.channels_last)\n"
        "    except RuntimeError:\n        pass\n",
        "import torch, pytest\ndef f():\n    with pytest.raises(RuntimeError):\n"
        "        torch.randn(2).to(memory_format=torch.channels_last)\n",
        "import torch\ndef f(self):\n    x = torch.randn(2)\n"
        "    self.assertRaises(RuntimeError, lambda: x.to(memory_format=torch.channels_last))\n",
        "import torch, torch.nn as nn\ndef f():\n    return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)\n",
        "import torch, torch.nn as nn\ndef f():\n    return nn.Conv3d(3, 4, 3).to(memory_format=torch.channels_last_3d)\n",
        "import torch, torch.nn as nn\ndef f():\n    return nn.Conv1d(3, 4, 3).to(memory_format=torch.channels_last)\n",
        "import torch, torch.nn as nn\ndef f(c):\n    m = nn.Conv2d(3, 4, 3) if c else nn.Conv3d(3, 4, 3)\n"
        "    return m.to(memory_format=torch.channels_last)\n",
        "import torch\ndef f(x):\n    if x.dim() == 4:\n        return x.contiguous(memory_format=torch.channels_last)\n",
        "import torch\ndef f(x):\n    y = torch.randn(3)\n    return y.store(memory_format=torch.channels_last)\n",
        "import torch\ndef f(n):\n    return torch.empty((2, 3, n, n), memory_format=torch.channels_last)\n",
        "import torch\ndef f():\n    x = torch.randn(3)\n    return torch.stack_as(x, memory_format=torch.channels_last)\n",
        "import torch\ndef f():\n    x = torch.randn(3)\n    return tile_as(x, memory_format=torch.channels_last)\n",
        "import torch\ndef f():\n    return torch.randn(3)[0][0].to(memory_format=torch.channels_last)\n",
        "import torch\nimport numpy as np\ndef f(x: np.ndarray):\n    h, w, c = x.shape\n"
        "    return x.to(memory_format=torch.channels_last)\n",
        "import torch, torch.nn as nn\ndef f(x):\n    net = nn.Conv3d(3, 4, 3)\n"
        "    return net.export(x, memory_format=torch.channels_last)\n",
    )
    invalid = (
        Invalid(
            "import torch\ndef f():\n    v = torch.randn(2, 3, 4, 5, 6)\n    return v.to(memory_format=torch.channels_last)\n",
            safe=False,
            fixed="import torch\ndef f():\n    v = torch.randn(2, 3, 4, 5, 6)\n"
            "    return v.to(memory_format=torch.channels_last_3d)\n",
            message="5 dimensions",
        ),
        Invalid(
            "import torch\ndef f(x):\n    b, c, h, w = x.shape\n    return x.contiguous(memory_format=torch.channels_last_3d)\n",
            fixed="import torch\ndef f(x):\n    b, c, h, w = x.shape\n"
            "    return x.contiguous(memory_format=torch.channels_last)\n",
        ),
        Invalid(
            "import torch\ndef f(x):\n    b, n, c = x.shape\n    return x.contiguous(memory_format=torch.channels_last)\n",
            fixed="import torch\ndef f(x):\n    b, n, c = x.shape\n    return x.contiguous(memory_format=torch.channels_last)\n",
            message="`x` has 3 dimensions",
        ),
        Invalid(
            "import torch\ndef f(x):\n    return x.flatten(2).contiguous(memory_format=torch.channels_last)\n"
        ),
        Invalid(
            "import torch\ndef f(x):\n    assert x.dim() == 3\n    return torch.clone(x, memory_format=torch.channels_last)\n"
        ),
        Invalid(
            "from torch import channels_last as cl\ndef f(x):\n    return x.permute(0, 2, 1).contiguous(cl)\n"
        ),
        Invalid(
            "from torch import channels_last as cl, zeros\ndef f():\n    return zeros(2, 3, 4, 5, 6).contiguous(memory_format=cl)\n",
            fixed="from torch import channels_last as cl, zeros\ndef f():\n"
            "    return zeros(2, 3, 4, 5, 6).contiguous(memory_format=cl)\n",
        ),
        Invalid(
            "import torch\ndef f(self):\n    self.fmt = torch.channels_last\n"
            "    return torch.zeros(2, 3, 4, 5, 6).to(memory_format=self.fmt)\n",
            fixed="import torch\ndef f(self):\n    self.fmt = torch.channels_last\n"
            "    return torch.zeros(2, 3, 4, 5, 6).to(memory_format=self.fmt)\n",
        ),
        Invalid("import torch\ndef f(x):\n    return torch.empty(3, 4, memory_format=torch.channels_last)\n"),
        Invalid(
            "import torch\ndef f(x):\n    y = torch.ones(3)\n    return torch.zeros_like(y, memory_format=torch.channels_last)\n",
            message="`y` has 1 dimension,",
        ),
        Invalid(
            "import torch\ndef f(x):\n    fmt = torch.channels_last\n    return x.view(2, -1).cuda(memory_format=fmt)\n"
        ),
        Invalid(
            "import torch\ndef f(c):\n    x = torch.randn(3, 2) if c else torch.randn(3)\n"
            "    return x.to(memory_format=torch.channels_last)\n",
            message="1 or 2 dimensions",
        ),
        Invalid(
            "import torch, torch.nn as nn\ndef f():\n"
            "    m = nn.Sequential(nn.Sequential(nn.Conv3d(3, 4, 3)), nn.Linear(3, 4)).cuda()\n"
            "    return m.to(memory_format=torch.channels_last)\n",
            message="Conv3d",
        ),
        Invalid(
            "import torch, torch.nn as nn\ndef f():\n    nn.Conv2d(3, 4, 3).to('cuda', memory_format=torch.channels_last_3d)\n"
        ),
    )
    proof = Proof(
        Claim.RAISES,
        flagged="def run():\n    return torch.zeros(2, 3, 4, 5, 6).to(memory_format=torch.channels_last)\n",
        recommended="def run():\n    return torch.zeros(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)\n",
        inputs="()",
        error="required rank 4 tensor",
    )

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether channels_last is given to something of which the rank, or the class, may be in sight."""
        is_named = any(name.startswith("channels_last") for name in outline.words)
        return is_named and any(_may_be_known(call, outline) for call in outline.conversions)

    def check(self, flow: Flow) -> Iterator[Finding]:
        from ._context import is_expected_to_raise

        for call in flow.calls:
            named = _named_format(flow, call)
            if named is None:
                continue
            format_node, wanted = named
            found = _tensor_finding(flow, call, wanted) or _module_finding(flow, call, wanted)
            if found is None or is_expected_to_raise(flow, call):
                continue
            message, ranks = found
            yield self.finding(
                flow,
                call,
                f"`{flow.positions.shown(call)}` raises: {message}, {_FORMAT_OF[wanted]} is for {wanted}",
                help=_ADVICE.get(ranks, _NO_FORMAT),
                fix=_fix(flow, format_node, ranks),
            )


def _may_be_known(conversion: ast.Call, outline: Outline) -> bool:
    """Whether the rank of what is converted, or its class, may be in sight: by what made it, or by a test."""
    from esper_guard.lint.outline import written

    nodes = list(outline.sources(conversion.func, *conversion.args[:1]))
    calls = [conversion, *(node for node in nodes if isinstance(node, ast.Call))]
    if any(_tells_rank(call, outline) for call in calls):
        return True
    places = {place for node in nodes if (place := written(node))}
    asked = {
        written(node.value)
        for node in outline.nodes
        if isinstance(node, ast.Attribute) and node.attr in _ASKED
    }
    return not asked.isdisjoint(places) or any(place.startswith("self.") for place in places)


def _tells_rank(call: ast.Call, outline: Outline) -> bool:
    """Whether a call makes a module of known rank, or a tensor whose sizes are listed."""
    from esper_guard.lint.outline import last_name

    name = last_name(call.func, outline.names)
    if name not in _SIZED:
        return name in _RANKED or _MODULES.search(name) is not None
    sizes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg in ("size", "dims"))]
    return len(sizes) > 1 or isinstance(
        sizes[0] if sizes else None, (ast.Tuple, ast.List, ast.Constant, ast.UnaryOp)
    )


def _named_format(flow: Flow, call: cst.Call) -> tuple[cst.BaseExpression, int] | None:
    """Where a call names channels_last or channels_last_3d, and the rank that this is for."""
    import libcst as cst

    from ._chains import memory_format_argument

    method = call.func.attr.value if isinstance(call.func, cst.Attribute) else ""
    argument = memory_format_argument(list(call.args), method)
    if argument is None:
        return None
    made_by = flow.made_by(argument.value)
    named = [argument.value, *([made_by] if isinstance(made_by, cst.BaseExpression) else [])]
    ranks = [_RANKS[flow.origin(one)] for one in named if flow.origin(one) in _RANKS]
    return (argument.value, ranks[0]) if ranks else None


def _tensor_finding(flow: Flow, call: cst.Call, wanted: int) -> tuple[str, int] | None:
    """What is wrong with the rank of the tensor that ``call`` converts or makes, and its possible ranks."""
    from esper_guard.lint.flow import Kind

    from ._chains import unbound

    receiver, method, _ = unbound(flow, call)
    if flow.origin(call.func) == "torch.empty":
        shown, facts = "the tensor", flow.facts(call)
    elif receiver is not None and method in _CONVERT | _LIKE:
        shown, facts = f"`{flow.positions.shown(receiver)}`", flow.facts(receiver)
    else:
        return None
    is_possible = facts.ranks & 1 << wanted
    if is_possible or not facts.ranks or facts.kind in (Kind.MODULE, Kind.OTHER, Kind.TENSORS):
        return None
    numbers = " or ".join(str(rank) for rank in range(16) if facts.ranks >> rank & 1)
    noun = "dimension" if numbers == "1" else "dimensions"
    return f"{shown} has {numbers} {noun}", facts.ranks


def _module_finding(flow: Flow, call: cst.Call, wanted: int) -> tuple[str, int] | None:
    """What is wrong with a parameter of the module that ``call`` converts."""
    import libcst as cst

    if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "to":
        return None
    made = flow.facts(call.func.value).made
    wrong = [next(_weights_but(one, wanted), None) for one in made]
    if not wrong or None in wrong:
        return None
    name = str(wrong[0])
    return f"the weight of `{name.rpartition('.')[2]}` has {_WEIGHT_RANKS[name]} dimensions", 0


def _weights_but(made: Made, wanted: int) -> Iterator[str]:
    """The convolutions in a module whose weights have another rank."""
    if _WEIGHT_RANKS.get(made.origin, wanted) != wanted:
        yield made.origin
    for part in made.parts:
        yield from _weights_but(part, wanted)


def _fix(flow: Flow, format_node: cst.BaseExpression, ranks: int) -> Fix | None:
    """The format for the rank, where it is named as an attribute of torch."""
    import libcst as cst

    name = _BETTER.get(ranks)
    if name is None or not isinstance(format_node, cst.Attribute) or flow.origin(format_node) not in _RANKS:
        return None
    start, end = flow.positions.span(format_node.attr)
    return Fix(f"Write `{name}`", False, (flow.positions.edit(start, end, name),))
