"""Statements that are nothing but a call of some method, found in the bytes of a file or function.

A trigger of a rule: it may find too many, never too few, and is quicker the fewer it finds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property

from esper_guard.lint.torch_names import ONLY_TENSORS_HAVE, TENSOR_ATTRIBUTES, VIEWS_OF_TENSORS

# Without one of these words in a file there is nothing in it that could be proven a tensor.
EVIDENCE = (
    r"[tT]orch|Tensor|\.data\b|einops|jaxtyping|Parameter|[lL]oader|generate|parameters|buffers|\w_\(|"
    + "|".join(sorted({*ONLY_TENSORS_HAVE, *TENSOR_ATTRIBUTES}))
).encode()
_LONGEST_LINE = 1000
_PLACE = r"[A-Za-z_]\w*(?:\.\w+|\[[^\]\n]*\])*"
_PLAIN_PLACE = re.compile(_PLACE.encode())
# What may stand between the start of a line and the method: a place, a call, the end of a chain, another statement.
_LINE_START = re.compile(
    rf"[ \t]*(?:\(*{_PLACE}|[\w.\[\]]*\([^\n]*\)|[)\]}}]*|[^\n]*[;:][ \t]*{_PLACE}(?:\([^\n]*\))?)[ \t]*".encode()
)
_OPENERS = (*b"( [ { = + - * / % & | < >".split(), b" and", b" or", b" not", b" in")
_BRACKET = re.compile(rb"[][(){}]")
_END = re.compile(rb"[ \t]*(?:[;#\\\r]|\Z)")
_END_IN_BRACKETS = re.compile(rb"[ \t)]*(?:[;#\\\r]|\Z)")
_COMPOUND = re.compile(rb"[ \t]*(?:if|elif|else|for|while|try|except|finally|with|async|case|def|class)\b")
_VALUE_IS_USED = re.compile(
    rb"[ \t]*(?:(?:return|raise|yield|assert|del|if|elif|while|for|with|print)\b|[^(\[{=!<>]*[^(\[{=!<>]=(?!=))"
)
# What is bound to these, or annotated as these, can't be a tensor: a plain container, nothing.
_OTHER = re.compile(
    rb"[ \t]*(?::[^=]*[sS]et[^=]*)?=(?!=)[ \t]*(?:\w*[sS]et\b|[{\"]|\[\]|\w*dict\b|None\b)"
    rb"|[ \t]*:[ \t]*(?:\w+\.)*(?:\w*[dD]ict|\w*[sS]et|\w*Mapping)\["
)
# An object of a class with another name, or of a builtin.
_OBJECT = re.compile(
    rb"[ \t]*=[ \t]*(?:(?:\w+\.)*(?!\w*(?:Tensor|Param|Variable))[A-Z]\w*[a-z]\w*"
    rb"|int|id|len|list|open|range|sorted|str|tuple)\("
)
_ANOTHER_PLACE = re.compile(rb"[ \t]*=[ \t]*([A-Za-z_][\w.]*)[ \t]*(?=[#\n;]|\Z)")
# What stands after the name of what may be a tensor: a binding, a type, a method or attribute of tensors.
_BOUND_AFTER = re.compile(
    rb"[ \t]*(?::?=(?!=)|[-+*/@%&|^]=|:[ \t]*[\"']"
    rb"|:[^=]*(?:[tT]ensor|torch|Param|Float|Int|Bool|Complex|Inexact|Num|Real|Shaped))"
    rb"|\.(?:\w+_|" + "|".join(sorted(ONLY_TENSORS_HAVE)).encode() + rb")\(|\.data\b"
)
_TESTED = re.compile(rb"(?:isinstance|is_tensor)\(\s*\Z")
_LOOPED = re.compile(rb"\bfor\b(?:(?!\bin\b)[^:])*\Z")
_CLOSES_TARGETS = re.compile(rb"\n[ \t]*[)\]][ \t]*(=|in\b)?")
_VIEWS = frozenset(name.encode() for name in VIEWS_OF_TENSORS)
_ALWAYS_TENSORS = frozenset(name.encode() for name in TENSOR_ATTRIBUTES)


def statements_calling(methods: str) -> Callable[[bytes], Iterator[int]]:
    """A trigger for ``x.method(...)`` as a statement, for one of the methods, on what may be a tensor.

    Args:
        methods: a pattern, such as ``"to|float"``.
    """
    pattern = re.compile(rf"\.[ \t]*(?:{methods})[ \t]*\(".encode())

    def trigger(text: bytes) -> Iterator[int]:
        evidence = _Evidence(text)
        for call in pattern.finditer(text):
            line = text.rfind(b"\n", 0, call.start()) + 1
            if call.start() - line > _LONGEST_LINE:  # looking further in costs more each time
                yield call.start()
                continue
            head = _LINE_START.fullmatch(text, line, call.start())
            if (
                head is not None
                and _ends_statement(text, call.end(), head[0].strip()[:1] in (b"", b"("))
                and _begins_statement(text, line, head[0])
                and evidence.may_be_tensor(head[0].strip())
            ):
                yield call.start()

    return trigger


class _Evidence:
    """What in a text may prove a place to be a tensor."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._known: dict[bytes, bool] = {}

    @cached_property
    def _renames_types(self) -> bool:
        return any(word in self._text for word in (b"Tensor as ", b"Parameter as "))

    def may_be_tensor(self, receiver: bytes) -> bool:
        """Whether ``receiver`` is no plain place, or one that is bound to, tested as or used like a tensor."""
        if _PLAIN_PLACE.fullmatch(receiver) is None or self._renames_types:
            return True
        owner, _, attribute = receiver.rpartition(b".")
        if attribute in _ALWAYS_TENSORS:
            return True
        places = {receiver}
        if b"[" in receiver or attribute in _VIEWS:
            places |= {re.split(rb"[.\[]", receiver)[0], owner, receiver.partition(b"[")[0]}
        return any(map(self._is_evident, places - {b"", b"self", b"cls"}))

    def _is_evident(self, place: bytes) -> bool:
        if place not in self._known:
            self._known[place] = False  # for what is bound to itself
            ends = _occurrences(self._text, place)
            self._known[place] = any(self._binds(end, len(place)) for end in ends)
        return self._known[place]

    def _binds(self, end: int, size: int) -> bool:
        """Whether the place of ``size`` bytes that ends at ``end`` is bound there to what may be a tensor, or used as only tensors are."""
        text = self._text
        line = text.rfind(b"\n", 0, end) + 1
        stop = text.find(b"\n", end)
        after = text[end : len(text) if stop < 0 else stop]
        before = text[line : end - size]
        if b"#" in before or _OTHER.match(after):
            return False
        if another := _ANOTHER_PLACE.match(text, end):
            return self.may_be_tensor(another[1])
        made = _OBJECT.match(text, end)
        if made is not None and _closes_statement(text, made.end()):
            return False
        if (
            _BOUND_AFTER.match(after)
            or _LOOPED.search(before)
            or _TESTED.search(text, line - 40 if line > 40 else 0, end - size)
        ):
            return True
        if b"=" in after and (b"," in after.partition(b"=")[0] or b"," in before):
            return True
        if before.strip() or after.strip() not in (b"", b","):
            return False
        closing = _CLOSES_TARGETS.search(text, end)
        return closing is not None and closing[1] is not None


