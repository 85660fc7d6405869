"""The documentation says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper_guard import HAZARDS
from esper_guard.lint import pages
from esper_guard.lint.flow import analyse
from esper_guard.lint.flow.positions import Positions
from esper_guard.lint.imports import names_of
from esper_guard.lint.parse import parse_module
from esper_guard.lint.registry import all_rules
from esper_guard.lint.source import Source
from esper_guard.runtime.hazards import Hazard
from tests.conftest import ROOT


def test_the_rule_pages_are_current() -> None:
    """Regenerate with ``python -m esper_guard.lint.pages docs/rules``."""
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "rules").glob("*")}
    assert written == pages.files()


def test_the_readme_lists_every_rule() -> None:
    rows = re.findall(r"^\| (EG\d+) \| ([\w-]+) \| (\w+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == [(rule.code, rule.name, rule.severity.value) for rule in all_rules().values()]


def test_the_readme_shows_real_output() -> None:
    shown = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    command = [sys.executable, "-m", "esper_guard", "check", "--select", "EG101", "examples/slot.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(shown[1])


def test_every_dependency_is_explained() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    base = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert base is not None
    names = re.findall(r'"([a-z]+)', base[1])
    table = re.findall(r"^\| ([a-z]+) \| ", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [name for name in table if name in names] == sorted(names, key=table.index)
    assert set(names) <= set(table)


def test_the_example_rule_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "writing-rules.md").read_text(), re.DOTALL)
    namespace: dict = {"__name__": "example"}
    exec(compile(blocks[0], "example", "exec"), namespace)  # noqa: S102
    rule = namespace["NoItem"]
    for source, expected in [(rule.valid[0], 0), (rule.invalid[0].source, 1)]:
        one = Source("a.py", source)
        names = names_of(source)
        module = parse_module(source)
        (function,) = [node for node in module.body if type(node).__name__ == "FunctionDef"]
        flow = analyse(function, names, Positions(one, module, 0))
        assert len(list(rule().check(flow))) == expected


def test_the_runtime_page_lists_every_hazard() -> None:
    shown = re.search(
        r"<!-- hazards -->\n(.*?)<!-- /hazards -->", (ROOT / "docs" / "runtime.md").read_text(), re.DOTALL
    )
    assert shown is not None
    assert shown[1].splitlines() == [
        f"| `{hazard.id}` | {hazard.consequence.value} | {where(hazard)} | {hazard.advice} |"
        for hazard in HAZARDS.values()
    ]


def where(hazard: Hazard) -> str:
    since = f" {hazard.first}" if hazard.first else ""
    until = f" before {hazard.fixed}" if hazard.fixed else ""
    return f"torch{since}{until}, {', '.join(hazard.devices or ['every device'])}".replace(
        "torch,", "every torch tried,"
    )


@pytest.mark.parametrize("page", ["README.md", "docs/runtime.md", "docs/tracing.md", "docs/testing.md"])
def test_the_runtime_examples_run(page: str) -> None:
    blocks = re.findall(r"```python\n(import torch.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], page, "exec"), {})  # noqa: S102


@pytest.mark.parametrize(("page", "file"), [("tracing.md", "model.py"), ("testing.md", "testing.py")])
def test_the_runtime_pages_show_real_output(page: str, file: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / page).read_text()
    code = re.search(r"```python\n(import torch.*?)```", text, re.DOTALL)
    shown = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert shown is not None
    (tmp_path / file).write_text(code[1])
    done = subprocess.run(
        [sys.executable, file], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == shown[1].replace("2.13.0+cpu", str(torch.__version__))


@pytest.mark.parametrize("page", ["README.md", "docs/testing.md"])
def test_the_plugin_examples_run(page: str, pytester: pytest.Pytester) -> None:
    (example,) = re.findall(r"```python\n(@pytest.mark.*?)```", (ROOT / page).read_text(), re.DOTALL)
    made = "import pytest, torch\nfrom torch import nn\nmodel = block = nn.Conv2d({}, 4, 1).to(memory_format=torch.channels_last)\n"
    pytester.makepyfile(made.format(8 if page == "README.md" else 3) + example)
    result = pytester.runpytest_subprocess("-p", "no:xdist")
    result.assert_outcomes(passed=1)


@pytest.mark.skipif(not str(torch.__version__).startswith("2.13.0"), reason="measured with torch 2.13.0")
def test_the_performance_guide_is_what_its_commands_print(tmp_path: Path) -> None:
    """The smallest of its tables; ``python benchmarks/performance_guide.py`` measures all of them."""
    written = (ROOT / "docs" / "performance-guide.md").read_text()
    emptied = re.sub(
        r"(--channels 16 .*?```\n).*?(<!-- /measured -->)", r"\1\2", written, count=1, flags=re.DOTALL
    )
    assert emptied != written
    guide = tmp_path / "guide.md"
    guide.write_text(emptied)
    command = [sys.executable, ROOT / "benchmarks" / "performance_guide.py", "--bytes", "--only", "16", guide]
    subprocess.run(command, check=True, capture_output=True)
    assert guide.read_text() == written
