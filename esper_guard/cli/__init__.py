"""The ``esper-guard`` command: one file a subcommand."""

from __future__ import annotations

import io
import os
import sys

import click

from esper_guard import __version__
from esper_guard.cli.check import check
from esper_guard.cli.doctor import doctor
from esper_guard.cli.profile import profile
from esper_guard.cli.report import report
from esper_guard.cli.rule import rule
from esper_guard.cli.trace import trace
from esper_guard.config import ConfigError
from esper_guard.lint.files import PatternError
from esper_guard.lint.registry import RuleError
from esper_guard.lint.select import UnknownCodeError

FAILED, INTERRUPTED = 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="esper-guard", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Find hidden tensor copies and lost memory formats in PyTorch code."""
    if os.environ.get("NO_COLOR"):  # https://no-color.org; without it click asks whether this is a terminal
        context.color = False
    elif os.environ.get("FORCE_COLOR"):
        context.color = True
    if context.invoked_subcommand != trace.name:  # which shares its streams with the program that it runs
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")


cli.add_command(check)
cli.add_command(doctor)
cli.add_command(profile)
cli.add_command(report)
cli.add_command(rule)
cli.add_command(trace)


def main() -> None:
    """Run the command. Misuse and internal errors end with status 2, an interrupt with 130."""
    try:
        status = cli.main(prog_name="esper-guard", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        status = FAILED
    except (ConfigError, RuleError, UnknownCodeError, PatternError) as error:
        click.echo(f"{click.style('error', fg='red', bold=True)}: {error}", err=True)
        status = FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        status = INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - or the flush at exit fails, too
        status = FAILED
    except OSError as error:
        click.echo(f"{click.style('error', fg='red', bold=True)}: {error}", err=True)
        status = FAILED
    sys.exit(status)