def _occurrences(text: bytes, name: bytes) -> Iterator[int]:
    """Where ``name`` ends as a whole name: a search for a plain string, which is much faster than a pattern."""
    at = text.find(name)
    while at >= 0:
        end = at + len(name)
        is_whole = not (text[at - 1 : at].isalnum() or text[at - 1 : at] in (b"_", b"."))
        if is_whole and not text[end : end + 1].isalnum() and text[end : end + 1] != b"_":
            yield end
        at = text.find(name, end)


def _ends_statement(text: bytes, start: int, is_in_brackets: bool) -> bool:
    """Whether nothing but the end of a statement may follow the call whose arguments begin at ``start``."""
    return _closes_statement(text, start, _END_IN_BRACKETS if is_in_brackets else _END) is not False


def _closes_statement(text: bytes, start: int, ending: re.Pattern[bytes] = _END) -> bool | None:
    """Whether the call whose arguments begin at ``start`` ends its statement; None where its line doesn't tell."""
    end = text.find(b"\n", start)
    rest = text[start : len(text) if end < 0 else end]
    if b'"' in rest or b"'" in rest:
        return None
    depth = 1
    for bracket in _BRACKET.finditer(rest):
        depth += 1 if bracket[0] in b"([{" else -1
        if depth == 0:
            return ending.match(rest, bracket.end()) is not None
    return None


def _begins_statement(text: bytes, line: int, head: bytes) -> bool:
    """Whether a statement may begin on the line at ``line``, or be what the bracket or chain there belongs to."""
    first, indent = head.strip()[:1], len(head) - len(head.lstrip())
    if first == b"" and text.endswith(b"\\\n", 0, line):
        return True
    closes_more = sum(map(head.count, (b"(", b"[", b"{"))) < sum(map(head.count, (b")", b"]", b"}")))
    if first == b"" or closes_more:
        opening = _line_indented_at_most(text, line, indent if first and first in b")]}" else indent - 1)
        return _VALUE_IS_USED.match(opening) is None
    if b":" in head and _COMPOUND.match(head) is None and b";" not in head:
        return False  # a lambda, a dictionary
    return not _is_continuation(text, line)


def _line_indented_at_most(text: bytes, line: int, indent: int) -> bytes:
    """The nearest line before ``line`` that is not indented further than ``indent``; empty if there is none."""
    while line > 0:
        end = line - 1
        line = text.rfind(b"\n", 0, end) + 1
        code = text[line:end]
        if code.strip() and len(code) - len(code.lstrip()) <= indent:
            return code
    return b""


def _is_continuation(text: bytes, line: int) -> bool:
    """Whether the line at ``line`` goes on with what a bracket or an operator on the line before began."""
    before = _code_before(text, line)
    if before.endswith(_OPENERS):
        return True
    if not before.endswith(b","):
        return False
    if before.count(b"(") + before.count(b"[") > before.count(b")") + before.count(b"]"):
        return True
    own = text[line : line + 200]
    above = _line_indented_at_most(text, line, len(own) - len(own.lstrip()) - 1)
    return above.rstrip().endswith((b"(", b"[", b"{"))


def _code_before(text: bytes, line: int) -> bytes:
    """The code of the line before, without its comment; empty where a string may hold what looks like one."""
    start = text.rfind(b"\n", 0, max(line - 1, 0)) + 1
    before = text[start : max(line - 1, 0)]
    code, mark, _ = before.partition(b"#")
    return b"" if mark and (b'"' in code or b"'" in code) else code.rstrip()
