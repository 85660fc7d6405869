"""# native-pointer-layout (EG308)

A tensor's address is handed to native code, which can't see its strides.

## What it does

Flags `x.data_ptr()` given to TensorRT (`set_tensor_address`, `execute_v2`), to an ONNX Runtime binding, or to any call
that also gets the shape of `x` (`ctypes` functions, MNN, CuPy kernels), where `x` comes from a parameter and nothing in
the function makes it contiguous or asks whether it is.

## Why is this bad?

Native code reads memory in the order it expects, mostly that of the shape (NCHW). A channels_last tensor has the same
shape and another order, and so has a permuted one: its numbers are read as those of other pixels and channels. There
is no error; the result is wrong.

## Example

```python
def forward(self, image):
    return self.net.run(image.data_ptr(), image.shape)
```

## Use instead

```python
def forward(self, image):
    image = image.contiguous()  # and keep it alive while its memory is read
    return self.net.run(image.data_ptr(), image.shape)
```

Not `image.contiguous().data_ptr()`: a copy made there is freed before the address is used.

## When it stays silent

- Where a comment on the line, or above it, gives a reason for the layout.
- `x` is made by `contiguous(...)`, by a conversion that names a memory format, by a factory, or by anything else that
  is not known to keep the layout of a parameter.
- The function asks `x.is_contiguous(...)`, or reads the strides of `x`.
- `x` is provably no 4-D or 5-D tensor.
- The address is compared, hashed, logged, a key or an entry of a container, or the call gets neither the shape of
  `x` nor three of its sizes: native code may then go through memory element by element.

It can't see a check by the caller, nor one inside the native code, nor buffers that are kept in attributes.

## Fix safety

The fix makes `x` contiguous in a statement before. It is unsafe: it copies `x` if it is not contiguous, and native
code that writes to the address would write to the copy.

## References

- [torch.Tensor.data_ptr](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.data_ptr.html)
- [Channels last memory format](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
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
    from esper_guard.lint.flow.values import Value
    from esper_guard.lint.outline import Outline

_POINTER = re.compile(rb"data_ptr[\s\\]*\(")
_NAME_BEFORE = re.compile(rb"(?<![.\w\])])\w+[\s\\]*\.[\s\\]*\Z")
_LONGEST_NAME = 80
# Methods of TensorRT and ONNX Runtime, which know the shape already.
_RUNTIMES = frozenset(
    "set_tensor_address execute execute_v2 execute_async execute_async_v2 bind_input".split()
)
_SHAPE = frozenset(("shape", "size"))
_AWARE = frozenset(("is_contiguous", "stride", "strides"))
_RUNTIME = re.compile(rf"\A(?:{'|'.join(sorted(_RUNTIMES))})\Z|binding", re.IGNORECASE)
_BINDINGS = re.compile(r"binding", re.IGNORECASE)
_NOT_NATIVE = re.compile(
    r"print|log|debug|info|warn|key|hash|cache|format|repr|str\b|append|add|get|default|Error|assert|equal|same|check",
    re.IGNORECASE,
)
_LAYOUT_KEEPING = frozenset(
    """
    abs bfloat16 clamp clamp_ clip clone cpu cuda detach detach_ div div_ double float half mul mul_ pin_memory
    requires_grad_ sub sub_ to type xpu permute transpose swapaxes swapdims movedim moveaxis
    """.split()
)


class NativePointerLayout(Rule):
    """Looks at each address that is taken, then at who gets it, and at where the tensor comes from."""

    code = "EG308"
    name = "native-pointer-layout"
    severity = Severity.WARNING
    heeds_reasons = True
    only_with_channels_last = True
    in_tests = False
    triggers = (rb"data_ptr", lambda text: _addresses(text), rb"shape|size|execute|set_tensor_address|bind")
    proof = Proof(
        Claim.WRONG,
        flagged="def run(x):\n    return read(x.data_ptr(), x.shape)\n",
        recommended="def run(x):\n    x = x.contiguous()\n    return read(x.data_ptr(), x.shape)\n",
        inputs="(torch.arange(48.0).view(1, 3, 4, 4).to(memory_format=torch.channels_last),)",
        setup=(
            "import ctypes\n"
            "import torch\n"
            "def read(address, shape):\n"
            "    numbers = (ctypes.c_float * shape.numel()).from_address(address)\n"
            "    return torch.tensor(list(numbers)).view(shape)\n"
        ),
        reference="inputs[0]",
    )

    valid = (
        "def f(x):\n    lib.run(x.data_ptr(), x.shape)  # the kernel takes any layout\n",
        "def f(x):\n    x = x.contiguous()\n    lib.run(x.data_ptr(), x.shape)\n",
        "def f(x):\n    if not x.is_contiguous():\n        x = x.contiguous()\n    lib.run(x.data_ptr(), x.shape)\n",
        "def f(x):\n    assert x.is_contiguous()\n    lib.run(x.data_ptr(), x.shape)\n",
        "import torch\ndef f(n):\n    x = torch.empty(n)\n    lib.run(x.data_ptr(), x.shape)\n",
        "def f(x):\n    lib.run(x.data_ptr(), x.shape, x.stride(0))\n",
        "def f(x):\n    lib.run(x.data_ptr(), x.numel())\n",
        "def f(x, y):\n    lib.run(x.data_ptr(), y.shape)\n",
        (
            "def f(x, y):\n    note(x.shape)\n    n, c, h, w = y.shape\n"
            "    lib.run(x.data_ptr(), y.shape, y.mean(1).shape, n, c, h)\n"
        ),
        (
            "def f(self, d, x):\n    self.x = x.half()\n    d.set_tensor_address('x', self.x.data_ptr())\n"
            "    log.debug(x.data_ptr())\n"
        ),
        "def f(x):\n    x = g(x)\n    lib.run(x.data_ptr(), x.shape)\n",
        "import torch\ndef f(x):\n    x = x.to(memory_format=torch.channels_last)\n    lib.run(x.data_ptr(), x.shape)\n",
        "def f(x):\n    assert x.dim() == 3\n    lib.run(x.data_ptr(), x.shape)\n",
        "def f(x):\n    b, n, c = x.shape\n    lib.run(x.data_ptr(), b, n, c)\n",
        "def f(lib, x):\n    def g():\n        lib.run(x.data_ptr(), x.shape)\n    return g\n",
        "def f(lib, x):\n    lib.run(x.data_ptr(), x.size(0), x.shape[1])\n",
        "def f(x):\n    print(x.data_ptr(), x.shape)\n",
        "def f(x):\n    return hash((x.data_ptr(), x.shape))\n",
        "def f(x, y):\n    return x.data_ptr() == y.data_ptr() and x.shape == y.shape\n",
        "def f(x):\n    key = (x.data_ptr(), x.shape)\n    return lookup(key)\n",
        "def f(x):\n    self.seen[x.data_ptr()] = x.shape\n",
        "def f(x):\n    seen.last['a'] = x.data_ptr(), x.shape\n    seen.last['b'] = x.data_ptr()\n",
        "def f(x):\n    lib.run(x.storage().data_ptr(), x.shape)\n",
        "def f(x):\n    lib.run(x.data_ptr(4), x.shape)\n",
        "def f(x):\n    lib.run(x.tell(), x.shape)\n    return x.data_ptr()\n",
        "def f(lib, x):\n    lib.run(x.half().data_ptr(), x.shape)\n",
        "def f(self, name):\n    self.context.set_tensor_address(name, self.buffer.data_ptr())\n",
        "def f(self, d):\n    for name, x in self.kept.items():\n        d.set_tensor_address(name, x.data_ptr())\n",
        "def f(self, d, x):\n    for name, x in d.pairs():\n        d.set_tensor_address(name, x.data_ptr())\n",
        "def f(x):\n    n, c, h, w = x.shape\n    lib.run(x.data_ptr(), other)\n",
    )
    invalid = (
        Invalid(
            "import torch\nclass B:\n    def forward(self, im: torch.Tensor) -> list:\n"
            "        v = self.expr.const(im.data_ptr(), im.shape)\n        return self.net(v)\n",
            safe=False,
            fixed="import torch\nclass B:\n    def forward(self, im: torch.Tensor) -> list:\n"
            "        im = im.contiguous()\n        v = self.expr.const(im.data_ptr(), im.shape)\n        return self.net(v)\n",
            message="`self.expr.const(im.data_ptr(), im.shape)`",
        ),
        Invalid(
            "def f(ctx, x):\n    ctx.set_tensor_address('x', x.data_ptr())\n",
            fixed="def f(ctx, x):\n    x = x.contiguous()\n    ctx.set_tensor_address('x', x.data_ptr())\n",
        ),
        Invalid("def f(ctx, x, y):\n    ctx.execute_v2(bindings=[int(x.data_ptr()), y])\n"),
        Invalid("def f(lib, x):\n    p = x.data_ptr()\n    note(p)\n    lib.run(p, x.shape)\n    note(p)\n"),
        Invalid(
            "def f(lib, x, n):\n    while n():\n        x = x.half()\n        lib.run(x.data_ptr(), x.shape)\n"
        ),
        Invalid("def f(self, x, n):\n    self.kernels[n](x.data_ptr(), x.shape)\n"),
        Invalid("def f(lib, x):\n    lib.run(x.data_ptr(), x.size())\n"),
        Invalid(
            "def f(lib, x, y):\n    assert x.is_contiguous()\n    lib.run(x.data_ptr(), x.shape, y.data_ptr(), y.shape)\n",
            message="`y`",
        ),
        Invalid("def f(ctx, xs):\n    for x in xs:\n        ctx.set_tensor_address(x.name, x.data_ptr())\n"),
        Invalid("def f(ctx, x, y):\n    at = [x.data_ptr(), y]\n    ctx.execute_v2(at)\n"),
        Invalid("def f(io, x):\n    io.bind_input('x', shape=tuple(x.shape), buffer_ptr=x.data_ptr())\n"),
        Invalid("def f(self, x):\n    self.binding_addrs['images'] = int(x.data_ptr())\n    self.run()\n"),
        Invalid(
            "import ctypes\ndef f(lib, x):\n    n, c, h, w = x.shape\n    p = ctypes.c_void_p(x.data_ptr())\n"
            "    lib.run(p, n, c, h, w)\n",
            fixed="import ctypes\ndef f(lib, x):\n    n, c, h, w = x.shape\n    x = x.contiguous()\n"
            "    p = ctypes.c_void_p(x.data_ptr())\n    lib.run(p, n, c, h, w)\n",
        ),
        Invalid(
            "def f(lib, x):\n    x = x.half()\n    lib.run(x.data_ptr(), x.size(0), x.size(1), x.shape[2])\n"
        ),
        Invalid(
            "def f(lib, x, half):\n    if half:\n        x = x.half()\n    x = x.permute(0, 2, 3, 1)\n"
            "    if lib.run(x.data_ptr(), *x.shape):\n        return x\n",
            fixed="def f(lib, x, half):\n    if half:\n        x = x.half()\n    x = x.permute(0, 2, 3, 1)\n"
            "    if lib.run(x.data_ptr(), *x.shape):\n        return x\n",
        ),
        Invalid(
            "def f(ctx, inputs):\n    for name, x in inputs.items():\n        ctx.set_tensor_address(name, x.data_ptr())\n"
        ),
        Invalid(
            "def f(lib):\n    def g(x):\n        lib.run(x.data_ptr(), x.shape)\n    return g\n",
            fixed="def f(lib):\n    def g(x):\n        x = x.contiguous()\n        lib.run(x.data_ptr(), x.shape)\n"
            "    return g\n",
        ),
        Invalid(
            "def f(lib):\n    g = lambda x: lib.run(x.data_ptr(), x.shape)\n    return g\n",
            fixed="def f(lib):\n    g = lambda x: lib.run(x.data_ptr(), x.shape)\n    return g\n",
        ),
    )

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether an address is taken of something whose shape is read, or for a runtime that knows it already."""
        from esper_guard.lint.outline import written

        addressed = {
            written(call.func.value)
            for call in outline.called("data_ptr")
            if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
        }
        attributes = [
            (written(node.value), node.attr) for node in outline.nodes if isinstance(node, ast.Attribute)
        ]
        addressed -= {place for place, attribute in attributes if attribute in _AWARE}
        has_shape = any(place in addressed and attribute in _SHAPE for place, attribute in attributes)
        return bool(addressed) and (has_shape or any(map(_RUNTIME.search, outline.words)))

    def check(self, flow: Flow) -> Iterator[Finding]:
        for call in flow.calls:
            tensor = _addressed(flow, call)
            if tensor is None:
                continue
            consumer = _native_consumer(flow, call, tensor.value)
            if consumer is not None and _is_as_given(flow, tensor) and not _is_aware(flow, tensor):
                yield self._finding(flow, call, tensor, consumer)

    def _finding(self, flow: Flow, call: cst.Call, tensor: cst.Name, consumer: cst.BaseExpression) -> Finding:
        shown, name = flow.positions.shown(consumer), tensor.value
        return self.finding(
            flow,
            call,
            f"`{shown}` gets the address of `{name}` without its strides: a channels_last or permuted `{name}` is read as "
            "scrambled numbers",
            help=f"write `{name} = {name}.contiguous()` before, and keep it alive while its memory is read",
            fix=_fix(flow, call, name),
        )


