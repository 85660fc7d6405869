"""What to do about an error of the user's model, as far as its message tells. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_MEMORY: Final = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_STRIDES: Final = re.compile(
    r"view size is not compatible|memory format|strides?\b|contiguous", re.IGNORECASE
)
_DTYPES: Final = re.compile(
    r"dtype|scalar type|data type|type \(.*should be the same|not implemented for '|Low precision",
    re.IGNORECASE,
)
_ARGUMENTS: Final = re.compile(
    r"positional argument|keyword argument|missing \d+ required|argument '\w+'|invalid combination of arguments"
)
_SHAPES: Final = re.compile(
    r"shape|\bsizes?\b|dimension|\bdims?\b|channels?\b|mat1 and mat2|\dD\b|out of range|to unpack|height|width|length",
    re.IGNORECASE,
)
_INPUTS: Final = "give the inputs that it takes with --input 8x3x224x224, once for each argument"


def remedy(
    error: BaseException,
    *,
    own_inputs: bool,
    precision: Sequence[str] = (),
    only_channels_last: bool = False,
    only_later: bool = False,
) -> str:
    """``": give the inputs that it takes ..."``; empty if the error tells of none.

    Args:
        error: what the model raised.
        own_inputs: the user's factory gave the inputs, or they are the built-in model's.
        precision: the options that set a dtype, such as ``"--dtype float16"``.
        only_channels_last: the same model ran in NCHW.
        only_later: the same step ran before.
    """
    text = str(error)
    if is_out_of_memory(error):
        return ": give smaller inputs"
    if only_later:
        return ": a step has to run many times"
    if _DTYPES.search(text):
        if precision:
            return f": measure it without {' and '.join(precision)}, or with another dtype there"
        return "" if own_inputs else f": {_INPUTS}, with their dtype as in 8x128:int64"
    if only_channels_last and _STRIDES.search(text):
        return (
            ": that line can't work on channels_last; `esper-guard check` may know the remedy "
            "(reshape instead of view)"
        )
    counted = isinstance(error, TypeError) and _ARGUMENTS.search(text)
    shaped = isinstance(error, RuntimeError | ValueError | IndexError | AssertionError) and _SHAPES.search(
        text
    )
    if not (counted or shaped) or only_channels_last:
        return ""
    return ": the inputs are those that the factory gives" if own_inputs else f": {_INPUTS}"


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device or of the machine."""
    return isinstance(error, MemoryError) or _MEMORY.search(str(error)) is not None
