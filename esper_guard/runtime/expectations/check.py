"""Whether a value is as expected, and what of it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from esper_guard.runtime.expectations.error import Violation
from esper_guard.runtime.expectations.leaves import (
    Path,
    is_among,
    is_uninitialised,
    leaves_of,
    parts_of,
    spell,
)
from esper_guard.runtime.expectations.lost import where_lost
from esper_guard.runtime.expectations.places import MISSING, Place, is_symbolic
from esper_guard.runtime.expectations.remedy import remedy_for
from esper_guard.runtime.expectations.wanted import (
    AllOf,
    Ambiguous,
    AnyOf,
    Each,
    Expectation,
    Format,
    Instance,
    Items,
    Keys,
    Leaves,
    Predicate,
    Same,
)
from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS, Layout, has_strides, layout_of

Reference: TypeAlias = tuple[Path, Layout, int]
"""A tensor's path, layout and rank as they were on entering, for those that shall be the same."""


References: TypeAlias = "dict[str, list[Reference]]"
"""By the text of the place."""


class Check:
    """Collects what is not as expected of one call. Written so that Dynamo can trace it, torch 2.4's as well."""

    def __init__(
        self,
        ambiguous: Ambiguous,
        references: References,
        *,
        lenient: bool = False,
        made: bool = False,
    ) -> None:
        """``lenient``: pass over tensors that can't have the format even if they are not in a container.

        ``made``: the values come out of what is checked, so that the remedy lies within.
        """
        self.ambiguous = ambiguous
        self.lenient = lenient
        self.made = made
        self.references = references
        self.violations: list[Violation] = []
        self._inside: list[Any] = []

    def value(self, expectation: Expectation | None, value: Any, path: Path) -> None:
        """Look at a value, and at what it holds."""
        if expectation is None or value is MISSING or is_symbolic(value):
            return
        if isinstance(expectation, Leaves):
            self._leaves(expectation.expectation, value, path)
        elif isinstance(expectation, (Format, Same, Predicate)):
            if isinstance(value, Tensor):
                self._tensor(expectation, value, path, path)
            else:
                self._report(path, _kind_of(value), f"a {expectation.text} tensor")
        elif isinstance(expectation, AllOf):
            for part in expectation.expectations:
                self.value(part, value, path)
        elif isinstance(expectation, AnyOf):
            self._any(expectation, value, path)
        else:
            self._container(expectation, value, path)

    def place(self, expectation: Expectation, place: Place, value: Any, optional: bool) -> None:
        """Look at what the steps of a place lead to; ``optional``: from keywords, which need not be given."""
        if optional and place.steps[0][1] not in value:
            return
        try:
            found = place.of(value)
        except (AttributeError, KeyError, IndexError, TypeError):
            self._report(
                place.name, _kind_of(value), f"something that has {place.text.removeprefix(place.name)}"
            )
            return
        self.value(expectation, found, place.text)

    def _container(self, expectation: Items | Keys | Each | Instance, value: Any, path: Path) -> None:
        if is_among(value, self._inside):
            return
        self._inside.append(value)
        if isinstance(expectation, Items):
            self._items(expectation, value, path)
        elif isinstance(expectation, Keys):
            self._keys(expectation, value, path)
        elif isinstance(expectation, Each):
            self._each(expectation, value, path)
        elif not isinstance(value, expectation.kind):
            self._report(path, _kind_of(value), f"a {expectation.kind.__name__}")
        else:
            for name, part in expectation.fields:
                self.value(
                    part, _part(value, name), (path, ("[" if isinstance(value, Mapping) else ".", name))
                )
        self._inside.pop()

    def _each(self, expectation: Each, value: Any, path: Path) -> None:
        if isinstance(value, Tensor) or not isinstance(value, expectation.kind):
            wanted = "container" if expectation.kind is object else expectation.kind.__name__
            self._report(path, _kind_of(value), f"a {wanted}")
            return
        for step, part in parts_of(value) or []:
            self.value(expectation.expectation, part, (path, step))

    def _leaves(self, expectation: Format | Same | Predicate, value: Any, path: Path) -> None:
        if isinstance(value, Tensor) and not self.lenient:
            self._tensor(expectation, value, path, path)
            return
        if value is not None and not self.lenient and parts_of(value) is None:
            self._report(path, _kind_of(value), f"a {expectation.text} tensor")
            return
        for here, tensor in leaves_of(value, path):
            if not isinstance(expectation, Format) or expectation.concerns(tensor.dim()):
                self._tensor(expectation, tensor, here, path)

    def _tensor(self, expectation: Format | Same | Predicate, tensor: Tensor, path: Path, root: Path) -> None:
        """``root``: of the value that a relation compares as a whole."""
        if is_uninitialised(tensor):
            return
        if isinstance(expectation, Predicate):
            if not expectation.function(tensor):
                self._report(path, _state_of(tensor), expectation.text, tensor)
            return
        if (
            isinstance(expectation, Format)
            and self.ambiguous == "accept"
            and expectation.plainly_met_by(tensor)
        ):
            return
        if not has_strides(tensor):
            if path is root and not self.lenient and isinstance(expectation, Format):
                self._report(path, _state_of(tensor), expectation.text, tensor)
            return
        layout = layout_of(tensor)
        if isinstance(expectation, Format):
            if not expectation.met_by(layout, tensor.dim(), self.ambiguous):
                self._report(path, str(layout), expectation.text, tensor, expectation)
            return
        references = self.references.get(expectation.place.text, [])
        reference = _counterpart(references, path, root, expectation.place.text)
        if reference is None:
            if references:
                formats = ", ".join(f"{spell(there)} is {other}" for there, other, _ in references[:3])
                wanted = f"{expectation.text}, which has several formats: {formats}"
                self._report(path, str(layout), wanted, tensor)
            return
        _, other, rank = reference
        if (
            tensor.dim() in CHANNELS_LAST_FORMATS
            or rank == tensor.dim()
            or (path is root and not self.lenient)
        ):
            format = _same_format(other, layout, self.ambiguous)
            if format is not None and not _is_expanded(tensor):
                self._report(path, str(layout), f"{expectation.text} ({other})", tensor, format)

    def _items(self, expectation: Items, value: Any, path: Path) -> None:
        parts = parts_of(value) if isinstance(value, (tuple, list)) else None
        few = parts is None or len(parts) < len(expectation.items)
        if parts is None or few or (len(parts) > len(expectation.items) and not expectation.open_ended):
            least = "at least " if expectation.open_ended else ""
            found = _kind_of(value) if parts is None else f"{_kind_of(value)} of {len(parts)}"
            self._report(path, found, f"a sequence of {least}{len(expectation.items)}")
            return
        for index, item in enumerate(expectation.items):
            step, part = parts[index]
            self.value(item, part, (path, step))

    def _keys(self, expectation: Keys, value: Any, path: Path) -> None:
        for key, item in expectation.keys:
            part = _part(value, key)
            if part is not MISSING:
                self.value(item, part, (path, ("[" if isinstance(value, Mapping) else ".", key)))
            else:
                self._report(path, _kind_of(value), f"something that has {key!r}")

    def _any(self, expectation: AnyOf, value: Any, path: Path) -> None:
        if isinstance(value, expectation.kinds) or (expectation.others and not isinstance(value, Tensor)):
            return
        least: list[Violation] | None = None
        for alternative in expectation.expectations:
            check = Check(self.ambiguous, self.references, lenient=self.lenient, made=self.made)
            check._inside = self._inside
            check.value(alternative, value, path)
            if not check.violations:
                return
            if least is None or _nearness(check.violations) < _nearness(least):
                least = check.violations
        self.violations.extend(least or [])

    def _report(
        self, path: Path, found: str, wanted: str, tensor: Tensor | None = None, format: Format | None = None
    ) -> None:
        spelled = spell(path)
        if tensor is None:
            self.violations.append(Violation(spelled, found, wanted))
            return
        plain = has_strides(tensor)
        self.violations.append(
            Violation(
                path=spelled,
                found=found,
                wanted=wanted,
                shape=None if tensor.is_nested else tuple(tensor.shape),
                strides=tuple(tensor.stride()) if plain else None,
                kind=f"{str(tensor.dtype).removeprefix('torch.')} {tensor.device}",
                lost_at=where_lost(tensor) if plain else None,
                remedy=remedy_for(tensor, format, self.made) if plain and format is not None else "",
            )
        )


