"""``check --trace``: what was measured ranks findings, demotes them, and finds what no rule does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper_guard import trace_layouts
from esper_guard.trace.alignment import lines_in, matching_lines
from tests.conftest import ROOT

MODEL = """\
import torch
from torch import Tensor


def cheap(x: Tensor) -> Tensor:
    return x.contiguous().detach()


def never(x: Tensor) -> Tensor:
    return x.contiguous().detach()


def costly(x: Tensor) -> Tensor:
    y = x.contiguous().detach()
    return y.to(memory_format=torch.channels_last)


def hidden(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


def lost(x: Tensor) -> Tensor:
    x = x.to(memory_format=torch.channels_last)
    return torch.softmax(x, 1).relu()
"""
RUN = "cheap(nchw), costly(big), hidden(nhwc)"


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(memory_format=torch.channels_last)


def record(folder: Path, source: str = MODEL, run: str = RUN, name: str = "model.py") -> Path:
    """Run functions of ``source`` while tracing; the path of the trace."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    space: dict[str, Any] = {
        "nchw": torch.randn(2, 3, 4, 4),
        "nhwc": features(2, 3, 4, 4),
        "big": features(2, 3, 8, 8),
    }
    exec(compile(source, str(path), "exec"), space)  # noqa: S102
    with trace_layouts() as trace:
        exec(run, space)  # noqa: S102
    return trace.save(folder / "trace.json")


