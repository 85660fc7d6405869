"""The HTML report in a browser: by mouse, by keyboard, narrow, printed, without JavaScript."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from esper_guard import LayoutTrace
from tests.report.pages import event, trace_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Open = Callable[..., "Page"]

LONG = "".join(f"x{number} = {number}\n" for number in range(200))
MODEL = """\
def forward(self, x):
    x = self.conv(x)
    seed = x.contiguous().detach()
    y = x.softmax(1)
    return seed + y.to(memory_format=torch.channels_last).mul(self.a_long_name_of_a_scale, out=self.another_long_name)
"""
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


def small() -> LayoutTrace:
    """Two files; two modules in one, one in the other."""
    trace = trace_of(
        event(kind="explicit", line=3, bytes=3 << 20, module="net.head", tests=("test_a.py::test_a",)),
        event(kind="loss", operator="aten._softmax.default", line=4, module="net.head", bytes=8192, count=9),
        event(line=5, bytes=1 << 20, module="net.body.conv", phase="backward"),
        event(file="long.py", line=150, bytes=2 << 20, module="net.body", tests=("test_b.py::test_b",)),
        event(file=None, line=None, parameter="conv.weight", bytes=2048, module=None),
        sources={"model.py": MODEL, "long.py": LONG},
    )
    trace.note_unseen("2 calls of compiled code")
    return trace


def missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    for package in ("jinja2", "pygments", "markdown_it"):
        pytest.importorskip(package)
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        missing("playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing("chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield started
        finally:
            started.close()


@pytest.fixture
def open_report(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """``open_report(trace, width=360)``: its page; at the end nothing may have gone wrong in it."""
    from esper_guard.report.html import write_html

    troubles: list[str] = []
    contexts = []

    def start(
        trace: LayoutTrace, before: LayoutTrace | None = None, width: int = 1280, **options: Any
    ) -> Page:
        path = write_html(trace, tmp_path / "report.html", before)
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
        requests: list[str] = []
        page.goto(path.as_uri())
        page.wait_for_timeout(20)
        assert requests == [path.as_uri()]
        return page

    yield start
    for context in contexts:
        context.close()
    assert not troubles


def names(page: Page) -> list[str]:
    """The files in the table that are shown, in its order."""
    return page.locator("#file-table tbody tr:visible th").all_inner_texts()


def focused(page: Page) -> str | None:
    """The id of the line that has the focus."""
    found: str | None = page.evaluate("document.activeElement.closest('.hit')?.id ?? null")
    return found


def wide(page: Page) -> int:
    """How much wider the page is than the window."""
    found: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return found


def test_sorting(open_report: Open) -> None:
    page = open_report(small())
    assert names(page) == ["model.py", "long.py"]
    heads = page.locator("#file-table thead th")
    assert heads.nth(1).get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="bytes", exact=True).first.click()
    assert names(page) == ["long.py", "model.py"]
    assert heads.nth(1).get_attribute("aria-sort") == "ascending"
    page.locator("#file-table").get_by_role("button", name="losses").click()
    assert names(page) == ["model.py", "long.py"]
    assert heads.nth(1).get_attribute("aria-sort") is None
    page.locator("#file-table").get_by_role("button", name="file", exact=True).click()
    assert names(page) == ["long.py", "model.py"]
    page.keyboard.press("s")
    assert heads.nth(1).get_attribute("aria-sort") == "descending"
    assert names(page) == ["model.py", "long.py"]


def test_filter(open_report: Open) -> None:
    page = open_report(small())
    page.keyboard.press("/")
    page.keyboard.type("TEST_B")
    page.get_by_text("1 of 5 events, 2.0 MiB copied").wait_for()
    assert names(page) == ["long.py"]
    assert page.locator("#line-table tbody a").all_inner_texts() == ["long.py:150"]
    assert page.locator("#line-table tbody code").all_inner_texts() == ["x149 = 149"]
    page.keyboard.press("Escape")
    assert names(page) == ["model.py", "long.py"]
    assert page.locator("#filter").input_value() == ""
    page.locator("#kind").select_option("loss")
    page.get_by_text("1 of 5 events, 0 B copied").wait_for()
    assert names(page) == ["model.py"]
    assert page.locator("#file-table tbody tr:visible td").all_inner_texts() == [
        "0 B",
        "",
        "0",
        "9",
        "0 B",
        "0 B",
        "2",
    ]
    page.locator("#kind").select_option("copies")
    page.locator("#phase").select_option("backward")
    page.get_by_text("1 of 5 events, 1.0 MiB copied").wait_for()
    page.get_by_role("button", name="Show all").click()
    assert names(page) == ["model.py", "long.py"]
    page.locator("#filter").fill("conv.weight is in no event")
    page.get_by_text("0 of 5 events").wait_for()
    assert names(page) == []


def test_a_filtered_line(open_report: Open) -> None:
    trace = small()
    trace.include(trace_of(event(line=3, bytes=512, module="net.other")))
    page = open_report(trace)
    page.locator("details.file > summary").first.click()
    line, other = page.locator("#f0-l3"), page.locator("#f0-l4")
    for each in (line, other):
        each.locator("> summary").click()
    assert line.locator(".margin").inner_text() == "3.0 MiB"
    page.locator("#filter").fill("net.other")
    page.get_by_text("1 of 6 events, 512 B copied").wait_for()
    assert line.locator(".margin").inner_text() == "512 B"
    assert line.locator(".event:visible").count() == 1
    assert other.get_attribute("class") == "hit loss out"
    assert other.locator(".event:visible").count() == 1
    page.get_by_role("button", name="Show all").click()
    assert line.locator(".margin").inner_text() == "3.0 MiB"
    assert line.locator(".event:visible").count() == 2
    assert other.get_attribute("class") == "hit loss"


TIES = (1280, 1792, 2304, 2816, 3328, 9 << 18, 11 << 18, 9 << 28, 100, 0)
"""In the middle between two tenths of a unit, and others."""


def ties() -> LayoutTrace:
    """One size a line, each an eighth of what its module copied, so that shares end in halves, too."""
    events = [
        event(line=line, bytes=size, module=f"net.{line}.{part}", phase=("forward", "backward")[part > 0])
        for line, size in enumerate(TIES, 1)
        for part in range(8)
    ]
    apart = [
        event(kind="internal", line=20, bytes=1280),
        event(kind="explicit", changes_format=False, line=21, bytes=2304),
        event(kind="loss", line=22),
        event(file=None, line=None, parameter="w", bytes=2304, phase="forward", module=None),
        event(file=None, line=None, parameter="w", bytes=1280, phase="backward", module=None),
        event(line=None, bytes=5, module="net"),
        event(file="b.py", line=1, bytes=1 << 20, phase="backward"),
    ]
    return trace_of(*events, *apart, sources={"model.py": LONG, "b.py": LONG}, level="deep")


def shown(page: Page) -> Any:
    """What the page says of sizes, and how it draws them."""
    return page.evaluate(
        """() => {
            const texts = (selector) => [...document.querySelectorAll(selector)]
                .filter((element) => !element.closest("[hidden]"))
                .map((element) => [...(element.children.length ? element.children : [element])]
                    .map((part) => part.textContent.replace(/\\s+/g, " ").trim()).filter(Boolean).join(" "));
            return {
                head: texts(".sums > div"), files: texts("#file-table tbody tr"), modules: texts("#module-table tbody tr"),
                lines: texts("#line-table tbody tr"), margins: texts(".hit .margin"), sums: texts(".file .sum"),
                places: texts(".place .margin"), titles: texts(".box title"),
                boxes: [...document.querySelectorAll(".box")].map((box) =>
                    [box.getAttribute("x"), box.getAttribute("width")].map(parseFloat).map((part) => part.toFixed(2))),
            };
        }"""
    )


def test_a_filter_that_is_cleared_leaves_all_as_it_was(open_report: Open) -> None:
    page = open_report(ties())
    before = shown(page)
    page.locator("#phase").select_option("forward")
    page.locator("#everything").wait_for()
    assert all(shown(page)[part] != whole for part, whole in before.items())
    page.get_by_role("button", name="Show all").click()
    page.locator("#everything").wait_for(state="hidden")
    assert shown(page) == before
    assert "2.2 KiB" in "".join(before["margins"] + before["places"] + before["titles"] + before["lines"])


def test_a_filter_holds_for_all_sums(open_report: Open) -> None:
    trace = small()
    trace.include(
        trace_of(event(file="long.py", line=150, bytes=7 << 20, phase="backward", module="net.body"))
    )
    trace.include(trace_of(event(file=None, line=None, parameter="conv.weight", bytes=512, phase="backward")))
    page = open_report(trace, trace)
    assert not page.get_by_text("Of all events, whatever the filter shows.").is_visible()
    page.locator("#phase").select_option("forward")
    page.get_by_text("4 of 7 events, 5.0 MiB copied").wait_for()
    now = shown(page)
    assert names(page) == ["model.py", "long.py"]
    assert now["head"][:3] == [
        "copied 5.0 MiB between channels_last and NCHW",
        "copies 3 on 3 lines",
        "losses 9 channels_last read, NCHW written",
    ]
    assert now["sums"] == ["2.0 MiB, 1 copy", "3.0 MiB, 1 copy, 9 losses"]
    assert now["places"] == ["2.0 KiB"]
    assert now["modules"] == [
        "net.head 3.0 MiB 1 9 0 B 0 B",
        "net.body 2.0 MiB 1 0 0 B 0 B",
        "(no module) 2.0 KiB 1 0 0 B 0 B",
    ]
    assert "net.body: 2.0 MiB, 40 %" in now["titles"]
    page.get_by_text("Of all events, whatever the filter shows.").wait_for()
    page.locator(".box[data-name='net.body']").click()
    page.get_by_text("1 of 7 events, 2.0 MiB copied").wait_for()
    assert shown(page)["titles"] == now["titles"]
    page.locator("#phase").select_option("backward")
    page.get_by_text("2 of 7 events, 8.0 MiB copied").wait_for()
    assert "net.body: 8.0 MiB, 100 %" in shown(page)["titles"]
    assert page.locator(".box[data-name='net.body']").get_attribute("width") == "100%"


def test_a_sorted_table_stays_sorted_when_filtered(open_report: Open) -> None:
    page = open_report(
        trace_of(
            event(file="a.py", bytes=100, phase="forward"),
            event(file="a.py", bytes=900, phase="backward"),
            event(file="b.py", bytes=200, phase="forward"),
            event(file="c.py", bytes=200, phase="forward", count=2),
        )
    )
    assert names(page) == ["a.py", "c.py", "b.py"]
    page.locator("#phase").select_option("forward")
    page.get_by_text("3 of 4 events").wait_for()
    assert names(page) == ["c.py", "b.py", "a.py"]
    page.keyboard.press("s")
    page.locator("#file-table").get_by_role("button", name="file", exact=True).click()
    page.locator("#phase").select_option("")
    page.get_by_text("3 of 4 events").wait_for(state="hidden")
    assert names(page) == ["a.py", "b.py", "c.py"]


@pytest.mark.parametrize("width", [360, 1280])
def test_margins_stand_beside_the_numbers_of_lines(open_report: Open, width: int) -> None:
    trace = trace_of(
        event(kind="explicit", changes_format=False, line=1234, bytes=900 << 10),
        event(kind="internal", line=12345, bytes=(1 << 20) - 1),
        event(kind="loss", line=12346, count=12345),
        event(line=12347, bytes=(1 << 30) - 1),
        sources={"model.py": "x = y.contiguous()\n" * 13_000},
        level="deep",
    )
    page = open_report(trace, width=width)
    for line in (1234, 12345, 12346, 12347):
        overlap = page.locator(f"#f0-l{line} > summary").evaluate(
            """(line) => {
                const margin = document.createRange(), code = document.createRange();
                margin.selectNodeContents(line.querySelector(".margin"));
                code.selectNodeContents(line.querySelector("code"));
                const place = line.getBoundingClientRect(), number = getComputedStyle(line, "::before");
                const end = place.left + parseFloat(number.left) + parseFloat(number.width);
                const digit = code.getBoundingClientRect().width / line.querySelector("code").textContent.length;
                const begin = end - digit * line.dataset.n.length;
                return {
                    margin: margin.getBoundingClientRect().right - begin,
                    code: end - code.getBoundingClientRect().left,
                    below: margin.getBoundingClientRect().bottom - place.bottom,
                };
            }"""
        )
        assert all(part <= 0.5 for part in overlap.values()), (line, overlap)


def test_a_line_by_mouse(open_report: Open) -> None:
    page = open_report(small())
    details = page.locator("#f0-l3 .about")
    assert not details.is_visible()
    page.locator("#line-table").get_by_role("link", name="model.py:3").click()
    details.get_by_text("The line asks for this copy.").wait_for()
    assert details.locator("del").inner_text() == "    seed = x.contiguous().detach()"
    page.locator("#f0-l3 > summary").click()
    assert not details.is_visible()
    page.locator("#f0-l4 > summary").click()
    page.locator("#f0-l4 .about").get_by_text("softmax writes NCHW").wait_for()
    page.locator("#f0-l3 > summary").click()
    details.get_by_role("link", name="EG101").click()
    page.locator("#rule-EG101").get_by_role("heading", name="Why is this bad?").wait_for()


def test_a_link_leads_to_its_line_again_and_through_a_filter(open_report: Open) -> None:
    page = open_report(small(), small())
    link = page.locator("#line-table").get_by_role("link", name="model.py:3")
    link.click()
    page.locator("#f0-l3 > summary").click()
    assert not page.locator("#f0-l3 .about").is_visible()
    link.click()
    page.locator("#f0-l3 .about").wait_for()
    page.locator("#filter").fill("long.py")
    page.get_by_text("1 of 5 events").wait_for()
    assert not page.locator("#f0-l3").is_visible()
    page.get_by_text("lines are the same").click()
    page.locator(".compare").get_by_role("link", name="model.py:3").click()
    page.locator("#f0-l3 .about").wait_for()
    assert page.locator("#filter").input_value() == ""


def test_a_file_by_mouse(open_report: Open) -> None:
    page = open_report(small())
    page.locator("#file-table").get_by_role("link", name="long.py").click()
    line = page.locator("#f1 .line[data-n='149']")
    line.wait_for()
    far = page.locator("#f1 .line[data-n='20']")
    assert not far.is_visible()
    page.get_by_text("lines 1 to 145").click()
    far.wait_for()
    assert far.inner_text() == "x19 = 19"


def test_lines_by_keyboard(open_report: Open) -> None:
    page = open_report(small())
    page.keyboard.press("Control+j")
    assert focused(page) is None
    page.keyboard.press("j")
    assert focused(page) == "f0-l3"
    page.keyboard.press("Enter")
    page.locator("#f0-l3 .about").wait_for()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert focused(page) == "f1-l150"
    page.keyboard.press("j")
    assert focused(page) == "f1-l150"
    page.keyboard.press("k")
    assert focused(page) == "f0-l5"
    page.keyboard.press("k")
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    assert not page.locator("#f0-l3 .about").is_visible()
    assert focused(page) == "f0-l3"


def test_lines_by_keyboard_go_on_from_where_one_is(open_report: Open) -> None:
    text = "".join(f"v{number} = x{number}.contiguous()\n" for number in range(1, 101))
    trace = trace_of(
        event(file="b.py", line=4, bytes=90_000),
        *(event(line=line, bytes=5000 - line) for line in (5, 30, 60)),
        event(kind="internal", line=20, bytes=900, phase="backward"),
        event(line=40, bytes=100, phase="backward"),
        sources={"model.py": text, "b.py": text},
        level="deep",
    )
    page = open_report(trace)

    def after(*keys: str) -> str | None:
        for key in keys:
            page.keyboard.press(key)
        return focused(page)

    page.evaluate("location.hash = '#f1-l20'")
    page.wait_for_timeout(50)
    page.evaluate("document.activeElement.blur()")
    assert after("j") == "f1-l30"
    page.evaluate("location.hash = '#f1-l60'")
    page.wait_for_timeout(50)
    assert after("k") == "f1-l40"
    page.locator("#f1-l20 > summary").click()
    assert after("k") == "f1-l5"
    page.locator("#f1-l40 > summary").click()
    page.locator("#phase").select_option("forward")
    page.get_by_text("4 of 6 events").wait_for()
    page.evaluate("document.activeElement.blur()")
    assert after("k") == "f1-l30"
    page.locator("#filter").fill("b.py")
    page.get_by_text("1 of 6 events").wait_for()
    page.evaluate("document.activeElement.blur()")
    assert after("j") == "f0-l4"
    page.get_by_role("button", name="Show all").click()
    page.evaluate("location.hash = '#f1'")
    page.wait_for_timeout(50)
    assert after("j") == "f1-l5"
    assert after("k", "k") == "f0-l4"


def test_the_focus_can_be_seen(open_report: Open) -> None:
    page = open_report(small())
    page.keyboard.press("j")
    outline = "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
    assert page.evaluate(outline) == "solid2px"


def test_help(open_report: Open) -> None:
    page = open_report(small())
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    page.keyboard.press("j")
    assert focused(page) is None
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light(open_report: Open, scheme: str) -> None:
    page = open_report(small(), color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 27)"
    first, second = (light, dark) if scheme == "light" else (dark, light)
    assert page.evaluate(ground) == first
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(ground) == second
    assert page.locator("#theme").get_attribute("aria-pressed") == str(second == dark).lower()
    page.reload()
    assert page.evaluate(ground) == second
    page.keyboard.press("d")
    assert page.evaluate(ground) == first


def test_the_button_follows_the_system(open_report: Open) -> None:
    page = open_report(small(), color_scheme="light")
    page.emulate_media(color_scheme="dark")
    page.locator("#theme[aria-pressed='true']").wait_for()
    page.emulate_media(color_scheme="light")
    page.locator("#theme[aria-pressed='false']").wait_for()


def test_zooming_into_a_module(open_report: Open) -> None:
    page = open_report(small())
    box = page.locator(".box[data-name='net.body']")
    small_width = box.bounding_box()
    assert small_width is not None
    box.click()
    page.get_by_text("2 of 5 events, 3.0 MiB copied").wait_for()
    page.wait_for_timeout(250)
    whole, zoomed = page.locator("#icicle").bounding_box(), box.bounding_box()
    assert whole is not None
    assert zoomed is not None
    assert zoomed["width"] == pytest.approx(whole["width"], abs=5)  # the outline of a box is drawn around it
    assert zoomed["width"] > small_width["width"]
    assert not page.locator(".box[data-name='net.head']").is_visible()
    assert page.locator("#line-table tbody a").all_inner_texts() == ["long.py:150", "model.py:5"]
    page.get_by_role("button", name="Show other modules than net.body, too").click()
    page.wait_for_timeout(250)
    again = box.bounding_box()
    assert again is not None
    assert again["width"] == pytest.approx(small_width["width"], abs=1)


def test_zooming_by_keyboard(open_report: Open) -> None:
    page = open_report(small(), reduced_motion="reduce")
    page.locator(".box").first.focus()
    path = []
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
        path.append(page.evaluate("document.activeElement.dataset.name"))
    assert path == ["net", "net.body", "net.head", "net.body", "net.body.conv", "net.body", "net.head"]
    page.keyboard.press("Enter")
    page.get_by_text("2 of 5 events, 3.0 MiB copied").wait_for()
    page.keyboard.press("Escape")
    assert page.locator(".box[data-name='net.body']").is_visible()
    assert names(page) == ["model.py", "long.py"]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_as_wide_as_the_window(open_report: Open, width: int) -> None:
    page = open_report(small(), trace_of(event(line=1), sources={"model.py": MODEL}), width=width)
    assert wide(page) == 0
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert wide(page) == 0
    for about in page.locator(".hit .about").all():
        place = about.bounding_box()
        assert place is not None
        assert place["width"] <= width


def long_names() -> LayoutTrace:
    """A file, a module, a test and a line with long names."""
    name = f"/w/{'projects_with_names/' * 2}experiments/vision/backbones/channels_last_blocks.py"
    module = ".".join(["model.backbone.stages.0.blocks.3.token_mixer.attention_module.projection"] * 2)
    return trace_of(
        event(file="/w/a.py", line=1),
        event(file=name, line=1, bytes=1 << 20, module=module, tests=(f"tests/{'x' * 120}.py::t",)),
        event(file=None, line=None, parameter=f"{module}.weight"),
        sources={name: f"x = x.contiguous().detach()  # {'y' * 300}\n", "/w/a.py": "y = y.contiguous()\n"},
    )


@pytest.mark.parametrize("width", [360, 720, 800, 1000, 1280])
def test_long_names_do_not_widen_the_page(open_report: Open, width: int) -> None:
    page = open_report(long_names(), long_names(), width=width)
    assert wide(page) == 0
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert wide(page) == 0
    page.emulate_media(media="print")
    beyond = page.evaluate(
        """[...document.querySelectorAll("main *, header *")]
            .filter((element) => !element.closest(".icicle, .only-read") && element.checkVisibility()
                && element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
            .map((element) => element.outerHTML.slice(0, 80))"""
    )
    assert not beyond
    lines = page.locator("td.n:visible").evaluate_all(
        """(cells) => cells.map((cell) => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return new Set([...range.getClientRects()].map((line) => Math.round(line.top))).size;
        })"""
    )
    assert max(lines) <= 2


@pytest.mark.parametrize("width", [720, 900, 1280])
def test_the_filter_hides_no_target(open_report: Open, width: int) -> None:
    page = open_report(long_names(), width=width)
    page.locator("#icicle .box").nth(8).dispatch_event("click")
    page.locator("#phase").select_option("forward")
    page.get_by_text("1 of 3 events").wait_for()
    page.evaluate("location.hash = '#f0'")
    page.wait_for_timeout(100)
    bar, target = page.locator("#tools").bounding_box(), page.locator("#f0").bounding_box()
    assert bar is not None
    assert target is not None
    assert bar["y"] + bar["height"] <= target["y"]


def test_letters_from_right_to_left_keep_their_place(open_report: Open) -> None:
    alef, bet = "\u05d0\u05d1\u05d2", "\u05d3\u05d4"
    text = f"{alef} = {bet}(1)\n"
    page = open_report(trace_of(event(line=1, module=f"{alef}.{bet}"), sources={"model.py": text}))
    page.locator("#f0-l1 > summary").click()
    for selector in ("#f0-l1 > summary > code", "#line-table code", "#f0-l1 tbody td:nth-child(4)"):
        in_order = page.locator(selector).first.evaluate(
            """(element) => {
                const places = [], walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
                for (let node = walker.nextNode(); node; node = walker.nextNode()) {
                    for (let at = 0; at < node.length; at++) {
                        const range = document.createRange();
                        range.setStart(node, at);
                        range.setEnd(node, at + 1);
                        places.push(range.getBoundingClientRect().left);
                    }
                }
                return places.length > 5 && places.every((place, at) => at === 0 || place >= places[at - 1]);
            }"""
        )
        assert in_order, selector


def test_tables_fit_on_a_phone(open_report: Open) -> None:
    page = open_report(long_names(), width=360)
    page.get_by_text("As a table").click()
    for cell in page.locator("#file-table td.n, #module-table td.n").all():
        place = cell.bounding_box()
        assert place is not None
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= 360
    page.locator("#file-table").get_by_role("button", name="bytes", exact=True).first.click()
    assert names(page)[0] == "a.py"


def test_what_matters_is_in_view_on_a_phone(open_report: Open) -> None:
    page = open_report(small(), trace_of(event(line=1), sources={"model.py": MODEL}), width=360)
    for row in [*page.locator(".lines tbody tr").all(), *page.locator(".compare tbody tr").all()]:
        for cell in row.locator("td:not(.where)").all():
            place = cell.bounding_box()
            assert place is None or place["x"] + place["width"] <= 360
        assert row.locator("a, span").first.is_visible()


def test_code_scrolls_in_its_own_box(open_report: Open) -> None:
    page = open_report(small(), width=360)
    page.locator("details.file > summary").first.click()
    assert page.evaluate(
        "(() => { const box = document.querySelector('#f0'); return box.scrollWidth > box.clientWidth; })()"
    )
    page.locator("#f0").evaluate("(box) => { box.scrollLeft = 200; }")
    assert wide(page) == 0


def test_what_is_known_of_a_line_stays_in_view_when_code_scrolls(open_report: Open) -> None:
    page = open_report(small(), width=360)
    page.locator("details.file > summary").first.click()
    page.locator("#f0-l3 > summary").click()
    page.locator("#f0").evaluate("(box) => { box.scrollLeft = 300; }")
    about, code = page.locator("#f0-l3 .about").bounding_box(), page.locator("#f0").bounding_box()
    assert about is not None
    assert code is not None
    assert about["x"] == pytest.approx(code["x"], abs=1)
    assert about["x"] + about["width"] <= 360
    ends = page.locator("#f0 .line:visible").evaluate_all(
        "(lines) => lines.map((line) => Math.round(line.getBoundingClientRect().right))"
    )
    assert len(set(ends)) == 1


def test_print(open_report: Open) -> None:
    page = open_report(small(), color_scheme="dark")
    page.get_by_role("button", name="Dark").click()
    page.get_by_role("button", name="Dark").click()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for selector in ("#f0-l3 .about", "#f1 .line[data-n='20']", "#rule-EG101", ".place .about"):
        assert page.locator(selector).is_visible(), selector
    for selector in ("#tools", "#theme", "#help"):
        assert not page.locator(selector).is_visible(), selector
    assert len(page.pdf()) > 10_000


def test_without_javascript(open_report: Open) -> None:
    page = open_report(small(), java_script_enabled=False)
    assert names(page) == ["model.py", "long.py"]
    assert page.locator("button:visible, input:visible, select:visible").count() == 0
    assert page.locator("#icicle").is_visible()
    page.locator("#line-table").get_by_role("link", name="long.py:150").click()
    line = page.locator("#f1-l150")
    line.wait_for()
    line.locator("summary").first.click()
    line.get_by_text("The operator makes this copy").wait_for()
    page.locator("details.file > summary").first.click()
    assert page.locator("#f0 .line").first.inner_text() == "def forward(self, x):"


def test_a_hostile_trace_runs_nothing(open_report: Open) -> None:
    fields = dict.fromkeys(
        ("operator", "source", "destination", "dtype", "device", "module", "function"), HOSTILE
    )
    hostile = event(file=f"{HOSTILE}.py", line=1, tests=(HOSTILE,), **fields)
    trace = trace_of(
        hostile,
        event(file=None, line=None, parameter=HOSTILE),
        sources={f"{HOSTILE}.py": f"{HOSTILE}\n# {HOSTILE}\n"},
        torch_version=HOSTILE,
    )
    trace.note_unseen(HOSTILE)
    page = open_report(trace, trace)
    page.locator("#filter").fill("alert")
    page.get_by_text(re.compile("2 of 2 events")).wait_for()
    page.locator(".box").nth(1).click()
    page.locator("#line-table a").click()
    page.keyboard.press("j")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert page.locator("#f0-l1 > summary > code").inner_text() == HOSTILE


def test_an_empty_trace(open_report: Open) -> None:
    page = open_report(trace_of())
    for key in "jks/":
        page.keyboard.press(key)
    page.keyboard.type("x")
    page.get_by_text("0 of 0 events").wait_for()
