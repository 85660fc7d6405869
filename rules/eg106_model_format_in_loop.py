"""# model-format-in-loop (EG106)

A model is converted to a memory format again on every step.

## What it does

Flags `model.to(memory_format=torch.channels_last)` in the body of a `for` or `while` loop, or in `forward`, `__call__`
or a `*_step` method of an `nn.Module`, where the same model has been converted in an earlier round already.

## Why is this bad?

The first call copies the weights of rank 4 (for `channels_last_3d`: 5). Each later one copies nothing and has no
effect, but goes through all modules, parameters, gradients and buffers in Python, and calls `Tensor.to` for each: for
50 pairs of convolution and batch norm (200 parameters), about 2 ms a step on a CPU. In the loop, the first call also
comes after whatever was made from the model before it: an optimizer's state, a wrapper, a captured graph.

## Example

```python
for images, targets in loader:
    model = model.to(memory_format=torch.channels_last)
    loss = model(images, targets)
```

## Use instead

```python
model = model.to(memory_format=torch.channels_last)
for images, targets in loader:
    loss = model(images, targets)
```

## When it stays silent

- Where a comment on the line, or above it, gives a reason for the layout.
- Without evidence that it is a model: an annotation, `isinstance`, a class of `torch.nn`, an attribute that the class
  makes by one, `self` in a class that derives from a module, or `.parameters()`, `.train()`, `.state_dict()`, ... of it.
- Each model once: it is the loop's own target, is reached through it, or is made or changed inside the loop.
- The conversion depends on something that the loop changes, or may change: `if step == 0`, `if not self.converted`,
  any test that calls something, an earlier `continue` or `return`, a `break` after it, `try`.
- The model is moved or converted elsewhere in the loop, or handed to something that may rebuild its parameters.
- Loops over configurations, devices or models, and benchmarks.
- A memory format that isn't named by `torch.`; it may be another one in each round.

It can't see what other functions do to the model, nor a loop around the function that converts it.

## References

- [torch.nn.Module.to](https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.to)
- [Channels last memory format](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from esper_guard.lint.rule import Claim, Finding, Invalid, Proof, Rule, Severity

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline

_CLASS = re.compile(r"^([ \t]*)class[ \t]+(\w+)", re.MULTILINE)
_STEP = re.compile(r"forward|__call__|\w*_step")
_FORMATS = frozenset(("torch.channels_last", "torch.channels_last_3d", "torch.contiguous_format"))
_ONLY_MODULES_HAVE = frozenset(
    "parameters named_parameters state_dict load_state_dict eval train zero_grad".split()
)
_MODULE_BASE = re.compile(r"(?:\A|\.)(?:Lightning|Base|pl\.)?Module\Z")
# Names of what changes from round to round, by another function.
_PROGRESS = re.compile(
    r"step|iter|epoch|batch|idx|index|first|init|convert|once|done|start|warm|count|cache|ready|prev|change|dirty",
    re.IGNORECASE,
)
_CONFIGURATIONS = re.compile(
    r"config|cfg|model|net|device|dtype|format|layout|backend|size|setting|variant|scenario|case|mode|option|combination",
    re.IGNORECASE,
)
_WRAPPERS = frozenset("enumerate zip tqdm trange list tuple sorted reversed items values keys".split())
_BENCHMARK = re.compile(r"bench|profil|measure|timing|time_", re.IGNORECASE)
_MOVES = frozenset(
    "to to_empty cpu cuda xpu half float double bfloat16 type apply requires_grad_ unload offload".split()
)
_REBUILDS = re.compile(
    r"build|grow|prun|graft|fuse|add_|append|register|replace|swap|reset|convert|wrap|quant|resize|expand|surgery|load|"
    r"offload|shard|copy|compile|germinate|remove|insert|merge|move|setattr|export|trace|script",
    re.IGNORECASE,
)

_HEAD = "import torch\nfrom torch import nn\n"


class _Repeated(NamedTuple):
    """What makes a conversion happen again: the loop, or the method that a training loop calls."""

    node: cst.For | cst.While | cst.FunctionDef
    often: str


class ModelFormatInLoop(Rule):
    """Looks at each conversion of a model, then at the loops around it."""

    code = "EG106"
    name = "model-format-in-loop"
    severity = Severity.WARNING
    heeds_reasons = True
    in_tests = False
    triggers = (
        rb"memory_format",
        rb"channels_last|contiguous_format",
        rb"memory_format[\s\\]*=",
        rb"to[\s\\]*\(",
    )
    proof = Proof(
        Claim.REPEATS,
        flagged="def run(net, batches):\n    net.train()\n    for batch in batches:\n"
        "        net.to(memory_format=torch.channels_last)\n        out = net(batch)\n    return out\n",
        recommended="def run(net, batches):\n    net.train()\n    net.to(memory_format=torch.channels_last)\n"
        "    for batch in batches:\n        out = net(batch)\n    return out\n",
        inputs="(nn.Conv2d(3, 4, 3), [torch.randn(2, 3, 6, 6) for _ in range(3)])",
    )

    valid = (
        _HEAD + "def f(model: nn.Module, loader):\n    for x in loader:\n"
        "        model.to(memory_format=torch.channels_last)  # pruning makes new parameters, so this is needed\n        model(x)\n",
        _HEAD + "def f(model: nn.Module, loader):\n    model.to(memory_format=torch.channels_last)\n"
        "    for x in loader:\n        model(x)\n",
        _HEAD + "def f(loader):\n    for x in loader:\n        x = x.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(y, loader):\n    for x in loader:\n        y.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(y: torch.Tensor, loader):\n    y.train()\n    for x in loader:\n"
        "        g(y.to(memory_format=torch.channels_last))\n",
        _HEAD + "def f(models):\n    for m in models:\n        m.to(memory_format=torch.channels_last)\n"
        "        m.eval()\n",
        _HEAD + "def f(envs):\n    for e in envs:\n        e.m.to(memory_format=torch.channels_last)\n"
        "        e.m.eval()\n",
        _HEAD + "def f(names):\n    for n in names:\n        m = make(n)\n"
        "        m.to(memory_format=torch.channels_last)\n        m.eval()\n",
        _HEAD + "def f(m: nn.Module, xs):\n    for x in xs:\n        m.head = make(x)\n"
        "        m.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, xs):\n    for step, x in enumerate(xs):\n        if step == 0:\n"
        "            m.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, xs, s):\n    for x in xs:\n        if s.first:\n"
        "            m.to(memory_format=torch.channels_last)\n        s.tick()\n",
        _HEAD + "def f(m: nn.Module, xs):\n    for x in xs:\n        if wants():\n"
        "            m.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, xs, flag):\n    for x in xs:\n"
        "        y = flag[0] and m.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, xs):\n    done = False\n    for x in xs:\n        if done:\n"
        "            continue\n        m.to(memory_format=torch.channels_last)\n",
        _HEAD
        + "def f(m: nn.Module, xs):\n    for x in xs:\n        m.to(memory_format=torch.channels_last)\n"
        "        m(x)\n        break\n",
        _HEAD + "def f(m: nn.Module, xs):\n    while xs:\n        try:\n"
        "            m.to(memory_format=torch.channels_last)\n        except RuntimeError:\n            pass\n",
        _HEAD
        + "def f(m: nn.Module, xs):\n    for x in xs:\n        m.to(memory_format=torch.channels_last)\n"
        "        m(x)\n        m.cpu()\n",
        _HEAD + "def f(m: nn.Module, xs):\n    for x in xs:\n        m.grow()\n"
        "        m.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, xs):\n    for x in xs:\n        prune(m)\n"
        "        m.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, devices):\n    for d in devices:\n"
        "        m.to(d, memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, batch_sizes):\n    for n in batch_sizes:\n"
        "        m.to(memory_format=torch.channels_last)\n",
        _HEAD
        + "def f(m: nn.Module):\n    for n in (1, 8):\n        m.to(memory_format=torch.channels_last)\n",
        _HEAD
        + "def f(m: nn.Module, xs):\n    for x in xs:\n        m.to(x.device, memory_format=torch.channels_last)\n",
        _HEAD
        + "def f(m: nn.Module, xs, formats):\n    for x in xs:\n        m.to(memory_format=next(formats))\n",
        _HEAD + "def benchmark(m: nn.Module):\n    for _ in range(9):\n"
        "        m.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, xs):\n    for x in xs:\n"
        "        x.hook = lambda: m.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, xs):\n    for x in xs:\n        m(x)\n    else:\n"
        "        m.to(memory_format=torch.channels_last)\n",
        _HEAD
        + "class Net(nn.Module):\n    def __init__(self):\n        self.to(memory_format=torch.channels_last)\n",
        _HEAD
        + "class Net:\n    def forward(self, x):\n        return self.to(memory_format=torch.channels_last)\n",
        _HEAD + "class Net(nn.Module):\n    def forward(self, x):\n        if not self.is_nhwc:\n"
        "            self.to(memory_format=torch.channels_last)\n            self.is_nhwc = True\n        return x\n",
        _HEAD + "class Net(nn.Module):\n    def forward(self, x, nhwc=False):\n        if nhwc:\n"
        "            self.to(memory_format=torch.channels_last)\n        return x\n",
        _HEAD
        + "def f(m: nn.Module, xs):\n    for n, x in enumerate(xs):\n        m.to(memory_format=torch.channels_last) "
        "if n < 1 else m\n",
        _HEAD
        + "def f(m: nn.Module, xs):\n    for n, x in enumerate(xs):\n        match n:\n            case 0:\n"
        "                m.to(memory_format=torch.channels_last)\n",
        _HEAD
        + "class Net(nn.Module):\n    def f(self, x):\n        return self.to(memory_format=torch.channels_last)\n",
        _HEAD + "class Net(nn.Module):\n    def forward(self, x):\n        net = nn.Conv2d(3, 3, 3)\n"
        "        net.to(memory_format=torch.channels_last)\n        return net(x)\n",
        _HEAD
        + "def f(m: nn.Module, xs):\n    for x in xs:\n        g(m, memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, xs, fmt):\n    for x in xs:\n        m.to(memory_format=fmt)\n",
        _HEAD
        + "def f(m, y, xs):\n    m.train()\n    for x in xs:\n        y.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(xs):\n    for x in xs:\n        with make(x) as m:\n            m.eval()\n"
        "            m.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, configs):\n    for i, c in enumerate(configs):\n"
        "        m.to(memory_format=torch.channels_last)\n",
        _HEAD
        + "class Net(Other):\n    def forward(self, x):\n        self.to(memory_format=torch.channels_last)\n",
        _HEAD + "from zoo import Net\nclass Net(Net):\n    def forward(self, x):\n"
        "        self.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, xs):\n    for x in xs:\n"
        "        g(m.encode(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))\n",
        _HEAD + "def f(m: nn.Module, xs, fmt=torch.channels_last):\n    for x in xs:\n"
        "        m.to(memory_format=fmt)\n",
        _HEAD + "def f(xs):\n    for n in xs:\n"
        "        net = nn.Conv2d(n, 3, 3).to(memory_format=torch.channels_last)\n        g(net)\n",
        _HEAD + "class Net(nn.Module):\n    pass\ndef train_step(x):\n    model.train()\n"
        "    model.to(memory_format=torch.channels_last)\n    return model(x)\n",
        _HEAD + "class Net(nn.Module):\n    def forward(self, x):\n        def prepare():\n"
        "            self.to(memory_format=torch.channels_last)\n        return g(x, prepare)\n",
        _HEAD + "class Net(nn.Module):\n    def forward(self, x):\n"
        "        return x - self.mean.to(memory_format=torch.channels_last)\n",
        _HEAD + "class Dense:\n    def f(self, xs):\n        for x in xs:\n"
        "            g(self.to(memory_format=torch.channels_last), x)\n",
        _HEAD + "for x in xs:\n    self.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, configs):\n    for name, c in configs.items():\n"
        "        m.to(memory_format=torch.channels_last)\n",
        _HEAD + "def f(m: nn.Module, xs):\n    for x in xs:\n        if options().nhwc:\n"
        "            m.to(memory_format=torch.channels_last)\n",
    )
    invalid = (
        Invalid(
            "import torch\ndef f(model, loader, nhwc):\n    model.train()\n    for x in loader:\n        if nhwc:\n"
            "            model = model.to(memory_format=torch.channels_last)\n        model(x)\n",
            message="every parameter of `model` in every round of the loop",
        ),
        Invalid(
            _HEAD + "def f(model: nn.Module, d, n):\n    while n:\n"
            "        model = model.to(d, memory_format=torch.channels_last).train()\n        n = n - 1\n"
        ),
        Invalid(
            _HEAD + "def f(sizes, loader):\n    for n in sizes:\n        m = nn.Conv2d(n, 3, 3)\n"
            "        for x in loader:\n            m.to(memory_format=torch.channels_last)\n            m(x)\n"
        ),
        Invalid(
            _HEAD + "def f(m: nn.Module, cfg):\n    for epoch in range(cfg.size):\n"
            "        m.to(memory_format=torch.channels_last_3d)\n        m.train()\n"
        ),
        Invalid(
            _HEAD + "class Net(nn.Module):\n    def __init__(self):\n        self.net = nn.Conv2d(3, 3, 3)\n"
            "    def forward(self, x):\n        self.net.to(memory_format=torch.channels_last)\n"
            "        return self.net(x)\n",
            message="whenever `forward` is called",
        ),
        Invalid(
            _HEAD + "class Base(nn.Module):\n    pass\nclass Net(Base):\n    def training_step(self, x):\n"
            "        if self.nhwc:\n            self.to(memory_format=torch.channels_last)\n        return self(x)\n"
        ),
        Invalid(
            _HEAD + "def f(m: nn.Module, loader, d):\n    if wants():\n        for x in load(loader):\n"
            "            m.to(memory_format=torch.channels_last)\n            x = x.to(d)\n"
            "            y = g(x, key=lambda m: m)\n        return m\n    return None\n"
        ),
        Invalid(
            _HEAD + "def make():\n    class Net(nn.Module):\n        def forward(self, x):\n"
            "            self.to(memory_format=torch.contiguous_format)\n    return Net\n"
        ),
        Invalid(
            "import torch\nimport lightning as L\nclass Net(L.LightningModule):\n    def training_step(self, x):\n"
            "        self.to(memory_format=torch.channels_last)\n"
        ),
        Invalid(
            _HEAD + "class Net(nn.Sequential):\n    def forward(self, x):\n"
            "        return super(Net, self.to(memory_format=torch.channels_last)).forward(x)\n"
        ),
        Invalid(
            _HEAD + "def f(m: nn.Module, loaders, nhwc):\n    for x in loaders['train']:\n"
            "        nhwc and m.to(memory_format=torch.channels_last)\n        m(x)\n"
        ),
        Invalid(
            _HEAD + "def f(m: nn.Module, read, d):\n    for x in partial(read, d)():\n"
            "        m.to(memory_format=torch.channels_last)\n        loss = torch.func.grad(evaluate)(m, x)\n"
            "        info(x).loss = evaluate(m, x)\n"
        ),
    )

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether something is converted in a loop or a step, by `to`."""
        conversions = {call for call in outline.conversions if _is_method_to(call)}
        return any(
            not conversions.isdisjoint(ast.walk(node))
            for node in outline.nodes
            if conversions and _repeats(node)
        )

    def check(self, flow: Flow) -> Iterator[Finding]:
        for call in flow.calls:
            model = _converted(flow, call)
            if model is None or (repeated := _repeated(flow, call, model)) is None:
                continue
            written, shown = flow.positions.shown(call), flow.positions.shown(model)
            yield self.finding(
                flow,
                call,
                f"`{written}` goes through every parameter of `{shown}` {repeated.often}; after the first time it changes "
                "nothing",
                help=f"convert `{shown}` once, where it is made",
            )


