"""Tables of results that nobody measured."""

from __future__ import annotations

from markdown_it import MarkdownIt

from esper_guard.profiling.line_table import line_cells
from esper_guard.profiling.markdown import render_markdown
from esper_guard.profiling.module_table import doubt_about_modules, module_cells
from esper_guard.profiling.result import ModuleTime, Spread
from esper_guard.profiling.table import render_table
from tests.profiling.made_up import comparison, line, profile, variant


def module(name: str, forward: float, backward: float = 0.0, copied: int = 0) -> ModuleTime:
    halves = [Spread(median=seconds, low=seconds, high=seconds) for seconds in (forward, backward)]
    return ModuleTime(module=name, kind="Conv2d", forward=halves[0], backward=halves[1], copied=copied)


def test_the_same_line_in_several_modules_is_one_row() -> None:
    lines = [line(module="a"), line(module="b", count=2), line(module="b", phase="backward"), line(line=9)]
    assert line_cells(lines, 10)[1:3] == [
        ("1.0 MiB", "3", "hidden", "aten.clone.default", "model.py:7 (a and 1 more)", "x = x.reshape(8, -1)"),
        (
            "512.0 KiB",
            "1",
            "hidden, backward",
            "aten.clone.default",
            "model.py:7 (b)",
            "x = x.reshape(8, -1)",
        ),
    ]
    assert len(line_cells(lines, 2)) == 3


def test_lines_of_nchw_are_shown_if_they_copy_between_formats() -> None:
    quiet = comparison([variant("NCHW", [line(changes_format=False)]), variant("NHWC", [line()])])
    assert "lines, NCHW" not in render_table(profile(quiet))
    assert line_cells([line(changes_format=False), line(kind="loss", line=8)], 10)[1:] == [
        ("", "1", "loss", "aten.clone.default", "model.py:8 (head)", "x = x.reshape(8, -1)")
    ]
    both = comparison([variant("NCHW", [line()]), variant("NHWC", [line()])])
    assert "lines, NCHW" in render_table(profile(both))


def test_modules_stand_side_by_side_the_largest_difference_first() -> None:
    before = [module("a", 1e-3, 1e-3), module("b", 1e-3, 2e-3), module("idle", 0.0)]
    after = [module("b", 1e-3, 5e-3, copied=1024), module("a", 2e-3, 1e-3), module("idle", 0.0)]
    found = comparison([variant("NCHW", modules=before), variant("NHWC", modules=after)])
    header, *rows = module_cells(found, 10)
    assert header == (
        "module", "class", "NCHW forward", "NHWC forward", "NCHW backward", "NHWC backward", "NHWC / NCHW", "copied"
    )  # fmt: skip
    assert [row[0] for row in rows] == ["b", "a"]
    assert rows[0][4:] == ("2.00 (2.00 to 2.00)", "5.00 (5.00 to 5.00)", "2.00", "1.0 KiB")


def test_no_column_is_empty_in_inference() -> None:
    found = comparison(
        [variant("NCHW", modules=[module("a", 1e-3)]), variant("NHWC", modules=[module("a", 2e-3)])]
    )
    assert "NCHW backward" not in module_cells(found, 10)[0]


def test_modules_that_add_up_to_much_more_than_the_step_are_not_shown() -> None:
    modules = [module("a", 3.0, 2.0)]
    found = comparison(
        [variant("NCHW", seconds=1.0, modules=modules), variant("NHWC", seconds=1.0, modules=modules)]
    )
    doubt = doubt_about_modules(found)
    assert doubt is not None
    assert doubt.startswith("Modules are not shown: those of NCHW add up to 2.5 times the step")
    for text in (render_table(profile(found)), render_markdown(profile(found))):
        assert doubt in text
        assert "largest difference" not in text.lower()
    quiet = comparison([variant("NCHW", seconds=2.0, modules=modules), variant("NHWC", seconds=2.0)])
    assert doubt_about_modules(quiet) is None


def test_source_text_stays_text_in_markdown() -> None:
    each = comparison(
        [variant("NCHW"), variant("NHWC")], advice=["m.py:1 `x = 'a`b'  # <b>` copies <img src=x> *1* B."]
    )
    text = render_markdown(profile(each, target="m:f('<script>')"))
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    assert not {"html_block", "html_inline", "em_open"} & {token.type for token in (*tokens, *inner)}
    assert "<script>" in "".join(child.content for child in inner)
