"""Which operators of torch keep channels_last, and why one lost it. Needs no torch; the table is `operator_table`.

``python -m esper_guard.operators > docs/operators.md`` writes it as a page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Final

from esper_guard.operator_table import OPERATORS, VERSIONS, Effect, Operator
from esper_guard.remedies import REMEDIES

__all__ = [
    "OPERATORS",
    "VERSIONS",
    "Effect",
    "Operator",
    "cases_of",
    "cases_of_aten",
    "effect_of",
    "page",
    "remedy_for",
    "why_lost",
]

_MADE_BY_MANY: Final = frozenset({"clone", "_to_copy", "copy_"})
"""A copy says nothing about what made it."""
_FLATTENS: Final = re.compile(r"\breshape\((?:[^(),]|\([^()]*\)|\[[^\]]*\])+,\s*-1\s*\)")
"""``x.reshape(x.shape[0], -1)``."""
_LOSE_NOTHING: Final = frozenset({Effect.KEEPS, Effect.ANY})


def cases_of(name: str) -> tuple[Operator, ...]:
    """The lines of an operator, in the order of the table; empty if it is not there.

    Args:
        name: as users write it (``"softmax"``: wherever it lives), with its home (``"torch.nn.functional.softmax"``),
            or of a module class (``"torch.nn.Softmax2d"``, ``"Softmax2d"``).
    """
    return _index(_names).get(name, ())


def cases_of_aten(operator: str) -> tuple[Operator, ...]:
    """The lines that may be meant where a tracer shows an operator, such as ``"aten._softmax.default"``."""
    name = operator.removeprefix("aten.")
    found = _index(_aten_names)
    return found.get(name) or found.get(name.partition(".")[0], ())


def effect_of(name: str, device: str = "cpu", arguments: Mapping[str, str] | None = None) -> Effect | None:
    """What an operator does to channels_last.

    >>> effect_of("torch.nn.functional.pad")
    <Effect.DEPENDS: 'writes a format that depends on its arguments'>
    >>> effect_of("pad", arguments={"mode": "circular"})
    <Effect.DROPS: 'writes NCHW whatever it reads'>

    Args:
        name: as for `cases_of`.
        device: ``"cpu"`` or ``"cuda"``, with or without a number.
        arguments: the keyword arguments of a call by their names: the value of a string, the source text of anything
            else. Without, they are not known.

    Returns:
        `Effect.DEPENDS` where several cases are left that differ; None if the operator is not in the table, or was
        not measured on the device.
    """
    cases = cases_of(name)
    if arguments is not None:
        written = {
            text for key, value in arguments.items() for text in (f"{key}={value}", f'{key}="{value}"')
        }
        chosen = [case for case in cases if case.when.partition(",")[0] in written]
        chosen = chosen or [case for case in cases if not case.when]
        cases = (*chosen, *(case for case in cases if case.when and "=" not in case.when))
    return _common(case.effect(device) for case in cases)


def why_lost(operator: str, device: str = "cpu", line: str = "") -> str | None:
    """Why an operator that a tracer shows lost channels_last: ``"softmax writes NCHW whatever it reads (CPU)"``.

    Args:
        operator: torch's name, such as ``"aten._softmax.default"``.
        device: such as ``"cuda:0"``.
        line: the source line that it ran on, which tells apart operators that are the same to torch.

    Returns:
        One sentence; None where the table does not know it, or knows several that it may have been.
    """
    named = _lost(operator, device, line)
    effect = _common(case.effect(device) for case in named)
    if effect is None or len({case.name for case in named}) > 1:
        return None
    case = f" ({named[0].when})" if len(named) == 1 and named[0].when else ""
    return f"{named[0].name}{case} {effect.value} ({device.partition(':')[0].upper()})"


def remedy_for(operator: str, device: str, text: str) -> str | None:
    """What to write instead of an operator that lost channels_last: ``"-F.softplus(-x)"``.

    It was measured, on the CPU, to give the same values and gradients without a copy between formats or a loss.

    Args:
        operator: torch's name, such as ``"aten._softmax.default"``.
        device: such as ``"cuda:0"``.
        text: the source line that it ran on, as for `why_lost`.

    Returns:
        An expression of a 4-D image ``x``, or a phrase; None where nothing is known, or the line may mean several
        operators.
    """
    named = _lost(operator, device, text)
    if any(case.name == "reshape" for case in named) and not _FLATTENS.search(text):
        return None  # only what flattens is known to have one
    found = {_remedies().get((case.name, case.when)) for case in named}
    return found.pop() if len(found) == 1 else None


def page() -> str:
    """The table as markdown, with a newline at its end."""
    lines = [_HEADER.format(", ".join(VERSIONS[:-1]), VERSIONS[-1], VERSIONS[0])]
    for case in OPERATORS:
        when = f", {case.when}" if case.when else ""
        name = f"`{case.name}`{when}".replace("|", "\\|")
        cuda = "not measured" if case.cuda is None else case.cuda.value
        modules = ", ".join(f"`{module}`" for module in case.modules)
        lines.append(f"| {name} | {_homes(case)} | {modules} | {case.cpu.value} | {cuda} | all |")
    lines.append(_INSTEAD)
    instead: dict[str, list[str]] = {}
    for remedy in REMEDIES:
        said = remedy.advice or f"`{remedy.instead}`"
        said += f" ({remedy.condition})" if remedy.condition else ""
        instead.setdefault(said, []).append(f"`{remedy.name}`{f', {remedy.when}' if remedy.when else ''}")
    lines += [f"| {'; '.join(names)} | {said} |" for said, names in instead.items()]
    return "\n".join([*lines, ""])


def _lost(operator: str, device: str, line: str) -> list[Operator]:
    """The cases that an operator may be that a tracer shows to lose channels_last; the line tells some of them apart."""
    cases = [case for case in cases_of_aten(operator) if case.effect(device) not in (None, *_LOSE_NOTHING)]
    aten = operator.removeprefix("aten.").partition(".")[0]
    named = [case for case in cases if re.search(rf"\b{case.name}\b", line)]
    if not named and aten not in _MADE_BY_MANY:
        named = [case for case in cases if case.name == aten.lstrip("_")] or cases
    return named


@cache
def _remedies() -> dict[tuple[str, str], str]:
    return {(remedy.name, remedy.when): remedy.sentence for remedy in REMEDIES}


_HEADER: Final = """\
# What operators do to channels_last

