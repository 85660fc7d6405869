"""Whether a channels_last tensor is so by choice, or merely because somebody permuted it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from torch import Tensor
from torch.multiprocessing import reductions

from esper_guard.runtime.formats import has_strides
from esper_guard.runtime.tracing.comparison import is_channels_last

_WeakReference: Final[Any] = reductions.StorageWeakRef
_SWEEP: Final = 512


class Known(NamedTuple):
    """Of a storage."""

    reference: Any
    """Weak."""
    chosen: bool
    """Whether its tensors are channels_last by choice, or computed from such."""
    last: bool
    """Whether its memory is channels_last, whatever views of it look like."""


class Provenance:
    """Tensors that got their channels_last strides from a view, what was computed from them, and views of others.

    An NCHW network makes such tensors all the time: tokens (B, H * W, C) transposed and viewed as (B, C, H, W) have
    channels_last strides. Nobody chose a format there, so that none is lost when an addition to the NCHW shortcut
    ends it. A converted tensor or weight among an operator's inputs makes the result a choice again.

    The other way round, a view may hide that memory is channels_last: (B, C, H, W) viewed as (B, G, C / G, H, W).

    Known by storage, because autograd makes tensors anew for views.
    """

    def __init__(self) -> None:
        self.known: dict[int, Known] = {}
        """By the address of the storage, which the weak reference keeps from being used again."""

    def note_view(self, before: Tensor, was_last: bool) -> None:
        """A view made a tensor channels_last that was not (``was_last`` is False), or hid that it was."""
        self._note(before, was_last, was_last)

    def note_result(self, result: Tensor, chosen: bool) -> None:
        """Whether what an operator made is a choice, where its strides can't tell."""
        self._note(result, chosen, last=False)

    def flow(self, read: Iterable[Any], result: Tensor) -> None:
        """What is computed from a permuted view of a chosen tensor is chosen, whenever it is permuted back."""
        for value in read:
            if isinstance(value, list):
                self.flow(value, result)
            elif isinstance(value, Tensor) and has_strides(value):
                entry = self.known.get(value.untyped_storage()._cdata)
                if entry is None or not entry.chosen:
                    continue
                if has_strides(result) and not is_channels_last(result):
                    self.note_result(result, chosen=True)
                return

    def chosen(self, tensor: Tensor) -> bool:
        """Whether a channels_last tensor is so by choice; True for one that was never seen before."""
        entry = self.known.get(tensor.untyped_storage()._cdata)
        return entry is None or entry.chosen

    def hides_channels_last(self, view: Tensor) -> bool:
        """Whether a tensor is a view of channels_last memory in which the channels still vary fastest, but not last."""
        entry = self.known.get(view.untyped_storage()._cdata)
        if entry is None or not entry.last:
            return False
        fastest = [at for at, stride in enumerate(view.stride()) if stride == 1 and view.shape[at] != 1]
        return fastest != [] and fastest[-1] != _last_dimension(view)

    def _note(self, tensor: Tensor, chosen: bool, last: bool) -> None:
        """What is known of a storage first, stays."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            if len(self.known) >= _SWEEP and len(self.known) % _SWEEP == 0:
                self.known = {
                    key: known for key, known in self.known.items() if not known.reference.expired()
                }
            self.known[storage._cdata] = Known(_WeakReference(storage), chosen, last)


def _last_dimension(tensor: Tensor) -> int:
    """The last one that has more than one element."""
    return max(at for at, size in enumerate(tensor.shape) if size != 1)
