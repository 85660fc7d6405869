"""The documentation of the rules as Markdown: what ``esper-guard rule`` shows, and the files in docs/rules.

``python -m esper_guard.lint.pages docs/rules`` writes them anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from esper_guard.lint.registry import all_rules
from esper_guard.lint.rule import Proof, Rule

_PAGE = re.compile(r"[A-Z]+[0-9]+\.md")


def page(rule: type[Rule]) -> str:
    """The page of one rule: its documentation, when it runs, and the proof of what it claims."""
    heading, _, body = rule.documentation().partition("\n\n")
    return f"{heading}\n\n{_when(rule)}\n\n{body}\n\n## Proof\n\n{_proof(rule)}\n"


def index() -> str:
    """The page that lists all rules."""
    rows = [
        f"| [{rule.code}]({rule.code}.md) | {rule.name} | {rule.severity.value} | {_default(rule)} | {rule.summary()} |"
        for rule in all_rules().values()
    ]
    head = "| code | name | severity | default | what |\n|---|---|---|---|---|"
    return "\n".join(["# Rules", "", _INTRODUCTION, "", head, *rows, ""])


def files() -> dict[str, str]:
    """Every page by its file name."""
    return {"README.md": index(), **{f"{rule.code}.md": page(rule) for rule in all_rules().values()}}


_INTRODUCTION = """\
Written by `python -m esper_guard.lint.pages docs/rules`; `esper-guard rule CODE` shows the same in a terminal. "auto":
on in a project that mentions channels_last anywhere (`assume-channels-last`)."""


def _default(rule: type[Rule]) -> str:
    if not rule.default:
        return "off"
    if rule.needs_trace:
        return "with a trace"
    return "auto" if rule.only_with_channels_last else "on"


def _when(rule: type[Rule]) -> str:
    default = {
        "on": "On by default.",
        "off": f'Off by default: `extend-select = ["{rule.code}"]`.',
        "with a trace": "On with `--trace`.",
        "auto": "On where the project uses channels_last (`assume-channels-last`).",
    }[_default(rule)]
    in_tests = "" if rule.in_tests else " Not in tests."
    return f"Severity: {rule.severity.value}. {default}{in_tests}"


def _proof(rule: type[Rule]) -> str:
    proof = rule.proof
    if proof is None:
        return f"None: {rule.no_proof}."
    return (
        f"tests/lint/test_proofs.py runs this; the flagged code {proof.claim.value}, the recommended code does not.\n\n"
        f"```python\n{_code(proof)}```"
    )


def _code(proof: Proof) -> str:
    return f"{proof.setup}\ninputs = {proof.inputs}\n\n# flagged\n{proof.flagged}\n# recommended\n{proof.recommended}"


def main() -> None:
    """Write the pages into the folder that is named on the command line; pages of rules that are gone go, too."""
    folder, pages = Path(sys.argv[1]), files()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if _PAGE.fullmatch(old.name):
            old.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
