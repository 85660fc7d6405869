"""A seed slot, three ways: what the linter flags, what it notes, and what to write.

``forward`` feeds a seed module with the features of its host, cut off from the host's gradients. Only torch is
needed to run it; esper-guard reads it without running it.
"""

import torch
from torch import nn


class CopyingSlot(nn.Module):
    """Copies channels_last features to NCHW on every forward: EG101."""

    def __init__(self, seed: nn.Module, isolate_gradients: bool = True) -> None:
        super().__init__()
        self.seed = seed
        self.isolate_gradients = isolate_gradients

    def forward(self, host_features: torch.Tensor) -> torch.Tensor:
        if self.isolate_gradients:
            seed_input = host_features.contiguous().detach()
        else:
            seed_input = host_features
        return host_features + self.seed(seed_input)


class GuardedSlot(CopyingSlot):
    """Asks first, but ``contiguous()`` asks the same: no EG101, a note (EG102)."""

    def forward(self, host_features: torch.Tensor) -> torch.Tensor:
        seed_input = (
            host_features.detach() if host_features.is_contiguous() else host_features.contiguous().detach()
        )
        return host_features + self.seed(seed_input)


class FormatAwareSlot(CopyingSlot):
    """Copies only what is in neither of the two dense formats: silent."""

    def forward(self, host_features: torch.Tensor) -> torch.Tensor:
        dense = host_features.is_contiguous() or host_features.is_contiguous(
            memory_format=torch.channels_last
        )
        seed_input = host_features.detach() if dense else host_features.contiguous().detach()
        return host_features + self.seed(seed_input)


class FixedSlot(CopyingSlot):
    """Shares the memory, keeps the format, cuts the gradient: what to write."""

    def forward(self, host_features: torch.Tensor) -> torch.Tensor:
        seed_input = host_features.detach() if self.isolate_gradients else host_features
        return host_features + self.seed(seed_input)
