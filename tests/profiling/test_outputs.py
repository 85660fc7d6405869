"""Where a profile goes, and what is refused before anything is measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from esper_guard.profiling.result import load_profile, save_profile
from tests.conftest import Run
from tests.profiling.conftest import Command
from tests.profiling.made_up import comparison, profile, variant

SAVED = profile(
    comparison([variant("NCHW"), variant("NHWC")], noise=None, workload="m:make('$_$')", device="cpu")
)


@pytest.fixture(autouse=True)
def saved(folder: Path) -> None:
    save_profile(SAVED, "p.json")


def test_json_can_be_printed(command: Command, folder: Path) -> None:
    done = command("--from", "p.json", "--json", "-", "--markdown", "p.md")
    assert done.exit_code == 0, done.output
    assert done.stdout == (folder / "p.json").read_text()
    assert (folder / "p.md").is_file()
    assert not (folder / "-").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "-", "--markdown", "-"], "can't both be printed"),
        (["--json", "n" * 300], f"'{'n' * 300}' can't be written: File name too long"),
        (
            ["--trace", "closed/t.json"],
            "'closed/t.json' can't be written: no file can be made in its folder: ",
        ),
        (["--markdown", "read-only.md"], "'read-only.md' can't be written: it is read-only"),
        (["--threads", "100000"], "100000 is too many: "),
        (["--seed", "-1"], "-1 is not in the range 0<=x<="),
        (["--seed", str(2**64)], "is not in the range 0<=x<="),
        (["--device", "meta"], "torch can't use the device 'meta'"),
    ],
)
def test_what_can_not_be_done_is_said_before_measuring(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    (folder / "closed").mkdir()
    (folder / "read-only.md").touch()
    (folder / "loud.py").write_text("raise AssertionError('this was measured')\n")
    makes, may = os.open, os.access

    def refuse(path: str, *others: int, **options: int | None) -> int:
        if "closed" in str(path):  # for a user who may write everywhere, too
            raise PermissionError(13, "Permission denied", path)
        return makes(path, *others, **options)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: "read-only" not in str(path) and may(path, mode))
    done = command("loud.py:make", *arguments)
    assert done.exit_code != 0
    assert message in " ".join(done.output.split())
    assert "measured" not in done.output
    assert ".esper-guard-" not in done.output


def test_a_file_that_fails_loses_nothing_else(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", ".esper-guard-temporary")

    monkeypatch.setattr("esper_guard.profiling.result.save_profile", full)
    monkeypatch.setattr("esper_guard.profiling.plot.picture", lambda *arguments: 1 / 0)
    arguments = ("--json", "q.json", "--plot", "q.svg", "--markdown", "q.md")
    done = command("--from", "p.json", *arguments)
    assert done.exit_code == 1
    assert "bytes in one step" in done.stdout
    assert (
        "Error: --json q.json can't be written: No space left on device; --plot q.svg can't be" in done.stderr
    )
    assert (folder / "q.md").is_file()


def test_files_are_written_when_nobody_reads_the_table(run: Run, folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("profile", "--from", "p.json", "--json", "q.json", stdout=writer, capture_output=False)
    os.close(writer)
    assert done.returncode != 0
    assert load_profile(folder / "q.json") == SAVED


def test_pictures_show_names_as_they_are(command: Command, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    done = command("--from", "p.json", "--plot", "p.svg", "-q")
    assert (done.exit_code, done.output) == (0, "")
    assert "m:make('$_$')" in (folder / "p.svg").read_text()


TIMED = (variant("NCHW", seconds=1.0), variant("NHWC", seconds=1.0))


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (profile(), "it holds no comparison"),
        (profile(comparison([variant("NCHW")], noise=None)), "lacks a variant in NCHW or one in NHWC"),
        (profile(comparison([TIMED[0], TIMED[0], TIMED[1]])), "two variants of one name"),
        (profile(comparison([TIMED[0], variant("NHWC")])), "times of some of its variants only"),
    ],
)
def test_a_profile_that_does_not_hold_together_is_refused(
    command: Command, damaged: object, message: str
) -> None:
    save_profile(damaged, "d.json")
    done = command("--from", "d.json")
    assert done.exit_code == 1
    assert done.output.startswith("Error: d.json: a damaged profile: ")
    assert message in done.output
    assert done.output.endswith(": measure again\n")


@pytest.mark.parametrize(
    ("text", "instead", "message"),
    [
        ('"step":[2.0]', '"step":[]', "not the same number of times"),
        ('"backward":[1.0]', '"backward":[]', "not the same number of times"),
        ('"samples":[1.0]', '"samples":[]', "no times of the variant that was measured again"),
        ('"variant":"NCHW again"', '"variant":"other"', "a ratio of 'other', which is none of its variants"),
    ],
)
def test_figures_that_are_not_there_are_missed(
    command: Command, folder: Path, text: str, instead: str, message: str
) -> None:
    save_profile(profile(comparison(list(TIMED), rounds=1)), "d.json")
    whole = "".join(line.strip() for line in (folder / "d.json").read_text().splitlines()).replace(
        '": ', '":'
    )
    assert text in whole
    (folder / "d.json").write_text(whole.replace(text, instead, 1))
    assert message in command("--from", "d.json").output
