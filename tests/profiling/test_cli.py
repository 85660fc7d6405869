"""``esper-guard profile`` as a user runs it."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest

from esper_guard import load_trace
from esper_guard.profiling.result import load_profile, save_profile
from tests.conftest import Run, run_python, run_without_torch
from tests.profiling.conftest import COPIED, COPY_LINE, Command
from tests.profiling.made_up import comparison, line, profile, ratio, variant


def test_bytes_only(command: Command, folder: Path) -> None:
    done = command("known.py:make", "--no-time", "--device", "cpu", "--json", "p.json", "--trace", "t.json")
    assert done.exit_code == 0, done.output
    assert f"known.py:{COPY_LINE} `frozen = features.contiguous().detach()` copies 512.0 KiB" in done.output
    saved = load_profile(folder / "p.json")
    assert saved.settings.command == (
        "esper-guard profile known.py:make --no-time --device cpu --json p.json --trace t.json"
    )
    assert saved.settings.inputs == ["8x3x32x32 float32"]
    assert saved.comparisons[0].ratios == []
    assert load_trace(folder / "t.json").total_bytes == 2 * COPIED


def test_a_short_timed_run(command: Command, folder: Path) -> None:
    done = command("known.py:make", "--rounds", "6", "--device", "cpu", "--threads", "1", "--json", "p.json")
    assert done.exit_code == 0, done.output
    saved = load_profile(folder / "p.json")
    assert saved.machine.threads == 1
    (found,) = saved.comparisons
    for each in found.variants:
        assert each.times is not None
        assert [len(part) for part in (each.times.forward, each.times.backward, each.times.step)] == [6, 6, 6]
        assert all(time > 0 for time in (*each.times.forward, *each.times.backward))
        assert {"stem", "side", "head"} <= {time.module for time in each.modules}
    last = found.variant("NHWC")
    assert {time.module: time.copied for time in last.modules if time.copied} == {"Known": 2 * COPIED}
    assert {(ratio.variant, ratio.to, ratio.part) for ratio in found.ratios} == {
        ("NHWC", "NCHW", "step"), ("NHWC", "NCHW", "forward"), ("NHWC", "NCHW", "backward")
    }  # fmt: skip
    assert found.noise is not None
    assert (found.noise.ratio.variant, found.noise.rounds) == ("NCHW again", 6)
    assert "NCHW again" in done.output


def test_inference_of_the_built_in_model(command: Command, folder: Path) -> None:
    sizes = ("--batch", "1", "--channels", "4", "--resolution", "8")
    done = command(
        "--inference", "--rounds", "2", *sizes, "--threads", "1", "--device", "cpu", "--json", "p.json", "-q"
    )
    assert (done.exit_code, done.output) == (0, "")
    (found,) = load_profile(folder / "p.json").comparisons
    times = found.variants[-1].times
    assert times is not None
    assert (len(times.step), times.backward) == (2, [])
    assert "2 rounds are too few" in found.advice[0]
    assert {(ratio.variant, ratio.to) for ratio in found.ratios} >= {
        ("NHWC copy", "NCHW detach"), ("NHWC copy", "NHWC detach"), ("NCHW guarded", "NCHW detach")
    }  # fmt: skip


def test_every_combination_is_measured(command: Command, folder: Path) -> None:
    sizes = ("--batch", "1", "--channels", "4", "--channels", "6", "--resolution", "8")
    stages = ("--stage", "training", "--stage", "holding")
    done = command(*sizes, *stages, "--no-time", "--device", "cpu", "--json", "p.json", "-q")
    assert (done.exit_code, done.output) == (0, "")
    assert [each.workload for each in load_profile(folder / "p.json").comparisons] == [
        f"conv host, {stage}, conv seed, images 1x3x8x8, features 1x{channels}x8x8"
        for stage in ("training", "holding")
        for channels in (4, 6)
    ]


def test_markdown_is_the_same_in_every_run_without_time(command: Command) -> None:
    first, second = (command("known.py:make", "--no-time", "--markdown", "-").output for _ in range(2))
    assert first == second
    assert first.startswith("```sh\nesper-guard profile known.py:make --no-time --markdown -\n```\n")
    assert "| NHWC | 2 | 1.0 MiB | 0 | 0 B |" in first
    tables = [block.splitlines() for block in first.split("\n\n") if block.startswith("|")]
    for rows in tables:
        assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


def test_markdown_of_several_comparisons_is_one_table() -> None:
    from esper_guard.profiling.markdown import render_markdown

    variants = [variant("NCHW", seconds=1.0), variant("NHWC", [line(text="a | b")], seconds=1.0)]
    here, there = (
        comparison(variants, [ratio("NHWC", "NCHW", 0.7, 0.8)], device=device) for device in ("cpu", "cuda:0")
    )
    text = render_markdown(profile(here, there))
    assert text.count("| device | variant |") == 2
    assert "`a \\| b`" in text
    assert "| cuda:0 | NHWC | 1000.00 ms (1000.00 to 1000.00) |" in text
    assert text.endswith("\n")


def test_workloads_are_named_by_what_they_differ_in(command: Command) -> None:
    sizes = ("--host", "conv", "--host", "tokens", "--batch", "2", "--channels", "8", "--resolution", "8")
    isolations = ("--isolation", "detach", "--isolation", "copy", "--show", "isolation")
    done = command(*sizes, *isolations, "--no-time", "--device", "cpu", "--markdown", "-")
    assert "\nall: training, conv seed, images 2x3x8x8\n" in done.output
    assert "| conv host, features 2x8x8x8 | NHWC copy | +4.0 KiB (1x) |" in done.output
    assert done.output.endswith(
        "Not a byte more: NCHW copy (everywhere); NHWC copy (tokens host, features 2x4x8).\n"
    )
    one = command(*sizes[2:], *isolations, "--no-time", "--device", "cpu", "--markdown", "-")
    assert "\ntokens host, training, conv seed, images 2x3x8x8, features 2x4x8\n" in one.output
    assert one.output.endswith("Not a byte more: NCHW copy; NHWC copy.\n")


SMALL = ("--batch", "2", "--channels", "8", "--resolution", "8", "--no-time", "--device", "cpu")


def test_isolation_is_told_in_multiples_of_the_copy(command: Command) -> None:
    done = command(*SMALL, "--isolation", "detach", "--isolation", "copy", "--show", "isolation")
    rows = [line.split("  ") for line in done.output.splitlines() if line.startswith("N")]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == ["NCHW copy", "0", "0", "0", "0"]
    copy = "4.0 KiB"  # 2 * 8 * 8 * 8 floats; the convolution copies it back, and its backward does so again
    assert cells[1][:4] == ["NHWC copy", f"+{copy} (1x)", "+8.0 KiB (2x)", f"+{copy} (1x)"]


def test_only_what_is_asked_for_is_shown(command: Command, folder: Path) -> None:
    done = command(*SMALL, "--json", "p.json", "--show", "bytes")
    assert "bytes in one step" in done.output
    assert "- Time was not measured" not in done.output
    again = command("--from", "p.json", "--show", "advice", "--markdown", "-").output
    assert "- Time was not measured" in again
    assert "|" not in again
    assert "thread" not in command("--from", "p.json", "--show", "bytes").output  # bytes don't depend on them


def test_a_target_with_a_pipe_stays_in_its_cell() -> None:
    from esper_guard.profiling.markdown import render_markdown

    several = [comparison([variant("NCHW"), variant("NHWC")], [], workload=f'm:f("a|{end}")') for end in "bc"]
    text = render_markdown(profile(*several))
    rows = [row for row in text.splitlines() if row.startswith("| m:f")]
    assert rows
    assert all(row.startswith(('| m:f("a\\|b") | cpu |', '| m:f("a\\|c") | cpu |')) for row in rows)


def test_a_profile_survives_the_file(tmp_path: Path) -> None:
    whole = profile(
        comparison(
            [variant("NCHW", seconds=1.0), variant("NHWC", [line()], seconds=0.5)],
            [ratio("NHWC", "NCHW", 0.7, 0.8)],
        )
    )
    save_profile(whole, tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == whole
    head = json.loads((tmp_path / "p.json").read_text())
    assert (head["format"], head["version"]) == ("esper-guard profile", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "no profile"),
        ("nonsense", "no profile"),
        (
            '{"format": "esper-guard profile", "version": 9}',
            "of version 9; this esper-guard reads up to version 1",
        ),
        ('{"format": "esper-guard profile", "version": 1, "machine": 3}', "a damaged profile.*machine"),
    ],
)
def test_what_is_no_profile(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=f"p.json.*{message}"):
        load_profile(tmp_path / "p.json")


def test_a_saved_profile_is_shown_without_torch(command: Command, folder: Path) -> None:
    shown = command("known.py:make", "--no-time", "--json", "p.json").output
    again = run_without_torch("profile", "--from", "p.json", "--plot", "p.svg", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert again.stdout == shown
    markdown = run_without_torch("profile", "--from", "p.json", "--markdown", "-", cwd=folder)
    assert markdown.stdout.startswith("```sh\nesper-guard profile known.py:make --no-time --json p.json\n```")


@pytest.mark.parametrize("arguments", [["profile", "--help"], ["--help"], ["profile", "--from", "p.json"]])
def test_torch_is_imported_to_measure_only(tmp_path: Path, arguments: list[str]) -> None:
    save_profile(profile(comparison([variant("NCHW"), variant("NHWC")], noise=None)), tmp_path / "p.json")
    done = run_python(
        "import sys\n"
        "from esper_guard.cli import cli\n"
        "cli.main(sys.argv[1:], standalone_mode=False)\n"
        "print({'torch', 'libcst', 'matplotlib', 'rich'} & set(sys.modules))",
        *arguments,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"


def test_measuring_without_torch_says_how_to_get_it(tmp_path: Path) -> None:
    done = run_without_torch("profile", cwd=tmp_path)
    assert done.returncode == 2
    assert "esper-guard[torch]" in done.stderr


@pytest.mark.parametrize("timed", [True, False])
def test_pictures(command: Command, folder: Path, timed: bool) -> None:
    pytest.importorskip("matplotlib")
    seconds = 0.5 if timed else None
    variants = [variant("NCHW", seconds=seconds), variant("NHWC", [line()], seconds=seconds)]
    ratios = [ratio("NHWC", "NCHW", 0.7, 0.8)] if timed else []
    save_profile(profile(comparison(variants, ratios, noise=(0.99, 1.01) if timed else None)), "p.json")
    for name in ("a.svg", "b.svg", "c.png"):
        done = command("--from", "p.json", "--plot", name, "-q")
        assert (done.exit_code, done.output) == (0, "")
    assert (folder / "a.svg").read_bytes() == (folder / "b.svg").read_bytes()
    assert ElementTree.parse(folder / "a.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert b"<dc:date>" not in (folder / "a.svg").read_bytes()
    png = (folder / "c.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width > height > 200


MODELS = """\
import torch
from torch import nn

