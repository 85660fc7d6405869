"""The built-in model, as workloads. Needs no torch until one is built."""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import product
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import nn

_SHOWN_AS: Final = "esper_guard/profiling/hosts.py"


@dataclass(frozen=True)
class BuiltIn:
    """One size of the built-in model."""

    host: str
    stage: str
    seed_kind: str
    batch: int
    channels: int
    resolution: int

    @property
    def name(self) -> str:
        """``"conv host, training, conv seed, images 8x3x32x32, features 8x64x32x32"``."""
        features = "x".join(map(str, self.feature_sizes))
        return (
            f"{self.host} host, {self.stage}, {self.seed_kind} seed, "
            f"images {self.batch}x3x{self.resolution}x{self.resolution}, features {features}"
        )

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Of what the slot gets: (N, C, H, W), or (N, T, C) tokens."""
        if self.host == "conv":
            return self.batch, self.channels, self.resolution, self.resolution
        side = -(-self.resolution // 4) if self.host == "resnet" else self.resolution // 4
        if self.host == "tokens":
            return self.batch, side * side, self.channels
        return self.batch, self.channels, side, side

    @property
    def input_sizes(self) -> tuple[int, int, int, int]:
        """Of the images: (N, 3, H, W)."""
        return self.batch, 3, self.resolution, self.resolution

    def build(self, isolation: str) -> nn.Module:
        """The model, with one way of isolation."""
        model: nn.Module = _hosts().build(self.host, self.channels, isolation, self.seed_kind, self.stage)
        return model


def built_ins(
    hosts: Sequence[str],
    stages: Sequence[str],
    seed_kinds: Sequence[str],
    batches: Sequence[int],
    channels: Sequence[int],
    resolutions: Sequence[int],
) -> list[BuiltIn]:
    """Every combination."""
    return [BuiltIn(*values) for values in product(hosts, stages, seed_kinds, batches, channels, resolutions)]


@cache
def _hosts() -> ModuleType:
    """hosts.py under a name that is not below this package, whose lines a tracer leaves out."""
    text = resources.files("esper_guard.profiling").joinpath("hosts.py").read_text(encoding="utf-8")
    module = ModuleType("esper_guard_profile_hosts")
    module.__file__ = _SHOWN_AS
    linecache.cache[_SHOWN_AS] = (len(text), None, text.splitlines(keepends=True), _SHOWN_AS)
    exec(compile(text, _SHOWN_AS, "exec"), module.__dict__)  # noqa: S102 - our own source
    return module
