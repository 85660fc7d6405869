"""What was measured, as it is written to a file. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from esper_guard.atomic import write_atomically
from esper_guard.trace.event import Kind, Phase

FORMAT: Final = "esper-guard profile"
VERSION: Final = 1

MemoryFormat: TypeAlias = Literal["NCHW", "NHWC"]
Part: TypeAlias = Literal["step", "forward", "backward"]
AGAIN: Final = "again"
"""Ends the name of a variant that is measured a second time."""


class Machine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where it was measured."""

    esper_guard: str
    torch: str
    python: str
    platform: str
    threads: int
    """Of torch, on the CPU."""
    devices: dict[str, str]
    """The name of the hardware by the name of the device, of those that were used."""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked for."""

    command: str
    """The command line, quoted for a shell."""
    target: str | None
    """None: the built-in model."""
    training: bool
    inputs: list[str]
    """Such as ``"8x3x224x224 float32"``; of the built-in model none, its workloads differ."""
    dtype: str | None
    autocast: str | None
    compiled: bool
    seed: int
    timed: bool


class LineCost(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one line does to memory formats in one step: one event of the trace."""

    kind: Kind
    operator: str
    phase: Phase
    source_format: str
    """The layout state of what was read, as `esper_guard.Layout` prints it."""
    result_format: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    """What all occurrences in the step wrote; for a loss, the size of the results."""
    count: int
    changes_format: bool
    """False: only strides changed."""
    file: str | None
    """Below the working directory, or below ``site-packages``."""
    line: int | None
    text: str
    """The line itself, without its indentation; empty if it can't be read."""
    module: str | None
    parameter: str | None
    """Whose gradient was copied where it is accumulated; such a copy has no line."""
    rule: str | None = None
    """The code of the lint rule that flags the line."""
    finding: str | None = None
    """What that rule says about it."""
    help: str | None = None
    """What that rule says is the remedy."""
    why: str | None = None
    """Why the operator lost the format, where no rule flags the line."""
    remedy: str | None = None
    """What to write instead, where that is known (`esper_guard.operators.remedy_for`)."""

    @property
    def place(self) -> str:
        """``"file:line"``, ``"parameter NAME"``, or ``"(unknown)"``."""
        if self.file is not None:
            return f"{self.file}:{self.line}"
        return f"parameter {self.parameter}" if self.parameter is not None else "(unknown)"

    @property
    def is_copy(self) -> bool:
        """Whether bytes were copied."""
        return self.kind in ("explicit", "hidden")

    @property
    def is_meant(self) -> bool:
        """Whether it is a conversion into channels_last that the line asks for."""
        return self.kind == "explicit" and "channels_last" in self.result_format


class Memory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes, of one step."""

    forward: int
    """Allocated in the forward, whether freed again or not."""
    backward: int
    """Allocated in the backward; 0 in inference."""
    peak: int
    """The most that was allocated at once above what was when the step began."""

    @property
    def allocated(self) -> int:
        """In the whole step."""
        return self.forward + self.backward


class Times(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds, one sample for each round; the same round has the same place in every variant of a comparison."""

    forward: list[float]
    backward: list[float]
    """Empty in inference."""
    step: list[float]

    def of(self, part: Part) -> list[float]:
        """The samples of one part."""
        return {"step": self.step, "forward": self.forward, "backward": self.backward}[part]


class Spread(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A median with its quartiles, in seconds."""

    median: float
    low: float
    high: float


class ModuleTime(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one module takes by itself, without the modules in it, while torch's profiler looks on."""

    module: str
    """Its name in the model; ``"(no module)"`` for what belongs to none."""
    kind: str
    """Its class."""
    forward: Spread
    backward: Spread
    copied: int
    """Bytes of layout copies in one step."""


class Variant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A way to run the step."""

    name: str
    memory_format: MemoryFormat
    isolation: str | None
    """How the built-in model cuts the gradient off; None for a model of the user's."""
    lines: list[LineCost]
    """The costliest first."""
    unseen: list[str]
    """What the tracer could not see."""
    memory: Memory | None
    """None where the device can't tell."""
    times: Times | None = None
    modules: list[ModuleTime] = []

    @property
    def copies(self) -> int:
        """How many copies between channels_last and NCHW a step makes."""
        return sum(line.count for line in self.lines if line.is_copy and line.changes_format)

    @property
    def copied(self) -> int:
        """What these write, in bytes."""
        return sum(line.bytes for line in self.lines if line.is_copy and line.changes_format)

    @property
    def losses(self) -> int:
        """How often an operator reads channels_last and writes NCHW."""
        return sum(line.count for line in self.lines if line.kind == "loss")

    @property
    def other_copied(self) -> int:
        """Bytes of the copies that change strides but no memory format."""
        return sum(line.bytes for line in self.lines if line.is_copy and not line.changes_format)


class Ratio(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time over time of the same round: the median over the rounds, with its 95 % interval."""

    variant: str
    to: str
    part: Part
    median: float
    low: float
    high: float


class Noise(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the same code measured twice differs by."""

    ratio: Ratio
    floor: float
    """No difference smaller than this is claimed: 0.03 is 3 %."""
    rounds: int
    samples: list[float]
    """Seconds of the step, of the variant that was measured again."""


class Comparison(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arms that do the same work on the same device, measured in turn."""

    workload: str
    device: str
    variants: list[Variant]
    """The first is what the others are compared with."""
    ratios: list[Ratio] = []
    noise: Noise | None = None
    hardened: str | None = None
    """What would have happened without `esper_guard.harden`; None if nothing had to be cured."""
    has_formats: bool = True
    """Whether any parameter, buffer or input is 4-D or 5-D, so that the variants differ."""
    advice: list[str] = []

    def variant(self, name: str) -> Variant:
        """The variant of this name."""
        return next(variant for variant in self.variants if variant.name == name)

    def ratio(self, variant: str, to: str, part: Part = "step") -> Ratio | None:
        """None if it was not timed."""
        wanted = (variant, to, part)
        return next((ratio for ratio in self.ratios if (ratio.variant, ratio.to, ratio.part) == wanted), None)


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it."""

    format: Literal["esper-guard profile"] = FORMAT
    version: Literal[1] = VERSION
    machine: Machine
    settings: Settings
    comparisons: list[Comparison]


class _Head(Struct):
    format: Literal["esper-guard profile"]
    version: Annotated[int, Meta(ge=1)]


def save_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Write it as JSON.

    Raises:
        OSError: it can't be written.
    """
    write_atomically(path, msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")


def load_profile(path: str | os.PathLike[str]) -> Profile:
    """Read what `save_profile` wrote.

    Raises:
        OSError: it can't be read.
        ValueError: it is no profile, a damaged one, or of a newer version; the message names the file and the place.
    """
    content = Path(path).read_bytes()
    try:
        head = msgspec.json.decode(content, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: no profile: {error}; write one with `esper-guard profile --json {path}`"
        ) from error
    if head.version > VERSION:
        raise ValueError(
            f"{path}: a profile of version {head.version}; this esper-guard reads up to version {VERSION}: upgrade it"
        )
    try:
        return msgspec.json.decode(content, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: a damaged profile: {error}; measure again") from error