class View(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
    def forward(self, x):
        x = self.conv(x)
        return x.view(x.shape[0], -1)

class Frozen(nn.Module):
    def forward(self, x):
        return x * 2

class Uncopied(nn.Module):
    def __deepcopy__(self, memo):
        raise RuntimeError("is unique")

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(4, 1)
    def forward(self, x):
        return {"features": [self.conv(x)], "other": 3}
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["known.py"], "names no factory"),
        (["known.py:make", "--input", "8by3"], "is no shape"),
        (["--input", "8x3"], "--input belongs to a TARGET"),
        (["known.py:make", "--host", "conv"], "are of the built-in model"),
        (["known.py:make", "--device", "nonsense"], "torch can't use the device 'nonsense'"),
        (["known.py:make", "--input", "8x4x32x32"], "with inputs 8x4x32x32 float32: give the inputs that it takes with --input"),
        (["models.py:View", "--input", "2x3x4x4"], r"runs in NCHW on cpu, but in channels_last it raised RuntimeError.*models.py:10\)"),
        (["models.py:Frozen", "--input", "2x3x4x4"], "needs a gradient: measure it with --inference"),
        (["models.py:Uncopied", "--input", "2x3x4x4"], "can't copy this Uncopied: is unique"),
        (["--from", "p.json", "--no-time"], "leave --no-time out"),
        (["known.py:make", "--from", "p.json"], "leave TARGET out"),
        (["--from", "none.json"], "none.json"),
        (["known.py:make", "--plot", "p.gif"], "ends with .svg or .png"),
        (["known.py:make", "--json", "none/p.json"], "there is no folder"),
        (["known.py:make", "--markdown", "."], "is a folder"),
    ],
)  # fmt: skip
def test_misuse_names_the_remedy(command: Command, folder: Path, arguments: list[str], message: str) -> None:
    import re

    (folder / "models.py").write_text(MODELS)
    save_profile(profile(comparison([variant("NCHW"), variant("NHWC")], noise=None)), "p.json")
    done = command(*arguments)
    shown = " ".join(done.output.split()) if not isinstance(done.exception, OSError) else str(done.exception)
    assert done.exit_code != 0
    assert re.search(message, shown), shown


def test_errors_are_status_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    done = run("profile", "models.py:View", "--input", "2x3x4x4", "--no-time", "--device", "cpu")
    assert done.returncode == 2
    assert "in channels_last it raised RuntimeError: view size" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lazy_module_and_other_results(command: Command, folder: Path) -> None:
    (folder / "models.py").write_text(MODELS)
    done = command("models.py:Lazy", "--input", "2x3x4x4", "--no-time", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert re.search("NHWC +0 ", done.output)
