"""Dominance: which copies count as guarded. Each snippet is one function (or module) and its verdict."""

from __future__ import annotations

import textwrap
from functools import partial

import libcst as cst
import pytest

from esper_guard.lint.check import check_bytes, check_source
from esper_guard.lint.flow import Facts, Flow, analyse
from esper_guard.lint.flow.consumers import consumers
from esper_guard.lint.flow.positions import Positions
from esper_guard.lint.flow.values import ALL_RANKS
from esper_guard.lint.imports import names_of
from esper_guard.lint.masking import mask
from esper_guard.lint.modules import Classes, Made
from esper_guard.lint.parse import parse_module
from esper_guard.lint.source import Source

COPY = "x.contiguous().detach()"


def _findings(source: str) -> list:
    source = textwrap.dedent(source).lstrip("\n").replace("COPY", COPY)
    findings = check_bytes("case.py", source.encode(), {"EG001", "EG101"}, is_named=True)
    assert "EG001" not in {finding.code for finding in findings}, (source, findings)
    assert findings == check_source(Source("case.py", source), {"EG101"}, sliced=False)
    return findings


def _cases(text: str) -> list:
    """Snippets divided by lines ``# -- title``."""
    parts = text.split("# -- ")[1:]
    return [pytest.param(part.partition("\n")[2], id=part.partition("\n")[0].strip()) for part in parts]


SILENT = _cases(
    """
# -- if not
def f(x):
    if not x.is_contiguous():
        return COPY
# -- else
def f(x):
    if x.is_contiguous():
        y = x.detach()
    else:
        y = COPY
    return y
# -- elif
def f(x, a):
    if a:
        pass
    elif x.is_contiguous():
        pass
    else:
        return COPY
# -- ternary
def f(x):
    return x.detach() if x.is_contiguous() else COPY
# -- and
def f(x, a):
    return a and not x.is_contiguous() and COPY
# -- or
def f(x):
    return x.is_contiguous() or COPY
# -- early return
def f(x):
    if x.is_contiguous():
        return x
    return COPY
# -- early raise
def f(x):
    if x.is_contiguous():
        raise ValueError
    return COPY
# -- continue
def f(xs):
    for x in xs:
        if x.is_contiguous():
            continue
        yield COPY
# -- break
def f(xs):
    for x in xs:
        if x.is_contiguous():
            break
        yield COPY
# -- assert
def f(x):
    assert not x.is_contiguous()
    return COPY
# -- assert message
def f(x):
    assert x.is_contiguous(), COPY
# -- while
def f(x):
    while not x.is_contiguous():
        x = COPY
    return x
# -- while else
def f(x, a):
    while x.is_contiguous():
        a()
    else:
        return COPY
# -- match guard
def f(x, mode):
    match mode:
        case 1 if not x.is_contiguous():
            return COPY
# -- match after an irrefutable pattern
def f(x, mode):
    match mode:
        case _ if x.is_contiguous():
            return x
        case _:
            return COPY
# -- match on the test
def f(x):
    match x.is_contiguous():
        case True:
            return x
        case False:
            return COPY
# -- comprehension
def f(xs):
    return [COPY for x in xs if not x.is_contiguous()]
# -- dict comprehension
def f(xs):
    return {k: COPY for k, x in xs if not x.is_contiguous()}
# -- consumed generator
def f(xs):
    return list(COPY for x in xs if not x.is_contiguous())
# -- walrus value
def f(a):
    if not (x := a).is_contiguous():
        return COPY
# -- walrus test
def f(x):
    if not (ok := x.is_contiguous()):
        return COPY
    return ok
# -- test in a variable
def f(x):
    ok = x.is_contiguous()
    if not ok:
        return COPY
# -- combined tests in a variable
def f(x, a):
    ok = x.is_contiguous() or a
    return x if ok else COPY
# -- negated test in a variable
def f(x):
    bad = not x.is_contiguous()
    return COPY if bad else x
# -- annotated variable
def f(x):
    ok: bool = x.is_contiguous()
    if not ok:
        return COPY
# -- unpacked variables
def f(x, a):
    ok, other = x.is_contiguous(), a
    if not ok:
        return COPY
# -- double negation
def f(x):
    if not not x.is_contiguous():
        return x
    return COPY
# -- De Morgan
def f(x, a):
    if not (x.is_contiguous() or a):
        return COPY
# -- De Morgan the other way
def f(x, a):
    if not (not x.is_contiguous() and a):
        return x
    return COPY
# -- compared with False
def f(x):
    if x.is_contiguous() == False:
        return COPY
# -- is not True
def f(x):
    if x.is_contiguous() is not True:
        return COPY
# -- with a memory format
def f(x):
    if not x.is_contiguous(memory_format=torch.channels_last):
        return COPY
# -- two memory formats
def f(x):
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return COPY
# -- unbound
def f(x):
    if not torch.Tensor.is_contiguous(x):
        return COPY
# -- attribute
def f(self):
    if not self.x.is_contiguous():
        return self.x.contiguous().detach()
# -- constant subscript
def f(feats):
    if not feats[0].is_contiguous():
        return feats[0].contiguous().detach()
# -- string subscript
def f(d):
    if not d["a"].is_contiguous():
        return d['a'].contiguous().detach()
# -- variable subscript
def f(feats):
    for i in range(3):
        if not feats[i].is_contiguous():
            feats[i] = feats[i].contiguous().detach()
# -- alias of the tested value
def f(a):
    x = a
    if not a.is_contiguous():
        return COPY
# -- both branches ask
def f(x, a):
    if a:
        if x.is_contiguous():
            return
    else:
        assert not x.is_contiguous()
    return COPY
# -- try body
def f(x):
    if x.is_contiguous():
        return x
    try:
        y = COPY
    except RuntimeError:
        y = COPY
    else:
        y = COPY
    finally:
        z = COPY
    return y, z
# -- handler returns
def f(x):
    try:
        assert not x.is_contiguous()
    except AssertionError:
        return x
    return COPY
# -- inside with
def f(x):
    with torch.no_grad():
        if not x.is_contiguous():
            return COPY
# -- nested ifs
def f(x, a, b):
    if not x.is_contiguous():
        if a:
            while b:
                return COPY
# -- a loop keeps what it does not change
def f(x, n):
    if x.is_contiguous():
        return x
    for _ in range(n):
        n = n - 1
    return COPY
# -- guard inside the lambda
def f(x):
    return lambda x: x if x.is_contiguous() else COPY
# -- guard inside the nested function
def f():
    def g(x):
        return x if x.is_contiguous() else COPY
    return g
# -- pure calls keep an attribute
def f(self):
    if not self.x.is_contiguous():
        print(len(self.x), torch.sum(self.x), self.x.shape)
        return self.x.contiguous().detach()
# -- rank by dim
def f(x):
    if x.dim() == 3:
        return COPY
# -- rank by early return
def f(x):
    if x.ndim > 3:
        return x
    return COPY
# -- rank by len
def f(x):
    assert len(x.shape) in (2, 3)
    return COPY
# -- rank by factory
def f():
    x = torch.zeros(2, 3)
    return COPY
# -- rank by permute
def f(a):
    return a.permute(0, 2, 1).contiguous().detach()
# -- rank by unpacking
def f(x):
    b, n, c = x.size()
    return COPY
# -- rank by einops
def f(x):
    x = einops.rearrange(x, "b c h w -> b (h w) c")
    return COPY
# -- not a tensor
def f(x):
    if not isinstance(x, torch.Tensor):
        return COPY
# -- a number
def f():
    x = 3
    return COPY
# -- global name
def f():
    global x
    if not x.is_contiguous():
        return COPY
# -- endless loop
def f(x):
    while 1:
        if not x.is_contiguous():
            break
    return COPY
# -- assert False
def f(x):
    if x.is_contiguous():
        assert False, "never"
    return COPY
# -- ternary as a test
def f(x, c):
    if (not x.is_contiguous() if c else False):
        return COPY
# -- first iterable of a generator
def f(x):
    if not x.is_contiguous():
        return (z for z in COPY)
# -- class pattern that captures the subject
def f(x):
    match x:
        case torch.Tensor() as z if not z.is_contiguous():
            return COPY
# -- test bound by a pattern
def f(x):
    match x.is_contiguous():
        case False as q:
            return COPY, q
# -- rank by permute with dims
def f(a):
    return a.permute(dims=(0, 2, 1)).contiguous().detach()
# -- rank by torch.permute
def f(a):
    return torch.permute(a, (0, 2, 1)).contiguous().detach()
# -- rank by flatten
def f(a):
    return torch.flatten(a, start_dim=1).contiguous().detach()
# -- unreachable
def f(x):
    return x
    COPY
"""
)

