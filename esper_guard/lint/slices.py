"""Hits to slices: the smallest pieces of a file that can be parsed and judged on their own.

A slice is either one outermost function, or the module with the bodies of its functions cut out. Rows and
columns of a slice are those of the file, once ``first_row`` is added.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from esper_guard.lint.imports import Names
from esper_guard.lint.masking import Masked
from esper_guard.lint.rule import Rule, Trigger
from esper_guard.lint.scan import matches, offsets

if TYPE_CHECKING:
    import libcst as cst

_DEF = re.compile(r"^([ \t\f]*)(?:async[ \t]+)?def\b", re.MULTILINE)
_SIGNATURE = re.compile(r"[][(){}:]")
_CUT = " ..."
_TYPE = re.compile(rb"\.[A-Z]\w*\(\Z")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


class Function(NamedTuple):
    """Where an outermost function stands: from its ``def`` to the end of its last line."""

    start: int
    body: int  # just after the colon of the signature
    end: int


class Slice(NamedTuple):
    """Source to parse. ``rules`` are those whose triggers match in it."""

    text: str
    first_row: int  # what to add to a row of ``text`` for the row of the file
    kind: Literal["function", "module", "file"]  # "module": the bodies of the functions are cut out
    rules: Sequence[type[Rule]]
    start: int = 0  # where it begins in the file

    def roots(self, module: cst.Module) -> Iterator[cst.Module | cst.FunctionDef]:
        """What to analyse in the parsed slice: each function by itself, and the module around them."""
        if self.kind != "function":
            yield module
        if self.kind != "module":
            yield from _outermost(module)

    def starts(self, code: str) -> Iterator[int]:
        """Where each function among the roots begins in the file, whose masked code is ``code``."""
        if self.kind == "function":
            return iter((self.start,))
        return (function.start for function in outermost_functions(code))


def slices(text: str, masked: Masked, names: Names, rules: Sequence[type[Rule]]) -> Iterator[Slice]:
    """The functions of ``text`` in which some rule could apply, then the rest of the module if one could there."""
    hits = _Hits(text, masked, names, rules)
    if not hits.between([(0, len(text))]):
        return
    functions = list(outermost_functions(masked.code))
    for function in functions:
        if hit := hits.between([(function.start, function.end)]):
            yield function_slice(text, function, hit)
    if hit := hits.between(list(_gaps(functions, masked.code))):
        yield Slice(without_bodies(text, functions), 0, "module", hit)


class _Hits:
    """The rules whose triggers match in parts of a file: in its code and f-strings, or by the true name of an alias."""

    def __init__(self, text: str, masked: Masked, names: Names, rules: Sequence[type[Rule]]) -> None:
        self._data = _searchable(text, masked)
        self._renamed = {alias.encode(): f"{name}(".encode() for alias, name in names.renamed.items()}
        # Where the first trigger matches: a look at the others is worth it there only.
        self._first = {rule: sorted(self._offsets(rule.triggers[0])) for rule in rules}

    def between(self, spans: Sequence[tuple[int, int]]) -> list[type[Rule]]:
        """The rules all of whose triggers match within ``spans``."""
        near = [
            rule for rule, spots in self._first.items() if any(_is_within(spots, *span) for span in spans)
        ]
        if not near:
            return []
        pieces = [self._data[start:end] for start, end in spans]
        renamed = [name for alias, name in self._renamed.items() if any(alias in piece for piece in pieces)]
        # A trigger that looks at text doesn't know a type by another name.
        is_known = not any(_TYPE.search(name) for name in renamed)
        pieces += renamed

        def may_match(trigger: Trigger) -> bool:
            is_blind = callable(trigger) and not is_known
            return is_blind or any(matches(trigger, piece) for piece in pieces)

        return [rule for rule in near if all(map(may_match, rule.triggers))]

    def _offsets(self, trigger: Trigger) -> Iterator[int]:
        yield from offsets(trigger, self._data)
        for alias, name in self._renamed.items():
            if matches(trigger, name):
                yield from offsets(re.escape(alias), self._data)


def _is_within(spots: list[int], start: int, end: int) -> bool:
    return bisect_left(spots, start) < bisect_left(spots, end)


def _searchable(text: str, masked: Masked) -> bytes:
    """The masked code with its f-strings as they are, which hold code; a byte for each character."""
    pieces: list[str] = []
    done = 0
    for span in masked.interpolations:
        pieces += (masked.code[done : span.start], text[span.start : span.end])
        done = span.end
    code = "".join((*pieces, masked.code[done:]))
    return code.encode() if code.isascii() else _NOT_ASCII.sub("x", code).encode()


def function_slice(text: str, function: Function, rules: Sequence[type[Rule]]) -> Slice:
    row = text.count("\n", 0, function.start) + _lone_returns(text, function.start)
    source = text[function.start : function.end]
    indent = len(source) - len(source.lstrip(" \t\f"))
    # A form feed starts the count of an indentation anew, which LibCST doesn't know; a blank keeps the columns.
    source = source[:indent].replace("\f", " ") + source[indent:]
    if indent:
        return Slice(f"if True:\n{source}", row - 1, "function", rules, function.start)
    return Slice(source, row, "function", rules, function.start)


def without_bodies(text: str, functions: Sequence[Function]) -> str:
    """The module with ``...`` for the body of each function; everything left keeps its row and column."""
    pieces: list[str] = []
    done = 0
    for function in functions:
        pieces.append(text[done : function.body])
        pieces.append(_CUT + "".join(re.findall(r"\r\n?|\n", text[function.body : function.end])))
        done = function.end
    pieces.append(text[done:])
    return "".join(pieces)


def outermost_functions(code: str) -> Iterator[Function]:
    """The functions of masked ``code`` that stand in no other function; methods are, too."""
    position = 0
    while header := _DEF.search(code, position):
        body = _signature_end(code, header.end())
        end = block_end(code, body, header[1].rpartition("\f")[2])
        yield Function(header.start(), body, end)
        position = end


def _signature_end(code: str, position: int) -> int:
    depth = 0
    for match in _SIGNATURE.finditer(code, position):
        token = match.group()
        if token in "([{":
            depth += 1
        elif token in ")]}":
            depth -= 1
        elif depth == 0:
            return match.end()
    return len(code)


@cache
def _dedent(indent: str) -> re.Pattern[str]:
    """A line that ends a block whose header is indented by ``indent``."""
    return re.compile(rf"\n(?!\f*{re.escape(indent)}[ \t])(?=[ \t\f]*[^\s])")


def block_end(code: str, body: int, indent: str) -> int:
    depth, counted = 0, body
    for match in _dedent(indent).finditer(code, body):
        end = match.start()
        depth += _balance(code[counted:end])
        counted = end
        if depth <= 0 and not code.endswith("\\", body, end):
            return body + len(code[body:end].rstrip())
    return body + len(code[body:].rstrip())


def _balance(code: str) -> int:
    return sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))


def _gaps(functions: Sequence[Function], code: str) -> Iterator[tuple[int, int]]:
    """What is left of masked ``code`` without its functions, and the signatures in which something is called."""
    start = 0
    for function in functions:
        is_plain = code.count("(", function.start, function.body) == 1
        yield start, function.start if is_plain else function.body
        start = function.end
    yield start, len(code)


def _lone_returns(text: str, end: int) -> int:
    if "\r" not in text:
        return 0
    return len(re.findall(r"\r(?!\n)", text[:end]))


def whole_file(text: str, rules: Sequence[type[Rule]]) -> Slice:
    """The file as one piece: what slicing has to agree with."""
    return Slice(text, 0, "file", rules)


def _outermost(node: cst.CSTNode) -> Iterator[cst.FunctionDef]:
    """The functions below ``node`` that stand in no other function, in the order of the file."""
    import libcst as cst

    if isinstance(node, cst.FunctionDef):
        yield node
        return
    if isinstance(node, (cst.SimpleStatementLine, cst.BaseExpression, cst.BaseParenthesizableWhitespace)):
        return
    for child in node.children:
        yield from _outermost(child)


def names_in_functions(code: str) -> frozenset[str]:
    """Every name in the body of some function: what a module binds to it may be used there."""
    bodies = " ".join(code[function.body : function.end] for function in outermost_functions(code))
    return frozenset(re.findall(r"[^\W\d]\w*", bodies))


def names_declared_global(code: str) -> frozenset[str]:
    """Every name that some function of masked ``code`` declares global."""
    return frozenset(
        name for names in re.findall(r"\bglobal[ \t]+([^\n;]*)", code) for name in re.findall(r"\w+", names)
    )
