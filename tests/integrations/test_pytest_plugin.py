"""The pytest plugin, in real pytest runs: serial, with pytest-xdist, and with torch out of reach."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import esper_guard.integrations.annotated
import esper_guard.integrations.pytest_plugin.tracing
import esper_guard.runtime.hazards
import esper_guard.runtime.tracing  # noqa: F401
from esper_guard import load_trace
from tests.conftest import ROOT, run_python

MODEL = """
import torch
from torch import nn

class Slot(nn.Module):
    def forward(self, x):
        return x.contiguous().detach()

class Soft(nn.Module):
    def forward(self, x):
        return x.softmax(1)

class Ghost(nn.Module):
    def forward(self, x):
        return nn.functional.max_pool2d(x[0].unsqueeze(0), 2, 1)
"""
EMPTY_BASELINE = '{"format": "esper-guard layout baseline", "version": 1, "entries": []}'
TESTS = """
import pytest, torch
from torch import nn
from model import Ghost, Slot, Soft

def images():
    return torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)

@pytest.fixture
def x():
    return images()

def test_slot(x):
    Slot()(x)

@pytest.mark.parametrize("times", [1, 2])
def test_twice(x, times):
    for _ in range(times):
        Slot()(x)

def test_soft(x):
    Soft()(x)

def test_ghost(x):
    Ghost()(x)

def test_clean(x):
    nn.Conv2d(4, 4, 1)(x)
"""
CRASH = """
import torch

def images():
    return torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)

def test_group_norm():
    torch.nn.GroupNorm(2, 4)(images()).sum().backward()

def test_after():
    pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with a model, and settings that leave this process alone."""
    for name in ("PYTEST_ADDOPTS", "COLUMNS", "CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini("[pytest]\nlayout_hazards = off\n")
    pytester.makepyfile(model=MODEL)
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    monkeypatch.syspath_prepend(pytester.path)
    return pytester


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", *arguments)


def run_parallel(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "no:cacheprovider", "-n", "2", *arguments)


def text_of(result: pytest.RunResult) -> str:
    return "\n".join([*result.outlines, *result.errlines])


class TestMarker:
    def test_the_format_is_kept(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            TESTS
            + """
@pytest.mark.memory_format("channels_last")
class TestMarked:
    def test_marked_slot(self, x): Slot()(x)
    def test_marked_soft(self, x): Soft()(x)
    def test_marked_clean(self, x): nn.Conv2d(4, 4, 1)(x)
    def test_its_own_conversions(self):
        x = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)
        assert nn.Conv2d(4, 4, 1)(x).contiguous().is_contiguous()
"""
        )
        result = run(project, "-k", "TestMarked")
        result.assert_outcomes(failed=2, passed=2, deselected=6)
        result.stdout.fnmatch_lines(
            [
                "channels_last was left once: model.py:*",
                "  model.py:6 (Slot): explicit, 288 B, once: aten.clone.default channels_last -> nchw, 2x4x3x3 float32",
                "channels_last was left once: model.py:*",
                "  model.py:10 (Soft): loss, once: aten._softmax.default channels_last -> nchw, 2x4x3x3 float32",
            ]
        )

    def test_bounds(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            TESTS
            + """
mark = pytest.mark.memory_format
@mark(max_copies=1)
def test_a(x): Slot()(x)
@mark(max_copies=0)
def test_b(x): Slot()(x)
@mark(max_bytes="0.3 KiB")
def test_c(x): Slot()(x)
@mark(max_bytes=287)
def test_d(x): Slot()(x)
@mark("channels_last", max_copies=0, ignore=["model.py:6"])
def test_e(x): Slot()(x)
@mark(format=torch.channels_last, max_copies=0, ignore=["aten.clone.*"])
def test_f(x): Slot()(x)
@mark("contiguous")
def test_g(x): Slot()(x)
@mark("contiguous_format")
def test_h(): nn.Sequential(nn.Conv2d(4, 4, 1), Convert())(torch.randn(2, 4, 3, 3))
class Convert(nn.Module):
    def forward(self, x): return x.to(memory_format=torch.channels_last)
"""
        )
        result = run(
            project,
            "-v",
            "-k",
            "test_a or test_b or test_c or test_d or test_e or test_f or test_g or test_h",
        )
        failed = set(re.findall(r"test_(\w) FAILED", text_of(result)))
        assert failed == {"b", "d", "h"}
        result.stdout.fnmatch_lines(
            ["1 layout copy, at most 0 allowed", "288 B copied, at most 287 B allowed"]
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("'channels_last', max_copy=0", "there is no argument 'max_copy' *did you mean 'max_copies'?"),
            ("'chanels_last'", "'chanels_last' is no memory format *did you mean 'channels_last'?"),
            ("max_bytes='2 MiBs'", "max_bytes: '2 MiBs' is no size*"),
            ("max_bytes=-1", "max_bytes: a size can't be negative*"),
            ("max_copies='1'", "max_copies is a number of copies, not '1'"),
            ("max_copies=-1", "max_copies is a number of copies, not -1"),
            ("'channels_last', 'nchw'", "it takes one format*"),
            ("", "it expects nothing*"),
            ("'nchw', ignore='model.py'", "ignore is a list of patterns, not 'model.py'"),
            ("'nchw', ignore=[3]", "ignore is a list of patterns*"),
            ("'nchw', ignore=(p for p in ())", "ignore is a list of patterns*"),
            ("None", "it expects nothing*"),
            ("ignore=['model.py']", "it expects nothing*"),
            ("torch.preserve_format", "'preserve_format' is no memory format*"),
        ],
    )
    def test_wrong_arguments_are_a_collection_error(
        self, project: pytest.Pytester, arguments: str, message: str
    ) -> None:
        project.makepyfile(
            f"""
            import pytest, torch
            class TestGroup:
                @pytest.mark.memory_format({arguments})
                @pytest.mark.parametrize("a", [1, 2])
                def test_marked(self, a): pass
            """
        )
        result = run(project)
        result.assert_outcomes(errors=1)
        assert result.ret == pytest.ExitCode.INTERRUPTED
        name = "test_wrong_arguments_are_a_collection_error.py::TestGroup::test_marked"
        result.stdout.fnmatch_lines([f"{name}: @pytest.mark.memory_format: {message}"])
        assert text_of(result).count("@pytest.mark.memory_format:") == 1

    def test_unittest_classes(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            """
            import pytest, torch, unittest
            from model import Slot
            class TestOld(unittest.TestCase):
                @pytest.mark.memory_format("channels_last")
                def test_marked(self): Slot()(torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last))
            """
        )
        run(project).assert_outcomes(failed=1)

    def test_a_test_that_fails_by_itself(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            TESTS
            + """
