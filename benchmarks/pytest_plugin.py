"""What the pytest plugin adds to a suite that does not ask for it.

    python benchmarks/pytest_plugin.py [--rounds 15] [--tests 1000]

A suite of empty tests runs in processes of its own, with the plugin loaded as pytest loads it (tracing off) and
without it, in turn; processor time of the process, because the plugin does not wait for anything.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from paired import ratio, table

WITHOUT = ["-p", "no:esper-guard"]
VARIANTS = {
    "without the plugin": WITHOUT,
    "with it": [],
    "without it, again": WITHOUT,
    "--no-layout": ["--no-layout"],
}


def seconds_of(folder: Path, arguments: list[str]) -> float:
    """User and system time of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "", "PYTEST_ADDOPTS": ""}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tests", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n")
        lines = [f"def test_{number}(): pass\n" for number in range(arguments.tests)]
        (folder / "test_empty.py").write_text("".join(lines))
        times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for options in VARIANTS.values():
            seconds_of(folder, options)
        for turn in range(arguments.rounds):
            names = list(VARIANTS)
            for variant in names[turn % len(names) :] + names[: turn % len(names)]:
                times[variant].append(seconds_of(folder, VARIANTS[variant]))
    bare = times["without the plugin"]
    rows = [
        [variant, f"{statistics.median(found):.3f}", str(ratio(found, bare))]
        for variant, found in times.items()
    ]
    table(f"{arguments.tests} empty tests", ["pytest", "CPU seconds", "ratio"], rows)


if __name__ == "__main__":
    main()
