"""``esper-guard doctor``: whether this machine has the known native bugs, and what to do."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from esper_guard import __version__

if TYPE_CHECKING:
    from esper_guard.runtime.hazards.diagnosis import Diagnosis

FOUND = 1
_COLORS = {"affected": "red", "not affected": "green", "could not tell": "yellow"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--strict", is_flag=True, help="Exit with status 1 unless every probe passed.")
@click.option("--ignore", multiple=True, metavar="HAZARD", help="Leave a hazard out; can be repeated.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for each probe.",
)
@click.pass_context
def doctor(
    context: click.Context, as_json: bool, strict: bool, ignore: tuple[str, ...], timeout: float
) -> None:
    """Probe this machine for native bugs around memory formats.

    Each known bug is tried out in a child process, so that a crash harms nothing. Nothing is hardened there; for an
    affected operator the probe runs once more with the cure that esper_guard.harden applies.
    """
    try:
        import torch
    except ImportError as error:
        raise click.ClickException(
            f"torch can't be imported here ({error}): install it with pip install 'esper-guard[torch]'"
        ) from error
    from esper_guard.runtime.hazards.diagnosis import diagnose
    from esper_guard.runtime.hazards.registry import HAZARDS, select

    try:
        left_out = select(ignore)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--ignore'") from error
    hazards = [hazard for hazard in HAZARDS.values() if hazard not in left_out]
    with ThreadPoolExecutor(max_workers=2) as pool:
        diagnoses = list(pool.map(lambda hazard: diagnose(hazard, timeout), hazards))
    machine = {
        "esper_guard": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "devices": _devices(),
    }
    click.echo(_json(machine, diagnoses) if as_json else _text(machine, diagnoses))
    if strict and any(diagnosis.verdict != "not affected" for diagnosis in diagnoses):
        context.exit(FOUND)


def _devices() -> list[str]:
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    found += [
        f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.xpu.is_available():
        found += [f"xpu:{index}" for index in range(torch.xpu.device_count())]
    return found


def _detach(diagnoses: list[Diagnosis]) -> str | None:
    """Whether ``x.detach()`` on its own is safe here; None if nothing was found out about it."""
    for diagnosis in diagnoses:
        if diagnosis.hazard.id == "group-norm-null-write":
            if diagnosis.verdict == "not affected":
                return "safe: no copy is needed in front of it, in any memory format"
            if diagnosis.verdict == "affected":
                return (
                    "safe, except that a GroupNorm on the CPU that reads its channels_last result crashes in the "
                    "backward (so does one that reads any other channels_last input that needs no gradient): harden "
                    "the model instead of copying"
                )
    return None


def _text(machine: dict[str, Any], diagnoses: list[Diagnosis]) -> str:
    lines = [
        f"{name:<12} {', '.join(value) if isinstance(value, list) else value}"
        for name, value in machine.items()
    ]
    lines.append("")
    for diagnosis in diagnoses:
        hazard = diagnosis.hazard
        verdict = click.style(diagnosis.verdict, fg=_COLORS[diagnosis.verdict], bold=True)
        lines.append(f"{verdict}: {hazard.id} ({diagnosis.why})")
        if diagnosis.verdict != "not affected":
            lines.append(f"  {hazard.title}")
            lines.append(f"  what to do: {hazard.advice}")
        if diagnosis.cured is not None:
            lines.append(f"  with esper_guard.harden: {'cured' if diagnosis.cured else 'NOT cured'}")
    safety = _detach(diagnoses)
    if safety is not None:
        lines += ["", f"x.detach() is {safety}"]
    return "\n".join(lines)


def _json(machine: dict[str, Any], diagnoses: list[Diagnosis]) -> str:
    import json

    found = [
        {
            "id": diagnosis.hazard.id,
            "title": diagnosis.hazard.title,
            "consequence": diagnosis.hazard.consequence.value,
            "devices": diagnosis.hazard.devices,
            "verdict": diagnosis.verdict,
            "why": diagnosis.why,
            "cured": diagnosis.cured,
            "advice": diagnosis.hazard.advice,
            "references": diagnosis.hazard.references,
        }
        for diagnosis in diagnoses
    ]
    return json.dumps({**machine, "detach": _detach(diagnoses), "hazards": found}, indent=2)
