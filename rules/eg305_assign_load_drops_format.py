"""# assign-load-drops-format (EG305)

A state dict is loaded with `assign=True` into a model that was just converted to channels_last.

## What it does

Flags `model.load_state_dict(state, assign=True)` after `model.to(memory_format=torch.channels_last)` in one function,
where no conversion follows.

## Why is this bad?

Without `assign`, the numbers are copied into the model's own parameters, which keep their layout. With it, the tensors of
the state dict take the place of the parameters. The conversion before is lost: the weights are NCHW again (as
checkpoints are), and each convolution converts them on every call.

## Example

```python
model.to(memory_format=torch.channels_last)
model.load_state_dict(state, assign=True)
```

## Use instead

```python
model.load_state_dict(state, assign=True)
model.to(memory_format=torch.channels_last)
```

## When it stays silent

- Where a comment on the line, or above it, gives a reason for the layout.
- Where the model is converted after it, on each path on which it was converted before.
- Without `assign=True` as a literal.
- Where the state dict comes from `state_dict()` of a module in the function: it may be in channels_last itself.
  Of what a file holds the rule can't know; `torch.save` keeps the strides of a channels_last model, safetensors doesn't.
- In projects without channels_last; where conversion and load aren't in one function.

## References

- [torch.nn.Module.load_state_dict](https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.load_state_dict)
- [Channels last memory format](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Finding, Invalid, Proof, Rule, Severity

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow

_ASSIGN = 2  # where the positional argument stands
_UNBOUND = "torch.nn.Module.load_state_dict"
_NO, _CONVERTED, _LOST = "not converted", "converted", "lost"  # a model, somewhere on a path

_HEAD = "import torch\nfrom torch import nn\ndef f(model, state):\n    "
_CONVERSION = "model.to(memory_format=torch.channels_last)\n    "
_LOAD = "model.load_state_dict(state, assign=True)\n    "


class AssignLoadDropsFormat(Rule):
    """Follows each model that is loaded so along the paths of its function."""

    code = "EG305"
    shows_in_traces = False
    name = "assign-load-drops-format"
    severity = Severity.WARNING
    heeds_reasons = True
    only_with_channels_last = True
    triggers = (rb"memory_format", rb"load_state_dict", rb"memory_format[\s\\]*=")

    valid = (
        f"{_HEAD}{_CONVERSION}model.load_state_dict(s, assign=True)  # NCHW from here on, for the ONNX export",
        f"{_HEAD}if not a:\n        pass\n    else:\n        {_CONVERSION}\n    {_LOAD}if a:\n        {_CONVERSION}",
        f"{_HEAD}{_CONVERSION}try:\n        {_LOAD}\n    finally:\n        {_CONVERSION}",
        f"{_HEAD}{_CONVERSION}for model in models:\n        {_LOAD}",
        f"{_HEAD}{_CONVERSION}with g() as model:\n        {_LOAD}",
        f"{_HEAD}{_CONVERSION}with g():\n        {_LOAD}\n    {_CONVERSION}",
        f"{_HEAD}{_CONVERSION}model, other = g()\n    {_LOAD}",
        f"{_HEAD}{_CONVERSION}g(model).load_state_dict(state, assign=True)\n",
        f"{_HEAD}{_CONVERSION}return lambda: model.load_state_dict(state, assign=True)\n",
        f"{_HEAD}{_CONVERSION}model.load_state_dict(state, assign=flag)\n",
        f"{_HEAD}{_CONVERSION}model.load_state_dict(state, strict=True)\n",
        _HEAD + _CONVERSION + "".join(f"if a{n}:\n        g()\n    " for n in range(8)) + _LOAD,
        f"{_HEAD}{_LOAD}{_CONVERSION}return model\n",
        f"{_HEAD}{_CONVERSION}{_LOAD}{_CONVERSION}return model\n",
        f"{_HEAD}{_CONVERSION}{_LOAD}return model.to(memory_format=torch.channels_last)\n",
        f"{_HEAD}{_CONVERSION}model.load_state_dict(state)\n",
        f"{_HEAD}{_CONVERSION}model.load_state_dict(state, assign=False)\n",
        f"{_HEAD}{_CONVERSION}model.load_state_dict(state, False)\n",
        f"{_HEAD}{_CONVERSION}model.load_state_dict(state)\n    model.restore(state, assign=True)\n",
        f"{_HEAD}{_CONVERSION}model.load_state_dict(state, assign=version >= 2)\n",
        f"{_HEAD}{_CONVERSION}nn.Module.load_state_dict()\n",
        f"{_HEAD}model.export(memory_format=torch.channels_last)\n    {_LOAD}",
        f"{_HEAD}g().to(memory_format=torch.channels_last)\n    g().load_state_dict(state, assign=True)\n",
        f"{_HEAD}{_CONVERSION}model, *others = Net(), Net(), Net()\n    {_LOAD}",
        f"{_HEAD}{_CONVERSION}{_LOAD}return g(model.to(memory_format=torch.channels_last))\n",
        f"{_HEAD}for model in models:\n        {_LOAD}    if model.is_big:\n            {_CONVERSION}",
        f"{_HEAD}for key in model.load_state_dict(state, assign=True).missing_keys:\n"
        f"        if g(key):\n            {_CONVERSION}",
        f"{_HEAD}nhwc = g()\n    if nhwc:\n        {_CONVERSION}\n    {_LOAD}if nhwc:\n        {_CONVERSION}",
        f"{_HEAD}self.model = model\n    self.state = state\n    log[self.nhwc] += 1\n"
        f"    if self.nhwc:\n        {_CONVERSION}\n    {_LOAD}if self.nhwc:\n        {_CONVERSION}",
        f"{_HEAD}{_CONVERSION}other.load_state_dict(state, assign=True)\n",
        f"{_HEAD}{_CONVERSION}model = nn.Conv2d(3, 8, 3)\n    {_LOAD}\n",
        f"{_HEAD}{_CONVERSION}model.load_state_dict(other.state_dict(), assign=True)\n",
        f"{_HEAD}state = other.state_dict()\n    {_CONVERSION}{_LOAD}\n",
        f"{_HEAD}model.to(memory_format=torch.contiguous_format)\n    {_LOAD}\n",
        f"{_HEAD}{_CONVERSION}{_LOAD}raise ValueError\n",
        f"{_HEAD}{_CONVERSION}{_LOAD}model.to(memory_format=torch.contiguous_format)\n",
        f"{_HEAD}if nhwc:\n        {_CONVERSION}\n    {_LOAD}if nhwc:\n        {_CONVERSION}\n    return model\n",
        f"{_HEAD}if nhwc:\n        {_CONVERSION}\n    else:\n        {_LOAD}\n    return model\n",
    )
    invalid = (
        Invalid(f"{_HEAD}if g():\n        {_CONVERSION}\n    {_LOAD}if g():\n        {_CONVERSION}"),
        Invalid(
            f"{_HEAD}{_CONVERSION}for x in y:\n        if x:\n            break\n    else:\n        return 1\n    {_LOAD}"
        ),
        Invalid(
            f"{_HEAD}{_CONVERSION}try:\n        g()\n    except OSError:\n        raise\n    else:\n        {_LOAD}"
        ),
        Invalid(f"{_HEAD}{_CONVERSION}for x in y:\n        g(x)\n    else:\n        {_LOAD}"),
        Invalid(f"{_HEAD}{_CONVERSION}match x:\n        case 1:\n            {_LOAD}"),
        Invalid(f"{_HEAD}{_CONVERSION}{_LOAD}if x:\n        return model\n    {_CONVERSION}"),
        Invalid(f"{_HEAD}{_CONVERSION}if a:\n        pass\n    elif b:\n        {_LOAD}"),
        Invalid(f"{_HEAD}if a:\n        pass\n    else:\n        {_CONVERSION}\n    {_LOAD}"),
        Invalid(
            f"{_HEAD}{_CONVERSION}{_LOAD}if a:\n        {_CONVERSION}\n    elif b:\n        {_CONVERSION}"
        ),
        Invalid(f"{_HEAD}if ~a:\n        {_CONVERSION}\n    {_LOAD}if not a:\n        {_CONVERSION}"),
        Invalid(
            f"{_HEAD}if self.n:\n        {_CONVERSION}\n    {_LOAD}self.n -= 1\n    if self.n:\n        {_CONVERSION}"
        ),
        Invalid(f"{_HEAD}for model in models:\n        {_CONVERSION}\n    {_LOAD}"),
        Invalid(
            f"{_HEAD}while model.load_state_dict(state, assign=True).missing_keys:\n        {_CONVERSION}"
        ),
        Invalid(f"{_HEAD}{_CONVERSION}model: nn.Module\n    {_LOAD}"),
        Invalid(f"{_HEAD}model: nn.Module = Net().to(memory_format=torch.channels_last)\n    {_LOAD}"),
        Invalid(f"{_HEAD}model, n = Net().to(memory_format=torch.channels_last), 1\n    {_LOAD}"),
        Invalid(f"{_HEAD}{_CONVERSION}model.load_state_dict(torch.load(p), assign=True)\n"),
        Invalid(f"{_HEAD}{_CONVERSION}model.load_state_dict(load(p), assign=True)\n"),
        Invalid(
            "import torch\nmodel.to(memory_format=torch.channels_last)\nmodel.load_state_dict(s, assign=True)\n"
        ),
        Invalid(
            f"{_HEAD}{_CONVERSION}{_LOAD}return model\n",
            message="`model.load_state_dict(state, assign=True)`",
        ),
        Invalid(f"{_HEAD}{_CONVERSION}model.load_state_dict(state, True, True)\n"),
        Invalid(f"{_HEAD}{_CONVERSION}nn.Module.load_state_dict(model, state, assign=True)\n"),
        Invalid(f"{_HEAD}model = model.cuda().to(memory_format=torch.channels_last)\n    {_LOAD}\n"),
        Invalid(f"{_HEAD}model = Net().to(memory_format=torch.channels_last).eval()\n    {_LOAD}\n"),
        Invalid(f"{_HEAD}{_CONVERSION}model.body.load_state_dict(state, assign=True)\n"),
        Invalid(f"{_HEAD}{_CONVERSION}model = nn.DataParallel(model)\n    {_LOAD}\n"),
        Invalid(f"{_HEAD}{_CONVERSION}model.cuda().load_state_dict(state, assign=True)\n"),
        Invalid(f"{_HEAD}{_CONVERSION}if nhwc:\n        {_LOAD}\n    return model\n"),
        Invalid(f"{_HEAD}{_CONVERSION}{_LOAD}if nhwc:\n        {_CONVERSION}\n    return model\n"),
        Invalid(
            f"{_HEAD}self.net.to(memory_format=torch.channels_last)\n    self.net.load_state_dict(s, assign=True)\n"
        ),
    )
    proof = Proof(
        Claim.LOSES,
        flagged=(
            "def run(model, state):\n    model.to(memory_format=torch.channels_last)\n"
            "    model.load_state_dict(state, assign=True)\n    return model.weight.detach()\n"
        ),
        recommended=(
            "def run(model, state):\n    model.load_state_dict(state, assign=True)\n"
            "    model.to(memory_format=torch.channels_last)\n    return model.weight.detach()\n"
        ),
        inputs="(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3).state_dict())",
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        from ._paths import Paths, place, scope_of

        for call in flow.calls:
            module = _assigned_to(flow, call)
            if module is None:
                continue
            loaded = place(flow, module)
            load = _Load(flow, call, loaded)
            if _LOST in Paths(flow, scope_of(flow, call), load.effect).ends(_NO):
                yield self.finding(
                    flow,
                    call,
                    f"`{flow.positions.shown(call)}` puts the state dict's tensors in place of the parameters of "
                    f"`{loaded}`: its conversion to channels_last is lost",
                    help=f"load first, then `{loaded}.to(memory_format=torch.channels_last)`; or leave out `assign=True`",
                )


def _assigned_to(flow: Flow, call: cst.Call) -> cst.BaseExpression | None:
    """The module into which ``call`` loads tensors as they are, from something that may be NCHW."""
    import libcst as cst

    args = list(call.args)
    if flow.origin(call.func) == _UNBOUND and args:
        module = args.pop(0).value
    elif isinstance(call.func, cst.Attribute) and call.func.attr.value == "load_state_dict":
        module = call.func.value
    else:
        return None
    assigns = (
        isinstance(arg.value, cst.Name) and arg.value.value == "True"
        for index, arg in enumerate(args)
        if (arg.keyword.value == "assign" if arg.keyword is not None else index == _ASSIGN)
    )
    return module if any(assigns) and not _is_of_module(flow, args[0].value) else None


def _is_of_module(flow: Flow, state: cst.BaseExpression) -> bool:
    import libcst as cst

    made = flow.made_by(state)
    return (
        isinstance(made, cst.Call)
        and isinstance(made.func, cst.Attribute)
        and made.func.attr.value == "state_dict"
    )


class _Load:
    """One load with ``assign=True``, and the module it loads into."""

    def __init__(self, flow: Flow, call: cst.Call, module: str) -> None:
        self._flow = flow
        self._call = call
        self._module = module

    def effect(self, statement: cst.CSTNode, calls: list[cst.Call], state: str) -> str:
        """What has become of the module's format once ``statement`` has run."""
        from ._paths import conversion, is_within

        for call in calls:
            converted = conversion(self._flow, call)
            if call is self._call:
                state = _LOST if state == _CONVERTED else state
            elif converted is not None and is_within(self._module, converted.module):
                state = _CONVERTED if converted.memory_format.startswith("channels_last") else _NO
        return self._after_binding(statement, state)

    def _after_binding(self, statement: cst.CSTNode, state: str) -> str:
        from ._paths import bindings, format_at_making, is_made_of, is_within

        for target, value in bindings(statement):
            bound = self._flow.positions.one_line(target)
            if is_within(self._module, bound) and not is_made_of(self._flow, value, bound):
                made = format_at_making(self._flow, value)
                state = _CONVERTED if made.startswith("channels_last") else _NO
        return state
