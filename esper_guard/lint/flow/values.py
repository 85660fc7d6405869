"""Values, what is known of them, and which place holds which at one point of a program.

Facts belong to values, not to names: rebinding a name leaves the facts of its old value behind, and two names for
one value share them. A value is known by where it came from (a call, a parameter, a merge of two paths).
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from esper_guard.lint.flow.layouts import Layout
from esper_guard.lint.modules import Made

ALL_RANKS = (1 << 16) - 1  # one bit a rank
IMAGE_RANKS = 1 << 4 | 1 << 5  # the ranks that channels_last and channels_last_3d are defined for


def rank(number: int) -> int:
    """The set that holds one rank."""
    return 1 << number if 0 <= number < 16 else ALL_RANKS


class Kind(enum.Enum):
    """What a value is, where there is evidence for it."""

    UNKNOWN = "unknown"
    TENSOR = "tensor"
    TENSORS = "tuple or list of tensors"
    BATCH = "element of a data loader's batch: a tensor or a container, never a module"
    MODULE = "module"
    OTHER = "anything but a tensor"


class ContiguityTest(NamedTuple):
    """``is_contiguous(memory_format=...)`` was asked, with this outcome."""

    memory_format: str
    outcome: bool


class Value:
    """Something a program computes at one place; ``node`` is the syntax that made it."""

    __slots__ = ("is_entry", "node")

    def __init__(self, node: object, is_entry: bool = False) -> None:
        self.node = node
        self.is_entry = is_entry


class Atom(NamedTuple):
    """A test of one value: what each outcome says of it."""

    value: Value
    if_true: Facts
    if_false: Facts


class Not(NamedTuple):
    operand: Condition


class And(NamedTuple):
    left: Condition | None
    right: Condition | None
    size: int  # how many atoms it is made of: tests kept in variables can grow without bound


Condition = Atom | Not | And


class Facts(NamedTuple):
    """What is known of a value at one point."""

    kind: Kind = Kind.UNKNOWN
    ranks: int = ALL_RANKS
    tests: frozenset[ContiguityTest] = frozenset()
    condition: Condition | None = None
    layout: Layout | None = None  # of a tensor; or of a module's parameters, once converted
    made: frozenset[Made] = frozenset()  # what a module may have been made by

    def joined(self, other: Facts) -> Facts:
        """What still holds where a path with these facts meets one with the others."""
        if self == other:
            return self
        return Facts(
            self.kind if self.kind is other.kind else Kind.UNKNOWN,
            self.ranks | other.ranks,
            self.tests & other.tests,
            self.condition if self.condition == other.condition else None,
            self.layout if self.layout == other.layout else None,
            self.made | other.made if self.made and other.made else frozenset(),
        )

    def refined(self, other: Facts) -> Facts:
        """What holds once the others are known, too."""
        return Facts(
            self.kind if other.kind is Kind.UNKNOWN else other.kind,
            self.ranks & other.ranks or other.ranks,
            self.tests | other.tests,
            other.condition or self.condition,
            other.layout or self.layout,
            other.made or self.made,
        )


NOTHING = Facts()

# A name, then attributes (".weight"), constant subscripts ("[0]") and variable ones (the value of the index).
Place = tuple[str | Value, ...]


class Values:
    """The values of one function, each made once however often a loop is walked."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, object], Value] = {}
        self.merged_into: dict[Value, set[Value]] = {}
        self.in_conditions: set[Value] = set()
        self.in_places: set[Value] = set()

    def of(self, node: object, label: object = None) -> Value:
        key = (node, label)
        value = self._made.get(key)
        if value is None:
            value = self._made[key] = Value(node)
        return value

    def entry(self, place: Place) -> Value:
        """What ``place`` held before anything in sight touched it."""
        key = ("entry", place)
        value = self._made.get(key)
        if value is None:
            value = self._made[key] = Value(None, is_entry=True)
        return value

    def merge(self, node: object, place: object, operands: Iterable[Value]) -> Value:
        value = self.of(node, ("merge", place))
        for operand in operands:
            self.merged_into.setdefault(operand, set()).add(value)
        return value