@pytest.mark.memory_format("channels_last")
def test_own(x):
    Slot()(x)
    assert False, "my own"
@pytest.mark.memory_format("channels_last")
@pytest.mark.xfail(strict=True)
def test_expected(x): Slot()(x)
@pytest.mark.memory_format("channels_last")
def test_skipped(x): pytest.skip("not now")
"""
        )
        result = run(project, "-k", "own or expected or skipped")
        result.assert_outcomes(failed=1, xfailed=1, skipped=1, deselected=6)
        result.stdout.fnmatch_lines(["*AssertionError: my own*"])

    def test_what_the_test_does_itself(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            """
            import functools, hypothesis, pytest, torch, unittest
            from torch import nn
            from model import Slot
            pytestmark = pytest.mark.memory_format("channels_last", max_copies=0)
            CL = torch.channels_last
            convolution = nn.Conv2d(4, 4, 1).to(memory_format=CL)

            class TestMethods:
                def test_method(self):
                    assert [x.contiguous() for x in [torch.randn(2, 4, 3, 3).to(memory_format=CL)]]
                @staticmethod
                def test_static():
                    (lambda x: x.contiguous())(torch.randn(2, 4, 3, 3).to(memory_format=CL))

            class TestOld(unittest.TestCase):
                def test_old(self):
                    torch.randn(2, 4, 3, 3).to(memory_format=CL).contiguous().sum()

            def wrapped(function):
                @functools.wraps(function)
                def wrapper(): function()
                return wrapper

            @wrapped
            def test_wrapped():
                torch.randn(2, 4, 3, 3).to(memory_format=CL).contiguous().sum()

            def test_gradients_of_inputs():
                x = torch.randn(2, 4, 3, 3, requires_grad=True)
                convolution(x.to(memory_format=CL)).square().sum().backward()
                assert x.grad is not None

            def test_comparisons():
                x = torch.randn(2, 4, 3, 3)
                ours, reference = convolution(x.to(memory_format=CL)), convolution(x).contiguous()
                torch.testing.assert_close(ours, reference)
                assert torch.allclose(ours, reference, atol=1e-5)
                assert (ours - reference).abs().max() < 1e-5
                assert ((ours == reference) | (ours != reference)).all()

            def made():
                return torch.randn(2, 4, 3, 3).to(memory_format=CL)

            def test_helpers():
                convolution(made())

            @hypothesis.given(hypothesis.strategies.integers(1, 2))
            def test_generated(number):
                convolution(torch.randn(number, 4, 3, 3).to(memory_format=CL))

            class TestSetUp(unittest.TestCase):
                def setUp(self): self.x = torch.randn(2, 4, 3, 3).to(memory_format=CL)
                def test_set_up(self): convolution(self.x)

            def test_a_module_of_its_own():
                class Own(nn.Module):
                    def forward(self, x): return x.contiguous()
                Own()(made())

            def test_the_backward_of_a_module():
                model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GLU(1)).to(memory_format=CL)
                out = model(made())
                out.backward(torch.randn(out.shape).to(memory_format=CL))

            def test_what_it_calls():
                Slot()(torch.randn(2, 4, 3, 3).to(memory_format=CL))

            def test_what_it_loses():
                convolution(torch.randn(2, 4, 3, 3).to(memory_format=CL)).softmax(1)
            """
        )
        result = run(project, "-v")
        assert set(re.findall(r"::(\S+) FAILED", text_of(result))) == {
            "test_a_module_of_its_own",
            "test_the_backward_of_a_module",
            "test_what_it_calls",
            "test_what_it_loses",
        }

    def test_doctests(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            test_docs='''
            import pytest
            pytestmark = pytest.mark.memory_format("channels_last", max_copies=0)
            def documented():
                """
                >>> import torch
                >>> x = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last).contiguous()
                """
            '''
        )
        run(project, "--doctest-modules").assert_outcomes(passed=1)

    def test_added_by_a_conftest(self, project: pytest.Pytester) -> None:
        project.makeconftest(
            """
            import pytest
            def pytest_collection_modifyitems(items):
                for item in items:
                    item.add_marker(pytest.mark.memory_format("channels_last", **{"max_copies": 0}))
            """
        )
        project.makepyfile(TESTS)
        run(project).assert_outcomes(passed=1, failed=5)
        project.makeconftest((project.path / "conftest.py").read_text().replace("max_copies", "max_copy"))
        result = run(project)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "there is no argument 'max_copy'" in text_of(result)

    def test_subtests_are_part_of_their_test(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            TESTS
            + """
import unittest
class TestParts(unittest.TestCase):
    def test_parts(self):
        for number in range(3):
            with self.subTest(number=number):
                Slot()(images())
                assert number != 1
"""
        )
        result = run(project, "--layout-trace=dispatch", "-k", "parts")
        result.stdout.fnmatch_lines(["6 layout copies, *; 1 of 1 traced tests"])

    def test_it_is_declared(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            "import pytest\npytestmark = pytest.mark.memory_format('nchw')\ndef test_a(): pass"
        )
        run(project, "--strict-markers").assert_outcomes(passed=1)
        run(project, "--markers").stdout.fnmatch_lines(["@pytest.mark.memory_format(format, ?, max_copies*"])


class TestFixtures:
    def test_layout_trace(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            TESTS
            + """