def remember(places: list[tuple[Place, Any]]) -> References:
    """The layouts of what others shall be the same as.

    Args:
        places: with the values of their names.
    """
    references: References = {}
    for place, value in places:
        references[place.text] = [
            (path, layout_of(tensor), tensor.dim())
            for path, tensor in leaves_of(_found(place, value), place.text)
            if has_strides(tensor)
        ]
    return references


def _found(place: Place, value: Any) -> Any:
    if not place.steps:
        return value
    try:
        return place.of(value)
    except (AttributeError, KeyError, IndexError, TypeError):
        return None  # there is nothing to compare with


def _counterpart(references: list[Reference], path: Path, root: Path, place: str) -> Reference | None:
    """The tensor at the same place of the other value; else any, if all are of one format; else None."""
    if len(references) == 1:
        return references[0]
    twin = place + spell(path).removeprefix(spell(root))
    for reference in references:
        if spell(reference[0]) == twin:
            return reference
    images = [reference for reference in references if reference[2] in CHANNELS_LAST_FORMATS] or references
    for reference in images:
        if reference[1] != images[0][1]:
            return None
    return images[0] if images else None


def _same_format(other: Layout, layout: Layout, ambiguous: Ambiguous) -> Format | None:
    """None if kernels take both for the same format; else what it should be."""
    # not other.taken_for: Dynamo of torch 2.4 doesn't know properties of named tuples
    same = ("channels_last" in layout) == ("channels_last" in other)
    if (layout.state == "ambiguous" or other.state == "ambiguous") and ambiguous != "hint":
        same = ambiguous == "accept"
    return None if same else Format(other.taken_for, text=other.taken_for)


def _is_expanded(tensor: Tensor) -> bool:
    """Whether it is one number at every place, such as the gradient of a sum: that has no format."""
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if size != 1 and stride != 0:
            return False
    return tensor.numel() > 1


def _part(value: Any, key: Any) -> Any:
    if isinstance(value, Mapping):
        return value.get(key, MISSING)
    return getattr(value, key, MISSING) if isinstance(key, str) else MISSING


def _nearness(violations: list[Violation]) -> tuple[bool, int]:
    """Wrong tensors are nearer to what was meant than values that are none."""
    return any(violation.shape is None for violation in violations), len(violations)


def _state_of(tensor: Tensor) -> str:
    if not has_strides(tensor):
        return "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    return str(layout_of(tensor))


def _kind_of(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__qualname__}"
