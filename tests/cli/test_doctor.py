"""``esper-guard doctor`` as a user runs it."""

from __future__ import annotations

import json
import platform

import pytest
import torch

from esper_guard import HAZARDS
from tests.conftest import Run, run_without_torch

AFFECTED = [id for id, hazard in HAZARDS.items() if hazard.affects()]


def test_reports_the_machine_and_every_hazard_as_json(run: Run) -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["torch"] == str(torch.__version__)
    assert report["python"] == platform.python_version()
    assert report["devices"][0].startswith("cpu")
    verdicts = {hazard["id"]: hazard["verdict"] for hazard in report["hazards"]}
    assert verdicts == {id: "affected" if id in AFFECTED else "not affected" for id in HAZARDS}
    if "group-norm-null-write" in AFFECTED:
        crash = next(hazard for hazard in report["hazards"] if hazard["id"] == "group-norm-null-write")
        assert (crash["why"], crash["cured"]) == ("SIGSEGV", True)
        assert "GroupNorm" in report["detach"]
    else:
        assert report["detach"].startswith("safe")


def test_strict_is_a_status_and_the_text_says_what_to_do(run: Run) -> None:
    done = run("doctor", "--strict")
    assert done.returncode == 1
    for id in AFFECTED:
        assert f"affected: {id}" in done.stdout
        assert HAZARDS[id].advice in done.stdout
    assert "x.detach() is safe" in done.stdout


def test_strict_with_everything_ignored_is_content(run: Run) -> None:
    ignored = [argument for id in HAZARDS for argument in ("--ignore", id)]
    done = run("doctor", "--strict", *ignored)
    assert done.returncode == 0, done.stderr
    assert "affected" not in done.stdout


def test_a_probe_out_of_time_could_not_tell(run: Run) -> None:
    done = run("doctor", "--strict", "--timeout", "0.01")
    assert done.returncode == 1
    assert done.stdout.count("could not tell") == len(HAZARDS)


@pytest.mark.parametrize("arguments", [("--ignore", "group-norm"), ("--timeout", "0")])
def test_misuse_is_status_2(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("doctor", *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_without_torch_it_says_how_to_get_it() -> None:
    done = run_without_torch("doctor")
    assert done.returncode == 2
    assert "esper-guard[torch]" in done.stderr
