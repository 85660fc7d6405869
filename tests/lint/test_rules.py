"""Every rule's own cases, run through the whole pipeline."""

from __future__ import annotations

import ast
import re

import pytest

from esper_guard.lint.check import check_bytes
from esper_guard.lint.fix import apply_fixes
from esper_guard.lint.registry import all_rules
from esper_guard.lint.rule import Invalid, Rule

RULES = list(all_rules().values())
HEADINGS = (
    "What it does",
    "Why is this bad?",
    "Example",
    "Use instead",
    "When it stays silent",
    "References",
)


def _codes(rule: type[Rule]) -> set[str]:
    # EG002 judges the suppressions of other rules, so those have to run.
    return set(all_rules()) if rule.code == "EG002" else {"EG001", rule.code}


def _check(rule: type[Rule], source: str) -> list:
    findings = check_bytes("case.py", source.encode(), _codes(rule), is_named=True)
    assert "EG001" not in {finding.code for finding in findings}, findings
    return [finding for finding in findings if finding.code == rule.code]


VALID = [
    pytest.param(rule, source, id=f"{rule.code}-{n}") for rule in RULES for n, source in enumerate(rule.valid)
]
INVALID = [
    pytest.param(rule, case, id=f"{rule.code}-{n}") for rule in RULES for n, case in enumerate(rule.invalid)
]


@pytest.mark.parametrize(("rule", "source"), VALID)
def test_valid(rule: type[Rule], source: str) -> None:
    assert _check(rule, source) == []


@pytest.mark.parametrize(("rule", "case"), INVALID)
def test_invalid(rule: type[Rule], case: Invalid) -> None:
    findings = _check(rule, case.source)
    assert len(findings) == case.findings
    assert all(finding.message and finding.help for finding in findings)
    if case.message is not None:
        assert any(case.message in finding.message for finding in findings)
    if case.help is not None:
        assert any(case.help in (finding.help or "") for finding in findings)
    if case.safe is not None:
        assert {finding.fix.safe for finding in findings if finding.fix is not None} == {case.safe}
    fixed, _ = apply_fixes(case.source, findings, unsafe=True)
    if case.fixed is not None:
        assert fixed == case.fixed
    ast.parse(fixed)
    for ending in ("\r\n", "\r"):
        assert len(_check(rule, case.source.replace("\n", ending))) == case.findings
    again = _check(rule, fixed)
    assert apply_fixes(fixed, again, unsafe=True)[0] == fixed, "a second run must change nothing"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_documentation(rule: type[Rule]) -> None:
    documentation = rule.documentation()
    assert documentation.startswith(f"# {rule.name} ({rule.code})\n")
    assert rule.summary().endswith(".")
    headings = re.findall(r"^## (.+)$", documentation, re.MULTILINE)
    assert [heading for heading in headings if heading in HEADINGS] == list(HEADINGS)
    if any(case.fixed for case in rule.invalid):
        assert "Fix safety" in headings


def test_codes_and_names_are_distinct_and_match_their_files() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.__module__.rpartition(".")[2] == f"{rule.code.lower()}_{rule.name.replace('-', '_')}"
