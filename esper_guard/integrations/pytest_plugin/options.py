"""The options, each with an ini twin of the same name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from esper_guard.nearest import did_you_mean

LEVELS = ("off", "dispatch", "deep")
KINDS = ("copy", "loss", "ghost")
_HAZARDS = ("raise", "off")
_ON = ("1", "true", "yes", "on")
_OFF = ("0", "false", "no", "off", "")

_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "layout_trace": (
        "trace copies between memory formats and losses of channels_last in every test; deep also sees copies "
        + "in kernels (default: off; dispatch if --layout-fail-on or --layout-baseline is given)",
        {"metavar": "{off,dispatch,deep}"},
    ),
    "layout_report": (
        "what to do with the traces, several with commas or by repeating it: term, json:PATH (default: term)",
        {"metavar": "REPORT", "action": "append"},
    ),
    "layout_fail_on": (
        "fail tests with these, several with commas: copy, loss, ghost (default with a baseline: copy,loss)",
        {"metavar": "KINDS"},
    ),
    "layout_baseline": (
        "known copies and losses: only others, or more of them in one test, fail a test",
        {"metavar": "PATH"},
    ),
    "layout_update": (
        "write what was found to the baseline, and fail no test for it",
        {"action": "store_true"},
    ),
    "layout_hazards": (
        "raise an exception instead of a native crash or wrong gradients that esper-guard knows of (default: raise)",
        {"metavar": "{raise,off}"},
    ),
    "no_layout": ("switch this plugin off: tracing, markers, hazards", {"action": "store_true"}),
}


@dataclass(frozen=True)
class Settings:
    """What was asked for, checked."""

    enabled: bool = False
    level: str = "off"
    """Of every test; marked ones are traced at least at the dispatch level."""
    fail_on: tuple[str, ...] = ()
    baseline: Path | None = None
    update: bool = False
    hazards: bool = False
    terminal: bool = True
    json: tuple[Path, ...] = ()
    root: Path = Path()
    worker: bool = False
    """Whether this process only runs tests for another one (pytest-xdist)."""


def add_options(parser: pytest.Parser) -> None:
    """Declare them."""
    group = parser.getgroup("esper-guard", "hidden tensor copies and lost memory formats (esper-guard)")
    for name, (help_text, keywords) in _OPTIONS.items():
        group.addoption(f"--{name.replace('_', '-')}", dest=name, default=None, help=help_text, **keywords)
        parser.addini(name, f"as --{name.replace('_', '-')}: {help_text}", default="")


def settings_of(config: pytest.Config) -> Settings:
    """Read options, or else their ini twins.

    Raises:
        pytest.UsageError: one has a value that is not allowed; the message says where it stands.
    """
    if _flag(config, "no_layout"):
        return Settings()
    root, here = config.rootpath, config.invocation_params.dir
    worker = hasattr(config, "workerinput")
    baseline = _path(config, "layout_baseline", root, here)
    kinds = _several(config, "layout_fail_on", KINDS)
    update = _flag(config, "layout_update")
    if update and baseline is None:
        raise pytest.UsageError("--layout-update writes a baseline: name it with --layout-baseline=PATH")
    if baseline is not None and not update and not baseline.is_file():
        raise pytest.UsageError(f"there is no layout baseline {baseline}: write it with --layout-update")
    if baseline is not None and not kinds:
        kinds = ("copy", "loss")
    level = _one(config, "layout_trace", LEVELS) or ("dispatch" if kinds else "off")
    terminal, files = _reports(config, root, here)
    return Settings(
        enabled=True,
        level=level,
        fail_on=kinds,
        baseline=baseline,
        update=update,
        hazards=_one(config, "layout_hazards", _HAZARDS) != "off",
        terminal=terminal,
        json=files,
        root=root,
        worker=worker,
    )


def _given(config: pytest.Config, name: str) -> tuple[Any, str]:
    """A value, and where it stands."""
    option = config.getoption(name)
    if option is not None:
        return option, f"--{name.replace('_', '-')}"
    return config.getini(name), f"{config.inipath or 'the ini file'}: {name}"


def _flag(config: pytest.Config, name: str) -> bool:
    value, where = _given(config, name)
    if isinstance(value, bool):
        return value
    if value.strip().lower() not in _ON + _OFF:
        raise pytest.UsageError(f"{where} is true or false, not '{value}'")
    return value.strip().lower() in _ON


def _one(config: pytest.Config, name: str, allowed: tuple[str, ...]) -> str | None:
    value, where = _given(config, name)
    text: str = value.strip()
    if text and text not in allowed:
        raise pytest.UsageError(
            f"{where} is {' or '.join(allowed)}, not '{text}'{did_you_mean(text, allowed)}"
        )
    return text or None


def _several(config: pytest.Config, name: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    value, where = _given(config, name)
    found = tuple(dict.fromkeys(value.replace(",", " ").split()))
    for text in found:
        if text not in allowed:
            raise pytest.UsageError(
                f"{where} knows {', '.join(allowed)}, not '{text}'{did_you_mean(text, allowed)}"
            )
    return found


def _path(config: pytest.Config, name: str, root: Path, here: Path) -> Path | None:
    """From the command line relative to the current folder, from a file relative to the root, as pytest's own are."""
    value, _ = _given(config, name)
    if not value.strip():
        return None
    path: Path = (here if config.getoption(name) is not None else root) / value.strip()
    setattr(config.option, name, str(path))  # for workers, which may run elsewhere
    return path


def _reports(config: pytest.Config, root: Path, here: Path) -> tuple[bool, tuple[Path, ...]]:
    value, where = _given(config, "layout_report")
    given = value if isinstance(value, list) else value.splitlines()
    texts = [text.strip() for line in given for text in line.split(",") if text.strip()]
    folder = here if isinstance(value, list) else root
    files: list[Path] = []
    for text in texts:
        kind, _, path = text.partition(":")
        if kind == "json" and path:
            files.append(folder / path)
        elif text != "term":
            raise pytest.UsageError(f"{where} knows term and json:PATH, not '{text}'")
    return not texts or "term" in texts, tuple(files)