def test_copies(layout_trace, x):
    assert not layout_trace.copies
    Slot()(x)
    assert [event.location.rsplit("/")[-1] for event in layout_trace.copies] == ["model.py:6"]
    layout_trace.assert_max(copies=1)

def test_again(x, layout_trace):
    Soft()(x)
    layout_trace.assert_max(losses=0)
"""
        )
        result = run(project, "-k", "copies or again")
        result.assert_outcomes(passed=1, failed=1, deselected=6)
        result.stdout.fnmatch_lines(["*1 format loss, at most 0 allowed*"])

    def test_memory_format(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            """
            import pytest, torch
            def test_both(memory_format): assert isinstance(memory_format, torch.memory_format)
            @pytest.mark.memory_format("channels_last")
            def test_one(memory_format): assert memory_format is torch.channels_last
            @pytest.mark.memory_format(torch.channels_last_3d)
            def test_other(memory_format): assert memory_format is torch.channels_last_3d
            @pytest.mark.memory_format(max_copies=0)
            def test_bounded(memory_format): pass
            @pytest.mark.parametrize("memory_format", [3])
            def test_own(memory_format): assert memory_format == 3
            """
        )
        result = run(project, "-v")
        result.assert_outcomes(passed=7)
        names = re.findall(r"::(\S+) PASSED", text_of(result))
        assert names == [
            "test_both[contiguous_format]",
            "test_both[channels_last]",
            "test_one[channels_last]",
            "test_other[channels_last_3d]",
            "test_bounded[contiguous_format]",
            "test_bounded[channels_last]",
            "test_own[3]",
        ]

    def test_with_a_marker_and_something_of_the_same_name(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            test_a="""
            import pytest, torch
            @pytest.mark.memory_format("channels_last")
            @pytest.mark.parametrize("a, memory_format", [(1, torch.channels_last)])
            def test_own(a, memory_format): assert memory_format is torch.channels_last
            @pytest.mark.parametrize("a", [1, pytest.param(2, marks=pytest.mark.memory_format("channels_last"))])
            def test_some(a, memory_format): assert a == 1 or memory_format is torch.channels_last
            """,
            test_b="""
            import pytest, torch
            @pytest.fixture(params=[torch.channels_last, torch.contiguous_format])
            def memory_format(request): return request.param
            @pytest.mark.memory_format("channels_last")
            def test_fixture(memory_format): assert isinstance(memory_format, torch.memory_format)
            """,
        )
        run(project).assert_outcomes(passed=6, skipped=1)

    def test_a_fixture_of_the_same_name_goes_first(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            """
            import pytest
            @pytest.fixture
            def memory_format(): return "mine"
            def test_mine(memory_format): assert memory_format == "mine"
            """
        )
        run(project).assert_outcomes(passed=1)


class TestTracing:
    def test_a_broken_installation_is_no_silence(self, project: pytest.Pytester) -> None:
        project.makepyfile(executing="raise ImportError('broken')")
        project.makepyfile(test_a=TESTS + "@pytest.mark.memory_format('nchw')\ndef test_marked(x): Slot()(x)")
        result = project.runpytest_subprocess("-p", "no:xdist", "-k", "marked")
        assert "passed" not in result.parseoutcomes()
        assert "broken" in text_of(result)

    def test_passing_markers_print_nothing(self, project: pytest.Pytester) -> None:
        project.makepyfile(TESTS + "@pytest.mark.memory_format('nhwc')\ndef test_marked(x): pass")
        assert "layout copies" not in text_of(run(project))
        assert "layout copies" in text_of(run(project, "-v"))

    def test_off_by_default(self, project: pytest.Pytester) -> None:
        project.makepyfile(TESTS)
        result = run(project)
        result.assert_outcomes(passed=6)
        assert "layout" not in text_of(result)

    def test_the_summary(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        result = run(project, "--layout-trace=dispatch")
        result.assert_outcomes(passed=6)
        result.stdout.fnmatch_lines(
            [
                "*= layout copies =*",
                "4 layout copies, 1.1 KiB; 2 format losses (dispatch level, torch *); 5 of 6 traced tests",
                "",
                "  bytes  copies  losses  line",
                "1.1 KiB       4          model.py:6   return x.contiguous().detach()",
                "    test_a.py::test_slot, test_a.py::test_twice[[]1], test_a.py::test_twice[[]2]",
                "                      1  model.py:10  return x.softmax(1)",
                "    test_a.py::test_soft",
                "                      1  model.py:14  return nn.functional.max_pool2d(x[[]0].unsqueeze(0), 2, 1)",
                "    test_a.py::test_ghost",
            ]
        )

    def test_many_lines_and_tests(self, project: pytest.Pytester) -> None:
        lines = "\n".join("    x.reshape(8, 9)" for _ in range(12))
        project.makepyfile(
            test_a=TESTS + f"@pytest.mark.parametrize('a', range(5))\ndef test_many(a, x):\n{lines}\n"
        )
        short = text_of(run(project, "--layout-trace=dispatch", "-k", "many"))
        assert "and 2 more lines: -v shows them" in short
        assert "and 2 more\n" in short
        assert "more lines" not in text_of(run(project, "--layout-trace=dispatch", "-k", "many", "-v"))

    def test_deep(self, project: pytest.Pytester) -> None:
        project.makepyfile(TESTS)
        run(project, "--layout-trace=deep", "-k", "soft").stdout.fnmatch_lines(
            ["*1 internal copy*deep level*"]
        )

    def test_the_fixtures_of_a_test_are_not_traced(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            TESTS
            + """
@pytest.fixture
def slotted(x):
    yield Slot()(x)
    Slot()(x)

def test_none(slotted): pass
"""
        )
        result = run(project, "--layout-trace=dispatch", "-k", "none")
        result.stdout.fnmatch_lines(["0 layout copies, 0 B; 0 format losses*; 0 of 1 traced tests"])

    def test_tests_that_trace_themselves(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            TESTS
            + """
