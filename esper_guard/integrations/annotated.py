"""Memory formats as types: ``ChannelsLast`` and the like.

>>> @expects
... def block(x: ChannelsLast, skip: ChannelsLast | None = None) -> SameFormatAs["x"]: ...
>>> @jaxtyped(typechecker=beartype)
... def block(x: ChannelsLast[Float[Tensor, "n c h w"]]) -> Float[Tensor, "n c h w"]: ...

For type checkers each is `torch.Tensor`. `expects` checks every tensor of every container. beartype checks them as
validators, if it is installed, at its own sampling: one random item of a list, the first of a dict, all of a tuple,
nothing of a dataclass. An ambiguous tensor is accepted as either format, a ghost is not (docs/runtime.md, "Layouts").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from esper_guard.runtime.expectations.metadata import SameFormatAs, T, register
from esper_guard.runtime.expectations.wanted import Format, format_of
from esper_guard.runtime.formats import has_strides, layout_of

__all__ = ["ChannelsLast", "ChannelsLast3d", "Contiguous", "SameFormatAs"]


@dataclass(frozen=True)
class FormatOf:
    """Metadata of ``Annotated``: a tensor of one memory format."""

    expectation: Format
    name: str

    def is_valid(self, value: object) -> bool:
        """Whether it is a tensor of this format, whatever it is taken for if it is ambiguous."""
        if not isinstance(value, Tensor):
            return False
        if self.expectation.plainly_met_by(value):
            return True
        return has_strides(value) and self.expectation.met_by(layout_of(value), value.dim(), "accept")

    def __repr__(self) -> str:
        return self.name


def _metadata(format: str, name: str) -> Any:
    """For beartype one of its validators, since it passes over other metadata."""
    own = FormatOf(format_of(format), name)
    metadata: Any = own
    try:
        from beartype.vale import Is
    except ImportError:
        pass
    else:
        metadata = Is[_tester(own)]
        metadata.get_repr = name
    register(metadata, own.expectation)
    return metadata


def _tester(format: FormatOf) -> Callable[[object], bool]:
    """A plain function, which beartype insists on."""

    def is_valid(value: object) -> bool:
        return format.is_valid(value)

    return is_valid


ChannelsLast = Annotated[T, _metadata("channels_last", "ChannelsLast")]
"""A 4-D tensor (N, C, H, W) in `torch.channels_last`, or a 5-D one (N, C, D, H, W) in `torch.channels_last_3d`."""
ChannelsLast3d = Annotated[T, _metadata("channels_last_3d", "ChannelsLast3d")]
"""A 5-D tensor (N, C, D, H, W) in `torch.channels_last_3d`."""
Contiguous = Annotated[T, _metadata("contiguous", "Contiguous")]
"""A tensor of any shape in `torch.contiguous_format`."""
