"""``esper-guard report``: what a trace says, and whether that is too much."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from esper_guard.cli.parameters import OneOf

if TYPE_CHECKING:
    from esper_guard.report.trace_report import Verdict
    from esper_guard.trace import LayoutEvent, LayoutTrace
    from esper_guard.trace.baseline import Baseline, News

PASSED, EXCEEDED = 0, 1
_PATH: Any = click.Path(path_type=Path)
_FILE: Any = click.Path(path_type=Path, dir_okay=False)


class _Size(click.ParamType[int]):
    """A number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from esper_guard.trace.sizes import parse_size

        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Options(msgspec.Struct, frozen=True):
    """The command line, as given."""

    traces: tuple[Path, ...]
    by: Literal["line", "module", "operator", "event"]
    rows: int
    max_copies: int | None
    max_bytes: int | None
    max_losses: int | None
    ignore: tuple[str, ...]
    baseline: Path | None
    update_baseline: bool
    compare: tuple[Path, ...]
    html: Path | None
    output_format: str
    output_file: Path | None
    exit_zero: bool

    @property
    def bounded(self) -> bool:
        """Whether there is a bound."""
        return any(bound is not None for bound in (self.max_copies, self.max_bytes, self.max_losses))


@click.command()
@click.argument("traces", nargs=-1, required=True, type=_PATH, metavar="TRACE...")
@click.option(
    "--by",
    type=OneOf(["line", "module", "operator", "event"]),
    default="line",
    show_default=True,
    help="What to add up by.",
)
@click.option(
    "-n", "--rows", type=click.IntRange(min=1), default=30, show_default=True, help="How many rows to show."
)
@click.option(
    "--max-copies",
    type=click.IntRange(min=0),
    metavar="N",
    help="Fail above N copies between memory formats.",
)
@click.option("--max-bytes", type=_Size(), metavar="SIZE", help="Fail if these wrote more, such as '2 MiB'.")
@click.option("--max-losses", type=click.IntRange(min=0), metavar="N", help="Fail above N format losses.")
@click.option(
    "--ignore",
    multiple=True,
    metavar="PATTERN",
    help="What doesn't count: a file or the end of its path, with or without a line, a module, an operator. "
    "Repeatable.",
)
@click.option(
    "--baseline",
    type=_FILE,
    metavar="PATH",
    help="Fail for copies and losses that are not in this baseline or earlier trace.",
)
@click.option("--update-baseline", is_flag=True, help="Write the baseline from this trace instead.")
@click.option(
    "--compare",
    type=_FILE,
    multiple=True,
    metavar="BEFORE",
    help="Show an earlier trace beside it. Repeatable.",
)
@click.option("--html", type=_FILE, metavar="PATH", help="Write a report for the browser as well.")
@click.option(
    "--output-format",
    type=OneOf(["text", "markdown", "json"]),
    default="text",
    show_default=True,
    help="Markdown is GitHub's.",
)
@click.option("--output-file", type=_FILE, help="Write the report here, not to standard output.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 even if something is exceeded.")
@click.pass_context
def report(context: click.Context, /, **given: object) -> None:
    """Show what a trace holds, the costliest first, and hold it to bounds.

    Several traces, of ranks or workers, are added up.

    Exit status: 0 nothing is exceeded, 1 a bound is, or the baseline, 2 misuse or an error.
    """
    context.exit(_Run(Options(**given)).run())  # type: ignore[arg-type]


