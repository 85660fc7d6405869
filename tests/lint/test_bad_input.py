"""Files that no linter should have to read: each is reported, the others are still linted, nothing hangs."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run

Write = Callable[..., Path]
BAD = "def f(x):\n    return x.contiguous().detach()\n"
FIXED = "def f(x):\n    return x.detach()\n"


def _codes(run: Run, *arguments: str) -> dict[str, list[str]]:
    done = run("check", "--output-format", "json", *arguments)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, list[str]] = {}
    for entry in json.loads(done.stdout):
        found.setdefault(os.path.basename(entry["filename"]), []).append(entry["code"])
    return found


BROKEN = {
    "not_utf_8.py": b"x = '\xff\xfe'\n" + BAD.encode(),
    "utf_16.py": BAD.encode("utf-16"),
    "nul.py": BAD.encode() + b"\0",
    "unknown_cookie.py": b"# -*- coding: klingon -*-\n" + BAD.encode(),
    "wrong_cookie.py": b"# -*- coding: ascii -*-\nx = '\xc3\xa9'\n",
    "python_2.py": b"print 'hello'\n",
    "python_2_exec.py": b"def f():\n    exec 'a = 1'\n",
    "python_2_raise.py": b"raise ValueError, 'a'\n",
    "syntax.py": BAD.encode() + b"def g(:\n    pass\n",
    "unterminated.py": BAD.encode() + b"s = '''\n",
    "indentation.py": b"def f(x):\n    return x.contiguous().detach()\n   y = 1\n",
    "parentheses.py": b"x = " + b"(" * 100_000 + b")" * 100_000 + b"\n" + BAD.encode(),
    "open_parentheses.py": BAD.encode() + b"x = " + b"(" * 100_000 + b"\n",
    "attributes.py": BAD.encode() + b"    a" + b".b" * 100_000 + b"\n",
    "unary.py": b"x = " + b"-" * 100_000 + b"1\n" + BAD.encode(),
    "binary.py": b"x = a" + b" + a" * 100_000 + b"\n" + BAD.encode(),
    "calls.py": b"x = a" + b"()" * 100_000 + b"\n" + BAD.encode(),
    "deep_in_function.py": b"def f(x):\n    y = a"
    + b".b()" * 20_000
    + b"\n    return x.contiguous().detach()\n",
    "not.py": b"x = " + b"not " * 100_000 + b"1\n" + BAD.encode(),
}

FINE = {
    "empty.py": (b"", []),
    "bom.py": (b"\xef\xbb\xbf" + BAD.encode(), ["EG101"]),
    "crlf.py": (BAD.replace("\n", "\r\n").encode(), ["EG101"]),
    "cr.py": (BAD.replace("\n", "\r").encode(), ["EG101"]),
    "mixed.py": (b"a = 1\r\nb = 2\rc = 3\n" + BAD.encode(), ["EG101"]),
    "form_feed.py": (
        b"a = 1\n\x0c\n" + BAD.encode() + b"\x0c\ndef g(x):\n\treturn x.contiguous().detach()\n",
        ["EG101"] * 2,
    ),
    "form_feed_in_body.py": (b"def f(x):\n\x0c    return x.contiguous().detach()\n", ["EG101"]),
    "form_feed_before_method.py": (
        b"class A:\n    a = 1\n\x0c    def f(self, x):\n        return x.contiguous().detach()\n",
        ["EG101"],
    ),
    "tabs.py": (BAD.replace("    ", "\t").encode(), ["EG101"]),
    "no_newline.py": (BAD.rstrip().encode(), ["EG101"]),
    "latin_1.py": ("# coding: latin-1\ns = 'é'\n".encode("latin-1") + BAD.encode(), ["EG101"]),
    "long_line.py": (b"x = [" + b"1, " * 200_000 + b"]\n" + BAD.encode(), ["EG101"]),
    "stub.pyi": (b"def f(x): ...\ny = x.contiguous().detach()\n", ["EG101"]),
    "elif.py": (b"def g(a):\n    if a: pass\n" + b"    elif a: pass\n" * 300 + BAD.encode(), ["EG101"]),
    "deep_calls.py": (b"x = a" + b".b()" * 150 + b"\n" + BAD.encode(), ["EG101"]),
    "line_separators.py": ("s = '\u2028\u2029\x85'\n".encode() + BAD.encode(), ["EG101"]),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_files_are_reported(name: str, run: Run, write: Write) -> None:
    write(name, BROKEN[name])
    write("other.py", BAD)
    assert _codes(run, name, "other.py") == {name: ["EG001"], "other.py": ["EG101"]}


def test_broken_files_in_a_folder(run: Run, write: Write) -> None:
    for name, content in BROKEN.items():
        write(f"pkg/{name}", content)
    write("pkg/other.py", BAD)
    # Only what could hold a finding is parsed in a folder; these all do, or can't even be decoded.
    assert _codes(run, "pkg") == {**{name: ["EG001"] for name in BROKEN}, "other.py": ["EG101"]}


@pytest.mark.parametrize("name", sorted(FINE))
def test_unusual_files_are_read(name: str, run: Run, write: Write) -> None:
    content, codes = FINE[name]
    write(name, content)
    assert _codes(run, name).get(name, []) == codes


@pytest.mark.parametrize("name", sorted(name for name, (_, codes) in FINE.items() if "EG101" in codes))
def test_a_fix_keeps_everything_else(name: str, run: Run, write: Write) -> None:
    content, _ = FINE[name]
    path = write(name, content)
    path.chmod(0o751)
    run("check", "--fix", "--unsafe-fixes", name)
    assert path.read_bytes() == content.replace(b".contiguous()", b"")
    assert stat.S_IMODE(path.stat().st_mode) == 0o751
    run("check", "--fix", "--unsafe-fixes", name)
    assert path.read_bytes() == content.replace(b".contiguous()", b"")


def test_links_pipes_and_loops(run: Run, write: Write, tmp_path: Path) -> None:
    write("pkg/other.py", BAD)
    os.symlink("nowhere.py", tmp_path / "pkg" / "broken.py")
    os.symlink("..", tmp_path / "pkg" / "loop")
    os.symlink("circle.py", tmp_path / "pkg" / "circle.py")
    os.mkfifo(tmp_path / "pkg" / "pipe.py")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # socket paths are short
        try:
            server.bind("pkg/socket.py")
        finally:
            os.chdir(here)
        expected = {name: ["EG001"] for name in ("broken.py", "circle.py", "pipe.py", "socket.py")}
        assert _codes(run, "pkg") == {**expected, "other.py": ["EG101"]}
    done = run("check", "pkg/pipe.py", "--output-format", "concise")
    assert "a pipe, not a regular file" in done.stdout
    assert "broken link to nowhere.py" in run("check", "pkg/broken.py").stdout


def test_missing_and_unreadable(run: Run, write: Write) -> None:
    write("other.py", BAD)
    secret = write("secret.py", BAD)
    assert _codes(run, "missing.py", "other.py") == {"missing.py": ["EG001"], "other.py": ["EG101"]}
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        pytest.skip("this user may read everything")
    assert _codes(run, "secret.py", "other.py") == {"secret.py": ["EG001"], "other.py": ["EG101"]}


def test_a_fix_goes_through_a_link(run: Run, write: Write, tmp_path: Path) -> None:
    target = write("real/a.py", BAD)
    os.symlink("real/a.py", tmp_path / "link.py")
    run("check", "--fix", "--unsafe-fixes", "link.py")
    assert target.read_text() == FIXED
    assert (tmp_path / "link.py").is_symlink()


def test_a_fix_that_can_not_be_written_changes_nothing(run: Run, write: Write, tmp_path: Path) -> None:
    path = write("pkg/a.py", BAD)
    done = run(
        "check", "--fix", "--unsafe-fixes", "pkg/a.py", env={"PYTHONPATH": str(_failing_replace(tmp_path))}
    )
    assert done.returncode == 2
    assert "can't write the fixes" in done.stderr
    assert path.read_text() == BAD
    assert sorted(os.listdir(path.parent)) == ["a.py"]


def _failing_replace(folder: Path) -> Path:
    """A ``sitecustomize`` under which no file can be replaced, as on a full or read-only disk."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os\n\ndef replace(*_):\n    raise OSError(28, 'No space left on device')\n\nos.replace = replace\n"
    )
    return site


