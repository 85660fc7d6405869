"""Configuration: where it is found, what it changes, and how mistakes in it are told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run

Write = Callable[..., Path]
BAD = "def f(x):\n    return x.contiguous().detach()\n"
NOTE = "def f(x):\n    return x if x.is_contiguous() else x.contiguous()\n"


def _found(run: Run, *arguments: str, **options: object) -> list[tuple[str, str]]:
    done = run("check", "--output-format", "json", *arguments, **options)
    assert done.returncode in (0, 1), done.stderr
    return [(os.path.basename(entry["filename"]), entry["code"]) for entry in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("name", "header"),
    [("pyproject.toml", "[tool.esper-guard]\n"), ("esper-guard.toml", ""), (".x.toml", "")],
)
def test_both_files_and_config(name: str, header: str, run: Run, write: Write) -> None:
    write(name, f'{header}select = ["EG102"]\n')
    write("a.py", BAD + NOTE)
    arguments = ["--config", name] if name == ".x.toml" else []
    assert _found(run, *arguments) == [("a.py", "EG102")]
    if not arguments:
        assert _found(run, "--isolated") == [("a.py", "EG101"), ("a.py", "EG102")]
        assert _found(run, "--select", "EG101") == [("a.py", "EG101")]


def test_the_nearest_configuration_counts(run: Run, write: Write) -> None:
    write("pyproject.toml", '[tool.esper-guard]\nselect = ["EG102"]\n')
    write("a.py", BAD)
    write("pkg/esper-guard.toml", 'select = ["EG101"]\n')
    write("pkg/sub/pyproject.toml", "[project]\nname = 'no table of ours'\n")
    write("pkg/sub/b.py", BAD)
    assert _found(run) == [("b.py", "EG101")]


def test_extend_select_and_ignore(run: Run, write: Write) -> None:
    write("esper-guard.toml", 'ignore = ["EG1"]\nextend-select = ["EG102"]\n')
    write("a.py", BAD + NOTE)
    assert _found(run) == [("a.py", "EG102")]


def test_per_file_ignores(run: Run, write: Write) -> None:
    write("esper-guard.toml", '[per-file-ignores]\n"tests/**" = ["EG101"]\n"*_legacy.py" = ["ALL"]\n')
    write("tests/a.py", BAD + NOTE)
    write("src/b_legacy.py", BAD)
    write("src/c.py", BAD)
    assert _found(run) == [("c.py", "EG101"), ("a.py", "EG102")]


def test_exclude(run: Run, write: Write) -> None:
    for name in ("build.py", "docs/a.py", "src/gen/b.py", "src/c.py", ".venv/d.py", "node_modules/e.py"):
        write(name, BAD)
    write("esper-guard.toml", 'extend-exclude = ["docs", "src/gen"]\n')
    assert [name for name, _ in _found(run)] == ["build.py", "c.py"]
    assert [name for name, _ in _found(run, "docs/a.py")] == ["a.py"], "a named file is taken"
    assert _found(run, "--force-exclude", "docs/a.py", "src/gen/b.py", "src/gen") == []
    write("esper-guard.toml", 'exclude = ["docs"]\n')
    assert [name for name, _ in _found(run)] == ["d.py", "build.py", "e.py", "c.py", "b.py"]


def test_gitignore(run: Run, write: Write, tmp_path: Path) -> None:
    (tmp_path / ".git" / "info").mkdir(parents=True)
    write(".git/info/exclude", "private.py\n")
    write(".gitignore", "generated/\n*_pb2.py\n!kept_pb2.py\n")
    write("pkg/.gitignore", "/local.py\n!*_pb2.py\n")
    for name in (
        "generated/a.py",
        "b_pb2.py",
        "kept_pb2.py",
        "private.py",
        "pkg/local.py",
        "pkg/c_pb2.py",
        "pkg/d.py",
    ):
        write(name, BAD)
    assert [name for name, _ in _found(run)] == ["kept_pb2.py", "c_pb2.py", "d.py"]
    assert [name for name, _ in _found(run, cwd=tmp_path / "pkg")] == ["c_pb2.py", "d.py"]
    assert len(_found(run, "--no-respect-gitignore")) == 7
    write("esper-guard.toml", "respect-gitignore = false\n")
    assert len(_found(run)) == 7


def test_only_python_is_walked_and_each_file_once(run: Run, write: Write) -> None:
    for name in ("a.py", "b.pyi", "c.pyw", "d.txt", "e"):
        write(name, BAD)
    assert [name for name, _ in _found(run)] == ["a.py", "b.pyi", "c.pyw"]
    assert [name for name, _ in _found(run, ".", "a.py", "./a.py", "d.txt")] == [
        "a.py",
        "b.pyi",
        "c.pyw",
        "d.txt",
    ]


def test_output_format_and_unsafe_fixes(run: Run, write: Write) -> None:
    write("esper-guard.toml", 'output-format = "concise"\nunsafe-fixes = true\n')
    path = write("a.py", BAD)
    assert run("check").stdout.startswith("a.py:2:12: EG101")
    assert run("check", "--fix", "--no-unsafe-fixes").returncode == 1
    assert run("check", "--fix").returncode == 0
    assert ".contiguous()" not in path.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('\nselct = ["EG101"]\n', "esper-guard.toml:2: unknown key 'selct'; did you mean 'select'?"),
        ('ignore = ["EG101"]\nselect = "EG101"\n', "esper-guard.toml:2: 'select' is not valid"),
        ('select = ["EG101", 3]\n', "esper-guard.toml:1: 'select' is not valid"),
        ('output-format = "jsn"\n', "did you mean 'json'?"),
        ('assume-channels-last = "maybe"\n', "esper-guard.toml:1: 'assume-channels-last' is not valid"),
        ("unsafe-fixes = 1\n", "esper-guard.toml:1: 'unsafe-fixes' is not valid"),
        ('[per-file-ignores]\n"a.py" = "EG101"\n', "esper-guard.toml:1: 'per-file-ignores' is not valid"),
        ('select = ["EG999"]\n', "there is no rule or prefix 'EG999'"),
        ('[per-file-ignores]\n"a.py" = ["EG999"]\n', "there is no rule or prefix 'EG999'"),
        ("select = [\n", "esper-guard.toml:"),
        (b"select = ['\xff']\n", "not valid UTF-8"),
    ],
)
def test_mistakes_are_named(text: str | bytes, message: str, run: Run, write: Write) -> None:
    write("esper-guard.toml", text)
    write("a.py", BAD)
    done = run("check")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_in_pyproject_is_placed(run: Run, write: Write) -> None:
    write(
        "pyproject.toml", '[project]\nname = "a"\n\n[tool.esper-guard]\nignore = []\noutput_format = "json"\n'
    )
    done = run("check")
    assert "pyproject.toml:6: unknown key 'output_format'; did you mean 'output-format'?" in done.stderr


def test_config_without_our_table(run: Run, write: Write) -> None:
    write("pyproject.toml", '[project]\nname = "a"\n')
    assert run("check", "--config", "pyproject.toml").returncode == 2


@pytest.mark.parametrize("value", ['"auto"', "true", "false"])
def test_assume_channels_last(value: str, run: Run, write: Write) -> None:
    write("esper-guard.toml", f"assume-channels-last = {value}\n")
    write("a.py", BAD)
    assert _found(run) == [("a.py", "EG101")]


@pytest.mark.parametrize(
    "text", ["[tool]\nesper-guard = 3\n", "tool = 3 # esper-guard\n", "[[tool.esper-guard]]\nselect = []\n"]
)
def test_a_table_that_is_none(text: str, run: Run, write: Write) -> None:
    write("pyproject.toml", text)
    write("a.py", BAD)
    done = run("check")
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if text.startswith("tool =") else 2)


def test_patterns_that_are_none(run: Run, write: Write, tmp_path: Path) -> None:
    write(".gitignore", "\ufeffa.py\nbuild\\\n!\n")
    write("a.py", BAD)
    write("b.py", BAD)
    assert [name for name, _ in _found(run)] == ["b.py"]
    write("esper-guard.toml", 'exclude = ["!"]\n')
    done = run("check")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_codes_in_a_file_are_placed_there(run: Run, write: Write) -> None:
    write("esper-guard.toml", 'select = ["EG1x"]\n')
    write("a.py", BAD)
    assert "esper-guard.toml" in run("check").stderr


SAVES = "from safetensors.torch import save_file\ndef save(model, path):\n    save_file(model.state_dict(), path)\n"


@pytest.mark.parametrize(
    ("assumed", "mention", "found"),
    [
        ('"auto"', "", False),
        ('"auto"', "net.to(memory_format=torch.channels_last)\n", True),
        ('"auto"', "# see channels_last\n", True),
        ('"auto"', "from apex.contrib.groupbn import BatchNorm2d_NHWC\n", True),
        ("true", "", True),
        ("false", "net.to(memory_format=torch.channels_last)\n", False),
    ],
)
def test_what_only_channels_last_can_do_wrong(
    run: Run, tmp_path: Path, assumed: str, mention: str, found: bool
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.esper-guard]\nextend-select = ["EG307"]\nassume-channels-last = {assumed}\n'
    )
    (tmp_path / "save.py").write_text(SAVES)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "other.py").write_text(mention)
    done = run("check", "save.py", "--output-format", "concise", cwd=tmp_path)
    assert ("EG307" in done.stdout) is found
    assert done.returncode == int(found)
    piped = run("check", "-", "--stdin-filename", "save.py", cwd=tmp_path, input=SAVES)
    assert ("EG307" in piped.stdout) is found


def test_a_fix_of_what_can_not_happen_is_not_applied(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.esper-guard]\nextend-select = ["EG307"]\n')
    (tmp_path / "save.py").write_text(SAVES)
    assert run("check", "--fix", "--unsafe-fixes", ".", cwd=tmp_path).returncode == 0
    assert (tmp_path / "save.py").read_text() == SAVES
    (tmp_path / "use.py").write_text("net.to(memory_format=torch.channels_last)\n")
    run("check", "--fix", "--unsafe-fixes", ".", cwd=tmp_path)
    assert (tmp_path / "save.py").read_text() != SAVES


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("net.py", True),
        ("test_net.py", False),
        ("net_test.py", False),
        ("tests/net.py", False),
        ("conftest.py", False),
    ],
)
def test_some_rules_are_silent_in_tests(run: Run, tmp_path: Path, name: str, found: bool) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("import torch\ndef f(x, w):\n    return torch.relu(x.permute(0, 3, 1, 2).contiguous())\n")
    assert ("EG104" in run("check", name, "--output-format", "concise", cwd=tmp_path).stdout) is found