class _Run:
    """One run of the command."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._check()

    def run(self) -> int:
        options = self.options
        try:
            trace = _load(options.traces)
            before = _load(options.compare) if options.compare else None
            known = self._known(trace)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        if options.baseline is not None or before is not None:
            _warn_of_lost_sources(options.traces[0], trace)
        verdict = self._verdict(trace, known)
        content = self._content(trace, before, verdict)
        self._write(content, trace, before)
        if verdict is not None:
            self._say(trace, verdict)
        return EXCEEDED if verdict is not None and not verdict.passed and not options.exit_zero else PASSED

    def _check(self) -> None:
        """Raise an error for what contradicts itself, and for what can't be written."""
        options = self.options
        if options.update_baseline and options.baseline is None:
            raise click.UsageError("--update-baseline writes a baseline: name it with --baseline PATH")
        if options.ignore and not options.bounded and options.baseline is None:
            raise click.UsageError("--ignore leaves out what counts for --max-... and --baseline: give one")
        if options.by == "event" and (options.output_format != "text" or options.compare):
            raise click.UsageError(
                "--by event is a table of its own: it goes without --output-format and --compare"
            )
        read = (*options.traces, *options.compare, *([] if options.baseline is None else [options.baseline]))
        inputs = {path.resolve() for path in read}
        targets: dict[Path, str] = {}
        for option, path in self._outputs():
            _check_writable(option, path)
            other = targets.setdefault(path.resolve(), option)
            if other != option:
                raise click.UsageError(f"{other} and {option} name the same file: {path}")
            if path.resolve() in inputs and option != "--baseline":
                raise click.UsageError(f"{option} would overwrite what is read: {path}")

    def _outputs(self) -> list[tuple[str, Path]]:
        options = self.options
        baseline = options.baseline if options.update_baseline else None
        paths = {"--html": options.html, "--baseline": baseline, "--output-file": options.output_file}
        return [(option, path) for option, path in paths.items() if path is not None]

    def _known(self, trace: LayoutTrace) -> Baseline | None:
        """What the trace is held against; for an update what the baseline holds so far."""
        from esper_guard.trace.known import load_known, load_own

        path = self.options.baseline
        if path is None:
            return None
        if self.options.update_baseline:
            return load_own(path) if path.exists() else None
        if not path.exists():
            raise click.BadParameter(
                f"there is no file '{path}': write it with --update-baseline", param_hint="'--baseline'"
            )
        known, earlier = load_known(path, trace)
        if earlier is not None:
            _warn_of_lost_sources(path, earlier)
        return known

    def _verdict(self, trace: LayoutTrace, known: Baseline | None) -> Verdict | None:
        from esper_guard.report.trace_report import Verdict
        from esper_guard.trace.budget import allowed, broken

        options = self.options
        held = known is not None and not options.update_baseline
        if not (options.bounded or held):
            return None
        events = self._counted(trace)
        limits = (options.max_copies, options.max_bytes, options.max_losses)
        verdict = Verdict(tuple(broken(events, *limits)), bounds=tuple(allowed(*limits)))
        if known is None or not held:
            return verdict
        return verdict._replace(baseline=str(options.baseline), news=tuple(known.news(events)))

    def _counted(self, trace: LayoutTrace) -> list[LayoutEvent]:
        from esper_guard.trace.budget import matches
        from esper_guard.trace.known import is_held

        ignore = self.options.ignore
        return [
            event
            for event in trace.events
            if is_held(event) and not any(matches(event, pattern) for pattern in ignore)
        ]

    def _content(self, trace: LayoutTrace, before: LayoutTrace | None, verdict: Verdict | None) -> str:
        from esper_guard.report.trace_report import TraceReport
        from esper_guard.trace.compare import compare

        options = self.options
        if options.by == "event":
            from esper_guard.report.trace_text import render_passed
            from esper_guard.trace.table import render_trace

            passed = render_passed(verdict)
            return f"{render_trace(trace, options.rows)}\n" + (f"\n{passed}\n" if passed else "")
        report = TraceReport(trace, options.by, options.rows, tuple(map(str, options.traces)), verdict)
        if before is not None:
            report = report._replace(
                comparison=compare(before, trace, options.by, Path.cwd()),
                compared_with=tuple(map(str, options.compare)),
                levels=None if before.level == trace.level else (before.level, trace.level),
            )
            _warn_of_lost_sources(options.compare[0], before)
        if options.output_format == "markdown":
            from esper_guard.report.trace_markdown import render_markdown

            return render_markdown(report)
        if options.output_format == "json":
            from esper_guard.report.trace_json import render_json

            return render_json(report)
        from esper_guard.report.trace_text import render_text

        return render_text(report)

    def _write(self, content: str, trace: LayoutTrace, before: LayoutTrace | None) -> None:
        """All files; that which can fail for reasons of its own comes first."""
        options = self.options
        if options.html is not None:
            _write_html(trace, options.html, before)
        if options.update_baseline and options.baseline is not None:
            self._update(options.baseline, trace)
        if options.output_file is None:
            click.echo(content, nl=False)
        else:
            from esper_guard.atomic import write_atomically

            write_atomically(options.output_file, content.encode("utf-8", "replace"))

    def _update(self, path: Path, trace: LayoutTrace) -> None:
        from esper_guard.trace.baseline import Baseline
        from esper_guard.trace.known import load_own, measured

        before = load_own(path).entries if path.exists() else {}
        after = measured(trace, path.parent, self._counted(trace))
        Baseline(path.parent, after, "run").save(path)
        entries = "1 entry" if len(after) == 1 else f"{len(after)} entries"
        new, gone = len(after.keys() - before.keys()), len(before.keys() - after.keys())
        click.echo(f"baseline: {entries} ({new} new, {gone} gone) written to {path}", err=True)

    def _say(self, trace: LayoutTrace, verdict: Verdict) -> None:
        """What is exceeded, and what nobody can tell."""
        from esper_guard.report.text import shown
        from esper_guard.trace.budget import blamed_for, explain

        lines: list[str] = []
        if verdict.broken:
            blamed = blamed_for(self._counted(trace), verdict.broken)
            listed_by = f"esper-guard report --by event -n {len(trace.events)}"
            lines += explain("; ".join(map(str, verdict.broken)), blamed, (), listed_by).split("\n")
        if verdict.news:
            lines.append(f"{verdict.new} not in {verdict.baseline}")
            lines += [line for news in verdict.news for line in _listed(news)]
        for line in lines:
            start = "" if line.startswith(" ") else f"{click.style('exceeded', fg='red', bold=True)}: "
            click.echo(f"{start}{shown(line)}", err=True)
        if trace.unseen:
            _warn(f"not seen, so that its copies don't count: {'; '.join(trace.unseen)}")