FLAGGED = _cases(
    """
# -- plain
def f(x):
    return COPY
# -- module level
y = COPY
# -- class body
class A:
    y = COPY
# -- default argument
def f(a=COPY):
    pass
# -- decorator
@g(COPY)
def f():
    pass
# -- async
async def f(x):
    return await g(COPY)
# -- f-string
def f(x):
    return f"{COPY}"
# -- nested f-string
def f(x):
    return f"{a[f'{COPY!r:>{w}}']}"
# -- the other outcome
def f(x):
    if x.is_contiguous():
        return COPY
# -- after the if
def f(x):
    if not x.is_contiguous():
        x.foo()
    return COPY
# -- and gives no fact when false
def f(x, a):
    if x.is_contiguous() and a:
        return x
    return COPY
# -- or gives no fact when true
def f(x, a):
    if not x.is_contiguous() or a:
        return COPY
# -- another value
def f(x, y):
    if not y.is_contiguous():
        return COPY
# -- method not called
def f(x):
    if not x.is_contiguous:
        return COPY
# -- rebound
def f(x):
    if not x.is_contiguous():
        x = g(x)
        return COPY
# -- augmented assignment
def f(x):
    if not x.is_contiguous():
        x += 1
        return COPY
# -- for target
def f(x, xs):
    if not x.is_contiguous():
        for x in xs:
            COPY
# -- with target
def f(x):
    if not x.is_contiguous():
        with g() as x:
            return COPY
# -- walrus rebinds
def f(x):
    if not x.is_contiguous() and (x := g()) is not None:
        return COPY
# -- unpacking rebinds
def f(x, y):
    if not x.is_contiguous():
        x, y = y, x
        return COPY
# -- unpacking beside a star
def f(x, y):
    if not x.is_contiguous():
        x, *y = y
        return COPY
# -- import rebinds
def f(x):
    if not x.is_contiguous():
        from m import x
        return COPY
# -- rebound on one path
def f(x, a):
    if x.is_contiguous():
        return x
    if a:
        x = g(x)
    return COPY
# -- stale variable
def f(x):
    ok = x.is_contiguous()
    x = g(x)
    if not ok:
        return COPY
# -- variable of the last round
def f(xs):
    ok = True
    for x in xs:
        if not ok:
            COPY
        ok = x.is_contiguous()
# -- rebound at the end of the loop
def f(x):
    ok = x.is_contiguous()
    while True:
        if not ok:
            COPY
        x = g(x)
# -- alias of the last round
def f(xs):
    last = None
    for x in xs:
        if not x.is_contiguous():
            last.contiguous().detach()
        last = x
# -- loop may not run
def f(x, xs):
    for _ in xs:
        if x.is_contiguous():
            return x
    return COPY
# -- break leaves the else
def f(x, xs, a):
    for y in xs:
        if a:
            break
    else:
        if x.is_contiguous():
            return x
    return COPY
# -- lambda
def f(x):
    if not x.is_contiguous():
        return lambda: COPY
# -- nested function
def f(x):
    if not x.is_contiguous():
        def g():
            return COPY
        return g
# -- kept generator
def f(x, xs):
    if not x.is_contiguous():
        return (COPY for _ in xs)
# -- call may rebind an attribute
def f(self):
    if not self.x.is_contiguous():
        self.update()
        return self.x.contiguous().detach()
# -- passing self may rebind an attribute
def f(self):
    if not self.x.is_contiguous():
        update(self)
        return self.x.contiguous().detach()
# -- super may rebind an attribute
def f(self):
    if not self.x.is_contiguous():
        super().update()
        return self.x.contiguous().detach()
# -- other object's attribute
def f(self, other):
    if not self.x.is_contiguous():
        return other.x.contiguous().detach()
# -- other subscript
def f(feats):
    if not feats[0].is_contiguous():
        return feats[1].contiguous().detach()
# -- other index
def f(feats, i):
    if not feats[i].is_contiguous():
        i += 1
        return feats[i].contiguous().detach()
# -- item assigned
def f(feats, i):
    if not feats[0].is_contiguous():
        feats[i] = g()
        return feats[0].contiguous().detach()
# -- list changed
def f(feats):
    if not feats[0].is_contiguous():
        feats.insert(0, g())
        return feats[0].contiguous().detach()
# -- owner rebound
def f(self):
    if not self.x.is_contiguous():
        self = g()
        return self.x.contiguous().detach()
# -- await may rebind an attribute
async def f(self):
    if not self.x.is_contiguous():
        await g()
        return self.x.contiguous().detach()
# -- nonlocal
def f(x):
    def g():
        nonlocal x
        x = h()
    if not x.is_contiguous():
        g()
        return COPY
# -- transposed in place
def f(x):
    if not x.is_contiguous():
        x.t_()
        return COPY
# -- handler does not know
def f(x):
    try:
        assert not x.is_contiguous()
        g()
    except Exception:
        return COPY
# -- suppressed
def f(x):
    with contextlib.suppress(AssertionError):
        assert not x.is_contiguous()
    return COPY
# -- channels_last is copied
def f(x):
    if x.is_contiguous(memory_format=torch.channels_last):
        return COPY
# -- match with a refutable pattern
def f(x, mode):
    match mode:
        case 1 if x.is_contiguous():
            return x
        case _:
            return COPY
# -- comprehension of another value
def f(x, ys):
    return [COPY for y in ys if not y.is_contiguous()]
# -- rank that fits
def f(x):
    b, c, h, w = x.shape
    return COPY
# -- rank may fit
def f(x):
    if x.dim() >= 3:
        return COPY
# -- parentheses and line breaks
def f(x):
    return (
        (x)
        .contiguous(
        )
        .  detach()
    )
# -- backslash
def f(x):
    return x.contiguous() \\
        .detach()
# -- in place
def f(x):
    return x.contiguous().detach_()
# -- data
def f(x):
    return x.contiguous().data
# -- operations between
def f(x):
    return x.contiguous().float().to("cpu", non_blocking=True).mul(2).detach()
# -- self in a list
def f(self, y, c):
    if not self.x.is_contiguous():
        g([self])
        return self.x.contiguous().detach()
# -- self in keywords
def f(self, y, c):
    if not self.x.is_contiguous():
        g(**{"a": self})
        return self.x.contiguous().detach()
# -- self in a ternary
def f(self, y, c):
    if not self.x.is_contiguous():
        g(self if c else y)
        return self.x.contiguous().detach()
# -- self in a lambda
def f(self, y, c):
    if not self.x.is_contiguous():
        g(lambda: self.update())
        return self.x.contiguous().detach()
# -- alias of self
def f(self, y, c):
    if not self.x.is_contiguous():
        s = self; s.update()
        return self.x.contiguous().detach()
# -- bound method in a variable
def f(self, y, c):
    if not self.x.is_contiguous():
        z = self.update; z()
        return self.x.contiguous().detach()
# -- method by name
def f(self, y, c):
    if not self.x.is_contiguous():
        getattr(self, "update")()
        return self.x.contiguous().detach()
# -- dict of the object
def f(self, y, c):
    if not self.x.is_contiguous():
        self.__dict__.update(x=y)
        return self.x.contiguous().detach()
# -- item of the dict of the object
def f(self, y, c):
    if not self.x.is_contiguous():
        self.__dict__["x"] = y
        return self.x.contiguous().detach()
# -- call in a del
def f(self, y, c):
    if not self.x.is_contiguous():
        del y[self.update()]
        return self.x.contiguous().detach()
# -- call in a comprehension
def f(self, y, c):
    if not self.x.is_contiguous():
        [self.update() for _ in y]
        return self.x.contiguous().detach()
# -- call in a generator
def f(self, y, c):
    if not self.x.is_contiguous():
        any(self.update() for _ in y)
        return self.x.contiguous().detach()
# -- closure
def f(self, y, c):
    if not self.x.is_contiguous():
        h = lambda: self.update(); h()
        return self.x.contiguous().detach()
# -- attribute through an alias
def f(self, y, c):
    if not self.x.is_contiguous():
        s = self; s.x = y
        return self.x.contiguous().detach()
# -- class body changes an attribute
def f(self):
    if not self.x.is_contiguous():
        class K:
            self.update()
        return self.x.contiguous().detach()
# -- second round of a comprehension
def f(self, r):
    if not self.x.is_contiguous():
        return [(self.x.contiguous().detach(), self.update()) for _ in r]
# -- async with
async def f(self, g):
    if not self.x.is_contiguous():
        async with g:
            return self.x.contiguous().detach()
# -- slice deleted
def f(feats):
    if not feats[0].is_contiguous():
        del feats[:1]
        return feats[0].contiguous().detach()
# -- item counted from the end
def f(feats, y):
    if not feats[0].is_contiguous():
        feats[-1] = y
        return feats[0].contiguous().detach()
# -- list changed through an alias
def f(feats):
    if not feats[0].is_contiguous():
        fs = feats
        fs.reverse()
        return feats[0].contiguous().detach()
# -- transposed by function
def f(x):
    if not x.is_contiguous():
        torch.Tensor.t_(x)
        return COPY
# -- generator handed over
def f(x, r):
    if not x.is_contiguous():
        return Thread(COPY for _ in r)
# -- input by keyword
def f(x):
    return torch.detach(input=x.contiguous())
# -- starred arguments beside the format
def f(x, a):
    return x.to(*a, memory_format=torch.contiguous_format).detach()
# -- comment inside the chain
def f(x):
    return (x.  # why
            contiguous().detach())
# -- backslash inside the chain
def f(x):
    return x.\\
        contiguous().detach()
# -- parameter named like an import
import torch as t
def f(t):
    return t.contiguous().detach()
# -- tensor in another module
import data
def f():
    return data.kernel.contiguous().detach()
# -- flatten that keeps four dimensions
def f(x):
    return x.flatten(end_dim=1).contiguous().detach()
# -- form feed before def
a = 1
\x0cdef f(x):
    return COPY
# -- global rebound by a function
x = g()
def u():
    global x
    x = 1
if not x.is_contiguous():
    u()
    y = COPY
# -- two statements
def f(x):
    y = x.contiguous()
    z = y.detach()
    return z
# -- two statements, same name
def f(x):
    x = x.contiguous()
    x = x.detach()
    return x
# -- two statements, detached in place
def f(x):
    y = x.contiguous()
    y.detach_()
    return y
# -- two statements across branches
def f(x, a):
    y = x.contiguous()
    if a:
        return y.detach()
    return torch.detach(y)
# -- two statements, unpacked
def f(x, b):
    y, c = x.contiguous(), b
    return y.detach(), c
# -- two statements, metadata between
def f(x):
    y = x.contiguous()
    print(y.shape, y.size(0), y.dtype)
    return y.detach()
# -- copy on one path only
def f(x, a):
    if a:
        x = x.contiguous()
    return x.detach()
"""
)

