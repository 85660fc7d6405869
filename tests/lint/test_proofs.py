"""Every rule's claim, run: the code it flags does what it says, the code it recommends does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from esper_guard import layout_of, trace_layouts
from esper_guard.lint.check import check_bytes
from esper_guard.lint.registry import all_rules
from esper_guard.lint.rule import Claim, Proof, Rule
from esper_guard.trace.layout_trace import LayoutTrace

RULES = list(all_rules().values())
PROVEN = [pytest.param(rule, rule.proof, id=rule.code) for rule in RULES if rule.proof is not None]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_rule_has_a_proof_or_says_why_not(rule: type[Rule]) -> None:
    assert (rule.proof is None) == bool(rule.no_proof), (
        "give the rule a proof, or say in no_proof why it has none"
    )


@pytest.mark.parametrize(("rule", "proof"), PROVEN)
def test_the_rule_flags_what_is_run(rule: type[Rule], proof: Proof) -> None:
    for code, expected in ((proof.flagged, True), (proof.recommended, False)):
        source = f"{proof.setup}{code}".encode()
        found = check_bytes("proof.py", source, {"EG001", rule.code}, is_named=True)
        assert bool(found) is expected, (code, found)
        assert {finding.code for finding in found} <= {rule.code}


@pytest.mark.parametrize(("rule", "proof"), PROVEN)
def test_running_it_shows_the_claim(rule: type[Rule], proof: Proof) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        PROVES[proof.claim](proof)


def copies(proof: Proof) -> None:
    flagged, recommended = traced(proof, proof.flagged), traced(proof, proof.recommended)
    assert flagged.copied >= flagged.inputs[0].nbytes
    assert recommended.copied == 0
    assert_equal(flagged.result, recommended.result)


def loses(proof: Proof) -> None:
    flagged, recommended = executed(proof, proof.flagged), executed(proof, proof.recommended)
    assert layout_of(flagged.result).state != "channels_last"
    assert layout_of(recommended.result).state == "channels_last"
    assert_equal(flagged.result, recommended.result)


def raises(proof: Proof) -> None:
    assert proof.error
    with pytest.raises(Exception, match=proof.error):
        executed(proof, proof.flagged)
    recommended = executed(proof, proof.recommended)
    if proof.reference:
        assert_equal(recommended.result, reference(proof))


def wrong(proof: Proof) -> None:
    assert proof.reference
    right = reference(proof)
    assert_equal(executed(proof, proof.recommended).result, right)
    with pytest.raises(AssertionError):
        assert_equal(executed(proof, proof.flagged).result, right)


def does_nothing(proof: Proof) -> None:
    assert proof.reference
    unchanged = reference(proof)
    assert describe(executed(proof, proof.flagged).result) == describe(unchanged)
    assert describe(executed(proof, proof.recommended).result) != describe(unchanged)


def records(proof: Proof) -> None:
    nodes = {}
    for code in (proof.flagged, proof.recommended):
        run, inputs = prepared(proof, code)
        before = torch.autograd._get_sequence_nr()
        result = run(*inputs)
        nodes[code] = torch.autograd._get_sequence_nr() - before, result
    assert nodes[proof.flagged][0] > nodes[proof.recommended][0]
    assert_equal(nodes[proof.flagged][1], nodes[proof.recommended][1])


class Conversions(TorchFunctionMode):
    """Counts the calls of `Tensor.to`."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.Tensor.to
        return function(*args, **(kwargs or {}))


def repeats(proof: Proof) -> None:
    counted = {}
    for code in (proof.flagged, proof.recommended):
        run, inputs = prepared(proof, code)
        with Conversions() as conversions:
            result = run(*inputs)
        counted[code] = conversions.count, result
    assert counted[proof.flagged][0] > counted[proof.recommended][0]
    assert_equal(counted[proof.flagged][1], counted[proof.recommended][1])


PROVES: dict[Claim, Callable[[Proof], None]] = {
    Claim.COPIES: copies,
    Claim.LOSES: loses,
    Claim.RAISES: raises,
    Claim.WRONG: wrong,
    Claim.NOTHING: does_nothing,
    Claim.RECORDS: records,
    Claim.REPEATS: repeats,
}


class Run:
    """One execution: what it was given, what it returned, and what it copied."""

    def __init__(self, inputs: tuple[Any, ...], result: Any, trace: LayoutTrace | None) -> None:
        self.inputs = inputs
        self.result = result
        self.copied = 0 if trace is None else sum(event.bytes for event in trace.events if event.is_copy)


def executed(proof: Proof, code: str) -> Run:
    run, inputs = prepared(proof, code)
    return Run(inputs, run(*inputs), None)


def traced(proof: Proof, code: str) -> Run:
    run, inputs = prepared(proof, code)
    with trace_layouts() as trace:
        result = run(*inputs)
    return Run(inputs, result, trace)


def reference(proof: Proof) -> Any:
    namespace: dict[str, Any] = {}
    with seeded():
        exec(proof.setup, namespace)  # noqa: S102
        namespace["inputs"] = eval(proof.inputs, namespace)
        return eval(proof.reference, namespace)


def prepared(proof: Proof, code: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    namespace: dict[str, Any] = {}
    with seeded():
        exec(compile(proof.setup + code, "proof.py", "exec"), namespace)  # noqa: S102
        inputs = eval(proof.inputs, namespace)
    return namespace["run"], inputs


@contextmanager
def seeded() -> Iterator[None]:
    """The same numbers for each execution, and nothing left behind for other tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def assert_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


def describe(result: Any) -> Any:
    """What EG201 claims to stay as it is: values, dtype, strides, graph."""
    if isinstance(result, torch.Tensor):
        return result.tolist(), result.dtype, result.stride(), result.requires_grad
    return result