class Places(dict[Place, Value]):
    """Which place holds which value, and how many places hold each."""

    def __init__(self, places: Mapping[Place, Value] = MappingProxyType({})) -> None:
        super().__init__(places)
        self._holders = Counter(self.values())

    def __setitem__(self, place: Place, value: Value) -> None:
        if (before := self.get(place)) is not None:
            self._holders[before] -= 1
        self._holders[value] += 1
        super().__setitem__(place, value)

    def __delitem__(self, place: Place) -> None:
        self._holders[self[place]] -= 1
        super().__delitem__(place)

    def copy(self) -> Places:
        twin = Places()
        twin.update(self)
        twin._holders = self._holders.copy()
        return twin

    def holding(self, value: Value) -> list[Place]:
        """The places that hold ``value``; most values are held by none."""
        return [place for place, held in self.items() if held is value] if self.holds(value) else []

    def holds(self, value: Value) -> bool:
        return self._holders.get(value, 0) > 0


class State:
    """Which place holds which value, and what is known of the values, at one point."""

    __slots__ = ("facts", "places", "values")

    def __init__(self, values: Values) -> None:
        self.values = values
        self.places = Places()
        self.facts: dict[Value, Facts] = {}

    def copy(self) -> State:
        twin = State(self.values)
        twin.places = self.places.copy()
        twin.facts = self.facts.copy()
        return twin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.places == other.places and self.facts == other.facts

    __hash__ = None  # type: ignore[assignment]

    def facts_of(self, value: Value) -> Facts:
        return self.facts.get(value, NOTHING)

    def know(self, value: Value, facts: Facts) -> None:
        if facts == NOTHING:
            self.facts.pop(value, None)
            return
        self.facts[value] = facts
        if facts.condition is not None:
            self.values.in_conditions.update(values_in(facts.condition))

    def refine(self, value: Value, facts: Facts) -> None:
        self.know(value, self.facts_of(value).refined(facts))

    def fresh(self, node: object, facts: Facts = NOTHING, label: object = None) -> Value:
        """The value that ``node`` computes now; what a loop's last round made there is another one."""
        value = self.values.of(node, label)
        self.retire(value)
        self.know(value, facts)
        return value

    def is_live(self, value: Value) -> bool:
        """Whether some place holds ``value``, is indexed by it, or keeps a test of it."""
        if self.places.holds(value):
            return True
        if value in self.values.in_places and any(value in place for place in self.places):
            return True
        return value in self.values.in_conditions and any(
            value in values_in(known.condition) for known in self.facts.values()
        )

    def bind(self, place: Place, value: Value) -> None:
        """``place`` holds ``value`` from here on; whatever was reached through it is unknown."""
        for other in [p for p in self.places if len(p) > len(place) and p[: len(place)] == place]:
            self.forget(other, value.node)
        if ".__dict__" in place:
            self.forget_below(place, value.node)
        for owner in self.places_holding(self.places.get(place[:-1])):
            if owner != place[:-1]:  # the same attribute or item, reached through another name for its owner
                self.forget_below(owner, value.node)
        if isinstance(place[-1], Value) or place[-1].startswith("["):
            self._forget_siblings(place, value.node)
        self.places[place] = value

    def forget(self, place: Place, node: object) -> None:
        self.places[place] = self.fresh(node, label=("lost", place))

    def places_holding(self, value: Value | None) -> list[Place]:
        return [] if value is None else self.places.holding(value)

    def forget_below(self, prefix: Place, node: object) -> None:
        """Something may have changed what is reached through ``prefix`` (its attributes and items), or an alias."""
        if ".__dict__" in prefix:
            prefix = prefix[: prefix.index(".__dict__")]
        for alias in {prefix, *self.places_holding(self.places.get(prefix))}:
            length = len(alias)
            for place in [p for p in self.places if len(p) > length and p[:length] == alias]:
                self.forget(place, node)

    def forget_attribute(self, attribute: str, node: object, but: Place | None) -> None:
        """``other.attribute`` was assigned: every place that goes through the attribute may be meant."""
        for place in [p for p in self.places if attribute in p[1:] and (not but or p[: len(but)] != but)]:
            self.forget(place, node)

    def _forget_siblings(self, place: Place, node: object) -> None:
        """``items[i]`` was assigned: with ``i`` unknown, any other item may be meant."""
        parent, key = place[:-1], place[-1]
        for other in [p for p in self.places if len(p) > len(parent) and p[: len(parent)] == parent]:
            step = other[len(parent)]
            is_item = isinstance(step, Value) or step.startswith("[")
            if is_item and (_may_be_any(step) or _may_be_any(key)):
                self.forget(other, node)

    def retire(self, value: Value) -> None:
        """``value`` is about to be made anew: who still holds the old one holds something else, of equal facts."""
        if value in self.values.in_places:
            for place in [p for p in self.places if value in p]:
                del self.places[place]
        facts = self.facts_of(value)
        for place in self.places.holding(value):
            lost = self.values.of("lost", place)
            if lost is value:
                continue
            self.places[place] = lost  # before the recursion, which then can't meet this holder again
            self.retire(lost)
            self.know(lost, facts)
        if value not in self.values.in_conditions:
            return
        for other, known in list(self.facts.items()):
            if value in values_in(known.condition):
                self.know(other, known._replace(condition=None))


