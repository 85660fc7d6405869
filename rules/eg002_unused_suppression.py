"""# unused-suppression (EG002)

A comment that silences esper-guard where there is nothing to silence.

## What it does

Reports `# noqa: EG...`, `# esper-guard: ignore`, `# esper-guard: ignore[EG...]` and
`# esper-guard: ignore-file[EG...]` that silence no finding, and codes in them that do not exist.

## Why is this bad?

It hides the next finding on that line, which may be a real one.

## Example

```python
y = x.detach()  # noqa: EG101
```

## Use instead

```python
y = x.detach()
```

## When it stays silent

A bare `# noqa`, and codes of other tools, may serve those tools. Codes whose rule did not run (not selected, or
ignored for this file) can't be judged. `# esper-guard: ignore-file` without codes skips the file altogether.

A comment covers the lines of the finding and the last line of its statement.

## Fix safety

The fix is safe: it removes the comment, or the idle codes in it.

## References

- [ruff: error suppression](https://docs.astral.sh/ruff/linter/#error-suppression)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from esper_guard.lint.finding import Edit, Finding, Fix, edit
from esper_guard.lint.rule import Invalid, Rule, Severity

if TYPE_CHECKING:
    from esper_guard.lint.source import Source
    from esper_guard.lint.suppress import Suppression, Suppressions


class UnusedSuppression(Rule):
    """Runs after all other rules of a file."""

    code = "EG002"
    name = "unused-suppression"
    severity = Severity.WARNING
    no_proof = "it judges comments: there is nothing to run"

    valid = (
        "y = x.contiguous().detach()  # noqa: EG101\n",
        "y = x.contiguous().detach()  # noqa\n",
        "y = x.detach()  # noqa\n",
        "y = x.detach()  # noqa: F821\n",
        "y = x.contiguous().detach()  # esper-guard: ignore[EG101]\n",
        "y = (\n    x.contiguous()\n    .detach()\n)  # esper-guard: ignore[EG101]\n",
        "# esper-guard: ignore-file\ny = x.contiguous().detach()\n",
        "# esper-guard: ignore-file[EG101]\ny = x.contiguous().detach()\n",
        's = "# noqa: EG101"\n',
        "y = (x.contiguous().detach(), '''\n''')  # noqa: EG101\n",
        "y = x.detach()  # noqa: see below\n",
        "y = x.detach()  # esper-guard: ignore the style\n",
    )
    invalid = (
        Invalid("y = x.detach()  # noqa: EG101\n", fixed="y = x.detach()\n"),
        Invalid("y = x.detach()  # noqa: F821, EG101\n", fixed="y = x.detach()  # noqa: F821\n"),
        Invalid("y = x.detach()  # noqa: EG101, F821\n", fixed="y = x.detach()  # noqa: F821\n"),
        Invalid("y = x.detach()  # esper-guard: ignore[EG101]\n", fixed="y = x.detach()\n"),
        Invalid("y = x.detach()  # esper-guard: ignore\n", fixed="y = x.detach()\n"),
        Invalid("y = x.detach()  # noqa: EG101 # why not\n", fixed="y = x.detach()  # why not\n"),
        Invalid("y = x.detach()  # esper-guard: ignore[EG1001]\n", message="did you mean 'EG001'?"),
        Invalid("# esper-guard: ignore-file[EG101]\ny = x.detach()\n", fixed="y = x.detach()\n"),
    )

    def check_suppressions(
        self, source: Source, suppressions: Suppressions, known: Collection[str], checked: Collection[str]
    ) -> Iterator[Finding]:
        for suppression, idle, why in suppressions.unused(known, checked):
            yield Finding(
                self.code,
                self.name,
                self.severity,
                f"unused suppression: {why}",
                source.location(suppression.start),
                source.location(suppression.end),
                help="remove it",
                fix=Fix("Remove the unused suppression", True, (_removal(source, suppression, idle),)),
            )


def _removal(source: Source, suppression: Suppression, idle: list[str]) -> Edit:
    kept = [code for code, _, _ in suppression.codes if code not in idle]
    if kept:
        first, last = suppression.codes[0][1], suppression.codes[-1][2]
        separator = ", " if "," in source.text[first:last] else " "
        return edit(source, first, last, separator.join(kept))
    start, end = suppression.start, suppression.end
    rest = source.text[end : _end_of_line(source.text, end)]
    if rest.strip() and not rest.lstrip().startswith("#"):
        return edit(source, start, end, "#")  # words after the code stay a comment
    if rest.strip():
        return edit(source, start, end + len(rest) - len(rest.lstrip()), "")
    while start > 0 and source.text[start - 1] in " \t":
        start -= 1
    end += len(rest)
    alone_on_its_line = start == 0 or source.text[start - 1] in "\r\n"
    if alone_on_its_line:
        end += 2 if source.text.startswith("\r\n", end) else min(1, len(source.text) - end)
    return edit(source, start, end, "")


def _end_of_line(text: str, offset: int) -> int:
    ends = [found for found in (text.find("\n", offset), text.find("\r", offset)) if found >= 0]
    return min(ends, default=len(text))
