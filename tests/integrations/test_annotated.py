"""Memory formats as types, read by `expects`, beartype and jaxtyping: the real ones."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
)

import pytest
import torch
import typing_extensions as te
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from typing_extensions import Unpack

from esper_guard import (
    ChannelsLast,
    ChannelsLast3d,
    Contiguous,
    MemoryFormatError,
    SameFormatAs,
    expects,
)

GOOD = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
GOOD_3D = torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
BAD = {
    "nchw": torch.randn(2, 3, 4, 5),
    "ghost": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)[0].unsqueeze(0),
    "strided": GOOD[:, :2],
    "matrix": torch.randn(3, 4),
    "no tensor": 3,
}
Images = Float[Tensor, "n c h w"]
Anything = TypeVar("Anything")
Whole = TypeVar("Whole", bound=int)


class Nesting(NamedTuple):
    """A type, and how to build a value of it with a leaf for each of its places."""

    hint: Any
    places: int
    build: Callable[[list[Any]], Any]


def leaf(hint: Any) -> Nesting:
    return Nesting(hint, 1, lambda leaves: leaves[0])


def parts(several: Sequence[Nesting], leaves: list[Any]) -> list[Any]:
    built, at = [], 0
    for nesting in several:
        built.append(nesting.build(leaves[at : at + nesting.places]))
        at += nesting.places
    return built


def together(hint: Any, several: Sequence[Nesting], build: Callable[[list[Any]], Any]) -> Nesting:
    places = sum(nesting.places for nesting in several)
    return Nesting(hint, places, lambda leaves: build(parts(several, leaves)))


def nestings(leaf_hints: list[Any], most: int) -> st.SearchStrategy[Nesting]:
    """``most``: the most items of containers whose items beartype samples."""

    def extend(inner: st.SearchStrategy[Nesting]) -> st.SearchStrategy[Nesting]:
        several = st.lists(inner, min_size=1, max_size=3)
        number = st.integers(1, most)
        return st.one_of(
            several.map(lambda ns: together(tuple[tuple(n.hint for n in ns)], ns, tuple)),
            st.tuples(inner, number).map(lambda a: together(tuple[a[0].hint, ...], [a[0]] * a[1], tuple)),
            st.tuples(inner, number).map(lambda a: together(list[a[0].hint], [a[0]] * a[1], list)),
            st.tuples(inner, number).map(lambda a: together(Sequence[a[0].hint], [a[0]] * a[1], list)),
            st.tuples(inner, number).map(
                lambda a: together(
                    dict[str, a[0].hint], [a[0]] * a[1], lambda vs: {f"k{i}": v for i, v in enumerate(vs)}
                )
            ),
            st.tuples(inner, number).map(
                lambda a: together(Mapping[int, a[0].hint], [a[0]] * a[1], lambda vs: dict(enumerate(vs)))
            ),
            inner.map(lambda n: Nesting(Optional[n.hint], n.places, n.build)),  # noqa: UP045
            inner.map(lambda n: Nesting(Union[int, n.hint], n.places, n.build)),  # noqa: UP007
        )

    return st.recursive(st.sampled_from([leaf(hint) for hint in leaf_hints]), extend, max_leaves=5)


class Signature(NamedTuple):
    """A function's source, its annotations, and how to call it."""

    source: str
    hints: dict[str, Any]
    places: int
    arguments: Callable[[list[Any]], tuple[list[Any], dict[str, Any]]]


