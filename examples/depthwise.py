"""A depthwise convolution with many channels and few positions, as the last stages of mobile networks have them."""

from __future__ import annotations

from torch import nn


def make(channels: int = 512) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
    )
