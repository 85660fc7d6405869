"""``esper-guard report``: what a trace says, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click


@click.command()
@click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TRACE...")
@click.option(
    "--by",
    type=click.Choice(["line", "module", "operator", "event"]),
    default="line",
    show_default=True,
    help="What to add up by.",
)
@click.option(
    "-n", "--rows", type=click.IntRange(min=1), default=30, show_default=True, help="How many rows to show."
)
def report(traces: tuple[Path, ...], by: Literal["line", "module", "operator", "event"], rows: int) -> None:
    """Show what a trace holds, the costliest first.

    Several traces, of ranks or workers, are added up.
    """
    from esper_guard.trace import load_trace, merge
    from esper_guard.trace.table import headline, render_costs, render_notes, render_trace

    try:
        whole = merge([load_trace(path) for path in traces])
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if by == "event":
        click.echo(render_trace(whole, rows))
        return
    click.echo(f"{headline(whole)}\n")
    costs = {"line": whole.by_line, "module": whole.by_module, "operator": whole.by_operator}[by]()
    click.echo(render_costs(by, costs, rows))
    notes = render_notes(whole)
    if notes:
        click.echo(f"\n{notes}")
