"""# fused-optimizer-format-change (EG306)

A model changes its memory format between two steps of an optimizer with `fused=True`.

## What it does

Flags `model.to(memory_format=torch.channels_last)`, and the way back, after a `step()` of a fused `Adam`, `AdamW`,
`Adagrad` or `SGD` with momentum over `model.parameters()`, where another `step()` follows.

## Why is this bad?

The optimizer makes its state (`exp_avg`, `momentum_buffer`, ...) at the first step, laid out like the parameters. The
fused CPU kernel walks parameter, gradient and state by memory position, without looking at strides: once the parameter
has another layout, each weight is updated with the moments of another one. The numbers are wrong, and nothing is raised.

## Example

```python
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
warm_up(model, loss_of).backward()
optimizer.step()
model.to(memory_format=torch.channels_last)
loss_of(model).backward()
optimizer.step()
```

## Use instead

```python
model.to(memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
```

## When it stays silent

- Where the conversion comes before the first step: there is no state yet. Also in a loop, where it changes nothing
  from the second round on, and where the model is converted back before the next step.
- Without `fused=True`, or with plain `SGD`, which keeps no state.
- After `optimizer.load_state_dict(...)`: the layout of what is loaded can't be told. A state that was saved from a
  channels_last model is right once the model is channels_last, one that was saved before is wrong.
- Where the optimizer's `state` is handled by hand; where optimizer, steps and conversion aren't in one function; where
  `fused` or the format is a variable.
- A model whose format is not in sight counts as NCHW.

## References

- [torch.optim.AdamW](https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html)
- `esper-guard doctor` (`fused-optimizer-layout`) tells whether a machine has it
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from esper_guard.lint.rule import Claim, Finding, Invalid, Proof, Rule, Severity

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow

_OPTIMIZER = re.compile(r"torch\.optim\.(?:\w+\.)?(Adam|AdamW|SGD|Adagrad)\Z")
_MOMENTUM = 2  # where SGD's positional argument stands

_TRAINED = """import torch
def f(model, loss):
    optimizer = torch.optim.{optimizer}
    for epoch in range(3):
        loss(model).backward()
        optimizer.step()
    {between}
    optimizer.step()