def _may_be_any(key: str | Value) -> bool:
    """Whether an index may name the same item as another: it is variable, or counts from the end."""
    return isinstance(key, Value) or key.startswith("[-")


def values_in(condition: Condition | None) -> Iterator[Value]:
    if isinstance(condition, Atom):
        yield condition.value
    elif isinstance(condition, Not):
        yield from values_in(condition.operand)
    elif isinstance(condition, And):
        yield from values_in(condition.left)
        yield from values_in(condition.right)


def assume(state: State, condition: Condition | None, outcome: bool) -> State:
    """``state`` on the path where ``condition`` came out as ``outcome``."""
    if condition is None:
        return state
    if isinstance(condition, Not):
        return assume(state, condition.operand, not outcome)
    if isinstance(condition, And):
        if outcome:
            return assume(assume(state, condition.left, True), condition.right, True)
        left = assume(state, condition.left, False)
        right = assume(assume(state, condition.left, True), condition.right, False)
        return _meet_of_one_program_point(left, right)
    refined = state.copy()
    refined.refine(condition.value, condition.if_true if outcome else condition.if_false)
    return refined


def _meet_of_one_program_point(left: State, right: State) -> State:
    both = left.copy()
    for value in {*left.facts, *right.facts}:
        both.know(value, left.facts_of(value).joined(right.facts_of(value)))
    return both


def join(node: object, states: Iterable[State | None]) -> State | None:
    """The state where paths meet at ``node``: what all of them agree on. No path at all is None."""
    paths = [state for state in states if state is not None]
    if len(paths) < 2:
        return paths[0] if paths else None
    joined = paths[0]
    for number, other in enumerate(paths[1:]):
        joined = _join_two((node, number), joined, other)
    return joined


def _join_two(key: object, left: State, right: State) -> State:
    for place, a, b in list(_differing(left, right)):
        merged = left.values.merge(key, place, (a, b))
        left = _with_retired(left, merged, a)
        right = _with_retired(right, merged, b)
    joined = State(left.values)
    joined.places = Places({**right.places, **left.places})
    _join_facts(joined, left, right)
    for place, a, b in _differing(left, right):
        merged = left.values.merge(key, place, (a, b))
        joined.places[place] = merged
        joined.know(merged, left.facts_of(a).joined(right.facts_of(b)))
    return joined


def _differing(left: State, right: State) -> Iterator[tuple[Place, Value, Value]]:
    """The places that hold one value on the left and another on the right."""
    entry = left.values.entry
    for place in {**left.places, **right.places}:
        a, b = left.places.get(place), right.places.get(place)
        if a is None or b is None:
            # An unbound name can't be read, so the path that binds it decides; an attribute may have been there.
            if len(place) == 1:
                continue
            a, b = a or entry(place), b or entry(place)
        if a is not b:
            yield place, a, b


def _with_retired(state: State, merged: Value, held: Value) -> State:
    """``state`` without what an earlier round of a loop left behind of ``merged``."""
    if held is merged or not state.is_live(merged):
        return state
    state = state.copy()
    state.retire(merged)
    return state


def _join_facts(joined: State, left: State, right: State) -> None:
    """Most facts are those of the path before: they are the same object on both sides."""
    joined.facts = {value: known for value, known in left.facts.items() if right.facts.get(value) is known}
    for value in (left.facts.keys() & right.facts.keys()) - joined.facts.keys():
        joined.know(value, left.facts[value].joined(right.facts[value]))
    for own, other in ((left, right), (right, left)):
        for value in own.facts.keys() - other.facts.keys():
            # The other path never met this value; what nothing holds can't be met again.
            if not value.is_entry and own.places.holds(value) and not other.places.holds(value):
                joined.know(value, own.facts[value])
