"""``esper-guard report`` as a gate: bounds, baselines, comparisons and summaries, of traces of real runs."""

from __future__ import annotations

import json
import linecache
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from esper_guard import LayoutEvent, LayoutTrace, load_trace, trace_layouts
from esper_guard.cli import cli
from esper_guard.trace.event import Level
from esper_guard.trace.tally import prototype_of
from tests.conftest import ROOT, Run, run_python, run_without_torch

MODEL = """\
import torch
from torch import nn

class Block(nn.Module):
    def forward(self, x):
        x = x.softmax(1)
        x = x.to(memory_format=torch.channels_last)
        return x.reshape(2, -1)

block = nn.Sequential(Block())
images = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
block(images)
"""
"""Three copies of 480 bytes, on lines 7, 8 and 11, and one loss, on line 6."""

FLAT = "        return x.reshape(2, -1)"
SOFT = "        x = x.softmax(1)"
Record = Callable[..., Path]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """``record("a.json", source)``: run a model.py and save its trace."""

    def start(
        name: str = "a.json", source: str = MODEL, folder: str = ".", level: Level = "dispatch"
    ) -> Path:
        file = tmp_path / folder / "model.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
        linecache.checkcache(str(file))
        with trace_layouts(level) as trace:
            exec(compile(source, str(file), "exec"), {"__name__": "model"})  # noqa: S102
        return trace.save(tmp_path / name)

    return start


def copied(**fields: Any) -> LayoutEvent:
    values: dict[str, Any] = {
        "kind": "hidden",
        "operator": "aten.clone.default",
        "source": "channels_last",
        "destination": "nchw",
        "source_shape": (2, 3, 4, 5),
        "shape": (2, 3, 4, 5),
        "dtype": "float32",
        "device": "cpu",
        "phase": "forward",
        "bytes": 480,
        "file": "model.py",
        "line": 8,
        "module": "0",
        **fields,
    }
    return LayoutEvent(**values)


def save(path: Path, events: Iterable[LayoutEvent], unseen: Iterable[str] = ()) -> Path:
    trace = LayoutTrace(torch_version="2.13.0")
    for event in events:
        trace.tally(prototype_of(event)).include(event)
    for sentence in unseen:
        trace.note_unseen(sentence)
    return trace.save(path)


