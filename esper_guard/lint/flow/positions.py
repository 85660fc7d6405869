"""From syntax to the file: offsets, and the text to show. Positions cost a walk, so only a finding asks for them."""

from __future__ import annotations

from functools import cached_property

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from esper_guard.lint.finding import Edit, edit
from esper_guard.lint.source import Source

_LONGEST = 60


class Positions:
    """Where the nodes of one slice stand in their file."""

    def __init__(self, source: Source, module: cst.Module, first_row: int) -> None:
        self._source = source
        self._module = module
        self._first_row = first_row

    @cached_property
    def _ranges(self) -> dict[cst.CSTNode, CodeRange]:
        wrapper = MetadataWrapper(self._module, unsafe_skip_copy=True)
        return dict(wrapper.resolve(PositionProvider))

    def span(self, node: cst.CSTNode) -> tuple[int, int]:
        """Character offsets in the file, without parentheses around the node."""
        found = self._ranges.get(node)
        if found is None:  # LibCST leaves nodes out where its walk runs out of stack, on Python 3.13
            raise RecursionError
        return (
            self._source.offset(found.start.line + self._first_row, found.start.column + 1),
            self._source.offset(found.end.line + self._first_row, found.end.column + 1),
        )

    def text(self, node: cst.CSTNode) -> str:
        """The node as written, whole."""
        start, end = self.span(node)
        return self._source.text[start:end]

    def one_line(self, node: cst.CSTNode) -> str:
        """The node as code on one line, without parentheses around it."""
        text = " ".join(self._module.code_for_node(node).split())
        for parenthesis in getattr(node, "lpar", ()):
            if parenthesis is not None:
                text = text[1:-1].strip()
        return text

    def shown(self, node: cst.CSTNode) -> str:
        """The node on one line, shortened for a message."""
        text = self.one_line(node)
        return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"

    def edit(self, start: int, end: int, content: str = "") -> Edit:
        return edit(self._source, start, end, content)

    @property
    def source(self) -> Source:
        return self._source
