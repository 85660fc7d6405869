"""Convolutions between instance normalisations, as style transfer has them: each of these copies channels_last."""

from __future__ import annotations

from torch import Tensor, nn


class StyleNet(nn.Module):
    def __init__(self, channels: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(self.block(channels) for _ in range(blocks)))
        self.head = nn.Conv2d(channels, 3, 3, padding=1)

    @staticmethod
    def block(channels: int) -> nn.Module:
        return nn.Sequential(
            nn.InstanceNorm2d(channels, affine=True), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(self.stem(images)))
        return result
