"""Laws that hold for any input."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from contextlib import suppress

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from esper_guard.lint.check import check_bytes, check_source
from esper_guard.lint.engine import fix_content
from esper_guard.lint.flow.layouts import MADE, Layout, Origin
from esper_guard.lint.flow.values import ALL_RANKS, ContiguityTest, Facts, Kind
from esper_guard.lint.masking import MaskingError, mask
from esper_guard.lint.modules import Made
from esper_guard.lint.registry import all_rules
from esper_guard.lint.source import Source

CODES = frozenset(all_rules())

ATOMS = st.sampled_from(
    ["x.is_contiguous()", "y.is_contiguous()", "a", "x.is_contiguous(memory_format=m)", "ok"]
)
TESTS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
    ),
    max_leaves=5,
)
SIMPLE = st.sampled_from(
    [
        "y = x.contiguous().detach()",
        "y = x.contiguous()",
        "z = y.detach()",
        "x = g(x)",
        "ok = x.is_contiguous()",
        "x, y = y, x",
        "y.t_()",
        "return x",
        "x.to(d)",
        "x = torch.zeros(2, 3, 4, 5)",
        "pass",
        "y = torch.detach(x.contiguous().float())  # noqa: EG101",
    ]
)


def _indented(block: str) -> str:
    return "\n".join("    " + line for line in block.splitlines())


BLOCKS = st.recursive(
    st.lists(SIMPLE, min_size=1, max_size=3).map("\n".join),
    lambda inner: st.one_of(
        st.builds(lambda t, b: f"if {t}:\n{_indented(b)}", TESTS, inner),
        st.builds(lambda t, b, c: f"if {t}:\n{_indented(b)}\nelse:\n{_indented(c)}", TESTS, inner, inner),
        st.builds(lambda t, b: f"while {t}:\n{_indented(b)}", TESTS, inner),
        st.builds(lambda b: f"for x in xs:\n{_indented(b)}\n    continue", inner),
        st.builds(lambda b, c: f"try:\n{_indented(b)}\nfinally:\n{_indented(c)}", inner, inner),
        st.builds(lambda b, c: f"try:\n{_indented(b)}\nexcept E:\n{_indented(c)}", inner, inner),
        st.builds(lambda b: f"def g(y):\n{_indented(b)}", inner),
        st.builds(lambda b, c: f"{b}\n{c}", inner, inner),
    ),
    max_leaves=8,
)
FUNCTIONS = BLOCKS.map(lambda block: f"import torch\n\ndef f(x, y, a, xs, ok, d, m):\n{_indented(block)}\n")


@settings(max_examples=300)
@given(FUNCTIONS)
def test_fixing_twice_is_fixing_once(source: str) -> None:
    once = fix_content("a.py", source.encode(), CODES, unsafe=True)
    assert once.report.crash is None
    data = once.data or source.encode()
    ast.parse(data)
    assert fix_content("a.py", data, CODES, unsafe=True).data is None


@settings(max_examples=300)
@given(FUNCTIONS)
def test_sliced_is_whole(source: str) -> None:
    one = Source("a.py", source)
    assert check_source(one, CODES) == check_source(one, CODES, sliced=False)


@settings(max_examples=200)
@given(TESTS)
def test_dominance_agrees_with_a_truth_table(test: str) -> None:
    """Guarded means: no assignment of truth values reaches the copy without a test of x that came out False."""
    unguarded = _reachable_unguarded(test)
    assume(unguarded is not None)  # a test that is never true reaches nothing: the linter need not see that
    expected = not unguarded
    source = f"def f(x, y, a, ok, m):\n    if {test}:\n        return x.contiguous().detach()\n"
    findings = check_bytes("a.py", source.encode(), {"EG101"})
    if findings and expected:
        # Join keeps what all paths have in common, test by test: "either of two tests was False" is not kept. Nor does
        # the linter see that a path which asks twice and gets two answers can't be.
        assume(test.count("x.is_contiguous") <= 1)
        assume(all(test.count(name) <= 1 for name in ("y.is_contiguous()", "ok")))
        assume(len(re.findall(r"\ba\b", test)) <= 1)
    assert (not findings) == expected


def _reachable_unguarded(test: str) -> bool | None:
    ever_reached = False
    names = {"x.is_contiguous()": "P", "x.is_contiguous(memory_format=m)": "Q", "y.is_contiguous()": "R"}
    for text, name in names.items():
        test = test.replace(text, f"ask('{name}')")
    for bits in range(32):
        values = {name: bool(bits >> n & 1) for n, name in enumerate(("P", "Q", "R", "a", "ok"))}
        asked: set[str] = set()

        def ask(name: str, values: dict = values, asked: set = asked) -> bool:
            asked.add(name)
            return values[name]

        reached = eval(test, {"ask": ask, "a": values["a"], "ok": values["ok"]})
        ever_reached = ever_reached or bool(reached)
        if reached and not any(name in asked and not values[name] for name in ("P", "Q")):
            return True
    return False if ever_reached else None


@settings(max_examples=300)
@given(st.text(alphabet="x='\"\\\n#{}fr:!( )", max_size=40))
def test_masking_agrees_with_the_tokenizer(text: str) -> None:
    """Where Python accepts the text, the same comments are found, and no quote or bracket of a string is left."""
    try:
        ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, tokenize.TokenError, ValueError):
        return
    masked = mask(text)
    assert len(masked.code) == len(text)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    assert [text[span.start : span.end] for span in masked.comments] == comments


@given(st.text(max_size=200))
def test_masking_never_hangs_or_crashes(text: str) -> None:
    with suppress(MaskingError):
        assert len(mask(text).code) == len(text)


FACTS = st.builds(
    Facts,
    st.sampled_from(Kind),
    st.integers(1, ALL_RANKS),
    st.frozensets(
        st.builds(ContiguityTest, st.sampled_from(["contiguous_format", "channels_last"]), st.booleans())
    ),
    st.none(),
    st.sampled_from(
        [None, MADE, Layout((0, 2, 3, 1), Origin.ASSUMED), Layout((0, 2, 3, 1), Origin.CONVERTED)]
    ),
    st.frozensets(st.sampled_from([Made("torch.nn.Conv2d"), Made("torch.nn.Linear"), Made("None")])),
)


@given(FACTS, FACTS, FACTS)
def test_joining_facts_is_a_semilattice(a: Facts, b: Facts, c: Facts) -> None:
    assert a.joined(a) == a
    assert a.joined(b) == b.joined(a)
    assert a.joined(b.joined(c)) == a.joined(b).joined(c)
