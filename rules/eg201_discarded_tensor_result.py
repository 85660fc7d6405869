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
from esper_guard.lint.torch_names import ONLY_TENSORS_HAVE

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
_METHOD = rf"[ \t]*\.[ \t]*(?:{_CONVERSIONS}|{_SHAPES}|{_VALUES})[ \t]*"
_LONGEST_LINE = 1000
_CALL = re.compile(rf"{_METHOD}\(".removeprefix(r"[ \t]*").encode())
_PLACE = r"[A-Za-z_]\w*(?:\.\w+|\[[^\]\n]*\])*"
# What may stand between the start of a line and the method: a place, a call, the end of a chain, another statement.
_LINE_START = re.compile(
    rf"[ \t]*(?:{_PLACE}|[\w.\[\]]*\([^\n]*\)|[)\]}}]*|[^\n]*[;:][ \t]*{_PLACE}(?:\([^\n]*\))?)[ \t]*".encode()
)
# Masked code with its brackets collapsed: a statement that is nothing but a chain ending in one of the methods.
_BRACKETS = re.compile(r"[(\[{][^()\[\]{}]*[)\]}]")
_STATEMENT = re.compile(
    rf"(?:^|[;:])[ \t]*(?:\w+|\0)(?:[ \t]*\.[ \t]*\w+|\0)*{_METHOD}\0[ \t]*(?:;|$)", re.MULTILINE
)
_IN_BRACKETS = re.compile(r"(?:^|[;:])[ \t]*\0[ \t]*(?:;|$)", re.MULTILINE)
_SET_ADD = re.compile(rf"(?:^|[;:])[ \t]*({_PLACE})\.add[ \t]*\(", re.MULTILINE)
_OPENERS = (
    b"(",
    b"[",
    b"{",
    b"=",
    b"+",
    b"-",
    b"*",
    b"/",
    b"%",
    b"&",
    b"|",
    b"<",
    b">",
    b" and",
    b" or",
    b" not",
    b" in",
)
_ROOT = re.compile(rb"\w+")
# A plain container, nothing, or no binding at all but a call of the usual methods of a set.
_SET_LIKE = re.compile(rb"[ \t]*(?::[^=]*[sS]et[^=]*)?=(?!=)[ \t]*(?:\w*[sS]et\b|[{\[\"]|\w*dict\b|None\b)")
_BOUND_AFTER = re.compile(
    rb"[ \t]*(?::?=(?!=)|[-+*/@%&|^]=|:[^=]*(?:[tT]ensor|torch|Param))|\.(?:"
    + b"|".join(name.encode() for name in sorted(ONLY_TENSORS_HAVE))
    + rb")\(|[^\n]*\bin\b"
)
_BOUND_BEFORE = re.compile(rb"(?:isinstance|is_tensor)\([ \t]*[\w.]+\Z|\bas [\w.]+\Z|\bfor\b[^:]*\Z")
_BRACKET = re.compile(rb"[][(){}]")
_END = re.compile(rb"[ \t]*(?:[;#\\\r]|\Z)")
_COMPOUND = re.compile(rb"[ \t]*(?:if|elif|else|for|while|try|except|finally|with|async|case|def|class)\b")
_VALUE_IS_USED = re.compile(
    rb"[ \t]*(?:(?:return|raise|yield|assert|del|if|elif|while|for|with|print)\b|[^(\[{=!<>]*[^(\[{=!<>]=(?!=))"
)
_DISCARDABLE = frozenset(f"{_CONVERSIONS}|{_SHAPES}|{_VALUES}".split("|"))
_STARTS_A_DEVICE = frozenset(("cuda", "to", "xpu"))
# Context managers under which a call is made to see it fail or to be recorded.
_ON_PURPOSE = re.compile(
    r"raises|assert|warns|profil|trace|tracing|record|capture|count|flop|timer|timeit|fails|benchmark|Mode\b",
    re.IGNORECASE,
)


