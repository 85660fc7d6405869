"""Numbers, as they are written."""

from __future__ import annotations

import libcst as cst


def whole_number(node: cst.BaseExpression) -> int | None:
    """The whole number that ``node`` is written as: ``-1``, and products such as ``16 * 5 * 5``, included."""
    if isinstance(node, cst.Integer):
        return int(node.evaluated_value)
    if isinstance(node, cst.UnaryOperation) and isinstance(node.operator, cst.Minus):
        number = whole_number(node.expression)
        return None if number is None else -number
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.Multiply):
        left, right = whole_number(node.left), whole_number(node.right)
        return None if left is None or right is None else left * right
    return None
