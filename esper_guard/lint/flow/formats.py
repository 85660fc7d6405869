"""What calls do to a layout: conversions, permutations, and operators that keep or drop it."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from esper_guard.lint.flow import operators
from esper_guard.lint.flow.dotted import dotted
from esper_guard.lint.flow.layouts import (
    MADE,
    PERMUTING,
    Layout,
    Origin,
    einops_permutation,
    of_format,
    permutation,
    permuted,
)
from esper_guard.lint.flow.values import Facts, Kind
from esper_guard.lint.imports import Names
from esper_guard.operators import Effect, effect_of

_TAKES_FORMAT = frozenset("to contiguous clone cuda cpu float half double bfloat16 type".split())
_LAID_OUT_LIKE_THEIR_SHAPE = frozenset(
    """
    arange empty eye full linspace ones rand randint randn randperm zeros stack new_empty new_full new_ones new_zeros
    bmm mm matmul linear repeat tile
    """.split()
)
_KEEP_THAT_OF_THEIR_INPUT = (Effect.KEEPS, Effect.FIRST, Effect.ANY)


def named_format(method: str, arguments: Sequence[cst.Arg], names: Names) -> str:
    """The memory format a call names, without ``torch.``: ``""`` for none, ``"?"`` where it can't be told."""
    if any(argument.star == "**" for argument in arguments):
        return "?"
    for argument in arguments:
        keyword = argument.keyword.value if argument.keyword is not None else None
        if keyword == "memory_format" or method == "contiguous":
            return format_named_by(argument.value, names)
    return "contiguous_format" if method == "contiguous" else ""


def format_named_by(node: cst.BaseExpression, names: Names) -> str:
    """``channels_last`` for ``torch.channels_last`` through aliases; ``"?"`` for anything else."""
    written = dotted(node)
    origin = names.resolve(written) if written else ""
    return origin[len("torch.") :] if origin.startswith("torch.") else "?"


def after_method(method: str, arguments: Sequence[cst.Arg], receiver: Facts, names: Names) -> Layout | None:
    """The layout of ``receiver.method(*arguments)``, also for ``torch.method(receiver, *arguments)``."""
    if method in _TAKES_FORMAT:
        memory_format = named_format(method, arguments, names)
        if memory_format in ("", "preserve_format"):
            return receiver.layout
        if method == "contiguous" and memory_format == "contiguous_format":
            return MADE
        return of_format(memory_format)
    if method in PERMUTING:
        return permuted(receiver.layout, permutation(method, arguments, only_rank(receiver)))
    if method in _LAID_OUT_LIKE_THEIR_SHAPE:
        return MADE
    return _after_operator(method, receiver.layout)


def after_function(origin: str, call: cst.Call, arguments: Sequence[Facts], names: Names) -> Layout | None:
    """The layout of what a function, known by its full name, returns."""
    module, _, name = origin.rpartition(".")
    if origin == "einops.rearrange" and len(call.args) > 1:
        return permuted(arguments[0].layout, einops_permutation(call.args[1].value))
    if module not in ("torch", "torch.nn.functional", "torch.Tensor", "torch.special"):
        return None
    if name in _LAID_OUT_LIKE_THEIR_SHAPE or not arguments:
        memory_format = named_format("", call.args, names)
        return MADE if memory_format in ("", "preserve_format") else of_format(memory_format)
    return after_method(name, call.args[1:], arguments[0], names)


def after_modules(ways: Sequence[Sequence[str]], argument: Facts) -> Layout | None:
    """The layout after one of several chains of operators; None where they disagree."""
    layouts = set()
    for way in ways:
        layout = argument.layout
        for operator in way:
            layout = _after_operator(operator, layout)
        layouts.add(layout)
    return layouts.pop() if len(layouts) == 1 else None


def after_binary(left: Facts, right: Facts) -> Layout | None:
    """``left + right``: the layout of the first operand that is a tensor of full rank."""
    if right.kind is Kind.OTHER or right.layout == left.layout:
        return left.layout
    if left.kind is Kind.OTHER:
        return right.layout
    return None


def only_rank(facts: Facts) -> int | None:
    """The rank, where only one is possible, or the layout tells."""
    if facts.layout is not None and facts.layout.order:
        return len(facts.layout.order)
    return facts.ranks.bit_length() - 1 if facts.ranks & (facts.ranks - 1) == 0 else None


def _after_operator(name: str, layout: Layout | None) -> Layout | None:
    if name in operators.ELEMENTWISE:
        return layout
    effect = effect_of(name)
    if effect is Effect.DROPS:
        return MADE
    if effect in _KEEP_THAT_OF_THEIR_INPUT and layout is not None and layout.is_channels_last:
        return Layout(layout.order, Origin.CONVERTED if layout.origin is Origin.CONVERTED else Origin.MADE)
    return None