OTHERWISE_USED = _cases(
    """
# -- returned as well
def f(x):
    y = x.contiguous()
    return y, y.detach()
# -- stored as well
def f(self, x):
    self.y = x.contiguous()
    return self.y.detach()
# -- captured
def f(x):
    y = x.contiguous()
    g = lambda: y
    return y.detach(), g
# -- used as the host of a view
def f(x, b):
    y = x.contiguous()
    z = y.view(b, -1)
    return y.detach(), z
# -- written to a file through a list
def f(x, path):
    parts = []
    parts.append(x.contiguous().detach())
    torch.save(parts, path)
# -- written to a file through a dict
def f(sd, path):
    out = {}
    for k, v in sd.items():
        out[k] = v.contiguous().detach()
    save_file(out, path)
# -- state dict
def f(model):
    return {k: v.contiguous().detach() for k, v in model.state_dict().items()}
# -- numpy later
def f(x):
    y = x.contiguous().detach()
    return y.cpu().numpy()
# -- view after arithmetic
def f(x):
    return (x.contiguous().detach() * 2).abs().view(-1)
# -- numpy of one item
def f(x):
    return x.contiguous().detach()[0].numpy()
# -- list extended by an operator
def f(x, p):
    out = []
    out += [x.contiguous().detach()]
    torch.save(out, p)
# -- nested dict
def f(x, p):
    d = {"a": {}}
    d["a"]["b"] = x.contiguous().detach()
    torch.save(d, p)
# -- copy of the dict
def f(x, p):
    d = {"a": x.contiguous().detach()}
    e = d.copy()
    torch.save(e, p)
# -- hook that fills a list
def f(m, p):
    out = []
    def hook(m, i, o):
        out.append(o.contiguous().detach())
    m.register_forward_hook(hook)
    torch.save(out, p)
# -- class attribute
def f(x):
    y = x.contiguous()
    z = y.detach()
    class K:
        a = y
    return z, K
# -- dlpack
def f(x):
    return torch.utils.dlpack.to_dlpack(x.contiguous().detach())
# -- numpy function
def f(x):
    return np.asarray(x.contiguous().detach())
# -- custom operator
def f(x):
    return torch.ops.mine.run(x.contiguous().detach())
# -- unused
def f(x):
    x.contiguous()
# -- assigned through data
def f(x, y):
    x.contiguous().data = y
# -- another format between
def f(x):
    return x.contiguous().to(memory_format=torch.channels_last).detach()
# -- a string
def f(x):
    return "x.contiguous().detach()"  # x.contiguous().detach()
"""
)


@pytest.mark.parametrize("source", SILENT)
def test_silent(source: str) -> None:
    assert _findings(source) == []


@pytest.mark.parametrize("source", OTHERWISE_USED)
def test_silent_where_the_copy_is_needed(source: str) -> None:
    assert _findings(source) == []


@pytest.mark.parametrize("source", FLAGGED)
def test_flagged(source: str) -> None:
    assert len(_findings(source)) == 1


def test_a_false_guard_is_named_as_one() -> None:
    (finding,) = _findings("def f(x):\n    assert x.is_contiguous()\n    return COPY\n")
    assert "does nothing here" in finding.message
    assert finding.fix is not None
    assert finding.fix.safe


def test_tests_kept_in_many_variables_take_no_time() -> None:
    lines = ["def f(x, a):", "    k0 = x.is_contiguous()"]
    lines += [f"    k{n + 1} = (k{n} or a) and k{n}" for n in range(40)]
    _findings("\n".join([*lines, "    if not k40:", "        return COPY", ""]))


HEADER = """import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import ReLU
from einops import rearrange
from ops import softmax
from jaxtyping import Float
import typing, numpy as np
"""


def _flow(source: str) -> Flow:
    """The facts of the last function of a file, or of the last method of its last class."""
    text = HEADER + textwrap.dedent(source)
    module, code = parse_module(text), mask(text).code
    (*_, function) = module.body
    if isinstance(function, cst.ClassDef):
        (*_, function) = function.body.body
    assert isinstance(function, cst.FunctionDef)
    names = names_of(code)
    attribute = partial(Classes(text, code, names).attribute, text.rindex("def "))
    return analyse(function, names, Positions(Source("a.py", text), module, 0), attribute=attribute)


def _revealed(source: str) -> list[str]:
    """What is known of the argument of each ``reveal(...)``."""
    flow = _flow(source)
    calls = [call for call in flow.calls if isinstance(call.func, cst.Name) and call.func.value == "reveal"]
    return [_shown(flow.facts(call.args[0].value)) for call in calls]


def _shown(facts: Facts) -> str:
    """``tensor 3 4, not contiguous_format``: the kind, the ranks if not all are possible, then all else."""
    ranks = [str(number) for number in range(16) if facts.ranks >> number & 1]
    parts = [" ".join([facts.kind.name.lower(), *(ranks if facts.ranks != ALL_RANKS else [])])]
    parts += sorted(f"{'' if test.outcome else 'not '}{test.memory_format}" for test in facts.tests)
    parts += sorted(map(_written, facts.made))
    if facts.layout is not None:
        parts.append(f"{facts.layout.origin.name.lower()} {''.join(map(str, facts.layout.order))}".strip())
    return ", ".join(parts)


def _written(made: Made) -> str:
    given = [*map(str, made.arguments), *(f"{name}={value}" for name, value in made.keywords)]
    return f"{made.origin}({', '.join(map(_written, made.parts)) or ', '.join(given)})".removesuffix("()")


