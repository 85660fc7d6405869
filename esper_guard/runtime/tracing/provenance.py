"""Whether a channels_last tensor is so by choice, or merely because somebody permuted it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from torch import Tensor
from torch.multiprocessing import reductions

from esper_guard.runtime.formats import has_strides
from esper_guard.runtime.tracing.comparison import is_channels_last

_WeakReference: Final[Any] = reductions.StorageWeakRef
_SWEEP: Final = 512


class Provenance:
    """Tensors that got their channels_last strides from a view, and what was computed from nothing else.

    An NCHW network makes such tensors all the time: tokens (B, H * W, C) transposed and viewed as (B, C, H, W) have
    channels_last strides. Nobody chose a format there, so that none is lost when an addition to the NCHW shortcut
    ends it. A converted tensor or weight among an operator's inputs makes the result a choice again. Known by
    storage, because autograd makes tensors anew for views.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[Any, bool]] = {}
        """By the address of a storage: a weak reference to it, and whether its tensors are channels_last by choice."""

    def note(self, tensor: Tensor, chosen: bool) -> None:
        """What is known of a tensor's storage first, stays."""
        storage = tensor.untyped_storage()
        entry = self.known.get(storage._cdata)
        if entry is None or entry[0].expired():
            if len(self.known) >= _SWEEP and len(self.known) % _SWEEP == 0:
                self.known = {key: entry for key, entry in self.known.items() if not entry[0].expired()}
            self.known[storage._cdata] = (_WeakReference(storage), chosen)

    def flow(self, read: Iterable[Any], result: Tensor) -> None:
        """What is computed from a permuted view of a chosen tensor is chosen, whenever it is permuted back."""
        for value in read:
            if isinstance(value, Tensor) and has_strides(value):
                entry = self.known.get(value.untyped_storage()._cdata)
                if entry is not None and entry[1] and has_strides(result) and not is_channels_last(result):
                    self.note(result, chosen=True)
                    return

    def chosen(self, tensor: Tensor) -> bool:
        """Whether a channels_last tensor is so by choice; True for one that was never seen before."""
        entry = self.known.get(tensor.untyped_storage()._cdata)
        return entry is None or entry[1] or bool(entry[0].expired())