def _load(paths: Iterable[Path]) -> LayoutTrace:
    from esper_guard.trace import load_trace, merge

    return merge([load_trace(path) for path in paths])


def _listed(news: News) -> list[str]:
    """Its events, and what the baseline has of them."""
    from esper_guard.report.trace_report import more_than
    from esper_guard.trace.table import costliest, describe

    lines = [f"  {describe(event)}" for event in costliest(news.events)]
    if news.known is not None:
        lines[-1] += f" ({more_than(news)})"
    return lines


def _write_html(trace: LayoutTrace, path: Path, before: LayoutTrace | None) -> None:
    try:
        from esper_guard.report.html import write_html

        written = write_html(trace, path, before=before)
    except ImportError as error:
        raise click.ClickException(f"--html: {error}") from error
    click.echo(f"HTML report written to {written}", err=True)


def _check_writable(option: str, path: Path) -> None:
    folder = path.resolve().parent
    if not folder.is_dir():
        raise click.BadParameter(f"there is no folder '{folder}'", param_hint=f"'{option}'")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise click.BadParameter(f"'{path}' can't be written", param_hint=f"'{option}'")


def _warn_of_lost_sources(path: Path, trace: LayoutTrace) -> None:
    if not trace.sources and any(event.file is not None for event in trace.events):
        _warn(f"{path} holds no source text: its lines are read from the files as they are now")


def _warn(text: str) -> None:
    click.echo(f"{click.style('warning', fg='yellow', bold=True)}: {text}", err=True)