@pytest.mark.parametrize(
    ("test", "if_true", "if_false"),
    [
        ("x.is_contiguous()", "tensor, contiguous_format", "tensor, not contiguous_format"),
        ("x.is_contiguous(torch.channels_last)", "tensor, channels_last", "tensor, not channels_last"),
        ("x.is_contiguous(memory_format=a)", "tensor, ?", "tensor, not ?"),
        ("x.is_contiguous(memory_format=a())", "tensor, ?", "tensor, not ?"),
        ("x.is_contiguous(*a)", "tensor, ?", "tensor, not ?"),
        ("x.is_contiguous(**a)", "tensor, ?", "tensor, not ?"),
        ("x.is_contiguous(dim=1)", "tensor, contiguous_format", "tensor, not contiguous_format"),
        ("torch.Tensor.is_contiguous(x)", "unknown, contiguous_format", "unknown, not contiguous_format"),
        (
            "torch.Tensor.is_contiguous(x, memory_format=torch.channels_last)",
            "unknown, channels_last",
            "unknown, not channels_last",
        ),
        ("torch.Tensor.is_contiguous()", "unknown", "unknown"),
        ("x.is_pinned()", "unknown", "unknown"),
        ("torch.is_tensor(x)", "tensor", "other"),
        ("torch.is_tensor()", "unknown", "unknown"),
        ("torch.is_nonzero(x)", "unknown", "unknown"),
        ("bool(x.is_contiguous())", "tensor, contiguous_format", "tensor, not contiguous_format"),
        ("any(x.is_contiguous())", "tensor", "tensor"),
        ("bool()", "unknown", "unknown"),
        ("isinstance(x)", "unknown", "unknown"),
        ("issubclass(x, Tensor)", "unknown", "unknown"),
        ("isinstance(x, Tensor)", "tensor", "other"),
        ("isinstance(x, (Tensor, nn.Parameter))", "tensor", "other"),
        ("isinstance(x, (Tensor, np.ndarray))", "unknown", "other"),
        ("isinstance(x, np.ndarray)", "other", "unknown"),
        ("isinstance(x, (list, nn.Module))", "other", "unknown"),
        ("isinstance(x, a)", "unknown", "unknown"),
        ("isinstance(x, a())", "unknown", "unknown"),
        ("isinstance(x, nn.ReLU)", "module, torch.nn.ReLU", "unknown"),
        ("isinstance(x, (nn.ReLU, nn.GELU))", "module, torch.nn.GELU, torch.nn.ReLU", "unknown"),
        ("isinstance(x, (nn.ReLU, nn.Module))", "module", "unknown"),
        ("x is None", "other", "unknown"),
        ("x is not None", "unknown", "other"),
        ("x == None", "other", "unknown"),
        ("x is a", "unknown", "unknown"),
        ("x > None", "unknown", "unknown"),
        ("x.is_contiguous() is True", "tensor, contiguous_format", "tensor, not contiguous_format"),
        ("x.is_contiguous() is not True", "tensor, not contiguous_format", "tensor, contiguous_format"),
        ("x.is_contiguous() != False", "tensor, contiguous_format", "tensor, not contiguous_format"),
        ("False == x.is_contiguous()", "tensor, not contiguous_format", "tensor, contiguous_format"),
        ("x.is_contiguous() is a", "tensor", "tensor"),
        ("x.is_contiguous() in True", "tensor", "tensor"),
        ("x.is_contiguous() is True is a", "tensor", "tensor"),
        ("x.ndim == 4", "unknown 4", "unknown 0 1 2 3 5 6 7 8 9 10 11 12 13 14 15"),
        ("x.dim() != 4", "unknown 0 1 2 3 5 6 7 8 9 10 11 12 13 14 15", "unknown 4"),
        ("x.ndimension() < 3", "unknown 0 1 2", "unknown 3 4 5 6 7 8 9 10 11 12 13 14 15"),
        ("len(x.shape) <= 3", "unknown 0 1 2 3", "unknown 4 5 6 7 8 9 10 11 12 13 14 15"),
        ("len(x.size()) > 3", "unknown 4 5 6 7 8 9 10 11 12 13 14 15", "unknown 0 1 2 3"),
        ("x.ndim >= 3", "unknown 3 4 5 6 7 8 9 10 11 12 13 14 15", "unknown 0 1 2"),
        ("3 > x.ndim", "unknown 0 1 2", "unknown 3 4 5 6 7 8 9 10 11 12 13 14 15"),
        ("3 <= x.ndim", "unknown 3 4 5 6 7 8 9 10 11 12 13 14 15", "unknown 0 1 2"),
        ("x.ndim in (3, 4)", "unknown 3 4", "unknown 0 1 2 5 6 7 8 9 10 11 12 13 14 15"),
        ("x.ndim not in {3, 4}", "unknown 0 1 2 5 6 7 8 9 10 11 12 13 14 15", "unknown 3 4"),
        ("x.ndim in [a, 4]", "unknown", "unknown"),
        ("x.ndim in a", "unknown", "unknown"),
        ("4 in x.ndim", "unknown", "unknown"),
        ("x.ndim is 4", "unknown", "unknown"),
        ("x.ndim == a", "unknown", "unknown"),
        ("a == x.ndim", "unknown", "unknown"),
        ("x.ndim == 15", "unknown", "unknown"),
        ("x.rank == 4", "unknown", "unknown"),
        ("x.dim(a) == 4", "unknown", "unknown"),
        ("x.size() == 4", "unknown", "unknown"),
        ("len() == 4", "unknown", "unknown"),
        ("abs(x.shape) == 4", "unknown", "unknown"),
        ("a.len(x.shape) == 4", "unknown", "unknown"),
        ("len(x.data) == 4", "unknown", "unknown"),
        ("len(x) == 4", "unknown", "unknown"),
        ("len(x.size(0)) == 4", "unknown", "unknown"),
        ("len(x.numpy()) == 4", "unknown", "unknown"),
        ("len(list()) == 4", "unknown", "unknown"),
        ("a and x.ndim == 4", "unknown 4", "unknown"),
        ("a or x.ndim != 4", "unknown", "unknown 4"),
        ("not (a or x.ndim != 4)", "unknown 4", "unknown"),
    ],
)
def test_what_a_test_says(test: str, if_true: str, if_false: str) -> None:
    body = "def f(x, a):\n    if {}:\n        reveal(x)\n    else:\n        reveal(x)\n"
    kept = "def f(x, a):\n    ok = {}\n    if ok:\n        reveal(x)\n    else:\n        reveal(x)\n"
    assert _revealed(body.format(test)) == [if_true, if_false]
    assert _revealed(kept.format(test)) == [if_true, if_false]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("Tensor", "tensor"),
        ("torch.cuda.FloatTensor", "tensor"),
        ("nn.Parameter", "tensor"),
        ("None", "other"),
        ("int", "other"),
        ("nn.Module", "module"),
        ("torch.nn.modules.module.Module", "module"),
        ("nn.Conv2d", "module, torch.nn.Conv2d"),
        ("ReLU", "module, torch.nn.ReLU"),
        ("nn.functional", "unknown"),
        ("other.Conv2d", "unknown"),
        ("a[0].b", "unknown"),
        ("'Tensor'", "tensor"),
        ("'Ten' 'sor'", "tensor"),
        ("b'Tensor'", "unknown"),
        ("'a tensor'", "unknown"),
        ("Tensor | None", "tensor"),
        ("int | None", "other"),
        ("int | Tensor", "unknown"),
        ("int | Tensor | None", "unknown"),
        ("Tensor | nn.Parameter", "tensor"),
        ("Tensor | nn.Module", "unknown"),
        ("nn.ReLU | nn.GELU", "module"),
        ("nn.Module | None", "other"),
        ("Tensor & nn.Parameter", "unknown"),
        ("typing.Optional[Tensor]", "tensor"),
        ("typing.Annotated[Tensor, 'b c']", "tensor"),
        ("typing.Optional[1:]", "unknown"),
        ("typing.List[1:, Tensor]", "tensors"),
        ("typing.Union[Tensor, None]", "tensor"),
        ("typing.Union[Tensor, str]", "unknown"),
        ("Float[Tensor, 'b c h w']", "tensor 4"),
        ("Float[Tensor, '']", "tensor 0"),
        ("Float[Tensor, '... c']", "tensor"),
        ("Float[Tensor, '*batch c']", "tensor"),
        ("Float[Tensor, c]", "tensor"),
        ("Float[Tensor, b'c']", "tensor"),
        ("Float[Tensor]", "unknown"),
        ("Float[np.ndarray, 'b c']", "other"),
        ("Float[a, 'b c']", "unknown"),
        ("Box[Tensor, 'b c']", "unknown"),
        ("a()[Tensor]", "unknown"),
        ("list[Tensor]", "tensors"),
        ("tuple[Tensor, ...]", "tensors"),
        ("tuple[Tensor, int]", "other"),
        ("dict[str, Tensor]", "other"),
        ("np.ndarray[int]", "other"),
        ("Box[Tensor]", "unknown"),
        ("Plain", "other"),
        ("Color", "other"),
        ("Derived", "other"),
        ("Net", "module"),
        ("Deep", "module"),
        ("Masked", "unknown"),
        ("Unknown", "unknown"),
        ("Old", "other"),
        ("Meta", "other"),
        ("Endless", "unknown"),
    ],
)
def test_what_an_annotation_says(annotation: str, expected: str) -> None:
    classes = """
from builtins import object
from enum import Enum
class Plain: pass
class Color(Enum): pass
class Derived(Plain, dict): pass
class Net(nn.Module): pass
class Deep(Plain, Net): pass
class Masked(Tensor): pass
class Unknown(Base): pass
class Old(object): pass
class Meta(metaclass=Base): pass
class Endless(Endless): pass
"""
    assert _revealed(f"{classes}\ndef f(x: {annotation}):\n    reveal(x)\n") == [expected]


