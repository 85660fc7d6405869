"""Where code runs, as far as what stands around it says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import libcst as cst

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow

_EXPECTED = re.compile(r"raises|assert", re.IGNORECASE)


def is_expected_to_raise(flow: Flow, node: cst.CSTNode) -> bool:
    """Whether ``node`` runs in ``try``, under ``pytest.raises(...)``, or in what is given to ``assertRaises``."""
    return is_managed(flow, node, _EXPECTED) or any(
        isinstance(one, cst.Lambda) and _is_given_to_assertion(flow, one) for one in flow.ancestors(node)
    )


def is_managed(flow: Flow, node: cst.CSTNode, managers: re.Pattern[str]) -> bool:
    """Whether ``node`` runs in ``try`` with handlers, or under a context manager of a name that ``managers`` finds."""
    child = node
    for ancestor in flow.ancestors(node):
        if isinstance(ancestor, (cst.Try, cst.TryStar)) and child is ancestor.body and ancestor.handlers:
            return True
        if isinstance(ancestor, cst.With) and any(
            managers.search(flow.positions.one_line(_called(item.item))) for item in ancestor.items
        ):
            return True
        if isinstance(ancestor, cst.FunctionDef):
            return False
        child = ancestor
    return False


def _called(manager: cst.BaseExpression) -> cst.BaseExpression:
    return manager.func if isinstance(manager, cst.Call) else manager


def _is_given_to_assertion(flow: Flow, function: cst.Lambda) -> bool:
    argument = flow.parent(function)
    call = flow.parent(argument) if isinstance(argument, cst.Arg) else None
    return isinstance(call, cst.Call) and _EXPECTED.search(flow.positions.one_line(call.func)) is not None
