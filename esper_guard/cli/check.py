"""``esper-guard check``: find, and with ``--fix`` mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click
import msgspec

from esper_guard import config as configuration
from esper_guard.cli.parameters import Codes, OneOf
from esper_guard.config import Config, Project
from esper_guard.lint.check import SYNTAX_ERROR
from esper_guard.lint.engine import (
    FixedFile,
    Report,
    check_content,
    check_files,
    fix_content,
    with_deep_stack,
)
from esper_guard.lint.files import SourceFile, discover, matches
from esper_guard.lint.finding import Finding, Severity
from esper_guard.lint.project import mentions_channels_last, root_of
from esper_guard.lint.registry import all_rules
from esper_guard.lint.select import UnknownCodeError, check_specifier, selected, without

if TYPE_CHECKING:
    from esper_guard.trace.recorded import Recorded
    from esper_guard.trace.recordings import Recordings

CLEAN, FOUND, FAILED = 0, 1, 2


class Options(msgspec.Struct, frozen=True):
    """The command line, as given."""

    paths: tuple[str, ...]
    select: list[str] | None
    ignore: list[str] | None
    extend_select: list[str] | None
    fix: bool
    unsafe_fixes: bool | None
    diff: bool
    output_format: str | None
    output_file: str | None
    exit_zero: bool
    statistics: bool
    isolated: bool
    config: str | None
    stdin_filename: str | None
    force_exclude: bool | None
    respect_gitignore: bool | None
    jobs: int | None
    trace: tuple[str, ...]
    quiet: bool
    verbose: bool


@click.command()
@click.argument("paths", nargs=-1, type=click.Path())
@click.option(
    "--select", type=Codes(), help="Rules to run instead of the default ones: codes, prefixes or ALL."
)
@click.option("--ignore", type=Codes(), help="Rules not to run.")
@click.option("--extend-select", type=Codes(), help="Rules to run besides the selected ones.")
@click.option("--fix", is_flag=True, help="Apply safe fixes.")
@click.option("--unsafe-fixes/--no-unsafe-fixes", default=None, help="Count unsafe fixes as applicable, too.")
@click.option("--diff", is_flag=True, help="Show what --fix would change; write nothing.")
@click.option("--output-format", type=OneOf(["full", "concise", "json"]), help="How to show findings.")
@click.option(
    "--output-file", type=click.Path(dir_okay=False), help="Write findings here, not to standard output."
)
@click.option("--exit-zero", is_flag=True, help="Exit with 0 even if there are findings.")
@click.option("--statistics", is_flag=True, help="Show how often each rule fired.")
@click.option("--isolated", is_flag=True, help="Ignore all configuration files.")
@click.option("--config", type=click.Path(dir_okay=False), help="Use this configuration file for all paths.")
@click.option("--stdin-filename", help="The name of the file that standard input (-) comes from.")
@click.option(
    "--force-exclude/--no-force-exclude", default=None, help="Exclude files even if they are named."
)
@click.option(
    "--respect-gitignore/--no-respect-gitignore", default=None, help="Skip what git ignores (the default)."
)
@click.option("--no-cache", is_flag=True, help="Check every file anew. (Nothing is cached yet.)")
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Processes to use; by default one a processor."
)
@click.option(
    "--trace",
    multiple=True,
    type=click.Path(dir_okay=False),
    metavar="TRACE.json",
    help="Weigh findings with what was measured, the costliest first; can be repeated, to add traces up.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print findings only.")
@click.option("-v", "--verbose", is_flag=True, help="Say which files and settings are used.")
@click.pass_context
def check(context: click.Context, /, no_cache: bool, **given: object) -> None:
    """Check files and folders (by default this one); - is standard input.

    Exit status: 0 nothing found, 1 findings, 2 misuse or an internal error. Notes don't count as findings.
    """
    context.exit(Check(Options(**given)).run())  # type: ignore[arg-type]


class Check:
    """One run of the command."""

    def __init__(self, options: Options) -> None:
        self.options = options
        if options.isolated and options.config:
            raise click.UsageError("--isolated and --config contradict each other")
        self._fixed: list[Project] = []
        if options.config:
            project = configuration.load(options.config)
            assert project is not None
            # As on the command line, patterns are then relative to the current folder.
            self._fixed = [self._overridden(msgspec.structs.replace(project, folder=os.getcwd()))]
        elif options.isolated:
            self._fixed = [self._overridden(configuration.defaults())]
        self._projects: dict[str, Project] = {}
        self._codes: dict[Project, frozenset[str]] = {}
        self._mentions: dict[str, bool] = {}
        self._only_with_channels_last = frozenset(
            code for code, rule in all_rules().items() if rule.only_with_channels_last
        )
        self.project = self.project_of(os.getcwd())
        self._recordings = _recordings(options.trace) if options.trace else None

    # -- settings -------------------------------------------------------------------------------------------------

    def project_of(self, folder: str) -> Project:
        """The settings for the files of a folder: those nearest to it, with the command line's on top."""
        if self._fixed:
            return self._fixed[0]
        project = self._projects.get(folder)
        if project is None:
            found = configuration.find(folder) or configuration.defaults()
            project = self._projects[folder] = self._overridden(found)
            self._say(f"settings for {folder}: {found.file or 'the defaults'}")
        return project

    def _overridden(self, project: Project) -> Project:
        changes = {
            name: value
            for name in ("force_exclude", "respect_gitignore", "unsafe_fixes", "output_format")
            if (value := getattr(self.options, name)) is not None
        }
        config: Config = msgspec.structs.replace(project.config, **changes)
        return msgspec.structs.replace(project, config=config)

    def codes_for(self, path: str) -> frozenset[str]:
        """The rules that run on one file."""
        absolute = os.path.abspath(path)
        project = self.project_of(os.path.dirname(absolute))
        codes = self._codes.get(project)
        if codes is None:
            codes = self._codes[project] = self._selected(project)
        for pattern, ignored in project.config.per_file_ignores.items():
            if matches((pattern,), absolute, project.folder):
                codes = without(codes, ignored)
        return codes if self._uses_channels_last(project) else codes - self._only_with_channels_last

    def _uses_channels_last(self, project: Project) -> bool:
        """As far as is known: with "auto", a project does until a finding makes it worth looking."""
        assumed = project.config.assume_channels_last
        return self._mentions.get(project.folder, True) if assumed == "auto" else assumed

    def _without_impossible(self, reports: list[Report]) -> list[Report]:
        """Leave out what can't happen in a project that never uses channels_last (`assume-channels-last = "auto"`)."""
        doubtful = [r for r in reports if any(f.code in self._only_with_channels_last for f in r.findings)]
        for report in doubtful:
            project = self.project_of(os.path.dirname(os.path.abspath(report.path)))
            if project.config.assume_channels_last == "auto" and project.folder not in self._mentions:
                self._mentions[project.folder] = self._mentioned_around(report.path)
        return [self._possible(report) for report in reports]

    def _possible(self, report: Report) -> Report:
        codes = self.codes_for(report.path)
        findings = [
            f for f in report.findings if f.code in codes or f.code not in self._only_with_channels_last
        ]
        return msgspec.structs.replace(report, findings=findings)

    def _mentioned_around(self, path: str) -> bool:
        """Whether any file of the project around ``path``, or of what is checked besides, mentions channels_last."""
        paths = [*self.options.paths, root_of(path)] if path != "-" else [os.getcwd()]
        found = any(mentions_channels_last(file.path) for file in discover(paths, self.project_of))
        self._say(f"channels_last is {'used' if found else 'not used'} around {path}")
        return found

    def _selected(self, project: Project) -> frozenset[str]:
        config, options = project.config, self.options
        rules = all_rules()
        try:
            for codes in (
                config.select or (),
                config.extend_select,
                config.ignore,
                *config.per_file_ignores.values(),
            ):
                for specifier in codes:
                    check_specifier(specifier, rules)
        except UnknownCodeError as error:
            raise configuration.ConfigError(f"{project.file}: {error}") from None
        return selected(
            rules,
            config.select if options.select is None else options.select,
            [*config.extend_select, *(options.extend_select or ())],
            [*config.ignore, *(options.ignore or ())],
        )

    # -- the run --------------------------------------------------------------------------------------------------

    def run(self) -> int:
        options = self.options
        paths = options.paths or (".",)
        if "-" in paths:
            if len(paths) > 1:
                raise click.UsageError("standard input (-) can't be mixed with paths")
            return self._standard_input()
        reports = list(self._reports(paths))
        if not (options.fix or options.diff):
            return self._finish(reports, [])
        return self._fix(reports)

    def _reports(self, paths: Sequence[str]) -> list[Report]:
        found: list[SourceFile] = []
        for file in discover(paths, self.project_of):
            self._say(f"checking {file.path}")
            found.append(file)
        if not found:
            self._warn("no Python files found under the given paths")
        jobs = self.options.jobs or _processors()
        reports = list(check_files(found, self.codes_for, jobs, self._recorded_of))
        self._warn_of_stale(found, reports)
        return [r for r in self._without_impossible(reports) if r.findings or r.crash]

    def _recorded_of(self, path: str) -> Recorded | None:
        return None if self._recordings is None else self._recordings.of(path)

    def _warn_of_stale(self, found: Sequence[SourceFile], reports: Sequence[Report]) -> None:
        """Say what of the trace could not be found in the files."""
        from esper_guard.cli.trace_warnings import warnings_about

        if self._recordings is None or not found:
            return
        recorded = {file.path: known for file in found if (known := self._recorded_of(file.path)) is not None}
        for sentence in warnings_about(self._recordings, recorded, reports):
            self._warn(sentence)
        for report in reports:
            if report.moved and not report.gone:
                self._say(f"{report.path}: {report.moved} measured line{_s(report.moved)} moved since")

    def _standard_input(self) -> int:
        options = self.options
        name = options.stdin_filename or "-"
        if sys.stdin is None:
            raise click.UsageError("there is no standard input to read")
        data = sys.stdin.buffer.read()
        codes, recorded = self.codes_for(name), self._recorded_of(name)
        if not list(discover([name], self.project_of)):  # excluded: nothing to say, and nothing to change
            if options.fix and not options.diff:
                sys.stdout.buffer.write(data)
            return CLEAN
        (report,) = self._without_impossible(
            [with_deep_stack(lambda: check_content(name, data, codes, True, recorded))]
        )
        self._warn_of_stale([SourceFile(name, True)], [report])
        codes = self.codes_for(name)
        if not (options.fix or options.diff):
            return self._finish([report] if report.findings or report.crash else [], [])
        done = with_deep_stack(lambda: fix_content(name, data, codes, self._unsafe(name), recorded))
        if options.diff:
            return self._show_diffs([done])
        sys.stdout.buffer.write(data if done.data is None else done.data)
        sys.stdout.buffer.flush()
        return self._finish(
            [done.report] if done.report.findings or done.report.crash else [], done.fixed, err=True
        )

    def _fix(self, reports: Sequence[Report]) -> int:
        from esper_guard.atomic import write_atomically
        from esper_guard.lint import files

        left: list[Report] = []
        fixed: list[Finding] = []
        done: list[FixedFile] = []
        for report in reports:
            unsafe = self._unsafe(report.path)
            if not any(f.fix is not None and (f.fix.safe or unsafe) for f in report.findings):
                left.append(report)
                continue
            data, codes = files.read(report.path), self.codes_for(report.path)
            recorded = self._recorded_of(report.path)
            result = with_deep_stack(partial(fix_content, report.path, data, codes, unsafe, recorded))
            if result.data is not None and not self.options.diff:
                try:
                    write_atomically(report.path, result.data)
                except OSError as error:
                    reason = error.strerror or str(error)
                    left.append(
                        Report(report.path, report.findings, report.text, f"can't write the fixes: {reason}")
                    )
                    continue
            done.append(result)
            fixed += result.fixed
            left.append(result.report)
        if self.options.diff:
            return self._show_diffs(done, left)
        return self._finish([r for r in left if r.findings or r.crash], fixed)

    def _unsafe(self, path: str) -> bool:
        return self.project_of(os.path.dirname(os.path.abspath(path))).config.unsafe_fixes

    # -- what is shown --------------------------------------------------------------------------------------------

    def _show_diffs(self, done: Sequence[FixedFile], left: Sequence[Report] = ()) -> int:
        from esper_guard.report.diff import diff
        from esper_guard.report.text import concise

        changed = [file for file in done if file.data is not None]
        for file in changed:
            sys.stdout.buffer.write(diff(file))
        sys.stdout.buffer.flush()
        reports = [*left, *(file.report for file in done)]
        unread = [Report(r.path, [f for f in r.findings if f.code == SYNTAX_ERROR]) for r in reports]
        broken = concise(unread, click.style)
        click.echo(broken, nl=False, err=True)
        crashed = self._show_crashes(reports)
        if not self.options.quiet and not crashed:
            count = sum(len(file.fixed) for file in changed)
            click.echo(f"Would fix {count} finding{_s(count)}." if count else "No fixes to apply.", err=True)
        if crashed:
            return FAILED
        return FOUND if (changed or broken) and not self.options.exit_zero else CLEAN

    def _finish(self, reports: Sequence[Report], fixed: Sequence[Finding], err: bool = False) -> int:
        from esper_guard.report import plain, render, text

        options = self.options
        if self._recordings is not None:
            reports = _costliest_first(reports)
        output_format = self.project.config.output_format
        style = plain if options.output_file else click.style
        if options.statistics and output_format != "json":
            shown = text.statistics(reports, style)
        else:
            shown = render(output_format, reports, style)
        if options.output_file:
            self._write(options.output_file, shown)
        elif shown:
            click.echo(shown, nl=False, err=err)
        crashed = self._show_crashes(reports)
        findings = [finding for report in reports for finding in report.findings]
        if not options.quiet and not options.statistics:
            self._summary(findings, fixed, crashed, err=err or output_format == "json")
        if crashed:
            return FAILED
        counts = any(finding.severity is not Severity.NOTE for finding in findings)
        return FOUND if counts and not options.exit_zero else CLEAN

    def _write(self, path: str, shown: str) -> None:
        try:
            with open(path, "w", encoding="utf-8", newline="\n") as file:
                file.write(shown)
        except OSError as error:
            raise click.UsageError(f"can't write {path}: {error.strerror}") from None

    def _show_crashes(self, reports: Sequence[Report]) -> bool:
        crashed = [report for report in reports if report.crash]
        for report in crashed:
            error = click.style("internal error", fg="red", bold=True)
            click.echo(f"{error}: {report.path}: {report.crash}", err=True)
        return bool(crashed)

    def _summary(
        self, findings: Sequence[Finding], fixed: Sequence[Finding], crashed: bool, err: bool
    ) -> None:
        say = click.echo
        if fixed:
            say(f"Fixed {len(fixed)} finding{_s(len(fixed))}.", err=err)
        notes = sum(finding.severity is Severity.NOTE for finding in findings)
        if not findings:
            if not crashed and self.project.config.output_format != "json":
                say("All checks passed!" if not fixed else "Nothing else found.", err=err)
            return
        if self.project.config.output_format == "json":
            return
        of_them = f" ({notes} note{_s(notes)})" if notes else ""
        say(f"Found {len(findings)} finding{_s(len(findings))}{of_them}.", err=err)
        safe = sum(f.fix is not None and f.fix.safe for f in findings)
        unsafe = sum(f.fix is not None and not f.fix.safe for f in findings)
        if safe:
            say(f"[*] {safe} fixable with `--fix`.", err=err)
        if unsafe:
            say(
                f"{unsafe} unsafe fix{'es' if unsafe > 1 else ''} available with `--fix --unsafe-fixes`.",
                err=err,
            )

    def _say(self, text: str) -> None:
        if self.options.verbose:
            click.echo(f"[esper-guard] {text}", err=True)

    def _warn(self, text: str) -> None:
        if not self.options.quiet:
            click.echo(f"{click.style('warning', fg='yellow', bold=True)}: {text}", err=True)


def _recordings(paths: Sequence[str]) -> Recordings:
    from esper_guard.trace import load_trace, merge
    from esper_guard.trace.recordings import Recordings

    try:
        traces = [load_trace(path) for path in paths]
        merge(traces)  # of one level
        return Recordings(traces)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--trace'") from error


def _costliest_first(reports: Sequence[Report]) -> list[Report]:
    """A report for each finding, as that is the order in which they are shown."""
    from esper_guard.lint.measured import by_cost

    single = [
        msgspec.structs.replace(report, findings=[finding], crash=None)
        for report in reports
        for finding in report.findings
    ]
    without = [msgspec.structs.replace(report, findings=[]) for report in reports if report.crash]
    return sorted(single, key=lambda report: by_cost(report.findings[0])) + without


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def _s(count: int) -> str:
    return "" if count == 1 else "s"
