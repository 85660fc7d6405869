"""Dominance: which copies count as guarded. Each snippet is one function (or module) and its verdict."""

from __future__ import annotations

import textwrap

import pytest

from esper_guard.lint.check import check_bytes, check_source
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
