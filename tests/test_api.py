"""The public names: found lazily, and the two halves apart."""

from __future__ import annotations

import importlib

import pytest

import esper_guard
from tests.conftest import run_python

HOMES = {
    "esper_guard.runtime.formats": ["layout_of"],
    "esper_guard.runtime.isolation": [
        "isolate",
        "straight_through",
        "blend_add",
        "blend_multiply",
        "blend_gate",
    ],
    "esper_guard.runtime.seed_slot": ["SeedSlot", "SeedStage"],
    "esper_guard.runtime.tracing": ["trace_layouts"],
    "esper_guard.runtime.predict": ["predict_layouts"],
    "esper_guard.runtime.equivalence": ["assert_layout_equivalent"],
    "esper_guard.runtime.ddp": ["check_ddp"],
    "esper_guard.trace": ["LayoutTrace", "LayoutEvent", "load_trace", "merge"],
    "esper_guard.runtime.hazards": ["hazard_guard", "harden", "unharden", "HazardError"],
}


@pytest.mark.parametrize(("home", "name"), [(home, name) for home, names in HOMES.items() for name in names])
def test_every_name_is_importable_from_both_places(home: str, name: str) -> None:
    assert getattr(esper_guard, name) is getattr(importlib.import_module(home), name)
    assert name in dir(esper_guard)
    assert name in esper_guard.__all__


def test_every_public_name_resolves() -> None:
    for name in esper_guard.__all__:
        assert getattr(esper_guard, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'SeedSlott'"):
        _ = esper_guard.SeedSlott


def test_importing_the_package_imports_neither_half() -> None:
    done = run_python("import sys, esper_guard; print({'torch', 'libcst'} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_the_runtime_half_never_imports_libcst() -> None:
    done = run_python(
        "import sys; from esper_guard import *; print('libcst' in sys.modules, 'torch' in sys.modules)"
    )
    assert done.stdout.strip() == "False True", done.stderr


def test_without_torch_the_error_says_how_to_get_it() -> None:
    done = run_python(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError('No module named torch', name='torch')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import esper_guard; esper_guard.SeedSlot"
    )
    assert done.stderr.strip().endswith("esper_guard.SeedSlot needs torch: pip install 'esper-guard[torch]'")
