"""Which expressions of an outline may turn out to be tensors: never fewer than ``flow.evidence`` proves to be."""

from __future__ import annotations

import ast
import re
from functools import cached_property

from esper_guard.lint.outline import Outline, last_name, root, written
from esper_guard.lint.torch_names import (
    ONLY_TENSORS_HAVE,
    TENSOR_ATTRIBUTES,
    TENSOR_FUNCTIONS,
    TENSORS_FUNCTIONS,
    VIEWS_OF_TENSORS,
)

_TYPES = re.compile(r"Tensor|Parameter|\b(?:B?Float|U?Int|Bool|Complex|Inexact|Num|Real|Shaped)")
_GENERIC_TYPES = frozenset(
    """
    Annotated ClassVar Final Iterable List Optional Sequence Tuple Union list tuple
    Bool Complex Float Float16 Float32 Float64 BFloat16 Inexact Int Int32 Int64 Num Real Shaped UInt8
    """.split()
)
_NEVER = (ast.Constant, ast.Dict, ast.DictComp, ast.JoinedStr, ast.Lambda, ast.Set, ast.SetComp)
_FUNCTION_MODULES = ("torch.nn.functional", "einops")
_PASSED_THROUGH = frozenset("enumerate iter list next reversed sorted tqdm tuple zip".split())
_OF_MODULES = frozenset(("parameters", "buffers", "named_parameters", "named_buffers"))


class Tensors:
    """Looks for evidence of any kind, anywhere in a slice."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._known: dict[str, bool] = {}

    def may_hold(self, node: ast.AST) -> bool:
        """Whether the value of ``node`` may be proven a tensor, or a container of tensors."""
        if isinstance(node, _NEVER):
            return False
        if isinstance(node, ast.Call):
            return self._may_return(node)
        if isinstance(node, ast.Name):
            return self._is_suspect(node.id)
        if isinstance(node, ast.Attribute):
            place = written(node)
            return (
                node.attr in TENSOR_ATTRIBUTES
                or (bool(place) and self._is_suspect(place))
                or (node.attr in VIEWS_OF_TENSORS and self.may_hold(node.value))
            )
        if isinstance(node, ast.Subscript):
            return self.may_hold(node.value)
        return any(map(self.may_hold, ast.iter_child_nodes(node)))

    def _may_return(self, call: ast.Call) -> bool:
        """A function of torch, a method that only tensors have or of a tensor, a module in sight."""
        function, outline = call.func, self._outline
        origin = outline.names.resolve(written(function))
        module, name = origin.rpartition(".")[0], last_name(function, outline.names)
        if name in ONLY_TENSORS_HAVE or name in _OF_MODULES or _TYPES.search(name):
            return True
        if module == "torch":
            return name in TENSOR_FUNCTIONS or name in TENSORS_FUNCTIONS
        if isinstance(function, ast.Attribute):
            is_known = module in _FUNCTION_MODULES or origin == f"self.{name}" or name == "generate"
            return is_known or self.may_hold(function.value)
        if name in _PASSED_THROUGH:
            return any(map(self.may_hold, call.args))
        return module in _FUNCTION_MODULES or self._may_be_module(origin)

    def _may_be_module(self, place: str) -> bool:
        return any(
            isinstance(value, ast.Call)
            and self._outline.names.resolve(written(value.func)).startswith("torch.")
            for value in self._outline.values.get(place, ())
        )

    def _is_suspect(self, place: str) -> bool:
        """Whether a place is annotated, tested, used or bound as a tensor may be."""
        if place not in self._known:
            self._known[place] = False  # for what is bound to itself
            self._known[place] = (
                place.lower().endswith("loader")
                or place in self._evident
                or any(map(self.may_hold, self._outline.values.get(place, ())))
            )
        return self._known[place]

    @cached_property
    def _evident(self) -> frozenset[str]:
        """The places that an annotation, a test or a method proves to be tensors."""
        places: set[str] = set()
        for node in self._outline.nodes:
            if isinstance(node, ast.arg) and self._names_type(node.annotation):
                places.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and self._names_type(node.annotation):
                places.add(written(node.target))
            elif isinstance(node, ast.Call) and node.args and self._is_test(node):
                places.add(written(node.args[0]))
            elif isinstance(node, ast.Attribute) and _only_of_tensors(node):
                places |= {written(node.value), written(root(node))}
        return frozenset(places)

    def _names_type(self, annotation: ast.expr | None) -> bool:
        """Whether an annotation may be one of a tensor, or of a sequence of them."""
        if isinstance(annotation, ast.Subscript) and last_name(annotation.value) not in _GENERIC_TYPES:
            return False
        if isinstance(annotation, ast.Constant):
            return isinstance(annotation.value, str) and _TYPES.search(annotation.value) is not None
        if annotation is None or isinstance(annotation, (ast.Name, ast.Attribute)):
            return annotation is not None and bool(
                _TYPES.search(self._outline.names.resolve(written(annotation)))
            )
        return any(
            self._names_type(part) for part in ast.iter_child_nodes(annotation) if isinstance(part, ast.expr)
        )

    def _is_test(self, call: ast.Call) -> bool:
        """``isinstance(x, torch.Tensor)``, ``torch.is_tensor(x)``."""
        name = written(call.func).rpartition(".")[2]
        return name == "is_tensor" or (name == "isinstance" and self._names_type(call.args[-1]))


def _only_of_tensors(node: ast.Attribute) -> bool:
    """A method that only they have, one in place, or new ``data``."""
    is_new_data = node.attr == "data" and isinstance(node.ctx, ast.Store)
    return is_new_data or node.attr in ONLY_TENSORS_HAVE or node.attr.endswith("_")
