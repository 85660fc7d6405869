"""Code that torch.compile leaves alone."""

from __future__ import annotations

from types import CodeType
from typing import Any

import torch


def keep_dynamo_out(code: CodeType) -> None:
    """Let Dynamo compile neither a function nor what it calls. Older releases than 2.7 have no way to say so."""
    dynamo: Any = torch._C._dynamo.eval_frame
    if hasattr(dynamo, "set_code_exec_strategy"):
        skip = dynamo._FrameAction.SKIP
        dynamo.set_code_exec_strategy(code, dynamo._FrameExecStrategy(skip, skip))
