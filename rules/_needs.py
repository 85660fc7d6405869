"""Who needs a tensor to be contiguous: then a copy made for it is no waste."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import libcst as cst

from esper_guard.lint.flow.dotted import dotted

from ._chains import verdicts

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow

# Methods that raise on, misread or copy anything else.
_METHODS = frozenset(
    """
    view view_as reshape reshape_as flatten unflatten ravel as_strided data_ptr numpy tolist tobytes storage
    untyped_storage typed_storage share_memory_ __array__ __dlpack__ set_ numpy_force
    """.split()
)
_LAYOUT_KEEPING = frozenset(
    """
    abs add add_ bfloat16 byte ceil clamp clamp_ clip clone copy cpu cuda detach detach_ div div_ double exp float floor
    half int log long mul mul_ nan_to_num neg pin_memory pow relu requires_grad_ round rsqrt sigmoid sqrt square sub sub_ tanh
    to type
    """.split()
)
_GROWING = frozenset("add append appendleft extend insert put put_nowait setdefault update".split())
_MODULES = frozenset("numpy cupy jax ctypes pickle PIL cv2 safetensors onnx onnxruntime tensorrt".split())
_NATIVE = frozenset("_C _ext ext_module _cuda _cpp".split())
_FUNCTIONS = re.compile(
    r"(?:save|dump|serial|dlpack|asarray|from_buffer|frombuffer|memoryview|to_bytes|tobytes|export)",
    re.IGNORECASE,
)
_NATIVE_NAME = re.compile(r"(?:_cuda|_cpp|_ext|_kernel)\Z")
_EXPORTING = re.compile(
    r"save|dump|seriali[sz]|export|state_dict|checkpoint|dlpack|numpy|onnx", re.IGNORECASE
)


def needs_contiguous(flow: Flow, node: cst.BaseExpression) -> bool:
    """Whether the value of ``node`` ends where its layout matters: files, pointers, arrays, ``view``, native code."""
    return any(verdicts(flow, node, partial(_consumer, flow)))


def _consumer(flow: Flow, use: cst.BaseExpression) -> bool | list[cst.BaseExpression]:
    """True where the layout matters; else the expressions that hold the value further on."""
    parent = flow.parent(use)
    if isinstance(parent, cst.Attribute):
        call = flow.parent(parent)
        if not isinstance(call, cst.Call):
            return []
        if parent.attr.value in _METHODS:
            return True
        return [call] if parent.attr.value in _LAYOUT_KEEPING else []
    if isinstance(parent, cst.Arg):
        call = flow.parent(parent)
        return _function(flow, call) if isinstance(call, cst.Call) else []
    if isinstance(parent, cst.Return):
        return _EXPORTING.search(flow.function_name(parent)) is not None
    if isinstance(parent, (cst.Element, cst.DictElement, cst.StarredElement, cst.StarredDictElement)):
        container = flow.parent(parent)
        return [container] if isinstance(container, cst.BaseExpression) else []
    if isinstance(parent, (cst.ListComp, cst.SetComp, cst.GeneratorExp, cst.DictComp)):
        return [parent]
    if isinstance(parent, (cst.BinaryOperation, cst.Subscript)):
        return [parent]
    if isinstance(parent, cst.AugAssign):
        return _container(flow, parent.target)
    if isinstance(use, cst.Subscript):
        return _container(flow, use.value)  # stored in a container: the container's uses count
    return list(flow.loads_of_name(use.value)) if isinstance(use, cst.Name) else []


def _container(flow: Flow, node: cst.BaseExpression) -> list[cst.BaseExpression]:
    """Where a container that took the value is read: ``d`` for ``d["a"]["b"]``, in nested functions, too."""
    while isinstance(node, (cst.Subscript, cst.Attribute)):
        node = node.value
    return list(flow.loads_of_name(node.value)) if isinstance(node, cst.Name) else []


def _function(flow: Flow, call: cst.Call) -> bool | list[cst.BaseExpression]:
    written = dotted(call.func) or ""
    origin = flow.names.resolve(written)
    parts = origin.split(".")
    name = parts[-1]
    if isinstance(call.func, cst.Attribute) and name in _GROWING:
        return _container(flow, call.func.value)
    if name in ("dict", "list", "tuple", "OrderedDict", "sorted", "reversed"):
        return [call]
    if parts[0] in _MODULES or _NATIVE & set(parts) or origin.startswith("torch.ops."):
        return True
    if origin.startswith("torch.") and name in ("reshape", "flatten", "ravel", "as_strided"):
        return True
    if name == "save_for_backward":
        return []
    return bool(_FUNCTIONS.search(name) or _NATIVE_NAME.search(name))