def check(folder: Path, *arguments: object, status: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esper_guard", "check", *map(str, arguments)]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    if status is not None:
        assert done.returncode == status, done.stdout + done.stderr
    return done


def found(folder: Path, *arguments: object) -> list[dict[str, Any]]:
    done = check(folder, "--output-format=json", *arguments)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


def line_of(source: str, text: str, number: int = 1) -> int:
    rows = [row for row, line in enumerate(source.splitlines(), start=1) if text in line]
    return rows[number - 1]


class TestFindings:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        record(tmp_path)
        return tmp_path

    def test_carry_what_was_measured_and_come_by_cost(self, folder: Path) -> None:
        findings = found(folder, "--trace=trace.json")
        rows = [line_of(MODEL, "y = x.contiguous"), line_of(MODEL, "x.reshape")]
        never, cheap = line_of(MODEL, "return x.contiguous", 2), line_of(MODEL, "return x.contiguous", 1)
        dropped = line_of(MODEL, "softmax")
        assert [finding["location"]["row"] for finding in findings] == [*rows, never, dropped, cheap]
        measured = [finding["measured"] for finding in findings]
        assert [entry and (entry["copies"], entry["bytes"]) for entry in measured] == [
            (1, 2 * 3 * 8 * 8 * 4),
            (1, 2 * 3 * 4 * 4 * 4),
            None,
            None,
            (0, 0),
        ]

    def test_of_a_copy_that_was_not_made_are_notes(self, folder: Path) -> None:
        severities = {
            finding["location"]["row"]: finding["severity"] for finding in found(folder, "--trace=trace.json")
        }
        assert severities[line_of(MODEL, "return x.contiguous", 1)] == "note"
        assert severities[line_of(MODEL, "return x.contiguous", 2)] == "warning"
        assert severities[line_of(MODEL, "y = x.contiguous")] == "warning"

    def test_no_trace_changes_nothing(self, folder: Path) -> None:
        findings = found(folder)
        assert {finding["severity"] for finding in findings} == {"warning"}
        assert all(finding["measured"] is None for finding in findings)
        assert "EG901" not in {finding["code"] for finding in findings}
        rows = [finding["location"]["row"] for finding in findings]
        assert rows == sorted(rows)

    def test_in_words(self, folder: Path) -> None:
        said = check(folder, "--trace=trace.json", status=1).stdout
        assert "= measured: 1 copy, 1.5 KiB\n" in said
        assert "= measured: it ran, and copied nothing\n" in said
        said = check(folder, "--trace=trace.json", "--output-format=concise", status=1).stdout
        assert re.search(r"EG101 .* is channels_last \(1 copy, 1\.5 KiB\)\n", said)

    def test_traces_are_added_up(self, folder: Path) -> None:
        findings = found(folder, "--trace=trace.json", "--trace=trace.json")
        assert findings[0]["measured"]["copies"] == 2

    def test_losses(self, tmp_path: Path) -> None:
        record(tmp_path, run="lost(nchw)")
        dropped = [f for f in found(tmp_path, "--trace=trace.json") if f["code"] == "EG105"]
        assert [(f["measured"]["losses"], f["severity"]) for f in dropped] == [(1, "warning")]

    def test_only_notes_are_no_failure(self, tmp_path: Path) -> None:
        source = MODEL.partition("def never")[0]
        record(tmp_path, source, "cheap(nchw)")
        check(tmp_path, status=1)
        check(tmp_path, "--trace=trace.json", status=0)

    def test_errors_stay_errors(self, tmp_path: Path) -> None:
        source = MODEL + "\n\ndef idle(x: Tensor) -> None:\n    x.to(torch.float64)\n"
        record(tmp_path, source, "idle(nchw)")
        idle = [f for f in found(tmp_path, "--trace=trace.json") if f["code"] == "EG201"]
        assert [finding["severity"] for finding in idle] == ["error"]

    def test_in_several_processes(self, tmp_path: Path) -> None:
        record(tmp_path)
        filler = "".join(f"x{number} = {number}\n" for number in range(200_000))
        for name in ("a.py", "b.py"):
            (tmp_path / name).write_text(filler)
        assert found(tmp_path, "--trace=trace.json", "-j2") == found(tmp_path, "--trace=trace.json", "-j1")

    def test_of_standard_input(self, folder: Path) -> None:
        command = "-m esper_guard check - --stdin-filename=model.py --trace=trace.json --output-format=json"
        done = subprocess.run(
            [sys.executable, *command.split()],
            cwd=folder,
            input=MODEL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert json.loads(done.stdout) == found(folder, "--trace=trace.json")


class TestZeros:
    """A measured zero makes a note of a warning, so it has to be one."""

    def severities(self, folder: Path, source: str, run: str) -> list[tuple[str, str]]:
        record(folder, f"import torch\n{source}", run)
        return [(f["code"], f["severity"]) for f in found(folder, "--trace=trace.json")]

    def test_the_code_itself_ran(self, tmp_path: Path) -> None:
        source = "def f(x):\n    return g(x.contiguous().detach())\ndef g(x):\n    return x\n"
        assert self.severities(tmp_path, source, "f(nchw)") == [("EG101", "note")]

    def test_over_several_lines(self, tmp_path: Path) -> None:
        source = "def f(x):\n    return (\n        x.contiguous()\n        .detach()\n    )\n"
        assert self.severities(tmp_path, source, "f(nchw)") == [("EG101", "note")]

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 knows lines only")
    @pytest.mark.parametrize(
        ("source", "run"),
        [
            ("def f(x, copy):\n    return x.contiguous().detach() if copy else x.detach()\n", "f(nhwc, False)"),
            ("def f(x):\n    s = x.sum(); hook = lambda g: g.contiguous().detach()\n", "f(nhwc)"),
            ("def f(x):\n    return torch.cat([x.contiguous().detach()\n        for _ in range(0)] + [x])\n", "f(nhwc)"),
            ("def f(x, é=False):\n    return x.mul(len('äöü')), é and x.contiguous().detach()\n", "f(nhwc)"),
        ],
        ids=["other branch", "lambda", "no iteration", "not ASCII"],
    )  # fmt: skip
    def test_something_else_ran_on_its_line(self, tmp_path: Path, source: str, run: str) -> None:
        assert self.severities(tmp_path, source, run) == [("EG101", "warning")]

    def test_what_no_operator_does_is_not_refuted(self, tmp_path: Path) -> None:
        source = (
            "def f(model):\n    model = model.to(memory_format=torch.channels_last)\n"
            "    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}, assign=True)\n"
            "    return model\n"
        )
        assert self.severities(tmp_path, source, "f(torch.nn.Conv2d(3, 3, 3))") == [("EG305", "warning")]

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own
    def test_compiled_code_is_no_zero(self, tmp_path: Path) -> None:
        source = (
            "f = torch.compile(lambda x, w: (x.contiguous().detach(), w @ w))\n"
            "def g(x):\n    return x.contiguous().detach()\n"
        )
        run = "f(nhwc, torch.randn(64, 64)), f(nhwc, torch.randn(64, 64)), g(nchw)"
        assert self.severities(tmp_path, source, run) == [("EG101", "warning"), ("EG101", "warning")]
        done = check(tmp_path, "--trace=trace.json", status=1)
        assert (
            "warning: the trace is not whole, so that no zero counts: what torch.compile made" in done.stderr
        )

    def test_of_a_function_that_changed_since(self, tmp_path: Path) -> None:
        source = "def f(x):\n    x = x + 1\n    return x.contiguous().detach()\n"
        assert self.severities(tmp_path, source, "f(nchw)") == [("EG101", "note")]
        path = tmp_path / "model.py"
        path.write_text(
            path.read_text().replace("def f(x):", "def g(x):\n    return x\n\n\ndef f(x):  # why")
        )
        assert [f["severity"] for f in found(tmp_path, "--trace=trace.json")] == ["note"]
        path.write_text(path.read_text().replace("x + 1", "x.to(memory_format=torch.channels_last)"))
        done = check(tmp_path, "--trace=trace.json", status=1)
        assert "1 measured line changed since" in done.stderr
        assert "copied nothing" not in done.stdout


class TestUnexplained:
    """EG901."""

    def codes(self, folder: Path, *arguments: object) -> list[tuple[str, int]]:
        findings = found(folder, "--trace=trace.json", *arguments)
        return [(finding["code"], finding["location"]["row"]) for finding in findings]

    def test_a_measured_line_without_a_rule(self, tmp_path: Path) -> None:
        record(tmp_path)
        (finding,) = [f for f in found(tmp_path, "--trace=trace.json") if f["code"] == "EG901"]
        row = line_of(MODEL, "x.reshape")
        assert (finding["location"], finding["end_location"]) == (
            {"row": row, "column": 5},
            {"row": row, "column": 37},
        )
        assert finding["message"] == (
            "a hidden copy was measured here, in the forward: aten.clone.default, channels_last -> nchw; reshape (no view "
            "will do) writes NCHW whatever it reads (CPU)"
        )
        assert finding["help"].startswith("write instead: before a Linear: x.permute(0, 2, 3, 1).flatten(1)")

    def test_what_to_write_instead(self, tmp_path: Path) -> None:
        record(tmp_path, "def f(x):\n    return x.contiguous()\n", "f(nhwc)")
        (finding,) = found(tmp_path, "--trace=trace.json")
        assert finding["help"] == (
            "write instead: x.contiguous(memory_format=torch.channels_last) (or without it)"
        )

    def test_an_explained_line_is_not_repeated_even_if_it_is_silenced(self, tmp_path: Path) -> None:
        source = "def f(x):\n    return x.contiguous().detach()  # noqa: EG101\n"
        record(tmp_path, source, "f(nhwc)")
        assert self.codes(tmp_path, "--select=EG") == []
        assert self.codes(tmp_path, "--select=EG901") == [("EG901", 2)]

    def test_what_a_finding_is_not_about_is_left_over(self, tmp_path: Path) -> None:
        source = "def f(x, y):\n    return y.reshape(y.shape[0], -1), x.contiguous().detach()\n"
        record(tmp_path, source, "f(nchw, nhwc)")
        assert self.codes(tmp_path) == [("EG901", 2), ("EG101", 2)]
        record(tmp_path, source, "f(big, nhwc)")
        findings = found(tmp_path, "--trace=trace.json")
        assert [(f["code"], f["measured"]["bytes"]) for f in findings] == [("EG101", 1536), ("EG901", 384)]

    def test_a_conversion_that_was_asked_for_is_meant(self, tmp_path: Path) -> None:
        source = "import torch\ndef f(x):\n    return x.to(memory_format=torch.channels_last)\n"
        record(tmp_path, source, "f(nchw)")
        assert self.codes(tmp_path) == []
        source = "import torch\ndef f(x):\n    return x.to(memory_format=torch.contiguous_format)\n"
        record(tmp_path, source, "f(nhwc)")
        assert self.codes(tmp_path) == [("EG901", 3)]

    def test_strides_losses_and_tests_are_not_its_business(self, tmp_path: Path) -> None:
        record(tmp_path, "def f(x):\n    return x[0, 0].t().contiguous(), x.softmax(1)\n", "f(nhwc)")
        assert self.codes(tmp_path) == []
        record(tmp_path, "def f(x):\n    return x.reshape(-1)\n", "f(nhwc)", name="test_model.py")
        assert self.codes(tmp_path, "test_model.py") == []

    def test_the_backward(self, tmp_path: Path) -> None:
        source = (
            "import torch\ndef f(x):\n"
            "    w = torch.nn.Conv2d(3, 3, 1).to(memory_format=torch.channels_last)\n"
            "    y = w(x.requires_grad_()).permute(0, 2, 3, 1)\n"
            "    y.reshape(-1, 3).view(2, -1).backward(torch.randn(2, 48))\n"
        )
        record(tmp_path, source, "f(nhwc)")
        trace = json.loads((tmp_path / "trace.json").read_text())
        backward = {
            e["line"] for e in trace["events"] if e["phase"] == "backward" and e.get("changes_format", 1)
        }
        assert {row for code, row in self.codes(tmp_path) if code == "EG901"} >= {
            line for line in backward if line
        }

    def test_is_silenced_like_any_other(self, tmp_path: Path) -> None:
        source = "def f(x):\n    return x.reshape(-1)  # noqa: EG901\n"
        record(tmp_path, source, "f(nhwc)")
        assert self.codes(tmp_path) == []
        assert found(tmp_path) == []  # without a trace nobody can tell that the comment is idle
        record(tmp_path, source, "f(nchw)")
        assert self.codes(tmp_path) == [("EG002", 2)]

    def test_a_comment_where_nothing_ran_may_be_needed(self, tmp_path: Path) -> None:
        source = (
            "def f(x):\n    return x.reshape(-1)  # noqa: EG901\n"
            "def g(x):\n    return x.reshape(\n        -1\n    )  # esper-guard: ignore[EG901]\n"
        )
        record(tmp_path, source, "f(nchw)")
        assert self.codes(tmp_path) == [("EG002", 2)]
        record(tmp_path, source, "g(nchw)")
        assert self.codes(tmp_path) == [("EG002", 6)]
        record(tmp_path, f"# esper-guard: ignore-file[EG901]\n{source}", "0")
        assert self.codes(tmp_path) == []

    def test_a_reason_silences_it(self, tmp_path: Path) -> None:
        record(tmp_path, "def f(x):\n    # the kernel needs NCHW\n    return x.reshape(-1)\n", "f(nhwc)")
        assert self.codes(tmp_path) == []

    def test_can_be_ignored(self, tmp_path: Path) -> None:
        record(tmp_path)
        assert "EG901" not in dict(self.codes(tmp_path, "--ignore=EG9"))


class TestMovedLines:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        record(tmp_path)
        return tmp_path

    def test_are_found_by_their_text(self, folder: Path) -> None:
        head, _, rest = MODEL.partition("def cheap")
        moved = f"{head}# a comment\n\n\ndef cheap{rest}".replace(
            "    return x.reshape(x.shape[0], -1)", "    if True:\n        return x.reshape(x.shape[0], -1)"
        )
        before = found(folder, "--trace=trace.json")
        (folder / "model.py").write_text(moved)
        after = found(folder, "--trace=trace.json")
        assert [f["measured"] for f in after] == [f["measured"] for f in before]
        assert after[1]["location"]["row"] == line_of(moved, "x.reshape")
        done = check(folder, "-v", "--trace=trace.json", status=1)
        assert "model.py: 4 measured lines moved since" in done.stderr
        assert "older" not in done.stderr

    def test_a_function_that_moved_past_another(self, folder: Path) -> None:
        at = MODEL.index("def hidden")
        end = MODEL.index("def lost")
        (folder / "model.py").write_text(f"{MODEL[:at]}{MODEL[end:]}\n\n{MODEL[at:end]}")
        assert [f["code"] for f in found(folder, "--trace=trace.json")][:2] == ["EG101", "EG901"]

    def test_a_stale_trace_says_so(self, folder: Path) -> None:
        (folder / "model.py").write_text(MODEL.replace("x.reshape(x.shape[0], -1)", "x.reshape(2, -1)"))
        done = check(folder, "--trace=trace.json", status=1)
        assert (
            "the trace is older than model.py: 1 measured line changed since; record it again" in done.stderr
        )
        assert "EG901" not in done.stdout
        assert check(folder, "-q", "--trace=trace.json", status=1).stderr == ""

    def test_even_where_nothing_else_is_found(self, tmp_path: Path) -> None:
        record(tmp_path, "def f(x):\n    return x.reshape(-1)\n", "f(nhwc)")
        (tmp_path / "model.py").write_text("")
        assert "older than model.py" in check(tmp_path, "--trace=trace.json", status=0).stderr

    def test_a_trace_of_another_folder(self, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        elsewhere = tmp_path_factory.mktemp("elsewhere") / folder.name
        elsewhere.mkdir()
        before = [f["measured"] for f in found(folder, "--trace=trace.json")]
        for name in ("model.py", "trace.json"):
            (folder / name).rename(elsewhere / name)
        assert [f["measured"] for f in found(elsewhere, "--trace=trace.json")] == before

    def test_traces_of_two_versions(self, tmp_path: Path) -> None:
        one = "def a(x):\n    return x.reshape(-1)\n"
        (record(tmp_path, one, "a(nhwc)")).rename(tmp_path / "old.json")
        record(tmp_path, f"def b(x):\n    return x.reshape(-1)\n\n\n{one}", "b(nchw)")
        for order in (("old", "trace"), ("trace", "old")):
            findings = found(tmp_path, *(f"--trace={name}.json" for name in order))
            assert [(f["location"]["row"], f["measured"]["copies"]) for f in findings] == [(6, 1)]

    def test_files_of_one_name(self, tmp_path: Path) -> None:
        """What is measured of one is not told of the other, which may be its twin."""
        record(tmp_path, name="one/models/head.py")
        (tmp_path / "two" / "models").mkdir(parents=True)
        (tmp_path / "two" / "models" / "head.py").write_text(MODEL)
        done = check(tmp_path, "--trace=trace.json", "two")
        assert "the trace has no line of the files checked" in done.stderr
        assert "measured" not in done.stdout

    def test_a_checkout_in_another_folder(self, tmp_path: Path) -> None:
        """Told by all its files, since two folders of different names are not."""
        record(tmp_path, name="one/model.py")
        (tmp_path / "one" / "train.py").write_text("from model import hidden\ny = hidden(nhwc)\nz = y + 1\n")
        space = {"nhwc": features(2, 3, 4, 4)}
        with trace_layouts() as trace:
            sys.path.insert(0, str(tmp_path / "one"))
            try:
                path = tmp_path / "one" / "train.py"
                exec(compile(path.read_text(), str(path), "exec"), space)  # noqa: S102
            finally:
                sys.path.remove(str(tmp_path / "one"))
                del sys.modules["model"]
        trace.save(tmp_path / "trace.json")
        (tmp_path / "one").rename(tmp_path / "two")
        done = check(tmp_path, "--trace=trace.json", "two/model.py", status=1)
        assert "EG901" in done.stdout
        assert done.stderr == ""

    def test_a_link(self, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        link = tmp_path_factory.mktemp("links") / "link"
        link.symlink_to(folder)
        assert [f["measured"] for f in found(folder, f"--trace={folder}/trace.json", link)] == [
            f["measured"] for f in found(folder, "--trace=trace.json")
        ]

    def test_a_renamed_file(self, tmp_path: Path) -> None:
        (tmp_path / "helper.py").write_text("def reshaped(x):\n    return x.reshape(-1)\n")
        (tmp_path / "model.py").write_text("def model(x):\n    return reshaped(x) + 1\n")
        space: dict[str, Any] = {"nhwc": features(2, 3, 4, 4)}
        for name in ("helper.py", "model.py"):
            exec(compile((tmp_path / name).read_text(), str(tmp_path / name), "exec"), space)  # noqa: S102
        with trace_layouts() as trace:
            space["model"](space["nhwc"])
        trace.save(tmp_path / "trace.json")
        (tmp_path / "helper.py").rename(tmp_path / "helpers.py")
        done = check(tmp_path, "--trace=trace.json", status=0)
        assert f"the trace has 1 copy in {tmp_path / 'helper.py'}, which is not there any more" in done.stderr

    def test_without_text(self, folder: Path) -> None:
        trace = json.loads((folder / "trace.json").read_text())
        for file in trace["files"].values():
            file["text"] = None
        (folder / "trace.json").write_text(json.dumps(trace))
        done = check(folder, "--trace=trace.json", status=1)
        assert "the trace holds no text of model.py: what it says may be of other lines" in done.stderr
        assert "copied nothing" not in done.stdout

    def test_a_trace_of_something_else(self, folder: Path) -> None:
        (folder / "other").mkdir()
        (folder / "other" / "code.py").write_text("x = 1\n")
        done = check(folder / "other", "--trace=../trace.json", status=0)
        assert "the trace has no line of the files checked" in done.stderr

    @pytest.mark.parametrize(
        ("name", "message"), [("model.py", "no layout trace"), ("no.json", "No such file")]
    )
    def test_what_is_no_trace(self, folder: Path, name: str, message: str) -> None:
        done = check(folder, f"--trace={name}", status=2)
        assert name in done.stderr
        assert message in done.stderr

    def test_fixing_keeps_what_was_measured_of_the_rest(self, folder: Path) -> None:
        done = check(folder, "--trace=trace.json", "--fix", "--unsafe-fixes", status=1)
        assert "EG901" in done.stdout
        assert "= measured: 1 copy, 384 B\n" in done.stdout
        assert "older" not in done.stderr
        assert "contiguous().detach" not in (folder / "model.py").read_text()


class TestMatchingLines:
    texts = st.lists(
        st.sampled_from(["", "a", "  a", "b  # why", "# b", "class B:", "  def f(x):", "    a", "def g():"]),
        max_size=12,
    )

    @given(texts, texts)
    def test_what_matches_is_the_same_text_and_matches_once(
        self, before: list[str], after: list[str]
    ) -> None:
        same = matching_lines("\n".join(before), "\n".join(after))
        assert len(set(same.values())) == len(same)
        for old, new in same.items():
            assert lines_in("\n".join(before))[old - 1].text == lines_in("\n".join(after))[new - 1].text

    @given(texts)
    def test_an_unchanged_text_matches_itself(self, text: list[str]) -> None:
        same = matching_lines("\n".join(text), "\r\n".join(text))
        assert same == {line: line for line in range(1, max(len(text), 1) + 1)}

    @given(st.integers(0, 12), texts, st.integers(0, 12))
    def test_lines_put_in_between_move_the_others(self, lines: int, new: list[str], at: int) -> None:
        at = min(at, lines)
        marked = [f"x{number} = 0" for number in range(lines)]
        same = matching_lines("\n".join(marked), "\n".join([*marked[:at], *new, *marked[at:]]))
        expected = {line: line + (len(new) if line > at else 0) for line in range(1, len(marked) + 1)}
        assert {line: now for line, now in same.items() if line in expected} == expected

    def test_equal_lines_are_told_apart_by_what_they_are_in(self) -> None:
        one, two = (
            "class A:\n    def f(self):\n        return 1",
            "class B:\n    def f(self):\n        return 1",
        )
        assert matching_lines(f"{one}\n{two}", f"{two}\n{one}") == {1: 4, 2: 5, 3: 6, 4: 1, 5: 2, 6: 3}
        grown = one.replace("    def f", "    def g(self):\n        return 1\n    def f")
        assert matching_lines(one, grown) == {1: 1, 2: 4, 3: 5}

    def test_a_unique_line_is_found_anywhere(self) -> None:
        assert matching_lines("one\ntwo\nthree", "three\nzero\none\ntwo") == {1: 3, 2: 4, 3: 1}


def test_no_torch_is_imported(tmp_path: Path) -> None:
    record(tmp_path)
    program = "import sys; from esper_guard.cli import cli; cli.main(['check', '--trace', 'trace.json', '.'], standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.endswith("False\n")