<!-- written by `python -m esper_guard.operators`, from esper_guard/operator_table.py -->

Each line was measured on the CPU, in float32, with torch {} and {}; "all" means
these. tests/runtime/test_operators.py repeats it with the installed release. Listed is what makes a 4-D or 5-D tensor of
a 4-D or 5-D one, but for reductions, views that change what dimensions mean, and in-place variants, which keep the
format of the tensor that they write into.

- keeps channels_last: of a channels_last input the result is channels_last, or a view that kernels take for it;
- the first or second operand: numbers, and tensors that lack channels or positions, don't count.

| operator | in | modules | CPU | CUDA | torch from {} on |
|---|---|---|---|---|---|"""


_INSTEAD: Final = """
## What to write instead

Measured on the CPU with torch 2.13.0 by tests/runtime/test_remedies.py: the values, and the gradient of the channels_last
image `x`, are those of the operator, and neither the forward nor the backward copies between formats or loses one.
How long it takes was not measured. `esper_guard.operators.remedy_for` has them, and reports of traces show them.

| operator | instead |
|---|---|"""


def _homes(case: Operator) -> str:
    return ", ".join(f"`{home}`" for home in case.homes)


def _common(effects: Iterable[Effect | None]) -> Effect | None:
    """The effect that all have; None if that of one is not known, or there are none."""
    several = set(effects)
    if not several or None in several:
        return None
    return several.pop() if len(several) == 1 else Effect.DEPENDS


@cache
def _index(names: Callable[[Operator], Iterable[str]]) -> dict[str, tuple[Operator, ...]]:
    found: dict[str, tuple[Operator, ...]] = {}
    for case in OPERATORS:
        for name in names(case):
            found[name] = (*found.get(name, ()), case)
    return found


def _names(case: Operator) -> list[str]:
    homes = [f"{home}.{case.name}" for home in case.homes]
    return [case.name, *homes, *case.modules, *(f"torch.nn.{module}" for module in case.modules)]


def _aten_names(case: Operator) -> tuple[str, ...]:
    return case.aten


if __name__ == "__main__":
    print(page(), end="")
