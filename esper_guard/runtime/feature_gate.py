"""A learned gate, for the blend that has one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureGate(nn.Module):
    """A learned gate: from the mean of each channel to one value in (0, 1) for each sample.

    Args:
        channels: C of (N, C, H, W) and (N, C, D, H, W) features, or of (B, T, C) tokens.
        hidden: width of the hidden layer. Default: a quarter of the channels, at least 8.

    Raises:
        ValueError: ``channels`` or ``hidden`` is not positive; in `forward`, the features are of another rank.
    """

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = max(8, channels // 4) if hidden is None else hidden
        if channels < 1 or hidden < 1:
            raise ValueError(
                f"FeatureGate needs channels and hidden of at least 1, not {channels} and {hidden}"
            )
        self.score = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Gate values of shape (N, 1, ..., 1), of the features' rank."""
        if features.dim() not in (3, 4, 5):
            raise ValueError(
                f"FeatureGate takes features of rank 3 to 5, not of shape {tuple(features.shape)}"
            )
        positions = [1] if features.dim() == 3 else list(range(2, features.dim()))
        gate: Tensor = torch.sigmoid(self.score(features.mean(positions)))
        return gate.reshape([features.shape[0]] + [1] * (features.dim() - 1))