# What the parameters of the functions below are: ``x`` is not known at all.
PARAMETERS = """x, y, t: Tensor, image: Float[Tensor, 'b c h w'], matrix: Float[Tensor, 'r c'], sequence: Float[Tensor, 'b n c'], \
many: list[Tensor], m: nn.Module, conv: nn.Conv2d, n: int, box: Plain, local: Net, *rest"""


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # functions
        ("torch.sum(t)", "tensor"),
        ("torch.sort(x)", "tensors"),
        ("torch.sort(x, return_indices=True)", "unknown"),
        ("torch.unknown(x)", "unknown"),
        ("torch.chunk(t.contiguous(memory_format=torch.channels_last), 2)", "tensors"),
        ("torch.zeros(2, 3)", "tensor 2, made"),
        ("torch.zeros((2, 3))", "tensor 2, made"),
        ("torch.zeros([2, 3, *x])", "tensor, made"),
        ("torch.zeros(*x)", "tensor, made"),
        ("torch.zeros(2, *x)", "tensor, made"),
        ("torch.zeros(5)", "tensor 1, made"),
        ("torch.zeros(-n)", "tensor 1, made"),
        ("torch.zeros(x)", "tensor, made"),
        ("torch.zeros(size=(2, 3))", "tensor 2, made"),
        ("torch.zeros(2, 3, device=x)", "tensor 2, made"),
        ("torch.zeros()", "tensor, made"),
        ("torch.permute(x, (0, 2, 1))", "tensor 3, assumed 021"),
        ("torch.movedim(image, 1, 3)", "tensor 4, assumed 0312"),
        ("torch.movedim(*x)", "tensor"),
        ("torch.movedim()", "tensor, made"),
        ("torch.flatten(image)", "tensor 1"),
        ("torch.flatten(image, 1)", "tensor 2"),
        ("torch.flatten(image, 1, 2)", "tensor"),
        ("torch.flatten(image, end_dim=1)", "tensor"),
        ("torch.flatten(image, n)", "tensor"),
        ("torch.flatten(image, *x)", "tensor"),
        ("torch.abs(image)", "tensor 4"),
        ("torch.abs()", "tensor, made"),
        ("torch.clamp(image, t)", "tensor"),
        ("torch.rand_like(image)", "tensor 4"),
        ("torch.sum(image)", "tensor"),
        ("F.relu(x)", "tensor"),
        ("F.unknown(x)", "unknown"),
        ("softmax(x)", "unknown"),
        ("torch.load(x)", "unknown"),
        ("torch.compile(m)", "unknown"),
        ("rearrange(x, 'b c h w -> b (c h) w')", "unknown 3"),
        ("rearrange(t, 'b c h w -> b (c h) w')", "tensor 3"),
        ("rearrange(t, 'b c h w -> b (c h) w', c=2)", "tensor 3"),
        ("rearrange(m, 'b c -> c b')", "unknown 2, assumed 10"),
        ("rearrange(t, '... c -> c ...')", "tensor"),
        ("rearrange(t, 'b c')", "tensor"),
        ("rearrange(t, x)", "tensor"),
        ("rearrange(t, b'b -> b')", "tensor"),
        ("rearrange(t)", "unknown"),
        ("np.zeros(3)", "other"),
        ("int(x)", "other"),
        ("foo(x)", "unknown"),
        ("nn.ReLU()", "module, torch.nn.ReLU"),
        ("Plain()", "other"),
        ("Net()", "module, Net"),
        ("nn.Parameter(x)", "tensor"),
        ("torch.FloatTensor(x)", "tensor"),
        ("next(x)", "unknown"),
        ("next(many)", "tensor"),
        ("next(iter(many))", "tensor"),
        ("next(image)", "tensor 3"),
        ("next(t)", "tensor"),
        ("next(iter(loader))", "batch"),
        # methods
        ("x.foo()", "unknown"),
        ("t.sort()", "tensors"),
        ("x.sort()", "unknown"),
        ("m.sort()", "unknown"),
        ("x.detach()", "unknown"),
        ("t.foo()", "unknown"),
        ("t.foo_()", "tensor"),
        ("x.foo_()", "unknown"),
        ("n.detach()", "unknown"),
        ("image.add_(1)", "tensor 4"),
        ("image.unsqueeze_(0)", "tensor"),
        ("image.relu()", "tensor 4"),
        ("image.sum()", "tensor"),
        ("image.clamp(0, -1.5)", "tensor 4"),
        ("image.clamp(0, t)", "tensor"),
        ("image.clamp_max(t)", "tensor"),
        ("image.permute(0, 3, 1, 2)", "tensor 4, assumed 0231"),
        ("x.permute(0, 2, 1)", "tensor 3, assumed 021"),
        ("t.view(2, 3)", "tensor 2"),
        ("t.expand(2, 3)", "tensor 2"),
        ("image.flatten(1)", "tensor 2"),
        ("image.unsqueeze(0)", "tensor 5"),
        ("t.unsqueeze(0)", "tensor"),
        ("t.ravel()", "tensor 1"),
        ("t.t()", "tensor 0 1 2"),
        ("t.to(memory_format=torch.channels_last)", "tensor 4, converted 0231"),
        ("matrix.to(memory_format=torch.channels_last)", "tensor 2, converted 0231"),
        ("t.contiguous()", "tensor, made"),
        ("batch.to(x)", "batch"),
        ("batch.to(memory_format=x)", "tensor"),
        ("batch.to(x, non_blocking=True)", "batch"),
        ("batch.foo()", "unknown"),
        ("m.to(x)", "module"),
        ("conv.to(x)", "module, torch.nn.Conv2d"),
        ("n.to(x)", "other"),
        ("None.to(x)", "unknown"),
        ("m.foo()", "unknown"),
        ("n.to(memory_format=torch.channels_last)", "other"),
        ("n.permute(1, 0)", "unknown 2, assumed 10"),
        ("x.T.half()", "unknown 0 1 2"),
        ("x.T.refresh_()", "unknown"),
        ("m.parameters()", "tensors"),
        ("x.generate(y, max_new_tokens=5)", "tensor"),
        ("x.generate(y, max_new_tokens=5, return_dict_in_generate=True)", "unknown"),
        ("x.generate(y)", "unknown"),
        ("x.sample(y, max_new_tokens=5)", "unknown"),
        # operators, containers and comprehensions
        ("y * image", "tensor"),
        ("t @ y", "tensor, made"),
        ("x @ y", "unknown, made"),
        ("1 @ 2", "other"),
        ("x * y", "unknown"),
        ("n * 2", "other"),
        ("t * y", "tensor"),
        ("image * 2", "tensor 4"),
        ("image * y", "tensor"),
        ("image * image", "tensor 4"),
        ("x.permute(0, 3, 1, 2) * y", "tensor"),
        ("rearrange(x, 'b h w c -> b c h w') * 2", "unknown, assumed 0231"),
        ("-image", "tensor 4"),
        ("t > y", "tensor"),
        ("y > t", "tensor"),
        ("t is y", "unknown"),
        ("t in y", "unknown"),
        ("x > y", "unknown"),
        ("(t, image)", "tensors"),
        ("(t, n)", "other"),
        ("()", "other"),
        ("f'{t}'", "other"),
        ("foo if True else y", "unknown"),
        ("image if True else y", "tensor 4"),
        ("image if False else y", "unknown"),
        ("[a.detach() for a in many]", "tensors"),
        ("[a for a in x]", "other"),
        ("{a: a for a in many}", "other"),
        ("next(many, None)", "tensor"),
        ("iter(many)", "tensors"),
        ("next()", "unknown"),
        ("self.conv.foo", "unknown"),
        ("other.conv", "unknown"),
        ("torch.foo", "unknown"),
        # layouts
        ("cl", "tensor 4, converted 0231"),
        ("cl.to(**x)", "tensor 4"),
        ("cl.mm(x)", "tensor, made"),
        ("cl.new_zeros(2, 3)", "tensor 2, made"),
        ("cl + 1", "tensor 4, converted 0231"),
        ("1 + cl", "tensor 4, converted 0231"),
        ("cl + cl", "tensor 4, converted 0231"),
        ("cl + t", "tensor"),
        ("t + cl", "tensor"),
        ("cl.foo_()", "tensor 4"),
        ("cl.permute(0, 2, 1)", "tensor 3"),
        ("F.relu(cl).transpose(1, 2)", "tensor, converted 0132"),
        ("F.avg_pool2d(image.permute(0, 2, 3, 1), 2)", "tensor"),
        ("F.avg_pool2d(image.permute(0, 3, 1, 2), 2)", "tensor, made 0231"),
        ("torch.empty(2, 3, 4, 5, memory_format=torch.channels_last)", "tensor 4, converted 0231"),
        ("t.contiguous(torch.channels_last)", "tensor 4, converted 0231"),
        ("t.to(memory_format=torch.contiguous_format)", "tensor, converted"),
        ("t.permute(1, 0, *y)", "tensor"),
        ("t.permute(1, *(0, 2))", "tensor"),
        ("t.permute(1, 0, n)", "tensor 3"),
        ("t.permute((1, 0, n))", "tensor 3"),
        ("t.permute(0, -n)", "tensor 2"),
        ("t.permute(0, 5)", "tensor 2"),
        ("t.permute(1, -2)", "tensor 2, assumed 10"),
        ("image.transpose(1)", "tensor 4"),
        ("image.transpose(1, 7)", "tensor 4"),
        ("image.transpose(7, 1)", "tensor 4"),
        ("image.transpose(~0, ~1)", "tensor 4"),
        ("image.movedim((0, 1), 2)", "tensor 4"),
        # attributes and items
        ("t.shape", "other"),
        ("image.data", "tensor 4"),
        ("image.mT", "tensor 4"),
        ("t.T", "tensor 0 1 2"),
        ("image.T", "tensor 4"),
        ("matrix.T", "tensor 2"),
        ("x.T", "unknown 0 1 2"),
        ("n.T", "unknown"),
        ("t.foo", "unknown"),
        ("x.shape", "unknown"),
        ("x.data", "unknown"),
        ("x.input_ids", "tensor"),
        ("n.input_ids", "unknown"),
        ("many[0]", "tensor"),
        ("batch[0]", "batch"),
        ("x[0]", "unknown"),
        ("t[0]", "tensor"),
        ("image[0]", "tensor 3"),
        ("image[0, 1]", "tensor 2"),
        ("image[:, 0]", "tensor 3"),
        ("image[n]", "tensor"),
        ("image[..., 0]", "tensor"),
        ("image[:, n]", "tensor"),
        ("image[1:]", "tensor 4"),
    ],
)
def test_what_an_expression_says(expression: str, expected: str) -> None:
    classes = "class Plain: pass\nclass Net(nn.Module): pass\n"
    body = (
        "    cl = t.contiguous(memory_format=torch.channels_last)\n"
        f"    for batch in loader:\n        reveal({expression})\n"
    )
    assert _revealed(f"{classes}def f({PARAMETERS}):\n{body}") == [expected]


