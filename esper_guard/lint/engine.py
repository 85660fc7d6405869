"""The pipeline over many files, in this process or in several."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from esper_guard.lint import files
from esper_guard.lint.check import SYNTAX_ERROR, check_bytes, unreadable
from esper_guard.lint.files import SourceFile
from esper_guard.lint.finding import Finding
from esper_guard.lint.source import Source, SourceError

if TYPE_CHECKING:
    from esper_guard.trace.recorded import Measured, Recorded

# Below this much source, starting processes costs more than it saves.
_WORTH_PROCESSES = 4 << 20
_BATCHES = 64
_STACK = 256 << 20  # deep trees need a deep stack; the memory is only reserved
_FRAMES = 20_000
_MAX_FIX_ROUNDS = 20

CodesFor = Callable[[str], frozenset[str]]
RecordedOf = Callable[[str], "Recorded | None"]
_T = TypeVar("_T")


class Report(msgspec.Struct):
    """What was found in one file. ``text`` is there if anything was, ``crash`` if the linter itself failed."""

    path: str
    findings: list[Finding] = []
    text: str | None = None
    crash: str | None = None
    gone: int = 0
    """Lines that a trace measured something on, and that are no longer there."""
    moved: int = 0
    """Such lines that have another number now."""


class Job(NamedTuple):
    """A file to check, and with what."""

    file: SourceFile
    codes: frozenset[str]
    recorded: Recorded | None = None
    """What a trace holds of it."""


class FixedFile(msgspec.Struct):
    """A file after fixing: what is left, what was fixed, and the new bytes if they differ."""

    report: Report
    fixed: list[Finding]
    before: str
    after: str
    data: bytes | None


def check_files(
    found: Iterable[SourceFile], codes_for: CodesFor, jobs: int, recorded_of: RecordedOf | None = None
) -> Iterator[Report]:
    """Check files; the reports come in the order given, and only where there is something to report."""
    todo = [
        Job(file, codes_for(file.path), None if recorded_of is None else recorded_of(file.path))
        for file in found
    ]
    if jobs > 1 and len(todo) > 1 and sum(_size(job.file.path) for job in todo) > _WORTH_PROCESSES:
        reports = _in_processes(todo, jobs)
    else:
        reports = {report.path: report for report in with_deep_stack(lambda: _check_many(todo))}
    for job in todo:
        if job.file.path in reports:
            yield reports[job.file.path]


def check_file(job: Job) -> Report:
    """Read and check one file. Never raises: what can't be read is a finding, a bug of ours is a crash report."""
    file = job.file
    try:
        data = files.read(file.path)
    except OSError as error:
        return _failed(file.path, error.strerror or str(error), job.codes)
    return check_content(file.path, data, job.codes, file.is_named, job.recorded)


def check_content(
    path: str, data: bytes, codes: frozenset[str], is_named: bool, recorded: Recorded | None = None
) -> Report:
    """Check a file's content; ``recorded`` is what a trace holds of it."""
    measured: Measured | None = None
    try:
        if recorded is not None:
            measured = recorded.in_text(_text(path, data))
        found = check_bytes(path, data, codes, is_named, measured)
    except RecursionError:
        return _failed(path, "the code is nested too deeply to be analysed", codes)
    except Exception:  # noqa: BLE001 - one file must not take the others with it
        import traceback

        return Report(path, crash=traceback.format_exc())
    gone, moved = (0, 0) if measured is None else (measured.gone, measured.moved)
    return Report(path, found, _text(path, data) if found else None, gone=gone, moved=moved)


def fix_content(
    path: str, data: bytes, codes: frozenset[str], unsafe: bool, recorded: Recorded | None = None
) -> FixedFile:
    """Apply fixes until none is left to apply. A fix that would leave broken code is a crash, and changes nothing."""
    from esper_guard.lint.fix import apply_fixes

    report = check_content(path, data, codes, True, recorded)
    before = report.text or ""
    if report.text is not None and not _survives_re_encoding(path, data):
        crash = (
            "can't fix it: encoding the text again would change bytes elsewhere; save the file as UTF-8 first"
        )
        return FixedFile(Report(path, report.findings, report.text, crash), [], before, before, None)
    fixed: list[Finding] = []
    current = data
    for _ in range(_MAX_FIX_ROUNDS):
        if report.crash or report.text is None or any(f.code == SYNTAX_ERROR for f in report.findings):
            break
        source = Source.from_bytes(path, current)
        text, done = apply_fixes(source.text, report.findings, unsafe)
        if not done:
            break
        current = source.to_bytes(text)
        fixed += done
        report = check_content(path, current, codes, True, recorded)
        if report.crash or any(f.code == SYNTAX_ERROR for f in report.findings):
            crash = (
                report.crash or f"fixing {', '.join(sorted({f.code for f in done}))} would leave broken code"
            )
            return FixedFile(Report(path, crash=crash), [], before, before, None)
    if current == data:
        return FixedFile(report, [], before, before, None)
    after = Source.from_bytes(path, current).text
    return FixedFile(report, fixed, before, after, current)


def with_deep_stack(work: Callable[[], _T]) -> _T:
    """Run ``work`` in a thread with a stack for deep syntax trees."""
    outcome: list[Any] = []

    def target() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            outcome.append((None, error))

    stack, frames = threading.stack_size(_STACK), sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(max(frames, _FRAMES))
        thread = threading.Thread(target=target, name="esper-guard")
        thread.start()
        thread.join()
    finally:
        threading.stack_size(stack)
        sys.setrecursionlimit(frames)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _survives_re_encoding(path: str, data: bytes) -> bool:
    """Some codecs (cp932, utf-7, ...) write the same text in more than one way."""
    try:
        source = Source.from_bytes(path, data)
        return source.to_bytes(source.text) == data
    except SourceError:
        return True  # not read, so not written either
    except UnicodeError:
        return False


def _text(path: str, data: bytes) -> str:
    try:
        return Source.from_bytes(path, data).text
    except SourceError:
        return data.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _failed(path: str, why: str, codes: frozenset[str]) -> Report:
    finding = unreadable(SourceError(f"the file can't be checked: {why[:1].lower()}{why[1:]}"))
    return Report(path, [finding] if SYNTAX_ERROR in codes else [])


def _check_many(batch: list[Job]) -> list[Report]:
    reports = map(check_file, batch)
    return [report for report in reports if report.findings or report.crash or report.gone or report.moved]


def _check_batch(batch: list[Job]) -> list[Report]:
    return with_deep_stack(lambda: _check_many(batch))


def _in_processes(todo: list[Job], jobs: int) -> dict[str, Report]:
    """Large files first, so that no process is left with one at the end."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    ordered = sorted(todo, key=lambda job: -_size(job.file.path))
    batches = [ordered[start::_BATCHES] for start in range(min(_BATCHES, len(ordered)))]
    reports: list[Report] = []
    broken: list[Job] = []
    pool = ProcessPoolExecutor(min(jobs, len(batches)))
    try:
        futures = [pool.submit(_check_batch, batch) for batch in batches]
        for batch, future in zip(batches, futures, strict=True):
            try:
                reports += future.result()
            except BrokenProcessPool:  # noqa: PERF203
                broken += batch
    finally:
        pool.shutdown(cancel_futures=True)
    reports += map(_alone, broken)
    return {report.path: report for report in reports}


def _alone(job: Job) -> Report:
    """Check one file in a process of its own, after one of many has killed the process they shared."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    try:
        with ProcessPoolExecutor(1) as pool:
            return pool.submit(check_file, job).result()
    except BrokenProcessPool:
        return _failed(job.file.path, "the parser crashed on it", job.codes)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