@st.composite
def signatures(draw: st.DrawFn, leaf_hints: list[Any], most: int) -> Signature:
    kinds = draw(
        st.lists(st.sampled_from("positional plain default keyword".split()), min_size=1, max_size=4)
    )
    kinds = sorted(kinds, key="positional plain default keyword".split().index)
    extras = draw(st.sets(st.sampled_from(["args", "kwargs"])))
    drawn = nestings(leaf_hints, most)
    parameters = {f"p{i}": (kind, draw(drawn)) for i, kind in enumerate(kinds)}
    text: list[str] = []
    slash = sum(kind == "positional" for kind in kinds)
    star = False
    for at, (name, (kind, _)) in enumerate(parameters.items()):
        if kind == "keyword" and not star:
            text.append("*args: A_args" if "args" in extras else "*")
            star = True
        text.append(f"{name}: A_{name}" + (" = None" if kind == "default" else ""))
        if at + 1 == slash:
            text.append("/")
    if "args" in extras and not star:
        text.append("*args: A_args")
    if "kwargs" in extras:
        text.append("**kwargs: A_kwargs")
    hints: dict[str, Any] = {name: nesting.hint for name, (_, nesting) in parameters.items()}
    nested = [nesting for _, nesting in parameters.values()]
    for extra in sorted(extras):
        nesting = draw(drawn)
        hints[extra] = nesting.hint
        nested.append(nesting)

    def arguments(leaves: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        values = parts(nested, leaves)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for (name, (kind, _)), value in zip(parameters.items(), values, strict=False):
            if kind == "keyword" or (kind == "default" and "args" not in extras):
                kwargs[name] = value
            else:
                args.append(value)
        rest = dict(zip(sorted(extras), values[len(parameters) :], strict=True))
        if "args" in rest:
            args.append(rest["args"])
        if "kwargs" in rest:
            kwargs["more"] = rest["kwargs"]
        return args, kwargs

    source = f"def function({', '.join(text)}): return 7"
    return Signature(source, hints, sum(n.places for n in nested), arguments)


def functions(signature: Signature, *decorators: Callable[[Any], Any]) -> list[Callable[..., Any]]:
    names = {f"A_{name}": hint for name, hint in signature.hints.items()}
    made = []
    for decorate in decorators:
        scope: dict[str, Any] = dict(names)
        exec(signature.source, scope)  # noqa: S102 - made above
        made.append(decorate(scope["function"]))
    return made


def rejects(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> bool:
    try:
        assert function(*args, **kwargs) == 7
    except (MemoryFormatError, BeartypeCallHintViolation, TypeCheckError):
        return True
    return False


ALL_HINTS: list[Any] = [ChannelsLast, Annotated[Tensor, torch.channels_last]]


@settings(max_examples=200)
@given(st.data())
def test_one_bad_leaf_anywhere_is_found(data: st.DataObject) -> None:
    signature = data.draw(signatures(ALL_HINTS, most=3))
    (ours,) = functions(signature, expects)
    leaves: list[Any] = [GOOD] * signature.places
    args, kwargs = signature.arguments(leaves)
    assert not rejects(ours, args, kwargs)
    at = data.draw(st.integers(0, signature.places - 1))
    leaves[at] = BAD[data.draw(st.sampled_from(["nchw", "ghost", "strided", "matrix"]))]
    args, kwargs = signature.arguments(leaves)
    with pytest.raises(MemoryFormatError) as raised:
        ours(*args, **kwargs)
    assert raised.value.violations[0].shape == tuple(leaves[at].shape)


@settings(max_examples=200)
@given(st.data())
def test_beartype_agrees_where_it_looks_at_every_item(data: st.DataObject) -> None:
    signature = data.draw(signatures([ChannelsLast], most=1))
    ours, theirs = functions(signature, expects, beartype)
    leaves: list[Any] = [GOOD] * signature.places
    bad = data.draw(st.sampled_from([None, *BAD]))
    if bad is not None:
        leaves[data.draw(st.integers(0, signature.places - 1))] = BAD[bad]
    args, kwargs = signature.arguments(leaves)
    assert rejects(ours, args, kwargs) == rejects(theirs, args, kwargs)
    if bad not in (None, "no tensor"):
        assert rejects(ours, args, kwargs)


@settings(max_examples=200)
@given(st.data())
def test_jaxtyping_agrees_where_beartype_looks_at_every_item(data: st.DataObject) -> None:
    signature = data.draw(signatures([ChannelsLast[Images]], most=1))
    ours, theirs = functions(signature, expects, jaxtyped(typechecker=beartype))
    leaves: list[Any] = [GOOD] * signature.places
    bad = data.draw(st.sampled_from([None, "nchw", "strided"]))
    if bad is not None:
        leaves[data.draw(st.integers(0, signature.places - 1))] = BAD[bad]
    args, kwargs = signature.arguments(leaves)
    assert rejects(ours, args, kwargs) == rejects(theirs, args, kwargs) == (bad is not None)


class TestSamplingLimits:
    """What beartype does not look at; `expects` does."""

    @staticmethod
    def both(hint: Any) -> list[Callable[..., Any]]:
        return functions(
            Signature("def function(x: A_x): return 7", {"x": hint}, 0, lambda _: ([], {})), expects, beartype
        )

    def test_of_a_list_one_random_item(self) -> None:
        ours, theirs = self.both(list[ChannelsLast])
        value = [GOOD, BAD["nchw"]]
        found = sum(rejects(theirs, [value], {}) for _ in range(200))
        assert 0 < found < 200
        assert all(rejects(ours, [value], {}) for _ in range(200))

    def test_of_a_dict_the_first_item(self) -> None:
        ours, theirs = self.both(dict[str, ChannelsLast])
        value = {"a": GOOD, "b": BAD["nchw"]}
        assert not any(rejects(theirs, [value], {}) for _ in range(200))
        assert rejects(ours, [value], {})

    def test_of_a_dataclass_nothing(self) -> None:
        ours, theirs = self.both(Batch)
        assert not rejects(theirs, [Batch(BAD["nchw"])], {})
        assert rejects(ours, [Batch(BAD["nchw"])], {})

    def test_of_a_relation_only_that_it_is_a_tensor(self) -> None:
        hints = {"x": ChannelsLast, "y": SameFormatAs["x"]}
        signature = Signature("def function(x: A_x, y: A_y): return 7", hints, 0, lambda _: ([], {}))
        ours, theirs = functions(signature, expects, beartype)
        assert not rejects(theirs, [GOOD, BAD["nchw"]], {})
        assert rejects(theirs, [GOOD, 3], {})
        assert rejects(ours, [GOOD, BAD["nchw"]], {})


@dataclasses.dataclass
class Batch:
    image: ChannelsLast
    label: Tensor | None = None
    next: Batch | None = None


class Pair(NamedTuple):
    left: ChannelsLast
    right: Contiguous


class Features(TypedDict, total=False):
    low: ChannelsLast
    high: ChannelsLast


Alias = NewType("Alias", ChannelsLast)  # type: ignore[valid-newtype]


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (ChannelsLast, GOOD, BAD["nchw"]),
        (ChannelsLast, GOOD_3D, GOOD_3D.contiguous()),
        (ChannelsLast3d, GOOD_3D, GOOD),
        (Contiguous, BAD["nchw"], GOOD),
        (Contiguous, torch.randn(3, 4), torch.randn(3, 4).t()),
        (Annotated[Tensor, ChannelsLast], GOOD, BAD["nchw"]),
        (Annotated[Tensor, "a note", torch.channels_last, ["unhashable"]], GOOD, GOOD_3D),
        (ChannelsLast[Images], GOOD, BAD["nchw"]),
        (Batch, Batch(GOOD), Batch(BAD["ghost"])),
        (Batch, Batch(GOOD, None, Batch(GOOD)), Batch(GOOD, None, Batch(BAD["nchw"]))),
        (list[Batch], [Batch(GOOD)], [Batch(GOOD), Batch(BAD["nchw"])]),
        (Pair, Pair(GOOD, BAD["nchw"]), Pair(GOOD, GOOD)),
        (Pair, Pair(GOOD, BAD["nchw"]), (GOOD, BAD["nchw"])),
        (Features, {"low": GOOD}, {"low": GOOD, "high": BAD["nchw"]}),
        (Features, {}, {"high": BAD["nchw"]}),
        (Alias, GOOD, BAD["nchw"]),
        (ChannelsLast | None, None, BAD["nchw"]),
        (ChannelsLast | list[ChannelsLast], [GOOD], [BAD["nchw"]]),
        (ChannelsLast | Contiguous, BAD["nchw"], BAD["strided"]),
        (set[ChannelsLast], {GOOD}, {GOOD, BAD["nchw"]}),
        ("list[ChannelsLast]", [GOOD], [BAD["nchw"]]),
        (list["ChannelsLast"], [GOOD], [BAD["nchw"]]),
        (tuple[int, ChannelsLast], (3, GOOD), (3, BAD["nchw"])),
        (tuple[int, ChannelsLast], (3, GOOD), (3,)),
        (list[ChannelsLast], [], (GOOD,)),
        (list[ChannelsLast], [], GOOD),
    ],
)
def test_what_a_type_means(hint: Any, good: Any, bad: Any) -> None:
    def function(x): ...

    function.__annotations__["x"] = hint
    checked = expects(function)
    checked(good)
    with pytest.raises(MemoryFormatError):
        checked(bad)


