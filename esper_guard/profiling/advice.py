"""What follows from the figures of a comparison, in sentences. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from esper_guard.profiling.choices import ISOLATIONS
from esper_guard.profiling.line_table import modules_of
from esper_guard.profiling.result import Comparison, LineCost, Machine, Noise, Ratio, Settings, Variant
from esper_guard.profiling.statistics import FEWEST_ROUNDS, is_faster, is_quiet, is_slower
from esper_guard.trace.sizes import format_size
from esper_guard.trace.table import plural

_MOST_LINES: Final = 8
_MUCH_MORE: Final = 1.1
_REORDERS: Final = {"cpu": "oneDNN", "cuda": "cuDNN"}


def advise(comparison: Comparison, machine: Machine, settings: Settings) -> list[str]:
    """Whether channels_last is worth it, what eats the gain, what would help, and how sure all that is."""
    return [
        *_crash(comparison, settings),
        _verdict(comparison),
        *_about_memory(comparison),
        *_about_lines(_channels_last(comparison), settings),
        *_about_isolation(comparison),
        *_certainty(comparison, machine),
    ]


def _crash(comparison: Comparison, settings: Settings) -> Iterator[str]:
    """What would happen without `esper_guard.harden`; of a user's own model that comes first."""
    if comparison.hardened is None:
        return
    if settings.target is None:
        yield f"Hardened: {comparison.hardened}."
    else:
        yield (
            f"As it stands, this model is not safe in channels_last on this torch: {comparison.hardened}. Call "
            "`esper_guard.harden(model)` before you train it."
        )


def _channels_last(comparison: Comparison) -> Variant:
    """The variant that channels_last is judged by."""
    return next(variant for variant in comparison.variants if variant.memory_format == "NHWC")


def _verdict(comparison: Comparison) -> str:
    first, last = comparison.variants[0], _channels_last(comparison)
    if not comparison.has_formats:
        return (
            "channels_last changes nothing here: no parameter, buffer or input is 4-D or 5-D, so that both variants are "
            "the same."
        )
    ratio, noise = comparison.ratio(last.name, first.name), comparison.noise
    bytes_too = f"and {_copied(last)}"
    if ratio is None or noise is None:
        return f"Time was not measured. In channels_last the step {_copied(last)}."
    if noise.rounds < FEWEST_ROUNDS:
        return (
            f"Can't tell whether channels_last is worth it here: {noise.rounds} rounds are too few for an "
            f"interval, measure at least {FEWEST_ROUNDS}. The step {_copied(last)}."
        )
    if is_faster(ratio, noise):
        worth = "is worth it here, if memory allows" if _needs_more(first, last) else "is worth it here"
        return f"channels_last {worth}: the step takes {_shown(ratio)} of the time, {bytes_too}."
    if is_slower(ratio, noise):
        return (
            f"channels_last is not worth it here: the step takes {_shown(ratio)} times as long, {bytes_too}."
        )
    if not is_quiet(noise):
        return (
            f"Can't tell whether channels_last is worth it here: the step takes {_shown(ratio)} of the time, and this "
            f"machine is too noisy to tell differences below {_percent(noise)}; the step {_copied(last)}."
        )
    return (
        f"channels_last makes no difference that this machine can tell: the step takes {_shown(ratio)} of the "
        f"time, and differences below {_percent(noise)} are noise; the step {_copied(last)}."
    )


def _copied(variant: Variant) -> str:
    if variant.unseen:
        return "copies what could not be seen"
    if not variant.copies:
        return "copies nothing between memory formats"
    return f"copies {format_size(variant.copied)} between memory formats ({plural(variant.copies, 'copy')})"


def _needs_more(first: Variant, last: Variant) -> bool:
    """Whether the peak is a tenth higher, or more."""
    return (
        first.memory is not None
        and last.memory is not None
        and last.memory.peak > _MUCH_MORE * first.memory.peak
    )


def _about_memory(comparison: Comparison) -> Iterator[str]:
    first, last = comparison.variants[0], _channels_last(comparison)
    if first.memory is None or last.memory is None:
        return
    peak = _against(last.memory.peak, first.memory.peak)
    yield f"Memory: at its peak the step needs {peak}; in all it allocates {_against(last.memory.allocated, first.memory.allocated)}."


def _against(ours: int, theirs: int) -> str:
    """``"68.8 MiB, against 42.3 MiB in NCHW (+63 %)"``."""
    if ours == theirs:
        return f"{format_size(ours)}, as in NCHW"
    change = f" ({100 * (ours - theirs) / theirs:+.0f} %)" if theirs else ""
    return f"{format_size(ours)}, against {format_size(theirs)} in NCHW{change}"


def _about_lines(variant: Variant, settings: Settings) -> Iterator[str]:
    """The lines that eat the gain, the costliest first."""
    if variant.unseen:
        how = (
            "measure without --compile"
            if settings.compiled
            else 'run eagerly what the model compiles itself: torch.compiler.set_stance("force_eager")'
        )
        yield f"Not seen: {'; '.join(variant.unseen)}. To see the lines of eager code, {how}."
    copies = [line for line in variant.lines if line.is_copy and line.changes_format and not line.is_meant]
    losses = [line for line in variant.lines if line.kind == "loss"]
    places = list(dict.fromkeys(line.place for line in (*copies, *losses)))
    for place in places[:_MOST_LINES]:
        here = [line for line in (*copies, *losses) if line.place == place]
        yield _about_place(here)
    if len(places) > _MOST_LINES:
        rest = sum(line.bytes for line in copies if line.place in places[_MOST_LINES:])
        yield f"{_lines(len(places) - _MOST_LINES)} more copy {format_size(rest)} or lose channels_last."
    meant = sum(
        line.bytes for line in variant.lines if line.is_copy and line.changes_format and line.is_meant
    )
    if meant:
        yield (
            f"{format_size(meant)} of the copies are conversions into channels_last that a line asks for: they are meant."
        )
    if not places and not variant.unseen:
        yield "No line copies out of channels_last or loses it."


