"""The whole table of access rules, in an enclave: every operation on every kind of file.

Holes of the original rules that are closed here: the target of a rename is checked as a creation;
trusted files cannot be unlinked, renamed, replaced, or changed in mode and times; directories are
made and removed only where files may be.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from applications import KEY, App

KINDS = (
    *("trusted", "changed", "another size", "missing trusted", "unlisted", "absent", "allowed"),
    *("absent allowed", "encrypted", "plain in encrypted", "absent encrypted"),
)
STRICT = """
stat        ok      ok      ok      ENOENT  ok      ENOENT  ok      ENOENT  ok      EACCES  ENOENT
access      ok      ok      ok      ENOENT  ok      ENOENT  ok      ENOENT  ok      EACCES  ENOENT
read        ok      EPERM   EPERM   ENOENT  EACCES  ENOENT  ok      ENOENT  ok      EACCES  ENOENT
open w      EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  ok      EACCES  ENOENT
open rw     EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  ok      EACCES  ENOENT
open trunc  EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  ok      EACCES  ENOENT
open append EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  ok      EACCES  ENOENT
open creat  ok      ok      EPERM   EACCES  EACCES  EACCES  ok      ok      ok      EACCES  ok
create      EEXIST  EEXIST  EEXIST  EACCES  EEXIST  EACCES  EEXIST  ok      EEXIST  EEXIST  ok
truncate    EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  ok      EACCES  ENOENT
chmod       EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  ok      EACCES  ENOENT
utime       EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  ok      EACCES  ENOENT
setxattr    EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  ENOTSUP EACCES  ENOENT
unlink      EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  ok      ok      ENOENT
rename away EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  EXDEV   EXDEV   ENOENT
rename over EACCES  EACCES  EACCES  EACCES  EACCES  EACCES  ok      ok      EXDEV   -       EXDEV
link away   EACCES  EACCES  EACCES  ENOENT  EACCES  ENOENT  ok      ENOENT  EPERM   EPERM   ENOENT
link to     EEXIST  EEXIST  EEXIST  EACCES  EEXIST  EACCES  EEXIST  ok      EEXIST  EEXIST  EPERM
symlink to  EEXIST  EEXIST  EEXIST  EACCES  EEXIST  EACCES  EEXIST  ok      EEXIST  EEXIST  EPERM
mkdir       EEXIST  EEXIST  EEXIST  EACCES  EEXIST  EACCES  EEXIST  ok      EEXIST  EEXIST  ok
mkfifo      EEXIST  EEXIST  EEXIST  EACCES  EEXIST  EACCES  EEXIST  ok      EEXIST  EEXIST  ok
"""
DIRECTORIES = ("allowed", "unlisted", "encrypted", "mount")
STRICT_ON_DIRECTORIES = """
list        ok        ok        ok        ok
open        ok        ok        ok        ok
open w      EISDIR    EISDIR    EISDIR    EISDIR
rmdir       ENOTEMPTY EACCES    ENOTEMPTY EBUSY
unlink      EISDIR    EISDIR    EISDIR    EISDIR
rename      ok        EACCES    ok        EBUSY
mkdir below ok        EACCES    ok        ok
"""
LIKE_ALLOWED = ("allowed by name", "both")  # allowed wins over trusted


def _table(text: str, kinds: tuple[str, ...]) -> dict[tuple[str, str], str]:
    cells: dict[tuple[str, str], str] = {}
    for line in text.strip().splitlines():
        operation, outcomes = line[:11].strip(), line[11:].split()
        cells |= {
            (operation, kind): outcome
            for kind, outcome in zip(kinds, outcomes, strict=True)
            if outcome != "-"
        }
    return cells


def _strict() -> dict[tuple[str, str], str]:
    cells = _table(STRICT, KINDS)
    cells |= {
        (operation, f"{kind} directory"): outcome
        for (operation, kind), outcome in _table(STRICT_ON_DIRECTORIES, DIRECTORIES).items()
    }
    for (operation, kind), outcome in list(cells.items()):
        if kind == "allowed":
            cells |= {(operation, like): outcome for like in LIKE_ALLOWED}
    return cells


def _loose() -> dict[tuple[str, str], str]:
    """What ``allow_all_but_log`` changes: files that nobody listed, and nothing else."""
    cells = _strict()
    for (operation, kind), outcome in cells.items():
        if kind in ("unlisted", "absent") and outcome == "EACCES":
            cells[operation, kind] = "ok"
    # Renamed away after it was unlinked; a directory that is not empty, then renamed.
    return cells | {
        ("rename away", "unlisted"): "ENOENT",
        ("rmdir", "unlisted directory"): "ENOTEMPTY",
        ("rename", "unlisted directory"): "ok",
        ("mkdir below", "unlisted directory"): "ENOENT",
    }


EXPECTED = {"strict": _strict(), "allow_all_but_log": _loose()}


def _prepare(app: App, policy: str) -> None:
    files = {
        **dict.fromkeys(("trusted", "changed", "another-size", "unlisted", "one"), "content\n"),
        **{"missing": "missing", "d/file": "x", "../a/both": "both", "../e/plain": "plain"},
    }
    for name in ("t/d", "a", "e"):
        (app.directory / name).mkdir(parents=True)
    for name, content in files.items():
        (app.directory / "t" / name).write_text(content)
    app.mount("/t", "file:t")
    app.mount("/a", "file:a")
    app.mount("/e", "file:e", "encrypted")
    app.settings |= {
        "sgx.allowed_files": '["file:a", "file:t/one"]',
        "fs.insecure__keys.default": f'"{KEY}"',
        "sgx.file_check_policy": f'"{policy}"',
    }
    names = ("trusted", "changed", "another-size", "missing")
    app.trusted += [*(f"file:t/{name}" for name in names), "file:a/both"]


def _spoil(directory: Path) -> None:
    """What the host does after signing."""
    (directory / "changed").write_text("CONTENT\n")
    (directory / "another-size").write_text("longer than it was\n")
    (directory / "missing").unlink()


Run = Callable[[str], tuple[dict[str, str], str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that runs the program under a policy, once."""
    done: dict[str, subprocess.CompletedProcess[str]] = {}

    def run(policy: str) -> tuple[dict[str, str], str]:
        if policy not in done:
            app = App(tmp_path_factory.mktemp(policy))
            _prepare(app, policy)
            done[policy] = app.enclave_python(
                "/programs/access.py", before=lambda: _spoil(app.directory / "t")
            )
        outcomes: dict[str, str] = json.loads(done[policy].stdout)
        return outcomes, done[policy].stderr

    return run