def _addresses(text: bytes) -> Iterator[int]:
    """Where the address of something is taken that has a name: ``x.data_ptr()``, not ``self.x.data_ptr()``."""
    for call in _POINTER.finditer(text):
        if _NAME_BEFORE.search(text, max(0, call.start() - _LONGEST_NAME), call.start()):
            yield call.start()


def _addressed(flow: Flow, call: cst.Call) -> cst.Name | None:
    """``x`` for ``x.data_ptr()``, where it may be of rank 4 or 5."""
    import libcst as cst

    from esper_guard.lint.flow import can_be_image

    if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "data_ptr" or call.args:
        return None
    tensor = call.func.value
    return tensor if isinstance(tensor, cst.Name) and can_be_image(flow.facts(tensor)) else None


def _native_consumer(flow: Flow, pointer: cst.BaseExpression, name: str) -> cst.BaseExpression | None:
    """The call that gets the address and reads what is there, as far as its name or its other arguments tell."""
    import libcst as cst

    for use in flow.uses(pointer):
        parent = flow.parent(use)
        if isinstance(use, cst.Subscript) and _BINDINGS.search(flow.positions.one_line(use.value)):
            return use
        container = flow.parent(parent) if isinstance(parent, cst.Element) else None
        found: cst.BaseExpression | None
        if isinstance(container, (cst.List, cst.Tuple)):
            found = _runtime_given(flow, container)
        else:
            call = flow.parent(parent) if isinstance(parent, cst.Arg) else None
            found = _reader(flow, call, name) if isinstance(call, cst.Call) else None
        if found is not None:
            return found
    return None


