"""Traces made by hand, and pages taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from typing import Any

from esper_guard import LayoutTrace
from esper_guard.trace import LayoutEvent
from esper_guard.trace.tally import prototype_of

_VOID = frozenset({"meta", "input", "br", "hr"})


def event(**fields: Any) -> LayoutEvent:
    """A hidden copy of 4 KiB on line 3 of model.py, but for what is given."""
    defaults: dict[str, Any] = {
        "kind": "hidden",
        "operator": "aten.clone.default",
        "source": "channels_last",
        "destination": "nchw",
        "source_shape": (2, 8, 8, 8),
        "shape": (2, 8, 8, 8),
        "dtype": "float32",
        "device": "cpu",
        "phase": "forward",
        "bytes": 4096,
        "file": "model.py",
        "line": 3,
        "module": "layers.0.conv",
    }
    return LayoutEvent(**{**defaults, **fields})


def trace_of(*events: LayoutEvent, sources: dict[str, str] | None = None, **fields: Any) -> LayoutTrace:
    """A trace with these events and sources."""
    trace = LayoutTrace(**{"torch_version": "2.13.0", **fields})
    for each in events:
        trace.tally(prototype_of(each)).include(each)
    trace.sources.update(sources or {})
    return trace


class Element:
    """A part of a page."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element | str] = []

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    @property
    def text(self) -> str:
        """All of it, as written."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def walk(self) -> Iterator[Element]:
        """Itself, and what is in it."""
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, tag: str = "", name: str = "", **attributes: str) -> list[Element]:
        """What has this tag, class and attributes; ``id_="x"`` and ``data_file="0"`` are those of HTML."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            element
            for element in self.walk()
            if tag in ("", element.tag)
            and (not name or name in element.classes)
            and all(element.attributes.get(key) == value for key, value in wanted.items())
        ]

    def one(self, tag: str = "", name: str = "", **attributes: str) -> Element:
        """The only one of these."""
        (found,) = self.all(tag, name, **attributes)
        return found

    def rows(self) -> list[list[str]]:
        """The texts of the cells of a table's body, spaces made one."""
        return [
            [" ".join(cell.text.split()) for cell in row.children if isinstance(cell, Element)]
            for row in self.one("tbody").all("tr")
        ]


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {tag} {attrs}"
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        closed = self._open.pop()
        assert closed.tag == tag, f"</{tag}> closes <{closed.tag}>"

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def finished(self) -> Element:
        self.close()
        assert self._open == [self.root], f"not closed: {[element.tag for element in self._open]}"
        return self.root


def parsed(page: str) -> Element:
    """The page as a tree. Fails where a tag is not closed, or closes another one."""
    builder = _Builder()
    builder.feed(page)
    return builder.finished()


def lines_in(page: Element, file: int = 0) -> list[str]:
    """The source of a file as the page shows it."""
    found: list[str] = []
    for line in page.one("div", id_=f"f{file}").all(name="line"):
        code = [child for child in line.children if isinstance(child, Element) and child.tag == "code"]
        found.append(code[0].text if line.tag == "summary" else line.text)
    return found


def without_trailing(lines: Iterable[str]) -> list[str]:
    """Lines without the empty one after the last line ending."""
    found = list(lines)
    return found[:-1] if found and not found[-1] else found
