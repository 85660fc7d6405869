"""Small host networks with a place for a seed, and three ways to isolate the seed's input.

`builtin` runs this file under a name outside of the package, so that its lines count as a user's in traces.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper_guard.runtime.seed_slot import SeedSlot


class Copied(nn.Module):
    """The ticket's way."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous().detach()  # noqa: EG101


class Guarded(nn.Module):
    """The ticket's way, with a guard that changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return (x if x.is_contiguous() else x.contiguous()).detach()  # noqa: EG102


def make_slot(isolation: str, seed: nn.Module, stage: str) -> SeedSlot:
    """A slot in a stage; its seed gets its input by ``x.detach()`` ("detach"), or by a module before it.

    That module ("copy", "guarded") is one call more, about two microseconds.
    """
    if isolation == "detach":
        slot = SeedSlot(isolate_gradients=True)
    else:
        slot = SeedSlot(isolate_gradients=False)
        seed = nn.Sequential({"copy": Copied, "guarded": Guarded}[isolation](), seed)
    slot.germinate(seed)
    for step in ("training", "blending", "holding"):
        slot.advance(step)
        if step == stage:
            break
    if stage == "blending":
        slot.set_alpha(0.5)
    return slot


def make_seed(kind: str, channels: int) -> nn.Module:
    """A convolution, or the normalisation that crashes on affected builds of torch (and is hardened there)."""
    if kind == "norm":
        return nn.GroupNorm(groups(channels), channels)
    return nn.Conv2d(channels, channels, 3, padding=1)


def make_token_seed(kind: str, channels: int) -> nn.Module:
    """The same for tokens."""
    return nn.LayerNorm(channels) if kind == "norm" else nn.Linear(channels, channels)


def groups(channels: int) -> int:
    return next(number for number in (8, 4, 2, 1) if channels % number == 0)


class ConvHost(nn.Module):
    """Convolution, batch normalisation, ReLU; all at the resolution of the input."""

    def __init__(self, channels: int, slot: nn.Module) -> None:
        super().__init__()
        self.stem = self.block(3, channels)
        self.before = self.block(channels, channels)
        self.slot = slot
        self.after = self.block(channels, channels)
        self.head = nn.Linear(channels, 10)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        features = self.slot(self.before(self.stem(images)))
        result: Tensor = self.head(self.after(features).mean((2, 3)))
        return result


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResNetHost(nn.Module):
    """A pool, strides and shortcuts; the slot is at a quarter of the resolution."""

    def __init__(self, channels: int, slot: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.before = Residual(channels, channels, 1)
        self.slot = slot
        self.after = Residual(channels, 2 * channels, 2)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.before(self.pool(torch.relu(self.norm(self.stem(images)))))
        features = self.after(self.slot(features))
        result: Tensor = self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(features, 1), 1))
        return result


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then LayerNorm and Linear over channels that are put last by a permute."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.narrow(nn.functional.gelu(self.wide(self.norm(y))))
        result: Tensor = x + y.permute(0, 3, 1, 2)
        return result


class ConvNeXtHost(nn.Module):
    """The slot is at a quarter of the resolution."""

    def __init__(self, channels: int, slot: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 4, 4)
        self.before = ConvNeXtBlock(channels)
        self.slot = slot
        self.after = ConvNeXtBlock(channels)
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.after(self.slot(self.before(self.stem(images))))
        result: Tensor = self.head(self.norm(features.mean((2, 3))))
        return result


class TokenHost(nn.Module):
    """A transformer on patches of 4x4; the slot gets tokens (B, T, C), T = (resolution / 4) ** 2.

    Tokens are a transposed view of what the convolution wrote: contiguous if that was channels_last.
    """

    def __init__(self, channels: int, slot: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 4, 4)
        self.before = self.block(channels)
        self.slot = slot
        self.after = self.block(channels)
        self.head = nn.Linear(channels, 10)

    @staticmethod
    def block(channels: int) -> nn.Module:
        return nn.TransformerEncoderLayer(
            channels, groups(channels), 2 * channels, dropout=0.0, batch_first=True, norm_first=True
        )

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = self.after(self.slot(self.before(tokens)))
        result: Tensor = self.head(tokens.mean(1))
        return result


HOSTS = {"conv": ConvHost, "resnet": ResNetHost, "convnext": ConvNeXtHost, "tokens": TokenHost}


def build(host: str, channels: int, isolation: str, seed_kind: str, stage: str) -> nn.Module:
    """A host with a seed in its slot."""
    make = make_token_seed if host == "tokens" else make_seed
    slot = make_slot(isolation, make(seed_kind, channels), stage)
    return HOSTS[host](channels, slot)