from esper_guard import hazard_guard, trace_layouts
def test_nested(x):
    with hazard_guard(), trace_layouts() as trace:
        Slot()(x)
    assert len(trace.copies) == 1
"""
        )
        result = run(project, "--layout-trace=dispatch", "-k", "nested")
        result.assert_outcomes(passed=1, deselected=6)
        result.stdout.fnmatch_lines(["1 layout copy, *; 1 of 1 traced tests"])

    @pytest.mark.slow
    @pytest.mark.parametrize("level", ["dispatch", "deep"])
    def test_parallel_totals_are_the_serial_ones(self, project: pytest.Pytester, level: str) -> None:
        project.makepyfile(test_a=TESTS, test_b=TESTS)
        arguments = (f"--layout-trace={level}", "--layout-fail-on=ghost")
        serial = run(project, *arguments, "--layout-report=json:serial.json,term")
        parallel = run_parallel(
            project, *arguments, "--layout-report=json:parallel.json", "--layout-report=term"
        )
        for result in (serial, parallel):
            result.assert_outcomes(passed=10, failed=2)
        one, two = load_trace("serial.json"), load_trace("parallel.json")
        assert one.by_line() == two.by_line() != {}
        assert one.calls == two.calls
        assert one.kernel_copies == two.kernel_copies
        for event in one.events:
            (same,) = [
                other
                for other in two.events
                if (other.location, other.operator, other.kind)
                == (event.location, event.operator, event.kind)
            ]
            assert set(same.tests) == set(event.tests)
            assert (same.count, same.bytes) == (event.count, event.bytes)
        summaries = [
            text_of(result).partition("= layout copies =")[2].partition("trace of")[0].splitlines()[1:]
            for result in (serial, parallel)
        ]
        assert [line for line in summaries[0] if "::" not in line] == [
            line for line in summaries[1] if "::" not in line
        ]

    @pytest.mark.slow
    def test_everything_in_parallel(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            test_a=TESTS
            + """
from esper_guard import expects

@pytest.mark.memory_format("channels_last", max_copies=0)
def test_marked_slot(x): Slot()(x)
@pytest.mark.memory_format("channels_last", max_bytes="1 KiB")
def test_marked_clean(x, memory_format):
    assert memory_format is torch.channels_last
    nn.Conv2d(4, 4, 1)(x)
def test_formats(memory_format): pass
def test_fixture(layout_trace, x):
    Slot()(x)
    layout_trace.assert_max(copies=1)
def test_exceeded(layout_trace, x):
    Slot()(x)
    layout_trace.assert_max(copies=0)
def test_expects(x):
    expects(x="nchw")(lambda x: x)([x])
