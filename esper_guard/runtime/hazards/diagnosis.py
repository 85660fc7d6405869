"""Probe this machine for the known hazards, each in a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

from esper_guard.runtime.hazards.hazard import Consequence, Hazard, OperatorCure

Verdict = Literal["affected", "not affected", "could not tell"]

_ANSWER = "esper-guard probe: "
_ACCESS_VIOLATION = 0xC0000005  # what a Windows process ends with instead of a signal


@dataclass(frozen=True)
class Diagnosis:
    """What a probe found."""

    hazard: Hazard
    verdict: Verdict
    why: str
    """What the child process did or printed, in a few words."""
    cured: bool | None
    """Whether the same probe passes with the cure; None where that was not tried."""


def diagnose(hazard: Hazard, timeout: float = 60.0) -> Diagnosis:
    """Run a hazard's probe in a child process, and, if it is affected, once more with its cure.

    Args:
        timeout: seconds for each run.
    """
    verdict, why = _run(hazard, timeout, cure=False)
    cured = None
    if verdict == "affected" and isinstance(hazard.cure, OperatorCure):
        cured = _run(hazard, timeout, cure=True)[0] == "not affected"
    return Diagnosis(hazard, verdict, why, cured)


def _run(hazard: Hazard, timeout: float, *, cure: bool) -> tuple[Verdict, str]:
    code = (
        "import sys; from esper_guard.runtime.hazards.diagnosis import child; child(sys.argv[1], sys.argv[2])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, hazard.id, "cured" if cure else "native"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return "could not tell", f"no answer within {timeout:g} s"
    except OSError as error:
        return "could not tell", f"the probe did not start: {error}"
    if _ANSWER in done.stdout:
        affected = json.loads(done.stdout.rpartition(_ANSWER)[2])
        return ("affected", hazard.consequence.value) if affected else ("not affected", "the probe passed")
    if done.returncode < 0 or done.returncode == _ACCESS_VIOLATION:
        how = "access violation" if done.returncode > 0 else _signal(-done.returncode)
        if hazard.consequence is Consequence.CRASH:
            return "affected", how
        return "could not tell", f"the probe ended with {how}"
    last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return "could not tell", f"the probe failed: {last}"


def _signal(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def child(id: str, mode: str) -> None:
    """What the child process does: probe, and answer on standard output."""
    from esper_guard.runtime.hazards import protection
    from esper_guard.runtime.hazards.registry import HAZARDS

    _leave_no_core()
    hazard = HAZARDS[id]
    if mode == "cured":
        protection.cure([hazard])
    print(_ANSWER + json.dumps(hazard.probe()), flush=True)


def _leave_no_core() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