@dataclasses.dataclass
class Odd:
    image: ChannelsLast
    other: Undefined = None  # type: ignore[name-defined]  # noqa: F821


@dataclasses.dataclass
class Boxed(Generic[Anything]):
    content: Anything


class Named(Protocol):
    name: str


class Plain(TypedDict):
    key: int


class Chain(NamedTuple):
    image: ChannelsLast
    rest: Optional[Chain] = None  # noqa: UP045


Number = NewType("Number", int)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (Odd, Odd(GOOD), Odd(BAD["nchw"])),
        (Boxed[ChannelsLast], Boxed(GOOD), Boxed(BAD["nchw"])),
        (list[Boxed[ChannelsLast]], [Boxed(GOOD)], [Boxed(BAD["nchw"])]),
        (Chain, Chain(GOOD, Chain(GOOD)), Chain(GOOD, Chain(GOOD, Chain(BAD["nchw"])))),
        (ChannelsLast | Literal["same"], "same", BAD["nchw"]),
        (Union[ChannelsLast, Number], 3, BAD["nchw"]),  # noqa: UP007
        (Union[ChannelsLast, Number], GOOD, "text"),  # noqa: UP007
        (Union[ChannelsLast, Whole], 3, BAD["nchw"]),  # noqa: UP007
        (ChannelsLast | Plain, {"key": 1}, BAD["nchw"]),
        (ChannelsLast | Named, object(), BAD["nchw"]),
        (Union[ChannelsLast, Annotated[int, "some"]], 3, BAD["nchw"]),  # noqa: UP007
        (ChannelsLast | float, 1, BAD["nchw"]),
        (Iterable[ChannelsLast], [GOOD], [BAD["nchw"]]),
        (Iterable[ChannelsLast], iter([BAD["nchw"]]), BAD["nchw"]),  # an iterator is not consumed
        (tuple[ChannelsLast, Unpack[tuple[int, ...]]], (GOOD, 1, 2), (BAD["nchw"], 1)),
        (ChannelsLast | Any, BAD["nchw"], None),
    ],
)
def test_what_other_types_mean(hint: Any, good: Any, bad: Any) -> None:
    def function(x): ...

    function.__annotations__["x"] = hint
    checked = expects(function)
    checked(good)
    if bad is not None:
        with pytest.raises(MemoryFormatError):
            checked(bad)