@pytest.mark.parametrize(
    ("attribute", "expression", "expected"),
    [
        ("nn.ReLU()", "self.m", "module, torch.nn.ReLU"),
        ("nn.ReLU() if c else None", "self.m", "module, None, torch.nn.ReLU"),
        ("nn.ReLU() \\\n            if c else None", "self.m", "module, None, torch.nn.ReLU"),
        ("nn.ReLU() if c else nn.ReLU()", "self.m", "module, torch.nn.ReLU"),
        ("c or nn.ReLU()", "self.m", "unknown, ?, torch.nn.ReLU"),
        ("c[0](3)", "self.m", "unknown, ?"),
        ("3", "self.m", "unknown, ?"),
        ("nn.ReLU(**c)", "self.m", "module, torch.nn.ReLU"),
        ("nn.ModuleList([nn.ReLU()])", "self.m", "module, torch.nn.ModuleList(torch.nn.ReLU)"),
        ("nn.ReLU() if c else make(c)", "self.m", "unknown, make(None), torch.nn.ReLU"),
        ("make(c)", "self.m", "unknown, make(None)"),
        ("float(c)", "self.m", "unknown, float(None)"),
        ("nn.Parameter(c)", "self.m", "unknown, torch.nn.Parameter(None)"),
        ("Net(c)", "self.m", "module, Net(None)"),
        ("Plain(c)", "self.m", "other, Plain(None)"),
        ("None", "self.m(x)", "unknown"),
        ("nn.Conv2d(3, 4, 1)", "self.m()", "unknown"),
        ("nn.Conv2d(3, 4, 1)", "self.m(x)", "tensor 3 4"),
        ("nn.Conv2d(3, 4, 1)", "self.m(image)", "tensor 4"),
        ("nn.Conv2d(3, 4, 1)", "self.m(matrix)", "tensor 3 4"),
        ("nn.Conv2d(3, 4, 1)", "self.m(x).transpose(1, 2)", "tensor 3 4"),
        ("nn.Conv3d(3, 4, 1)", "self.m(x)", "tensor 4 5"),
        ("nn.Conv3d(3, 4, 1)", "self.m(volume)", "tensor 5"),
        ("nn.Conv3d(3, 4, 1)", "self.m(matrix)", "tensor 4 5"),
        ("nn.BatchNorm2d(3)", "self.m(x)", "tensor"),
        ("nn.Linear(3, 4)", "self.m(x)", "tensor, made"),
        ("torch.nn.modules.conv.Conv2d(3, 4, 1)", "self.m(x)", "tensor 3 4"),
        ("nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU() if c else None)", "self.m(x)", "tensor 3 4"),
        ("nn.Identity()", "self.m(image)", "tensor 4"),
        ("nn.ReLU()", "x.m", "unknown"),
        ("nn.ReLU()", "self[x]", "unknown"),
        ("nn.ReLU()", "self.m.weight", "unknown"),
        ("nn.LSTM(3, 4)", "self.m(x)", "unknown"),
        ("make(c)", "self.m(x)", "unknown"),
        ("nn.Sequential(nn.ReLU(), make(c))", "self.m(x)", "unknown"),
        ("nn.MaxPool2d(2) if c else nn.MaxPool3d(2)", "self.m(x)", "tensor"),
    ],
)
def test_what_an_attribute_says(attribute: str, expression: str, expected: str) -> None:
    source = f"""
class Plain: pass
class Net(nn.Module):
    def __init__(self, c):
        self.m = {attribute}
    def forward(self, x, image: Float[Tensor, 'b c h w'], volume: Float[Tensor, 'b c d h w'], matrix: Float[Tensor, 'r c']):
        reveal({expression})
"""
    assert _revealed(source) == [expected]


