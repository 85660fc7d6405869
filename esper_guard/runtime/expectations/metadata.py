"""What items of ``typing.Annotated`` say of memory formats."""

from __future__ import annotations

from typing import Annotated, Any, Final

from torch import Tensor
from typing_extensions import TypeVar  # torch needs it, too

from esper_guard.runtime.expectations.places import Place
from esper_guard.runtime.expectations.wanted import Format, Same

T = TypeVar("T", bound=Tensor, default=Tensor)
"""What else is known of the tensor, such as its shape by jaxtyping."""


class SameFormatAs:
    """A tensor of the memory format that another argument had on entering.

    >>> @expects
    ... def block(x: ChannelsLast) -> SameFormatAs["x"]: ...

    ``SameFormatAs["x"]`` is ``Annotated[Tensor, SameFormatAs("x")]``, which type checkers understand. Only
    `expects` knows the other argument; beartype checks that it is a tensor.

    Raises:
        ValueError: this is no way to name an argument (`expects`).
    """

    def __init__(self, place: str) -> None:
        self.expectation: Final = Same(Place.parse(place))

    def __class_getitem__(cls, place: str) -> Any:
        return Annotated[T, cls(place)]

    def __repr__(self) -> str:
        return f"SameFormatAs({self.expectation.place.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameFormatAs) and self.expectation == other.expectation

    def __hash__(self) -> int:
        return hash(self.expectation)


_FORMATS: Final[dict[Any, Format]] = {}


def register(metadata: Any, format: Format) -> None:
    """Let `format_in` know an item. It must be hashable."""
    _FORMATS[metadata] = format


def format_in(metadata: object) -> Format | Same | None:
    """What an item of ``Annotated`` says of a memory format; None if it says nothing."""
    if isinstance(metadata, SameFormatAs):
        return metadata.expectation
    try:
        return _FORMATS.get(metadata)
    except TypeError:  # not hashable
        return None
