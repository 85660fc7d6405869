"""The options, each with an ini twin of the same name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest

from esper_guard.integrations.pytest_plugin.torch_here import has_torch, lacks_executing
from esper_guard.nearest import did_you_mean

if TYPE_CHECKING:
    from esper_guard.trace.baseline import Baseline

MARKER = "memory_format"
LEVELS = ("off", "dispatch", "deep")
KINDS = ("copy", "loss", "ghost")
_HAZARDS = ("raise", "off")
_LOOKING = ("help", "version", "markers", "showfixtures", "show_fixtures_per_test", "collectonly")
"""Options with which no test runs."""


class _Option(NamedTuple):
    help: str
    keywords: dict[str, Any]
    type: Literal["string", "bool", "linelist"] = "string"


_OPTIONS = {
    "layout_trace": _Option(
        "trace copies between memory formats and losses of channels_last in every test; deep also sees copies "
        + "in kernels (default: off; dispatch if --layout-fail-on, --layout-baseline or a file of --layout-report is given)",
        {"metavar": "{off,dispatch,deep}"},
    ),
    "layout_report": _Option(
        "what to do with the traces, several with commas or by repeating it: term, json:PATH, html:PATH (default: term)",
        {"metavar": "REPORT", "action": "append"},
        "linelist",
    ),
    "layout_fail_on": _Option(
        "fail tests with these, several with commas: copy, loss, ghost (default with a baseline: copy,loss)",
        {"metavar": "KINDS"},
        "linelist",
    ),
    "layout_baseline": _Option(
        "known copies and losses: only others, or more of them in one test, fail a test", {"metavar": "PATH"}
    ),
    "layout_update": _Option(
        "write what was found to the baseline, and fail no test for it", {"action": "store_true"}, "bool"
    ),
    "layout_hazards": _Option(
        "raise an exception instead of a native crash or wrong gradients that esper-guard knows of (default: raise)",
        {"metavar": "{raise,off}"},
    ),
    "no_layout": _Option(
        "switch this plugin off: tracing, markers, hazards", {"action": "store_true"}, "bool"
    ),
}


class Settings(NamedTuple):
    """What was asked for, checked."""

    enabled: bool = False
    level: str = "off"
    """Of every test; marked ones are traced at least at the dispatch level."""
    fail_on: tuple[str, ...] = ()
    baseline: Path | None = None
    known: Baseline | None = None
    """What the baseline holds."""
    update: bool = False
    hazards: bool = False
    terminal: bool = True
    json: tuple[Path, ...] = ()
    html: tuple[Path, ...] = ()
    root: Path = Path()
    worker: bool = False
    """Whether this process only runs tests for another one (pytest-xdist)."""


def add_options(parser: pytest.Parser) -> None:
    """Declare them."""
    group = parser.getgroup("esper-guard", "hidden tensor copies and lost memory formats (esper-guard)")
    for name, option in _OPTIONS.items():
        group.addoption(_flag_of(name), dest=name, default=None, help=option.help, **option.keywords)
        default: Any = {"string": "", "bool": False, "linelist": []}[option.type]
        parser.addini(name, f"as {_flag_of(name)}: {option.help}", type=option.type, default=default)


def settings_of(config: pytest.Config) -> Settings:
    """Read options, or else their ini twins.

    Raises:
        pytest.UsageError: one has a value that is not allowed; the message says where it stands.
    """
    if _bool(config, "no_layout"):
        return Settings()
    update = _bool(config, "layout_update")
    baseline = _path(config, "layout_baseline")
    kinds = _kinds(config)
    if update and baseline is None:
        raise pytest.UsageError("--layout-update writes a baseline: name it with --layout-baseline=PATH")
    if baseline is not None and not kinds:
        kinds = ("copy", "loss")
    terminal, json, html = _reports(config)
    level = _one(config, "layout_trace", LEVELS) or ("dispatch" if kinds or json or html else "off")
    if level == "off":
        _check_off(config, bool(json or html))
    elif has_torch() and lacks_executing():
        raise pytest.UsageError("tracing layouts needs executing: pip install executing")
    looking = any(config.getoption(name, False) for name in _LOOKING)
    if looking or level == "off":
        baseline, update, json, html = None, False, (), ()
    if html:
        _check_html()
    return Settings(
        enabled=True,
        level=level,
        fail_on=kinds,
        baseline=baseline,
        known=None if baseline is None else _known(baseline, update),
        update=update,
        hazards=_one(config, "layout_hazards", _HAZARDS) != "off",
        terminal=terminal,
        json=json,
        html=html,
        root=config.rootpath,
        worker=hasattr(config, "workerinput"),
    )


def _flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_option(config: pytest.Config, name: str) -> bool:
    return config.getoption(name) is not None


def _given(config: pytest.Config, name: str) -> Any:
    option = config.getoption(name)
    if option is not None:
        return option
    try:
        return config.getini(name)
    except (ValueError, TypeError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{_where(config, name)}: {error}") from error


def _where(config: pytest.Config, name: str) -> str:
    """Where a value stands."""
    if _is_option(config, name):
        return _flag_of(name)
    if any(text.partition("=")[0] == name for text in config.getoption("override_ini") or ()):
        return f"-o {name}"
    return f"{config.inipath or 'the ini file'}: {name}"


def _folder(config: pytest.Config, name: str) -> Path:
    """What paths are relative to: the current folder, or in a file that file's, as pytest's own are."""
    if _is_option(config, name):
        return config.invocation_params.dir
    return config.rootpath if config.inipath is None else config.inipath.parent


def _bool(config: pytest.Config, name: str) -> bool:
    return bool(_given(config, name))


def _one(config: pytest.Config, name: str, allowed: tuple[str, ...]) -> str | None:
    text = str(_given(config, name)).strip()
    if text and text not in allowed:
        where = _where(config, name)
        raise pytest.UsageError(
            f"{where} is {' or '.join(allowed)}, not '{text}'{did_you_mean(text, allowed)}"
        )
    return text or None


def _several(config: pytest.Config, name: str) -> list[str]:
    value = _given(config, name)
    lines = [value] if isinstance(value, str) else value
    return [text.strip() for line in lines for text in line.split(",") if text.strip()]


def _kinds(config: pytest.Config) -> tuple[str, ...]:
    found = tuple(kind for text in _several(config, "layout_fail_on") for kind in text.split())
    for kind in found:
        if kind not in KINDS:
            where = _where(config, "layout_fail_on")
            raise pytest.UsageError(
                f"{where} knows {', '.join(KINDS)}, not '{kind}'{did_you_mean(kind, KINDS)}"
            )
    return tuple(dict.fromkeys(found))


def _check_off(config: pytest.Config, to_files: bool) -> None:
    """What the command line asks for can't be had without tracing; what a file asks for is switched off."""
    needing = ["layout_fail_on", "layout_baseline", "layout_update", *(["layout_report"] if to_files else [])]
    for name in needing:
        if _is_option(config, name):
            raise pytest.UsageError(f"{_flag_of(name)} needs a trace, and --layout-trace is off")


