"""A profile as a picture. Needs matplotlib, and no torch."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from esper_guard.profiling.result import Comparison, Profile, Variant
from esper_guard.profiling.statistics import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMAT_COLOURS = {"NCHW": "#0072B2", "NHWC": "#E69F00"}  # of Okabe and Ito, for all kinds of colour vision
_BYTES = (("copied", "#D55E00"), ("peak", "#56B4E9"), ("allocated", "#009E73"))
_MIB = 2**20


def picture(profile: Profile, suffix: str) -> bytes:
    """Step time and bytes of each variant, side by side; the same figures give the same SVG.

    Args:
        profile: what to show.
        suffix: ``"svg"`` or ``"png"``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    variants = [
        (comparison, variant) for comparison in profile.comparisons for variant in comparison.variants
    ]
    timed = any(variant.times is not None for _, variant in variants)
    with matplotlib.rc_context(
        {"svg.hashsalt": "esper-guard", "font.size": 9.0, "text.parse_math": False}  # dollars are text
    ):
        figure = Figure(figsize=(11.0 if timed else 8.0, 1.8 + 0.55 * len(variants)), layout="constrained")
        axes = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
        if timed:
            _draw_times(axes[0], [variant for _, variant in variants])
        _draw_bytes(axes[-1], [variant for _, variant in variants])
        labels = [_label(profile, comparison, variant) for comparison, variant in variants]
        axes[0].set_yticks(range(len(variants)), labels)
        axes[0].set_ylim(len(variants) - 0.4, -0.6)
        figure.suptitle(_title(profile))
        figure.legend(loc="outside lower right", ncols=len(_BYTES), frameon=False)
        written = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {}
        figure.savefig(written, format=suffix, dpi=150, metadata=metadata)
    return written.getvalue()


def _draw_times(axes: Axes, variants: list[Variant]) -> None:
    axes.set_title("time of one step")
    axes.set_xlabel("milliseconds (median, with quartiles)")
    for at, variant in enumerate(variants):
        if variant.times is None:
            continue
        step = spread([sample * 1e3 for sample in variant.times.step])
        whiskers = [[step.median - step.low], [step.high - step.median]]
        axes.barh(
            at,
            step.median,
            height=0.6,
            color=_FORMAT_COLOURS[variant.memory_format],
            xerr=whiskers,
            capsize=3,
        )
        axes.annotate(
            f"{step.median:.2f}",
            (step.high, at),
            (6, 0),
            textcoords="offset points",
            verticalalignment="center",
        )
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_bytes(axes: Axes, variants: list[Variant]) -> None:
    axes.set_title("bytes of one step")
    axes.set_xlabel("MiB")
    height = 0.8 / len(_BYTES)
    for place, (name, colour) in enumerate(_BYTES):
        sizes = [_size(variant, name) / _MIB for variant in variants]
        positions = [at + (place - 1) * height for at in range(len(variants))]
        axes.barh(positions, sizes, height=height, color=colour, label=name)
        for position, size in zip(positions, sizes, strict=True):
            shown = f"{size:.1f}" if size else "0"
            axes.annotate(
                shown,
                (size, position),
                (3, 0),
                textcoords="offset points",
                verticalalignment="center",
                fontsize=7,
            )
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _size(variant: Variant, name: str) -> int:
    if name == "copied":
        return variant.copied
    if variant.memory is None:
        return 0
    return variant.memory.peak if name == "peak" else variant.memory.allocated


def _label(profile: Profile, comparison: Comparison, variant: Variant) -> str:
    """The workload is named once, at its first variant."""
    if len(profile.comparisons) == 1 or variant is not comparison.variants[0]:
        return variant.name
    return f"{comparison.workload}, {comparison.device}\n{variant.name}"


def _title(profile: Profile) -> str:
    what = profile.settings.target or "built-in host with a SeedSlot"
    if len(profile.comparisons) == 1:
        comparison = profile.comparisons[0]
        what = comparison.workload + f", {comparison.device}"
    kind = "training step" if profile.settings.training else "inference"
    return f"{what}, {kind}, torch {profile.machine.torch}"