class DiscardedTensorResult(Rule):
    """Looks at each expression statement."""

    code = "EG201"
    name = "discarded-tensor-result"
    severity = Severity.ERROR
    triggers = (lambda text: _statements(text),)

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether a statement is such a call on what may be a tensor."""
        from esper_guard.lint.tensors import Tensors

        tensors = Tensors(outline)
        return any(
            isinstance(node, ast.Expr) and _may_be_discarded(node.value, outline, tensors) for node in outline.nodes
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
        "import torch\nclass Boxes:\n    pass\ndef f(b: Boxes):\n    b.clamp(0, 1, inplace=True)\n",
        "import torch\nclass Net(torch.nn.Module):\n    def f(self, d):\n        self.net.to(d)\n        self.to(d)\n",
        "import torch\ndef f(x, d):\n    if not isinstance(x, torch.Tensor):\n        x.to(d)\n",
        "import torch\ndef f(d):\n    x = torch.zeros(3)\n    x = Batch(x)\n    x.to(d)\n",
    )
    invalid = (
        Invalid(
            "import torch\ndef f(d):\n    x = torch.zeros(3)\n    x.to(d)\n    return x\n",
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
        Invalid("def f(x, d):\n    y = x.unsqueeze(0)\n    y.half()\n    return y\n"),
        Invalid("import torch\ndef f(x, y):\n    z = torch.cos(y) * x - 1\n    z.detach()\n    return z\n"),
        Invalid("import torch\ndef f(self):\n    self.w = torch.ones(3)\n    self.w.float()\n"),
        Invalid(
            "import torch\ndef f(loader, d):\n    x, y = next(iter(loader))\n    x = x.to(d)\n"
            "    x.to(memory_format=torch.channels_last)\n    return x\n"
        ),
        Invalid("import torch\ndef f(d):\n    for v in [torch.ones(3), torch.ones(2)]:\n        v.to(d)\n"),
        Invalid("import torch\ndef f(x: torch.Tensor):\n    if x.numel(): x.clamp(0, 1)\n"),
        Invalid("import torch\ndef f(x: torch.Tensor):\n    x.permute(0, 2, 1).contiguous()\n    return x\n"),
        Invalid(
            "import torch\ndef f(x: torch.Tensor, d):\n    (\n        x\n        .to(d)\n    )\n    return x\n"
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
            if method not in _DISCARDABLE or flow.origin(call.func) or _names_inplace(call):
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
        return self.finding(
            flow,
            call,
            f"`{written}` does nothing: `{method}` returns a new tensor and leaves `{shown}` as it is",
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


def _statements(text: bytes) -> Iterator[int]:
    """Where one of the methods is called as far as a statement could end with it."""
    known: dict[bytes, bool] = {}
    for call in _CALL.finditer(text):
        line = text.rfind(b"\n", 0, call.start()) + 1
        if call.start() - line > _LONGEST_LINE:  # not worth the look: looking further in costs more each time
            yield call.start()
            continue
        head = _LINE_START.fullmatch(text, line, call.start())
        if (
            head is None
            or not _ends_statement(text, call.end())
            or not _begins_statement(text, line, head[0])
        ):
            continue
        if call[0].startswith(b".add") and not _may_be_bound_to_tensor(text, head[0].strip(), known):
            continue
        yield call.start()


def _may_be_bound_to_tensor(text: bytes, place: bytes, known: dict[bytes, bool]) -> bool:
    """Whether ``place``, of which ``add`` is called, is bound to anything but a set; calls and the like may be anything."""
    name = _ROOT.match(place)
    if name is None or b"(" in place or b";" in place or b":" in place:
        return True
    names = {place} if name[0] in (b"self", b"cls") else {place, name[0]}
    for one in names - known.keys():
        known[one] = any(_binds(text, match) for match in _occurrences(text, one))
    return any(known[one] for one in names)


def _occurrences(text: bytes, name: bytes) -> Iterator[int]:
    """Where ``name`` ends as a whole name: a search for a plain string, which is much faster than a pattern."""
    at = text.find(name)
    while at >= 0:
        end = at + len(name)
        if (
            not (text[at - 1 : at].isalnum() or text[at - 1 : at] in (b"_", b"."))
            and not text[end : end + 1].isalnum()
        ):
            yield end
        at = text.find(name, end)


def _binds(text: bytes, end: int) -> bool:
    """Whether the name that ends at ``end`` is bound there to what may be a tensor, or used as only tensors are."""
    line = text.rfind(b"\n", 0, end) + 1
    stop = text.find(b"\n", end)
    after = text[end : len(text) if stop < 0 else stop]
    if _SET_LIKE.match(after):
        return False
    before = text[line:end]
    return (
        _BOUND_AFTER.match(after) is not None
        or _BOUND_BEFORE.search(before) is not None
        or (b"=" in after and (b"," in after.partition(b"=")[0] or b"," in before))
    )


def _ends_statement(text: bytes, start: int) -> bool:
    """Whether nothing but the end of a statement may follow the call whose arguments begin at ``start``."""
    end = text.find(b"\n", start)
    rest = text[start : len(text) if end < 0 else end]
    if b'"' in rest or b"'" in rest:
        return True
    depth = 1
    for bracket in _BRACKET.finditer(rest):
        depth += 1 if bracket[0] in b"([{" else -1
        if depth == 0:
            return _END.match(rest, bracket.end()) is not None
    return True


def _begins_statement(text: bytes, line: int, head: bytes) -> bool:
    """Whether a statement may begin on the line at ``line``, or be what the bracket closed there belongs to."""
    first = head.strip()[:1]
    if first and first in b")]}":
        opening = _line_indented_at_most(text, line, len(head) - len(head.lstrip()))
        return _VALUE_IS_USED.match(opening) is None
    if b":" in head and _COMPOUND.match(head) is None and b";" not in head:
        return False  # a lambda, a dictionary
    return not _is_continuation(text, line)


def _line_indented_at_most(text: bytes, line: int, indent: int) -> bytes:
    """The nearest line before ``line`` that is not indented further than ``indent``; empty if there is none."""
    while line > 0:
        end = line - 1
        line = text.rfind(b"\n", 0, end) + 1
        code = text[line:end]
        if code.strip() and len(code) - len(code.lstrip()) <= indent:
            return code
    return b""


def _is_continuation(text: bytes, line: int) -> bool:
    """Whether the line at ``line`` goes on with what a bracket or an operator on the line before began."""
    before = _code_before(text, line)
    if before.endswith(_OPENERS):
        return True
    if not before.endswith(b","):
        return False
    if before.count(b"(") + before.count(b"[") > before.count(b")") + before.count(b"]"):
        return True
    own = text[line : line + 200]
    above = _line_indented_at_most(text, line, len(own) - len(own.lstrip()) - 1)
    return above.rstrip().endswith((b"(", b"[", b"{"))


def _code_before(text: bytes, line: int) -> bytes:
    """The code of the line before, without its comment; empty where a string may hold what looks like one."""
    start = text.rfind(b"\n", 0, max(line - 1, 0)) + 1
    before = text[start : max(line - 1, 0)]
    code, mark, _ = before.partition(b"#")
    return b"" if mark and (b'"' in code or b"'" in code) else code.rstrip()


def _names_inplace(call: cst.Call) -> bool:
    return any(arg.keyword is not None and arg.keyword.value in ("inplace", "out") for arg in call.args)


def _is_on_purpose(flow: Flow, statement: cst.Expr, receiver: cst.BaseExpression, method: str) -> bool:
    """Where a call is made to see it fail, to be recorded, or to start a device."""
    import libcst as cst

    if method in _STARTS_A_DEVICE and isinstance(receiver, cst.Call) and flow.origin(receiver.func):
        return True
    child: cst.CSTNode = statement
    for ancestor in flow.ancestors(statement):
        if isinstance(ancestor, (cst.Try, cst.TryStar)) and child is ancestor.body and ancestor.handlers:
            return True
        if isinstance(ancestor, cst.With):
            managers = (
                item.item.func if isinstance(item.item, cst.Call) else item.item for item in ancestor.items
            )
            names = (flow.positions.one_line(manager) for manager in managers)
            if any(_ON_PURPOSE.search(name) and "inference_mode" not in name for name in names):
                return True
        if isinstance(ancestor, cst.FunctionDef):
            break
        child = ancestor
    return False


def _fix(flow: Flow, call: cst.Call, receiver: cst.BaseExpression, method: str) -> Fix | None:
    """Assign the result back: for a conversion, that is what was meant."""
    import libcst as cst

    positions = flow.positions
    start, _ = positions.span(call)
    if method not in _CONVERSIONS.split("|") or "\n" in positions.text(call) or call.lpar:
        return None
    if not isinstance(receiver, (cst.Name, cst.Attribute)):
        return None
    return Fix("Assign the result", False, (positions.edit(start, start, f"{positions.text(receiver)} = "),))
