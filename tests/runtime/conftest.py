"""Fixtures for the tests of the runtime half."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def compile_anew() -> Iterator[Callable[..., Any]]:
    """``compile_anew(function, backend)``, into one graph, with empty caches."""

    def compiled(function: Callable[..., Any], backend: Any = "inductor") -> Callable[..., Any]:
        torch._dynamo.reset()
        return torch.compile(function, fullgraph=True, backend=backend)

    # the default from torch 2.5 on; without it a new alpha compiles anew
    options = {"inline_inbuilt_nn_modules": True} if torch.__version__ < "2.5" else {}
    with torch._dynamo.config.patch(options):
        yield compiled
    torch._dynamo.reset()
