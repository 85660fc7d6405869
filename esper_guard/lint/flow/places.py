"""Symbolic places: ``x``, ``self.buf``, ``feats[0]``, ``feats[i]``."""

from __future__ import annotations

from collections.abc import Callable

import libcst as cst

from esper_guard.lint.flow.values import Place, Value


def place_of(node: cst.BaseExpression, value_of_name: Callable[[str], Value]) -> Place | None:
    """The place that ``node`` names, or None where it computes something."""
    if isinstance(node, cst.Name):
        return (node.value,)
    if isinstance(node, cst.Attribute):
        base = place_of(node.value, value_of_name)
        return None if base is None else (*base, f".{node.attr.value}")
    if isinstance(node, cst.Subscript):
        base = place_of(node.value, value_of_name)
        key = _key(node, value_of_name)
        return None if base is None or key is None else (*base, key)
    return None


def _key(node: cst.Subscript, value_of_name: Callable[[str], Value]) -> str | Value | None:
    if len(node.slice) != 1 or not isinstance(node.slice[0].slice, cst.Index):
        return None
    index = node.slice[0].slice.value
    if isinstance(index, cst.Name):
        return value_of_name(index.value)
    if isinstance(index, cst.Integer):
        return f"[{index.value}]"
    if isinstance(index, cst.SimpleString):
        return None if "\\" in index.raw_value else f"['{index.raw_value}']"
    if isinstance(index, cst.UnaryOperation) and isinstance(index.expression, cst.Integer):
        return f"[-{index.expression.value}]" if isinstance(index.operator, cst.Minus) else None
    return None
