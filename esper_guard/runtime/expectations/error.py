"""What is raised where a memory format is not the expected one."""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    """One value that is not as expected. Holds text and numbers only, so that it outlives the value and pickles."""

    path: str
    """Where: ``"x"``, ``"batch['image'][0]"``, ``"self.weight"``, ``"result"``."""
    found: str
    """Its layout state (`esper_guard.Layout`), or what it is instead of a tensor."""
    wanted: str
    """As it was written: ``"channels_last"``, ``"same as x (channels_last)"``."""
    shape: tuple[int, ...] | None = None
    """Sizes, as torch counts them: (N, C, H, W). None if it is no tensor."""
    strides: tuple[int, ...] | None = None
    """In elements. None if it is no tensor, or one without strides."""
    kind: str = ""
    """Dtype and device: ``"float32 cpu"``."""
    lost_at: str | None = None
    """If a tracer ran: where a tensor of this shape left channels_last, ``"model.py:41 (layers.0): aten.cat.default"``;
    and why, if `esper_guard.operators.why_lost` can tell."""
    remedy: str = ""
    """What to write instead."""

    @property
    def headline(self) -> str:
        """``"x is nchw, expected channels_last"``."""
        return f"{self.path} is {self.found}, expected {self.wanted}"


class MemoryFormatError(AssertionError):
    """A memory format is not the expected one. Its text has less than ten lines; it pickles.

    Attributes:
        violations: what is not as expected, in the order of the arguments; empty if a bound on copies is exceeded.
    """

    def __init__(self, message: str, violations: tuple[Violation, ...] = ()) -> None:
        super().__init__(message, violations)
        self.violations = violations

    def __str__(self) -> str:
        return str(self.args[0])


class MemoryFormatWarning(UserWarning):
    """The same, where ``ESPER_GUARD=warn``."""


for _kind in (MemoryFormatError, MemoryFormatWarning):
    _kind.__module__ = "esper_guard"  # as users import it, and as test reports can show it

_OTHERS = 3


def error_of(where: str, violations: list[Violation]) -> MemoryFormatError:
    """One error for all that is wrong at once.

    Args:
        where: the function or module, such as ``"forward()"``.
        violations: at least one.
    """
    first, *others = violations
    lines = [f"{where}: {first.headline}"]
    if first.shape is not None:
        strides = "" if first.strides is None else f", strides {_shortened(first.strides)}"
        lines.append(f"  {first.path}: shape {_shortened(first.shape)}{strides}, {first.kind}")
    if first.lost_at is not None:
        lines.append(f"  lost at: {first.lost_at}")
    if first.remedy:
        lines.append(f"  help: {first.remedy}")
    lines += [f"  also: {other.headline}" for other in others[:_OTHERS]]
    if len(others) > _OTHERS:
        lines.append(f"  and {len(others) - _OTHERS} more")
    return MemoryFormatError("\n".join(lines), tuple(violations))


def _shortened(sizes: tuple[int, ...]) -> str:
    return str(sizes) if len(sizes) <= 8 else f"({', '.join(map(str, sizes[:8]))}, ...)"
