"""Comments that silence findings, and the ones that silence nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import cached_property

import msgspec

from esper_guard.lint.finding import Finding
from esper_guard.lint.masking import Masked
from esper_guard.lint.source import Source
from esper_guard.nearest import did_you_mean

_CODE = r"(?-i:[A-Z]+[0-9]+)"
# A colon or bracket that no list of codes follows makes the comment void, rather than a blanket one.
_NOQA = re.compile(rf"#\s*noqa\b(?:\s*:\s*(?P<list>{_CODE}(?:[\s,]+{_CODE})*)|(?!\s*:))", re.IGNORECASE)
_OURS = re.compile(
    r"#\s*esper-guard\s*:\s*(?P<kind>ignore-file|ignore)(?![\w-])(?:\s*\[(?P<list>[^\]]*)\]|(?!\s*[\[\w]))",
    re.IGNORECASE,
)


class Suppression(msgspec.Struct, frozen=True):
    """One comment. ``codes`` is empty where it silences everything."""

    start: int
    end: int
    codes: tuple[tuple[str, int, int], ...]  # code, and the offsets where it is written
    whole_file: bool
    is_ours: bool  # "# esper-guard: ...", which no other tool reads

    def silences(self, code: str) -> bool:
        return not self.codes or any(code == own for own, _, _ in self.codes)


class Suppressions:
    """All suppressions of one file."""

    def __init__(self, source: Source, masked: Masked) -> None:
        self._source = source
        self._masked = masked
        self.all = list(_parse(source.text, masked))
        self._used: set[tuple[int, str]] = set()
        self._for_file = [s for s in self.all if s.whole_file]

    @cached_property
    def _by_row(self) -> dict[int, list[Suppression]]:
        by_row: dict[int, list[Suppression]] = {}
        for suppression in self.all:
            if not suppression.whole_file:
                by_row.setdefault(self._source.location(suppression.start).row, []).append(suppression)
        return by_row

    @property
    def skip_file(self) -> bool:
        """``# esper-guard: ignore-file`` without codes."""
        return any(s.whole_file and not s.codes for s in self.all)

    def keep(self, findings: Iterable[Finding], by_name: bool = False) -> list[Finding]:
        """The findings that no comment silences; comments that silence one are marked as used.

        ``by_name``: only a comment that names the code counts, so that a bare one can't hide that it is unused.
        """
        return [finding for finding in findings if not self._silenced(finding, by_name)]

    def _silenced(self, finding: Finding, by_name: bool) -> bool:
        silenced = False
        on_its_rows = (s for row in self._rows(finding) for s in self._by_row.get(row, ()))
        for suppression in (*self._for_file, *on_its_rows):
            if suppression.silences(finding.code) and not (by_name and not suppression.codes):
                self._used.add((suppression.start, finding.code))
                silenced = True
        return silenced

    def excuse(self, codes: Iterable[str], rows: Collection[int]) -> None:
        """Nobody can tell whether a comment silences these, but where something ran: on ``rows``."""
        judged = {*rows, *(self._last_rows[row - 1] for row in rows if row <= len(self._last_rows))}
        several = list(codes)
        for suppression in self.all:
            row = self._source.location(suppression.start).row
            if not (judged if suppression.whole_file else row in judged):
                self._used.update((suppression.start, code) for code in several if suppression.silences(code))

    def _rows(self, finding: Finding) -> set[int]:
        """The rows of a finding, and the last row of the statement it ends in (where formatters put comments)."""
        last = finding.end_location.row
        return {*range(finding.location.row, last + 1), self._last_rows[last - 1]} if self._by_row else set()

    @cached_property
    def _last_rows(self) -> list[int]:
        """For each row, the last row of its logical line: the one where all brackets are closed."""
        last_rows: list[int] = []
        depth = end = 0
        for line in self._masked.code.split(
            "\n"
        ):  # strings have no line ends there: a row is asked of the source
            end += len(line) + 1
            depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
            if depth <= 0 and not line.endswith("\\"):
                row = self._source.location(end - 1).row
                last_rows += [row] * (row - len(last_rows))
                depth = 0
        row = self._source.location(len(self._source.text)).row
        return last_rows + [row] * (row - len(last_rows))

    def unused(
        self, known: Collection[str], checked: Collection[str]
    ) -> list[tuple[Suppression, list[str], str]]:
        """Comments, the codes in them that silence nothing, and why.

        Only what we can judge counts: codes of rules that ran, and codes of ours that do not exist. A bare
        ``# noqa`` may serve another tool.
        """
        found: list[tuple[Suppression, list[str], str]] = []
        for suppression in self.all:
            if not suppression.codes:
                used = any(start == suppression.start for start, _ in self._used)
                if suppression.is_ours and not suppression.whole_file and not used:
                    found.append((suppression, [], "it silences nothing"))
                continue
            idle = [
                code
                for code, _, _ in suppression.codes
                if code in checked and (suppression.start, code) not in self._used
            ]
            unknown = [
                code
                for code, _, _ in suppression.codes
                if code not in known and (suppression.is_ours or code.startswith("EG"))
            ]
            if unknown:
                why = f"there is no rule {unknown[0]}{did_you_mean(unknown[0], known)}"
                found.append((suppression, [*idle, *unknown], why))
            elif idle:
                verb = "silence" if len(idle) > 1 else "silences"
                found.append((suppression, idle, f"{', '.join(idle)} {verb} nothing here"))
        return found


def _parse(text: str, masked: Masked) -> list[Suppression]:
    found = []
    for span in masked.comments:
        comment = text[span.start : span.end]
        if not any(word in comment.lower() for word in ("noqa", "esper-guard")):
            continue
        for pattern in (_OURS, _NOQA):
            for match in pattern.finditer(comment):
                whole_file = pattern is _OURS and match["kind"].lower() == "ignore-file"
                codes: list[tuple[str, int, int]] = []
                if match["list"] is not None:
                    base = span.start + match.start("list")
                    words = re.finditer(r"[^\s,]+", match["list"])
                    codes += [(word.group(), base + word.start(), base + word.end()) for word in words]
                    if not codes:
                        continue
                found.append(
                    Suppression(
                        span.start + match.start(),
                        span.start + match.end(),
                        tuple(codes),
                        whole_file,
                        pattern is _OURS,
                    )
                )
    return found
