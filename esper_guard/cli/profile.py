"""``esper-guard profile``: what channels_last costs and gains."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esper_guard.cli.profile_outputs import check_outputs, write_outputs
from esper_guard.profiling.choices import DTYPES, HOSTS, ISOLATIONS, PARTS, SEED_KINDS, STAGES

if TYPE_CHECKING:
    from esper_guard.profiling.measure import Request
    from esper_guard.profiling.result import Profile
    from esper_guard.profiling.shapes import Shape
    from esper_guard.trace import LayoutTrace

_FLOATS = [dtype for dtype in DTYPES if "float" in dtype]
_SECONDS = 20.0
_LARGEST_SEED = 2**32 - 1
"""Of NumPy."""
_THREADS_PER_PROCESSOR = 4
_RENDERING = {"saved", "plot", "markdown", "json_path", "quiet", "parts", "arguments"}


class _ShapeOption(click.ParamType["Shape"]):
    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shape:
        from esper_guard.profiling.shapes import Shape, parse_shape

        if isinstance(value, Shape):
            return value
        try:
            return parse_shape(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _check_threads(context: click.Context, parameter: click.Parameter, value: int | None) -> int | None:
    """Far too many end the process in OpenMP, without a word."""
    processors = os.cpu_count() or 1
    most = _THREADS_PER_PROCESSOR * processors
    if value is not None and value > most:
        raise click.BadParameter(
            f"{value} is too many: {most} at most, {_THREADS_PER_PROCESSOR} for each of {processors} processors"
        )
    return value


class _RemembersItsArguments(click.Command):
    """Keeps the command line as it was typed, for the report."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["esper_guard.arguments"] = list(args)
        return super().parse_args(ctx, args)


@click.command(cls=_RemembersItsArguments)
@click.argument("target", required=False)
@click.option(
    "--input",
    "shapes",
    type=_ShapeOption(),
    multiple=True,
    metavar="SHAPE[:DTYPE]",
    help="An input, such as 8x3x224x224 or 8x128:int64; repeat it for each argument of the model.",
)
@click.option(
    "--train/--inference",
    "training",
    default=True,
    show_default=True,
    help="Forward and backward, or a forward in evaluation mode.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    help="Such as cpu or cuda:1; can be repeated. [default: cpu and the accelerator]",
)
@click.option("--dtype", type=click.Choice(_FLOATS), help="Of parameters and inputs.")
@click.option(
    "--autocast", type=click.Choice(["bfloat16", "float16"]), help="Run the forward under autocast."
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the model with torch.compile.")
@click.option(
    "--threads", type=click.IntRange(min=1), callback=_check_threads, help="Threads of torch on the CPU."
)
@click.option("--rounds", type=click.IntRange(min=2), help="How often every variant is timed.")
@click.option(
    "--time",
    "seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=_SECONDS,
    show_default=True,
    help="Seconds to time each comparison for, without --rounds.",
)
@click.option("--no-time", is_flag=True, help="Bytes and copies only, which are the same in every run.")
@click.option(
    "--seed",
    type=click.IntRange(0, _LARGEST_SEED),
    default=0,
    show_default=True,
    help="Of weights, inputs, orders, and of what the model draws.",
)
@click.option(
    "--host", "hosts", type=click.Choice(HOSTS), multiple=True, help="Built-in model: the host network."
)
@click.option(
    "--stage", "stages", type=click.Choice(STAGES), multiple=True, help="Built-in model: of its SeedSlot."
)
@click.option(
    "--seed-kind",
    "seed_kinds",
    type=click.Choice(SEED_KINDS),
    multiple=True,
    help="Built-in model: its seed.",
)
@click.option(
    "--isolation",
    "isolations",
    type=click.Choice(list(ISOLATIONS)),
    multiple=True,
    help="Built-in model: how its seed's input is isolated. [default: all]",
)
@click.option(
    "--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Built-in model. [default: 8]"
)
@click.option("--channels", type=click.IntRange(min=1), multiple=True, help="Built-in model. [default: 64]")
@click.option(
    "--resolution",
    "resolutions",
    type=click.IntRange(min=4),
    multiple=True,
    help="Built-in model. [default: 32]",
)
@click.option(
    "--from", "saved", type=click.Path(path_type=Path), metavar="JSON", help="Show a saved profile again."
)
@click.option(
    "--show",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    help="What the table and the Markdown hold; can be repeated. [default: all]",
)
@click.option("--json", "json_path", metavar="PATH", help="Write all figures, for --from; - prints them.")
@click.option("--markdown", metavar="PATH", help="Write tables in Markdown; - prints them.")
@click.option("--plot", metavar="PATH", help="Write a picture: .svg or .png.")
@click.option(
    "--trace", "trace_path", metavar="PATH", help="Write the layout trace of the first NHWC variant."
)
@click.option("-q", "--quiet", is_flag=True, help="Print neither the table nor the progress.")
@click.pass_context
def profile(context: click.Context, /, target: str | None, **options: Any) -> None:
    """Measure a model in NCHW and in channels_last: bytes, time, and the lines that cost most.

    \b
    esper-guard profile model.py:make_model --input 8x3x224x224
    esper-guard profile 'timm:create_model("resnet18", num_classes=10)' --input 8x3x224x224
    esper-guard profile --host conv --host resnet --channels 64 --channels 256

    TARGET is a function that returns an nn.Module, or a module and its inputs, of a module that can be imported from
    here or of a file; its arguments have to be literals. Inputs are a tuple or list of arguments, or a dict of
    keywords; a model that takes one dict has the inputs (dict,). What the model prints goes to stderr. Without TARGET, the built-in host network with a SeedSlot
    is measured, with three ways to isolate the seed's input.
    """
    check_outputs(options)
    if options["saved"] is not None:
        _check_only_shown(context, target)
        shown = _load(options["saved"])
        trace = None
    else:
        shown, trace = _measured(context, target, options)
    write_outputs(shown, trace, options)


def _check_only_shown(context: click.Context, target: str | None) -> None:
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.name not in _RENDERING
        and parameter.name != "target"
        and context.get_parameter_source(parameter.name) is not click.core.ParameterSource.DEFAULT
    ]
    given = [*(["TARGET"] if target is not None else []), *given]
    if given:
        raise click.UsageError(f"--from shows what was measured before: leave {', '.join(given)} out")