"""
_CONVERTED = "model.to(memory_format=torch.channels_last)"


def _trained(optimizer: str = "Adam(model.parameters(), fused=True)", between: str = _CONVERTED) -> str:
    return _TRAINED.format(optimizer=optimizer, between=between)


class _State(NamedTuple):
    """An optimizer and its model, somewhere on a path."""

    is_followed: bool = False
    memory_format: str = "contiguous_format"
    of_state: str = ""  # the format of the model when the optimizer made its state; "" before it did
    culprit: cst.Call | None = None


class FusedOptimizerFormatChange(Rule):
    """Follows each fused optimizer along the paths of its function."""

    code = "EG306"
    name = "fused-optimizer-format-change"
    severity = Severity.ERROR
    triggers = (rb"memory_format", rb"fused[\s\\]*=[\s\\]*True", rb"memory_format[\s\\]*=", rb"step[\s\\]*\(")

    valid = (
        _trained("Adam(other.parameters(), lr=lr_of(model.parameters()), fused=True)"),
        _trained("Adam(other.state(model.buffers()), fused=True)"),
        _trained(between=f"optimizer.load_state_dict(saved)\n    {_CONVERTED}"),
        _trained(between=f"{_CONVERTED}\n    scheduler.step()\n    return"),
        _trained("Adam(model.parameters())\n    other = torch.optim.Adam(head.parameters(), fused=True)"),
        _trained("Adam(model.parameters(), fused=False)"),
        _trained("SGD(model.parameters(), 0.1, fused=True)"),
        _trained("SGD(model.parameters(), 0.1, momentum=0, fused=True)"),
        _trained("Adam(other.parameters(), fused=True)"),
        _trained("Adam(model.parameters(), fused=fused)"),
        _trained("Adamax(model.parameters(), fused=True)"),
        _trained(between="model.to(memory_format=torch.contiguous_format)"),
        _trained(between="model.to(memory_format=torch.preserve_format)"),
        _trained(between="model.to('cpu')"),
        _trained(between=f"{_CONVERTED}\n    model.to(memory_format=torch.contiguous_format)"),
        _trained(between=f"{_CONVERTED}\n    optimizer = make(model)"),
        _trained(between=f"{_CONVERTED}\n    optimizer.load_state_dict(saved)"),
        _trained(between=f"{_CONVERTED}\n    return"),
        _trained(between=f"{_CONVERTED}\n    relayout(optimizer.state)"),
        _trained(between=f"model = Net()\n    {_CONVERTED}"),
        _trained(between="model.to(memory_format=fmt)"),
        _trained(between="x.to(memory_format=torch.channels_last)"),
        _trained(between="pass") + f"    {_CONVERTED}\n",
        _trained(f"Adam(model.parameters(), fused=True)\n    {_CONVERTED}"),
        _trained(
            f"Adam(model.parameters(), fused=True)\n    optimizer.load_state_dict(s)\n    {_CONVERTED}",
            "pass",
        ),
        (
            "import torch\ndef f(model, data):\n    optimizer = torch.optim.Adam(model.parameters(), fused=True)\n"
            f"    for x in data:\n        {_CONVERTED}\n        model(x).backward()\n        optimizer.step()\n"
        ),
        (
            f"import torch\ndef f(model, data, args):\n    if args.nhwc:\n        {_CONVERTED}\n"
            "    optimizer = torch.optim.Adam(model.parameters(), fused=True)\n    optimizer.step()\n"
            f"    if args.nhwc:\n        {_CONVERTED}\n    optimizer.step()\n"
        ),
        (
            "import torch\ndef f():\n    model = Net().to(memory_format=torch.channels_last)\n"
            "    optimizer = torch.optim.Adam(model.parameters(), fused=True)\n    optimizer.step()\n"
            f"    {_CONVERTED}\n    optimizer.step()\n"
        ),
    )
    invalid = (
        Invalid(_trained("SGD(model.parameters(), 0.1, momentum=args.momentum, fused=True)")),
        Invalid(_trained("SGD(model.parameters(), 0.1, momentum=1 - args.decay, fused=True)")),
        Invalid(_trained("Adam(lr=0.1, params=model.parameters(), fused=True)")),
        Invalid(_trained(between=f"{_CONVERTED}\n    optimizer.zero_grad()")),
        Invalid(
            "import torch\ndef f(loss):\n    model = Net()\n"
            "    optimizer = torch.optim.Adam(model.parameters(), fused=True)\n"
            f"    while optimizer.step(loss) > 0.1:\n        {_CONVERTED}\n"
        ),
        Invalid(
            "import torch\ndef f(model, data, scaler):\n"
            "    optimizer = torch.optim.Adam(model.parameters(), fused=True)\n"
            "    for epoch in range(9):\n        is_late = epoch > 3\n        if is_late:\n"
            f"            {_CONVERTED}\n        scaler.step(optimizer)\n"
        ),
        Invalid(
            _trained(
                between=f"{_CONVERTED}\n    optimizer.step()\n    model.to(memory_format=torch.contiguous_format)"
            )
        ),
        Invalid(_trained(), message="`optimizer`"),
        Invalid(_trained("AdamW(model.parameters(), fused=True)")),
        Invalid(_trained("Adagrad(model.parameters(), fused=True)")),
        Invalid(_trained("SGD(model.parameters(), 0.1, momentum=0.9, fused=True)")),
        Invalid(_trained("SGD(model.parameters(), 0.1, 0.9, fused=True)")),
        Invalid(_trained("Adam([{'params': model.head.parameters()}], fused=True)")),
        Invalid(_trained("Adam(params=[p for _, p in model.named_parameters()], fused=True)")),
        Invalid(_trained(between="model = model.to('cuda', memory_format=torch.channels_last)")),
        Invalid(_trained(between=f"{_CONVERTED}\n    model = torch.compile(model)")),
        Invalid(_trained(between=f"{_CONVERTED}\n    scaler.step(optimizer)")),
        Invalid(_trained(between=f"if epoch > 2:\n        {_CONVERTED}")),
        Invalid(_trained(between=f"try:\n        {_CONVERTED}\n    except ValueError:\n        pass")),
        Invalid(_trained(between=f"with torch.no_grad():\n        {_CONVERTED}")),
        Invalid(
            "from torch.optim import AdamW as A\nimport torch\ndef f(model, data):\n"
            "    self.opt = A(model.parameters(), fused=True)\n"
            f"    for x in data:\n        model(x).backward()\n        self.opt.step()\n        {_CONVERTED}\n"
        ),
        Invalid(
            "import torch\ndef f(model, data):\n    opt = torch.optim.Adam(model.parameters(), fused=True)\n"
            f"    for e in range(9):\n        if e == 3:\n            {_CONVERTED}\n        model(e).backward()\n"
            "        opt.step()\n"
        ),
        Invalid(
            "import torch\ndef f():\n    model = Net().to(memory_format=torch.channels_last)\n"
            "    optimizer = torch.optim.Adam(model.parameters(), fused=True)\n    optimizer.step()\n"
            "    model.to(memory_format=torch.contiguous_format)\n    optimizer.step()\n"
        ),
    )
    proof = Proof(
        Claim.WRONG,
        flagged=(
            "def run(model, x):\n    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)\n"
            "    model(x).square().sum().backward()\n    optimizer.step()\n"
            "    model.to(memory_format=torch.channels_last)\n"
            "    model(x).square().sum().backward()\n    optimizer.step()\n    return model.weight.detach()\n"
        ),
        recommended=(
            "def run(model, x):\n    model.to(memory_format=torch.channels_last)\n"
            "    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)\n"
            "    model(x).square().sum().backward()\n    optimizer.step()\n"
            "    model(x).square().sum().backward()\n    optimizer.step()\n    return model.weight.detach()\n"
        ),
        inputs="(nn.Conv2d(8, 8, 3), torch.randn(2, 8, 6, 6))",
        setup=(
            "import torch\nfrom torch import nn\ndef trained(model, x):\n"
            "    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)\n    for _ in range(2):\n"
            "        model(x).square().sum().backward()\n        optimizer.step()\n"
            "    return model.weight.detach()\n"
        ),
        reference="trained(*inputs)",
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        from ._paths import bindings, scope_of

        for call in flow.calls:
            if not _is_fused_with_state(flow, call):
                continue
            for target, _ in bindings(flow.parent(call)):
                optimizer = _Optimizer(flow, call, flow.positions.one_line(target), _modules(flow, call))
                for culprit in optimizer.culprits(scope_of(flow, call)):
                    yield self._finding(flow, culprit, optimizer)

    def _finding(self, flow: Flow, call: cst.Call, optimizer: _Optimizer) -> Finding:
        return self.finding(
            flow,
            call,
            f"`{flow.positions.shown(call)}` comes after a step of the fused optimizer `{optimizer.name}`: its state keeps "
            "the old memory format, and the next step mixes up the weights without an error",
            help="convert the model before the optimizer's first step, or leave out `fused=True`",
        )


def _is_fused_with_state(flow: Flow, call: cst.Call) -> bool:
    found = _OPTIMIZER.match(flow.origin(call.func))
    if found is None or _argument(call, "fused", None) != "True":
        return False
    return found[1] != "SGD" or _argument(call, "momentum", _MOMENTUM) not in ("", "0", "0.0")


def _argument(call: cst.Call, keyword: str, position: int | None) -> str:
    """A literal or a name given for a parameter, as written; ``"?"`` for anything else, ``""`` where none is given."""
    import libcst as cst

    for index, arg in enumerate(call.args):
        is_it = arg.keyword.value == keyword if arg.keyword is not None else index == position
        if is_it:
            return arg.value.value if isinstance(arg.value, (cst.Name, cst.Integer, cst.Float)) else "?"
    return ""


def _modules(flow: Flow, call: cst.Call) -> set[str]:
    """The modules whose parameters the optimizer takes: whatever ``parameters`` is called on among its arguments."""
    import libcst as cst

    from ._paths import place

    given = [arg for arg in call.args if arg.keyword is None or arg.keyword.value == "params"][:1]
    return {
        module
        for one in flow.calls
        if isinstance(one.func, cst.Attribute)
        and one.func.attr.value in ("parameters", "named_parameters")
        and any(arg in given for arg in flow.ancestors(one))
        and (module := place(flow, one.func.value))
    }


class _Optimizer:
    """One fused optimizer, and the places of the modules it updates."""

    def __init__(self, flow: Flow, call: cst.Call, name: str, modules: set[str]) -> None:
        self.name = name
        self._flow = flow
        self._call = call
        self._modules = modules
        self._found: dict[cst.Call, None] = {}

    def culprits(self, scope: cst.Module | cst.FunctionDef) -> list[cst.Call]:
        """The conversions after which the optimizer steps with a state of another format."""
        from ._paths import Paths

        if self._handles_state():
            return []
        Paths(self._flow, scope, self._effect).ends(_State())
        return list(self._found)

    def _handles_state(self) -> bool:
        import libcst as cst

        return any(
            isinstance(parent := self._flow.parent(use), cst.Attribute) and parent.attr.value == "state"
            for use in self._flow.loads(self._call)
        )

    def _effect(self, statement: cst.CSTNode, calls: list[cst.Call], state: _State) -> _State:
        for call in calls:
            state = self._after_call(call, state)
        return self._after_binding(statement, state)

    def _after_call(self, call: cst.Call, state: _State) -> _State:
        from ._paths import conversion, is_within

        if call is self._call:
            return state._replace(is_followed=True, of_state="", culprit=None)
        if self._is_step(call):
            if state.is_followed and state.culprit is not None:
                self._found[state.culprit] = None
            return state._replace(of_state=state.of_state or state.memory_format)
        if self._loads_state(call):
            return state._replace(is_followed=False)
        converted = conversion(self._flow, call)
        if converted is None or not any(is_within(one, converted.module) for one in self._modules):
            return state
        changes = state.of_state not in ("", converted.memory_format)
        return state._replace(
            memory_format=converted.memory_format,
            is_followed=state.is_followed and converted.memory_format != "?",
            culprit=call if changes else None,
        )

    def _after_binding(self, statement: cst.CSTNode, state: _State) -> _State:
        """The optimizer or the model is something else from here on, unless the new one wraps the old."""
        from ._paths import bindings, format_at_making, is_made_of, is_within

        shown = self._flow.positions.one_line
        for target, value in bindings(statement):
            if value is self._call:
                continue
            if shown(target) == self.name:
                state = state._replace(is_followed=False)
            if not any(is_within(module, shown(target)) for module in self._modules):
                continue
            if not is_made_of(self._flow, value, shown(target)):
                state = _State(memory_format=format_at_making(self._flow, value))
        return state

    def _is_step(self, call: cst.Call) -> bool:
        import libcst as cst

        if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "step":
            return False
        shown = self._flow.positions.one_line
        return shown(call.func.value) == self.name or any(shown(arg.value) == self.name for arg in call.args)

    def _loads_state(self, call: cst.Call) -> bool:
        import libcst as cst

        if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "load_state_dict":
            return False
        return self._flow.positions.one_line(call.func.value) == self.name
