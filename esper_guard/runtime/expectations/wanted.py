"""What can be expected of a value, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor

from esper_guard.nearest import did_you_mean
from esper_guard.runtime.expectations.places import Place
from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS, Hint, Layout, State

Ambiguous: TypeAlias = Literal["accept", "hint", "reject"]
"""What to make of a tensor that is NCHW and channels_last at once: it is as good as either, only the format that
kernels take it for, or neither."""

Written: TypeAlias = Any
"""How users write an expectation: a `torch.memory_format`, a state, ``"same as NAME"``, a function, a container of
these, or None for anything."""


@dataclass(frozen=True)
class Format:
    """A tensor of one layout state."""

    state: State
    hint: Hint | None = None
    rank: int | None = None
    """Of `torch.channels_last` 4, of `torch.channels_last_3d` 5."""
    text: str = ""

    def concerns(self, rank: int) -> bool:
        """Whether a tensor of this rank can be in the state at all, so that one in a container is meant by it."""
        if self.rank is not None:
            return rank == self.rank
        return self.state in ("nchw", "strided") or rank in CHANNELS_LAST_FORMATS

    def plainly_met_by(self, tensor: Tensor) -> bool:
        """Whether a tensor has the format, ambiguous or not, at a fraction of the cost of `met_by`; False if in doubt."""
        try:
            if self.state == "nchw":
                return tensor.is_contiguous()
            if self.state != "channels_last" or self.rank == 5:
                return False
            # A ghost is is_contiguous(memory_format=channels_last), too, but has a dimension of size 1.
            return tensor.is_contiguous(memory_format=torch.channels_last) and 1 not in tensor.shape
        except RuntimeError:  # it has no strides, or is batched by vmap
            return False

    def met_by(self, layout: Layout, rank: int, ambiguous: Ambiguous) -> bool:
        """Whether a tensor in this state is as expected."""
        if self.rank is not None and rank != self.rank:
            return False
        if layout.state == "ambiguous" and self.state in ("nchw", "channels_last"):
            return ambiguous == "accept" or (ambiguous == "hint" and layout.hint == self.state)
        return layout.state == self.state and (self.hint is None or layout.hint == self.hint)


@dataclass(frozen=True)
class Same:
    """A tensor of the memory format that another value had on entering; all its tensors, if it is a container."""

    place: Place

    @property
    def text(self) -> str:
        """``"same as x"``."""
        return f"same as {self.place.text}"


@dataclass(frozen=True)
class Predicate:
    """A tensor for which a function returns something true."""

    function: Callable[[Tensor], object]

    @property
    def text(self) -> str:
        """The function's name, in one line."""
        name = getattr(self.function, "__qualname__", None) or type(self.function).__qualname__
        return f"what {name}() accepts"


@dataclass(frozen=True)
class Leaves:
    """A value that is expected to have a format: itself if it is a tensor, else the tensors in it that it concerns."""

    expectation: Format | Same | Predicate


@dataclass(frozen=True)
class Items:
    """A sequence of these items; of at least these, if it is open-ended."""

    items: tuple[Expectation | None, ...]
    open_ended: bool = False


@dataclass(frozen=True)
class Keys:
    """A mapping with these keys, or an object with these attributes."""

    keys: tuple[tuple[Any, Expectation], ...]


@dataclass(frozen=True)
class Each:
    """A container of which every item, or every value of a mapping, is as expected. Iterators are left alone."""

    expectation: Expectation
    kind: type = object


@dataclass(eq=False)
class Instance:
    """An object of a class whose annotated fields are as expected, or a dict. The class may mention itself."""

    kind: type
    fields: tuple[tuple[str, Expectation], ...] = ()

    def says_something(self, within: tuple[Instance, ...] = ()) -> bool:
        """Whether there is more in it than instances of itself."""
        if self in within:
            return False
        return any(_says_something(field, (*within, self)) for _, field in self.fields)


@dataclass(frozen=True)
class AnyOf:
    """A value that one of several expectations is met by, or that is of one of several types."""

    expectations: tuple[Expectation, ...]
    kinds: tuple[type, ...]
    others: bool = False
    """Or that is anything but a tensor."""


@dataclass(frozen=True)
class AllOf:
    """A value that meets several expectations."""

    expectations: tuple[Expectation, ...]