@dataclasses.dataclass
class Tree:
    image: ChannelsLast
    branches: list[Branch]


@dataclasses.dataclass
class Branch:
    tree: Tree


@dataclasses.dataclass
class Outer(Generic[Anything]):
    boxed: Boxed[Anything]


@dataclasses.dataclass
class Inherits(Boxed[ChannelsLast]):
    scale: ClassVar[int] = 1


class GenericPair(NamedTuple, Generic[Anything]):
    image: Anything
    label: int


class GenericDict(te.TypedDict, Generic[Anything]):
    image: Anything
    label: int


@dataclasses.dataclass
class Qualified:
    image: Final[ChannelsLast]  # type: ignore[misc]
    shared: ClassVar[ChannelsLast] = GOOD


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (Tree, Tree(GOOD, [Branch(Tree(GOOD, []))]), Tree(GOOD, [Branch(Tree(BAD["nchw"], []))])),
        (Branch, Branch(Tree(GOOD, [])), Branch(Tree(BAD["nchw"], []))),
        (Outer[ChannelsLast], Outer(Boxed(GOOD)), Outer(Boxed(BAD["nchw"]))),
        (Inherits, Inherits(GOOD), Inherits(BAD["nchw"])),
        (GenericPair[ChannelsLast], GenericPair(GOOD, 3), GenericPair(BAD["nchw"], 3)),
        (GenericDict[ChannelsLast], {"image": GOOD, "label": 3}, {"image": BAD["nchw"], "label": 3}),
        (Qualified, Qualified(GOOD), Qualified(BAD["nchw"])),
    ],
)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="generic named tuples are new in Python 3.11")
def test_records_that_mention_others(hint: Any, good: Any, bad: Any) -> None:
    test_what_other_types_mean(hint, good, bad)