def test_attributes_of_classes_that_are_bases_of_each_other() -> None:
    source = """
from other import Net
class Base(Net): pass
class Net(Base):
    def forward(self):
        reveal(self.m)
"""
    assert _revealed(source) == ["unknown"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("v.relu()", "operator relu"),
        ("v.shape", "metadata"),
        ("y = v.foo", "unknown"),
        ("v[0](y)", "unknown"),
        ("class K(v): pass", "unknown"),
        ("v * y", "operator mul"),
        ("v % y", "unknown"),
        ("-v", "operator neg"),
        ("y += v", "operator add"),
        ("v += y", "unknown"),
        ("return v", "leaves"),
        ("return v < y", "unknown"),
        ("return [v]", "leaves"),
        ("return {'a': v}", "leaves"),
        ("return [*v]", "unknown"),
        ("y = [v]", "unknown"),
        ("foo([self.v])", "unknown"),
        ("self.w = v", "leaves"),
        ("w = v\n        def g(): return w", "unknown"),
        ("torch.softmax(v, 1)", "operator softmax"),
        ("torch.softmax(dim=1, input=v)", "operator softmax"),
        ("torch.softmax(*v)", "unknown"),
        ("torch.add(y, v)", "operator add"),
        ("torch.matmul(y, v)", "unknown"),
        ("torch.where(y, other=v)", "unknown"),
        ("foo(v)", "unknown"),
        ("foo.add(v)", "unknown"),
        ("foo.add(v).t()", "unknown"),
        ("t.add(v)", "operator add"),
        ("len(v)", "metadata"),
        ("np.str(v)", "unknown"),
        ("sum(v)", "unknown"),
        ("self.conv(v)", "operator conv2d"),
        ("self.conv(y, v)", "unknown"),
        ("self.none(v)", "unknown"),
        ("self.nothing(v)", "operator identity"),
    ],
)
def test_what_consumes_a_value(body: str, expected: str) -> None:
    flow = _flow(
        f"""
class Net(nn.Module):
    def __init__(self, c):
        self.conv = nn.Conv2d(3, 4, 1)
        self.none = None
        self.nothing = nn.Sequential(None)
    def forward(self, y, t: Tensor):
        v = self.v
        {body}
"""
    )
    value = next(node for node in flow.parents if isinstance(node, cst.Attribute))
    (consumer,) = consumers(flow, value)
    assert " ".join([consumer.how.name.lower(), *consumer.operators]) == expected


