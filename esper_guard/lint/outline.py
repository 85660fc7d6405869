"""What stands in a slice, read off CPython's own syntax tree: enough to say that a rule can find nothing there.

CPython parses about ten times as fast as LibCST, and its tree is needed anyway, to check the syntax.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from esper_guard.lint.imports import Names


class Outline:
    """The syntax of one slice, whatever the order in which it runs; ``names`` are those of the file."""

    def __init__(self, tree: ast.AST, names: Names) -> None:
        self.names = names
        self.nodes: Sequence[ast.AST] = _nodes(tree)

    @cached_property
    def attributes(self) -> frozenset[str]:
        return frozenset(node.attr for node in self.nodes if isinstance(node, ast.Attribute))

    @cached_property
    def words(self) -> frozenset[str]:
        """Every name and attribute that is read or written, and the true names of what was imported by another."""
        names = {node.id for node in self.nodes if isinstance(node, ast.Name)}
        renamed = self.names.renamed
        return self.attributes.union(names, *(renamed[name].split(".") for name in names & renamed.keys()))

    @cached_property
    def calls(self) -> Mapping[str, Sequence[ast.Call]]:
        """The calls by the last name of what is called: ``view`` for ``x.view(2)``."""
        calls: dict[str, list[ast.Call]] = defaultdict(list)
        for node in self.nodes:
            if isinstance(node, ast.Call):
                calls[last_name(node.func, self.names)].append(node)
        return dict(calls)

    def called(self, *names: str) -> Iterator[ast.Call]:
        """The calls of anything with one of these last names."""
        return (call for name in names for call in self.calls.get(name, ()))

    @cached_property
    def conversions(self) -> Sequence[ast.Call]:
        """The calls that name a memory format."""
        named = (
            node
            for node in self.nodes
            if isinstance(node, ast.Call) and any(keyword.arg == "memory_format" for keyword in node.keywords)
        )
        return [*named, *(call for call in self.called("contiguous") if call.args)]

    @cached_property
    def values(self) -> Mapping[str, Sequence[ast.expr]]:
        """What each place (``x``, ``self.x``) is bound to, or to a part of: by a loop, by unpacking, in ``with``."""
        values: dict[str, list[ast.expr]] = defaultdict(list)
        for node in self.nodes:
            targets, value = _bound(node)
            if value is None:
                continue
            for target in targets:
                for part in (target,) if written(target) else ast.walk(target):
                    if place := written(part):
                        values[place].append(value)
        return dict(values)

    def sources(self, *nodes: ast.expr) -> Iterator[ast.AST]:
        """Everything in ``nodes``, and in what the names in them are bound to, and so on."""
        seen: set[str] = set()
        waiting = [*nodes]
        while waiting:
            for node in _nodes(waiting.pop()):
                yield node
                place = written(node)
                if place and place not in seen:
                    seen.add(place)
                    waiting += self.values.get(place, ())


def _nodes(tree: ast.AST) -> list[ast.AST]:
    """What `ast.walk` yields, but for contexts and operators, in half the time."""
    nodes = [tree]
    for node in nodes:
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                nodes += [item for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, ast.AST) and value._fields:
                nodes.append(value)
    return nodes


def _bound(node: ast.AST) -> tuple[Sequence[ast.AST], ast.expr | None]:
    """The targets of a statement that binds, and what it binds them to."""
    if isinstance(node, ast.Assign):
        return node.targets, node.value
    if isinstance(node, (ast.AnnAssign, ast.NamedExpr, ast.AugAssign)):
        return (node.target,), node.value
    if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
        return (node.target,), node.iter
    if isinstance(node, ast.withitem) and node.optional_vars is not None:
        return (node.optional_vars,), node.context_expr
    return (), None


def last_name(node: ast.expr, names: Names | None = None) -> str:
    """``view`` for ``x.view``; with ``names``, the true one of what was imported by another."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if not isinstance(node, ast.Name):
        return ""
    return names.renamed.get(node.id, node.id).rpartition(".")[2] if names is not None else node.id


def written(node: ast.AST) -> str:
    """``self.x`` for that; empty for anything but names and attributes of names."""
    if isinstance(node, ast.Attribute):
        base = written(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def root(node: ast.expr) -> ast.expr:
    """What a chain of attributes, calls and subscripts begins with: ``x`` for ``x.a(1)[0].b``."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node