Expectation: TypeAlias = Format | Same | Predicate | Leaves | Items | Keys | Each | Instance | AnyOf | AllOf

_FORMATS = {
    torch.contiguous_format: Format("nchw", text="contiguous_format"),
    torch.channels_last: Format("channels_last", rank=4, text="channels_last"),
    torch.channels_last_3d: Format("channels_last", rank=5, text="channels_last_3d"),
}
_NAMES = {
    **{state: Format(state, text=state) for state in get_args(State)},
    **{
        f"{state}({hint})": Format(state, hint, text=f"{state}({hint})")
        for state in ("ambiguous", "strided")
        for hint in get_args(Hint)
    },
    "nhwc": Format("channels_last", text="nhwc"),
    "contiguous": Format("nchw", text="contiguous"),
    "contiguous_format": _FORMATS[torch.contiguous_format],
    "channels_last_3d": _FORMATS[torch.channels_last_3d],
}
_SAME_AS = "same as "


def check_ambiguous(ambiguous: object) -> None:
    """Raise ValueError if it is not one of the three policies."""
    known = get_args(Ambiguous)
    if ambiguous not in known:
        raise ValueError(
            f"ambiguous='{ambiguous}': there are {', '.join(known)}{did_you_mean(str(ambiguous), known)}"
        )


def format_of(written: torch.memory_format | str) -> Format:
    """A memory format, or the name of one or of a layout state.

    Raises:
        ValueError: there is none of this name.
    """
    known = _NAMES.get(written) if isinstance(written, str) else _FORMATS.get(written)
    if known is not None:
        return known
    if written is torch.preserve_format:
        raise ValueError("torch.preserve_format is no expectation: write 'same as NAME'")
    text = str(written)
    names = [*_NAMES, f"{_SAME_AS}NAME"]
    raise ValueError(
        f"'{text}' is no memory format or layout state ({', '.join(names)}){did_you_mean(text, _NAMES)}"
    )


def parse(written: Written) -> Expectation | None:
    """What an expectation means; None for anything.

    Raises:
        ValueError: there is no format of this name.
        TypeError: it is nothing that can be expected.
    """
    if written is None:
        return None
    if isinstance(written, Layout):
        written = str(written)
    if isinstance(written, str) and written.startswith(_SAME_AS):
        return Leaves(Same(Place.parse(written.removeprefix(_SAME_AS).strip())))
    if isinstance(written, str | torch.memory_format):
        return Leaves(format_of(written))
    if isinstance(written, Mapping):
        parts = ((key, parse(value)) for key, value in written.items())
        return _or_none(Keys(tuple((key, part) for key, part in parts if part is not None)))
    if isinstance(written, tuple | list):
        return _or_none(Items(tuple(map(parse, written))))
    if callable(written) and not isinstance(written, type):
        return Leaves(Predicate(cast("Callable[[Tensor], object]", written)))
    raise TypeError(
        f"{written!r} can't be expected: write a torch.memory_format, the name of a format or layout state, "
        "'same as NAME', a function of a tensor, or a container of these"
    )


def _or_none(expectation: Expectation) -> Expectation:
    return AnyOf((expectation,), (type(None),))


def relations(expectation: Expectation | None) -> list[Place]:
    """What an expectation compares with."""
    found: list[Place] = []
    seen: list[Instance] = []
    stack = [expectation]
    while stack:
        part = stack.pop()
        if isinstance(part, Same):
            found.append(part.place)
        elif isinstance(part, Instance):
            if part not in seen:
                seen.append(part)
                stack += _parts(part)
        else:
            stack += _parts(part)
    return found


def _parts(expectation: Expectation | None) -> list[Expectation | None]:
    if isinstance(expectation, Leaves | Each):
        return [expectation.expectation]
    if isinstance(expectation, Items):
        return list(expectation.items)
    if isinstance(expectation, Keys):
        return [part for _, part in expectation.keys]
    if isinstance(expectation, Instance):
        return [part for _, part in expectation.fields]
    if isinstance(expectation, AnyOf | AllOf):
        return list(expectation.expectations)
    return []


def _says_something(expectation: Expectation | None, within: tuple[Instance, ...]) -> bool:
    if isinstance(expectation, Instance):
        return expectation.says_something(within)
    if isinstance(expectation, Format | Same | Predicate):
        return True
    return any(_says_something(part, within) for part in _parts(expectation))