def _lines(number: int) -> str:
    """``"1 line"``, ``"2 lines"``."""
    return "1 line" if number == 1 else f"{number} lines"


def _about_place(lines: list[LineCost]) -> str:
    """One line of source: what it does, and what would help."""
    copied = sum(line.bytes for line in lines if line.is_copy)
    code = f" `{lines[0].text}`" if lines[0].text else ""
    states = dict.fromkeys(f"{line.source_format} -> {line.result_format}" for line in lines)
    if lines[0].parameter is not None:
        does = f"has a gradient in another format, of which {format_size(copied)} are copied a step"
    elif copied:
        does = f"copies {format_size(copied)} a step"
    elif all(line.phase != "forward" for line in lines):
        does = "loses channels_last in the backward: its gradient is NCHW"
    else:
        does = "loses channels_last: its result is NCHW"
    modules = modules_of([line for line in lines if line.is_copy] or lines)
    does += f", in {modules}" if modules else ""
    remedy = next((sentence for sentence in map(_remedy, lines) if sentence is not None), "")
    return f"{lines[0].place}{code} {does} ({', '.join(states)}).{remedy}"


def _remedy(line: LineCost) -> str | None:
    if line.help is not None:
        return f" {line.rule}: {line.help.rstrip('.')}."
    if line.why is not None:
        instead = "" if line.remedy is None else f" Write instead: {line.remedy}."
        return f" Why: {line.why}.{instead}"
    if line.finding is not None:
        return f" {line.rule}: {line.finding.rstrip('.')}."
    if line.kind == "explicit":
        return " The line asks for it: leave it out unless something there needs NCHW."
    return None


def _about_isolation(comparison: Comparison) -> Iterator[str]:
    """What the ways to cut the gradient off cost over the first one."""
    for variant in comparison.variants:
        ours = next(other for other in comparison.variants if other.memory_format == variant.memory_format)
        if variant is ours or variant.isolation is None or ours.isolation is None:
            continue
        costs = _costs(variant, ours)
        ratio, noise = comparison.ratio(variant.name, ours.name), comparison.noise
        time = f"; {_time(ratio, noise)}" if ratio is not None and noise is not None else ""
        forms = f"`{ISOLATIONS.get(variant.isolation, variant.isolation)}` instead of `{ISOLATIONS.get(ours.isolation)}`"
        bytes_ = f"the step {', '.join(costs)}" if costs else "no byte more is copied or allocated"
        yield f"{forms} in {variant.memory_format}: {bytes_}{time}."


def _costs(variant: Variant, ours: Variant) -> list[str]:
    """What differs in bytes."""
    differences = [("copies", variant.copied + variant.other_copied - ours.copied - ours.other_copied, "")]
    if variant.memory is not None and ours.memory is not None:
        differences += [
            ("allocates", variant.memory.forward - ours.memory.forward, " in the forward"),
            ("allocates", variant.memory.backward - ours.memory.backward, " in the backward"),
            ("needs", variant.memory.peak - ours.memory.peak, " at its peak"),
        ]
    return [
        f"{verb} {format_size(abs(size))} {'more' if size > 0 else 'less'}{where}"
        for verb, size, where in differences
        if size
    ]


def _time(ratio: Ratio, noise: Noise) -> str:
    if is_slower(ratio, noise):
        return f"it takes {_shown(ratio)} times as long"
    if is_faster(ratio, noise):
        return f"it takes {_shown(ratio)} of the time"
    return f"no difference in time that this machine can tell: {_shown(ratio)}"


def _certainty(comparison: Comparison, machine: Machine) -> Iterator[str]:
    hardware = machine.devices.get(comparison.device, comparison.device)
    where = f"torch {machine.torch}, {hardware}"
    if comparison.device == "cpu":
        where += f", threads: {machine.threads}"
    noise = comparison.noise
    exact = "Bytes are exact" if _channels_last(comparison).unseen else "Bytes and copies are exact"
    if noise is None:
        yield f"{exact}, and the same in every run: {where}."
    else:
        floor = f"differences below {_percent(noise)} are not claimed"
        if not is_quiet(noise):
            floor = (
                f"it is too noisy here to tell differences below {_percent(noise)}: close other programs, try "
                "--threads 1 or give --time more"
            )
        yield (
            f"How sure: {noise.rounds} rounds, medians of ratios within a round with 95 % intervals; the same code against "
            f"itself is {_shown(noise.ratio)}, so {floor}. {exact}. {where}."
        )
    library = _REORDERS.get(comparison.device.partition(":")[0])
    if library is not None:
        yield f"Reorders inside the kernels of {library} are in the times, and in no count of copies."


def _shown(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _percent(noise: Noise) -> str:
    if noise.floor > 1:
        return f"a factor of {1 + noise.floor:.1f}"
    return f"{noise.floor * 100:.1f} %"