def _load(path: Path) -> Profile:
    from esper_guard.profiling.consistency import check_consistent
    from esper_guard.profiling.result import load_profile

    try:
        loaded = load_profile(path)
        check_consistent(loaded)
    except ValueError as error:
        at = "" if str(path) in str(error) else f"{path}: "
        raise click.ClickException(f"{at}{error}") from error
    return loaded


def _measured(
    context: click.Context, target: str | None, options: dict[str, Any]
) -> tuple[Profile, LayoutTrace]:
    from esper_guard.profiling.failures import ProfileError
    from esper_guard.profiling.user_code import running_user_code

    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "6"
    )  # or the profiler talks; torch reads it when it is imported
    try:
        from esper_guard.profiling.measure import measure
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "executing"):
            raise
        raise click.ClickException(
            f"profiling needs {error.name}: install it with pip install 'esper-guard[torch]'"
        ) from error
    try:
        request = _request(context, target, options)
        source = "esper-guard" if request.target is None else request.target.source
        with _progress(options["quiet"]) as progress, running_user_code(source):
            return measure(request, progress)
    except ProfileError as error:
        raise click.ClickException(str(error)) from error


def _request(context: click.Context, target: str | None, options: dict[str, Any]) -> Request:
    from esper_guard.profiling.builtin import built_ins
    from esper_guard.profiling.measure import Request
    from esper_guard.profiling.target import TargetError, parse_target

    names = ("hosts", "stages", "seed_kinds", "isolations", "batches", "channels", "resolutions")
    if target is None and options["shapes"]:
        raise click.UsageError(
            "--input belongs to a TARGET; the built-in model takes --batch and --resolution"
        )
    if target is not None and any(options[name] for name in names):
        raise click.UsageError(
            "--host, --stage, --seed-kind, --isolation, --batch, --channels and --resolution are of the built-in model: "
            "leave them out, or TARGET"
        )
    try:
        parsed = None if target is None else parse_target(target)
    except TargetError as error:
        raise click.BadParameter(str(error), param_hint="'TARGET'") from error
    sizes = built_ins(
        options["hosts"] or ("conv",),
        options["stages"] or ("training",),
        options["seed_kinds"] or ("conv",),
        options["batches"] or (8,),
        options["channels"] or (64,),
        options["resolutions"] or (32,),
    )
    return Request(
        command=shlex.join(["esper-guard", "profile", *context.meta["esper_guard.arguments"]]),
        target=parsed,
        shapes=options["shapes"],
        built_ins=sizes,
        isolations=list(dict.fromkeys(options["isolations"])) or list(ISOLATIONS),
        training=options["training"],
        devices=options["devices"],
        dtype=options["dtype"],
        autocast=options["autocast"],
        compiled=options["compiled"],
        threads=options["threads"],
        rounds=options["rounds"],
        seconds=options["seconds"],
        timed=not options["no_time"],
        seed=options["seed"],
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # a thread that draws would draw in the middle of what is timed
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        task = bar.add_task("profile", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share, refresh=True)
