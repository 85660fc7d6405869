"""``esper-guard check`` as a user runs it: options, output and exit status."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from esper_guard.lint.registry import all_rules
from tests.conftest import ROOT, Run

Write = Callable[..., Path]
BAD = "def f(x):\n    return x.contiguous().detach()\n"
GOOD = "def f(x):\n    return x.detach()\n"
NOTE = "def f(x):\n    return x if x.is_contiguous() else x.contiguous()\n"
UNUSED = "y = 1  # noqa: EG101\n"


def test_clean(run: Run, write: Write) -> None:
    write("a.py", GOOD)
    done = run("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "All checks passed!\n", "")


def test_full_output(run: Run, write: Write) -> None:
    write("a.py", BAD)
    done = run("check", "a.py")
    assert done.returncode == 1
    assert done.stdout == (
        "EG101 `x.contiguous().detach()` copies `x` into NCHW order on every call if it is channels_last\n"
        " --> a.py:2:12\n"
        "  |\n"
        "1 | def f(x):\n"
        "2 |     return x.contiguous().detach()\n"
        "  |            ^^^^^^^^^^^^^^^^^^^^^^^\n"
        "  |\n"
        "  = help: write `x.detach()`, which copies nothing and keeps the memory format\n"
        "  = warning unconditional-contiguous-detach, see: esper-guard rule EG101\n"
        "Found 1 finding.\n"
        "1 unsafe fix available with `--fix --unsafe-fixes`.\n"
    )


def test_concise_output(run: Run, write: Write) -> None:
    write("pkg/a.py", BAD)
    done = run("check", "--output-format", "concise", "--quiet")
    path = os.path.join("pkg", "a.py")
    assert done.stdout.startswith(f"{path}:2:12: EG101 `x.contiguous().detach()` copies `x`")


def test_json_output(run: Run, write: Write) -> None:
    path = write("a.py", BAD)
    done = run("check", "--output-format", "json")
    assert done.returncode == 1
    (entry,) = json.loads(done.stdout)
    assert entry.pop("message").startswith("`x.contiguous().detach()`")
    assert entry.pop("help")
    assert entry.pop("measured") is None
    assert entry == {
        "cell": None,
        "code": "EG101",
        "name": "unconditional-contiguous-detach",
        "severity": "warning",
        "filename": str(path),
        "location": {"row": 2, "column": 12},
        "end_location": {"row": 2, "column": 35},
        "fix": {
            "applicability": "unsafe",
            "message": (
                "Remove the copy; strides and aliasing change: "
                "the result is laid out like `x`, and may share its memory"
            ),
            "edits": [
                {
                    "content": "",
                    "location": {"row": 2, "column": 13},
                    "end_location": {"row": 2, "column": 26},
                }
            ],
        },
        "noqa_row": 2,
        "url": None,
    }


def test_json_of_nothing_is_an_empty_list(run: Run, write: Write) -> None:
    write("a.py", GOOD)
    done = run("check", "--output-format", "json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])


def test_columns_are_characters(run: Run, write: Write) -> None:
    write("a.py", "def f(x):\n    return ('é漢', x.contiguous().detach())\n")
    done = run("check", "--output-format", "json")
    assert json.loads(done.stdout)[0]["location"] == {"row": 2, "column": 19}
    lines = run("check").stdout.splitlines()
    assert lines[5].index("^") == lines[4].index("x.contiguous") + 1  # the wide character takes two columns


def test_notes_do_not_count(run: Run, write: Write) -> None:
    write("a.py", NOTE)
    done = run("check")
    assert done.returncode == 0
    assert "Found 1 finding (1 note)." in done.stdout


def test_exit_zero(run: Run, write: Write) -> None:
    write("a.py", BAD)
    assert run("check", "--exit-zero").returncode == 0


def test_statistics(run: Run, write: Write) -> None:
    write("a.py", BAD * 2 + NOTE + UNUSED)
    done = run("check", "--statistics")
    assert done.stdout.splitlines() == [
        "2\tEG101\t[ ] unconditional-contiguous-detach",
        "1\tEG002\t[*] unused-suppression",
        "1\tEG102\t[ ] noop-contiguity-guard",
    ]


def test_output_file(run: Run, write: Write, tmp_path: Path) -> None:
    write("a.py", BAD)
    done = run("check", "--output-format", "json", "--output-file", "found.json")
    assert done.returncode == 1
    assert json.loads((tmp_path / "found.json").read_text())[0]["code"] == "EG101"


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ([], ["EG002", "EG101", "EG102"]),
        (["--select", "EG1"], ["EG101", "EG102"]),
        (["--select", "ALL", "--ignore", "EG101"], ["EG102"]),  # EG002 can't judge a code that did not run
        (["--ignore", "EG1"], []),
        (["--ignore", "EG1", "--extend-select", "EG102"], ["EG102"]),
        (["--ignore", "ALL", "--extend-select", "EG10"], ["EG101", "EG102"]),
        (["--select", "eg101,EG002"], ["EG002", "EG101"]),
    ],
)
def test_selection(run: Run, write: Write, options: list[str], codes: list[str]) -> None:
    write("a.py", UNUSED + BAD + NOTE)
    done = run("check", "--output-format", "json", *options)
    assert [entry["code"] for entry in json.loads(done.stdout)] == codes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--select", "EG110"], "there is no rule or prefix 'EG110'; did you mean 'EG101'?"),
        (["check", "--output-format", "jsn"], "did you mean 'json'?"),
        (["check", "--slect", "EG101"], "--select"),
        (["check", "--jobs", "0"], "--jobs"),
        (["check", "--isolated", "--config", "x.toml"], "contradict"),
        (["check", "--config", "missing.toml"], "missing.toml"),
        (["check", "-", "a.py"], "standard input"),
        (["rule", "EG10"], "did you mean 'EG101'?"),
        (["rule"], "--all"),
        (["chek"], "chek"),
    ],
)
def test_misuse(run: Run, write: Write, arguments: list[str], message: str) -> None:
    write("a.py", GOOD)
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_fix_applies_safe_fixes_only(run: Run, write: Write) -> None:
    path = write("a.py", BAD + UNUSED)
    done = run("check", "--fix")
    assert done.returncode == 1
    assert path.read_text() == BAD + "y = 1\n"
    assert "Fixed 1 finding." in done.stdout


def test_unsafe_fixes(run: Run, write: Write) -> None:
    path = write("a.py", BAD + UNUSED)
    done = run("check", "--fix", "--unsafe-fixes")
    assert done.returncode == 0
    assert path.read_text() == GOOD + "y = 1\n"
    assert run("check", "--fix", "--unsafe-fixes").stdout == "All checks passed!\n"


def test_diff_writes_nothing(run: Run, write: Write) -> None:
    path = write("a.py", BAD)
    done = run("check", "--diff", "--unsafe-fixes")
    assert done.returncode == 1
    assert path.read_text() == BAD
    assert "-    return x.contiguous().detach()\n+    return x.detach()\n" in done.stdout
    assert run("check", "--diff").returncode == 0, "nothing safe to fix"


def test_standard_input(run: Run) -> None:
    done = run("check", "-", "--stdin-filename", "pkg/a.py", "--output-format", "concise", input=BAD)
    assert done.returncode == 1
    assert done.stdout.startswith("pkg/a.py:2:12: EG101")


def test_standard_input_fixed(run: Run) -> None:
    done = run("check", "-", "--fix", "--unsafe-fixes", input=BAD)
    assert (done.returncode, done.stdout) == (0, GOOD)
    done = run("check", "-", "--fix", input=BAD)
    assert (done.returncode, done.stdout) == (1, BAD)
    assert "EG101" in done.stderr


@pytest.mark.parametrize(("extra", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_on_a_terminal_only(
    write: Write, tmp_path: Path, extra: dict[str, str], coloured: bool
) -> None:
    write("a.py", BAD)
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | extra
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "esper_guard", "check", "a.py"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=terminal, stderr=terminal, env=environment)
    process.wait(timeout=60)
    os.close(terminal)
    shown = os.read(controller, 65536)
    assert b"EG101" in shown
    assert (b"\x1b[" in shown) is coloured


def test_a_rule_is_rendered_in_a_terminal(run: Run) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "esper_guard", "rule", "EG304"]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm"})
    shown = b""
    while process.poll() is None or select.select([controller], [], [], 0)[0]:
        if select.select([controller], [], [], 0.1)[0]:
            shown += os.read(controller, 65536)
    os.close(terminal)
    assert process.returncode == 0
    assert b"wrong-rank-channels-last" in shown
    assert b"```" not in shown
    assert b"```" in run("rule", "EG304").stdout.encode()


def test_no_colour_in_a_pipe(run: Run, write: Write) -> None:
    write("a.py", BAD)
    assert "\x1b[" not in run("check", env={"NO_COLOR": ""}).stdout


def test_the_same_in_several_processes(run: Run, write: Write) -> None:
    padding = "# " + "x" * 70_000 + "\n"
    for number in range(80):
        write(f"pkg/m{number:02}.py", padding + (BAD if number % 3 else NOTE))
    one = run("check", "--jobs", "1", "--output-format", "concise")
    many = run("check", "--jobs", "4", "--output-format", "concise")
    assert one.stdout == many.stdout
    assert one.stdout.count("EG101") == 53


def test_the_static_half_imports_neither_torch_nor_libcst_without_a_hit(run: Run, write: Write) -> None:
    write("a.py", "import torch\n\ndef f(x):\n    return torch.detach(x)\n")
    code = (
        "import sys\nsys.argv = ['esper-guard', 'check', 'a.py']\nfrom esper_guard.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'libcst', 'msgspec'} & set(sys.modules)))"
    )
    folder = write("a.py", "def f(x):\n    return x\n").parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "['msgspec']"


def test_version(run: Run) -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("esper-guard 0.")


def test_rule(run: Run) -> None:
    done = run("rule", "eg101")
    assert done.returncode == 0
    assert done.stdout.startswith("# unconditional-contiguous-detach (EG101)\n")
    assert done.stdout == run("rule", "unconditional-contiguous-detach").stdout
    everything = run("rule", "--all").stdout
    assert all(f"({code})" in everything for code in all_rules())


def test_the_example_shows_the_ticket(run: Run) -> None:
    done = run("check", str(ROOT / "examples" / "slot.py"), "--output-format", "concise")
    assert done.returncode == 1
    codes = [line.split()[1] for line in done.stdout.splitlines() if "slot.py:" in line]
    assert codes == ["EG101", "EG102"]


def test_an_unchecked_file_is_never_clean(run: Run, write: Write) -> None:
    write("broken.py", "def f(:\n")
    for name in ("missing.py", "broken.py"):
        assert run("check", "--select", "EG101", name).returncode == 1
        done = run("check", "--diff", name)
        assert done.returncode == 1
        assert f"{name}:1:" in done.stderr
        assert run("check", "--ignore", "EG001", name).returncode == 0


@pytest.mark.parametrize(
    "content", [BAD, BAD.rstrip(), BAD.replace("\n", "\r\n"), "s = '\x0c\x85\u2028'\n" + BAD]
)
def test_a_diff_is_a_patch(content: str, run: Run, write: Write, tmp_path: Path) -> None:
    path = write("a.py", content)
    done = run("check", "--diff", "--unsafe-fixes", text=False)
    subprocess.run(["git", "apply", "-p0", "-"], cwd=tmp_path, input=done.stdout, check=True)
    assert path.read_bytes() == content.replace(".contiguous()", "").encode()


def test_standard_input_of_an_excluded_file_comes_back(run: Run, write: Write) -> None:
    write("pkg/esper-guard.toml", 'exclude = ["gen.py"]\nforce-exclude = true\n')
    done = run("check", "--fix", "--unsafe-fixes", "-", "--stdin-filename", "pkg/gen.py", input=BAD)
    assert (done.returncode, done.stdout) == (0, BAD)


def test_output_that_can_not_be_written(run: Run, write: Write) -> None:
    write("a.py", BAD)
    done = run("check", "--output-file", "missing/found.txt")
    assert done.returncode == 2
    assert "missing/found.txt" in done.stderr


def test_half_written_suppressions_silence_nothing(run: Run, write: Write) -> None:
    lines = ["# esper-guard: ignore[EG201", "# noqa: eg201", "# esper-guard: ignore-file[", "# noqa: EG201"]
    write(
        "a.py",
        "".join(
            f"def f{n}(x):\n    return x.contiguous().detach()  {line}\n" for n, line in enumerate(lines)
        ),
    )
    assert run("check", "--output-format", "concise").stdout.count("EG101") == 4


def test_characters_that_standard_output_lacks(run: Run, write: Write) -> None:
    write("a.py", BAD.replace("\n", "  # \N{SNOWMAN}\n"))
    expected = run("check", "a.py")
    assert "# \N{SNOWMAN}" in expected.stdout
    done = run("check", "a.py", env={"PYTHONIOENCODING": "cp1252"})
    assert (done.returncode, done.stderr) == (1, expected.stderr)
    assert done.stdout == expected.stdout.replace("\N{SNOWMAN}", "\\u2603")
