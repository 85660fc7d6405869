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
from esper_guard.lint.rule import Rule
from esper_guard.lint.scan import offsets, rules_hit

if TYPE_CHECKING:
    import libcst as cst

_DEF = re.compile(r"^([ \t\f]*)(?:async[ \t]+)?def\b", re.MULTILINE)
_SIGNATURE = re.compile(r"[][(){}:]")
_CUT = " ..."


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
    rules = _hit(rules, _pieces(text, masked, names, [(0, len(text))]))
    functions = list(outermost_functions(masked.code)) if rules else []
    spots = {rule: _spots(rule, masked.code) for rule in rules}
    for function in functions:
        here = [rule for rule in rules if _may_match(spots[rule], function, masked, names)]
        hit = _hit(here, _pieces(text, masked, names, [(function.start, function.end)])) if here else []
        if hit:
            yield function_slice(text, function, hit)
    hit = _hit(rules, _pieces(text, masked, names, list(_gaps(functions, len(text))))) if rules else []
    if hit:
        yield Slice(without_bodies(text, functions), 0, "module", hit)


def _spots(rule: type[Rule], code: str) -> list[int] | None:
    """Where the first trigger of ``rule`` matches in masked code; None where bytes are not characters."""
    return sorted(offsets(rule.triggers[0], code.encode("ascii"))) if code.isascii() else None


def _may_match(spots: list[int] | None, function: Function, masked: Masked, names: Names) -> bool:
    """Whether a trigger could match in a function: a cheap look, at its matches in the file."""
    if spots is None or bisect_left(spots, function.start) < bisect_left(spots, function.end):
        return True
    strings = masked.interpolations
    first = bisect_left(strings, (function.start, function.start))
    if first < len(strings) and strings[first].start < function.end:
        return True
    return any(alias in masked.code[function.start : function.end] for alias in names.renamed)


def _hit(rules: Sequence[type[Rule]], pieces: Sequence[str]) -> list[type[Rule]]:
    return rules_hit(rules, [piece.encode("utf-8", "surrogatepass") for piece in pieces])


def _pieces(text: str, masked: Masked, names: Names, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The code in these parts of a file, the f-strings in them, and the true names of what they import by another."""
    pieces = ["".join(masked.code[start:end] for start, end in spans)]
    for start, end in spans:
        first = bisect_left(masked.interpolations, (start, start))
        last = bisect_left(masked.interpolations, (end, end))
        pieces += [text[span.start : span.end] for span in masked.interpolations[first:last]]
    return pieces + [name for alias, name in names.renamed.items() if any(alias in piece for piece in pieces)]


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


def _gaps(functions: Sequence[Function], length: int) -> Iterator[tuple[int, int]]:
    start = 0
    for function in functions:
        yield start, function.body
        start = function.end
    yield start, length


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
