"""A trace as one HTML file: which line copies how much, and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from esper_guard.trace.layout_trace import LayoutTrace

__all__ = ["NEEDS", "has_html", "render_html", "write_html"]

NEEDS: Final = "an HTML report needs jinja2, pygments and markdown-it-py: pip install 'esper-guard[html]'"


def write_html(
    trace: LayoutTrace,
    path: str | os.PathLike[str],
    before: LayoutTrace | None = None,
    title: str | None = None,
) -> Path:
    """Write the report, as a whole or not at all; see `render_html`.

    ``{rank}`` and ``{pid}`` in the path are replaced as in `LayoutTrace.save`.

    Returns:
        The path that was written.

    Raises:
        ModuleNotFoundError: a package that it needs is not installed; the message says how to install it.
        OSError: it can't be written.
    """
    from esper_guard.atomic import write_atomically
    from esper_guard.trace.saved import path_of

    target = path_of(trace, path)
    page = render_html(trace, before, title)
    write_atomically(target, page.encode("utf-8", "backslashreplace"))
    return target


def render_html(trace: LayoutTrace, before: LayoutTrace | None = None, title: str | None = None) -> str:
    """The report: a page that loads nothing else, the same for the same traces and sources.

    Args:
        trace: what to show. Its sources are taken from it, or else read from disk.
        before: a trace of an earlier run to compare with. Of traces of different levels, copies inside kernels are
            not compared.
        title: of the page.

    Raises:
        ModuleNotFoundError: a package that it needs is not installed; the message says how to install it.
    """
    if not has_html():
        raise ModuleNotFoundError(NEEDS)
    from esper_guard.report.html.page import render

    return render(trace, before, title or "Layout copies")


def has_html() -> bool:
    """Whether the packages are installed that a report needs."""
    from importlib.util import find_spec

    try:
        return all(find_spec(name) is not None for name in ("jinja2", "pygments", "markdown_it"))
    except ValueError:  # a module put out of reach on purpose
        return False