def _reader(flow: Flow, call: cst.Call, name: str) -> cst.BaseExpression | None:
    origin = _written(call)
    function = origin.rpartition(".")[2]
    if function == "int" or flow.origin(call.func).startswith("ctypes."):
        return _native_consumer(flow, call, name)
    if function in _RUNTIMES:
        return call
    return call if _gets_shape(flow, call, name) and not _NOT_NATIVE.search(function) else None


def _runtime_given(flow: Flow, container: cst.BaseExpression) -> cst.Call | None:
    import libcst as cst

    for use in flow.uses(container):
        parent = flow.parent(use)
        call = flow.parent(parent) if isinstance(parent, cst.Arg) else None
        if isinstance(call, cst.Call) and _written(call).rpartition(".")[2] in _RUNTIMES:
            return call
    return None


def _written(call: cst.Call) -> str:
    from esper_guard.lint.flow.dotted import dotted

    return dotted(call.func) or ""


def _gets_shape(flow: Flow, call: cst.Call, name: str) -> bool:
    """Whether the arguments hold the shape of ``name``, or three of its sizes: more than a matrix has."""
    import libcst as cst

    from ._chains import nodes_in

    unpacked = set(_sizes(flow, call, name))
    sizes: set[str] = set()
    for node in (node for argument in call.args for node in nodes_in(argument.value)):
        around = flow.parent(node)
        if isinstance(node, cst.Name) and node.value in unpacked:
            sizes.add(node.value)
        elif _reads(node, name, _SHAPE):
            is_one = isinstance(around, cst.Subscript) or (isinstance(around, cst.Call) and around.args)
            if around is None or not is_one:
                return True
            sizes.add(flow.positions.one_line(around))
    return len(sizes) > 2


