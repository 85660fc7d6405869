"""The HTML report: what it says, that it says the same each time, and that nothing in a trace becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import linecache
import re
import sys
import time
import unicodedata
from functools import cache
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from esper_guard import LayoutTrace, load_trace
from esper_guard.trace.sizes import format_size
from esper_guard.trace.span import Span
from tests.conftest import run_python
from tests.report.pages import Element, event, lines_in, parsed, trace_of, without_trailing

for package in ("jinja2", "pygments", "markdown_it"):
    pytest.importorskip(package)

from esper_guard.report.html import render_html, write_html
from esper_guard.report.html.icicle import lay_out
from esper_guard.report.html.text import visible

MODEL = """\
def forward(self, x):
    x = self.conv(x)
    seed = x.contiguous().detach()
    y = x.softmax(1)
    return seed + y
"""
SOURCES = {"model.py": MODEL}
EVENTS = (
    event(kind="explicit", line=3, bytes=3 << 20, count=3, tests=("test_a.py::test_a", "test_a.py::test_b")),
    event(line=3, bytes=1 << 20, phase="backward", module="layers.1", tests=("test_a.py::test_b",)),
    event(kind="loss", operator="aten._softmax.default", line=4, bytes=8192, count=2),
    event(line=5, bytes=512, changes_format=False, file="blocks/other.py"),
    event(kind="internal", line=2, bytes=256, module=None),
    event(file=None, line=None, parameter="conv.weight", bytes=2048, module=None),
)
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "</style></title></template>",
    "\"' onload=alert(1) x='",
    "<!--",
    "]]>",
    "&lt;b&gt;",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "a\u202eb\u2066c",
    "\ud800",
    "a\x00b\x1b[31m\x7f\x85",
    "\u2028\u2029",
    "`<b>`",
    "../../etc",
)


def whole() -> LayoutTrace:
    trace = trace_of(*EVENTS, sources=SOURCES, rank=1)
    trace.note_unseen("2 calls of compiled code")
    return trace


def page_of(trace: LayoutTrace, before: LayoutTrace | None = None) -> Element:
    return parsed(render_html(trace, before))


@cache
def shapes_of_ours() -> set[tuple[str, ...]]:
    """Each tag with its attributes, of pages that hold nothing hostile."""
    pages = page_of(whole(), whole()), page_of(trace_of(event(file="a", module=None)))
    return {(element.tag, *element.attributes) for page in pages for element in page.walk()}


class TestContent:
    def test_the_head_holds_the_sums(self) -> None:
        page = page_of(whole())
        sums = {div.one("dt").text: div.one("strong").text for div in page.one("dl", "sums").all("div")}
        assert sums == {
            "copied": format_size((4 << 20) + 2048),
            "copies": "5",
            "losses": "2",
            "other copies": "1",
            "in kernels": "1",
        }
        facts = page.one("p", "facts").text
        for fact in ("level dispatch", "torch 2.13.0", "rank 1", "files 2", "tests 2"):
            assert fact in facts
        assert [item.text for item in page.one("section", "unseen").all("li")] == ["2 calls of compiled code"]

    def test_files_by_what_they_copied(self) -> None:
        assert page_of(whole()).one("table", id_="file-table").rows() == [
            ["model.py", "4.0 MiB", "", "4", "2", "0 B", "256 B", "1"],
            ["blocks/other.py", "0 B", "", "0", "0", "512 B", "0 B", "0"],
        ]

    def test_the_sums_are_the_traces(self) -> None:
        trace = whole()
        page = page_of(trace)
        rows = page.one("table", id_="file-table").one("tbody").all("tr")
        values = [[int(cell.attributes["data-value"] or 0) for cell in row.all("td", "n")] for row in rows]
        size, copies, losses, other, internal, _ = map(sum, zip(*values, strict=True))
        lineless = [each for each in trace.events if each.file is None]
        assert size == trace.total_bytes - sum(each.bytes for each in lineless)
        assert copies == sum(each.count for each in trace.copies) - len(lineless)
        assert losses == sum(each.count for each in trace.losses)
        assert other == sum(each.bytes for each in trace.other_copies)
        assert internal == sum(each.bytes for each in trace.internal)

    def test_the_data_of_the_script_is_the_traces(self) -> None:
        trace = whole()
        data = json.loads(page_of(trace).one("script", id_="data").text)
        assert sum(row[7] for row in data["events"] if row[2] in ("explicit", "hidden")) == trace.total_bytes
        assert [data["modules"][row[5]] for row in data["events"]] == [
            each.module or "(no module)" for each in trace.events
        ]
        named = [[data["tests"][test] for test in data["sets"][row[6]]] for row in data["events"]]
        assert named == [list(each.tests) for each in trace.events]

    def test_a_line_tells_all_that_is_known(self) -> None:
        line = page_of(whole()).one(id_="f0-l3")
        assert line.one("summary").one("span", "margin").text == "4.0 MiB"
        assert line.one("summary").one("code").text == "    seed = x.contiguous().detach()"
        explicit, hidden = line.all("section", "event")
        assert "The line asks for this copy." in explicit.text
        assert "The backward of this line makes this copy" in hidden.text
        assert explicit.one("table").rows() == [["3.0 MiB", "3 times", "2x8x8x8", "layers.0.conv", "2"]]
        assert hidden.one("table").rows() == [["1.0 MiB", "once", "2x8x8x8", "layers.1", "1"]]
        for text in ("aten.clone.default", "channels_last -> nchw", "float32, cpu, forward"):
            assert text in explicit.text
        assert [item.text for item in line.one("ul", "tests").all("li")] == [
            "test_a.py::test_a",
            "test_a.py::test_b",
        ]

    def test_the_rule_that_explains_it(self) -> None:
        page = page_of(whole())
        advice = page.one(id_="f0-l3").one("section", "advice")
        assert "unconditional-contiguous-detach" in advice.text
        assert "`" not in advice.text
        assert [line.text for line in advice.all("del")] == ["    seed = x.contiguous().detach()"]
        assert [line.text for line in advice.all("ins")] == ["    seed = x.detach()"]
        assert advice.one("a").attributes["href"] == "#rule-EG101"
        rule = page.one("div", id_="rule-EG101")
        assert "Why is this bad?" in [heading.text for heading in rule.all("h4")]
        assert not page.one(id_="f0-l4").all("section", "advice")

    def test_a_copy_that_no_rule_explains(self) -> None:
        trace = trace_of(event(line=3), event(line=5), event(kind="loss", line=4), sources=SOURCES)
        page = page_of(trace)
        advice = page.one(id_="f0-l5").one("section", "advice")
        assert advice.one("h4").text == "EG901 measured-layout-copy"
        assert "a hidden copy was measured here" in advice.text
        assert "Help:" in advice.text
        assert not advice.all("ins")
        assert page.one(id_="f0-l5").one("summary").one("span", "rule").text == "EG901"
        assert "no other rule explains" in page.one("div", id_="rule-EG901").text
        assert not page.one(id_="f0-l4").all("section", "advice")

    def test_a_copy_that_a_rule_explains_has_that_rule_alone(self) -> None:
        text = MODEL.replace("x.softmax(1)", "x.contiguous()  # noqa: EG901")
        page = page_of(trace_of(event(kind="explicit"), event(line=4), sources={"model.py": text}))
        codes = {hit.attributes["id"]: [link.text for link in hit.all("a")] for hit in page.all(name="hit")}
        assert "EG901" not in str(codes["f0-l4"])
        assert codes["f0-l3"] == ["EG101"]

    def test_the_fix_fits_whatever_a_coding_cookie_says(self) -> None:
        text = f"# coding: latin-1\nname = '\u00e9\u4e2d'\n{MODEL}"
        line = page_of(trace_of(event(line=5), sources={"model.py": text})).one(id_="f0-l5")
        assert [added.text for added in line.all("ins")] == ["    seed = x.detach()"]

    def test_why_an_operator_lost_the_format(self) -> None:
        assert "Why: softmax writes NCHW whatever it reads (CPU)" in page_of(whole()).one(id_="f0-l4").text

    def test_a_copy_of_strides_only_is_told_from_others(self) -> None:
        page = page_of(
            trace_of(event(changes_format=False, shape=(2, 3), source_shape=(3, 2)), sources=SOURCES)
        )
        line = page.one(id_="f0-l3")
        assert line.one("summary").one("span", "margin").text == "4.0 KiB other"
        assert (
            line.one("section", "other")
            .one("p")
            .text.endswith("Only strides changed, not the memory format.")
        )
        assert "channels_last -> contiguous" in line.text
        assert line.one("tbody").one("tr").all("td")[2].text == "3x2 -> 2x3"

    def test_only_rules_about_copies_explain_them(self) -> None:
        text = MODEL.replace("x.softmax(1)", "x.softmax(1)  # esper-guard: ignore[EG101]")
        page = page_of(trace_of(event(line=4), sources={"model.py": text}))
        assert [advice.one("a").text for advice in page.all("section", "advice")] == ["EG901"]

    def test_files_with_one_name_are_told_apart(self) -> None:
        files = [f"/{folder}/site-packages/net.py" for folder in ("one", "two")]
        page = page_of(trace_of(*(event(file=file) for file in files)))
        assert sorted(row[0] for row in page.one("table", id_="file-table").rows()) == files
        (name,) = page_of(trace_of(event(file=files[0]))).one("table", id_="file-table").rows()
        assert name[0] == "site-packages/net.py"

    def test_events_without_a_line(self) -> None:
        page = page_of(whole())
        (place,) = page.all("details", "place")
        assert place.one("span", "name").text == "parameter conv.weight"
        assert place.one("span", "margin").text == "2.0 KiB"

    def test_the_source_is_whole_and_in_order(self) -> None:
        text = "\n".join(f"x{number} = {number}  # '''" for number in range(200)) + "\n"
        page = page_of(trace_of(event(line=100), event(line=104), sources={"model.py": text}))
        assert lines_in(page) == text.splitlines()
        numbers = [line.attributes["data-n"] for line in page.one(id_="f0").all(name="line")]
        assert numbers == [str(number) for number in range(1, 201)]
        first, last = page.all("details", "stretch")
        assert [stretch.one("summary").text for stretch in (first, last)] == [
            "lines 1 to 95",
            "lines 109 to 200",
        ]

    def test_far_lines_of_many_have_no_colours(self) -> None:
        for number, coloured in ((500, True), (21_000, False)):
            page = page_of(trace_of(event(line=1), sources={"model.py": "if x: pass\n" * number}))
            assert len(lines_in(page)) == number
            stretch = page.one("details", "stretch")
            assert bool(stretch.one("div", data_n="30").all("span", "k")) is coloured
            assert page.one(id_="f0-l1").one("summary").all("span", "k")

    def test_the_strongest_tint_for_the_largest_share(self) -> None:
        events = [
            event(line=line, bytes=size) for line, size in ((1, 700), (2, 200), (3, 70), (4, 25), (5, 5))
        ]
        page = page_of(trace_of(*events, sources=SOURCES))
        tints = [page.one(id_=f"f0-l{line}").classes[-1] for line in range(1, 6)]
        assert tints == ["heat-5", "heat-4", "heat-3", "heat-2", "heat-1"]

    def test_what_is_no_copy_of_a_format_looks_different(self) -> None:
        page = page_of(whole())
        tints = {hit.attributes["id"]: hit.classes[-1] for hit in page.all("details", "hit")}
        assert tints == {"f0-l2": "internal", "f0-l3": "heat-5", "f0-l4": "loss", "f1-l5": "other"}
        margins = {hit.attributes["id"]: hit.one("span", "margin").text for hit in page.all("details", "hit")}
        assert margins == {
            "f0-l2": "256 B kernel",
            "f0-l3": "4.0 MiB",
            "f0-l4": "2 losses",
            "f1-l5": "512 B other",
        }

    @pytest.mark.parametrize(("level", "number"), [("dispatch", "not traced"), ("deep", "0")])
    def test_what_was_not_traced_is_no_zero(self, level: str, number: str) -> None:
        page = page_of(trace_of(event(), level=level))
        assert page.one("dl", "sums").all("strong")[-1].text == number

    def test_lines_that_ran_and_copied_nothing(self) -> None:
        trace = whole()
        trace.note_executed("model.py", Span(2), Span(3), Span(5))
        ran = [line.attributes["data-n"] for line in page_of(trace).one(id_="f0").all("div", "ran")]
        assert ran == ["5"]  # 2 and 3 have events

    def test_a_line_that_the_source_does_not_have(self) -> None:
        page = page_of(trace_of(event(line=99), event(file="gone.py", line=7), sources=SOURCES))
        assert page.one(id_="f1-l99").one("span", "margin").text == "4.0 KiB"
        assert page.one(id_="f0-l7")
        assert "can't be read here" in page.one(id_="f0").text

    def test_source_that_is_no_python_has_no_findings(self) -> None:
        broken = "def f(x:\n  return x.contiguous().detach(\n\0"
        page = page_of(trace_of(event(line=2), sources={"model.py": broken}))
        assert lines_in(page) == [visible(line) for line in broken.split("\n")]
        assert not page.all("section", "advice")

    def test_nothing_was_copied(self) -> None:
        page = page_of(trace_of())
        assert page.one("p", "empty").text == "Nothing was copied or lost."
        assert not page.all("table")

    def test_copies_of_no_bytes(self) -> None:
        page = page_of(trace_of(event(bytes=0), sources=SOURCES))
        assert page.one(id_="f0-l3").one("span", "margin").text == "0 B"
        assert page.one(id_="f0-l3").classes[-1] == "heat-1"

    def test_events_of_a_file_without_a_line(self) -> None:
        trace, before = (
            trace_of(event(line=None, bytes=size, file="m.py"), sources={"m.py": "x"})
            for size in (2000, 1000)
        )
        page = page_of(trace, before)
        assert page.one("table", id_="line-table").rows()[0][3] == "m.py"
        assert line_changes(page)[0][-1] == "m.py"
        assert "None" not in page.one("main").text
        assert "m.py:0" not in page.one("main").text

    def test_losses_alone_make_no_picture(self) -> None:
        page = page_of(trace_of(event(kind="loss"), sources=SOURCES))
        assert not page.all("svg", "icicle")
        assert "there is nothing to draw" in page.text
        assert page.one("table", id_="module-table").rows()[0][:4] == ["layers.0.conv", "0 B", "0", "1"]

    def test_a_saved_trace_needs_no_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "model.py"
        path.write_text(MODEL)
        trace_of(event(file=str(path))).save("trace.json")
        path.unlink()
        page = page_of(load_trace("trace.json"))
        assert lines_in(page) == MODEL.splitlines()
        assert page.one("h3").text == "model.py"

    def test_a_trace_brings_no_other_file_into_the_page(self, tmp_path: Path) -> None:
        for name in ("secret.txt", "secret.py", "secret.pyw"):
            secret = tmp_path / name
            secret.write_text("password = 1\n")
            page = render_html(trace_of(event(file=str(secret), line=1)), trace_of(event(file=str(secret))))
            assert "password" not in page
            assert "can&#39;t be read here" in page or "can't be read here" in page

    def test_nor_one_that_other_code_has_looked_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "secret.txt").write_text("password = 1\n")
        (tmp_path / "on_the_path").mkdir()
        monkeypatch.setattr(linecache, "cache", {})
        monkeypatch.syspath_prepend(tmp_path / "on_the_path")
        assert linecache.getlines("../secret.txt") == ["password = 1\n"]
        assert "password" not in render_html(trace_of(event(file="../secret.txt", line=1)))

    def test_no_link_leads_out_of_the_project(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "project").mkdir()
        (tmp_path / "secret.py").write_text("password = 1\n")
        (tmp_path / "project" / "model.py").symlink_to(tmp_path / "secret.py")
        monkeypatch.chdir(tmp_path / "project")
        for file in ("model.py", "../secret.py", str(tmp_path / "project" / "model.py")):
            assert "password" not in render_html(trace_of(event(file=file, line=1)))

    def test_a_trace_without_texts_shows_the_project_as_it_is_now(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model.py").write_text(MODEL)
        words = "as it is now, not as it was traced"
        for file in ("model.py", str(tmp_path / "model.py")):
            page = page_of(trace_of(event(file=file)))
            assert lines_in(page) == MODEL.splitlines()
            assert words in page.one(id_="f0").text
        assert words not in page_of(trace_of(event(), sources=SOURCES)).text

    def test_files_of_packages_and_of_this_process_are_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for file in (pytest.__file__, json.__file__):
            page = page_of(trace_of(event(file=file, line=1)))
            assert len(lines_in(page)) > 10

    def test_what_was_typed_is_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("<ipython-input-1>", "/tmp/ipykernel_1/2.py"):
            monkeypatch.setitem(linecache.cache, name, (len(MODEL), None, MODEL.splitlines(True), name))
            page = page_of(trace_of(event(file=name)))
            assert lines_in(page) == MODEL.splitlines()
            assert "as it is now" not in page.text


def line_changes(page: Element) -> list[list[str]]:
    """The rows of the comparison by line: those that changed, and then the others."""
    return [row for table in page.all("table", "compare")[1:] for row in table.rows()]


class TestComparison:
    def test_a_moved_line_is_the_same_and_a_gone_one_is_listed(self) -> None:
        before = trace_of(
            event(line=3, bytes=168 << 20, count=3),
            event(kind="loss", line=4, bytes=4096),
            event(line=5, bytes=1024),
            sources=SOURCES,
        )
        text = "import torch\n\n" + MODEL.replace("x.contiguous().detach()", "x.detach()").replace(
            "    return", "    y = y.reshape(-1)\n    return"
        )
        after = trace_of(
            event(kind="loss", line=6, bytes=4096),
            event(line=7, bytes=2048),
            event(line=8, bytes=1024),
            sources={"model.py": text},
        )
        page = page_of(after, before)
        assert page.one("p", "verdict").text == "168.0 MiB -> 3.0 KiB (-99 %), copies 4 -> 2, losses 1 -> 1"
        assert page.all("table", "compare")[0].rows() == [
            ["168.0 MiB", "3.0 KiB", "-168.0 MiB", "4 -> 2", "1 -> 1", "less", "model.py"]
        ]
        assert [row[:6] for row in line_changes(page)] == [
            ["168.0 MiB", "0 B", "-168.0 MiB", "3 -> 0", "", "gone"],
            ["0 B", "2.0 KiB", "+2.0 KiB", "0 -> 1", "", "new line"],
            ["1.0 KiB", "1.0 KiB", "", "1 -> 1", "", "the same, was line 5"],
            ["0 B", "0 B", "", "", "1 -> 1", "the same, was line 4"],
        ]
        assert line_changes(page)[0][6] == "model.py:3 seed = x.contiguous().detach()"
        assert "168.0 MiB, 3 copies, was line 3" in page.one("ul", "gone").text
        assert page.one(id_="f0-l7").one("span", "since").text == "new line"

    def test_a_line_that_moved_past_others(self) -> None:
        text = "import torch\nfirst = 1\nsecond = 2\nthird = 3\n"
        moved = "import torch\nsecond = 2\nthird = 3\nfirst = 1\n"
        before = trace_of(event(line=2), sources={"model.py": text})
        after = trace_of(event(line=4), sources={"model.py": moved})
        (row,) = line_changes(page_of(after, before))
        assert row[5:] == ["the same, was line 2", "model.py:4 first = 1"]

    def test_an_indented_line_is_the_same(self) -> None:
        text = MODEL.replace("    seed", "    if x.requires_grad:\n        seed")
        after = trace_of(event(line=4), sources={"model.py": text})
        (row,) = line_changes(page_of(after, trace_of(event(line=3), sources=SOURCES)))
        assert row[5] == "the same, was line 3"

    def test_the_same_project_in_another_folder(self) -> None:
        before = trace_of(
            event(file="/old/checkout/net/model.py"), sources={"/old/checkout/net/model.py": MODEL}
        )
        after = trace_of(event(file="/new/net/model.py"), sources={"/new/net/model.py": f"\n{MODEL}"})
        after.tally(event(file="/new/net/model.py", line=4))
        (row,) = page_of(after, before).all("table", "compare")[0].rows()
        assert row[:3] == ["4.0 KiB", "4.0 KiB", ""]

    def test_another_folder_below_this_one(self) -> None:
        before = trace_of(event(file="base/model.py"), sources={"base/model.py": MODEL})
        after = trace_of(event(file="head/model.py", line=4), sources={"head/model.py": f"\n{MODEL}"})
        (row,) = line_changes(page_of(after, before))
        assert row[5:] == ["the same, was line 3", "head/model.py:4 seed = x.contiguous().detach()"]

    def test_lines_that_copy_no_more_and_now(self) -> None:
        before = trace_of(event(line=3), sources=SOURCES)
        after = trace_of(event(line=4), sources=SOURCES)
        rows = line_changes(page_of(after, before))
        assert {row[5]: row[6].split()[0] for row in rows} == {
            "copies no more": "model.py:3",
            "copies now": "model.py:4",
        }
        gone = page_of(trace_of(sources=SOURCES), before)
        assert gone.one("p", "verdict").text == "4.0 KiB -> 0 B (-100 %), copies 1 -> 0, losses 0 -> 0"

    def test_copies_that_are_counted_apart(self) -> None:
        strides = event(kind="explicit", changes_format=False, bytes=1000)
        kernel = event(kind="internal", line=4, bytes=512)
        before = trace_of(strides, kernel, sources=SOURCES, level="deep")
        after = trace_of(
            replace(strides, bytes=4096, count=2),
            replace(kernel, count=50),
            sources=SOURCES,
            level="deep",
        )
        page = page_of(after, before)
        assert [row[2:8] for row in line_changes(page)] == [
            ["", "", "", "1 -> 2 (1000 B -> 4.0 KiB)", "", "more"],
            ["", "", "", "", "1 -> 50 (512 B -> 512 B)", "more"],
        ]
        assert page.all("table", "compare")[0].rows() == [
            [
                "0 B",
                "0 B",
                "",
                "",
                "",
                "1 -> 2 (1000 B -> 4.0 KiB)",
                "1 -> 50 (512 B -> 512 B)",
                "more",
                "model.py",
            ]
        ]
        verdict = page.one("p", "verdict").text
        assert verdict.endswith(
            ", other copies 1 -> 2 (1000 B -> 4.0 KiB), copies in kernels 1 -> 50 (512 B -> 512 B)"
        )
        back = page_of(before, after)
        assert [row[7] for row in line_changes(back)] == ["less", "less"]
        assert {row[7] for row in line_changes(page_of(after, after))} == {"the same"}

    def test_columns_that_nothing_is_in_are_left_out(self) -> None:
        page = page_of(whole(), trace_of(sources=SOURCES))
        first = [cell.text for cell in page.all("table", "compare")[0].all("th")]
        assert first == [
            "before",
            "after",
            "difference",
            "copies",
            "losses",
            "other copies",
            "in kernels",
            "what",
            "where",
        ]
        page = page_of(trace_of(event(), sources=SOURCES), trace_of(sources=SOURCES))
        assert "other copies" not in [cell.text for cell in page.all("table", "compare")[0].all("th")]

    def test_a_file_is_one_row_whatever_folder_its_lines_are_named_by(self) -> None:
        before = trace_of(
            event(file="base/model.py"), event(file="base/model.py", line=5), sources={"base/model.py": MODEL}
        )
        text = MODEL.replace("    return seed + y\n", "")
        page = page_of(trace_of(event(file="head/model.py"), sources={"head/model.py": text}), before)
        (row,) = page.all("table", "compare")[0].rows()
        assert (row[0], row[1], row[-1]) == ("8.0 KiB", "4.0 KiB", "head/model.py")

    @pytest.mark.parametrize(
        ("before", "after", "moved"),
        [
            (["bench.py", "base/net.py"], ["bench.py", "head/net.py"], "head/net.py"),
            (["base/models/net.py"], ["head/models/net.py", "head/utils/net.py"], "head/models/net.py"),
            (["base/net.py"], ["head/net.py", "other/net.py"], None),
            (["base/net.py", "head/net.py"], ["head/net.py"], None),
        ],
    )
    def test_which_folder_is_the_other_checkout(
        self, before: list[str], after: list[str], moved: str | None
    ) -> None:
        old, new = (
            trace_of(*(event(file=file) for file in files), sources=dict.fromkeys(files, MODEL))
            for files in (before, after)
        )
        rows = line_changes(page_of(new, old))
        same = {row[6].split(":")[0] for row in rows if row[5] == "the same"}
        assert same == {file for file in after if file in before or file == moved}

    def test_a_small_change_is_no_zero(self) -> None:
        for size, words in ((9_970, "less than 1 % less"), (10_030, "less than 1 % more"), (9_900, "-1 %")):
            page = page_of(trace_of(event(bytes=size)), trace_of(event(bytes=10_000)))
            assert f"({words})" in page.one("p", "verdict").text

    def test_code_before_is_shortened(self) -> None:
        before = trace_of(event(line=1), sources={"model.py": f"x = '{'a' * 10_000}'\n"})
        assert len(line_changes(page_of(trace_of(sources=SOURCES), before))[0][6]) < 2_100

    def test_parameters(self) -> None:
        parameter = event(file=None, line=None, parameter="conv.weight")
        rows = line_changes(page_of(trace_of(), trace_of(parameter)))
        assert rows == [
            ["4.0 KiB", "0 B", "-4.0 KiB", "1 -> 0", "", "copies no more", "parameter conv.weight"]
        ]

    def test_without_sources_lines_go_by_their_numbers(self) -> None:
        page = page_of(trace_of(event(line=3), sources=SOURCES), trace_of(event(line=3), event(line=4)))
        assert "matched by their numbers" in page.text
        assert {row[6].split()[0] for row in line_changes(page)} == {
            "model.py:3",
            "model.py:4",
        }

    def test_of_other_levels_copies_in_kernels_are_left_out(self) -> None:
        before = trace_of(event(), event(kind="internal", line=4), sources=SOURCES, level="deep")
        page = page_of(trace_of(event(), sources=SOURCES), before)
        assert "Copies inside kernels are not compared: deep and dispatch level." in page.text
        (row,) = line_changes(page)
        assert row[5:] == ["the same", "model.py:3 seed = x.contiguous().detach()"]


class TestSafety:
    ALLOWED = re.compile(r"#(?:f[0-9]+(?:-l[0-9]+)?|rule-EG[0-9]+|rules|main)|https://[a-z.]+/\S*")

    def test_the_policy_allows_our_script_and_style_only(self) -> None:
        page = page_of(whole())
        policy = page.one("meta", http_equiv="Content-Security-Policy").attributes["content"] or ""
        parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
        style, script = page.one("style"), page.all("script")[0]
        for name, element in (("style-src", style), ("script-src", script)):
            digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
            assert parts[name] == f"'sha256-{digest}'"
        assert parts["default-src"] == "'none'"
        assert "unsafe" not in policy

    def test_nothing_is_loaded(self) -> None:
        before = trace_of(event(line=4, bytes=1), sources=SOURCES)
        page = page_of(whole(), before)
        for element in page.walk():
            assert element.tag not in ("link", "img", "iframe", "object", "embed", "base")
            assert not {"src", "srcset", "style", "data", "action", "background"} & element.attributes.keys()
            assert not [name for name in element.attributes if name.startswith("on")]
            if "href" in element.attributes:
                assert self.ALLOWED.fullmatch(element.attributes["href"] or "")
        assert not re.search(r"url\(|@import|https?:", page.one("style").text)
        assert not re.search(r"https?:|fetch\(|XMLHttp|import\(|innerHTML|eval\(", page.all("script")[0].text)

    def test_links_lead_somewhere_in_the_page(self) -> None:
        page = page_of(whole(), trace_of(event(line=5), sources=SOURCES))
        ids = [element.attributes["id"] for element in page.walk() if "id" in element.attributes]
        assert len(ids) == len(set(ids))
        targets = {link.attributes["href"] for link in page.all("a")}
        assert {target[1:] for target in targets if target and target.startswith("#")} <= set(ids)

    def test_charset_first(self) -> None:
        page = page_of(whole())
        assert page.one("html").attributes["lang"] == "en"
        first = next(child for child in page.one("head").children if isinstance(child, Element))
        assert first.attributes == {"charset": "utf-8"}

    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_text(self, text: str, tmp_path: Path) -> None:
        self.check(text, f"x = 1\n{text}\n# {text}\n")
        trace = self.trace(text, text)
        written = write_html(trace, tmp_path / "report.html")
        assert parsed(written.read_text("utf-8")).one("h1").text == "Layout copies"

    @settings(max_examples=60)
    @given(
        st.lists(
            st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=()), max_size=8),
            min_size=1,
            max_size=3,
        )
        .map("".join)
        .filter(bool),
        st.lists(
            st.sampled_from((*HOSTILE, "'''", "\n", "\r", "\f", "x = 1  # y")) | st.text(max_size=8),
            max_size=8,
        ).map("".join),
    )
    def test_any_text_stays_text(self, text: str, source: str) -> None:
        self.check(text, source)

    def trace(self, text: str, source: str) -> LayoutTrace:
        hostile = event(
            file=text,
            line=1,
            module=text,
            operator=text,
            source=text,
            destination=text,
            dtype=text,
            device=text,
            function=text,
            tests=(text,),
        )
        parameter = event(file=None, line=None, parameter=text)
        trace = trace_of(hostile, parameter, sources={text: source}, torch_version=text)
        trace.note_unseen(text)
        return trace

    def check(self, text: str, source: str) -> None:
        ours = shapes_of_ours()
        trace, before = self.trace(text, source), self.trace(text, f"{source}\nmore")
        page = parsed(render_html(trace, before, title=text))
        assert {(element.tag, *element.attributes) for element in page.walk()} <= ours
        shown = visible(text)
        assert page.one("h1").text == shown
        names = [page.one("details", "file").one("h3").text]
        names += [path.text for path in page.all("p", "path")]
        assert shown in names
        lines = without_trailing(visible(line) for line in re.split("\r\n?|\n", source))
        assert lines_in(page) == (lines or [""])
        row = page.one("details", "hit").one("table").one("tbody").one("tr")
        assert row.all("td")[3].text == shown
        assert page.one("details", "hit").one("ul", "tests").one("li").text == shown
        assert page.one("section", "unseen").one("li").text == shown
        assert page.one("details", "place").one("span", "name").text == visible(f"parameter {text}")
        data = json.loads(page.one("script", id_="data").text)
        assert data["modules"][0] == shown
        assert not [
            char
            for char in page.text
            if unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in "\n\t"
        ]

    @given(st.text(st.characters(exclude_categories=())))
    def test_what_cannot_be_seen_is_written_out(self, text: str) -> None:
        shown = visible(text)
        assert not [
            char
            for char in shown
            if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char != "\t"
        ]
        back = re.sub("\u2039U\\+([0-9A-F]{4,6})\u203a", lambda code: chr(int(code[1], 16)), shown)
        if "\u2039" not in text:
            assert back == text

    @pytest.mark.parametrize(
        "blank", ["\u3164", "\uffa0", "\u115f", "\u2800", "\u034f", "\ufe00", "\U000e0100"]
    )
    def test_blank_letters_are_written_out(self, blank: str) -> None:
        page = page_of(trace_of(event(line=1, module=f"a{blank}b"), sources={"model.py": f"x{blank} = 1"}))
        code = f"\u2039U+{ord(blank):04X}\u203a"
        assert lines_in(page) == [f"x{code} = 1"]
        assert f"a{code}b" in page.one("table", id_="module-table").text

    def test_signs_and_letters_of_other_scripts_stay(self) -> None:
        text = "\u26a0\ufe0f \u4e2d \u05d0 \u00e9 e\u0301"
        assert visible(text) == text

    @pytest.mark.parametrize(
        "line",
        [" " * 1_990, "a." * 900, "(" * 1_990, "x = [" + "1, " * 600 + "]"],
        ids=["blank", "dots", "open", "list"],
    )
    def test_a_page_of_odd_lines_takes_no_minutes(self, line: str) -> None:
        text = f"if x: pass\n{line}\n" * 2_000
        started = time.monotonic()
        page = page_of(trace_of(event(line=1), sources={"model.py": text}))
        assert time.monotonic() - started < 20
        assert lines_in(page) == text.splitlines()
        assert bool(page.one(id_="f0-l1").one("summary").all("span", "k")) == line.isspace()

    def test_blank_lines_are_shown_as_they_are(self) -> None:
        text = "def f(x):\n    \n\t\n    s = '''\n   \n'''\n\n"
        assert lines_in(page_of(trace_of(event(line=4), sources={"model.py": text}))) == text.split("\n")[:-1]

    def test_a_fix_of_a_long_line_is_cut(self) -> None:
        text = MODEL.replace("x.contiguous().detach()", f"x.contiguous().detach()  # {'a' * 100_000}")
        line = page_of(trace_of(event(), sources={"model.py": text})).one(id_="f0-l3")
        assert [len(each.text) < 2_100 for each in line.all("del") + line.all("ins")] == [True, True]

    def test_a_long_line_is_cut(self) -> None:
        page = page_of(trace_of(event(line=1), sources={"model.py": f"x = '{'a' * 1_000_000}'\n"}))
        assert lines_in(page)[0].endswith("... and 998006 more characters")


class TestPicture:
    names = st.lists(st.sampled_from(["a", "b", "c", "0", "1"]), min_size=1, max_size=4).map(".".join)

    @given(st.dictionaries(names, st.integers(0, 100), max_size=30))
    def test_boxes_nest_and_add_up(self, sizes: dict[str, int]) -> None:
        boxes = lay_out(sizes)
        assert (boxes[0].width if boxes else 0) == sum(sizes.values())
        by_name = {box.name: box for box in boxes}
        assert len(by_name) == len(boxes)
        for box in boxes:
            inside = [
                size for name, size in sizes.items() if not box.name or f"{name}.".startswith(f"{box.name}.")
            ]
            assert box.width == sum(inside) > 0
            children = [
                other
                for other in boxes
                if other.depth == box.depth + 1 and (not box.name or other.name.startswith(f"{box.name}."))
            ]
            assert sum(child.width for child in children) == box.width - sizes.get(box.name, 0)
            end = box.start
            for child in children:
                assert child.start == end
                end += child.width
            assert end <= box.start + box.width
            assert [child.width for child in children] == sorted(
                (child.width for child in children), reverse=True
            )

    @given(st.dictionaries(st.text(".ab", max_size=6), st.integers(0, 100)))
    def test_odd_names_lose_no_bytes(self, sizes: dict[str, int]) -> None:
        boxes = lay_out(sizes)
        assert (boxes[0].width if boxes else 0) == sum(sizes.values())
        for box in boxes:
            assert 0 <= box.start <= box.start + box.width <= boxes[0].width

    def test_boxes_that_are_too_deep_are_part_of_others(self) -> None:
        boxes = lay_out({".".join("a" * 3_000): 3, ".".join("a" * 2_999): 4})
        assert len(boxes) < 50
        assert {box.width for box in boxes} == {7}
        sizes = [
            len(render_html(trace_of(event(module=".".join("a" * depth))))) for depth in (100, 1_000, 2_000)
        ]
        assert sizes[2] - sizes[1] < 1.5 * (sizes[1] - sizes[0])

    def test_boxes_that_nobody_can_see_are_left_out(self) -> None:
        assert [box.name for box in lay_out({"large": 10_000, "small": 1})] == ["", "large"]

    def test_the_drawing_is_to_scale(self) -> None:
        events = [event(module="a.b", bytes=300, line=1), event(module="a.c", bytes=100, line=2)]
        page = page_of(trace_of(*events, event(module=None, bytes=100, line=3), sources=SOURCES))
        drawn = {
            box.one("title").text.split(":")[0]: (
                box.attributes["x"],
                box.attributes["width"],
                box.attributes["y"],
            )
            for box in page.all("svg", "box")
        }
        assert drawn == {
            "all modules": ("0.0000%", "100.0000%", "0"),
            "a": ("0.0000%", "80.0000%", "24"),
            "a.b": ("0.0000%", "60.0000%", "48"),
            "a.c": ("60.0000%", "20.0000%", "48"),
            "(no module)": ("80.0000%", "20.0000%", "24"),
        }
        titles = [box.one("title").text for box in page.all("svg", "box")]
        assert "a.b: 300 B, 60 %" in titles


class TestColours:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for what is no text."""

    LINES = "page heat-1 heat-2 heat-3 heat-4 heat-5 loss other internal".split()
    CODE = "text keyword string comment number function builtin".split()

    @staticmethod
    def colours() -> dict[str, tuple[str, str]]:
        style = resources.files("esper_guard.report.html").joinpath("style.css").read_text("utf-8")
        found = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
        return {name: (light, dark) for name, light, dark in found}

    @staticmethod
    def contrast(one: str, other: str) -> float:
        def luminance(colour: str) -> float:
            channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
            linear = [
                part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels
            ]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        dark, light = sorted((luminance(one), luminance(other)))
        return (light + 0.05) / (dark + 0.05)

    @pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
    def test_text_can_be_read(self, mode: int) -> None:
        pairs = [(text, line) for text in self.CODE for line in self.LINES]
        pairs += [("quiet", ground) for ground in (*self.LINES, "panel")]
        pairs += [
            (text, ground) for text in ("text", "link", "better", "worse") for ground in ("page", "panel")
        ]
        pairs += [("text", ground) for ground in ("removed", "added", "box-0", "box-1", "box-2", "box-3")]
        self.check(pairs, mode, 4.5)

    @pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
    def test_shapes_can_be_seen(self, mode: int) -> None:
        pairs = [("focus", ground) for ground in ("page", "panel", *self.LINES)]
        pairs += [(shape, ground) for shape in ("control", "bar") for ground in ("page", "panel")]
        self.check(pairs, mode, 3)

    def check(self, pairs: list[tuple[str, str]], mode: int, least: float) -> None:
        colours = self.colours()
        found = {
            (text, ground): self.contrast(colours[text][mode], colours[ground][mode])
            for text, ground in pairs
        }
        assert not {pair: round(ratio, 2) for pair, ratio in found.items() if ratio < least}