def test_attributes_of_another_class() -> None:
    source = """
class Other(nn.Module):
    def __init__(self):
        self.m = nn.ReLU()
class Net(nn.Module):
    def forward(self):
        reveal(self.m)
"""
    assert _revealed(source) == ["unknown"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("rearrange(x, 'b c h w -> b (c h) w')\nreveal(x)", ["unknown 4"]),
        ("a, *b = image, t\nreveal(a)", ["tensor"]),
        ("a, b = x, y, t\nreveal(a)", ["unknown"]),
        ("a, b = loader\nreveal(a)", ["batch"]),
        ("a, b = image\nreveal(a)", ["tensor 3"]),
        ("a: Tensor = foo()\nreveal(a)", ["tensor"]),
        ("a: int = t\nreveal(a)", ["tensor"]),
        ("y += t\nreveal(y)", ["tensor"]),
        ("n += 1\nreveal(n)", ["unknown"]),
        ("del t\nreveal(t)", ["unknown"]),
        ("del (t, image)\nreveal(t)", ["unknown"]),
        ("self.a = t\ndel self.b\nreveal(self.a)", ["tensor"]),
        ("del foo()[0]\nreveal(t)", ["tensor"]),
        ("raise ValueError(reveal(t))", ["tensor"]),
        ("raise y from reveal(t)", ["tensor"]),
        ("raise", []),
        ("assert x, reveal(t)", ["tensor"]),
        ("assert True, reveal(t)", []),
        ("break", []),
        ("continue", []),
        ("for a in x:\n    if y:\n        t = None\n        continue\nreveal(t)", ["unknown"]),
        ("from foo import *\nreveal(t)", ["tensor"]),
        ("import foo as t\nreveal(t)", ["unknown"]),
        ("if False:\n    reveal(t)", []),
        ("if True:\n    pass\nelif x:\n    reveal(t)", []),
        ("if x:\n    pass\nelif y is None:\n    reveal(y)", ["other"]),
        ("while True:\n    pass\nelse:\n    reveal(t)", []),
        ("return\nif x:\n    reveal(t)", []),
        ("return; reveal(t)", []),
        ("for a in x:\n    try:\n        break\n    finally:\n        t = None\nreveal(t)", ["unknown"]),
        ("for a in x:\n    try:\n        break\n    finally:\n        return\nreveal(t)", ["tensor"]),
        ("try:\n    t = None\n    foo()\nfinally:\n    reveal(t)", ["unknown"]),
        ("try:\n    pass\nfinally:\n    t = None\nreveal(t)", ["unknown"]),
        ("try:\n    return\nfinally:\n    reveal(t)", ["tensor"]),
        ("try:\n    return\nexcept E:\n    pass\nelse:\n    reveal(t)", []),
        ("try:\n    foo()\nexcept reveal(t):\n    pass", ["tensor"]),
        ("try:\n    foo()\nexcept:\n    reveal(t)", ["tensor"]),
        ("try:\n    foo()\nexcept E as t:\n    reveal(t)", ["other"]),
        ("self.a = t\nwith foo:\n    reveal(self.a)", ["tensor"]),
        ("self.a = t\nfor b in x:\n    reveal(self.a)", ["tensor"]),
        ("self.a = t\nasync for b in x:\n    reveal(self.a)", ["unknown"]),
        ("with foo():\n    t = None\nreveal(t)", ["unknown"]),
        ("with foo():\n    t = 1\nreveal(t)", ["other"]),
        ("with suppress(E), foo():\n    t = 1\nreveal(t)", ["unknown"]),
        ("match x:\n    case {'a': 1, **t}:\n        reveal(t)", ["unknown"]),
        ("match x:\n    case {'a': 1}:\n        reveal(t)", ["tensor"]),
        ("match x:\n    case Foo() as z:\n        return\nreveal(t)", ["tensor"]),
        ("match x:\n    case _:\n        return\n    case 1:\n        reveal(t)", []),
        ("match x:\n    case _ if False:\n        reveal(t)", []),
        ("match t:\n    case Foo(y) as z:\n        reveal(z)\n        reveal(y)", ["tensor", "unknown"]),
        ("match t:\n    case [y]:\n        reveal(y)", ["unknown"]),
        ("match x.is_contiguous():\n    case 1:\n        reveal(x)", ["tensor"]),
        (
            "match x.is_contiguous():\n    case True:\n        pass\n    case _:\n        reveal(x)",
            ["tensor, not contiguous_format"],
        ),
        ("class K:\n    raise E\nreveal(t)", ["tensor"]),
        ("class K:\n    t = None\nreveal(t)", ["tensor"]),
        ("t = x.T\nreveal(t.T)", ["unknown 0 1 2"]),
        ("with foo as (a, *b):\n    reveal(b)", ["other"]),
        ("for a, *b in [many]:\n    reveal(b)", ["other"]),
        ("for a, *b in tqdm(train_loader):\n    reveal(a)\n    reveal(b)", ["batch", "other"]),
        ("for a in enumerate():\n    reveal(a)", ["unknown"]),
        ("for a in tqdm():\n    reveal(a)", ["unknown"]),
        ("for a in foo(loader):\n    reveal(a)", ["unknown"]),
        ("for a in self.loader:\n    reveal(a)", ["batch"]),
        ("for a in loader[0]:\n    reveal(a)", ["unknown"]),
        ("a = yield reveal(t)\nreveal(a)", ["tensor", "unknown"]),
        ("yield from reveal(t)", ["tensor"]),
        ("yield\nreveal(t)", ["tensor"]),
        ("await foo()\nreveal(t)", ["tensor"]),
        ("m = nn.ReLU()\nm.to(memory_format=y)\nreveal(m)", ["module, torch.nn.ReLU"]),
        (
            "m = nn.ReLU()\nm.to(memory_format=torch.channels_last)\nreveal(m)",
            ["module, torch.nn.ReLU, converted 0231"],
        ),
        ("m = nn.ReLU()\nm.foo(memory_format=torch.channels_last)\nreveal(m)", ["module, torch.nn.ReLU"]),
        ("x.to(memory_format=torch.channels_last)\nreveal(x)", ["unknown"]),
        ("x.permute(1, 0)\nreveal(x)", ["tensor"]),
        ("n.permute(1, 0)\nreveal(n)", ["other"]),
        ("self.permute(1, 0)\nreveal(self)", ["unknown"]),
        ("x.data = y\nreveal(x)", ["tensor"]),
        ("a, *b = x.shape\nreveal(x)", ["unknown"]),
        ("a, b = x.shape\nreveal(x)", ["unknown 2"]),
        ("a, b = x.foo\nreveal(x)", ["unknown"]),
        ("a, b = x.size(0)\nreveal(x)", ["unknown"]),
        ("a, b = x.foo()\nreveal(x)", ["unknown"]),
        ("a, b = x.size()\nreveal(x)", ["unknown 2"]),
        ("a = x.shape\nreveal(x)", ["unknown"]),
        ("if (True if y else False):\n    reveal(t)", ["tensor"]),
        ("if (x.ndim == 4 if False else x.ndim == 3):\n    reveal(x)", ["unknown 3"]),
        ("if True or reveal(t):\n    reveal(x)", ["unknown"]),
        ("if not (x.ndim == 4 or y):\n    pass\nelif x.ndim == 4:\n    reveal(x)", ["unknown 4"]),
        ("if -x:\n    reveal(x)\nelse:\n    reveal(y)", ["unknown", "unknown"]),
        ("def g():\n    reveal(t)\n    reveal(self.a)", ["tensor", "unknown"]),
        ("x = t\nx.unsqueeze_(0)\nreveal(x)\nreveal(t)", ["tensor", "tensor"]),
        ("torch.Tensor.t_()\nreveal(t)", ["tensor"]),
        ("self.a = t\nlambda: self\nreveal(self.a)", ["tensor"]),
        ("self.a = t\n[self.foo() for a in x]\nreveal(self.a)", ["unknown"]),
        ("self.a = t\n[(a := 1) for b in x]\nreveal(self.a)", ["tensor"]),
        ("self.a = t\n[b async for b in x]\nreveal(self.a)", ["unknown"]),
        ("self.a = t\n[b for b in x]\nreveal(self.a)", ["tensor"]),
        ("self.a = t\nlist(self.foo() for a in x)\nreveal(self.a)", ["unknown"]),
        ("self.a = t\nx.join(self.foo() for a in x)\nreveal(self.a)", ["unknown"]),
        ("self.a = t\nfoo(1, 'b', f'{y}')\nreveal(self.a)", ["tensor"]),
        ("self.a = t\nself.items()\nreveal(self.a)", ["unknown"]),
        ("y.a = t\ny.items()\nreveal(y.a)", ["tensor"]),
        ("y.a = t\nprint(y)\nreveal(y.a)", ["tensor"]),
        ("y.a = t\ny.b[foo()] = 1\nreveal(y.a)", ["tensor"]),
        ("y[0] = t\ny[foo()] = 1\nreveal(y[0])", ["unknown"]),
        ("t[0] = y\nreveal(t)", ["tensor"]),
        ("if ~x.is_contiguous():\n    reveal(x)", ["tensor"]),
        ("if not True:\n    reveal(t)", []),
        ("self.a = t\nfoo().update()\nreveal(self.a)", ["tensor"]),
        ("import foo\nself.a = t\nfoo.get(self)\nreveal(self.a)", ["unknown"]),
        ("global z\nz = t\nfoo()\nreveal(z)", ["unknown"]),
        ("global z\nz = t\nyield\nreveal(z)", ["unknown"]),
        ("a = x.is_contiguous() and foo()\nreveal(x)", ["tensor"]),
        ("y = [a for a in x if False]\nreveal(y)", ["other"]),
        ("a, *b = [t, t]\nreveal(b)", ["tensors"]),
        ("t[0] = n\nreveal(t[0])", ["tensor"]),
        ("a = t\ndef g():\n    reveal(a)\na = y", ["unknown"]),
        ("y.b = t\nfoo().b = n\nreveal(y.b)", ["unknown"]),
        ("y.b = t\nx.b = n\nreveal(y.b)", ["unknown"]),
        ("reveal(nn.Conv2d(3, 4, 1)(x))", ["tensor 3 4"]),
        ("m = nn.Conv2d(3, 4, 1)\nreveal(m(x))", ["tensor 3 4"]),
        ("y.m = nn.Conv2d(3, 4, 1)\nreveal(y.m(x))", ["tensor 3 4"]),
        ("[b for a in x if (b := a)]\nreveal(b)", ["unknown"]),
        ("b = t\n[b for a in x if (b := a)]\nreveal(b)", ["unknown"]),
        ("a = t if y else 1\nreveal(a)", ["unknown"]),
        ("a = t.is_contiguous() if x else y\nif a:\n    reveal(t)", ["tensor"]),
        (
            "a = not t.is_contiguous() if x else t.is_contiguous() is False\nif a:\n    reveal(t)",
            ["tensor, not contiguous_format"],
        ),
        ("m = nn.ReLU() if x else y\nreveal(m)", ["unknown"]),
        ("m = x if y else nn.ReLU()\nreveal(m)", ["unknown"]),
        ("m = nn.ReLU() if x else nn.GELU()\nreveal(m)", ["module, torch.nn.GELU, torch.nn.ReLU"]),
        ("if image.ndim in (3, 4):\n    reveal(image)", ["tensor 4"]),
        ("if image.ndim == 3:\n    reveal(image)", ["tensor 3"]),
        ("a = y\ny[0] = t\na[0] = n\nreveal(y[0])", ["unknown"]),
        ("y[0] = t\ny[1] = n\nreveal(y[0])", ["tensor"]),
        ("a = y\ny.b = t\na = n\nreveal(y.b)", ["tensor"]),
        ("y[-1] = t\ny.b = n\nreveal(y[-1])", ["tensor"]),
        ("y.b = t\nfoo(x)\nreveal(y.b)", ["tensor"]),
        ("y.c.b = t\ny.b = n\nreveal(y.c.b)", ["tensor"]),
        ("y[0] = t\nx[-1] = n\nreveal(y[0])", ["tensor"]),
        ("y.b = t\ny[-1] = n\nreveal(y.b)", ["tensor"]),
        ("y[-1] = t\ny[0] = n\nreveal(y[-1])", ["unknown"]),
        ("for i in x:\n    reveal(t)\n    y[i] = n", ["tensor"]),
        ("while (a := foo()) is not None:\n    b = a\nif a.is_contiguous():\n    reveal(b)", ["unknown"]),
        (
            "ok = t.is_contiguous()\nfor a in x:\n    if ok:\n        reveal(t)\n    bad = a.is_contiguous()",
            ["tensor, contiguous_format"],
        ),
        ("while (a := foo()).any():\n    ok = a.is_contiguous()\nif ok:\n    reveal(a)", ["unknown"]),
        (
            "while (a := foo()).any():\n    ok = not a.is_contiguous()\nif not ok:\n    reveal(a)",
            ["unknown"],
        ),
        (
            "while (a := foo()).any():\n    ok = y and a.is_contiguous()\nif ok:\n    reveal(a)",
            ["unknown"],
        ),
        (
            "while (a := foo()).any():\n    ok = a.is_contiguous() and y\nif ok:\n    reveal(a)",
            ["unknown"],
        ),
        ("while x:\n    a = t\n    t = foo()\nif t.is_contiguous():\n    reveal(a)", ["unknown"]),
        ("if y:\n    assert self.a.is_contiguous()\nreveal(self.a)", ["unknown"]),
        ("if y:\n    a = image.relu()\nreveal(a)", ["tensor 4"]),
        ("if y:\n    self.b = t\nreveal(self.b)", ["unknown"]),
        ("if y:\n    pass\nelse:\n    self.b = t\nreveal(self.b)", ["unknown"]),
        ("if y:\n    self.b = z\nif z.is_contiguous():\n    reveal(self.b)", ["unknown"]),
        ("a = b = image\nwhile x:\n    reveal(a)\n    a = b.relu()\n    b = foo()", ["unknown"]),
        ("a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a = image.shape\nreveal(image)", ["tensor 4"]),
    ],
)
def test_what_a_statement_leaves(body: str, expected: list[str]) -> None:
    parameters = "self, x, y, t: Tensor, image: Float[Tensor, 'b c h w'], n: int"
    assert _revealed(f"async def f({parameters}):\n{textwrap.indent(body, '    ')}\n") == expected
