"""``esper-guard rule``: what a rule does, why, and what to write instead."""

from __future__ import annotations

import sys

import click

from esper_guard.lint.pages import page
from esper_guard.lint.registry import all_rules
from esper_guard.nearest import did_you_mean


@click.command()
@click.argument("code", required=False)
@click.option("--all", "show_all", is_flag=True, help="Explain every rule.")
def rule(code: str | None, show_all: bool) -> None:
    """Explain a rule, by its code (EG101) or name: rendered in a terminal, else as Markdown."""
    rules = all_rules()
    if show_all == (code is not None):
        raise click.UsageError("name one rule, or give --all")
    if show_all:
        _show("\n\n".join(page(rule) for rule in rules.values()))
        return
    assert code is not None
    wanted = [rule for rule in rules.values() if code.upper() == rule.code or code.lower() == rule.name]
    if not wanted:
        known = [*rules, *(rule.name for rule in rules.values())]
        raise click.BadParameter(f"there is no rule '{code}'{did_you_mean(code, known)}", param_hint="'CODE'")
    _show(page(wanted[0]))


def _show(markdown: str) -> None:
    if not sys.stdout.isatty():
        click.echo(markdown, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(markdown))