class TestBounds:
    @pytest.mark.parametrize(
        ("bounds", "said"),
        [
            (("--max-copies", "2"), ["3 layout copies, at most 2 allowed"]),
            (("--max-bytes", "1 kB"), ["1.4 KiB copied, at most 1000 B allowed"]),
            (("--max-bytes", "1439"), ["1440 B copied, at most 1439 B allowed"]),
            (("--max-losses", "0"), ["1 format loss, at most 0 allowed"]),
            (
                ("--max-copies", "0", "--max-bytes", "0", "--max-losses", "0"),
                ["3 layout copies, at most 0", "1.4 KiB copied, at most 0 B", "1 format loss, at most 0"],
            ),
        ],
    )
    def test_exceeded(self, run: Run, record: Record, bounds: tuple[str, ...], said: list[str]) -> None:
        record()
        done = run("report", "a.json", *bounds)
        assert done.returncode == 1
        first, *lines = done.stderr.splitlines()
        assert first.startswith("exceeded: ")
        assert all(text in first for text in said)
        assert all(line.startswith("  model.py:") for line in lines)
        assert len(lines) == {"--max-losses": 1}.get(bounds[0], 3 if len(bounds) == 2 else 4)
        assert done.stdout.startswith("3 layout copies, 1.4 KiB; 1 format loss")

    def test_at_the_limit_passes(self, run: Run, record: Record) -> None:
        record()
        done = run("report", "a.json", "--max-copies", "3", "--max-bytes", "1440", "--max-losses", "1")
        assert (done.returncode, done.stderr) == (0, "")
        said = "\n\npassed: at most 3 layout copies; at most 1.4 KiB copied; at most 1 format loss\n"
        assert done.stdout.endswith(said)

    @pytest.mark.parametrize("by", ["line", "event"])
    def test_what_passes_says_so(self, run: Run, record: Record, by: str) -> None:
        record()
        without = run("report", "a.json", "--by", by).stdout
        options = ("--by", by, "--max-bytes", "64 MiB", "--baseline", "a.json")
        done = run("report", "a.json", *options)
        said = "\npassed: at most 64.0 MiB copied; nothing that a.json doesn't have\n"
        assert done.stdout == f"{without}{said}"
        assert "passed" not in run("report", "a.json", *options, "--max-copies", "1").stdout

    def test_they_hold_for_the_sum_of_all_traces(self, run: Run, record: Record) -> None:
        record()
        assert run("report", "a.json", "a.json", "--max-copies", "6").returncode == 0
        assert run("report", "a.json", "a.json", "--max-copies", "5").returncode == 1

    @pytest.mark.parametrize("pattern", ["model.py:8", "0", "*.clone.*"])
    def test_ignored(self, run: Run, record: Record, pattern: str) -> None:
        record()
        explicit = ("--ignore", "model.py:11", "--ignore", "model.py:7", "--max-copies", "0")
        assert run("report", "a.json", *explicit).returncode == 1
        assert run("report", "a.json", *explicit, "--ignore", pattern).returncode == 0

    def test_what_could_not_be_seen_is_a_warning(self, run: Run, tmp_path: Path) -> None:
        save(tmp_path / "a.json", [copied()], ["a compiled region", "another"])
        for bound, status in (("1", 0), ("0", 1)):
            done = run("report", "a.json", "--max-copies", bound)
            assert done.returncode == status
            warning = "warning: not seen, so that its copies don't count: a compiled region; another\n"
            assert done.stderr.endswith(warning)
        assert run("report", "a.json").stderr == ""

    def test_it_says_how_to_see_all(self, run: Run, tmp_path: Path) -> None:
        save(tmp_path / "a.json", [copied(line=line) for line in range(1, 41)])
        done = run("report", "a.json", "--max-copies", "0")
        assert done.stderr.endswith("  and 36 more; to see all: esper-guard report --by event -n 40\n")
        assert "model.py:40" in run("report", "a.json", "--by", "event", "-n", "40").stdout

    def test_exit_zero(self, run: Run, record: Record) -> None:
        record()
        done = run("report", "a.json", "--max-copies", "0", "--exit-zero")
        assert done.returncode == 0
        assert "exceeded: 3 layout copies" in done.stderr
        assert run("report", "none.json", "--max-copies", "0", "--exit-zero").returncode == 2

    def test_by_event_too(self, run: Run, record: Record) -> None:
        record()
        done = run("report", "--by", "event", "a.json", "--max-copies", "2")
        assert done.returncode == 1
        assert "channels_last -> nchw" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--max-copies", "-1"), "'--max-copies': -1 is not in the range"),
            (("--max-copies", "many"), "'--max-copies': 'many' is not a valid integer"),
            (("--max-losses", "-2"), "'--max-losses': -2 is not in the range"),
            (("--max-bytes", "-1"), "'--max-bytes': '-1' is no size"),
            (("--max-bytes", "2 mebibytes"), "'--max-bytes': '2 mebibytes' is no size"),
            (("--max-bytes", ""), "'--max-bytes': '' is no size"),
            (("--ignore", "model.py"), "--ignore leaves out what counts"),
            (("--update-baseline",), "name it with --baseline"),
            (("--baseline", "none.json"), "'--baseline': there is no file 'none.json'"),
            (("--baseline", "."), "'--baseline'"),
            (("--compare", "none.json"), "none.json"),
            (("--by", "event", "--output-format", "json"), "--by event"),
            (("--by", "lines"), "'line'"),
            (("--output-format", "markdwn"), "did you mean"),
            (("--output-file", "none/a.txt"), "'--output-file': there is no folder"),
            (("--html", "none/a.html"), "'--html': there is no folder"),
            (("--output-file", "a.json"), "--output-file would overwrite what is read: a.json"),
            (("--html", "./a.json"), "--html would overwrite what is read"),
            (("--html", "x", "--output-file", "x"), "--html and --output-file name the same file"),
            (("--baseline", "new/b.json", "--update-baseline"), "'--baseline': there is no folder"),
        ],
    )
    def test_misuse_is_status_2(
        self, run: Run, record: Record, tmp_path: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        before = record().read_bytes()
        files = set(tmp_path.iterdir())
        done = run("report", "a.json", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stdout == ""
        assert set(tmp_path.iterdir()) == files
        assert (tmp_path / "a.json").read_bytes() == before


class TestBaseline:
    @pytest.fixture
    def known(self, run: Run, record: Record, tmp_path: Path) -> Path:
        record()
        done = run("report", "a.json", "--baseline", "known.json", "--update-baseline")
        assert done.returncode == 0
        assert done.stderr == "baseline: 4 entries (4 new, 0 gone) written to known.json\n"
        return tmp_path / "known.json"

    def test_what_it_holds(self, known: Path) -> None:
        content = json.loads(known.read_text())
        assert content["of"] == "run"
        assert [(entry["file"], entry["code"], entry["kind"]) for entry in content["entries"]] == [
            (
                "model.py",
                "images = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)",
                "explicit",
            ),
            ("model.py", "return x.reshape(2, -1)", "hidden"),
            ("model.py", "x = x.softmax(1)", "loss"),
            ("model.py", "x = x.to(memory_format=torch.channels_last)", "explicit"),
        ]

    def test_one_that_holds_comments_still_matches(self, run: Run, known: Path) -> None:
        """As earlier releases wrote them, here with two lines that differ by their comments only."""
        content = json.loads(known.read_text())
        for entry in content["entries"]:
            entry["code"] += "  # as it was"
        again = {**content["entries"][1], "code": "return x.reshape(2, -1)  # again"}
        known.write_text(json.dumps({**content, "entries": [*content["entries"], again]}))
        assert run("report", "a.json", "--baseline", "known.json").returncode == 0
        done = run("report", "a.json", "a.json", "--baseline", "known.json")
        assert done.stderr.startswith("exceeded: 2 layout copies and 1 format loss not in known.json\n")

    @pytest.fixture(params=["known.json", "a.json"])
    def earlier(self, request: pytest.FixtureRequest, known: Path) -> str:
        """A baseline, and the trace that it is of."""
        name: str = request.param
        return name

    def test_the_same_passes(self, run: Run, record: Record, earlier: str) -> None:
        record("b.json")
        done = run("report", "b.json", "--baseline", earlier)
        assert (done.returncode, done.stderr) == (0, "")

    def test_moved_lines_are_no_news(self, run: Run, record: Record, earlier: str) -> None:
        record("b.json", f"# more\n\n{MODEL}")
        assert run("report", "b.json", "--baseline", earlier).returncode == 0

    def test_comments_are_no_news(self, run: Run, record: Record, earlier: str) -> None:
        commented = "".join(f"{line}  # as it is\n" for line in MODEL.splitlines())
        record("b.json", commented.replace("softmax(1)", "softmax(1)\t# noqa: EG101"))
        done = run("report", "b.json", "--baseline", earlier)
        assert (done.returncode, done.stderr) == (0, "")

    def test_less_is_no_news(self, run: Run, record: Record, earlier: str) -> None:
        record("b.json", MODEL.replace(FLAT, "        return x"))
        assert run("report", "b.json", "--baseline", earlier).returncode == 0

    def test_a_new_copy_is(self, run: Run, record: Record, earlier: str) -> None:
        record("b.json", MODEL.replace(FLAT, f"        self.flat = x.reshape(-1)\n{FLAT}"))
        done = run("report", "b.json", "--baseline", earlier)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            f"exceeded: 1 layout copy not in {earlier}",
            "  model.py:8 (0): hidden, 480 B, once: aten.clone.default channels_last -> nchw, 2x3x4x5 float32",
        ]

    def test_more_of_a_known_one_is(self, run: Run, record: Record, earlier: str) -> None:
        record("b.json", f"{MODEL}block(images)\n")
        done = run("report", "b.json", "--baseline", earlier)
        assert done.returncode == 1
        first, *lines = done.stderr.splitlines()
        assert first == f"exceeded: 2 layout copies and 1 format loss not in {earlier}"
        assert len(lines) == 3
        assert all(line.endswith("(was once, 480 B)") for line in lines)

    def test_larger_known_ones_are(self, run: Run, record: Record, earlier: str) -> None:
        record(
            "b.json",
            MODEL.replace("reshape(2, -1)", "reshape(2, -1)").replace("(2, 3, 4, 5)", "(2, 3, 4, 6)"),
        )
        done = run("report", "b.json", "--baseline", earlier)
        assert done.returncode == 1
        assert "(was 480 B, now 576 B)" in done.stderr

    def test_every_new_one_is_listed(self, run: Run, record: Record, earlier: str) -> None:
        more = "".join(
            f"        self.a{number} = x.reshape({number}, -1)\n" for number in (1, 3, 4, 6, 8, 12)
        )
        record("b.json", MODEL.replace(FLAT, f"{more}{FLAT}"))
        done = run("report", "b.json", "--baseline", earlier)
        for line in range(8, 14):
            assert f"  model.py:{line} (0): hidden" in done.stderr

    def test_what_changes_no_format_does_not_count(self, run: Run, record: Record, earlier: str) -> None:
        strides = "torch.zeros(2, 3, 4).transpose(1, 2).contiguous()\n"
        in_kernels = "nn.functional.layer_norm(torch.zeros(2, 3, 4).transpose(1, 2), (3,))\n"
        trace = load_trace(record("b.json", MODEL + strides + in_kernels, level="deep"))
        assert trace.other_copies
        assert trace.internal
        done = run("report", "b.json", "--baseline", earlier, "--max-copies", "3")
        assert (done.returncode, done.stderr) == (0, "")
        done = run("report", "b.json", "--baseline", "new.json", "--update-baseline")
        assert done.stderr == "baseline: 4 entries (4 new, 0 gone) written to new.json\n"

    def test_ignored(self, run: Run, record: Record, earlier: str) -> None:
        record("b.json", f"{MODEL}images.reshape(-1)\n")
        assert run("report", "b.json", "--baseline", earlier).returncode == 1
        assert run("report", "b.json", "--baseline", earlier, "--ignore", "model.py:13").returncode == 0

    def test_bounds_apply_besides(self, run: Run, record: Record, earlier: str) -> None:
        record("b.json")
        done = run("report", "b.json", "--baseline", earlier, "--max-copies", "2")
        assert done.returncode == 1
        assert done.stderr.startswith("exceeded: 3 layout copies, at most 2 allowed\n")
        record("b.json", f"{MODEL}images.reshape(-1)\n")
        both = run("report", "b.json", "--baseline", earlier, "--max-copies", "2")
        assert both.stderr.count("exceeded: ") == 2
        assert run("report", "b.json", "--baseline", earlier, "--max-copies", "4").returncode == 1

    def test_the_text_is_that_of_the_traced_run(
        self, run: Run, record: Record, tmp_path: Path, earlier: str
    ) -> None:
        record("b.json", f"# moved\n{MODEL}")
        (tmp_path / "model.py").write_text("nothing = 'that was traced'\n")
        assert run("report", "b.json", "--baseline", earlier).returncode == 0

    def test_another_checkout(self, run: Run, record: Record, earlier: str) -> None:
        record("b.json", f"# moved\n{MODEL}", folder="checkout")
        assert run("report", "b.json", "--baseline", earlier).returncode == 0
        record("b.json", f"{MODEL}images.reshape(-1)\n", folder="checkout")
        done = run("report", "b.json", "--baseline", earlier)
        assert done.returncode == 1
        assert "  checkout/model.py:13: hidden" in done.stderr
        assert len(done.stderr.splitlines()) == 2

    def test_another_checkout_beside_a_script_of_both(self, run: Run, tmp_path: Path) -> None:
        here = copied(file=str(tmp_path / "bench.py"), line=1)
        save(tmp_path / "a.json", [here, copied(file=str(tmp_path / "base" / "net.py"))])
        save(tmp_path / "b.json", [here, copied(file=str(tmp_path / "head" / "net.py"))])
        assert run("report", "b.json", "--baseline", "a.json").returncode == 0

    def test_from_another_folder(self, run: Run, record: Record, tmp_path: Path, earlier: str) -> None:
        (tmp_path / "elsewhere").mkdir()
        done = run("report", "../a.json", "--baseline", f"../{earlier}", cwd=tmp_path / "elsewhere")
        assert done.returncode == 0

    def test_an_update_forgets(self, run: Run, record: Record, known: Path) -> None:
        record("b.json", MODEL.replace(FLAT, "        self.flat = x.reshape(-1)"))
        done = run("report", "b.json", "--baseline", "known.json", "--update-baseline")
        assert done.returncode == 0
        assert done.stderr == "baseline: 4 entries (1 new, 1 gone) written to known.json\n"
        assert run("report", "b.json", "--baseline", "known.json").returncode == 0
        assert run("report", "a.json", "--baseline", "known.json").returncode == 1

    def test_an_update_beside_a_bound(self, run: Run, known: Path) -> None:
        done = run("report", "a.json", "--baseline", "known.json", "--update-baseline", "--max-copies", "2")
        assert done.returncode == 1
        assert "exceeded: 3 layout copies" in done.stderr
        assert "not in" not in done.stderr

    def test_an_update_leaves_out_what_is_ignored(self, run: Run, known: Path) -> None:
        run("report", "a.json", "--baseline", "known.json", "--update-baseline", "--ignore", "model.py:8")
        assert [entry["kind"] for entry in json.loads(known.read_text())["entries"]] == [
            "explicit", "loss", "explicit",
        ]  # fmt: skip

    def test_gradients_without_a_line(self, run: Run, tmp_path: Path) -> None:
        gradient = copied(file=None, line=None, parameter="conv.weight", phase="backward")
        save(tmp_path / "a.json", [gradient])
        run("report", "a.json", "--baseline", "known.json", "--update-baseline")
        assert run("report", "a.json", "--baseline", "known.json").returncode == 0
        save(tmp_path / "b.json", [gradient, copied(file=None, line=None, parameter="conv.bias")])
        done = run("report", "b.json", "--baseline", "known.json")
        assert done.returncode == 1
        assert "parameter conv.bias" in done.stderr
        assert "conv.weight" not in done.stderr

    def test_folders_that_may_be_several_are_not_taken_for_another(self, run: Run, tmp_path: Path) -> None:
        save(tmp_path / "a.json", [copied(file="a/utils.py")])
        save(tmp_path / "b.json", [copied(file="b/utils.py"), copied(file="c/utils.py")])
        done = run("report", "b.json", "--baseline", "a.json")
        assert done.returncode == 1
        assert "2 layout copies not in a.json" in done.stderr
        save(tmp_path / "b.json", [copied(file="b/utils.py")])
        assert run("report", "b.json", "--baseline", "a.json").returncode == 0
        shared = copied(file="model.py")
        save(tmp_path / "a.json", [copied(file="a/utils.py"), copied(file="a/more.py"), shared])
        save(tmp_path / "b.json", [copied(file="b/utils.py"), copied(file="a/more.py"), shared])
        assert run("report", "b.json", "--baseline", "a.json").returncode == 0
        save(tmp_path / "b.json", [copied(file="a/utils.py"), copied(file="b/utils.py"), shared])
        done = run("report", "b.json", "--baseline", "a.json")
        assert "1 layout copy not in a.json" in done.stderr

    def test_lines_of_no_known_text_go_by_their_number(self, run: Run, tmp_path: Path) -> None:
        save(tmp_path / "a.json", [copied(file="<made>", line=1), copied(file="<made>", line=2)])
        save(tmp_path / "b.json", [copied(file="<made>", line=1), copied(file="<made>", line=3)])
        done = run("report", "b.json", "--baseline", "a.json")
        assert done.returncode == 1
        assert "<made>:3" in done.stderr
        assert "<made>:1" not in done.stderr

    def test_a_trace_without_source_text_is_warned_of(self, run: Run, record: Record, tmp_path: Path) -> None:
        old = json.loads(record().read_text())
        old.pop("files")
        (tmp_path / "old.json").write_text(json.dumps({**old, "version": 1}))
        done = run("report", "a.json", "--baseline", "old.json")
        assert done.returncode == 0
        assert done.stderr == (
            "warning: old.json holds no source text: its lines are read from the files as they are now\n"
        )

    OTHERS = (
        ("{", "neither a layout trace nor a layout baseline"),
        ("", "neither a layout trace nor a layout baseline"),
        ("[1]", "neither a layout trace nor a layout baseline"),
        ('{"format": "something else", "version": 1}', "neither a layout trace nor a layout baseline"),
        ('{"format": "esper-guard layout baseline", "version": 2}', "a layout baseline of version 2; this"),
        ('{"format": "esper-guard layout baseline", "version": 1, "of": "run"}', "no layout baseline: "),
        (
            '{"format": "esper-guard layout baseline", "version": 1, "of": "run", "entries": [{"file": 3}]}',
            "$.entries[0].file",
        ),
        ('{"format": "esper-guard layout baseline", "version": 1, "entries": []}', "a baseline of pytest"),
        ('{"format": "esper-guard layout trace", "version": 99}', "a layout trace of version 99"),
        ('{"format": "esper-guard layout trace", "version": 1}', "a damaged layout trace"),
    )

    @pytest.mark.parametrize(("content", "message"), OTHERS)
    def test_something_else_is_an_error(
        self, run: Run, record: Record, tmp_path: Path, content: str, message: str
    ) -> None:
        record()
        (tmp_path / "other.json").write_text(content)
        done = run("report", "a.json", "--baseline", "other.json", "--output-file", "out.txt")
        assert done.returncode == 2
        assert "other.json: " in done.stderr
        assert message in done.stderr
        assert not (tmp_path / "out.txt").exists()

    @pytest.mark.parametrize("content", [content for content, _ in OTHERS])
    def test_something_else_is_not_overwritten(
        self, run: Run, record: Record, tmp_path: Path, content: str
    ) -> None:
        record()
        (tmp_path / "other.json").write_text(content)
        options = ("--baseline", "other.json", "--update-baseline", "--output-file", "out.txt")
        assert run("report", "a.json", *options).returncode == 2
        assert (tmp_path / "other.json").read_text() == content
        assert not (tmp_path / "out.txt").exists()

    def test_a_trace_is_not_overwritten(self, run: Run, record: Record, tmp_path: Path) -> None:
        before = record("a.json").read_bytes()
        record("b.json")
        done = run("report", "b.json", "--baseline", "a.json", "--update-baseline")
        assert done.returncode == 2
        assert "a layout trace, which --update-baseline won't overwrite" in done.stderr
        assert (tmp_path / "a.json").read_bytes() == before

    @pytest.mark.parametrize("more", [(), ("--layout-update",)])
    def test_pytest_refuses_it(
        self, pytester: pytest.Pytester, run: Run, known: Path, more: tuple[str, ...]
    ) -> None:
        before = known.read_bytes()
        pytester.makepyfile("def test_a(): pass")
        result = pytester.runpytest_subprocess("-p", "no:xdist", f"--layout-baseline={known}", *more)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "a baseline of `esper-guard report`" in f"{result.stdout}{result.stderr}"
        assert known.read_bytes() == before

    def test_pytests_own_is_refused(self, pytester: pytest.Pytester, run: Run) -> None:
        pytester.makepyfile(
            """
            import torch
            def test_a():
                torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last).reshape(-1)
            """
        )
        options = ("--layout-baseline=known.json", "--layout-update", "--layout-report=json:trace.json")
        pytester.runpytest_subprocess("-p", "no:xdist", *options).assert_outcomes(passed=1)
        for more in ((), ("--update-baseline",)):
            done = run("report", "trace.json", "--baseline", "known.json", *more, cwd=pytester.path)
            assert done.returncode == 2
            assert "holds the most that one test did" in done.stderr
            assert "`pytest --layout-baseline=known.json`" in done.stderr


class TestComparison:
    def test_by_line(self, run: Run, record: Record) -> None:
        record()
        record("b.json", f"# moved\n{MODEL.replace(FLAT, '        return x')}block(images)\n")
        done = run("report", "b.json", "--compare", "a.json")
        assert done.returncode == 0, done.stderr
        table = done.stdout.split("\n\n")[1].splitlines()
        assert table[0].split() == (
            "bytes before after difference copies before after difference losses before after difference line".split()
        )
        assert [line.partition("model.py:")[2].split()[0] for line in table[1:5]] == ["8", "8", "7", "12"]
        assert table[1].split()[:4] == ["480", "B", "960", "B"]
        assert "+480 B" in table[1]
        assert "-480 B" in table[2]
        assert table[2].endswith("return x.reshape(2, -1)")
        assert "+1" in table[3]
        assert "+" not in table[4].partition("model.py")[0]
        assert table[5].split()[-1] == "all"
        files = done.stdout.split("\n\n")[2].splitlines()
        assert files[0].split()[-1] == "file"
        assert files[1].split()[-1] == "model.py"

    @pytest.mark.parametrize(("by", "name"), [("module", "0"), ("operator", "aten.clone.default")])
    def test_by_something_else(self, run: Run, record: Record, by: str, name: str) -> None:
        record()
        record("b.json", MODEL.replace(FLAT, "        return x"))
        done = run("report", "b.json", "--compare", "a.json", "--by", by)
        row = done.stdout.split("\n\n")[1].splitlines()[1]
        assert row.endswith(f"  {name}")
        assert "-480 B" in row

    def test_sums_agree(self, run: Run, record: Record) -> None:
        record()
        record("b.json", f"{MODEL}block(images)\n", folder="checkout")
        done = run("report", "b.json", "--compare", "a.json", "--output-format", "json")
        comparison = json.loads(done.stdout)["comparison"]
        for side, path, times in (("before", "a.json", 1), ("after", "b.json", 2)):
            sums = comparison["sums"][side]
            assert sums["copies"] == 1 + 2 * times, path
            for rows in ("by_line", "by_file"):
                for key, total in sums.items():
                    assert sum(row[side][key] for row in comparison[rows]) == total
        assert [row["name"] for row in comparison["by_file"]] == ["checkout/model.py"]
        assert comparison["sums"]["difference"]["bytes"] == 960

    def test_equal_lines_are_one(self, run: Run, record: Record) -> None:
        record("a.json", f"{MODEL}block(images)\nimages.reshape(-1)\nimages.reshape(-1)\n")
        record("b.json", f"{MODEL}images.reshape(-1)\nblock(images)\nimages.reshape(-1)\n")
        done = run("report", "b.json", "--compare", "a.json", "--output-format", "json")
        rows = {row["code"]: row for row in json.loads(done.stdout)["comparison"]["by_line"]}
        assert rows["images.reshape(-1)"]["lines"] == [13, 15]
        assert not any(rows["images.reshape(-1)"]["difference"].values())

    def test_comments_make_no_difference(self, run: Run, record: Record) -> None:
        record()
        record("b.json", MODEL.replace("reshape(2, -1)", "reshape(2, -1)  # flat"))
        lines = run("report", "b.json", "--compare", "a.json").stdout.splitlines()
        assert [line.split()[:4] for line in lines if "reshape(" in line] == [["480", "B", "480", "B"]]

    def test_different_levels(self, run: Run, record: Record) -> None:
        more = "images.index_select(0, torch.tensor([1, 0]))\n"
        record("a.json", MODEL + more)
        record("b.json", MODEL + more, level="deep")
        assert any(
            event.kind == "internal"
            for event in load_trace(record("b.json", MODEL + more, level="deep")).events
        )
        done = run("report", "b.json", "--compare", "a.json")
        assert "copies inside kernels are not compared: dispatch and deep level" in done.stdout
        assert "internal bytes" not in done.stdout
        assert "+" not in done.stdout.split("\n\n")[1]
        assert run("report", "b.json", "--compare", "b.json").stdout.count("internal bytes before") == 2

    def test_nothing_in_both(self, run: Run, tmp_path: Path) -> None:
        save(tmp_path / "a.json", [])
        done = run("report", "a.json", "--compare", "a.json")
        assert "nothing was copied or lost, neither before nor after" in done.stdout

    def test_rows_are_limited(self, run: Run, record: Record) -> None:
        record()
        done = run("report", "a.json", "--compare", "a.json", "-n", "1")
        assert "and 3 more" in done.stdout


class TestMarkdown:
    def test_the_verdict_is_its_heading(self, run: Run, record: Record) -> None:
        record()
        for options, heading, status in (
            ((), "Layout copies", 0),
            (("--max-copies", "3"), "Layout copies: passed", 0),
            (
                ("--max-copies", "2", "--max-losses", "0"),
                "Layout copies: exceeded: 3 layout copies, at most 2 allowed; 1 format loss, at most 0 allowed",
                1,
            ),
            (("--baseline", "a.json"), "Layout copies: passed", 0),
        ):
            done = run("report", "a.json", "--output-format", "markdown", *options)
            assert done.returncode == status
            assert done.stdout.splitlines()[0] == f"### {heading}"

    def test_its_tables(self, run: Run, record: Record) -> None:
        record()
        done = run("report", "a.json", "--output-format", "markdown", "-n", "1")
        top, rest, losses = tables_in(done.stdout)
        assert top[0] == ["bytes", "copies", "losses", "where", "code", "module"]
        assert [row[3] for row in top[1:] + rest[1:]] == [
            "model.py:11",
            "model.py:7",
            "model.py:8",
            "model.py:6",
        ]
        assert rest[1][4:] == ["x = x.to(memory_format=torch.channels_last)", "0"]
        assert losses[1] == [
            "1",
            "aten._softmax.default",
            "channels_last -> nchw",
            "2x3x4x5 float32",
            "model.py:6",
            "0",
            "softmax writes NCHW whatever it reads (CPU)",
        ]
        assert done.stdout.count("<details>") == done.stdout.count("</details>") == 2

    def test_what_is_new(self, run: Run, record: Record) -> None:
        record()
        record("b.json", f"{MODEL}images.reshape(-1)  # new\nblock(images)\n")
        done = run("report", "b.json", "--baseline", "a.json", "--output-format", "markdown")
        new = tables_in(done.stdout)[0]
        assert [row[:4] + row[5:] for row in new[1:]] == [
            ["960 B", "2", "was once, 480 B", "explicit", "model.py:7", "x = x.to(memory_format=torch.channels_last)", "0"],
            ["960 B", "2", "was once, 480 B", "hidden", "model.py:8", "return x.reshape(2, -1)", "0"],
            ["480 B", "1", "new", "hidden", "model.py:13", "images.reshape(-1) # new", ""],
            ["", "2", "was once, 480 B", "loss", "model.py:6", "x = x.softmax(1)", "0"],
        ]  # fmt: skip

    def test_a_comparison(self, run: Run, record: Record) -> None:
        record()
        record("b.json", MODEL.replace(SOFT, "        pass"))
        done = run("report", "b.json", "--compare", "a.json", "--output-format", "markdown")
        lines, files = tables_in(done.stdout)
        assert lines[0][:3] == ["bytes before", "after", "difference"]
        assert lines[1][:4] == ["1.4 KiB", "960 B", "-480 B", "3"]
        assert lines[2][:3] == ["480 B", "", "-480 B"]
        assert files[1][-1] == "model.py"
        assert len(lines) == 6

    @pytest.mark.parametrize("by", ["module", "operator"])
    def test_by_something_else(self, run: Run, record: Record, by: str) -> None:
        record()
        done = run("report", "a.json", "--output-format", "markdown", "--by", by)
        assert tables_in(done.stdout)[0][0][-1] == by

    def test_nothing(self, run: Run, tmp_path: Path) -> None:
        save(tmp_path / "a.json", [])
        done = run("report", "a.json", "--output-format", "markdown")
        assert "Nothing was copied or lost." in done.stdout

    def test_what_was_not_seen(self, run: Run, tmp_path: Path) -> None:
        save(tmp_path / "a.json", [copied()], [f"region {number} of @someone" for number in range(100)])
        done = run("report", "a.json", "--output-format", "markdown")
        assert "- Not seen: `region 0 of @someone`\n" in done.stdout
        assert done.stdout.endswith("- 80 more things were not seen.\n")

    @pytest.mark.parametrize("rows", ["30", "1000000"])
    def test_a_large_one_is_cut(self, run: Run, tmp_path: Path, rows: str) -> None:
        events = [
            copied(
                file=f"{'f' * (150 - number % 100)}|{number}.py", module="m" * 190, kind=kind, bytes=number
            )
            for number in range(4000)
            for kind in ("hidden", "loss")
        ]
        save(tmp_path / "a.json", events, ["\N{GRINNING FACE}" * 500 + str(number) for number in range(50)])
        save(tmp_path / "b.json", [])
        options = ("--output-format", "markdown", "-n", rows, "--baseline", "b.json")
        done = run("report", "a.json", *options, "--output-file", "summary.md")
        assert done.returncode == 1
        assert done.stdout == ""
        content = (tmp_path / "summary.md").read_bytes()
        assert 900_000 < len(content) <= 1_000_000
        text = content.decode()
        tables = tables_in(text)
        shown = sum(len(table) - 1 for table in tables)
        numbers = [int(row[5].partition("|")[2].partition(".")[0]) for row in tables[0][1:]]
        assert numbers == list(range(3999, 3999 - len(numbers), -1))
        left_out = [int(line.split()[0]) for line in text.splitlines() if "left out: GitHub" in line]
        assert shown + sum(left_out) == 8000 + 4000 + 4000  # what is new, by line, losses
        assert text.count("<details>") == text.count("</details>") == (2 if rows == "30" else 1)


def tables_in(markdown: str) -> list[list[list[str]]]:
    """Their cells as text."""
    tables: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and tables and token.level >= 4:
            tables[-1][-1].append("".join(text_of(token.children or ())))
    return tables


def text_of(tokens: Iterable[Token]) -> Iterator[str]:
    for token in tokens:
        assert token.type in ("text", "code_inline")
        yield token.content


def on_one_line(text: str) -> str:
    """What is left of a text: printable characters, single spaces."""
    printable = (" " if c == "\t" else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return " ".join("".join(printable).split())


hostile = st.lists(
    st.sampled_from(["|", "\\", "`", "``", "<b>", "</code>", "&amp;", "@me", "#1", "\n", "\r", "\t", " ", "a", "*", "_", "$", "[x](y)", "~"])
    | st.text(max_size=3),
    max_size=12,
).map("".join)  # fmt: skip


@given(st.lists(st.tuples(hostile, hostile, hostile, hostile), min_size=1, max_size=4))
@example([("a\\|b", "\\", "`", "`|`")])
@example([("@me", "#1", "</code><script>", "<!-- |")])
def test_hostile_names_stay_text(tmp_path_factory: pytest.TempPathFactory, names: Any) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    trace = LayoutTrace(torch_version=names[0][0])
    for number, (file, module, operator, code) in enumerate(names):
        name = f"{number}{file}.py"
        event = copied(kind="loss", file=name, line=1, module=module, operator=operator, count=number + 1)
        trace.tally(prototype_of(event)).include(event)
        trace.sources[name] = f"x{code}y".replace("\n", " ")
    trace.note_unseen(names[0][1])
    path = trace.save(folder / "a.json")
    save(folder / "b.json", [])
    arguments = ["report", str(path), "--output-format", "markdown", "--baseline", str(folder / "b.json")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1, done.output
    new, costs, losses = tables_in(done.stdout)
    expected = {
        (
            on_one_line(event.operator),
            on_one_line(f"{event.file}:1"),
            on_one_line(trace.sources[event.file or ""].split("\n")[0]),
            on_one_line(event.module or ""),
        )
        for event in trace.events
    }
    assert {(row[4], row[5], row[6], row[7]) for row in new[1:]} == expected
    assert {(row[1], row[4], row[5]) for row in losses[1:]} == {(a, b, d) for a, b, _, d in expected}
    assert {(row[1], row[2]) for row in costs[1:]} == {(b, c) for _, b, c, _ in expected}
    for table in (new, costs, losses):
        assert {len(row) for row in table} == {len(table[0])}


@pytest.mark.parametrize("ticks", [1, 79, 80, 190, 300])
def test_long_runs_of_backticks_stay_text(run: Run, tmp_path: Path, ticks: int) -> None:
    """GitHub takes no run of more than 80 for the start of a code span."""
    text = f"{'`' * ticks} <b>@me"
    save(tmp_path / "a.json", [copied(module=text)], [text])
    done = run("report", "a.json", "--output-format", "markdown")
    assert max(map(len, re.findall("`+", done.stdout))) <= 80
    (note,) = spans_outside_of_tables(done.stdout)[1:]
    shown = tables_in(done.stdout)[0][1][-1]
    assert note == shown == (text if ticks < 80 else f"{'`' * 78}\N{HORIZONTAL ELLIPSIS} <b>@me")


def test_pipes_outside_of_tables(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "a.json", [copied(module="a|b")], ["a|b, `c|d`"])
    save(tmp_path / "b|c.json", [])
    done = run("report", "a.json", "--baseline", "b|c.json", "--output-format", "markdown")
    assert spans_outside_of_tables(done.stdout) == ["2.13.0", "b|c.json", "a|b, `c|d`"]
    assert tables_in(done.stdout)[0][1][-1] == "a|b"


def spans_outside_of_tables(markdown: str) -> list[str]:
    """The code spans of paragraphs and lists."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    return [
        child.content
        for token in tokens
        if token.type == "inline" and token.level < 4
        for child in token.children or ()
        if child.type == "code_inline"
    ]


class TestJson:
    def test_its_keys(self, run: Run, record: Record, tmp_path: Path) -> None:
        record()
        record("b.json", f"{MODEL}images.reshape(-1)\n")
        options = ("--max-copies", "3", "--baseline", "a.json", "--compare", "a.json")
        done = run("report", "b.json", "--output-format", "json", *options)
        assert done.returncode == 1
        content = json.loads(done.stdout)
        trace = load_trace(tmp_path / "b.json")
        assert content["format"] == "esper-guard layout report"
        assert content["version"] == 1
        assert content["traces"] == ["b.json"]
        assert (content["level"], content["torch"], content["rank"]) == (
            "dispatch",
            trace.torch_version,
            None,
        )
        assert content["verdict"] == "exceeded"
        assert content["exceeded"] == [{"bound": "copies", "found": 4, "allowed": 3}]
        assert content["baseline"] == {
            "path": "a.json",
            "new": [
                {
                    "name": "model.py:13",
                    "file": "model.py",
                    "lines": [13],
                    "code": "images.reshape(-1)",
                    "kind": "hidden",
                    "operator": "aten.clone.default",
                    "change": "channels_last -> nchw",
                    "phase": "forward",
                    "modules": [],
                    "count": 1,
                    "bytes": 480,
                    "known_count": 0,
                    "known_bytes": 0,
                }
            ],
        }
        costs = ["copies", "bytes", "losses", "other_copies", "other_bytes", "internal", "internal_bytes"]
        assert list(content["sums"]) == costs
        assert content["sums"]["bytes"] == trace.total_bytes
        for rows in ("by_line", "by_module", "by_operator"):
            assert sum(row["bytes"] for row in content[rows]) == trace.total_bytes
        assert list(content["by_line"][0]) == ["name", "file", "lines", "code", "modules", *costs]
        assert list(content["by_module"][0]) == ["name", *costs]
        assert list(content["comparison"]) == ["before", "sums", "by_line", "by_file"]
        assert content["unseen"] == []

    @pytest.mark.parametrize(
        ("options", "verdict"), [((), "not checked"), (("--max-losses", "1"), "passed"), (("--max-losses", "0"), "exceeded")]
    )  # fmt: skip
    def test_the_verdict(self, run: Run, record: Record, options: tuple[str, ...], verdict: str) -> None:
        record()
        done = run("report", "a.json", "--output-format", "json", "--exit-zero", *options)
        assert done.returncode == 0
        assert json.loads(done.stdout)["verdict"] == verdict


class TestHtml:
    @pytest.fixture(autouse=True)
    def _packages(self) -> None:
        pytest.importorskip("jinja2")
        pytest.importorskip("pygments")

    def test_it_is_written_besides(self, run: Run, record: Record, tmp_path: Path) -> None:
        record()
        done = run("report", "a.json", "--html", "out.html")
        assert done.returncode == 0, done.stderr
        assert done.stderr == "HTML report written to out.html\n"
        assert done.stdout.startswith("3 layout copies")
        page = (tmp_path / "out.html").read_text()
        assert page.lower().startswith("<!doctype html>")
        assert "return x.reshape(2, -1)" in unescape(re.sub("<[^>]*>", "", page))

    def test_what_is_compared_is_in_it(self, run: Run, record: Record, tmp_path: Path) -> None:
        record()
        record("b.json", f"{MODEL}images.reshape(-1)\n")
        run("report", "b.json", "--html", "alone.html")
        done = run("report", "b.json", "--html", "both.html", "--compare", "a.json")
        assert done.returncode == 0, done.stderr
        alone, both = ((tmp_path / name).read_text() for name in ("alone.html", "both.html"))
        assert "+480 B" in both
        assert "+480 B" not in alone

    def test_exceeded_bounds_are_no_error_of_it(self, run: Run, record: Record, tmp_path: Path) -> None:
        record()
        assert run("report", "a.json", "--html", "out.html", "--max-copies", "0").returncode == 1
        assert (tmp_path / "out.html").exists()

    def test_an_error_in_it_writes_nothing(self, run: Run, record: Record, tmp_path: Path) -> None:
        """Such as a package that it needs and that is not there."""
        record()
        code = "import sys; sys.modules['jinja2'] = None; from esper_guard.cli import main; main()"
        options = ("--output-file", "out.txt", "--baseline", "n.json", "--update-baseline")
        done = run_python(code, "report", "a.json", "--html", "out.html", *options, cwd=tmp_path)
        assert done.returncode == 2
        assert "pip install 'esper-guard[html]'" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not [name for name in ("out.html", "out.txt", "n.json") if (tmp_path / name).exists()]

    def test_another_level_before(self, run: Run, record: Record, tmp_path: Path) -> None:
        record()
        record("b.json", level="deep")
        done = run("report", "b.json", "--compare", "a.json", "--html", "out.html")
        assert done.returncode == 0, done.stderr
        assert "copies inside kernels are not compared" in done.stdout
        assert "Copies inside kernels are not compared" in (tmp_path / "out.html").read_text()


def test_the_example_for_github_runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jinja2")
    page = (ROOT / "docs" / "ci.md").read_text()
    once, workflow = re.findall(r"```(?:sh|yaml)\n(.*?)```", page, re.DOTALL)[:2]
    install, *gates = re.findall(r"- run: (.*)", workflow)
    *written, added = once.splitlines()
    assert added == "git add layouts.json run.json"
    extras = re.search(r"esper-guard\[(.*?)\]", install)
    assert extras is not None
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras[1].split(","))

    summary = pytester.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def start(command: str) -> int:
        options: dict[str, Any] = {"cwd": pytester.path, "capture_output": True, "timeout": 120}
        return subprocess.run(["bash", "-c", command], check=False, **options).returncode

    pytester.makepyfile(train=MODEL, test_it="def test_it():\n    import train\n")
    assert [start(command) for command in [*written, *gates]] == [0] * 6
    assert summary.read_text().startswith("### Layout copies: passed\n")
    assert "<html" in (pytester.path / "layouts.html").read_text()
    summary.unlink()
    pytester.makepyfile(train=MODEL.replace(FLAT, f"        x.reshape(-1)\n{FLAT}"))
    assert [start(command) for command in gates] == [1, 0, 1]
    assert summary.read_text().startswith("### Layout copies: exceeded: 1 layout copy not in the baseline\n")


class TestFiles:
    def test_a_file_instead_of_standard_output(self, run: Run, record: Record, tmp_path: Path) -> None:
        record()
        for output_format in ("text", "markdown", "json"):
            shown = run("report", "a.json", "--output-format", output_format)
            done = run("report", "a.json", "--output-format", output_format, "--output-file", "out")
            assert done.returncode == 0
            assert done.stdout == ""
            assert (tmp_path / "out").read_text() == shown.stdout

    @pytest.mark.parametrize("output_format", ["text", "markdown"])
    def test_characters_that_standard_output_lacks(
        self, run: Run, record: Record, output_format: str
    ) -> None:
        record(source=MODEL.replace(SOFT, f"{SOFT}  # \N{SNOWMAN}"))
        options = ("report", "a.json", "--output-format", output_format)
        done = run(*options, env={"PYTHONIOENCODING": "cp1252"})
        assert (done.returncode, done.stderr) == (0, "")
        assert "# \\u2603" in done.stdout

    def test_it_is_replaced_as_a_whole(self, run: Run, record: Record, tmp_path: Path) -> None:
        record()
        out = tmp_path / "out"
        out.write_text("old")
        (tmp_path / "link").hardlink_to(out)
        run("report", "a.json", "--output-file", "out")
        assert out.read_text().startswith("3 layout copies")
        assert (tmp_path / "link").read_text() == "old"
        assert not list(tmp_path.glob(".esper-guard-*"))

    def test_what_is_no_regular_file_is_written_to(self, run: Run, record: Record, tmp_path: Path) -> None:
        record()
        shown = run("report", "a.json").stdout
        assert run("report", "a.json", "--output-file", "/dev/stdout").stdout == shown
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(pipe.read_text)
            assert run("report", "a.json", "--output-file", "pipe").returncode == 0
            assert read.result() == shown
        assert pipe.is_fifo()
        main, terminal = pty.openpty()
        try:
            done = run("report", "a.json", "--output-file", os.ttyname(terminal))
            assert (done.returncode, done.stdout) == (0, "")
            assert os.read(main, 100_000).decode().replace("\r\n", "\n") == shown
        finally:
            os.close(main)
            os.close(terminal)

    def test_paths_in_a_workspace(self, run: Run, record: Record, tmp_path: Path) -> None:
        record(folder="src")
        sub = tmp_path / "sub"
        sub.mkdir()
        workspace = {"GITHUB_WORKSPACE": str(tmp_path)}
        for cwd, shown in (
            (tmp_path, "src/model.py:"),
            (tmp_path / "src", "model.py:"),
            (sub, "../src/model.py:"),
        ):
            done = run(
                "report", str(tmp_path / "a.json"), "--output-format", "markdown", cwd=cwd, env=workspace
            )
            assert all(row[3].startswith(shown) for row in tables_in(done.stdout)[0][1:]), done.stdout
        done = run(
            "report", "../a.json", "--output-format", "markdown", cwd=sub, env={"GITHUB_WORKSPACE": ""}
        )
        assert tables_in(done.stdout)[0][1][3].startswith(f"{tmp_path}{os.sep}src")

    def test_names_relative_to_the_workspace(self, run: Run, record: Record, tmp_path: Path) -> None:
        record(folder="src")
        save(tmp_path / "b.json", [copied(file="src/model.py")])
        sub = tmp_path / "sub"
        sub.mkdir()
        workspace = {"GITHUB_WORKSPACE": str(tmp_path)}
        done = run("report", "../b.json", "--output-format", "markdown", cwd=sub, env=workspace)
        assert tables_in(done.stdout)[0][1][2] == "../src/model.py:8"

    def test_without_torch(self, run: Run, record: Record, tmp_path: Path) -> None:
        record()
        options = (
            "--max-copies",
            "0",
            "--baseline",
            "a.json",
            "--compare",
            "a.json",
            "--output-format",
            "markdown",
        )
        done = run_without_torch("report", "a.json", *options, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stdout.startswith("### Layout copies: exceeded: 3 layout copies, at most 0 allowed\n")
