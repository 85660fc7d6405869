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
        "1",
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