def test_a_name_that_could_control_the_terminal(run: Run, write: Write) -> None:
    write("a\x1b[31m\n.py", BAD)
    done = run("check", "--output-format", "concise")
    assert "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}.py:2:12" in done.stdout
    assert len([line for line in done.stdout.splitlines() if "EG101" in line]) == 1


def test_a_text_that_would_not_come_back_the_same_is_not_fixed(run: Run, write: Write) -> None:
    content = (
        b"# coding: cp932\ns = '\xee\xf9'\n" + BAD.encode()
    )  # cp932 knows two spellings of this character
    path = write("a.py", content)
    done = run("check", "--fix", "--unsafe-fixes")
    assert done.returncode == 2
    assert "can't fix it" in done.stderr
    assert path.read_bytes() == content


@pytest.mark.parametrize("cookie", ["undefined", "punycode", "klingon"])
def test_codecs_that_are_none(cookie: str, run: Run, write: Write) -> None:
    write("a.py", f"# coding: {cookie}\nx = 'é'\n")
    assert _codes(run, "a.py") == {"a.py": ["EG001"]}


def test_names_that_are_not_utf_8(run: Run, tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.py"), "w") as file:
        file.write(BAD)
    done = run("check", "--output-format", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout)[0]["filename"].endswith("\N{REPLACEMENT CHARACTER}.py")
    assert run("check").returncode == 1


def test_a_long_line_is_no_trap(run: Run, write: Write) -> None:
    write("a.py", "def f(x):\n    return g(" + "x.contiguous().detach(), " * 1000 + ")\n")
    write(
        "b.py",
        "".join(f"def f{n}(x):\n    return x.contiguous().detach()  # noqa: EG101\n" for n in range(2000)),
    )
    assert len(_codes(run, "a.py", "b.py", "c.py")["a.py"]) == 1000


def test_deep_code_that_python_accepts(run: Run, write: Write) -> None:
    terms = " + ".join(["x"] * 800)
    write("a.py", f"y = {terms}\nz = a{'.b()' * 400}\n" + BAD)
    assert _codes(run, "a.py") == {"a.py": ["EG101"]}


def test_columns_of_undecodable_bytes_are_characters(run: Run, write: Write) -> None:
    write("a.py", 's = "日日"; t = "'.encode() + b'\xff"\n')
    assert "a.py:1:16: EG001" in run("check", "a.py", "--output-format", "concise").stdout