"""
        )
        for arguments in ((), ("--layout-fail-on=loss",), ("--no-layout",), ("--layout-trace=deep",)):
            serial, parallel = run(project, *arguments), run_parallel(project, *arguments)
            assert serial.parseoutcomes() | {"warnings": 0} == parallel.parseoutcomes() | {"warnings": 0}
            parallel.stdout.fnmatch_lines(
                [
                    "E*MemoryFormatError: test_expects.<locals>.<lambda>(): x[[]0] is channels_last, expected nchw",
                    "E*x[[]0]: shape (2, 4, 3, 3), strides (36, 1, 12, 4), float32 cpu",
                    "E*help: *",
                ]
            )


class TestReport:
    def test_json(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        result = run(project, "--layout-report=json:out/trace.json")
        result.stdout.fnmatch_lines(
            [
                "*= layout copies =*",
                "4 layout copies, 1.1 KiB; 2 format losses (dispatch level, *); 5 of 6 traced tests",
                "trace of 6 tests written to *trace.json",
            ]
        )
        assert "model.py:6" not in text_of(result)
        trace = load_trace(project.path / "out" / "trace.json")
        (copy,) = trace.copies
        assert copy.tests == ("test_a.py::test_slot", "test_a.py::test_twice[1]", "test_a.py::test_twice[2]")
        assert (copy.count, copy.bytes) == (4, 4 * 288)
        shown = run_python(
            "from esper_guard.cli import main; main()", "report", "out/trace.json", cwd=project.path
        )
        assert "model.py:6" in shown.stdout

    def test_html(self, project: pytest.Pytester) -> None:
        pytest.importorskip("jinja2")
        project.makepyfile(test_a=TESTS)
        reports = "--layout-report=term,html:out/report.html,json:out/trace.json"
        result = run(project, reports)
        assert "model.py:6" in text_of(result)
        result.stdout.fnmatch_lines(["report of 6 tests written to *report.html"])
        page = (project.path / "out" / "report.html").read_text(encoding="utf-8")
        assert "return x.contiguous().detach()" in re.sub("<[^>]*>", "", page)
        assert "test_a.py::test_twice[2]" in page
        assert "EG101" in page

    @pytest.mark.slow
    def test_html_in_parallel_is_the_serial_one(self, project: pytest.Pytester) -> None:
        pytest.importorskip("jinja2")
        project.makepyfile(test_a=TESTS)
        project.makeini(
            "[pytest]\nlayout_hazards = off\nlayout_report = html:out/report.html\nlayout_trace = dispatch\n"
        )
        pages = []
        for start in (run, run_parallel):
            start(project).assert_outcomes(passed=6)
            page = project.path / "out" / "report.html"
            pages.append(page.read_text(encoding="utf-8"))
            page.unlink()
        lines = [sorted(re.findall(r'href="(#f[0-9]+-l[0-9]+)"', page)) for page in pages]
        assert lines[0] == lines[1] != []

    def test_html_without_its_packages(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        code = (
            "import sys; sys.modules['jinja2'] = None; import pytest; "
            "sys.exit(pytest.main(['-p', 'no:cacheprovider', '--layout-report=html:report.html']))"
        )
        done = run_python(code, cwd=project.path)
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert "pip install 'esper-guard[html]'" in done.stderr

    def test_a_file_that_cannot_be_written(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        (project.path / "file").touch()
        result = run(project, "--layout-trace=dispatch", "--layout-report=json:file/trace.json")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stdout.fnmatch_lines(["not written: *file*"])

    def test_one_target_that_fails_is_not_all(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        (project.path / "folder").mkdir()
        for more in ((), ("-p", "no:terminal")):
            result = run(
                project, "--layout-trace=dispatch", "--layout-report=json:folder,json:trace.json", *more
            )
            assert result.ret == pytest.ExitCode.USAGE_ERROR
            assert "not written" in text_of(result)
            assert load_trace("trace.json").events

    @pytest.mark.parametrize("argument", ["--collect-only", "--fixtures"])
    def test_looking_overwrites_no_file(self, project: pytest.Pytester, argument: str) -> None:
        project.makepyfile(test_a=TESTS)
        project.makeini(
            "[pytest]\nlayout_hazards = off\nlayout_report = json:trace.json\nlayout_trace = dispatch\n"
        )
        run(project)
        run(project, argument)
        assert load_trace("trace.json").events

    def test_reports_do_not_pile_up(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        project.makeconftest(
            """
            import pytest
            @pytest.hookimpl(trylast=True)
            def pytest_terminal_summary(terminalreporter):
                for reports in terminalreporter.stats.values():
                    assert not [report for report in reports if hasattr(report, "esper_guard_trace")]
            """
        )
        run(project, "--layout-trace=dispatch").assert_outcomes(passed=6)

    @pytest.mark.parametrize("kind", ["json", "html"])
    def test_off_wins(self, project: pytest.Pytester, kind: str) -> None:
        pytest.importorskip("jinja2")
        project.makepyfile(test_a=TESTS)
        result = run(project, "--layout-trace=off", f"--layout-report={kind}:written")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "--layout-report needs a trace, and --layout-trace is off" in text_of(result)
        project.makeini(f"[pytest]\nlayout_hazards = off\nlayout_report = {kind}:written\n")
        run(project, "--layout-trace=off").assert_outcomes(passed=6)
        run(project, "--layout-trace=off", "--layout-report=term").assert_outcomes(passed=6)
        assert not (project.path / "written").exists()
        run(project).assert_outcomes(passed=6)
        assert (project.path / "written").exists()

    def test_nothing_was_traced(self, project: pytest.Pytester) -> None:
        project.makepyfile("def test_a(): pass")
        run(project, "--layout-trace=dispatch", "--layout-report=json:trace.json").assert_outcomes(passed=1)
        assert load_trace("trace.json").events == ()


class TestFailOn:
    @pytest.mark.parametrize(
        ("kinds", "failed"),
        [
            ("copy", {"test_slot", "test_twice[1]", "test_twice[2]"}),
            ("loss", {"test_soft", "test_ghost"}),
            ("ghost", {"test_ghost"}),
            ("copy,loss,ghost", {"test_slot", "test_twice[1]", "test_twice[2]", "test_soft", "test_ghost"}),
        ],
    )
    def test_kinds(self, project: pytest.Pytester, kinds: str, failed: set[str]) -> None:
        project.makepyfile(TESTS)
        result = run(project, f"--layout-fail-on={kinds}", "-v")
        assert set(re.findall(r"::(\S+) FAILED", text_of(result))) == failed

    def test_what_it_says(self, project: pytest.Pytester) -> None:
        project.makepyfile(TESTS)
        result = run(project, "--layout-fail-on=copy", "-k", "test_slot")
        result.stdout.fnmatch_lines(
            [
                "1 layout copy: model.py:6 (Slot): *",
                "  model.py:6 (Slot): explicit, 288 B, once: *",
                "help: keep the format there, or accept it: --layout-baseline=PATH --layout-update",
            ]
        )

    def test_it_says_how_to_see_all(self, project: pytest.Pytester) -> None:
        lines = "".join(f"    x.reshape({number}, -1)\n" for number in (1, 2, 3, 4, 6))
        project.makepyfile(test_a=TESTS + f"\ndef test_many(x):\n{lines}")
        listed = "--layout-report=json:trace.json; esper-guard report trace.json --by event -n 1000"
        more = f"  and 1 more; to see all: {listed}"
        for options in (("--layout-fail-on=copy",), ("--layout-baseline=known.json",)):
            (project.path / "known.json").write_text(EMPTY_BASELINE)
            result = run(project, *options, "-k", "many")
            result.stdout.fnmatch_lines([more])
        result.stdout.fnmatch_lines(["help: *, or accept it: --layout-baseline=known.json --layout-update"])
        project.makepyfile(
            test_a=TESTS
            + f"\n@pytest.mark.memory_format('channels_last', max_copies=0)\ndef test_many(x):\n{lines}"
        )
        run(project, "-k", "many").stdout.fnmatch_lines([more])

    def test_off_wins(self, project: pytest.Pytester) -> None:
        project.makepyfile(TESTS)
        project.makeini("[pytest]\nlayout_hazards = off\nlayout_fail_on = copy\n")
        run(project).assert_outcomes(passed=3, failed=3)
        run(project, "--layout-trace=off").assert_outcomes(passed=6)
        result = run(project, "--layout-trace=off", "--layout-fail-on=copy")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "--layout-fail-on needs a trace, and --layout-trace is off" in text_of(result)


class TestBaseline:
    def baseline(self, project: pytest.Pytester) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads((project.path / "known.json").read_text())["entries"]
        return entries

    def test_what_is_known_does_not_fail(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        update = run(project, "--layout-baseline=known.json", "--layout-update")
        update.assert_outcomes(passed=6)
        update.stdout.fnmatch_lines(["baseline: 3 entries (3 new, 0 gone) written to *known.json"])
        assert self.baseline(project)[1] == {
            "file": "model.py",
            "code": "return x.contiguous().detach()",
            "kind": "explicit",
            "operator": "aten.clone.default",
            "change": "channels_last -> nchw",
            "phase": "forward",
            "count": 2,
            "bytes": 2 * 288,
        }
        run(project, "--layout-baseline=known.json").assert_outcomes(passed=6)

    def test_it_survives_shifted_lines(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        run(project, "--layout-baseline=known.json", "--layout-update")
        project.makepyfile(model="\n# more\n" * 3 + MODEL)
        run_again = project.runpytest_subprocess("--layout-baseline=known.json")
        run_again.assert_outcomes(passed=6)

    def test_more_of_it_and_new_lines_fail(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        run(project, "--layout-baseline=known.json", "--layout-update")
        project.makepyfile(
            test_a=TESTS
            + """
