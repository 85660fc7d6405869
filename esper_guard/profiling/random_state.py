"""The same random numbers for every variant."""

from __future__ import annotations

import random
import sys

import torch


def reseed(seed: int) -> None:
    """Start all global generators again: Python's, torch's on every device, NumPy's if it is imported.

    Args:
        seed: from 0; NumPy takes its lower 32 bits.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
