"""# safetensors-noncontiguous (EG307)

A state dict that may hold channels_last weights is given to safetensors, which takes contiguous tensors only.

## What it does

Flags `safetensors.torch.save_file(model.state_dict(), path)` and `safetensors.torch.save(...)` where nothing makes the
values contiguous, also through names, copies and comprehensions that rename or move the tensors.

## Why is this bad?

Once the model has been converted with `model.to(memory_format=torch.channels_last)`, the weights of its convolutions are
not contiguous, and saving raises `ValueError: You are trying to save a non contiguous tensor`: after the training.

Whether a model has convolutions is often not in sight where it is saved, so this rule is off by default: of 40 findings in
169 repositories and 300 packages, 11 could fail.

## Example

```python
save_file(model.state_dict(), path)
```

## Use instead

```python
save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
```

or `safetensors.torch.save_model(model, path)`, which also copes with shared weights.

## When it stays silent

- In projects without channels_last.
- With `.contiguous()` on the values, in the comprehension or in a loop; after `model.to(memory_format=torch.contiguous_format)`.
- Where the model is made in the same function and never converted there, or is known to have no convolution.
- Where function, model, path or keys say that these are adapters (LoRA), embeddings, tokens, or a language model.
- Where the state dict comes from another function, or one whose name says so makes it contiguous; where its items are
  assigned to.

## Fix safety

The fix is safe: `contiguous()` returns a contiguous tensor itself, so that what could be saved is saved as before, and
what couldn't raised.

## References

- [safetensors.torch.save_file](https://huggingface.co/docs/safetensors/api/torch#safetensors.torch.save_file)
- [safetensors.torch.save_model](https://huggingface.co/docs/safetensors/api/torch#safetensors.torch.save_model)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Edit, Finding, Fix, Invalid, Proof, Rule, Severity

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline

_SAVES = frozenset(("safetensors.torch.save", "safetensors.torch.save_file"))
_WITHOUT_CONVOLUTIONS = re.compile(
    r"lora|adapter|peft|embed|token|text|clip|bert|llm|\bt5|language|quant|processor|optim|sched",
    re.IGNORECASE,
)
_MODEL = re.compile(r"(?:\A|[._])(?:model|net|network|module|unet|ema)\Z|\Aself\Z", re.IGNORECASE)
_MAKERS = re.compile(r"(?:\.|^)(?:[A-Z]\w*|from_pretrained|from_config|create_model)\Z")

_HEAD = "import torch\nfrom safetensors.torch import save_file\n"
_OF_ITEMS = "for k, v in model.state_dict().items()}"
_CONVERTED = "model.to(memory_format=torch.channels_last)"


class SafetensorsNoncontiguous(Rule):
    """Follows each state dict to where it is saved."""

    code = "EG307"
    name = "safetensors-noncontiguous"
    severity = Severity.ERROR
    default = False
    only_with_channels_last = True
    triggers = (rb"state_dict", rb"state_dict[\s\\]*\(")
    file_triggers = (rb"safetensors",)

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether something is saved by a function of safetensors."""
        from esper_guard.lint.outline import written

        saved = (
            outline.names.resolve(written(call.func)) for call in outline.nodes if isinstance(call, ast.Call)
        )
        return any(name in _SAVES for name in saved)

    valid = (
        f"{_HEAD}def f(model, p):\n    state = model.state_dict()\n    state.update(fixed(state))\n    save_file(state, p)\n",
        f"{_HEAD}def f(model, p):\n    save_file({{k: v.contiguous() {_OF_ITEMS}, p)\n",
        f"{_HEAD}def f(model, p):\n    save_file(dict((k, v) for k, v in model.state_dict().items()), p)\n",
        f"{_HEAD}def f(model, p):\n    save_file(state_of(model), p)\n",
        f"{_HEAD}def f(model, p):\n    save_file({{k: fixed(v) {_OF_ITEMS}, p)\n",
        f"{_HEAD}def f(model, p):\n    save_file({{k: v.flatten() {_OF_ITEMS}, p)\n",
        f"{_HEAD}def f(model, p):\n    save_file({{'sum': k {_OF_ITEMS}, p)\n",
        f"{_HEAD}def f(model, p):\n    save_file({{k: fixed(model, k) for k in model.state_dict().keys()}}, p)\n",
        f"{_HEAD}def f(model, p):\n    state = model.state_dict()\n    save_file(without_copies(state), p)\n",
        f"{_HEAD}def f(model, p):\n    save_file(other, model.state_dict())\n",
        f"{_HEAD}def f(model, p):\n    torch.save(model.state_dict(), p)\n",
        f"{_HEAD}def f(model, p):\n    store.save_file(model.state_dict(), p)\n",
        f"{_HEAD}def f(model, p):\n    state = model.state_dict()\n    make_contiguous(state)\n    save_file(state, p)\n",
        (
            f"{_HEAD}def f(model, p):\n    state = model.state_dict()\n    for k in state:\n"
            "        state[k] = state[k].contiguous()\n    save_file(state, p)\n"
        ),
        f"{_HEAD}def f(model, p):\n    model.to(memory_format=torch.contiguous_format)\n    save_file(model.state_dict(), p)\n",
        f"{_HEAD}def f(p):\n    model = Net()\n    save_file(model.state_dict(), p)\n",
        f"{_HEAD}def f(p):\n    model = Net.from_pretrained(p)\n    model.eval()\n    save_file(model.state_dict(), p)\n",
        f"{_HEAD}def f(p):\n    model = torch.nn.Linear(3, 3)\n    {_CONVERTED}\n    save_file(model.state_dict(), p)\n",
        f"{_HEAD}def f(model, p):\n    d = {{k: v {_OF_ITEMS[:-1]} if 'lora' in k}}\n    save_file(d, p)\n",
        f"{_HEAD}def save_lora(model, p):\n    save_file(model.state_dict(), p)\n",
        f"{_HEAD}def f(adapter, p):\n    save_file(adapter.state_dict(), p)\n",
        f"{_HEAD}def f(model):\n    save_file(model.state_dict(), LORA_NAME)\n",
        f"{_HEAD}def f(p):\n    save_file(state_dict(), p)\n",
        f"{_HEAD}def f(self, p):\n    save_file(self.state_dict(), p)\n",
        f"{_HEAD}def f(p, model_name):\n    model = build(model_name)\n    save_file(model.state_dict(), p)\n",
    )
    invalid = (
        Invalid(
            f"{_HEAD}def f(model, p):\n    state = model.state_dict()\n    print(state['a'], len(state))\n    save_file(state, p)\n"
        ),
        Invalid(
            f"{_HEAD}def f(model, p):\n    save_file({{k: (v.cpu()) {_OF_ITEMS}, p)\n",
            safe=True,
            fixed=f"{_HEAD}def f(model, p):\n    save_file({{k: (v.cpu().contiguous()) {_OF_ITEMS}, p)\n",
        ),
        Invalid(
            f"{_HEAD}def f(p):\n    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))\n    {_CONVERTED}\n"
            "    save_file(model.state_dict(), p)\n"
        ),
        Invalid(
            f"{_HEAD}def f(model, p):\n    save_file(model.state_dict(), p)\n",
            fixed=f"{_HEAD}def f(model, p):\n    save_file({{k: v.contiguous() {_OF_ITEMS}, p)\n",
            message="`model.state_dict()`",
        ),
        Invalid(
            "import safetensors.torch as st\ndef f(model):\n    state = model.state_dict()\n    return st.save(state)\n",
            fixed=(
                "import safetensors.torch as st\ndef f(model):\n    state = model.state_dict()\n"
                "    return st.save({k: v.contiguous() for k, v in state.items()})\n"
            ),
        ),
        Invalid(
            "import safetensors.torch\ndef f(model, p, state=None):\n    if state is None:\n"
            "        state = model.state_dict()\n    safetensors.torch.save_file(state, p)\n"
        ),
        Invalid(
            "from safetensors import torch as st\ndef f(self, p):\n    st.save_file(filename=p, tensors=self.model.state_dict())\n"
        ),
        Invalid(
            f"{_HEAD}def f(model, p):\n    save_file({{'m.' + k: v {_OF_ITEMS}, p)\n",
            fixed=f"{_HEAD}def f(model, p):\n    save_file({{'m.' + k: v.contiguous() {_OF_ITEMS}, p)\n",
        ),
        Invalid(
            f"{_HEAD}def f(model, p):\n    save_file({{k: v.detach().cpu() {_OF_ITEMS}, p)\n",
            fixed=f"{_HEAD}def f(model, p):\n    save_file({{k: v.detach().cpu().contiguous() {_OF_ITEMS}, p)\n",
        ),
        Invalid(
            f"{_HEAD}def f(model, p):\n    state = {{k: v.half() {_OF_ITEMS}\n    save_file(state, p)\n",
            fixed=f"{_HEAD}def f(model, p):\n    state = {{k: v.half() {_OF_ITEMS}\n"
            "    save_file({k: v.contiguous() for k, v in state.items()}, p)\n",
        ),
        Invalid(
            f"{_HEAD}def f(model, p):\n    state = model.state_dict()\n    state = {{k: v for k, v in state.items()}}\n"
            "    save_file(dict(state), p)\n",
        ),
        Invalid(f"{_HEAD}def f(model, p):\n    save_file(model.state_dict().copy(), p)\n"),
        Invalid(f"{_HEAD}def f(model, p):\n    {_CONVERTED}\n    save_file(model.state_dict(), p)\n"),
        Invalid(
            f"{_HEAD}def f(p):\n    model = Net()\n    {_CONVERTED}\n    save_file(model.state_dict(), p)\n"
        ),
        Invalid(
            f"{_HEAD}def f(name, p):\n    model = MODELS[name]()\n    state = model.state_dict()\n    del state._metadata\n"
            "    hook(p)(state)\n    save_file(state, p)\n"
        ),
        Invalid(
            f"{_HEAD}class T:\n    def __init__(self):\n        self.model = UNet()\n    def f(self, x, p):\n"
            f"        self.{_CONVERTED}\n        save_file((self.model.state_dict() or x), p)\n",
            fixed=f"{_HEAD}class T:\n    def __init__(self):\n        self.model = UNet()\n    def f(self, x, p):\n"
            f"        self.{_CONVERTED}\n        save_file((self.model.state_dict() or x), p)\n",
        ),
        Invalid(f"{_HEAD}def f(t, p):\n    model = t.get_model()\n    save_file(model.state_dict(), p)\n"),
        Invalid(f"{_HEAD}def f(t, p):\n    model = unwrap(t.model)\n    save_file(model.state_dict(), p)\n"),
        Invalid(f"{_HEAD}def conv(self, p):\n    save_file(self.state_dict(), p)\n"),
        Invalid(f"{_HEAD}def f(net, p):\n    ema = EMA(net)\n    save_file(ema.state_dict(), p)\n"),
        Invalid(
            f"{_HEAD}def f(p):\n    model = torch.nn.Conv2d(3, 8, 3)\n    {_CONVERTED}\n    save_file(model.state_dict(), p)\n"
        ),
        Invalid(
            f"{_HEAD}def f(model, p):\n    model.to(memory_format=torch.contiguous_format)\n    {_CONVERTED}\n"
            "    save_file(model.state_dict(), p)\n"
        ),
        Invalid(
            f"{_HEAD}def f(model, x, p):\n    x.to(memory_format=torch.contiguous_format)\n    save_file(model.state_dict(), p)\n"
        ),
        Invalid(
            f"{_HEAD}def f(model, p):\n    save_file(model.state_dict(), p)\n    model.to(memory_format=torch.contiguous_format)\n"
        ),
    )
    proof = Proof(
        Claim.RAISES,
        flagged="def run(model, path):\n    save_file(model.state_dict(), path)\n",
        recommended=(
            "def run(model, path):\n"
            "    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)\n"
        ),
        inputs="(nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last), os.devnull)",
        setup="import os\nimport torch\nfrom torch import nn\nfrom safetensors.torch import save_file\n",
        error="non contiguous tensor",
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        import libcst as cst

        for call in flow.calls:
            if (
                isinstance(call.func, cst.Attribute)
                and call.func.attr.value == "state_dict"
                and _may_be_channels_last(flow, call.func.value, call)
            ):
                for state in _saved(flow, call):
                    yield self._finding(flow, call, state)

    def _finding(self, flow: Flow, made: cst.Call, state: cst.BaseExpression) -> Finding:
        return self.finding(
            flow,
            state,
            f"`{flow.positions.shown(made)}` is saved as it is: if a weight is channels_last, safetensors raises "
            "`ValueError: You are trying to save a non contiguous tensor`",
            help="save `{k: v.contiguous() for k, v in ...}`, or call `safetensors.torch.save_model(model, path)`",
            fix=_fix(flow, state),
        )


def _saved(flow: Flow, made: cst.Call) -> list[cst.BaseExpression]:
    """Where the state dict, or a copy of it, is given to safetensors; nowhere if something may change its tensors."""
    from ._chains import verdicts

    found = list(verdicts(flow, made, partial(_fate, flow, made)))
    return [] if None in found else [use for use in found if use is not None]


def _fate(
    flow: Flow, made: cst.Call, use: cst.BaseExpression
) -> cst.BaseExpression | list[cst.BaseExpression] | None:
    """``use`` if it is saved; None if its tensors may change there; else what holds it further on."""
    saved = _saving_call(flow, use)
    if saved is not None:
        return [] if _WITHOUT_CONVOLUTIONS.search(_said_around(flow, saved, made)) else use
    return None if _changes_tensors(flow, use) else _copies(flow, use)


def _saving_call(flow: Flow, use: cst.BaseExpression) -> cst.Call | None:
    """The call that saves ``use``, if it is what is saved."""
    import libcst as cst

    from esper_guard.lint.flow.dotted import dotted

    arg = flow.parent(use)
    call = flow.parent(arg) if isinstance(arg, cst.Arg) else None
    if not isinstance(arg, cst.Arg) or not isinstance(call, cst.Call):
        return None
    is_tensors = arg.keyword.value == "tensors" if arg.keyword is not None else arg is call.args[0]
    return call if is_tensors and flow.names.resolve(dotted(call.func) or "") in _SAVES else None


def _said_around(flow: Flow, saving: cst.Call, made: cst.Call) -> str:
    return f"{flow.function_name(saving)} {flow.positions.one_line(saving)} {flow.positions.one_line(made)}"


def _changes_tensors(flow: Flow, use: cst.BaseExpression) -> bool:
    """``state[k] = ...``, ``state.update(...)``, or any function that takes it and might."""
    import libcst as cst

    from esper_guard.lint.flow.dotted import dotted

    parent = flow.parent(use)
    if isinstance(parent, cst.Subscript):
        return isinstance(flow.parent(parent), cst.AssignTarget)
    if isinstance(parent, cst.Attribute):
        return parent.attr.value == "update"
    if not isinstance(parent, cst.Arg):
        return False
    call = flow.parent(parent)
    return isinstance(call, cst.Call) and "contiguous" in (dotted(call.func) or "")


def _copies(flow: Flow, use: cst.BaseExpression) -> list[cst.BaseExpression]:
    """A dictionary with the same tensors, or tensors laid out like them: ``dict(state)``, ``{k: v.cpu() for ...}``."""
    import libcst as cst

    parent = flow.parent(use)
    call = flow.parent(parent) if parent is not None else None
    if not isinstance(call, cst.Call):
        return []
    if isinstance(parent, cst.Arg):
        return [call] if flow.origin(call.func) in ("dict", "collections.OrderedDict") else []
    if not isinstance(parent, cst.Attribute):
        return []
    if parent.attr.value == "copy":
        return [call]
    loop = flow.parent(call)
    comprehension = flow.parent(loop) if isinstance(loop, cst.CompFor) else None
    if not isinstance(comprehension, cst.DictComp):
        return []
    is_other = _WITHOUT_CONVOLUTIONS.search(flow.positions.one_line(comprehension))
    return [comprehension] if _keeps_layout(comprehension) and not is_other else []


def _keeps_layout(comprehension: cst.DictComp) -> bool:
    """Whether its values are those of the items, perhaps moved or cast."""
    import libcst as cst

    value, target = comprehension.value, comprehension.for_in.target
    while (
        isinstance(value, cst.Call)
        and isinstance(value.func, cst.Attribute)
        and value.func.attr.value in ("cpu", "detach", "clone", "to", "half", "float", "bfloat16")
    ):
        value = value.func.value
    return isinstance(target, cst.Tuple) and value.deep_equals(target.elements[-1].value)


def _may_be_channels_last(flow: Flow, model: cst.BaseExpression, saved: cst.Call) -> bool:
    """Not if it was made here and never converted, was converted back, or has no convolution."""
    from ._paths import Conversion, conversion, is_within, place

    if _has_no_convolution(flow, model):
        return False
    name = place(flow, model)
    formats: list[Conversion] = []
    for call in flow.calls:
        if call is saved:
            break
        converted = conversion(flow, call)
        if converted is not None and is_within(name, converted.module):
            formats.append(converted)
    if formats:
        return formats[-1].memory_format != "contiguous_format"
    return not _is_made_here(flow, model)


def _has_no_convolution(flow: Flow, model: cst.BaseExpression) -> bool:
    if flow.positions.one_line(model) == "self" and "conv" not in flow.positions.source.text.lower():
        return True
    made = flow.facts(model).made
    return bool(made) and all(
        one.origin.startswith("torch.nn.") and not one.parts and "Conv" not in one.origin for one in made
    )


def _is_made_here(flow: Flow, model: cst.BaseExpression) -> bool:
    import libcst as cst

    from esper_guard.lint.flow.dotted import dotted

    from ._paths import object_of

    made = flow.made_by(object_of(model))
    made = object_of(made) if isinstance(made, cst.BaseExpression) else None
    if not isinstance(made, cst.Call):
        return False
    is_maker = flow.origin(made.func) or _MAKERS.search(dotted(made.func) or "")
    return bool(is_maker) and not any(_MODEL.search(flow.positions.one_line(arg.value)) for arg in made.args)


def _fix(flow: Flow, state: cst.BaseExpression) -> Fix | None:
    import libcst as cst

    positions = flow.positions
    if isinstance(state, cst.DictComp):
        _, end = positions.span(state.value)
        edits: tuple[Edit, ...] = (positions.edit(end, end, ".contiguous()"),)
    elif isinstance(state, (cst.Name, cst.Attribute, cst.Subscript, cst.Call)):
        start, end = positions.span(state)
        edits = (
            positions.edit(start, start, "{k: v.contiguous() for k, v in "),
            positions.edit(end, end, ".items()}"),
        )
    else:
        return None
    return Fix("Make what is saved contiguous", True, edits)