def test_a_field_of_a_class_that_is_defined_later() -> None:
    @dataclasses.dataclass
    class Holder:
        inner: Later

    @expects
    def function(holder: Holder, x: ChannelsLast) -> None: ...

    class Later(NamedTuple):
        image: ChannelsLast

    globals()["Later"] = Later
    try:
        function(Holder(Later(GOOD)), GOOD)
        with pytest.raises(MemoryFormatError, match=r"holder\.inner\.image is nchw"):
            function(Holder(Later(BAD["nchw"])), GOOD)
    finally:
        del globals()["Later"]


def test_a_record_that_contains_itself() -> None:
    @expects
    def function(batch: Batch) -> None: ...

    batch = Batch(GOOD)
    batch.next = batch
    function(batch)
    batch.image = BAD["nchw"]
    with pytest.raises(MemoryFormatError, match=r"batch\.image is nchw"):
        function(batch)


def test_relations_in_records() -> None:
    @dataclasses.dataclass
    class Result:
        image: SameFormatAs["x"]  # noqa: F821, UP037

    @expects
    def function(x: ChannelsLast, y: Tensor) -> Result:
        return Result(y)

    function(GOOD, GOOD)
    with pytest.raises(MemoryFormatError, match=r"result\.image is nchw, expected same as x"):
        function(GOOD, BAD["nchw"])


def test_keywords_of_a_typed_dict() -> None:
    @expects
    def function(**features: Unpack[Features]) -> None: ...

    function(low=GOOD)
    with pytest.raises(MemoryFormatError, match=r"features\['low'\] is nchw"):
        function(low=BAD["nchw"])


def test_a_relation_to_a_parameter_that_is_not_there() -> None:
    with pytest.raises(TypeError, match="no parameter 'z'"):

        @expects
        def function(x: Annotated[Tensor, SameFormatAs("z")]) -> None: ...


def test_undefined_names_that_have_nothing_to_do_with_it() -> None:
    @expects(x="channels_last")
    def function(x: Tensor, data: NonContiguousDataset, more: Annotated[Unknown, "doc"] = None) -> None: ...  # noqa: F821

    for _ in range(2):
        function(GOOD, 3)
        with pytest.raises(MemoryFormatError):
            function(BAD["nchw"], 3)

    @expects
    def other(x: Unknown) -> None: ...  # noqa: F821

    for _ in range(2):
        with pytest.raises(TypeError, match=r"nothing to expect.*not defined"):
            other(GOOD)


def test_a_default_of_none() -> None:
    @expects
    def function(x: ChannelsLast = None) -> None: ...  # type: ignore[assignment]

    function()
    with pytest.raises(MemoryFormatError):
        function(BAD["nchw"])


