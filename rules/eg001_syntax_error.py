"""# syntax-error (EG001)

A file that can't be read, decoded or parsed.

## What it does

Reports a file that the linter could not judge: it is missing, unreadable, not a regular file (a pipe, a folder behind
a broken link), not valid in its encoding, contains NUL bytes, or is not Python.

## Why is this bad?

Nothing else is checked in such a file. Silence would look like "clean".

## Example

```python
def forward(self, x)
    return x.contiguous().detach()
```

## Use instead

```python
def forward(self, x):
    return x.detach()
```

## When it stays silent

Files that you name, and standard input, are always parsed. A file found in a folder is parsed only where its text
could match a rule or looks like Python 2; a syntax error elsewhere is left to Python and to your other linters.

Code is read by the grammar of the newest Python that LibCST knows, so a file may use syntax that the running Python
doesn't have yet.

## References

- [PEP 263: source code encodings](https://peps.python.org/pep-0263/)
"""

from esper_guard.lint.rule import Rule, Severity


class SyntaxErrorInFile(Rule):
    """The pipeline itself reports it: there is no syntax tree to look at."""

    code = "EG001"
    name = "syntax-error"
    severity = Severity.ERROR
    no_proof = "what can not be parsed can not be run"