def _sizes(flow: Flow, call: cst.Call, name: str) -> Iterator[str]:
    """The names in ``n, c, h, w = x.shape``."""
    import libcst as cst

    from ._chains import nodes_in

    for node in nodes_in(_root(flow, call)):
        if isinstance(node, cst.Assign) and any(_reads(one, name, _SHAPE) for one in nodes_in(node.value)):
            for target in node.targets:
                yield from (one.value for one in nodes_in(target) if isinstance(one, cst.Name))


def _reads(node: cst.CSTNode, name: str, attributes: frozenset[str]) -> bool:
    """Whether ``node`` is ``name.attribute``, for one of the attributes."""
    import libcst as cst

    return (
        isinstance(node, cst.Attribute)
        and node.attr.value in attributes
        and isinstance(node.value, cst.Name)
        and node.value.value == name
    )


def _root(flow: Flow, node: cst.CSTNode) -> cst.CSTNode:
    for ancestor in flow.ancestors(node):
        node = ancestor
    return node


def _is_aware(flow: Flow, tensor: cst.Name) -> bool:
    """Whether the function asks how ``tensor`` is laid out."""
    from ._chains import nodes_in

    return any(_reads(node, tensor.value, _AWARE) for node in nodes_in(_root(flow, tensor)))


def _is_as_given(flow: Flow, tensor: cst.BaseExpression) -> bool:
    """Whether ``tensor`` is laid out as the caller chose, or permuted: on every path, made of a parameter."""
    import libcst as cst

    seen: set[Value] = set()
    waiting = [flow.latest.get(tensor)]
    while waiting:
        value = waiting.pop()
        if value is None:
            return False
        if value in seen:
            continue
        seen.add(value)
        merged = [operand for operand, into in flow.values.merged_into.items() if value in into]
        if merged:
            waiting += merged
        elif isinstance(value.node, cst.Call):
            source = _with_its_layout(value.node)
            waiting.append(None if source is None else flow.latest.get(source))
        elif not isinstance(value.node, cst.Param) and not _is_item_of_parameter(flow, value.node):
            return False
    return True


