"""``@expects``: what is checked, what it says, and that functions stay what they are."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import functools
import gc
import inspect
import pickle
import types
import typing
import warnings
import weakref
from collections import OrderedDict, deque, namedtuple
from collections.abc import AsyncIterator, Callable, Iterator
from types import MappingProxyType
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree

import esper_guard
from esper_guard import Layout, MemoryFormatError, MemoryFormatWarning, expects, layout_of, trace_layouts
from tests.conftest import run_python

NHWC = torch.channels_last
GOOD = torch.randn(2, 3, 4, 5).to(memory_format=NHWC)
NCHW = torch.randn(2, 3, 4, 5)
GHOST = GOOD[0].unsqueeze(0)
SLICE = GOOD[:, :2]
AMBIGUOUS = torch.randn(2, 1, 4, 5)
AMBIGUOUS_LAST = AMBIGUOUS.to(memory_format=NHWC)
VOLUME = torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
MATRIX = torch.randn(3, 4)

OLD_DYNAMO = torch.__version__ < "2.8"


def problem(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The message of the error that a call raises."""
    with pytest.raises(MemoryFormatError) as raised:
        function(*args, **kwargs)
    assert len(str(raised.value).splitlines()) < 10
    return str(raised.value)


class TestValues:
    """What can be expected of a tensor."""

    @pytest.mark.parametrize(
        ("expected", "good", "bad"),
        [
            ("channels_last", [GOOD, VOLUME, AMBIGUOUS, AMBIGUOUS_LAST], [NCHW, GHOST, SLICE, MATRIX]),
            ("nhwc", [GOOD], [NCHW, GHOST]),
            (NHWC, [GOOD, AMBIGUOUS], [VOLUME, NCHW, GHOST]),
            (torch.channels_last_3d, [VOLUME], [GOOD, VOLUME.contiguous()]),
            ("channels_last_3d", [VOLUME], [GOOD]),
            ("nchw", [NCHW, AMBIGUOUS, MATRIX, VOLUME.contiguous()], [GOOD, GHOST, MATRIX.t()]),
            (torch.contiguous_format, [NCHW, MATRIX], [GOOD]),
            ("contiguous", [NCHW], [GOOD]),
            ("ambiguous", [AMBIGUOUS, AMBIGUOUS_LAST], [GOOD, NCHW]),
            ("ambiguous(channels_last)", [AMBIGUOUS_LAST], [AMBIGUOUS, GOOD]),
            (Layout("ambiguous", "nchw"), [AMBIGUOUS], [AMBIGUOUS_LAST]),
            ("ghost", [GHOST], [GOOD]),
            ("strided", [SLICE, MATRIX.t()], [GOOD]),
            ("strided(channels_last)", [SLICE], [MATRIX.t(), GOOD]),
            (lambda x: x.stride(1) == 1, [GOOD, GHOST], [NCHW]),
        ],
    )
    def test_states_formats_and_functions(self, expected: Any, good: list[Tensor], bad: list[Tensor]) -> None:
        @expects(x=expected)
        def function(x: Tensor) -> Tensor:
            return x

        for tensor in good:
            assert function(tensor) is tensor
        for tensor in bad:
            problem(function, tensor)

    @pytest.mark.parametrize(
        ("policy", "accepted"),
        [("accept", "both both"), ("hint", "last first"), ("reject", "none none")],
    )
    def test_ambiguous_tensors(self, policy: Any, accepted: str) -> None:
        last = expects(x="channels_last", ambiguous=policy)(lambda x: x)
        first = expects(x="nchw", ambiguous=policy)(lambda x: x)
        for function, which in zip((last, first), accepted.split(), strict=True):
            for tensor, kind in ((AMBIGUOUS_LAST, "last"), (AMBIGUOUS, "first")):
                if which in ("both", kind):
                    function(tensor)
                else:
                    problem(function, tensor)

    @given(st.data())
    def test_as_layout_of_says(self, data: st.DataObject) -> None:
        shape = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
        strides = data.draw(st.lists(st.integers(0, 20), min_size=len(shape), max_size=len(shape)))
        tensor = torch.empty(2000).as_strided(shape, strides)
        layout = layout_of(tensor)
        expected = data.draw(st.sampled_from(["nchw", "channels_last"]))
        policy = data.draw(st.sampled_from(["accept", "hint", "reject"]))
        met = layout.state == expected
        if layout.state == "ambiguous":
            met = policy == "accept" or (policy == "hint" and layout.hint == expected)
        function = expects(x=expected, ambiguous=policy)(lambda x: x)
        if met:
            function(tensor)
        else:
            problem(function, tensor)

    def test_a_value_without_tensors(self) -> None:
        function = expects(x="channels_last")(lambda x=None: x)
        function(None)
        function()
        function([])
        function([None, 3, "text"])
        assert "x is of type int, expected a channels_last tensor" in problem(function, 3)
        assert "x is of type str" in problem(function, "channels_last")

    @pytest.mark.filterwarnings("ignore:.*nested tensors")
    def test_tensors_without_strides(self) -> None:
        function = expects(x="channels_last")(lambda x: x)
        assert "x is sparse_coo" in problem(function, NCHW.to_sparse())
        assert "x is nested" in problem(function, torch.nested.nested_tensor([MATRIX, MATRIX]))

    @pytest.mark.parametrize(
        ("written", "message"),
        [
            ("chanels_last", "did you mean 'channels_last'"),
            (torch.preserve_format, "same as NAME"),
            ("same as x +", "names no value"),
        ],
    )
    def test_what_is_no_expectation(self, written: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            expects(x=written)

    @pytest.mark.parametrize("written", [3, Tensor, object()])
    def test_what_can_be_none(self, written: Any) -> None:
        with pytest.raises(TypeError, match="can't be expected"):
            expects(x=written)

    def test_an_unknown_policy(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'reject'"):
            expects(x="nchw", ambiguous="rejekt")

    def test_uninitialised_parameters(self) -> None:
        class Lazy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.LazyConv2d(4, 3)

            @expects({"self.conv.weight": "channels_last"}, x="channels_last")
            def forward(self, x: Tensor) -> Tensor:
                return self.conv(x)

        lazy = Lazy()
        lazy(GOOD)
        problem(lazy, GOOD)


class TestRelations:
    @pytest.mark.parametrize("tensor", [GOOD, NCHW, VOLUME, AMBIGUOUS, AMBIGUOUS_LAST, GHOST, SLICE, MATRIX])
    def test_a_value_is_the_same_as_itself(self, tensor: Tensor) -> None:
        expects(returns="same as x")(lambda x: x)(tensor)

    @pytest.mark.parametrize(
        ("before", "after", "same"),
        [
            (GOOD, GOOD.relu(), True),
            (GOOD, NCHW, False),
            (NCHW, GOOD, False),
            (SLICE, GOOD, True),  # elementwise operators close the gaps
            (GOOD, SLICE, True),  # kernels take both for channels_last
            (GHOST, NCHW, True),  # which is what kernels make of a ghost
            (GHOST, GOOD, False),
            (AMBIGUOUS, GOOD, True),
            (GOOD, AMBIGUOUS, True),
            (GOOD, GHOST, False),
            (GOOD, torch.ones(()).expand(2, 3, 4, 5), True),  # one number everywhere has no format
            (GOOD, MATRIX, False),
        ],
    )
    def test_kernels_decide(self, before: Tensor, after: Tensor, same: bool) -> None:
        function = expects(returns="same as x")(lambda x: after)
        if same:
            function(before)
        else:
            problem(function, before)

    def test_hints_of_ambiguous_tensors(self) -> None:
        function = expects(returns="same as x", ambiguous="hint")(lambda x, y: y)
        function(AMBIGUOUS_LAST, GOOD)
        problem(function, AMBIGUOUS, GOOD)

    def test_what_it_was_on_entering_counts(self) -> None:
        @expects(returns="same as x")
        def function(x: Tensor) -> Tensor:
            x.data = x.contiguous()
            return x

        assert "same as x (channels_last)" in problem(function, GOOD.clone())

    def test_of_containers(self) -> None:
        function = expects(y="same as x")(lambda x, y: None)
        function([GOOD, NCHW], [GOOD, NCHW])
        assert "y[1] is channels_last, expected same as x (nchw)" in problem(
            function, [GOOD, NCHW], [GOOD, GOOD]
        )
        function({"a": GOOD, "b": GOOD}, GOOD)
        assert "which has several formats: x['a'] is" in problem(function, {"a": GOOD, "b": NCHW}, GOOD)
        function(GOOD, [GOOD, MATRIX])
        function(None, NCHW)

    def test_of_tensors_without_strides(self) -> None:
        function = expects(returns="same as x")(lambda x: x)
        function(NCHW.to_sparse())
        function([NCHW.to_sparse(), GOOD])


@dataclasses.dataclass
class Record:
    image: Any
    label: Any = None


Pair = namedtuple("Pair", "left right")


class Own:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.fixture
def registered() -> Iterator[None]:
    _pytree.register_pytree_node(Own, lambda own: ([own.tensor], None), lambda leaves, _: Own(leaves[0]))
    yield
    _pytree.SUPPORTED_NODES.pop(Own)


def cyclic(x: Tensor) -> list[Any]:
    made: list[Any] = []
    made += [made, {"again": made}, x]
    return made


CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "list": (lambda x: [GOOD, x], "x[1]"),
    "tuple": (lambda x: (x,), "x[0]"),
    "dict": (lambda x: {"a": {3: x}}, "x['a'][3]"),
    "OrderedDict": (lambda x: OrderedDict(a=x), "x['a']"),
    "mapping": (lambda x: MappingProxyType({"a": x}), "x['a']"),
    "deque": (lambda x: deque([x]), "x[0]"),
    "set": (lambda x: {x}, "x[0]"),
    "named tuple": (lambda x: Pair(GOOD, [x]), "x.right[0]"),
    "dataclass": (lambda x: Record(GOOD, Record(x)), "x.label.image"),
    "size": (lambda x: [torch.Size([3]), x], "x[1]"),
    "deep": (lambda x: functools.reduce(lambda inner, _: [inner], range(300), x), "x" + "[0]" * 300),
    "cyclic": (lambda x: cyclic(x), "x[2]"),
}


class TestContainers:
    @pytest.mark.parametrize("name", CONTAINERS)
    def test_every_tensor_is_found(self, name: str) -> None:
        build, path = CONTAINERS[name]
        function = expects(x="channels_last")(lambda x: None)
        function(build(GOOD))
        with pytest.raises(MemoryFormatError) as raised:
            function(build(NCHW))
        assert raised.value.violations[0].path == path

    def test_pytrees(self, registered: None) -> None:
        function = expects(x="channels_last")(lambda x: None)
        function(Own(GOOD))
        assert "x[0] is nchw" in problem(function, Own(NCHW))

    def test_attrs(self) -> None:
        attr = pytest.importorskip("attr")
        record = attr.make_class("AttrsRecord", ["image"])
        function = expects(x="channels_last")(lambda x: None)
        function(record(GOOD))
        assert "x.image is nchw" in problem(function, record(NCHW))

    def test_what_can_not_have_the_format_is_passed_over(self) -> None:
        function = expects(x="channels_last")(lambda x: None)
        function({"image": GOOD, "label": torch.tensor([1, 2]), "mask": None})
        expects(x=torch.channels_last)(lambda x: None)([GOOD, VOLUME])

    def test_tensors_without_strides_in_them(self) -> None:
        expects(x="nchw")(lambda x: None)([NCHW.to_sparse(), NCHW])

    def test_shared_containers_are_searched_once(self) -> None:
        shared: Any = [GOOD]
        for _ in range(40):
            shared = [shared, shared]
        expects(x="channels_last")(lambda x: None)(shared)

    def test_several_at_once(self) -> None:
        text = problem(expects(x="channels_last")(lambda x: None), [NCHW, GOOD, GHOST, *[NCHW] * 9])
        assert "x[0] is nchw" in text
        assert "also: x[2] is ghost" in text
        assert text.endswith("and 7 more")

    def test_expectations_for_parts(self) -> None:
        @expects(batch={"image": "channels_last", "label": None}, returns=("channels_last", ["nchw", None]))
        def function(batch: Any, wrong: bool = False) -> Any:
            return GOOD, [GOOD if wrong else NCHW, GOOD]

        function({"image": GOOD, "label": NCHW, "more": NCHW})
        function({"image": GOOD})
        assert "batch['image'] is nchw" in problem(function, {"image": NCHW})
        assert "expected something that has 'image'" in problem(function, {"img": GOOD})
        assert "result[1][0] is channels_last" in problem(function, {"image": GOOD}, wrong=True)
        rank = expects(x=["channels_last"])(lambda x: None)
        assert "only 4-D and 5-D" in problem(rank, [MATRIX])  # named by a container, so meant
        assert "x is of type list of 2, expected a sequence of 1" in problem(rank, [GOOD, GOOD])
        attributes = expects(x={"image": "channels_last"})(lambda x: None)
        assert "x.image is nchw" in problem(attributes, Record(NCHW))


class Model:
    """Every kind of method."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.holder = {"w": [weight]}

    @expects(
        {"self.weight": "channels_last", "self.holder['w'][0]": "channels_last"},
        x="channels_last",
        returns="same as x",
    )
    def method(self, x: Tensor) -> Tensor:
        return x if x.shape[0] == 2 else x.contiguous()

    @expects(x="channels_last")
    @staticmethod
    def above_static(x: Tensor) -> Tensor:
        return x

    @staticmethod
    @expects(x="channels_last")
    def below_static(x: Tensor) -> Tensor:
        return x

    @expects(x="channels_last")
    @classmethod
    def above_class(cls, x: Tensor) -> type:
        return cls

    @classmethod
    @expects(x="channels_last")
    def below_class(cls, x: Tensor) -> type:
        return cls

    @expects(returns="channels_last")
    @property
    def above_property(self) -> Tensor:
        """The weight."""
        return self.weight

    @property
    @expects(returns="channels_last")
    def below_property(self) -> Tensor:
        return self.weight

    @below_property.setter
    @expects(value="channels_last")
    def below_property(self, value: Tensor) -> None:
        self.weight = value

    @expects(returns="channels_last")
    @functools.cached_property
    def cached(self) -> Tensor:
        return self.weight

    @expects(x="channels_last")
    def __private(self, __x: int, x: Tensor) -> Tensor:  # noqa: PYI063 - a mangled name
        return x

    def call_private(self, x: Tensor) -> Tensor:
        return self.__private(1, x)


class TestKinds:
    @pytest.mark.parametrize(
        "name", ["method", "above_static", "below_static", "above_class", "below_class", "call_private"]
    )
    def test_methods(self, name: str) -> None:
        method = getattr(Model(GOOD), name)
        method(GOOD)
        problem(method, NCHW)

    @pytest.mark.parametrize("name", ["above_property", "below_property", "cached"])
    def test_properties(self, name: str) -> None:
        assert getattr(Model(GOOD), name) is GOOD
        problem(getattr, Model(NCHW), name)

    def test_a_property_stays_one(self) -> None:
        assert Model.above_property.__doc__ == "The weight."
        model = Model(GOOD)
        model.below_property = GOOD
        with pytest.raises(MemoryFormatError, match="value is nchw"):
            model.below_property = NCHW

    def test_attributes(self) -> None:
        text = problem(Model(NCHW).method, GOOD)
        assert "self.weight is nchw" in text
        assert "also: self.holder['w'][0] is nchw" in text

    def test_an_attribute_that_is_not_there(self) -> None:
        function = expects({"x.weight": "channels_last"})(lambda x: None)
        assert "x is of type int, expected something that has .weight" in problem(function, 3)
        function(None)

    def test_every_way_of_passing(self) -> None:
        @expects(
            {"kwargs['extra']": "channels_last"},
            a="channels_last", b="channels_last", args="channels_last", c="channels_last", d="channels_last",
        )  # fmt: skip
        def function(a: Any, /, b: Any = GOOD, *args: Any, c: Any, d: Any = GOOD, **kwargs: Any) -> Any:
            return a, b, args, c, d, kwargs

        assert function(GOOD, c=GOOD) == (GOOD, GOOD, (), GOOD, GOOD, {})
        function(GOOD, GOOD, GOOD, GOOD, c=GOOD, d=GOOD, other=NCHW, extra=GOOD)
        assert "a is nchw" in problem(function, NCHW, c=GOOD)
        assert "b is nchw" in problem(function, GOOD, NCHW, c=GOOD)
        assert "b is nchw" in problem(function, GOOD, b=NCHW, c=GOOD)
        assert "args[1] is nchw" in problem(function, GOOD, GOOD, GOOD, NCHW, c=GOOD)
        assert "c is nchw" in problem(function, GOOD, c=NCHW)
        assert "d is nchw" in problem(function, GOOD, c=GOOD, d=NCHW)
        assert "kwargs['extra'] is nchw" in problem(function, GOOD, c=GOOD, extra=NCHW)
        with pytest.raises(TypeError, match=r"function\(\) missing 1 required keyword-only argument: 'c'"):
            function(GOOD)

    def test_a_place_that_leads_nowhere(self) -> None:
        function = expects({"batch['image']": "channels_last"})(lambda batch: None)
        function({"image": GOOD})
        function({"image": None})
        for wrong in ({"img": GOOD}, [GOOD], GOOD):
            assert "expected something that has ['image']" in problem(function, wrong)

    def test_a_bad_default(self) -> None:
        assert "x is nchw" in problem(expects(x="channels_last")(lambda x=NCHW: x))

    def test_all_keywords(self) -> None:
        function = expects(kwargs="channels_last")(lambda **kwargs: kwargs)
        assert "kwargs['b'] is nchw" in problem(function, a=GOOD, b=NCHW)

    def test_classes(self) -> None:
        @expects(x="channels_last", returns="same as x")
        class Block(nn.Module):
            """A block."""

            def forward(self, x: Tensor) -> Tensor:
                return x.relu()

        @expects(x="channels_last")
        class Inherits(Block):
            pass

        @expects(x="channels_last")
        class Plain:
            def __call__(self, x: Tensor) -> Tensor:
                return x

        for kind in (Block, Inherits, Plain):
            assert isinstance(kind, type)
            kind()(GOOD)
            problem(kind(), NCHW)
        assert Block.__doc__ == "A block."
        assert isinstance(pickle.loads(pickle.dumps(Decorated())), Decorated)

    def test_a_class_without_a_forward(self) -> None:
        with pytest.raises(TypeError, match=r"needs a forward\(\)"):

            @expects(x="channels_last")
            class Nothing:
                pass

    def test_coroutines(self) -> None:
        @expects(x="channels_last", returns="channels_last")
        async def function(x: Tensor, wrong: bool = False) -> Tensor:
            await asyncio.sleep(0)
            return NCHW if wrong else x

        assert inspect.iscoroutinefunction(function)
        assert asyncio.run(function(GOOD)) is GOOD
        problem(lambda: asyncio.run(function(NCHW)))
        problem(lambda: asyncio.run(function(GOOD, wrong=True)))

    def test_generators(self) -> None:
        log: list[Any] = []

        @expects(x="channels_last", returns="channels_last")
        def function(x: Tensor) -> Iterator[Tensor]:
            try:
                sent = yield x
                log.append(sent)
                try:
                    yield x
                except KeyError as error:
                    log.append(error)
                    yield x if sent else NCHW
            finally:
                log.append("closed")
            return "end"

        assert inspect.isgeneratorfunction(function)
        running = function(GOOD)
        next(running)
        running.send("sent")
        running.throw(KeyError("thrown"))
        with pytest.raises(StopIteration) as stopped:
            next(running)
        assert stopped.value.value == "end"
        assert [str(item) for item in log] == ["sent", "'thrown'", "closed"]
        closing = function(GOOD)
        next(closing)
        closing.close()
        assert log[-1] == "closed"
        bad = function(GOOD)
        next(bad), next(bad)
        problem(bad.throw, KeyError())
        with pytest.raises(MemoryFormatError):
            next(function(NCHW))

    def test_asynchronous_generators(self) -> None:
        log: list[Any] = []

        @expects(returns="channels_last")
        async def function(*values: Tensor) -> AsyncIterator[Tensor]:
            try:
                for value in values:
                    try:
                        log.append((yield value))
                    except KeyError:  # noqa: PERF203
                        log.append("thrown")
                        yield value
            finally:
                log.append("closed")

        async def drive() -> None:
            running = function(GOOD, GOOD, NCHW)
            await running.asend(None)
            await running.asend("sent")
            await running.athrow(KeyError())
            assert log == ["sent", "thrown"]
            with pytest.raises(MemoryFormatError):
                await running.asend(None)
            closing = function(GOOD)
            await closing.asend(None)
            await closing.aclose()
            assert log[-1] == "closed"
            assert [value async for value in function(GOOD, GOOD)] == [GOOD, GOOD]

        assert inspect.isasyncgenfunction(function)
        asyncio.run(drive())

    def test_a_violation_closes_the_generator(self) -> None:
        log: list[str] = []

        @expects(returns="channels_last")
        def function() -> Iterator[Tensor]:
            try:
                yield NCHW
            finally:
                log.append("closed")

        @expects(returns="channels_last")
        async def generating() -> AsyncIterator[Tensor]:
            try:
                yield NCHW
            finally:
                await asyncio.sleep(0)
                log.append("closed, too")

        async def drive() -> None:
            with pytest.raises(MemoryFormatError):
                await generating().asend(None)
            assert log == ["closed", "closed, too"]

        running = function()
        with pytest.raises(MemoryFormatError):
            next(running)
        assert log == ["closed"]
        asyncio.run(drive())

    def test_a_generator_that_handles_its_closing(self) -> None:
        @expects(returns="channels_last")
        def function() -> Iterator[Tensor]:
            try:
                yield GOOD
            except GeneratorExit:
                yield GOOD

        running = function()
        next(running)
        assert running.throw(GeneratorExit) is GOOD

    def test_coroutines_of_old(self) -> None:
        @expects(x="channels_last")
        @types.coroutine
        def function(x: Tensor) -> Any:
            yield from asyncio.sleep(0).__await__()
            return x

        async def drive(x: Tensor) -> Any:
            return await function(x)

        assert asyncio.run(drive(GOOD)) is GOOD
        problem(lambda: asyncio.run(drive(NCHW)))

    def test_above_a_decorator_that_hides_a_coroutine(self) -> None:
        def hide(function: Any) -> Any:
            return functools.wraps(function)(lambda *args: function(*args))

        async def function(x: Tensor) -> Tensor:
            return x

        with pytest.raises(TypeError, match="write @expects below"):
            expects(returns="channels_last")(hide(function))
        asyncio.run(expects(x="channels_last")(hide(function))(GOOD))

    def test_a_class_with_a_static_forward(self) -> None:
        @expects(x="channels_last")
        class Block(nn.Module):
            @staticmethod
            def forward(x: Tensor) -> Tensor:
                return x

        Block()(GOOD)
        problem(Block(), NCHW)

    @pytest.mark.parametrize("thing", [3, "text", nn.ReLU()])
    def test_what_is_no_function(self, thing: Any) -> None:
        with pytest.raises(TypeError, match="expects"):
            expects(x="channels_last")(thing)

    def test_a_module_that_exists_is_guarded_otherwise(self) -> None:
        with pytest.raises(TypeError, match="guard"):
            expects(x="channels_last")(nn.ReLU())

    def test_a_function_without_a_signature(self) -> None:
        with pytest.raises(TypeError, match="signature"):
            expects(x="channels_last")(min)


@expects(x="channels_last")
class Decorated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@expects(x="channels_last")
def pickled(x: Tensor) -> Tensor:
    return x


class TestAFunctionStaysItself:
    def test_its_looks(self) -> None:
        def function(a: int, /, x: Tensor, *args: int, k: list[int] = [3], **kw: Any) -> Tensor:  # noqa: B006
            """Docs."""
            return x

        function.mark = "kept"  # type: ignore[attr-defined]
        checked = expects(x="channels_last")(function)
        for name in (
            "__name__",
            "__qualname__",
            "__doc__",
            "__module__",
            "__defaults__",
            "__kwdefaults__",
            "mark",
        ):
            assert getattr(checked, name) == getattr(function, name)
        assert inspect.signature(checked) == inspect.signature(function)
        assert typing.get_type_hints(checked) == typing.get_type_hints(function)
        assert checked.__wrapped__ is function  # type: ignore[attr-defined]
        assert checked.__kwdefaults__["k"] is function.__kwdefaults__["k"]

    def test_it_pickles_and_copies(self) -> None:
        assert pickle.loads(pickle.dumps(pickled)) is pickled
        assert copy.deepcopy(pickled) is pickled

    def test_its_errors_are_its_own(self) -> None:
        @expects(x="channels_last")
        def function(x: Tensor) -> Tensor:
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            function(GOOD)

    def test_nothing_is_kept_alive(self) -> None:
        function = expects(x="channels_last", returns="same as x")(lambda x: x)
        tensor = GOOD.clone()
        reference = weakref.ref(tensor)
        function(tensor)
        del tensor
        gc.collect()
        assert reference() is None

    def test_nothing_is_kept_alive_by_errors_or_generators(self) -> None:
        @expects(x="channels_last", returns="channels_last")
        def generator(x: Tensor) -> Iterator[Tensor]:
            yield x

        def fails(tensor: Tensor) -> None:
            with contextlib.suppress(MemoryFormatError):
                expects(x="nchw")(lambda x: x)(tensor)

        def throws(tensor: Tensor) -> None:
            running = generator(tensor)
            next(running)
            with contextlib.suppress(KeyError):
                running.throw(KeyError())

        gc.disable()
        try:
            for use in (fails, throws):
                tensor = GOOD.clone()
                reference = weakref.ref(tensor)
                use(tensor)
                del tensor
                assert reference() is None, use
        finally:
            gc.enable()

    def test_parameters_with_any_name(self) -> None:
        names = "function entering leaving defaults Tensor channels_last isinstance result args kwargs self wrapped make"
        scope: dict[str, Any] = {}
        exec(f"def f({', '.join(names.split())}): return [{', '.join(names.split())}]", scope)  # noqa: S102
        checked = expects(dict.fromkeys(names.split(), "channels_last"), returns="channels_last")(scope["f"])
        assert checked(*[GOOD] * len(names.split())) == [GOOD] * len(names.split())
        for at in range(len(names.split())):
            problem(checked, *[NCHW if at == i else GOOD for i in range(len(names.split()))])

    def test_options_and_parameters_of_the_same_name(self) -> None:
        function = expects({"returns": "channels_last", "copies": "nchw"})(lambda returns, copies: None)
        function(GOOD, NCHW)
        assert "returns is nchw" in problem(function, NCHW, NCHW)

    @pytest.mark.parametrize("other", [torch.no_grad(), functools.lru_cache, contextlib.contextmanager])
    def test_it_stacks(self, other: Any) -> None:
        def function(x: Tensor) -> Iterator[Tensor]:
            yield x

        above = other(expects(x="channels_last")(function))
        below = expects(x="channels_last")(other(function))
        for checked in (above, below):
            problem(
                lambda checked: (
                    list(checked(NCHW))
                    if other is not contextlib.contextmanager
                    else checked(NCHW).__enter__()
                ),
                checked,
            )
            checked(GOOD)

    def test_above_a_wrapper_that_changes_the_arguments(self) -> None:
        @expects(x="channels_last", y="channels_last")
        @mock.patch("os.getcwd")
        def function(x: Tensor, getcwd: Any, y: Any = None) -> Any:
            return getcwd

        assert function(GOOD)._mock_name == "getcwd"
        assert function(GOOD, y=GOOD) is not None
        problem(function, NCHW)
        problem(function, GOOD, y=NCHW)

    def test_several_of_them(self) -> None:
        @expects(x="channels_last")
        @expects(y="nchw")
        def function(x: Tensor, y: Tensor) -> None: ...

        function(GOOD, NCHW)
        problem(function, NCHW, NCHW)
        problem(function, GOOD, GOOD)

    def test_partial_functions(self) -> None:
        function = expects(y="channels_last")(functools.partial(lambda x, y: y, 1))
        function(GOOD)
        problem(function, NCHW)

    def test_recursion(self) -> None:
        @expects(x="channels_last")
        def function(x: Tensor, depth: int) -> int:
            return depth if not depth else function(x, depth - 1)

        assert function(GOOD, 50) == 0


class TestMisuse:
    def test_an_unknown_parameter(self) -> None:
        with pytest.raises(TypeError, match=r"no parameter 'feature'; did you mean 'features'"):
            expects(feature="nchw")(lambda features: None)
        with pytest.raises(TypeError, match="no parameter 'y'"):
            expects(x="same as y")(lambda x: None)
        with pytest.raises(TypeError, match=r"""written {"more\['mask'\]": ...}"""):
            expects(mask="nchw")(lambda **more: None)

    def test_nothing_expected(self) -> None:
        for decorate in (expects(), expects, expects(x=None)):
            with pytest.raises(TypeError, match="nothing to expect"):
                decorate(lambda x: x)  # type: ignore[operator]


class TestErrors:
    def test_what_it_says(self) -> None:
        @expects(x="channels_last")
        def forward(x: Tensor) -> None: ...

        assert problem(forward, [NCHW]).splitlines() == [
            "TestErrors.test_what_it_says.<locals>.forward(): x[0] is nchw, expected channels_last",
            "  x[0]: shape (2, 3, 4, 5), strides (60, 20, 5, 1), float32 cpu",
            "  help: convert it once, where it is made: `.to(memory_format=torch.channels_last)`",
        ]

    @pytest.mark.parametrize(
        ("expected", "tensor", "remedy"),
        [
            ("channels_last", GHOST, "x[:1] instead of x[0].unsqueeze(0)"),
            ("channels_last", VOLUME.contiguous(), "torch.channels_last_3d"),
            ("channels_last", MATRIX, "only 4-D and 5-D tensors"),
            (NHWC, VOLUME, "only 4-D tensors have this format; this one is 5-D"),
            ("nchw", GOOD, "`.contiguous()`"),
        ],
    )
    def test_remedies(self, expected: Any, tensor: Tensor, remedy: str) -> None:
        assert remedy in problem(expects(x=expected)(lambda x: None), tensor)

    @pytest.mark.parametrize("tensor", [NCHW, GHOST, SLICE, AMBIGUOUS, VOLUME.contiguous()])
    def test_the_remedy_works(self, tensor: Tensor) -> None:
        function = expects(x="channels_last", ambiguous="hint")(lambda x: None)
        problem(function, tensor)
        format = NHWC if tensor.dim() == 4 else torch.channels_last_3d
        if layout_of(tensor).state == "strided":
            function(tensor.contiguous(memory_format=format))
        else:
            function(tensor.to(memory_format=format))

    def test_the_line_that_lost_it(self) -> None:
        @expects(returns="same as x", copies=1)
        def function(x: Tensor) -> Tensor:
            return x.softmax(1)

        line = inspect.getsourcelines(function.__wrapped__.__wrapped__)[1] + 2  # type: ignore[attr-defined]
        why = "softmax writes NCHW whatever it reads (CPU)"
        lost = f"lost at: {__file__}:{line}: aten._softmax.default; {why}\n"
        assert lost.replace(f"{__file__}", "tests/runtime/test_expects.py") in problem(
            function, GOOD
        ).replace(__file__, "tests/runtime/test_expects.py")

    def test_the_line_in_a_trace_around_it(self) -> None:
        function = expects(x="channels_last")(lambda x: None)
        with trace_layouts():
            lost = torch.cat([NCHW, GOOD])
            assert "aten.cat.default" in problem(function, lost)
        assert "lost at" not in problem(function, lost)

    def test_it_pickles(self) -> None:
        with pytest.raises(MemoryFormatError) as raised:
            expects(x="channels_last")(lambda x: None)(NCHW)
        again = pickle.loads(pickle.dumps(raised.value))
        assert (str(again), again.violations) == (str(raised.value), raised.value.violations)
        assert isinstance(again, AssertionError)

    def test_what_it_holds(self) -> None:
        with pytest.raises(MemoryFormatError) as raised:
            expects(x="channels_last")(lambda x: None)([GOOD, NCHW])
        (violation,) = raised.value.violations
        assert violation[:6] == ("x[1]", "nchw", "channels_last", (2, 3, 4, 5), (60, 20, 5, 1), "float32 cpu")

    def test_long_keys_are_shortened(self) -> None:
        function = expects(x="channels_last")(lambda x: None)
        text = problem(function, {nn.Parameter(torch.zeros(100, 100)): {"exp_avg": NCHW}, "k" * 500: NCHW})
        assert "x[a Parameter]['exp_avg'] is nchw" in text
        assert len(text) < 600

    def test_errors_while_closing_do_not_hide_it(self) -> None:
        @expects(returns="channels_last")
        def function() -> Iterator[Tensor]:
            try:
                yield NCHW
            finally:
                raise ValueError("while closing")

        problem(next, function())

    def test_internals_are_no_part_of_the_traceback(self) -> None:
        with pytest.raises(MemoryFormatError) as raised:
            expects(x="channels_last")(lambda x: None)([NCHW])
        hidden = [entry.locals.get("__tracebackhide__") for entry in raised.traceback[1:]]
        assert hidden == [True] * 4
        assert MemoryFormatError.__module__ == "esper_guard"

    def test_long_predicates_are_named(self) -> None:
        big = functools.partial(lambda weights, x: False, torch.zeros(100, 100))
        assert "expected what partial() accepts" in problem(expects(x=big)(lambda x: None), GOOD)

    def test_long_shapes_are_shortened(self) -> None:
        tensor = torch.zeros([1] * 40 + [2, 3]).transpose(-1, -2)
        text = problem(expects(x="nchw")(lambda x: None), tensor)
        assert len(text) < 400


class TestBounds:
    def test_copies(self) -> None:
        function = expects(copies=0)(lambda x: x.contiguous())
        function(NCHW)
        text = problem(function, GOOD)
        assert "1 layout copy, at most 0 allowed" in text
        assert "test_expects.py" in text
        expects(copies=1)(lambda x: x.contiguous())(GOOD)

    def test_bytes(self) -> None:
        problem(expects(copy_bytes=479)(lambda x: x.contiguous()), GOOD)
        expects(copy_bytes="480 B")(lambda x: x.contiguous())(GOOD)
        problem(expects(copy_bytes="0.4 KiB")(lambda x: x.contiguous()), GOOD)

    def test_a_generator_that_never_ends(self) -> None:
        @expects(copies=2)
        def function(x: Tensor) -> Iterator[Tensor]:
            while True:
                yield x.contiguous()

        running = function(GOOD)
        next(running), next(running)
        problem(next, running)

    def test_a_violation_closes_generators(self) -> None:
        log: list[str] = []

        @expects(copies=0)
        def function() -> Iterator[Tensor]:
            try:
                yield GOOD.contiguous()
            finally:
                log.append("closed")

        @expects(copies=0)
        async def generating() -> AsyncIterator[Tensor]:
            try:
                yield GOOD.contiguous()
            finally:
                log.append("closed")

        async def drive() -> None:
            with pytest.raises(MemoryFormatError):
                await generating().asend(None)
            assert log == ["closed"] * 2

        with pytest.raises(MemoryFormatError):
            next(function())
        assert log == ["closed"]
        asyncio.run(drive())

    def test_a_warning_comes_once_for_a_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @expects(copies=0)
        def function() -> Iterator[Tensor]:
            yield GOOD.contiguous()
            yield GOOD
            yield GOOD

        monkeypatch.setenv("ESPER_GUARD", "warn")
        with pytest.warns(MemoryFormatWarning) as caught:
            list(function())
        assert len(caught) == 1

    def test_with_an_annotation_that_cannot_be_read(self) -> None:
        @expects(copies=0)
        def function(x: Unknown) -> Tensor:  # noqa: F821
            return x

        function(GOOD)

    def test_each_call_by_itself(self) -> None:
        function = expects(copies=1)(lambda x: x.contiguous())
        for _ in range(3):
            function(GOOD)

    def test_generators_and_coroutines(self) -> None:
        @expects(copies=1)
        def generator(x: Tensor, times: int) -> Iterator[Tensor]:
            for _ in range(times):
                yield x.contiguous()

        @expects(copies=0)
        async def coroutine(x: Tensor) -> Tensor:
            await asyncio.sleep(0)
            return x.contiguous()

        @expects(copies=1)
        async def generating(x: Tensor, times: int) -> AsyncIterator[Tensor]:
            for _ in range(times):
                yield x.contiguous()

        async def collect(times: int) -> int:
            return len([item async for item in generating(GOOD, times)])

        assert (
            len([GOOD.contiguous() for _ in generator(GOOD, 1)]) == 1
        )  # what the caller copies is the caller's
        problem(lambda: list(generator(GOOD, 2)))
        problem(lambda: asyncio.run(coroutine(GOOD)))
        assert asyncio.run(collect(1)) == 1
        problem(lambda: asyncio.run(collect(2)))
        assert inspect.isgeneratorfunction(generator)
        assert inspect.iscoroutinefunction(coroutine)
        assert inspect.isasyncgenfunction(generating)

    @pytest.mark.parametrize(
        ("bounds", "error"),
        [
            ({"copies": -1}, ValueError),
            ({"copies": "1"}, TypeError),
            ({"copies": True}, TypeError),
            ({"copy_bytes": "1 MB/s"}, ValueError),
            ({"copy_bytes": 1.5}, TypeError),
        ],
    )
    def test_bounds_that_are_none(self, bounds: dict[str, Any], error: type[Exception]) -> None:
        with pytest.raises(error):
            expects(**bounds)

    def test_an_error_of_the_body_goes_first(self) -> None:
        @expects(copies=0)
        def function(x: Tensor) -> None:
            x.contiguous().add_(1)
            raise KeyError

        with pytest.raises(KeyError):
            function(GOOD)


class TestSwitch:
    def test_off_when_decorated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ESPER_GUARD", "off")

        def function(x: Tensor) -> None: ...

        class Block(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x

        forward = Block.forward
        static = staticmethod(function)
        prop = property(function)
        assert expects(x="channels_last", copies=0)(function) is function
        assert expects(function) is function
        assert expects(x="channels_last")(static) is static
        assert expects(returns="channels_last")(prop) is prop
        assert expects(x="channels_last")(Block) is Block
        assert Block.forward is forward

    def test_warn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        function = expects(x="channels_last", returns="channels_last", copies=0)(
            lambda x: x.clone(memory_format=NHWC)
        )
        monkeypatch.setenv("ESPER_GUARD", "warn")
        with pytest.warns(MemoryFormatWarning) as caught:
            assert function(NCHW) is not None
        assert [warning.filename for warning in caught] == [__file__] * 2
        assert "x is nchw" in str(caught[0].message)
        assert "1 layout copy" in str(caught[1].message)

    def test_off_afterwards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        function = expects(x="channels_last")(lambda x: x)
        monkeypatch.setenv("ESPER_GUARD", "off")
        function(NCHW)

    def test_an_unknown_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ESPER_GUARD", "rais")
        with pytest.raises(ValueError, match=r"ESPER_GUARD=rais.*did you mean 'raise'"):
            expects(x="channels_last")(lambda x: x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    @expects({"self.conv.weight": "contiguous"}, x="channels_last", returns="same as x")
    def forward(self, x: Tensor, factor: int = 1) -> Tensor:
        return nn.functional.relu(self.conv(x)) * factor


@expects(x="channels_last", more="channels_last", returns="same as x")
def nested(x: Any, **more: Any) -> Any:
    return [more["y"].relu()]


@expects(x="channels_last", returns="channels_last")
def quick(x: Tensor) -> Tensor:
    return x.relu()


@expects(x="channels_last", copies=0, ambiguous="hint")
def bounded(x: Tensor) -> Tensor:
    return x.relu()


class TestCompiled:
    @pytest.fixture(autouse=True)
    def reset(self) -> Iterator[None]:
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize(
        ("function", "argument"),
        [
            (Block(), GOOD),
            (quick, GOOD),
            (quick, GOOD[:1]),
            (quick, VOLUME),
            (bounded, GOOD),
            (nested, GOOD),
            (nested, [GOOD, {"a": (GOOD, MATRIX)}]),
            (nested, Pair(GOOD, 3)),
            (nested, Record(GOOD)),
        ],
    )
    def test_no_graph_break(self, function: Any, argument: Any) -> None:
        more = {"y": GOOD} if function is nested else {}
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        for _ in range(2):
            result = compiled(argument, **more)
        expected = function(argument, **more)
        torch.testing.assert_close(result, expected)

    def test_dynamic_shapes(self) -> None:
        compiled = torch.compile(quick, fullgraph=True, backend="eager", dynamic=True)
        for size in (4, 7, 9):
            compiled(torch.randn(2, 3, size, size).to(memory_format=NHWC))

    def test_the_graph_holds_no_check(self) -> None:
        graphs: list[Any] = []

        def backend(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        torch.compile(quick, fullgraph=True, backend=backend)(GOOD)
        (graph,) = graphs
        assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_method", "output"]

    def test_a_violation(self) -> None:
        compiled = torch.compile(quick, backend="eager")
        compiled(GOOD)
        assert "x is nchw, expected channels_last" in problem(compiled, NCHW)

    def test_a_violation_in_one_graph(self) -> None:
        with pytest.raises(Exception, match="." if OLD_DYNAMO else "x is nchw"):
            torch.compile(quick, fullgraph=True, backend="eager")(NCHW)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("strict", [True, False])
    def test_export(self, strict: bool) -> None:
        class Quick(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return quick(x)

        program = torch.export.export(Quick(), (GOOD,), strict=strict)
        torch.testing.assert_close(program.module()(GOOD), GOOD.relu())
        with pytest.raises(Exception):  # noqa: B017, PT011 - Dynamo's own, or ours
            torch.export.export(Quick(), (NCHW,), strict=strict)

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_script_compiles_what_is_decorated(self) -> None:
        block = Block()
        scripted = torch.jit.script(block)
        torch.testing.assert_close(scripted(NCHW), nn.functional.relu(block.conv(NCHW)))

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_script_with_bounds_and_local_functions(self) -> None:
        @expects(x="channels_last")
        def local(x):  # type: ignore[no-untyped-def]
            return x + 1

        @expects(x="channels_last")
        def scripted(x):  # type: ignore[no-untyped-def]
            return local(x)

        torch.testing.assert_close(torch.jit.script(scripted)(NCHW), NCHW + 1)
        torch.testing.assert_close(torch.jit.script(bounded)(NCHW), NCHW.relu())

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_script_ignores_what_is_ignored(self) -> None:
        class Holder(nn.Module):
            @torch.jit.ignore
            @expects(x="channels_last")
            def above(self, x):  # type: ignore[no-untyped-def]
                return x

            @expects(x="channels_last")
            @torch.jit.ignore
            def below(self, x):  # type: ignore[no-untyped-def]
                return x

            def forward(self, x):  # type: ignore[no-untyped-def]
                return self.below(self.above(x))

        scripted = torch.jit.script(Holder())
        scripted(GOOD)
        with pytest.raises(Exception, match="x is nchw"):
            scripted(NCHW)

    @pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:Converting a tensor to a Python")
    def test_traces(self) -> None:
        torch.testing.assert_close(torch.jit.trace(quick, GOOD)(GOOD), GOOD.relu())
        graph = torch.fx.symbolic_trace(Block())
        assert graph(NCHW).shape == (2, 4, 4, 5)

    def test_transforms(self) -> None:
        batched = torch.stack([GOOD, GOOD]).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        assert torch.vmap(quick)(batched).shape == batched.shape
        with pytest.raises(MemoryFormatError):
            torch.vmap(quick)(torch.stack([NCHW, NCHW]))
        assert torch.func.grad(lambda x: quick(x).sum())(GOOD).shape == GOOD.shape

    def test_tensors_without_data(self) -> None:
        quick(GOOD.to("meta"))
        problem(quick, NCHW.to("meta"))
        with torch._subclasses.fake_tensor.FakeTensorMode() as mode:
            quick(mode.from_tensor(GOOD))


def test_importing_it_does_nothing_else() -> None:
    code = """
        import sys, torch
        before = set(sys.modules)
        from esper_guard import expects
        expects(x="channels_last")(lambda x: x)
        assert not {"torch._dynamo", "torch._inductor", "libcst", "beartype", "pytest"} & (set(sys.modules) - before)
    """
    run_python(code)


def test_the_api() -> None:
    assert {"expects", "guard", "first_loss", "ChannelsLast"} <= set(esper_guard.__all__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert esper_guard.expects is expects