def test_thrice(x):
    for _ in range(3): Slot()(x)
def test_new(x):
    x.reshape(-1)
"""
        )
        result = run(project, "--layout-baseline=known.json", "-v")
        assert set(re.findall(r"::(\S+) FAILED", text_of(result))) == {"test_thrice", "test_new"}
        result.stdout.fnmatch_lines(
            [
                "3 layout copies, where the baseline allows 2 in one test: model.py:6 (Slot): *",
                "1 layout copy that the baseline does not know of: test_a.py:*",
            ]
        )

    def test_an_update_forgets_only_if_everything_ran(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        run(project, "--layout-baseline=known.json", "--layout-update")
        part = run(project, "--layout-baseline=known.json", "--layout-update", "-k", "soft")
        part.stdout.fnmatch_lines(
            ["baseline: 3 entries (0 new, 0 gone)*", "baseline: entries that did not occur were kept*"]
        )
        run(project, "--layout-baseline=known.json", "--layout-update", "test_a.py")
        assert len(self.baseline(project)) == 3
        project.makepyfile(test_a=TESTS.replace("Soft()(x)", "assert x is None"))
        run(project, "--layout-baseline=known.json", "--layout-update").assert_outcomes(passed=5, failed=1)
        assert len(self.baseline(project)) == 3
        project.makepyfile(test_a=TESTS.replace("    Soft()(x)", "    pass"))
        gone = run(project, "--layout-baseline=known.json", "--layout-update")
        gone.stdout.fnmatch_lines(["baseline: 2 entries (0 new, 1 gone)*"])
        assert len(self.baseline(project)) == 2

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--collect-only",),
            ("--setup-plan",),
            ("-k", "nothing"),
            ("--ignore=test_b.py",),
            ("--deselect=test_a.py::test_soft",),
            ("--layout-fail-on=ghost",),
            ("--layout-trace=off",),
            ("sub",),
            ("--maxfail=1", "-k", "not soft"),
        ],
    )
    def test_nothing_is_forgotten_by(self, project: pytest.Pytester, arguments: tuple[str, ...]) -> None:
        project.makepyfile(test_a=TESTS, test_b=TESTS)
        project.mkdir("sub").joinpath("test_c.py").write_text("def test_c(): pass")
        project.makeini("[pytest]\nlayout_hazards = off\nlayout_baseline = known.json\n")
        run(project, "--layout-update")
        before = self.baseline(project)
        assert len(before) == 3
        run(project, "--layout-update", *arguments)
        assert self.baseline(project) == before

    def test_nothing_is_forgotten_in_a_subfolder_or_by_skipping(
        self, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project.makepyfile(test_a=TESTS)
        sub = project.mkdir("sub")
        sub.joinpath("test_c.py").write_text(TESTS)
        project.makeini("[pytest]\nlayout_hazards = off\nlayout_baseline = known.json\n")
        run(project, "--layout-update")
        before = self.baseline(project)
        monkeypatch.chdir(sub)
        run(project, "--layout-update", "-k", "soft").assert_outcomes(passed=1, deselected=5)
        run(project, "--layout-update").assert_outcomes(passed=6)
        assert self.baseline(project) == before
        run(project).assert_outcomes(passed=6)
        monkeypatch.chdir(project.path)
        project.makepyfile(test_a=TESTS.replace("    Soft()(x)", "    pytest.skip()"))
        sub.joinpath("test_c.py").unlink()
        run(project, "--layout-update").assert_outcomes(passed=5, skipped=1)
        assert self.baseline(project) == before

    def test_no_file_is_made_of_nothing(self, project: pytest.Pytester) -> None:
        project.makepyfile("def broken(:")
        run(project, "--layout-baseline=known.json", "--layout-update").assert_outcomes(errors=1)
        assert not (project.path / "known.json").exists()

    def test_a_broken_file_is_noticed_at_once(self, project: pytest.Pytester) -> None:
        project.makepyfile(TESTS)
        (project.path / "known.json").write_text("{")
        result = run(project, "--layout-baseline=known.json", "--layout-update")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "delete it and write it anew with --layout-update" in text_of(result)

    @pytest.mark.parametrize("argument", ["--help", "--markers", "--fixtures", "--collect-only"])
    def test_a_missing_file_is_in_nobodys_way(self, project: pytest.Pytester, argument: str) -> None:
        project.makepyfile(TESTS)
        project.makeini("[pytest]\nlayout_hazards = off\nlayout_baseline = known.json\n")
        assert run(project, argument).ret == pytest.ExitCode.OK

    def test_packages_and_generated_code(
        self, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packages = project.mkdir(".venv").joinpath("lib", "site-packages")
        packages.mkdir(parents=True)
        packages.joinpath("installed.py").write_text(MODEL)
        monkeypatch.syspath_prepend(packages)
        project.makepyfile(
            test_a=TESTS.replace("from model", "from installed")
            + """