def _is_method_to(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "to"


def _repeats(node: ast.AST) -> bool:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return _STEP.fullmatch(node.name) is not None
    return isinstance(node, (ast.For, ast.AsyncFor, ast.While))


def _converted(flow: Flow, call: cst.Call) -> cst.BaseExpression | None:
    """The model that ``call`` converts to a memory format that it names."""
    import libcst as cst

    from ._chains import memory_format_argument

    if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "to":
        return None
    argument = memory_format_argument(list(call.args), "to")
    if argument is None or flow.origin(argument.value) not in _FORMATS:
        return None
    return call.func.value if _is_model(flow, call.func.value) else None


def _is_model(flow: Flow, node: cst.BaseExpression) -> bool:
    """Whether ``node`` is a place that is proven to hold a module."""
    import libcst as cst

    from esper_guard.lint.flow import Kind
    from esper_guard.lint.flow.dotted import dotted

    place, kind = dotted(node), flow.facts(node).kind
    if place is None or kind not in (Kind.UNKNOWN, Kind.MODULE):
        return False
    if kind is Kind.MODULE or (place == "self" and _is_method_of_module(flow, node)):
        return True
    return any(
        isinstance(call.func, cst.Attribute)
        and call.func.attr.value in _ONLY_MODULES_HAVE
        and dotted(call.func.value) == place
        for call in flow.calls
    )


def _is_method_of_module(flow: Flow, node: cst.CSTNode) -> bool:
    """Whether the class around ``node`` derives from a module."""
    import libcst as cst

    function: cst.CSTNode | None = None
    for ancestor in flow.ancestors(node):
        if isinstance(ancestor, cst.ClassDef):
            return _derives_from_module(flow, ancestor.name.value, 0)
        function = ancestor if isinstance(ancestor, cst.FunctionDef) else function
    if function is None:
        return False
    before = re.sub(r"\r\n?", "\n", flow.positions.source.text[: flow.positions.span(function)[0]])
    header = before[before.rfind("\n") + 1 :].removesuffix("async ")
    classes = [m[2] for m in _CLASS.finditer(before) if len(m[1]) < len(header)]
    return bool(classes) and _derives_from_module(flow, classes[-1], 0)


def _derives_from_module(flow: Flow, name: str, depth: int) -> bool:
    for base in flow.names.classes.get(name, ()):
        origin = flow.names.resolve(base)
        if origin.startswith("torch.nn.") or _MODULE_BASE.search(origin):
            return True
        if depth < 10 and _derives_from_module(flow, base, depth + 1):
            return True
    return False


def _repeated(flow: Flow, call: cst.Call, model: cst.BaseExpression) -> _Repeated | None:
    """What converts the same model again and again; None where that can't be told."""
    import libcst as cst

    child: cst.CSTNode = call
    for ancestor in flow.ancestors(call):
        if isinstance(ancestor, (cst.Lambda, cst.ClassDef)):
            return None
        if isinstance(ancestor, cst.FunctionDef):
            method = _Repeated(ancestor, f"whenever `{ancestor.name.value}` is called")
            is_step = _STEP.fullmatch(ancestor.name.value) and _is_method_of_module(flow, ancestor.body)
            return method if is_step and _is_steady(flow, call, model, method) else None
        if isinstance(ancestor, (cst.For, cst.While)) and child is ancestor.body:
            loop = _Repeated(ancestor, "in every round of the loop")
            if not _is_over_configurations(flow, ancestor) and _is_steady(flow, call, model, loop):
                return loop
        child = ancestor
    return None


def _is_over_configurations(flow: Flow, loop: cst.For | cst.While) -> bool:
    """A few rounds, each of another experiment."""
    import libcst as cst

    from esper_guard.lint.flow.dotted import dotted

    if _BENCHMARK.search(flow.function_name(loop)):
        return True
    if not isinstance(loop, cst.For):
        return False
    node = loop.iter
    while isinstance(node, cst.Call):
        name = (dotted(node.func) or "").rpartition(".")[2]
        if name not in _WRAPPERS:
            return name == "product"
        if node.args:
            node = node.args[0].value
        elif isinstance(node.func, cst.Attribute):
            node = node.func.value
        else:
            return False
    if isinstance(node, (cst.List, cst.Tuple, cst.Set, cst.Dict)):
        return True
    return bool(_CONFIGURATIONS.search((dotted(node) or "").rpartition(".")[2]))


def _is_steady(flow: Flow, call: cst.Call, model: cst.BaseExpression, repeated: _Repeated) -> bool:
    """Whether each round converts the same model, which nothing else in the round touches."""
    from esper_guard.lint.flow.dotted import dotted

    place = dotted(model) or ""
    changed = set(_changed(flow, call, repeated.node))
    return (
        not _is_touched(place, changed)
        and not any(_depends(argument.value, changed) for argument in call.args)
        and not _is_conditional(flow, call, repeated.node, changed)
        and not _leaves(flow, call, repeated)
        and not _is_rebuilt(flow, call, place, repeated.node)
    )


def _changed(flow: Flow, call: cst.Call, repeated: cst.For | cst.While | cst.FunctionDef) -> Iterator[str]:
    """The places that a round binds, but for the conversion itself; for a method, its parameters, too."""
    import libcst as cst

    from ._chains import nodes_in

    for node in nodes_in(repeated):
        if isinstance(node, cst.Assign) and not _is_chain_from(node.value, call):
            for target in node.targets:
                yield from _places(target.target)
        elif isinstance(node, (cst.AnnAssign, cst.AugAssign, cst.For, cst.CompFor, cst.NamedExpr)):
            yield from _places(node.target)
        elif isinstance(node, cst.AsName):
            yield from _places(node.name)
        elif (
            isinstance(node, cst.Param)
            and isinstance(repeated, cst.FunctionDef)
            and node.name.value != "self"
        ):
            yield node.name.value


def _is_chain_from(value: cst.BaseExpression, call: cst.Call) -> bool:
    """``model.to(...).train()`` is the converted model, too."""
    import libcst as cst

    while value is not call and isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute):
        value = value.func.value
    return value is call