def _path(config: pytest.Config, name: str) -> Path | None:
    text = str(_given(config, name)).strip()
    return _folder(config, name) / text if text else None


def _reports(config: pytest.Config) -> tuple[bool, tuple[Path, ...], tuple[Path, ...]]:
    """Whether to write to the terminal, and the files to write as JSON and as HTML."""
    name = "layout_report"
    texts = _several(config, name)
    files: dict[str, list[Path]] = {"json": [], "html": []}
    for text in texts:
        kind, _, path = text.partition(":")
        if kind in files and path:
            files[kind].append(_folder(config, name) / path)
        elif text != "term":
            raise pytest.UsageError(
                f"{_where(config, name)} knows term, json:PATH and html:PATH, not '{text}'"
            )
    return not texts or "term" in texts, tuple(files["json"]), tuple(files["html"])


def _check_html() -> None:
    from esper_guard.report.html import NEEDS, has_html

    if not has_html():
        raise pytest.UsageError(NEEDS)


def _known(path: Path, update: bool) -> Baseline:
    from esper_guard.trace.baseline import Baseline

    if not path.is_file():
        if update:
            return Baseline(path.parent)
        raise pytest.UsageError(f"there is no layout baseline {path}: write it with --layout-update")
    try:
        return Baseline.load(path)
    except (OSError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error