def test_generated(x, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile("x.reshape(-1)", "<made>", "exec"), {"x": x})
"""
        )
        run(project, "--layout-baseline=known.json", "--layout-update").assert_outcomes(passed=7)
        assert {entry["file"] for entry in self.baseline(project)} == {"site-packages/installed.py", "<made>"}
        run(project, "--layout-baseline=known.json").assert_outcomes(passed=7)

    def test_from_a_subfolder_without_an_ini_file(
        self, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (project.path / "tox.ini").unlink()
        sub = project.mkdir("sub")
        sub.joinpath("test_c.py").write_text(TESTS)
        off = "--layout-hazards=off"
        run(project, off, "--layout-baseline=known.json", "--layout-update").assert_outcomes(passed=6)
        monkeypatch.chdir(sub)
        run(project, off, "--layout-baseline=../known.json").assert_outcomes(passed=6)

    @pytest.mark.slow
    def test_in_parallel(self, project: pytest.Pytester) -> None:
        project.makepyfile(test_a=TESTS)
        run_parallel(project, "--layout-baseline=known.json", "--layout-update").assert_outcomes(passed=6)
        in_parallel = self.baseline(project)
        run(project, "--layout-baseline=known.json", "--layout-update")
        assert in_parallel == self.baseline(project)
        run_parallel(project, "--layout-baseline=known.json").assert_outcomes(passed=6)
        run_parallel(project, "--layout-baseline=known.json", "--layout-update", "-k", "clean")
        assert in_parallel == self.baseline(project)
        project.makeconftest(
            """
            def pytest_collection_modifyitems(config, items):
                config.hook.pytest_deselected(items=items[1:])
                items[:] = items[:1]
            """
        )
        run_parallel(project, "--layout-baseline=known.json", "--layout-update").assert_outcomes(passed=1)
        assert in_parallel == self.baseline(project)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "*known.json: no layout baseline*"),
            ("{}", "*known.json: no layout baseline*format*"),
            (
                '{"format": "esper-guard layout baseline", "version": 2, "entries": []}',
                "*known.json*version*",
            ),
            (
                '{"format": "esper-guard layout baseline", "version": 1, "entries": [{"file": 3}]}',
                "*entries*file*",
            ),
        ],
    )
    def test_a_file_that_is_none(self, project: pytest.Pytester, content: str, message: str) -> None:
        project.makepyfile(TESTS)
        (project.path / "known.json").write_text(content)
        result = run(project, "--layout-baseline=known.json")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: {message}"])

    def test_a_file_that_is_missing(self, project: pytest.Pytester) -> None:
        result = run(project, "--layout-baseline=known.json")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            ["ERROR: there is no layout baseline *known.json: write it with --layout-update"]
        )


class TestOptions:
    def test_each_has_an_ini_twin(self, project: pytest.Pytester) -> None:
        project.makepyfile(TESTS)
        project.makeini(
            """
            [pytest]
            layout_hazards = off
            layout_trace = dispatch
            layout_report = json:out/trace.json
            layout_fail_on = copy
            layout_baseline = out/known.json
            layout_update = true
            """
        )
        (project.path / "sub").mkdir()
        result = run(project, "--rootdir", str(project.path), "-c", "tox.ini")
        result.assert_outcomes(passed=6)
        assert (project.path / "out" / "known.json").exists()
        assert load_trace(project.path / "out" / "trace.json").events
        assert len(json.loads((project.path / "out" / "known.json").read_text())["entries"]) == 1
        project.makeini("[pytest]\nlayout_hazards = off\nno_layout = true\nlayout_fail_on = copy\n")
        run(project).assert_outcomes(passed=6)

    @pytest.mark.parametrize(
        ("argument", "ini", "message"),
        [
            (
                "--layout-trace=depe",
                "layout_trace = depe",
                "is off or dispatch or deep, not 'depe'; did you mean 'deep'?",
            ),
            (
                "--layout-report=xml:a",
                "layout_report = xml:a",
                "knows term, json:PATH and html:PATH, not 'xml:a'",
            ),
            (
                "--layout-report=json:",
                "layout_report = json:",
                "knows term, json:PATH and html:PATH, not 'json:'",
            ),
            (
                "--layout-report=html:",
                "layout_report = html:",
                "knows term, json:PATH and html:PATH, not 'html:'",
            ),
            (
                "--layout-fail-on=copys",
                "layout_fail_on = copys",
                "knows copy, loss, ghost, not 'copys'; did you mean 'copy'?",
            ),
            ("--layout-hazards=on", "layout_hazards = on", "is raise or off, not 'on'"),
            (None, "layout_update = maybe", "invalid truth value 'maybe'"),
            (None, "no_layout = maybe", "invalid truth value 'maybe'"),
        ],
    )
    def test_wrong_values(
        self, project: pytest.Pytester, argument: str | None, ini: str, message: str
    ) -> None:
        if argument is not None:
            result = run(project, argument)
            assert result.ret == pytest.ExitCode.USAGE_ERROR
            assert f"ERROR: {argument.partition('=')[0]} {message}" in text_of(result)
        project.makeini(f"[pytest]\n{ini}\n")
        result = run(project)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        colon = ":" if argument is None else ""
        assert f"tox.ini: {ini.partition(' ')[0]}{colon} {message}" in text_of(result)

    def test_lists_in_pyproject(self, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        project.makepyfile(TESTS)
        (project.path / "tox.ini").unlink()
        project.makepyprojecttoml(
            """
            [tool.pytest.ini_options]
            layout_hazards = "off"
            no_layout = false
            layout_fail_on = ["copy", "loss"]
            layout_report = ["term", "json:trace.json"]
            """
        )
        project.mkdir("sub")
        monkeypatch.chdir(project.path / "sub")
        run(project, "..").assert_outcomes(passed=1, failed=5)
        assert (project.path / "trace.json").exists()

    def test_an_overridden_setting(self, project: pytest.Pytester) -> None:
        assert "ERROR: -o layout_trace is off or" in text_of(run(project, "-o", "layout_trace=Deep"))

    def test_an_update_needs_a_baseline(self, project: pytest.Pytester) -> None:
        result = run(project, "--layout-update")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "--layout-baseline=PATH" in text_of(result)

    def test_no_layout(self, project: pytest.Pytester) -> None:
        project.makepyfile(
            TESTS
            + """
