"""What is shipped: the wheel, rule packages of others, and the pre-commit hooks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
BAD = "def f(x):\n    return x.contiguous().detach()\n"


def _run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    keywords: dict = {"capture_output": True, "text": True, "timeout": 600, "check": False, **options}
    return subprocess.run([str(part) for part in command], **keywords)  # noqa: PLW1510


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with the files of the working tree."""
    folder = tmp_path_factory.mktemp("checkout") / "esper-guard"
    listed = _run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT, check=True
    ).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    _commit_all(folder, "everything")
    return folder


def _commit_all(folder: Path, message: str) -> subprocess.CompletedProcess[str]:
    if not (folder / ".git").exists():
        _run("git", "init", "--quiet", "--initial-branch", "main", cwd=folder, check=True)
        _run("git", "config", "user.name", "A User", cwd=folder, check=True)
        _run("git", "config", "user.email", "user@example.com", cwd=folder, check=True)
    _run("git", "add", "--all", cwd=folder, check=True)
    return _run("git", "commit", "--message", message, cwd=folder)


@pytest.mark.slow
def test_the_wheel_holds_the_rules_in_our_package(checkout: Path, tmp_path: Path) -> None:
    _run(*PIP, "wheel", "--no-deps", "--wheel-dir", tmp_path, checkout, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"esper_guard"}
    assert "esper_guard/rules/eg101_unconditional_contiguous_detach.py" in names
    assert "esper_guard/py.typed" in names
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "esper_guard").rglob("*.py")}
    rules = {f"esper_guard/rules/{path.name}" for path in (ROOT / "rules").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == ours | rules

    folder = tmp_path / "installed"
    _run(*PIP, "install", "--no-deps", "--target", folder, wheel, check=True)
    (tmp_path / "a.py").write_text(BAD)
    code = "import sys; sys.path.insert(0, 'installed'); from esper_guard.cli import main; main()"
    done = _run(sys.executable, "-I", "-c", code, "check", "a.py", "--output-format", "concise", cwd=tmp_path)
    assert done.stdout.startswith("a.py:2:12: EG101")


def test_the_base_install_needs_no_torch() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    base = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert base is not None
    assert "torch" not in base[1]


RULE = '''
"""# no-print (XX001)

Prints.
"""

from esper_guard.lint.rule import Rule, Severity


class NoPrint(Rule):
    code = "XX001"
    name = "no-print"
    severity = Severity.WARNING
    triggers = (rb"print\\s*\\(",)

    def check(self, flow):
        for call in flow.calls:
            if flow.origin(call.func) == "print":
                yield self.finding(flow, call, "a print")
'''


@pytest.mark.slow
def test_rules_of_other_packages(tmp_path: Path) -> None:
    package = tmp_path / "src"
    package.mkdir()
    (package / "no_print.py").write_text(RULE.lstrip())
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "no-print"\nversion = "1"\n'
        '[project.entry-points."esper_guard.rules"]\nno-print = "no_print"\n'
        '[tool.setuptools]\npy-modules = ["no_print"]\n'
    )
    _run(*PIP, "install", "--no-deps", "--target", tmp_path / "site", package, check=True)
    (tmp_path / "a.py").write_text("def f(x):\n    print(x)  # 1\n    print(x)  # noqa: XX001\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    esper_guard = [sys.executable, "-m", "esper_guard"]
    done = _run(*esper_guard, "check", "a.py", "--output-format", "json", cwd=tmp_path, env=environment)
    assert [(entry["code"], entry["location"]["row"]) for entry in json.loads(done.stdout)] == [("XX001", 2)]
    assert (
        _run(*esper_guard, "check", "--ignore", "XX", "a.py", cwd=tmp_path, env=environment).returncode == 0
    )
    assert "Prints." in _run(*esper_guard, "rule", "XX001", env=environment).stdout

    (tmp_path / "site" / "no_print.py").write_text("import missing_module\n")
    done = _run(*esper_guard, "check", "a.py", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "no_print" in done.stderr
    assert "missing_module" in done.stderr
    (tmp_path / "site" / "no_print.py").write_text(RULE.replace("XX001", "EG101"))
    done = _run(*esper_guard, "check", "a.py", cwd=tmp_path, env=environment)
    assert (done.returncode, "claimed by both" in done.stderr) == (2, True)


@pytest.mark.slow
def test_pre_commit_refuses_a_bad_commit_and_takes_a_good_one(checkout: Path, tmp_path: Path) -> None:
    """Real pre-commit, a real repository, and the hook installed from this checkout."""
    project = tmp_path / "project"
    project.mkdir()
    revision = _run("git", "rev-parse", "HEAD", cwd=checkout, check=True).stdout.strip()
    hooks = "\n".join(f"      - id: {name}" for name in ("esper-guard", "esper-guard-fix"))
    (project / ".pre-commit-config.yaml").write_text(
        f"repos:\n  - repo: {checkout}\n    rev: {revision}\n    hooks:\n{hooks}\n"
    )
    (project / "pyproject.toml").write_text('[tool.esper-guard]\nextend-exclude = ["legacy.py"]\n')
    (project / "good.py").write_text("def f(x):\n    return x.detach()\n")
    environment = {**os.environ, "PRE_COMMIT_HOME": str(tmp_path / "home")}
    _commit_all(project, "before the hook")
    installed = _run(sys.executable, "-m", "pre_commit", "install", cwd=project, env=environment)
    assert installed.returncode == 0, installed.stdout + installed.stderr

    def commit(name: str, content: str) -> subprocess.CompletedProcess[str]:
        (project / name).write_text(content)
        _run("git", "add", "--all", cwd=project, check=True)
        return _run("git", "commit", "--message", name, cwd=project, env=environment)

    refused = commit("slot.py", BAD)
    shown = refused.stdout + refused.stderr
    assert refused.returncode == 1, shown
    assert "EG101 `x.contiguous().detach()` copies `x`" in shown
    assert "slot.py:2:12" in shown
    assert _run("git", "log", "--oneline", cwd=project).stdout.count("\n") == 1

    accepted = commit("slot.py", "def f(x):\n    return x.detach()\n")
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    excluded = commit("legacy.py", BAD)
    assert excluded.returncode == 0, excluded.stdout + excluded.stderr
    idle = commit("slot.py", "def f(x):\n    return x.detach()  # noqa: EG101\n")
    assert idle.returncode == 1
    assert "noqa" not in (project / "slot.py").read_text(), "the fixing hook has removed the idle comment"


@pytest.mark.slow
def test_an_editable_install_finds_the_rules(checkout: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    _run(python, "-m", "pip", "--quiet", "install", "--editable", checkout, check=True)
    done = _run(python, "-m", "esper_guard", "rule", "EG101", cwd=tmp_path)
    assert done.stdout.startswith("# unconditional-contiguous-detach (EG101)")
    missing = _run(python, "-c", "import torch", cwd=tmp_path)
    assert missing.returncode != 0, "the base install must not bring torch along"
