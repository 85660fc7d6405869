"""``esper-guard trace``: runs a program under the tracer."""

from __future__ import annotations

import builtins
import io
import os
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from types import TracebackType

_UNCAUGHT = 1


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-m", "--module", is_flag=True, help="What follows is a module, to run as python -m does.")
@click.option(
    "--level",
    type=click.Choice(["dispatch", "deep"]),
    default="dispatch",
    show_default=True,
    help="deep also sees the copies inside of kernels.",
)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    default="layout-trace.json",
    show_default=True,
    help="Where to write the trace; {rank} and {pid} in it are replaced.",
)
@click.option(
    "--keep-events",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Keep the N newest events one by one, with their times.",
)
@click.option("--chrome", metavar="PATH", help="Also write these for Chrome's trace viewer and Perfetto.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="SCRIPT|MODULE [ARGUMENTS]...")
@click.pass_context
def trace(
    context: click.Context,
    module: bool,
    level: Literal["dispatch", "deep"],
    output: str,
    keep_events: int,
    chrome: str | None,
    command: tuple[str, ...],
) -> None:
    """Run a program and write down its copies between memory formats.

    \b
    esper-guard trace -- train.py --epochs 1
    esper-guard trace -m package.train --epochs 1

    The program sees the arguments and the search path that Python would give it, and its exit status becomes ours. The
    trace is written also if the program fails. Only the main thread is traced, with the backward that belongs to it.
    For each rank of a distributed run:

    \b
    torchrun --nproc-per-node 2 --no-python esper-guard trace -o trace-{rank}.json -- train.py
    """
    if not command:
        raise click.UsageError("name a script, or a module with -m")
    if chrome is not None and not keep_events:
        raise click.UsageError("--chrome needs --keep-events, the number of events to write")
    if not module and not Path(command[0]).is_file():
        raise click.BadParameter(f"there is no file '{command[0]}'", param_hint="'SCRIPT'")
    output = _writable(output, "'--output'")  # absolute, because the program may change its working directory
    chrome = None if chrome is None else _writable(chrome, "'--chrome'")
    try:
        from esper_guard.runtime.tracing import trace_layouts
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"tracing needs {error.name}: install it with pip install 'esper-guard[torch]'"
        ) from error
    from esper_guard.trace.saved import path_of
    from esper_guard.trace.table import headline

    tracer = trace_layouts(level, keep_events=keep_events, save=output)
    status = 0
    try:
        program = _module(list(command)) if module else _script(list(command))
    except SyntaxError as error:
        _report(error)
        context.exit(_UNCAUGHT)
    try:
        with tracer:
            program()
    except SystemExit as end:
        status = _status(end)
    except Exception as error:  # noqa: BLE001 - as Python itself reports it
        _report(error)
        status = _UNCAUGHT
    finally:
        if chrome is not None:
            tracer.trace.to_chrome(path_of(tracer.trace, chrome))
        click.echo(f"{headline(tracer.trace)}: {path_of(tracer.trace, output)}", err=True)
    context.exit(status)


def _writable(path: str, option: str) -> str:
    target = os.path.abspath(path)
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise click.BadParameter(f"'{path}' is a folder", param_hint=option)
    if "{" not in folder and not os.path.isdir(folder):
        raise click.BadParameter(f"there is no folder '{folder}'", param_hint=option)
    return target


def _module(arguments: list[str]) -> Callable[[], object]:
    import importlib.util
    import runpy

    sys.argv = arguments
    sys.path.insert(0, os.getcwd())
    name = arguments[0]
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise click.ClickException(f"there is no module '{name}'")
    return lambda: runpy.run_module(name, run_name="__main__", alter_sys=True)


def _script(arguments: list[str]) -> Callable[[], object]:
    """As Python does it: absolute in tracebacks, in ``sys.argv`` as it was given, which runpy would change."""
    path = os.path.abspath(arguments[0])
    main = types.ModuleType("__main__")
    main.__file__ = path
    main.__dict__["__builtins__"] = builtins
    sys.argv = arguments
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    sys.modules["__main__"] = main
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec")
    return lambda: exec(code, main.__dict__)  # noqa: S102 - the program that the user asks us to run


def _status(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    click.echo(end.code, err=True)
    return 1


def _report(error: BaseException) -> None:
    """The traceback from the program on."""
    shown: TracebackType | None = error.__traceback__
    while shown is not None and _is_ours(shown.tb_frame.f_code.co_filename):
        shown = shown.tb_next
    traceback.print_exception(type(error), error, shown or error.__traceback__)


def _is_ours(filename: str) -> bool:
    return filename.startswith(("<frozen runpy", os.path.dirname(os.path.dirname(__file__)))) or (
        os.path.basename(filename) == "runpy.py"
    )