class TestWriting:
    def test_the_same_whatever_the_order_of_sets(self) -> None:
        code = (
            "import hashlib; from tests.report.test_html import whole, render_html, trace_of, event, SOURCES; "
            "page = render_html(whole(), trace_of(event(line=4), event(file='b.py'), sources=SOURCES)); "
            "print(hashlib.sha256(page.encode()).hexdigest())"
        )
        digests = set()
        for seed in ("1", "2"):
            done = run_python(
                code, env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
            )
            assert done.returncode == 0, done.stderr
            digests.add(done.stdout)
        assert len(digests) == 1

    def test_as_a_whole_or_not_at_all(self, tmp_path: Path) -> None:
        target = tmp_path / "report-{rank}.html"
        assert write_html(whole(), target) == tmp_path / "report-1.html"
        with pytest.raises(FileNotFoundError):
            write_html(whole(), tmp_path / "none" / "report.html")
        assert [path.name for path in tmp_path.iterdir()] == ["report-1.html"]

    @pytest.mark.parametrize("package", ["jinja2", "pygments", "markdown_it"])
    def test_a_missing_package_is_named(self, package: str) -> None:
        code = (
            f"import sys; sys.modules[{package!r}] = None\n"
            "from esper_guard import LayoutTrace\n"
            "from esper_guard.report.html import write_html\n"
            "try: write_html(LayoutTrace(), 'none/report.html')\n"
            "except ModuleNotFoundError as error: print(error)\n"
        )
        done = run_python(code)
        assert "pip install 'esper-guard[html]'" in done.stdout, done.stderr

    def test_torch_is_not_needed(self) -> None:
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "from esper_guard.trace import LayoutTrace\n"
            "from esper_guard.report.html import render_html\n"
            "print(len(render_html(LayoutTrace())) > 1000)\n"
        )
        assert run_python(code).stdout == "True\n"
