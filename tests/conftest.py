"""What the tests share: a way to run the command as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test is timed: how long an example takes says how busy the machine is.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("untimed", untimed)
settings.register_profile("ci", untimed, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "untimed")

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_python(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own; ``options`` are those of `subprocess.run`."""
    keywords: dict = {"capture_output": True, "text": True, "timeout": 120, "check": False, **options}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], **keywords)  # noqa: PLW1510


def run_without_torch(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The command where torch is not installed."""
    code = "import sys; sys.modules['torch'] = None; from esper_guard.cli import main; main()"
    return run_python(code, *arguments, **options)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("check", "a.py")``: the command in ``tmp_path``, in a process of its own, without colour."""

    def start(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "NO_COLOR": "1", **options.pop("env", {})}  # type: ignore[dict-item]
        keywords: dict = {
            "cwd": tmp_path,
            "capture_output": True,
            "text": "input" not in options or isinstance(options["input"], str),
            "timeout": 120,
            **options,
        }
        return subprocess.run(
            [sys.executable, "-m", "esper_guard", *arguments], check=False, env=environment, **keywords
        )

    return start


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """``write("pkg/a.py", "...")``: a file below ``tmp_path``, folders included."""

    def start(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return start
