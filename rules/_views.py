"""Views that merge dimensions which do not lie next to each other in a channels_last tensor."""

from __future__ import annotations

import ast
import enum
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import libcst as cst

from esper_guard.lint.flow.literals import whole_number
from esper_guard.lint.torch_names import TENSOR_METADATA

from ._chains import verdicts
from ._triggers import MOST_SIZES

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline
    from esper_guard.lint.rule import Fix

_READS = frozenset(
    """
    abs add all any argmax argmin bmm clamp clone cos cpu cumsum div dot eq exp float half item log log_softmax matmul
    max mean median min mm mul mv neg norm numel pow prod round sigmoid sign sin size softmax sort sqrt square std sub
    sum tanh tolist topk type_as var double bfloat16 dim histc kthvalue logsumexp ne gt ge lt le
    """.split()
)
_KEEPS_MEMORY = frozenset(
    """
    chunk detach expand flatten narrow permute reshape select split squeeze t to transpose unflatten unsqueeze view
    """.split()
)
_COMPUTING_MODULES = ("torch", "torch.nn.functional", "torch.linalg")
_READ_THEIR_ARGUMENTS = frozenset("add add_ copy_ div_ dot matmul mm mul mul_ sub sub_".split())
_READING_MODULES = frozenset(
    f"torch.nn.{name}" for name in ("Linear", "Bilinear", "BatchNorm1d", "LayerNorm")
)


class View(NamedTuple):
    """``receiver.view(*sizes)``."""

    call: cst.Call
    receiver: cst.BaseExpression
    sizes: tuple[cst.BaseExpression, ...]


class Called(NamedTuple):
    """A call of ``view`` in an outline."""

    receiver: ast.expr
    sizes: list[ast.expr]


def called_views(outline: Outline) -> Iterator[Called]:
    """The calls of ``view`` with few sizes, unless it is given a shape or a dtype by name."""
    for call in outline.called("view"):
        if not isinstance(call.func, ast.Attribute):
            continue
        receiver = call.func.value
        sizes = [*call.args, *(keyword.value for keyword in call.keywords)]
        if len(sizes) > 1 and _is_class(receiver):
            receiver, *sizes = sizes
        if len(sizes) == 1 and isinstance(sizes[0], (ast.Tuple, ast.List)):
            sizes = sizes[0].elts
        elif len(sizes) == 1 and isinstance(sizes[0], (ast.Name, ast.Attribute)):
            continue
        if 0 < len(sizes) <= MOST_SIZES:
            yield Called(receiver, sizes)


def _is_class(node: ast.expr) -> bool:
    """``torch.Tensor``, ``torch``: the tensor is the first argument."""
    from esper_guard.lint.outline import last_name

    return last_name(node) in ("torch", "Tensor")


def as_view(flow: Flow, call: cst.Call) -> View | None:
    """``x.view(2, -1)``, ``x.view((2, -1))``, ``torch.Tensor.view(x, 2, -1)``; None where sizes can't be told apart."""
    from ._chains import unbound

    if not _is_named_view(call.func):
        return None
    receiver, _, arguments = unbound(flow, call)
    if receiver is None or any(one.star for one in arguments):
        return None
    sizes = [argument.value for argument in arguments]
    if len(sizes) == 1 and isinstance(sizes[0], (cst.Tuple, cst.List)):
        sizes = [element.value for element in sizes[0].elements if isinstance(element, cst.Element)]
        if len(sizes) != len(arguments[0].value.elements):  # type: ignore[attr-defined]
            return None
    elif len(sizes) == 1 and whole_number(sizes[0]) is None and not _counts_elements(sizes[0]):
        return None  # a shape, or a dtype
    return View(call, receiver, tuple(sizes)) if sizes else None


def _is_named_view(function: cst.BaseExpression) -> bool:
    return (function.attr.value if isinstance(function, cst.Attribute) else "") == "view"


def _counts_elements(size: cst.BaseExpression) -> bool:
    return (
        isinstance(size, cst.Call)
        and isinstance(size.func, cst.Attribute)
        and size.func.attr.value in ("numel", "nelement")
    )


def dimension_read(flow: Flow, size: cst.BaseExpression, tensor: cst.BaseExpression) -> int | None:
    """Which dimension of the value of ``tensor`` is ``size``: ``x.size(1)``, ``x.shape[1]``, or a name for one."""
    if isinstance(size, cst.Call) and isinstance(size.func, cst.Attribute) and len(size.args) == 1:
        is_same = size.func.attr.value == "size" and _same_value(flow, size.func.value, tensor)
        return whole_number(size.args[0].value) if is_same else None
    if isinstance(size, cst.Subscript):
        return _item_of_shape(flow, size, tensor)
    target = flow.made_by(size)
    if isinstance(size, cst.Name) and isinstance(target, cst.BaseExpression):
        unpacked = _unpacked(flow, target, tensor)
        is_expression = isinstance(target, (cst.Call, cst.Subscript))
        return unpacked if not is_expression else dimension_read(flow, target, tensor)
    return None


def _item_of_shape(flow: Flow, item: cst.Subscript, tensor: cst.BaseExpression) -> int | None:
    index = item.slice[0].slice
    shape = item.value
    if isinstance(index, cst.Index) and _is_shape_of(flow, shape, tensor):
        return whole_number(index.value)
    return None


