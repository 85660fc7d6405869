"""Where a profile goes: what can't be written is said before anything is measured, and loses nothing afterwards."""

from __future__ import annotations

import importlib.util
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esper_guard.profiling.choices import PARTS

if TYPE_CHECKING:
    from esper_guard.profiling.result import Profile
    from esper_guard.trace import LayoutTrace

_NAMES = {"json_path": "--json", "markdown": "--markdown", "plot": "--plot", "trace_path": "--trace"}
_PRINTED = ("json_path", "markdown")
"""Where - means standard output."""


def check_outputs(options: dict[str, Any]) -> None:
    """Raise BadParameter or UsageError if an output can't be written, as far as can be told before."""
    if all(options[option] == "-" for option in _PRINTED):
        raise click.UsageError("--json - and --markdown - can't both be printed: write one to a file")
    for option, name in _NAMES.items():
        path = options[option]
        if path is None or (option in _PRINTED and path == "-"):
            continue
        reason = _refused(path)
        if reason is not None:
            raise click.BadParameter(reason, param_hint=f"'{name}'")
    if options["plot"] is not None:
        if not options["plot"].lower().endswith((".svg", ".png")):
            raise click.BadParameter(
                f"'{options['plot']}': the name of a picture ends with .svg or .png", param_hint="'--plot'"
            )
        if importlib.util.find_spec("matplotlib") is None:
            raise click.ClickException(
                "--plot needs matplotlib: install it with pip install 'esper-guard[profile]'"
            )


def _refused(path: str) -> str | None:
    """Why nothing can be written there."""
    folder = os.path.dirname(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        return f"'{path}' can't be written: {error.strerror}"
    if mode is not None and stat.S_ISDIR(mode):
        return f"'{path}' is a folder"
    if mode is not None and not os.access(path, os.W_OK):
        return f"'{path}' can't be written: it is read-only"
    if mode is not None and not stat.S_ISREG(mode):
        return None
    if not os.path.isdir(folder):
        return f"there is no folder '{folder}'"
    try:
        with tempfile.TemporaryFile(dir=folder):  # the only way to tell for every file system and user
            return None
    except OSError as error:
        return f"'{path}' can't be written: no file can be made in its folder: {error.strerror}"


def write_outputs(shown: Profile, trace: LayoutTrace | None, options: dict[str, Any]) -> None:
    """Print first, then write the files, each of them whatever happens to the others.

    Raises:
        click.ClickException: some could not be written; the message names them and why.
        BrokenPipeError: whoever read what is printed doesn't any more; the files are written.
    """
    errors = {name: _error_of(write) for name, write in _outputs(shown, trace, options)}
    failed = [
        f"{name} can't be written: {reason}" for name, reason in errors.items() if isinstance(reason, str)
    ]
    if failed:
        raise click.ClickException("; ".join(failed))
    for error in errors.values():
        if isinstance(error, BrokenPipeError):
            raise error


def _error_of(write: Callable[[], object]) -> str | BrokenPipeError | None:
    try:
        write()
    except BrokenPipeError as error:
        return error
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # noqa: BLE001 - such as those of matplotlib; the other outputs must not be lost
        return f"{type(error).__name__}: {error}"
    return None


def _outputs(
    shown: Profile, trace: LayoutTrace | None, options: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What was asked for, each with how to write it."""
    from esper_guard.profiling.result import save_profile

    parts = options["parts"] or PARTS
    if options["json_path"] == "-":
        yield "--json -", partial(_print_json, shown)
    elif options["markdown"] == "-":
        yield "--markdown -", partial(_print_markdown, shown, parts)
    elif not options["quiet"]:
        yield "the table", partial(_print_table, shown, parts)
    if options["json_path"] not in (None, "-"):
        yield f"--json {options['json_path']}", partial(save_profile, shown, options["json_path"])
    if options["markdown"] not in (None, "-"):
        yield f"--markdown {options['markdown']}", partial(_write_markdown, shown, parts, options["markdown"])
    if options["plot"] is not None:
        yield f"--plot {options['plot']}", partial(_write_picture, shown, options["plot"])
    if options["trace_path"] is not None and trace is not None:
        yield f"--trace {options['trace_path']}", partial(trace.save, options["trace_path"])


def _print_table(shown: Profile, parts: tuple[str, ...]) -> None:
    from esper_guard.profiling.table import render_table

    click.echo(render_table(shown, parts))


def _print_json(shown: Profile) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=1))


def _print_markdown(shown: Profile, parts: tuple[str, ...]) -> None:
    from esper_guard.profiling.markdown import render_markdown

    click.echo(render_markdown(shown, parts), nl=False)


def _write_markdown(shown: Profile, parts: tuple[str, ...], path: str) -> None:
    from esper_guard.atomic import write_atomically
    from esper_guard.profiling.markdown import render_markdown

    write_atomically(path, render_markdown(shown, parts).encode())


def _write_picture(shown: Profile, path: str) -> None:
    from esper_guard.atomic import write_atomically
    from esper_guard.profiling.plot import picture

    write_atomically(path, picture(shown, Path(path).suffix[1:].lower()))
