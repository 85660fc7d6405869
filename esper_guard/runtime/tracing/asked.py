"""Whether a line asks for a copy, or an operator on it makes one."""

from __future__ import annotations

import ast
from types import FrameType

from executing import Source

_ASKING = frozenset(
    # of tensors, of modules (which move and cast their parameters), and copy.deepcopy
    "contiguous clone to copy_ _foreach_copy_ _to_copy setitem __setitem__ type type_as deepcopy cpu cuda xpu ipu npu mps "
    "float double half bfloat16 int long short char byte bool cfloat cdouble chalf".split()
)


_MOST_PLACES = 10_000  # a program may make code as it runs


class AskedCopies:
    """Remembers its answers by place in the code."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[object, bool]] = {}

    def asked(self, frame: FrameType) -> bool:
        """Whether the call that a frame is making has the name of a copy, as in ``x.to(...)``, or is ``x[...] = y``.

        Read from the source by the position of the running instruction; False where there is no source.
        """
        code, at = frame.f_code, frame.f_lasti
        known = self._known.get((id(code), at))
        if known is None:
            if len(self._known) >= _MOST_PLACES:
                self._known.clear()
            known = self._known[id(code), at] = (code, _asks(frame))  # the code, so that its id stays its own
        return known[1]


def _asks(frame: FrameType) -> bool:
    node: ast.AST | None = Source.executing(frame).node
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr == "default":  # torch.ops.aten.clone.default
            function = function.value
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
        return name in _ASKING
    return isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
