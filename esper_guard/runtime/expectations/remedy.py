"""What to write so that a tensor has the expected format."""

from __future__ import annotations

from torch import Tensor

from esper_guard.runtime.expectations.wanted import Format
from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS, layout_of


def remedy_for(tensor: Tensor, wanted: Format, made: bool) -> str:
    """One sentence; empty where nothing general can be said. ``made``: it comes out of what is checked.

    Source: docs/runtime.md, "Layouts", whose table is measured by tests/runtime/test_formats.py.
    """
    rank, layout = tensor.dim(), layout_of(tensor)
    if wanted.state == "nchw" and layout.state != "ambiguous":
        return "`.contiguous()` makes it NCHW, with a copy"
    if wanted.state != "channels_last":
        return ""
    if rank not in CHANNELS_LAST_FORMATS or wanted.rank not in (None, rank):
        ranks = "4-D and 5-D tensors" if wanted.rank is None else f"{wanted.rank}-D tensors"
        return f"only {ranks} have this format; this one is {rank}-D"
    torch_name = str(CHANNELS_LAST_FORMATS[rank])
    conversion = f"`.to(memory_format={torch_name})`"
    if layout.state == "ghost":
        return (
            f"slice with x[:1] instead of x[0].unsqueeze(0), or write {conversion}; "
            f"`.contiguous(memory_format={torch_name})` leaves a ghost as it is"
        )
    if layout == ("ambiguous", wanted.state):
        return ""
    if layout.state == "strided":
        return f"`.contiguous(memory_format={torch_name})` closes the gaps, with a copy"
    if layout.state == "ambiguous":
        return f"{conversion} sets the strides that kernels go by, `.contiguous(...)` does not"
    if made:
        return f"see which line loses it: `with trace_layouts() as trace: ...; print(trace)`, or convert with {conversion}"
    return f"convert it once, where it is made: {conversion}"