@pytest.mark.parametrize(
    ("policy", "operation", "kind"),
    [(policy, *cell) for policy, cells in EXPECTED.items() for cell in cells],
)
def test_table(run: Run, policy: str, operation: str, kind: str) -> None:
    outcomes, _ = run(policy)
    assert outcomes[f"{operation}: {kind}"] == EXPECTED[policy][operation, kind]


@pytest.mark.parametrize("policy", EXPECTED)
def test_the_table_is_whole(run: Run, policy: str) -> None:
    outcomes, _ = run(policy)
    assert set(outcomes) == {f"{operation}: {kind}" for operation, kind in EXPECTED[policy]}


def test_a_denial_names_file_rule_and_mend_once(run: Run) -> None:
    _, told = run("strict")
    for name, reason, mend in (
        ("t/trusted", "trusted files are read-only", 'list "file:t/trusted" in sgx.allowed_files'),
        ("t/absent", "the manifest allows no writing there", "mount an encrypted or tmpfs"),
        ("t/unlisted", "not a trusted, allowed or encrypted file", "to sgx.trusted_files"),
    ):
        lines = told.splitlines()
        at = [i for i, line in enumerate(lines) if f"of file:{name}: {reason}" in line]
        assert len(at) == 1
        assert lines[at[0] + 1].startswith("hint: ")
        assert mend in lines[at[0] + 1]
    assert "tampered: read of file:t/changed: bytes 0 to 7 are not those that were signed" in told


def test_what_was_let_through_is_listed_at_the_end(run: Run) -> None:
    _, told = run("allow_all_but_log")
    head, listed = told.split("allow_all_but_log let through, without any protection:\n")
    assert "t/unlisted" not in head
    words = {line.split(" of ")[1]: line.split(" of ")[0].strip() for line in listed.splitlines()}
    assert words["file:t/unlisted"] == "read, write, creation, removal"
    assert words["file:t/absent"] == "creation, removal"


@pytest.mark.parametrize("level", ["none", "error", "debug"])
def test_log_level_and_file(app: App, level: str) -> None:
    (app.directory / "readable").write_text("x")
    (app.directory / "unlisted").write_text("x")
    app.trusted.append("file:readable")
    app.settings |= {"loader.log_level": f'"{level}"', "loader.log_file": '"log"'}
    done = app.enclave_shell("cat /readable /unlisted", expect=1)
    log = (app.directory / "log").read_text()
    assert "file:" not in done.stderr
    assert "SIMULATED enclave" in done.stderr
    assert ("denied: read of file:unlisted" in log) == (level != "none")
    assert ("granted: read of file:readable" in log) == (level == "debug")
    again = app.cloister("run", "--log-level", "none", "app", "-c", "cat /unlisted", expect=1)
    assert "file:" not in again.stderr
    assert (app.directory / "log").read_text() == log
