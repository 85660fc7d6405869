"""One thing that happened to a memory format, and how often."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

Kind: TypeAlias = Literal["explicit", "hidden", "loss", "internal"]
Phase: TypeAlias = Literal["forward", "backward", "recompute"]
Level: TypeAlias = Literal["dispatch", "deep"]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class LayoutEvent(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A copy, or the loss of channels_last, at one line; equal ones are one event with a `count`."""

    kind: Kind
    """``"explicit"``: a copy that the line asked for, such as ``x.contiguous()``. ``"hidden"``: a copy that an operator
    made, such as ``x.reshape(...)``, or that the backward made. ``"loss"``: no copy, but an operator read a
    channels_last tensor and its 4-D or 5-D result is not. ``"internal"``: a copy inside a kernel (deep level only)."""
    operator: str
    """torch's name, such as ``"aten.clone.default"``; for an internal copy the operator that made it."""
    source: str
    """The layout state (`esper_guard.Layout`) of what was copied, or of the channels_last input that was lost."""
    destination: str
    """The layout state of the result."""
    source_shape: tuple[Count, ...]
    """Sizes, as torch counts them: (N, C, H, W). Of the costliest occurrence, if `shapes_vary`."""
    shape: tuple[Count, ...]
    """Sizes of the result."""
    dtype: str
    """Of the result, without ``torch.``."""
    device: str
    """Of the result, such as ``"cuda:0"``."""
    phase: Phase
    """``"recompute"`` is a forward run again in the backward, by checkpointing."""
    bytes: Count
    """What all occurrences together wrote into the result; for a loss, the size of the results."""
    changes_format: bool = True
    """Whether channels_last became NCHW or the other way round. False: only strides changed, such as those of a
    transposed matrix or of a slice made contiguous."""
    count: Annotated[int, Meta(ge=1, le=2**63 - 1)] = 1
    shapes_vary: bool = False
    file: str | None = None
    """The user's source: the innermost line outside of torch, the standard library and this package. In the backward
    the line of the forward, or of the hook or ``backward`` method that runs there. None if it is not known."""
    line: Count | None = None
    """Counts from 1."""
    function: str | None = None
    """Its name in ``file``."""
    module: str | None = None
    """The innermost running module, by its name in the outermost: ``"layers.0.conv"``."""
    parameter: str | None = None
    """Whose gradient is accumulated, where that made the copy; such an event has no line."""
    tests: tuple[str, ...] = ()
    """The tests that ran the line, by their pytest ids, where pytest collected the trace."""
    start_ns: Count | None = None
    """Of a raw event: nanoseconds of ``time.perf_counter_ns()``."""
    duration_ns: Count | None = None
    """Of a raw event: how long the operator kept the calling thread; on a GPU not how long the copy took."""
    thread: Count | None = None
    """Of a raw event: ``threading.get_native_id()``."""

    def __str__(self) -> str:
        """``"model.py:41 (layers.0): loss, once: aten.cat.default channels_last -> nchw, 2x8x4x4 float32"``."""
        from esper_guard.trace.table import describe

        return describe(self)

    @property
    def is_copy(self) -> bool:
        """Whether bytes were copied outside of kernels."""
        return self.kind in ("explicit", "hidden")

    @property
    def leaves_channels_last(self) -> bool:
        """Whether it is a loss, or a copy to NCHW."""
        to_nchw = self.kind == "loss" or (self.is_copy and "channels_last" not in self.destination)
        return to_nchw and self.changes_format

    @property
    def location(self) -> str:
        """``"file:line"``, ``"parameter NAME"``, or ``"(unknown)"``."""
        if self.file is not None:
            return self.file if self.line is None else f"{self.file}:{self.line}"
        return f"parameter {self.parameter}" if self.parameter is not None else "(unknown)"

    @property
    def label(self) -> str:
        """What timelines show: ``"hidden: channels_last -> nchw at model.py:41"``."""
        return f"{self.kind}: {self.source} -> {self.destination} at {self.location}"