def _places(target: cst.BaseExpression) -> Iterator[str]:
    import libcst as cst

    from esper_guard.lint.flow.dotted import dotted

    if isinstance(target, (cst.Tuple, cst.List)):
        for element in target.elements:
            yield from _places(element.value)
        return
    while isinstance(target, cst.Subscript):
        target = target.value
    yield dotted(target) or ""


def _is_touched(place: str, changed: set[str]) -> bool:
    """Whether the place, an owner of it or something that it owns is bound."""
    return any(f"{place}.".startswith(f"{one}.") or one.startswith(f"{place}.") for one in changed)


def _depends(node: cst.BaseExpression, changed: set[str]) -> bool:
    """Whether the value may be another one in each round."""
    import libcst as cst

    from esper_guard.lint.flow.dotted import dotted

    from ._chains import nodes_in

    for one in nodes_in(node):
        if isinstance(one, (cst.Call, cst.Subscript, cst.NamedExpr)):
            return True
        if isinstance(one, (cst.Name, cst.Attribute)):
            place = dotted(one) or ""
            if _is_touched(place, changed) or _PROGRESS.search(place):
                return True
    return False


def _is_conditional(flow: Flow, call: cst.Call, repeated: cst.CSTNode, changed: set[str]) -> bool:
    """Whether a test that decides about the conversion may come out differently in each round."""
    import libcst as cst

    for ancestor in flow.ancestors(call):
        if ancestor is repeated:
            return False
        if isinstance(ancestor, (cst.Try, cst.TryStar, cst.Match, cst.BaseComp)):
            return True
        if isinstance(ancestor, (cst.If, cst.IfExp)) and _depends(ancestor.test, changed):
            return True
        if isinstance(ancestor, cst.BooleanOperation) and _depends(ancestor.left, changed):
            return True
    return False


