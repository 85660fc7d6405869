"""Layouts, permutations and modules: what the flow says of them is what torch does."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper_guard.lint.check import check_bytes
from esper_guard.lint.flow import Flow, analyse
from esper_guard.lint.flow.layouts import Layout, Origin
from esper_guard.lint.flow.positions import Positions
from esper_guard.lint.imports import names_of
from esper_guard.lint.masking import mask
from esper_guard.lint.modules import Classes, Made
from esper_guard.lint.parse import parse_module
from esper_guard.lint.slices import outermost_functions
from esper_guard.lint.source import Source

HEADER = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\nfrom einops import rearrange\n"


def flow_of(body: str, attributes: str = "") -> Flow:
    """The facts of a method with this body, in a class that assigns these attributes."""
    init = "".join(f"        {line}\n" for line in (attributes or "pass").splitlines())
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    text = (
        f"{HEADER}class Net(nn.Module):\n    def __init__(self, c):\n{init}    def forward(self, x):\n{lines}"
    )
    masked = mask(text)
    names = names_of(masked.code)
    module = parse_module(text)
    method = module.body[-1].body.body[-1]
    start = list(outermost_functions(masked.code))[-1].start
    attribute = partial(Classes(text, masked.code, names).attribute, start)
    return analyse(method, names, Positions(Source("a.py", text), module, 0), attribute=attribute)


def last_call(flow: Flow) -> tuple[Layout | None, int]:
    facts = flow.facts(list(flow.calls)[-1])
    return facts.layout, facts.ranks


def order(tensor: torch.Tensor) -> tuple[int, ...]:
    """The dimensions from the slowest in memory to the fastest; empty if that is their own order."""
    found = tuple(sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim)))
    return () if found == tuple(range(tensor.dim())) else found


DIM = st.integers(-4, 3)
STEP = st.one_of(
    st.permutations(range(4)).map(lambda dims: f".permute({', '.join(map(str, dims))})"),
    st.permutations(range(-4, 0)).map(lambda dims: f".permute({dims})"),
    st.tuples(st.sampled_from(["transpose", "swapaxes", "swapdims"]), DIM, DIM).map(
        lambda t: f".{t[0]}({t[1]}, {t[2]})"
    ),
    st.tuples(st.sampled_from(["movedim", "moveaxis"]), DIM, DIM).map(lambda t: f".{t[0]}({t[1]}, {t[2]})"),
    st.permutations(range(4)).map(lambda dims: f".movedim((0, 1), {tuple(dims[:2])})"),
    st.sampled_from([".detach()", ".float()", ".relu()", ".contiguous()", ".clone()"]),
)


@given(st.lists(STEP, min_size=1, max_size=5))
def test_permutations_compose_as_torch_composes_them(steps: list[str]) -> None:
    chain = "".join(steps)
    layout, _ = last_call(flow_of(f"x = torch.empty(2, 3, 5, 7)\nreturn x{chain}"))
    assert layout is not None
    assert layout.order == order(eval(f"x{chain}", {"x": torch.empty(2, 3, 5, 7)}))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("x.permute(0, 3, 1, 2)", Layout((0, 2, 3, 1), Origin.ASSUMED)),
        ("x.permute(0, 3, 1, 2).permute(0, 2, 3, 1)", None),
        ("torch.permute(x, (0, 3, 1, 2))", Layout((0, 2, 3, 1), Origin.ASSUMED)),
        ("rearrange(x, 'b h w c -> b c h w')", Layout((0, 2, 3, 1), Origin.ASSUMED)),
        ("rearrange(x, 'b (h w) c -> b c h w', h=2)", Layout((0, 2, 3, 1), Origin.ASSUMED)),
        ("rearrange(x, 'b h w c -> b c (h w)')", None),
        ("rearrange(x, 'b ... c -> b c ...')", None),
        ("x.permute(0, 3, 1, c)", None),
        ("x.permute(0, 3, 1, 1)", None),
        ("x.transpose(1, 2)", None),
        ("x.to(memory_format=torch.channels_last)", Layout((0, 2, 3, 1), Origin.CONVERTED)),
        ("x.to(memory_format=c)", None),
        ("x.to('cuda', memory_format=torch.channels_last_3d)", Layout((0, 2, 3, 4, 1), Origin.CONVERTED)),
        ("x.contiguous(memory_format=torch.channels_last).relu()", Layout((0, 2, 3, 1), Origin.CONVERTED)),
        ("x.to(memory_format=torch.channels_last).softmax(1)", Layout((), Origin.MADE)),
        ("F.softmax(x.to(memory_format=torch.channels_last), 1)", Layout((), Origin.MADE)),
        ("unknown(x.to(memory_format=torch.channels_last))", None),
        ("self.conv(x.to(memory_format=torch.channels_last))", Layout((0, 2, 3, 1), Origin.CONVERTED)),
        ("self.either(x.to(memory_format=torch.channels_last))", None),
        ("self.head(x.to(memory_format=torch.channels_last))", Layout((), Origin.MADE)),
        ("self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", Layout((0, 2, 3, 1), Origin.MADE)),
        ("self.other(x.to(memory_format=torch.channels_last))", None),
    ],
)
def test_layouts(expression: str, expected: Layout | None) -> None:
    attributes = (
        "self.conv = nn.Conv2d(3, c, 3) if c else None\n"
        "self.either = nn.Conv2d(3, 3, 1) if c else nn.Softmax(1)\n"
        "self.head = nn.Sequential(nn.Conv2d(3, 3,\n   1), nn.Softmax(1))\n"
        "self.norm: nn.Module = nn.LayerNorm(c)\n"
        "self.other = make(c)"
    )
    assert last_call(flow_of(f"return {expression}", attributes))[0] == expected


def test_the_layout_of_a_branch_is_what_both_sides_agree_on() -> None:
    body = "if x:\n    y = x.permute(0, 3, 1, 2)\nelse:\n    y = {}\nreturn y.detach()"
    same, other = flow_of(body.format("rearrange(x, 'b h w c -> b c h w')")), flow_of(body.format("x.relu()"))
    assert last_call(same)[0] == Layout((0, 2, 3, 1), Origin.ASSUMED)
    assert last_call(other)[0] is None


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("self.m = nn.Conv2d(3, 8, kernel_size=1)", {Made("torch.nn.Conv2d", (3, 8), (("kernel_size", 1),))}),
        ("self.m = nn.ReLU() if c else None", {Made("torch.nn.ReLU"), Made("None")}),
        ("self.m = nn.ReLU()\nself.m = nn.Tanh()", {Made("torch.nn.ReLU"), Made("torch.nn.Tanh")}),
        ("self.m = (\n    nn.ReLU()\n)", {Made("torch.nn.ReLU")}),
        ("self.m = nn.ReLU().to(c)", {Made("torch.nn.ReLU")}),
        ("self.m = c", {Made("?")}),
        ("other.self.m = nn.ReLU()", set()),
        ("self.mm = nn.ReLU()", set()),
        ("self.m = nn.Pool([1, 2])", {Made("torch.nn.Pool", ((1, 2),))}),
        (
            "self.m = nn.Sequential(nn.ReLU(), *c)",
            {Made("torch.nn.Sequential", (None, None), (), (Made("torch.nn.ReLU"), Made("?")))},
        ),
        (
            "self.m = nn.ModuleList([nn.ReLU() for _ in c])",
            {Made("torch.nn.ModuleList", (None,), (), (Made("torch.nn.ReLU"),))},
        ),
        ("self.m = nn.Sequential()", {Made("torch.nn.Sequential", (), (), (Made("?"),))}),
    ],
)
def test_what_a_class_assigns(attributes: str, expected: set[Made]) -> None:
    flow = flow_of("return self.m(x)", attributes)
    assert set(flow.attribute("m")) == expected


def test_attributes_of_a_base_in_the_same_file() -> None:
    text = (
        f"{HEADER}class Base(nn.Module):\n    def __init__(self):\n        self.m = nn.ReLU()\n"
        "class Net(Base):\n    def forward(self, x):\n        return self.m(x)\nclass Other:\n    def f(self, x):\n        pass\n"
    )
    classes = Classes(text, text, names_of(text))
    assert classes.attribute(text.index("def forward"), "m") == {Made("torch.nn.ReLU")}
    assert classes.attribute(text.index("def f("), "m") == frozenset()
    assert classes.attribute(0, "m") == frozenset()


def test_a_converted_module_is_converted_for_all_its_names() -> None:
    flow = flow_of(
        "net = nn.Conv2d(3, 3, 1)\nother = net\nnet.to(memory_format=torch.channels_last)\nother.eval()"
    )
    layout, _ = last_call(flow)
    assert layout == Layout((0, 2, 3, 1), Origin.CONVERTED)


def test_a_class_that_is_named_like_its_base() -> None:
    text = "from other import Net\nclass Net(Net):\n    pass\ndef f(x: Net):\n    return x.contiguous().detach()\n"
    assert [finding.code for finding in check_bytes("a.py", text.encode(), {"EG001", "EG101"})] == ["EG101"]
