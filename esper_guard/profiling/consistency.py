"""Whether the figures of a profile that was read belong together. Needs no torch."""

from __future__ import annotations

from esper_guard.profiling.result import AGAIN, Comparison, Profile, Times


def check_consistent(profile: Profile) -> None:
    """Raise ValueError if a table could not be made of it; the message names the place."""
    if not profile.comparisons:
        raise ValueError("a damaged profile: it holds no comparison: measure again")
    for comparison in profile.comparisons:
        reason = _inconsistent(comparison, profile.settings.training)
        if reason is not None:
            raise ValueError(
                f"a damaged profile: the comparison {comparison.workload} on {comparison.device} {reason}: measure again"
            )


def _inconsistent(comparison: Comparison, training: bool) -> str | None:
    names = [variant.name for variant in comparison.variants]
    if {variant.memory_format for variant in comparison.variants} != {"NCHW", "NHWC"}:
        return "lacks a variant in NCHW or one in NHWC"
    if len(set(names)) < len(names):
        return "holds two variants of one name"
    timed = [variant.times for variant in comparison.variants if variant.times is not None]
    if timed and len(timed) < len(names):
        return "has times of some of its variants only"
    if any(_is_uneven(times, training) for times in timed) or len({len(times.step) for times in timed}) > 1:
        return "has not the same number of times, at least one, of every part and variant"
    if comparison.noise is not None and not comparison.noise.samples:
        return "has no times of the variant that was measured again"
    known = {*names, f"{names[0]} {AGAIN}"}
    ratios = [*comparison.ratios, *([comparison.noise.ratio] if comparison.noise is not None else [])]
    for ratio in ratios:
        for name in (ratio.variant, ratio.to):
            if name not in known:
                return f"has a ratio of '{name}', which is none of its variants"
    return None


def _is_uneven(times: Times, training: bool) -> bool:
    lengths = {len(times.step), len(times.forward), *([len(times.backward)] if training else [])}
    return len(lengths) != 1 or 0 in lengths
