"""# measured-layout-copy (EG901)

A line whose copies between memory formats were measured, and that no other rule explains.

## What it does

With `esper-guard check --trace TRACE.json` it reports each line of the trace on which tensors were copied from
channels_last to NCHW or the other way round, in the forward or in its backward, unless a rule that is about copies has a
finding there (which then says what was measured).

## Why is this bad?

The copy was made, whatever its reason: its bytes were read and written again on every call. What the rules read in the
source is a guess beside that; here it is the other way round: the cost is known, the reason isn't.

## Example

```python
def pooled(x):  # channels_last
    return x.reshape(x.shape[0], -1)  # hidden: one copy, of all of x
```

## Use instead

```python
def pooled(x):
    return x.mean((2, 3))  # or whatever reads the format that x has
```

Where the copy is needed, say so: `# noqa: EG901`.

## When it stays silent

- Without `--trace`, and in files that the trace has nothing of.
- Where the line asks for channels_last by name, as in `x.to(memory_format=torch.channels_last)`: that copy is meant.
- Where only strides changed, such as those of a transposed matrix or a slice, where the format was lost without a copy,
  and where gradients are accumulated into parameters, which have no line. `esper-guard report` shows these.
- Where a comment on the line, or above it, gives the reason ("the kernel needs NCHW").
- In tests, where tensors are laid out in every way on purpose.

Lines that moved since the trace was recorded are found by their text. Lines that changed are not, and esper-guard says
how many.

## References

- [docs/tracing.md](../tracing.md): what counts as a copy, and what can't be seen
- [channels_last tutorial](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from esper_guard.lint.finding import Finding, Severity
from esper_guard.lint.rule import Rule

if TYPE_CHECKING:
    from esper_guard.lint.source import Source
    from esper_guard.trace.event import LayoutEvent
    from esper_guard.trace.recorded import Measured


class MeasuredLayoutCopy(Rule):
    """Runs after the rules that read the source."""

    code = "EG901"
    name = "measured-layout-copy"
    severity = Severity.WARNING
    needs_trace = True
    in_tests = False
    heeds_reasons = True
    no_proof = "it repeats what a trace measured"

    def check_measured(
        self, source: Source, measured: Measured, findings: Sequence[Finding]
    ) -> Iterator[Finding]:
        from esper_guard.lint.measured import concerned, is_about_costs
        from esper_guard.lint.registry import all_rules

        explained = {
            id(event)
            for finding in findings
            if is_about_costs(all_rules()[finding.code])
            for event in concerned(all_rules()[finding.code], measured.at(finding.rows))
        }
        for row, events in sorted(measured.events.items()):
            copies = [event for event in events if _is_unasked(event) and id(event) not in explained]
            if copies:
                yield self._found(source, row, copies)

    def _found(self, source: Source, row: int, copies: Sequence[LayoutEvent]) -> Finding:
        from esper_guard.lint.measured import measurement_of
        from esper_guard.trace.table import remedy, why

        worst = max(copies, key=lambda event: event.bytes)
        text = source.line(row)
        start = source.offset(row, 1) + len(text) - len(text.lstrip())
        what = f"{_ARTICLE[worst.kind]} copy was measured here, in the {worst.phase}"
        message = f"{what}: {worst.operator}, {worst.source} -> {worst.destination}"
        reason, instead = why(worst, text), remedy(worst, text)
        message += "" if reason is None else f"; {reason}"
        return Finding(
            self.code,
            self.name,
            self.severity,
            message,
            source.location(start),
            source.location(start + len(text.strip())),
            help=_advice(worst) if instead is None else f"write instead: {instead}",
            measured=measurement_of(copies),
        )


_ARTICLE = {"explicit": "an explicit", "hidden": "a hidden"}


def _is_unasked(event: LayoutEvent) -> bool:
    asked = event.kind == "explicit" and "channels_last" in event.destination
    return event.is_copy and event.changes_format and not asked


def _advice(event: LayoutEvent) -> str:
    if event.kind == "explicit":
        return "leave out what asks for the other memory format, or convert once, outside of the loop"
    if event.phase == "backward":
        return "the gradient came in another format than the line's result: look at what reads the result"
    return "keep one memory format up to here, or use an operator that reads the one it gets"
