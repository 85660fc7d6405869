"""Slicing loses nothing: the sliced result equals the whole-file result, finding by finding."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from esper_guard.lint.check import check_source
from esper_guard.lint.engine import with_deep_stack
from esper_guard.lint.finding import Finding
from esper_guard.lint.registry import all_rules
from esper_guard.lint.source import Source, SourceError

CODES = frozenset(all_rules())


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in ("site-packages", "__pycache__"))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith((".py", ".pyi")))


def _both(path: Path) -> tuple[list[Finding], list[Finding]] | None:
    try:
        source = Source.from_bytes(str(path), path.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check_source(source, CODES), check_source(source, CODES, sliced=False)
    except SourceError:
        return None  # deliberately broken files in the standard library's own tests


def _compare(paths: list[Path]) -> list[str]:
    different = []
    for path in paths:
        both = _both(path)
        if both is not None and both[0] != both[1]:
            different.append(f"{path}: sliced {both[0]} whole {both[1]}")
    return different


def _compare_deep(paths: list[Path]) -> list[str]:
    return with_deep_stack(partial(_compare, paths))


def _compare_all(paths: list[Path]) -> list[str]:
    batches = [paths[start::16] for start in range(16)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [line for lines in pool.map(_compare_deep, batches) for line in lines]


def _cases() -> list[str]:
    rules = all_rules().values()
    return [source for rule in rules for source in (*rule.valid, *(case.source for case in rule.invalid))]


def test_sliced_equals_whole_on_the_cases_of_every_rule() -> None:
    for text in _cases():
        source = Source("case.py", text)
        assert check_source(source, CODES) == check_source(source, CODES, sliced=False), text


# What proves a tensor, or what a rule looks for, written so that a search in text could miss it.
HARD_TO_SEE = (
    "def f(x: 'torch.Tensor', d):\n    x.to(d)\n",
    "from torch import Tensor as T\ndef f(x: T | None, d):\n    x.to(d)\n",
    "from jaxtyping import Float\ndef f(x: Float[T, 'b c'], y: Float['torch.Tensor', 'b c'], d):\n    y.to(d)\n",
    "from torch import zeros as z\ndef f(d):\n    x = z(3)\n    x.add(1)\n",
    "from torch import FloatTensor as Floats\ndef f(d):\n    x = Floats(3)\n    x.to(d)\n",
    "import torch.nn.functional as nnf\ndef f(x, d):\n    y = nnf.relu(x)\n    y.to(d)\n",
    "import torch\ndef f(p, y, d):\n    p.layer.bias.copy_(\n        torch.ones(3)).to(\n        device=d)\n",
    "import torch\ndef f(x: torch.Tensor, d):\n    (x\n     .to(d))\n",
    "import torch\ndef f(x: torch.Tensor, d):\n    (x.to(d))\n",
    "import torch\ndef f(x: torch.Tensor, d):\n    if d:\n        x \\\n        .to(d)\n",
    "import torch\ndef f(x: torch.Tensor, d):\n    if d: x.to(d)\n    y = 1; x.half()\n",
    "import torch\ndef f(d):\n    (\n        y,\n        x,\n    ) = torch.ones(3), torch.ones(3)\n    x.to(d)\n",
    "import torch\ndef f(y, d):\n    y, *_, x = torch.ones(3), torch.ones(3)\n    x.to(d)\n",
    "import torch\ndef f(x, d):\n    if isinstance(\n        x,\n        torch.Tensor,\n    ):\n        x.to(d)\n",
    "import torch\ndef f(d):\n    if (x := torch.ones(3)) is not None:\n        x.to(d)\n",
    "import torch\ndef f(d):\n    for (\n        x\n    ) in [torch.ones(3)]:\n        x.to(d)\n",
    "import torch\ndef f(d):\n    x = y = torch.ones(3)\n    x.to(d)\n    y.to(d)\n",
    "import torch\ndef f(d):\n    y = torch.ones(3)\n    x = y\n    x.add(d)\n",
    "def f(x, d):\n    x.grad.add(d)\n    x.encoded.input_ids.to(d)\n",
    "def f(model, d):\n    for p in model.parameters():\n        p.data.clamp(0, d)\n",
    "def f(x, y, d):\n    x.data = y\n    x.to(d)\n",
    "def f(x, d):\n    x.transpose_(0, 1)\n    x.to(d)\n",
    "def f(train_loader, d):\n    x, _ = next(iter(train_loader))\n    x.to(d, memory_format=1)\n",
    "from torch import nn\nclass N(nn.Module):\n    def __init__(self):\n        self.c = nn.Conv2d(3, 3, 3)\n"
    "    def f(self, x, d):\n        y = self.c(x)\n        y.to(d)\n",
    "def f(m, d):\n    ids = m.generate(num_beams=2)\n    ids.to(d)\n",
    "def f(x):\n    return f'{x.contiguous().detach()}'\n",
    "def f(x):\n    return (x\n            .contiguous()  # a comment\n            # another\n            .detach())\n",
    "def f(opt):\n    for group in opt.groups:\n        for p in group['params']:\n            p.view(-1)\n",
    "from safetensors.torch import save_file as write\ndef f(model, p):\n    write(model.state_dict(), p)\n",
    "import torch\nfrom torch import channels_last as nhwc\ndef f():\n    return torch.ones(3).to(memory_format=nhwc)\n",
    "import torch.nn.functional as nnf\nfrom torch import permute as p\ndef f(x):\n    x = p(x, (0, 3, 1, 2)).contiguous()\n    return nnf.max_pool2d(x, 2)\n",
    "import torch\ndef f(y=make().contiguous().detach()):\n    return y\n",
)


@pytest.mark.parametrize("text", HARD_TO_SEE)
def test_sliced_finds_what_is_hard_to_see(text: str) -> None:
    source = Source("case.py", text)
    whole = check_source(source, CODES, sliced=False)
    assert whole
    assert check_source(source, CODES) == whole


@pytest.mark.slow
def test_sliced_equals_whole_on_the_installed_torch() -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    paths = list(_python_files(Path(spec.origin).parent))
    assert len(paths) > 1000
    assert _compare_all(paths) == []


@pytest.mark.slow
def test_sliced_equals_whole_on_the_standard_library() -> None:
    paths = list(_python_files(Path(sysconfig.get_path("stdlib"))))
    assert len(paths) > 100
    assert _compare_all(paths) == []
