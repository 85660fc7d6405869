"""The pipeline over one file: scan, slices, LibCST, flow, rules, suppression."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

from esper_guard.lint import scan
from esper_guard.lint.finding import Finding
from esper_guard.lint.outline import Outline
from esper_guard.lint.parse import check_syntax, parse_module, without_garbage_collection
from esper_guard.lint.project import is_test
from esper_guard.lint.registry import all_rules
from esper_guard.lint.rule import Rule
from esper_guard.lint.source import Location, Source, SourceError

if TYPE_CHECKING:
    from esper_guard.lint.imports import Names
    from esper_guard.lint.masking import Masked
    from esper_guard.lint.slices import Slice
    from esper_guard.trace.recorded import Measured

SYNTAX_ERROR = "EG001"
UNUSED_SUPPRESSION = "EG002"


def check_bytes(
    path: str, data: bytes, codes: Collection[str], is_named: bool = False, measured: Measured | None = None
) -> list[Finding]:
    """The findings in one file, by position.

    Args:
        path: shown in messages only; nothing is read from it.
        data: the content of the file.
        codes: the rules to run.
        is_named: the user named this very file, so its syntax is checked even where no rule could apply.
        measured: what a trace holds of this very content.
    """
    try:
        source = Source.from_bytes(path, data)
        is_parsed = is_named or (SYNTAX_ERROR in codes and scan.looks_like_python_2(data))
        if is_parsed:
            check_syntax(source)
        return check_source(source, codes, is_parsed=is_parsed, measured=measured)
    except SourceError as error:
        return [unreadable(error)] if SYNTAX_ERROR in codes else []


def check_source(
    source: Source,
    codes: Collection[str],
    sliced: bool = True,
    is_parsed: bool = False,
    measured: Measured | None = None,
) -> list[Finding]:
    """The findings in a decoded file. ``sliced=False`` parses it whole, for comparison.

    ``is_parsed``: its syntax has been checked before, so parts of it can be parsed straight away.

    Raises:
        SourceError: the file can't be parsed.
    """
    data = source.text.encode("utf-8", "surrogatepass").replace(b"\r", b"\n")
    if is_test(source.path):
        codes = {code for code in codes if all_rules()[code].in_tests}
    rules = _rules(codes)
    hit = scan.rules_for_file(rules, data) if sliced else [rule for rule in rules if rule.triggers]
    judges_comments = UNUSED_SUPPRESSION in codes and scan.mentions_suppression(data, all_rules().values())
    if not (hit or judges_comments or measured is not None):
        return []

    from esper_guard.lint.masking import MaskingError, mask
    from esper_guard.lint.suppress import Suppressions

    try:
        masked = mask(source.text)
    except MaskingError as error:
        check_syntax(source)
        raise SourceError(f"the file can't be read: {error}") from None
    suppressions = Suppressions(source, masked)
    if suppressions.skip_file:
        return []
    with without_garbage_collection():
        findings = _run_rules(source, masked, hit, sliced, is_parsed) if hit else []
    if measured is not None:
        findings = _with_measured(source, masked, rules, findings, measured)
        suppressions.excuse([rule.code for rule in rules if rule.needs_trace], measured.executed)
    findings = suppressions.keep(sorted(set(findings), key=_order))
    checked = {rule.code for rule in rules if measured is not None or not rule.needs_trace}
    unused = [
        finding
        for rule in rules
        for finding in rule().check_suppressions(source, suppressions, set(all_rules()), checked)
    ]
    return sorted([*findings, *suppressions.keep(unused, by_name=True)], key=_order)


def unreadable(error: SourceError) -> Finding:
    """EG001 for a file that can't be read or parsed."""
    rule = all_rules()[SYNTAX_ERROR]
    place = Location(error.row, error.column)
    return Finding(rule.code, rule.name, rule.severity, error.message, place, place)


def _rules(codes: Collection[str]) -> list[type[Rule]]:
    return [rule for code, rule in all_rules().items() if code in codes]


def _order(finding: Finding) -> tuple[Location, str, str]:
    return finding.location, finding.code, finding.message


def _applicable(piece: Slice, path: str, names: Names) -> Sequence[type[Rule]]:
    """The rules that could find something in ``piece``, as far as its outline tells."""
    tree = check_syntax(Source(path, piece.text))
    if tree is None or piece.kind == "file":
        return piece.rules
    outline = Outline(tree, names)
    return [rule for rule in piece.rules if rule.may_apply(outline)]


def _with_measured(
    source: Source,
    masked: Masked,
    rules: Sequence[type[Rule]],
    findings: list[Finding],
    measured: Measured,
) -> list[Finding]:
    from esper_guard.lint.measured import weigh
    from esper_guard.lint.reasons import gives_reason

    unexplained = [
        found
        for rule in rules
        for found in rule().check_measured(source, measured, findings)
        if not (rule.heeds_reasons and gives_reason(source, masked, found))
    ]
    return weigh([*findings, *unexplained], measured, all_rules())


def _run_rules(
    source: Source, masked: Masked, rules: Sequence[type[Rule]], sliced: bool, is_parsed: bool
) -> list[Finding]:
    from esper_guard.lint.imports import names_of
    from esper_guard.lint.slices import names_declared_global, names_in_functions, slices, whole_file

    names = names_of(masked.code)
    pieces = list(slices(source.text, masked, names, rules)) if sliced else [whole_file(source.text, rules)]
    if not pieces:
        return []

    from esper_guard.lint.flow import analyse
    from esper_guard.lint.flow.positions import Positions
    from esper_guard.lint.modules import Classes
    from esper_guard.lint.reasons import gives_reason

    findings: list[Finding] = []
    classes = Classes(source.text, masked.code, names)
    for piece in pieces:
        try:
            applicable = _applicable(piece, source.path, names)
            if not applicable:
                continue
            module = parse_module(piece.text)
        except SourceError as error:
            check_syntax(source)  # what is wrong with the file as a whole says more
            raise SourceError(error.message, error.row + piece.first_row) from None
        positions = Positions(source, module, piece.first_row)
        starts = piece.starts(masked.code)
        for root in piece.roots(module):
            if root is module:
                used, rebound = names_in_functions(masked.code), names_declared_global(masked.code)
                flow = analyse(root, names, positions, used, rebound)
            else:
                flow = analyse(root, names, positions, attribute=partial(classes.attribute, next(starts, 0)))
            for rule in applicable:
                found = rule().check(flow)
                if rule.heeds_reasons:
                    found = [finding for finding in found if not gives_reason(source, masked, finding)]
                findings += found
    if findings and not is_parsed:
        check_syntax(source)  # a broken file is one finding, not many
    return findings
