"""GroupNorm's null write: where it kills the process, where the guard raises, and what hardening returns.

Every case runs natively, guarded and hardened, in child processes. On a release without the bug nothing dies
and nothing raises.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.runtime.crash_cases import BLOCKS, CASES, HAZARD, LAYOUTS, RAISED, SURVIVED, Case

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork to survive the deaths")

PARTS = {"native": 2, "guard": 1, "harden": 1}  # a process each; deaths take the longest
WHERE_DEADLY = {"native": "SIGSEGV", "guard": RAISED, "harden": SURVIVED}
SAFE_POSITIONS = 2048


def deadly(case: Case) -> bool:
    """Whether the bug is in a case: see tests/runtime/crash_cases.py for the words."""
    _, channels, *extents = case.shape
    positions = math.prod(extents)
    input_gradient_wanted = case.ask == "backward" and (
        case.features == "needs grad" or case.call == "after a trained convolution"
    )
    # With one channel or one position a channels_last tensor is contiguous too, and ReLU returns NCHW.
    nhwc_lost = case.call == "after ReLU" and case.layout != "sliced" and (channels == 1 or positions == 1)
    return (
        len(extents) in (2, 3)
        and case.layout in LAYOUTS
        and not nhwc_lost
        and positions < SAFE_POSITIONS
        and case.affine in ("weight and bias", "weight", "bias")
        and case.ask != "create_graph"
        and not input_gradient_wanted
    )


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[Case, str]]:
    """What every case did, by mode. All processes run at the same time."""
    running = {
        (mode, part): subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.runtime.crash_cases", mode, str(part), str(parts)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for mode, parts in PARTS.items()
        for part in range(parts)
    }
    given: dict[str, dict[Case, str]] = {mode: {} for mode in PARTS}
    for (mode, part), process in running.items():
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        given[mode].update(zip(CASES[part :: PARTS[mode]], json.loads(output), strict=True))
    return given


@pytest.mark.parametrize("mode", PARTS)
@pytest.mark.parametrize("block", BLOCKS)
def test_the_crash_matrix(block: str, mode: str, answers: dict[str, dict[Case, str]]) -> None:
    differing = []
    for case in BLOCKS[block]:
        expected = WHERE_DEADLY[mode] if HAZARD.affects() and deadly(case) else SURVIVED
        if answers[mode][case] != expected:
            differing.append(f"{case}: {answers[mode][case]}, not {expected}")
    assert not differing, "\n".join([f"{len(differing)} of {len(BLOCKS[block])} cases", *differing])


def test_every_axis_has_deadly_cases() -> None:
    assert len(set(CASES)) == len(CASES)
    for block in ("matrix", "group counts", "parameters"):
        for place, field in enumerate(Case._fields):
            if field not in ("shape", "groups"):
                values = {case[place] for case in BLOCKS[block]} - {"create_graph"}
                assert {case[place] for case in BLOCKS[block] if deadly(case)} == values, (block, field)
    assert not any(map(deadly, BLOCKS["controls"]))