def _with_its_layout(call: cst.Call) -> cst.BaseExpression | None:
    """The tensor of which ``call`` makes another that is laid out alike, or permuted."""
    import libcst as cst

    from ._chains import memory_format_argument

    if not isinstance(call.func, cst.Attribute) or call.func.attr.value not in _LAYOUT_KEEPING:
        return None
    names_format = memory_format_argument(list(call.args), call.func.attr.value) is not None
    return None if names_format else call.func.value


def _is_item_of_parameter(flow: Flow, target: object) -> bool:
    """Whether ``target`` takes the items of a parameter in a loop."""
    import libcst as cst

    for ancestor in flow.ancestors(target) if isinstance(target, cst.Name) else ():
        if isinstance(ancestor, cst.For):
            items = ancestor.iter
            if isinstance(items, cst.Call) and _written(items).endswith((".items", ".values")):
                items = cst.ensure_type(items.func, cst.Attribute).value
            return isinstance(flow.made_by(items), cst.Param)
    return False


def _fix(flow: Flow, call: cst.Call, name: str) -> Fix | None:
    """A statement before, which makes the tensor contiguous under its own name."""
    import libcst as cst

    for ancestor in flow.ancestors(call):
        if isinstance(ancestor, (cst.Lambda, cst.BaseComp)):
            return None
        if isinstance(ancestor, cst.SimpleStatementLine):
            start, _ = flow.positions.span(ancestor.body[0])
            text = flow.positions.source.text
            *_, newline, indent = re.split(r"(\r\n?|\n)", text[:start])
            added = f"{name} = {name}.contiguous(){newline}{indent}"
            message = f"Make `{name}` contiguous first; that copies it if it is not, and writes would go to the copy"
            return Fix(message, False, (flow.positions.edit(start, start, added),))
    return None
