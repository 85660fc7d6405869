"""What pytest loads: options, the marker, the fixtures. The work is done by plugins that are registered if asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from esper_guard.integrations.pytest_plugin.options import MARKER, add_options, settings_of

if TYPE_CHECKING:
    import torch

    from esper_guard.trace import LayoutTrace

_MARKER_HELP = (
    "memory_format(format, *, max_copies, max_bytes, ignore): fail the test if it leaves the memory format (such as "
    "'channels_last'), or if it makes more copies between formats, or copies more bytes ('2 MiB'), than these; `ignore` "
    "is a list of patterns of files, lines, modules and operators that don't count. The fixture of the same name is "
    "restricted to the format."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER_HELP)
    settings = settings_of(config)
    if not settings.enabled:
        return
    from esper_guard.integrations.pytest_plugin.collection import Collection

    config.pluginmanager.register(Collection(settings), "esper-guard-collection")
    if settings.hazards:
        from esper_guard.integrations.pytest_plugin.hazards import Hazards

        config.pluginmanager.register(Hazards(), "esper-guard-hazards")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Restrict the fixture to the marker's format."""
    if MARKER in metafunc.fixturenames and _is_ours(metafunc):
        name = _format_of(metafunc.definition)
        if name is not None:
            restricted = pytest.mark.parametrize(MARKER, [name], indirect=True)
            metafunc.definition.add_marker(restricted)


@pytest.fixture(params=["contiguous_format", "channels_last"])
def memory_format(request: pytest.FixtureRequest) -> torch.memory_format:
    """`torch.contiguous_format` and `torch.channels_last`: the test runs with both, or with the marker's."""
    wanted = _format_of(request.node)
    if wanted not in (None, request.param):  # the marker is one parameter's
        pytest.skip(f"the marker restricts it to {wanted}")
    found: Any = getattr(pytest.importorskip("torch"), request.param)
    return found  # type: ignore[no-any-return]


@pytest.fixture
def layout_trace(request: pytest.FixtureRequest) -> LayoutTrace:
    """The trace of this test's body (`esper_guard.LayoutTrace`), which fills as the test runs."""
    pytest.importorskip("torch")
    collection: Any = request.config.pluginmanager.get_plugin("esper-guard-collection")
    if collection is None:
        pytest.skip("layouts are not traced: --no-layout")
    trace: LayoutTrace = collection.trace_of(request.node)
    return trace


def _format_of(node: Any) -> str | None:
    marker = node.get_closest_marker(MARKER)
    if marker is None:
        return None
    from esper_guard.integrations.pytest_plugin.marker import Marked, MarkerError

    try:
        return Marked.of(marker).format
    except MarkerError:
        return None  # it is reported for what is collected


def _is_ours(metafunc: pytest.Metafunc) -> bool:
    """Whether the fixture is the one above, and not parametrised by the test."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
        if MARKER in (names.replace(",", " ").split() if isinstance(names, str) else names):
            return False
    definitions = metafunc._arg2fixturedefs.get(MARKER, ())
    return bool(definitions) and definitions[-1].func.__module__ == __name__
