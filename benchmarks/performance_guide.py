"""Measures the tables of docs/performance-guide.md anew, each by the command that stands above it.

    python benchmarks/performance_guide.py [--bytes] [--only WORD] [PATH]

``--bytes`` leaves out what is timed: the other tables are the same on every machine with the same torch. ``--only``
measures the tables whose command has this word. All of it takes about a quarter of an hour on two cores, and needs timm;
nothing else should run meanwhile.

A table stands between ``<!-- measured -->`` and ``<!-- /measured -->``: its command in a ``sh`` block, and what that
prints.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "performance-guide.md"
TABLE = re.compile(r"<!-- measured -->\n```sh\n(?P<command>[^\n]+)\n```\n.*?<!-- /measured -->", re.DOTALL)


def measured(command: str) -> str:
    """The table of a command, with what has to stand around it."""
    words = shlex.split(command)
    assert words[:2] == ["esper-guard", "profile"], command
    program = [sys.executable, "-m", "esper_guard", *words[1:]]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    shown = done.stdout.removeprefix(f"```sh\n{command}\n```\n").strip()
    return f"<!-- measured -->\n```sh\n{command}\n```\n\n{shown}\n<!-- /measured -->"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", nargs="?", type=Path, default=GUIDE, metavar="PATH")
    parser.add_argument("--bytes", action="store_true", help="only tables that are not timed")
    parser.add_argument("--only", default="", metavar="WORD", help="only tables whose command has it")
    arguments = parser.parse_args()

    def renewed(table: re.Match[str]) -> str:
        command = table["command"]
        if arguments.only not in command or (arguments.bytes and "--no-time" not in command):
            return table[0]
        print(command, file=sys.stderr)
        return measured(command)

    before = arguments.path.read_text(encoding="utf-8")
    arguments.path.write_text(TABLE.sub(renewed, before), encoding="utf-8")


if __name__ == "__main__":
    main()