def _leaves(flow: Flow, call: cst.Call, repeated: _Repeated) -> bool:
    """Whether a round may end before the conversion, or the loop right after it."""
    import libcst as cst

    from ._chains import nodes_in

    start, _ = flow.positions.span(call)
    jumps = (cst.Continue, cst.Break, cst.Return)
    if any(isinstance(n, jumps) and flow.positions.span(n)[1] < start for n in nodes_in(repeated.node.body)):
        return True
    if isinstance(repeated.node, cst.FunctionDef):
        return False
    for ancestor in flow.ancestors(call):
        if ancestor is repeated.node:
            return False
        last = ancestor.body[-1] if isinstance(ancestor, cst.IndentedBlock) else None
        if isinstance(last, cst.SimpleStatementLine) and isinstance(last.body[-1], (*jumps, cst.Raise)):
            return True
    return False


def _is_rebuilt(flow: Flow, call: cst.Call, place: str, repeated: cst.CSTNode) -> bool:
    """Whether the model is moved, or something else is done to it that may replace parameters."""
    import libcst as cst

    from esper_guard.lint.flow.dotted import dotted

    from ._chains import nodes_in

    for node in nodes_in(repeated):
        if not isinstance(node, cst.Call) or node is call:
            continue
        name = (dotted(node.func) or "").rpartition(".")[2]
        if isinstance(node.func, cst.Attribute) and dotted(node.func.value) == place:
            if name in _MOVES or _REBUILDS.search(name):
                return True
        elif _REBUILDS.search(name) and any(dotted(argument.value) == place for argument in node.args):
            return True
    return False
