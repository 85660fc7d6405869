"""What a rule is."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

import msgspec

from esper_guard.lint.finding import Edit, Finding, Fix, Severity

if TYPE_CHECKING:
    import libcst as cst

    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline
    from esper_guard.lint.source import Source
    from esper_guard.lint.suppress import Suppressions
    from esper_guard.trace.recorded import Measured


__all__ = ["Claim", "Edit", "Finding", "Fix", "Invalid", "Proof", "Rule", "Severity", "Trigger"]

Trigger = bytes | Callable[[bytes], Iterable[int]]


class Invalid(msgspec.Struct, frozen=True):
    """Source that a rule flags: how often, what its fixes (unsafe ones included) make of it, parts of what it says."""

    source: str
    findings: int = 1
    fixed: str | None = None
    message: str | None = None
    help: str | None = None
    safe: bool | None = None


class Claim(enum.Enum):
    """What running the flagged code shows, and the recommended code does not. The values are the same otherwise."""

    COPIES = "copies bytes of the tensor on every call"
    LOSES = "gives a result that is no longer channels_last"
    RAISES = "raises"
    WRONG = "gives a wrong result"
    NOTHING = "does nothing"
    RECORDS = "records autograd nodes that are thrown away"
    REPEATS = "converts again what is converted already"


class Proof(msgspec.Struct, frozen=True):
    """Code that shows by running what a rule claims; the tests lint it and run it.

    ``flagged`` and ``recommended`` define ``run``, which is called with what ``inputs`` (an expression) makes anew for
    each; ``setup`` comes before all of them. The rule has to flag the one and stay silent on the other.

    COPIES: ``run(*inputs)`` copies at least as many bytes as the first input has, the recommended code none, with equal
    results. LOSES: the result is channels_last with the recommended code only, with equal values. RAISES: only the
    flagged code raises ``error``. WRONG: the result differs from that of ``recommended``; ``reference``, an expression
    over a fresh ``inputs``, is what is right. NOTHING: the flagged code leaves its first input, and returns, what
    ``reference`` is; the recommended code does not. RECORDS: more autograd nodes are made than by the recommended code, and
    REPEATS: `Tensor.to` is called more often, with equal results.
    """

    claim: Claim
    flagged: str
    recommended: str
    inputs: str = "(torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last),)"
    setup: str = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
    error: str = ""
    reference: str = ""


class Rule:
    """One kind of mistake. A rule lives in a file of its own, whose docstring is its documentation.

    ``triggers`` are regular expressions over bytes, or functions that give the offsets of their matches. A file is looked at only if each of them matches
    in it, and then parsed only where they match in one function (strings and comments are blanked by then).
    They may match too often (that costs time), never too seldom (that loses findings).
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    default: ClassVar[bool] = True
    triggers: ClassVar[tuple[Trigger, ...]] = ()
    file_triggers: ClassVar[tuple[Trigger, ...]] = ()
    """What has to match somewhere in the file, though not in the same function."""
    only_with_channels_last: ClassVar[bool] = False
    """Whether the mistake can't happen in a project without channels_last (`assume-channels-last`)."""
    in_tests: ClassVar[bool] = True
    """Whether it is one in a test, too, where tensors are laid out in every way on purpose."""
    heeds_reasons: ClassVar[bool] = False
    """Whether a comment on its lines, or right above, that gives a reason for the layout silences it."""
    shows_in_traces: ClassVar[bool] = True
    """Whether an operator does what it claims (copies, or loses the format), so that a trace can refute it."""
    needs_trace: ClassVar[bool] = False
    """Whether it can tell nothing of a file that no trace was given of (``--trace``)."""
    proof: ClassVar[Proof | None] = None
    no_proof: ClassVar[str] = ""
    """Why nothing can be run to prove it."""
    valid: ClassVar[tuple[str, ...]] = ()
    invalid: ClassVar[tuple[Invalid, ...]] = ()

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """A closer look at a function that the triggers match, before LibCST parses it."""
        return True

    def check(self, flow: Flow) -> Iterable[Finding]:
        """Find this mistake in one function (or in the statements of a module outside its functions)."""
        return ()

    def finding(
        self, flow: Flow, node: cst.CSTNode, message: str, *, help: str | None = None, fix: Fix | None = None
    ) -> Finding:
        """A finding of this rule at ``node``: ``message`` says what happens, ``help`` what to write instead."""
        start, end = flow.positions.span(node)
        place = flow.positions.source.location
        return Finding(self.code, self.name, self.severity, message, place(start), place(end), help, fix)

    def check_suppressions(
        self, source: Source, suppressions: Suppressions, known: Collection[str], checked: Collection[str]
    ) -> Iterable[Finding]:
        """Judge the suppressions of one file, once every rule has run. ``checked`` are the codes of those that did."""
        return ()

    def check_measured(
        self, source: Source, measured: Measured, findings: Sequence[Finding]
    ) -> Iterable[Finding]:
        """Judge what a trace measured in one file, once the rules have found ``findings`` (silenced ones included)."""
        return ()

    @classmethod
    def documentation(cls) -> str:
        """The Markdown that ``esper-guard rule CODE`` shows."""
        return inspect.cleandoc(importlib.import_module(cls.__module__).__doc__ or "")

    @classmethod
    def summary(cls) -> str:
        """The first sentence of the documentation, without its heading."""
        body = re.sub(r"\A#[^\n]*\n+", "", cls.documentation())
        return " ".join(body.split("\n\n", 1)[0].split())
