"""How fast the linter is, as ratios against peers in one run.

    python benchmarks/lint_speed.py [--tree FOLDER] [--rounds N]

Whole processes, in turn (A B A B ...), medians; ``ruff`` has to be on the PATH. FOLDER is the installed torch by
default, found without importing it. Peak memory is that of the largest single process. Needs os.wait4 (Unix).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(command: list[str], folder: str) -> tuple[float, float]:
    """Seconds, and the peak MiB of the largest process it started (itself included)."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def compare(name: str, ours: list[str], theirs: dict[str, list[str]], folder: str, rounds: int) -> None:
    times: dict[str, list[float]] = {key: [] for key in ("esper-guard", *theirs)}
    peaks: dict[str, float] = dict.fromkeys(times, 0.0)
    for number in range(rounds + 1):
        for key, command in (("esper-guard", ours), *theirs.items()):
            taken, peak = run(command, folder)
            peaks[key] = max(peaks[key], peak)
            if number:  # the first round warms the caches
                times[key].append(taken)
    print(f"\n{name} ({rounds} rounds, whole processes, medians)")
    own = statistics.median(times["esper-guard"])
    for key, values in times.items():
        median = statistics.median(values)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        ratio = f"esper-guard / this = {own / median:.2f}"
        print(f"  {key:20} {median:8.3f} s  ({spread})  {peaks[key]:5.0f} MiB  {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tree = arguments.tree
    if tree is None:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            sys.exit("torch is not installed here; name a folder with --tree")
        tree = Path(spec.origin).parent
    ruff = shutil.which("ruff")
    if ruff is None:
        sys.exit("ruff is not on the PATH")

    check = [sys.executable, "-m", "esper_guard", "check", "--isolated", "--no-cache"]
    lint = [ruff, "check", "--isolated", "--no-cache", "--quiet"]
    print(f"{tree}, {os.cpu_count()} processors, Python {sys.version.split()[0]}")
    print(subprocess.run([ruff, "--version"], capture_output=True, text=True, check=True).stdout.strip())
    compare(
        "the whole tree",
        [*check, tree.name],
        {
            "ruff --select ALL": [*lint, "--select", "ALL", tree.name],
            "ruff --select F": [*lint, "--select", "F", tree.name],
        },
        str(tree.parent),
        arguments.rounds,
    )
    compare(
        "the whole catalogue against one rule",
        [*check, tree.name],
        {"EG101 alone": [*check, "--select", "EG101", tree.name]},
        str(tree.parent),
        arguments.rounds,
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "clean.py").write_text("def f(x):\n    return x + 1\n", encoding="utf-8")
        compare(
            "one file without a hit",
            [*check, "clean.py"],
            {"python -c pass": [sys.executable, "-c", "pass"]},
            folder,
            max(15, arguments.rounds),
        )


if __name__ == "__main__":
    main()
