"""Whether there is a torch to work with. Nothing is imported for the answer."""

from __future__ import annotations

import importlib.util
import sys


def has_torch() -> bool:
    """Whether torch is installed, as far as can be told before it is imported; not if something blocks it."""
    return _is_found("torch")


def is_stand_in() -> bool:
    """Whether what is imported as torch is something else, such as a mock."""
    return not isinstance(getattr(sys.modules.get("torch"), "Tensor", None), type)


def lacks_executing() -> bool:
    """Whether the other package that tracing needs is missing."""
    return not _is_found("executing")


def _is_found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):  # something else stands in its place
        return False