@pytest.mark.parametrize("hint", [Batch, Pair, Odd, Features])
def test_records_in_one_graph(hint: Any) -> None:
    def function(x):
        return (x["low"] if isinstance(x, dict) else x[0] if isinstance(x, tuple) else x.image) + 1

    function.__annotations__["x"] = hint
    values = {Batch: Batch(GOOD), Pair: Pair(GOOD, BAD["nchw"]), Odd: Odd(GOOD), Features: {"low": GOOD}}
    torch._dynamo.reset()
    torch.compile(expects(function), fullgraph=True, backend="eager")(values[hint])
    torch._dynamo.reset()


def test_an_undefined_name_in_one_graph() -> None:
    @expects(x="channels_last")
    def function(x: Tensor, other: Unknown = None) -> Tensor:  # noqa: F821
        return x + 1

    torch._dynamo.reset()
    torch.compile(function, fullgraph=True, backend="eager")(GOOD)
    torch._dynamo.reset()


def test_an_ambiguous_tensor_is_accepted_as_either() -> None:
    @expects
    def function(x: ChannelsLast, y: Contiguous) -> SameFormatAs["x"]:  # noqa: F821, UP037
        return y

    one = torch.randn(2, 1, 4, 5)
    function(one, one.to(memory_format=torch.channels_last))


def test_a_result_is_compared_with_an_argument() -> None:
    @expects
    def function(x: ChannelsLast, y: Annotated[Tensor, SameFormatAs("x")], wrong: bool) -> SameFormatAs["x"]:  # noqa: F821, UP037
        return x.contiguous() if wrong else y

    function(GOOD, GOOD, False)
    with pytest.raises(MemoryFormatError, match=r"y is nchw, expected same as x \(channels_last\)"):
        function(GOOD, BAD["nchw"], False)
    with pytest.raises(MemoryFormatError, match=r"result is nchw, expected same as x \(channels_last\)"):
        function(GOOD, GOOD, True)


def test_linters_may_take_the_quotes_away() -> None:
    @expects
    def function(x: ChannelsLast, y: Tensor) -> SameFormatAs[x]:  # type: ignore[name-defined]  # noqa: F821
        return y

    function(GOOD, GOOD)
    with pytest.raises(MemoryFormatError):
        function(GOOD, BAD["nchw"])


def test_of_a_generator_each_value() -> None:
    @expects
    def function(*values: Tensor) -> Iterator[ChannelsLast]:
        yield from values

    assert len(list(function(GOOD, GOOD))) == 2
    with pytest.raises(MemoryFormatError):
        list(function(GOOD, BAD["nchw"]))


def test_a_name_may_be_defined_later() -> None:
    @expects
    def function(batch: Later) -> Unknown: ...  # noqa: F821

    class Later(NamedTuple):
        image: ChannelsLast

    globals()["Later"] = Later
    try:
        function(Later(GOOD))
        with pytest.raises(MemoryFormatError):
            function(Later(BAD["nchw"]))
    finally:
        del globals()["Later"]


def test_a_format_under_an_undefined_name_is_an_error() -> None:
    @expects
    def function(batch: list[ChannelsLast[Undefined]]) -> None: ...  # noqa: F821

    with pytest.raises(NameError, match=r"of 'batch' in .* can't be read: .*'Undefined' is not defined"):
        function([GOOD])


def test_types_and_keywords_together() -> None:
    @expects(y="contiguous")
    def function(x: ChannelsLast, y: ChannelsLast) -> None: ...

    function(GOOD, BAD["nchw"])
    with pytest.raises(MemoryFormatError, match="x is nchw"):
        function(BAD["nchw"], BAD["nchw"])


def test_they_show_what_they_are() -> None:
    assert repr(ChannelsLast).endswith("ChannelsLast]")
    assert repr(SameFormatAs("x.y")) == "SameFormatAs('x.y')"
    assert SameFormatAs("x") == SameFormatAs("x") != SameFormatAs("y")
    with pytest.raises(ValueError, match="names no value"):
        SameFormatAs["x +"]