def _unpacked(flow: Flow, target: cst.BaseExpression, tensor: cst.BaseExpression) -> int | None:
    """The position of ``target`` in ``b, c, h, w = x.shape``."""
    element = flow.parent(target)
    targets = flow.parent(element) if element is not None else None
    if not isinstance(targets, (cst.Tuple, cst.List)):
        return None
    assign = flow.parent(targets)
    if isinstance(assign, cst.AssignTarget):
        assign = flow.parent(assign)
    if not isinstance(assign, cst.Assign) or not _is_shape_of(flow, assign.value, tensor):
        return None
    return next((at for at, one in enumerate(targets.elements) if one is element), None)


def _is_shape_of(flow: Flow, shape: cst.BaseExpression, tensor: cst.BaseExpression) -> bool:
    if isinstance(shape, cst.Call) and isinstance(shape.func, cst.Attribute):
        return shape.func.attr.value == "size" and _same_value(flow, shape.func.value, tensor)
    return (
        isinstance(shape, cst.Attribute)
        and shape.attr.value == "shape"
        and _same_value(flow, shape.value, tensor)
    )


def _same_value(flow: Flow, one: cst.BaseExpression, other: cst.BaseExpression) -> bool:
    value = flow.latest.get(one)
    return value is not None and value is flow.latest.get(other)


def is_tested_contiguous(flow: Flow, tensor: cst.BaseExpression) -> bool:
    """Whether ``tensor`` lies in the order of its shape, by a test that holds here."""
    from esper_guard.lint.flow import ContiguityTest

    return ContiguityTest("contiguous_format", True) in flow.facts(tensor).tests


def flattened(flow: Flow, view: View, is_owned: bool) -> Fix | None:
    """``reshape`` for ``view``. ``is_owned``: nobody else holds the memory that is viewed.

    Where the result is written into, it has to be a view: then there is no fix.
    """
    from esper_guard.lint.rule import Fix

    uses = _fate(flow, view.call)
    name = view.call.func
    if not isinstance(name, cst.Attribute) or (uses is _Fate.WRITTEN and not is_owned):
        return None
    start, end = flow.positions.span(name.attr)
    is_safe = is_owned or uses is _Fate.READ
    edits = (flow.positions.edit(start, end, "reshape"),)
    return Fix("Replace `view` with `reshape`, which copies where no view is possible", is_safe, edits)


class _Fate(enum.Enum):
    READ = "only read"
    WRITTEN = "written into"
    UNKNOWN = "handed on"


def _fate(flow: Flow, node: cst.BaseExpression) -> _Fate:
    """What happens to the memory of ``node``."""
    fates = set(verdicts(flow, node, partial(_use, flow)))
    return next((fate for fate in (_Fate.WRITTEN, _Fate.UNKNOWN) if fate in fates), _Fate.READ)


def _use(flow: Flow, use: cst.BaseExpression) -> _Fate | list[cst.BaseExpression]:
    """What one use does to the memory, or the expressions that share it."""
    parent = flow.parent(use)
    if isinstance(parent, cst.Attribute):
        return _member(flow, parent)
    if isinstance(parent, (cst.BinaryOperation, cst.UnaryOperation, cst.Comparison, cst.ComparisonTarget)):
        return _Fate.READ
    if isinstance(parent, cst.AugAssign):
        return _Fate.WRITTEN if parent.target is use else _Fate.READ
    if isinstance(parent, cst.Subscript):
        return _Fate.WRITTEN if isinstance(flow.parent(parent), cst.AssignTarget) else [parent]
    if isinstance(parent, cst.Arg):
        call = flow.parent(parent)
        return _argument(flow, call, parent) if isinstance(call, cst.Call) else _Fate.UNKNOWN
    if isinstance(parent, (cst.ListComp, cst.GeneratorExp)) and parent.elt is use:
        return [parent]
    if isinstance(parent, cst.Element):
        container = flow.parent(parent)
        return [container] if isinstance(container, (cst.List, cst.Tuple)) else _Fate.UNKNOWN
    return _Fate.UNKNOWN


def _member(flow: Flow, attribute: cst.Attribute) -> _Fate | list[cst.BaseExpression]:
    call = flow.parent(attribute)
    name = attribute.attr.value
    if not isinstance(call, cst.Call):
        return _Fate.READ if name in TENSOR_METADATA else _Fate.UNKNOWN
    if name.endswith("_"):
        return _Fate.WRITTEN
    if name in _KEEPS_MEMORY:
        return [call]
    return _Fate.READ if name in _READS else _Fate.UNKNOWN


def _argument(flow: Flow, call: cst.Call, argument: cst.Arg) -> _Fate | list[cst.BaseExpression]:
    module, _, name = flow.origin(call.func).rpartition(".")
    if module in _COMPUTING_MODULES:
        if name.endswith("_") or (argument.keyword is not None and argument.keyword.value == "out"):
            return _Fate.WRITTEN
        return [call] if name in _KEEPS_MEMORY or name == "dropout" else _Fate.READ
    made = flow.callees.get(call, frozenset())
    if made and all((one.parts[0] if one.parts else one).origin in _READING_MODULES for one in made):
        return _Fate.READ
    if isinstance(call.func, cst.Attribute) and call.func.attr.value in (
        "copy_",
        "add_",
        "sub_",
        "mul_",
        "mm",
    ):
        return _Fate.READ
    return _Fate.UNKNOWN
