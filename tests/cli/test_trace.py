"""``esper-guard trace`` and ``esper-guard report`` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from esper_guard import load_trace
from tests.conftest import Run, run_without_torch

PROGRAM = """\
import sys
import torch

print("arguments", sys.argv, __name__)
images = torch.zeros(2, 3, 4, 5)
images = images.to(memory_format=torch.channels_last)
flat = images.reshape(2, -1)
soft = images.softmax(1)
if "fail" in sys.argv:
    raise KeyError("a failure")
if "exit" in sys.argv:
    sys.exit(7)
"""
HELPER = "SCALE = 2\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(f"import helper\n{PROGRAM}")
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "train.py").write_text(PROGRAM)
    return tmp_path


def test_a_script(run: Run, project: Path) -> None:
    done = run("trace", "--", "train.py", "--epochs", "-m", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "arguments ['train.py', '--epochs', '-m', '1'] __main__\n"
    assert "2 layout copies, 960 B; 1 format loss" in done.stderr
    assert done.stderr.rstrip().endswith("layout-trace.json")
    trace = load_trace(project / "layout-trace.json")
    assert [(event.kind, event.line, event.file) for event in trace.events] == [
        ("explicit", 7, str(project / "train.py")),
        ("hidden", 8, str(project / "train.py")),
        ("loss", 9, str(project / "train.py")),
    ]


def test_a_script_in_another_folder_imports_its_neighbours(run: Run, project: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    done = run("trace", "-o", "t.json", "../train.py", cwd=other)
    assert done.returncode == 0, done.stderr
    assert len(load_trace(other / "t.json").copies) == 2


def test_a_linked_script_finds_its_neighbours(run: Run, project: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "train").symlink_to(project / "train.py")
    done = run("trace", "-o", "t.json", "bin/train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_module(run: Run, project: Path) -> None:
    arguments = ("--output", "out.txt", "--level", "3", "--help")
    done = run("trace", "--level", "deep", "-o", "t.json", "-m", "package.train", *arguments, cwd=project)
    assert done.returncode == 0, done.stderr
    assert f"{', '.join(map(repr, arguments))}] __main__" in done.stdout
    trace = load_trace(project / "t.json")
    assert trace.level == "deep"
    assert trace.kernel_copies is not None
    assert [event.line for event in trace.copies] == [6, 7]


def test_the_exit_status_is_the_programs(run: Run, project: Path) -> None:
    done = run("trace", "--", "train.py", "exit", cwd=project)
    assert done.returncode == 7
    assert len(load_trace(project / "layout-trace.json").copies) == 2


def test_a_failing_program_shows_its_own_traceback(run: Run, project: Path) -> None:
    done = run("trace", "--", "train.py", "fail", cwd=project)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    start = lines.index("Traceback (most recent call last):")
    assert lines[start + 1] == f'  File "{project / "train.py"}", line 11, in <module>'
    assert "KeyError: 'a failure'" in lines
    assert not any("esper_guard" in line or "runpy" in line for line in lines[start:-1])
    assert len(load_trace(project / "layout-trace.json").copies) == 2


def test_single_events_for_a_trace_viewer(run: Run, project: Path) -> None:
    done = run("trace", "--keep-events", "10", "--chrome", "c.json", "train.py", cwd=project)
    assert done.returncode == 0, done.stderr
    entries = json.loads((project / "c.json").read_text())["traceEvents"]
    assert [entry["args"]["line"] for entry in entries] == [7, 8, 9]


def test_the_rank_in_the_name(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "esper_guard", "trace", "-o", "t-{rank}.json", "train.py"],
        cwd=project,
        env={**os.environ, "RANK": "5"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "t-5.json" in done.stderr
    assert load_trace(project / "t-5.json").rank == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a script"),
        (("none.py",), "there is no file 'none.py'"),
        (("--chrome", "c.json", "train.py"), "--keep-events"),
        (("-o", "none/t.json", "train.py"), "there is no folder"),
        (("-o", ".", "train.py"), "is a folder"),
        (("--level", "deepest", "train.py"), "deepest"),
        (("--levl", "deep", "train.py"), "--levl"),
        (("--keep-events", "1", "--chrome", "none/c.json", "train.py"), "there is no folder"),
        (("-m", "no_such_module"), "there is no module 'no_such_module'"),
    ],
)
def test_misuse_is_status_2(run: Run, project: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run("trace", *arguments, cwd=project)
    assert done.returncode == 2
    assert message in done.stderr


def test_what_can_not_begin_leaves_the_old_trace(run: Run, project: Path) -> None:
    (project / "broken.py").write_text("def f(:\n")
    (project / "layout-trace.json").write_text("old")
    done = run("trace", "broken.py", cwd=project)
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr
    assert run("trace", "-m", "no_such_module", cwd=project).returncode == 2
    assert (project / "layout-trace.json").read_text() == "old"


def test_an_interrupted_program_is_traced(run: Run, project: Path) -> None:
    (project / "interrupted.py").write_text(f"{PROGRAM}raise KeyboardInterrupt\n")
    done = run("trace", "--keep-events", "9", "--chrome", "c-{rank}.json", "interrupted.py", cwd=project)
    assert done.returncode == 130
    assert "2 layout copies" in done.stderr
    assert len(load_trace(project / "layout-trace.json").copies) == 2
    assert (project / "c-0.json").exists()


@pytest.fixture
def traced(run: Run, project: Path) -> Path:
    assert run("trace", "train.py", cwd=project).returncode == 0
    return project


def test_a_report_by_line(run: Run, traced: Path) -> None:
    done = run("report", "layout-trace.json", cwd=traced)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 layout copies, 960 B; 1 format loss (dispatch level, torch ")
    assert lines[2].split()[-1] == "line"
    assert [line.split("train.py:")[1].split()[0] for line in lines[3:6]] == ["7", "8", "9"]
    assert lines[3].endswith("images = images.to(memory_format=torch.channels_last)")
    assert lines[-5:] == [
        "channels_last first became NCHW at train.py:8: hidden copy, aten.clone.default",
        "why: train.py:8: reshape (no view will do) writes NCHW whatever it reads (CPU)",
        "  write instead: before a Linear: x.permute(0, 2, 3, 1).flatten(1) (with the columns of its weight reordered "
        "to match, once)",
        "why: train.py:9: softmax writes NCHW whatever it reads (CPU)",
        "  write instead: F.softmax(x.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2) (along channels)",
    ]


@pytest.mark.parametrize(
    ("by", "shown"), [("module", "(no module)"), ("operator", "aten.clone.default"), ("event", "480 B")]
)
def test_a_report_by_something_else(run: Run, traced: Path, by: str, shown: str) -> None:
    done = run("report", "--by", by, "layout-trace.json", cwd=traced)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_a_report_of_several(run: Run, traced: Path) -> None:
    done = run("report", "-n", "1", "layout-trace.json", "layout-trace.json", cwd=traced)
    assert done.stdout.startswith("4 layout copies, 1.9 KiB; 2 format losses")
    assert "and 2 more" in done.stdout


def test_a_report_of_what_is_no_trace(run: Run, project: Path) -> None:
    (project / "bad.json").write_text("{}")
    done = run("report", "bad.json", cwd=project)
    assert done.returncode == 2
    assert "bad.json: no layout trace" in done.stderr
    done = run("report", "none.json", cwd=project)
    assert done.returncode == 2
    assert "none.json" in done.stderr


def test_a_report_needs_no_torch(traced: Path) -> None:
    done = run_without_torch("report", "layout-trace.json", cwd=traced)
    assert done.returncode == 0, done.stderr


def test_tracing_without_torch_says_how_to_get_it(project: Path) -> None:
    done = run_without_torch("trace", "train.py", cwd=project)
    assert done.returncode == 2
    assert "esper-guard[torch]" in done.stderr


def test_the_streams_of_the_program_are_its_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import sys\nprint(sys.stdout.errors)\n")
    assert run("trace", "--", "train.py", env={"PYTHONIOENCODING": "cp1252"}).stdout == "strict\n"