@pytest.mark.memory_format("channels_last", max_copies=0)
def test_marked(x): Slot()(x)
def test_fixture(layout_trace): pass
def test_format(memory_format): pass
"""
        )
        result = run(
            project, "--no-layout", "--layout-trace=deep", "--layout-fail-on=copy", "-rs", "--strict-markers"
        )
        result.assert_outcomes(passed=9, skipped=1)
        result.stdout.fnmatch_lines(["*layouts are not traced: --no-layout"])

    def test_help(self, project: pytest.Pytester) -> None:
        text = text_of(run(project, "--help"))
        for name in "trace report fail-on baseline update hazards".split():
            assert f"--layout-{name}" in text
            assert f"layout_{name} (".replace("-", "_") in text
        assert "no_layout (bool)" in text


class TestHazards:
    @pytest.mark.slow
    @pytest.mark.parametrize("arguments", [(), ("-n", "2"), ("--layout-trace=dispatch",)])
    def test_a_crash_fails_one_test(self, pytester: pytest.Pytester, arguments: tuple[str, ...]) -> None:
        pytester.makepyfile(test_a=CRASH)
        result = pytester.runpytest_subprocess(*arguments)
        result.assert_outcomes(failed=1, passed=1)
        result.stdout.fnmatch_lines(
            ["E*group-norm-null-write: GroupNorm's backward writes through a null pointer*"]
        )
        result.stdout.fnmatch_lines(["E*forward: *test_a.py:7"])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "body",
        [
            "    import torch",
            "    torch = pytest.importorskip('torch')",
            "    torch = importlib.import_module('torch')",
            "    importlib.util.find_spec('torch')\n    from torch import nn\n    import torch",
        ],
    )
    def test_wherever_torch_is_imported(self, pytester: pytest.Pytester, body: str) -> None:
        pytester.makepyfile(
            f"""
import importlib.util, pytest
def test_lazy():
{body}
    x = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)
    torch.nn.GroupNorm(2, 4)(x).sum().backward()
"""
        )
        result = pytester.runpytest_subprocess()
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*HazardError: group-norm-null-write*"])

    @pytest.mark.slow
    @pytest.mark.parametrize("argument", ["--layout-hazards=off", "--no-layout", "-pno:esper-guard"])
    def test_without_the_plugin_the_run_dies(self, pytester: pytest.Pytester, argument: str) -> None:
        pytester.makepyfile(test_a=CRASH)
        result = pytester.runpytest_subprocess(argument)
        assert result.ret < 0 or result.ret == 0xC0000005
        assert "passed" not in text_of(result)


class TestWithoutTorch:
    BLOCK = "import sys\nsys.modules['torch'] = None\n"

    def test_silent(self, project: pytest.Pytester) -> None:
        project.makeini("[pytest]\n")
        project.makeconftest(self.BLOCK)
        project.makepyfile(
            """
            import pytest
            @pytest.mark.memory_format("channels_last", max_copies=0)
            def test_marked(): pass
            def test_trace(layout_trace): pass
            def test_format(memory_format): pass
            def test_plain(): pass
            """
        )
        for arguments in ((), ("--layout-trace=dispatch", "--layout-fail-on=copy", "-n1")):
            result = project.runpytest_subprocess("-W", "error", *arguments)
            result.assert_outcomes(passed=2, skipped=3)
            assert "layout" not in text_of(result).replace("--layout", "")

    @pytest.mark.parametrize(
        "stub",
        [
            "sys.modules['torch'] = unittest.mock.MagicMock()",
            "sys.modules['torch'] = types.ModuleType('torch')",
            "sys.meta_path.insert(0, type('Blocks', (), {'find_spec': staticmethod(block)}))",
        ],
    )
    def test_something_else_in_its_place(self, project: pytest.Pytester, stub: str) -> None:
        project.makeini("[pytest]\n")
        project.makeconftest(
            f"""
import sys, types, unittest.mock
def block(name, path=None, target=None):
    if name == "torch":
        raise ImportError("blocked")
{stub}
"""
        )
        project.makepyfile(
            """
            import pytest
            @pytest.mark.memory_format("channels_last", max_copies=0)
            def test_marked(): pass
            """
        )
        for arguments in ((), ("--layout-trace=dispatch",)):
            project.runpytest_subprocess("-W", "error", *arguments).assert_outcomes(passed=1)

    def test_a_package_of_the_same_name(self, project: pytest.Pytester) -> None:
        project.makeini("[pytest]\n")
        project.mkpydir("torch")
        project.makepyfile("import torch\ndef test_a(): assert torch.__file__")
        for arguments in ((), ("--layout-trace=dispatch",)):
            project.runpytest_subprocess("-W", "error", *arguments).assert_outcomes(passed=1)


class TestCost:
    def test_loading_it_imports_nothing_else(self) -> None:
        code = """
import sys
import pytest
before = set(sys.modules)
import esper_guard.integrations.pytest_plugin.plugin
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert new <= {"esper_guard", "difflib", "tomli", "tomllib"}, new
assert not {name for name in sys.modules if name.startswith(("esper_guard.trace", "esper_guard.runtime"))}
"""
        result = run_python(code)
        assert not result.stderr

    def test_a_run_without_torch_imports_no_torch(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import sys
            def test_plain():
                names = [name for name in sys.modules if name.partition(".")[0] in ("torch", "msgspec", "libcst")]
                assert not names
                assert not [name for name in sys.modules if name.startswith("esper_guard.trace")]
            """
        )
        pytester.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=1)


def test_the_example_is_run(tmp_path: Path) -> None:
    """The contract of a project, as its users write it."""
    settings = tmp_path / "pytest.ini"
    settings.write_text("[pytest]\n")
    result = run_python(
        "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(settings),
        "--rootdir",
        str(ROOT / "examples"),
        str(ROOT / "examples" / "test_channels_last.py"),
        cwd=ROOT / "examples",
    )
    assert result.returncode == 0, result.stdout
    assert re.search(r"\d+ passed", result.stdout)
