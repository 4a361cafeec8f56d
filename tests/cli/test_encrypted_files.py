"""The commands for encrypted files, as their users type them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.cli.main import run
from cloister.encrypted.keys import read_wrap_key
from cloister.encrypted.stream import decrypt as decrypt_bytes
from cloister.encrypted.stream import encrypt as encrypt_bytes

CLOISTER = [sys.executable, "-m", "cloister"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a key and a small tree of plaintext, as working directory."""
    monkeypatch.chdir(tmp_path)
    assert run(["key", "new", "wrap-key"]) == 0
    for name, content in (("a.txt", b"alpha\n"), ("sub/b.bin", b"b" * 100_000), ("empty", b"")):
        path = tmp_path / "plain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def call(*arguments: str, given: bytes = b"") -> tuple[int, bytes, str]:
    """Run the command as a process; return exit code, output and errors."""
    done = subprocess.run([*CLOISTER, *arguments], input=given, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


def test_a_slash_behind_the_target_makes_a_directory(work: Path) -> None:
    assert run(["encrypt", "-k", "wrap-key", "plain/a.txt", "new/"]) == 0
    assert run(["decrypt", "-k", "wrap-key", "new/a.txt", "back/again/"]) == 0
    assert tree(work / "back") == {"again/a.txt": b"alpha\n"}
    assert run(["encrypt", "-k", "wrap-key", "plain/", "encrypted/"]) == 0
    assert sorted(tree(work / "encrypted")) == ["a.txt", "empty", "sub/b.bin"]
    code, _, errors = call("encrypt", "-k", "wrap-key", "plain/a.txt", "new/a.txt/")
    assert code == 2
    assert "new/a.txt: is a file" in errors


@pytest.mark.parametrize("command", ["encrypt", "decrypt"])
def test_an_empty_path_is_no_path(work: Path, command: str) -> None:
    code, _, errors = call(command, "-k", "wrap-key", "--as", "", "plain/a.txt", "out")
    assert code == 2
    assert "'--as': expected a path, found an empty one" in errors
    assert not (work / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "closing", "which"),
    [
        ("encrypt -k wrap-key - out", "<&-", "input"),
        ("encrypt -k wrap-key --as out plain/a.txt -", ">&-", "output"),
        ("decrypt -k wrap-key secret -", ">&-", "output"),
        ("key show --raw wrap-key", ">&-", "output"),
    ],
)
def test_a_closed_stream_is_not_an_empty_one(
    work: Path, arguments: str, closing: str, which: str
) -> None:
    assert run(["encrypt", "-k", "wrap-key", "plain/a.txt", "secret"]) == 0
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {shlex.join(CLOISTER)} {arguments} {closing}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"standard {which} is closed" in done.stderr
    assert not (work / "out").exists()


# --- key ---------------------------------------------------------------------------------------


def test_a_new_key_is_private_and_never_overwritten(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = work / "wrap-key"
    first = path.read_bytes()
    assert len(first) == 16
    assert path.stat().st_mode & 0o777 == 0o600
    assert run(["key", "new", "wrap-key"]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert path.read_bytes() == first


def test_hex_and_raw_keys_are_the_same_key(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["key", "new", "--hex", "other"]) == 0
    made = capsys.readouterr().out
    assert len((work / "other").read_text().strip()) == 32
    assert run(["key", "show", "other"]) == 0
    digits = capsys.readouterr().out.strip()
    assert digits == read_wrap_key("other").hex()
    assert digits not in made
    (work / "raw").write_bytes(bytes.fromhex(digits))
    assert run(["key", "fingerprint", "other", "raw", "wrap-key"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names[0] == names[1] != names[2]
    assert names[0] in made
    assert call("key", "show", "--raw", "other")[1] == bytes.fromhex(digits)


# --- encrypt and decrypt -----------------------------------------------------------------------


@pytest.mark.parametrize("jobs", ["1", "3"])
@pytest.mark.parametrize("format_name", ["gramine", "graphene"])
def test_a_tree_goes_there_and_back(work: Path, jobs: str, format_name: str) -> None:
    key = read_wrap_key("wrap-key")
    arguments = ["-k", "wrap-key", "-j", jobs, "--format", format_name]
    assert run(["encrypt", *arguments, "plain", "./x/../encrypted"]) == 0
    for name, content in tree(work / "encrypted").items():
        assert content[:8] == b"GRAFS_PF"
        assert content[8] == {"gramine": 2, "graphene": 1}[format_name]
        assert decrypt_bytes(content, key, f"encrypted/{name}") == tree(work / "plain")[name]
    assert run(["decrypt", "-k", "wrap-key", "-j", jobs, "encrypted", "back"]) == 0
    assert tree(work / "back") == tree(work / "plain")


def test_single_files_and_several(work: Path) -> None:
    key = read_wrap_key("wrap-key")
    assert run(["encrypt", "-k", "wrap-key", "plain/a.txt", "one"]) == 0
    assert decrypt_bytes((work / "one").read_bytes(), key, "one") == b"alpha\n"
    assert run(["encrypt", "-k", "wrap-key", "--as", "/data//in.txt", "plain/a.txt", "one"]) == 0
    assert decrypt_bytes((work / "one").read_bytes(), key, "/data/in.txt") == b"alpha\n"
    assert run(["encrypt", "-k", "wrap-key", "--as", "d", "plain/a.txt", "plain/sub", "all"]) == 0
    found = tree(work / "all")
    assert set(found) == {"a.txt", "sub/b.bin"}
    assert decrypt_bytes(found["sub/b.bin"], key, "d/sub/b.bin") == b"b" * 100_000
    assert run(["decrypt", "-k", "wrap-key", "all/a.txt", "all/sub", "out"]) == 0
    assert tree(work / "out") == {"a.txt": b"alpha\n", "sub/b.bin": b"b" * 100_000}


def test_standard_streams(work: Path) -> None:
    content = os.urandom(1_000_003)
    sealed = call("encrypt", "-k", "wrap-key", "--as", "s", "-", "-", given=content)
    assert sealed[0] == 0
    assert decrypt_bytes(sealed[1], read_wrap_key("wrap-key"), "s") == content
    assert call("decrypt", "-k", "wrap-key", "-", "-", given=sealed[1]) == (0, content, "")
    code, output, errors = call("decrypt", "-k", "wrap-key", "--as", "t", "-", "-", given=sealed[1])
    assert (code, output) == (3, b"")
    assert "expected 't', found 's'" in errors
    assert call("encrypt", "-k", "wrap-key", "-", "to-file", given=b"piped")[0] == 0
    assert call("decrypt", "-k", "wrap-key", "to-file", "-") == (0, b"piped", "")
    code, _, errors = call("encrypt", "-k", "wrap-key", "-", "-", given=b"x")
    assert code == 2
    assert "--as PATH" in errors


def test_a_damaged_file_gives_no_output_and_the_rest_is_done(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["encrypt", "-k", "wrap-key", "plain", "encrypted"])
    damaged = work / "encrypted" / "sub" / "b.bin"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (work / "encrypted" / "note").write_bytes(b"plain text")
    capsys.readouterr()
    assert run(["decrypt", "-k", "wrap-key", "encrypted", "back"]) == 3
    errors = capsys.readouterr().err
    assert "encrypted/sub/b.bin: tampered: content from byte" in errors
    assert "encrypted/note: not an encrypted file" in errors
    assert "2 of 4 files failed" in errors
    assert errors.count("hint:") == 2
    assert set(tree(work / "back")) == {"a.txt", "empty"}


def test_exchanged_files_are_noticed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["encrypt", "-k", "wrap-key", "plain", "encrypted"])
    (work / "encrypted" / "a.txt").rename(work / "encrypted" / "c.txt")
    assert run(["decrypt", "-k", "wrap-key", "encrypted/c.txt", "out"]) == 3
    errors = capsys.readouterr().err
    assert "'c.txt'" in errors
    assert "'encrypted/a.txt'" in errors
    assert "--as encrypted/a.txt" in errors
    assert not (work / "out").exists()
    for accepted in (["--as", "encrypted/a.txt"], ["--any-path"]):
        assert run(["decrypt", "-k", "wrap-key", *accepted, "encrypted/c.txt", "out"]) == 0
        (work / "out").unlink()
    assert run(["verify", "-k", "wrap-key", "encrypted"]) == 3
    assert run(["verify", "-k", "wrap-key", "--any-path", "encrypted"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said", "hinted"),
    [
        (["encrypt", "-k", "none", "plain", "e"], "no such key file", "cloister key new"),
        (["encrypt", "-k", "plain/empty", "plain", "e"], "key file is empty", "cloister key new"),
        (["encrypt", "-k", "plain/a.txt", "plain", "e"], "6 bytes, expected 16", "32 hex digits"),
        (["encrypt", "-k", "wrap-key", "none", "e"], "no such file or directory", None),
        (["encrypt", "-k", "wrap-key", "plain/a.txt", "no/e"], "no such directory", "mkdir"),
        (["encrypt", "-k", "wrap-key", "plain", "plain/e"], "written into itself", "elsewhere"),
        (["encrypt", "-k", "wrap-key", "--as", "x" * 800, "plain/a.txt", "e"], "771", "--as"),
        (["decrypt", "-k", "wrap-key", "plain/a.txt", "e"], "not an encrypted file", "encrypt it"),
        (["decrypt", "-k", "wrap-key", "plain/empty", "e"], "it is empty", "encrypt it"),
        (["decrypt", "-k", "wrap-key", "--as", "x", "plain", "e"], "one file", None),
        (["inspect", "plain/a.txt"], "not an encrypted file", "encrypt it"),
        (["inspect", "-k", "plain/empty", "plain/a.txt"], "key file is empty", "cloister key new"),
        (["rekey", "-k", "wrap-key", "--new-key", "wrap-key", "plain"], "same key", None),
        (["recover", "-k", "wrap-key", "none"], "no such file or directory", None),
        (["encrypt", "plain", "e"], None, None),
        (["encrypt", "-k", "wrap-key", "plain"], None, None),
    ],
)
def test_wrong_input_exits_with_2_and_says_what_to_do(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str | None,
    hinted: str | None,
) -> None:
    assert run(arguments) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    if said:
        assert said in errors.splitlines()[0]
    if hinted:
        hint = next(line for line in errors.splitlines() if line.startswith("hint: "))
        assert hinted in hint
    assert not (work / "e").is_file()


# --- inspect, verify, rekey, recover -----------------------------------------------------------


def test_inspect_shows_what_a_file_is_and_never_its_content(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["encrypt", "-k", "wrap-key", "--format", "graphene", "plain/a.txt", "e"])
    run(["key", "new", "other"])
    capsys.readouterr()
    assert run(["inspect", "-k", "wrap-key", "e"]) == 0
    shown = capsys.readouterr().out
    for part in ("1 (Graphene)", "4096 bytes", "6 bytes", " e\n", "fits", "none unfinished"):
        assert part in shown
    assert "alpha" not in shown
    assert run(["inspect", "e"]) == 0
    assert "-k FILE" in capsys.readouterr().out
    assert run(["inspect", "--json", "-k", "other", "e"]) == 3
    assert json.loads(capsys.readouterr().out) == [
        {
            "file": "e",
            "version": 1,
            "host_size": 4096,
            "pending_write": False,
            "key_fits": False,
            "content_size": None,
            "embedded_path": None,
        }
    ]


def test_verify_of_nothing_is_no_success(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "empty" / "below").mkdir(parents=True)
    assert run(["verify", "-k", "wrap-key", "empty"]) == 2
    assert "empty: holds no file" in capsys.readouterr().err


def test_a_key_in_place_of_its_files_name_is_not_repeated(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = (work / "wrap-key").read_bytes().hex()
    assert run(["verify", "-k", digits, "plain"]) == 2
    said = capsys.readouterr().err
    assert "32 hex digits" in said
    assert digits not in said


def test_inspect_of_a_directory_says_what_to_name(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", "plain"]) == 2
    assert capsys.readouterr().err.endswith("a directory\nhint: name the files in it\n")


def test_verify_lists_all_that_is_bad(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["encrypt", "-k", "wrap-key", "plain", "encrypted"])
    capsys.readouterr()
    assert run(["verify", "-k", "wrap-key", "encrypted"]) == 0
    assert capsys.readouterr().out == "3 files good\n"
    path = work / "encrypted" / "sub" / "b.bin"
    good = path.read_bytes()
    spoilt = {
        "cut.bin": (good[:8192], "truncated"),
        "odd.bin": (good[:-1], "truncated or extended"),
        "key.bin": (encrypt_bytes(b"x", bytes(16), "key.bin"), "does not open with the key"),
        "new.bin": (good[:8] + b"\3" + good[9:], "version 3"),
        "plain.bin": (b"plain", "not an encrypted file"),
        "b.bin": (good[:9000] + b"?" + good[9001:], "tampered"),
    }
    for name, (content, _) in spoilt.items():
        path.with_name(name).write_bytes(content)
    assert run(["verify", "-k", "wrap-key", "encrypted"]) == 3
    errors = capsys.readouterr().err.splitlines()
    for name, (_, reason) in spoilt.items():
        assert any(f"encrypted/sub/{name}: " in line and reason in line for line in errors), name
    assert "6 of 8 files failed" in errors[-1]
    assert run(["verify", "-k", "wrap-key", "--json", "encrypted"]) == 3
    verdicts = json.loads(capsys.readouterr().out)
    assert {Path(v["path"]).name for v in verdicts if not v["good"]} == set(spoilt)
    (work / "encrypted" / "sub" / "plain.bin").rename(work / "only-plain")
    assert run(["verify", "-k", "wrap-key", "only-plain"]) == 3


def test_rekey_goes_on_where_it_stopped(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["encrypt", "-k", "wrap-key", "plain", "encrypted"])
    run(["key", "new", "new-key"])
    arguments = ["rekey", "-k", "wrap-key", "--new-key", "new-key"]
    assert run([*arguments, "encrypted/a.txt"]) == 0
    capsys.readouterr()
    assert run([*arguments, "encrypted"]) == 0
    assert capsys.readouterr().out == (
        "2 files under the new key; 1 file had the new key already\n"
    )
    assert run(["verify", "-k", "new-key", "encrypted"]) == 0
    assert run(["verify", "-k", "wrap-key", "encrypted"]) == 3


def test_rekey_of_a_file_with_several_names(work: Path) -> None:
    """Hard links: each name has the new key afterwards, however many processes there are."""
    run(["encrypt", "-k", "wrap-key", "plain", "encrypted"])
    run(["key", "new", "new-key"])
    for number in range(12):
        (work / "encrypted" / f"link{number}").hardlink_to(work / "encrypted" / "a.txt")
    rekey = ["rekey", "-k", "wrap-key", "--new-key", "new-key", "--jobs", "4"]
    assert run([*rekey, "encrypted"]) == 0
    assert run(["verify", "-k", "new-key", "--any-path", "encrypted"]) == 0


def test_recover_puts_back_what_was_interrupted(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["encrypt", "-k", "wrap-key", "plain", "encrypted"])
    path = work / "encrypted" / "a.txt"
    good = path.read_bytes()
    path.with_name("a.txt.gramine.recovery").write_bytes(bytes(8) + good)
    path.write_bytes(good[:58] + b"\1" + bytes(4037))
    capsys.readouterr()
    assert run(["inspect", "encrypted/a.txt"]) == 0
    assert "was interrupted: cloister recover" in capsys.readouterr().out
    assert run(["verify", "-k", "wrap-key", "encrypted"]) == 0
    assert run(["recover", "-k", "wrap-key", "encrypted"]) == 0
    assert "a.txt: put back" in capsys.readouterr().out
    assert path.read_bytes() == good
    assert set(tree(work / "encrypted")) == {"a.txt", "empty", "sub/b.bin"}


# --- All of them -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["key", "encrypt", "decrypt", "inspect", "verify", "rekey", "recover"]
)
def test_help_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"cloister {command} " in shown.partition("Example:")[2]


def test_nothing_is_said_where_nobody_watches(work: Path) -> None:
    assert call("encrypt", "-k", "wrap-key", "plain", "encrypted") == (0, b"", "")
    assert call("decrypt", "-k", "wrap-key", "encrypted", "back") == (0, b"", "")


SLOW_WORK = """
import time
from cloister.cli.progress import progress
with progress("Encrypting", 10_000_000) as advance:
    for _ in range(10):
        time.sleep(0.1)
        advance(1_000_000)
"""


def on_a_terminal(*command: str) -> str:
    """Run a command whose standard error is a terminal; return what it shows there."""
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=side, env=environment)
    os.close(side)
    shown = bytearray()
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while piece := os.read(main, 4096):
            shown += piece
    os.close(main)
    assert process.wait() == 0
    return shown.decode()


def test_a_terminal_gets_a_bar_with_rate_and_remaining_time() -> None:
    shown = on_a_terminal(sys.executable, "-c", SLOW_WORK)
    assert "Encrypting" in shown
    assert "/10.0 MB" in shown
    assert "MB/s" in shown
    assert "0:00:0" in shown
    assert "\x1b[3" not in shown  # NO_COLOR is set


def test_quick_work_on_a_terminal_gets_one_line(work: Path) -> None:
    shown = on_a_terminal(*CLOISTER, "encrypt", "-k", "wrap-key", "plain", "encrypted")
    assert shown == "3 files encrypted to encrypted\r\n"


def test_a_failing_disk_is_one_line_and_no_output(work: Path) -> None:
    """A file-size limit stands in for a full disk."""
    (work / "large").write_bytes(bytes(3_000_000))
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000));"
        "from cloister.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "encrypt", "-k", "wrap-key", "large", "target"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (work / "target").exists()
    assert sorted(tree(work)) == [
        "large",
        "plain/a.txt",
        "plain/empty",
        "plain/sub/b.bin",
        "wrap-key",
    ]


# --- Trees as they are ---------------------------------------------------------------------------


def test_empty_directories_go_there_and_back(work: Path) -> None:
    (work / "plain/void/deeper").mkdir(parents=True)
    assert run(["encrypt", "-k", "wrap-key", "plain", "encrypted"]) == 0
    assert (work / "encrypted/void/deeper").is_dir()
    assert run(["decrypt", "-k", "wrap-key", "encrypted", "results"]) == 0
    assert (work / "results/void/deeper").is_dir()
    assert tree(work / "results") == tree(work / "plain")


def call_without_override(*arguments: str) -> tuple[int, str]:
    """Run the command as somebody whom permissions bind, even if that is root."""
    obedient = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    words = [*(obedient if os.geteuid() == 0 else ()), *CLOISTER, *arguments]
    done = subprocess.run(words, capture_output=True, check=False)
    return done.returncode, done.stderr.decode()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv (util-linux)")
def test_a_directory_that_cannot_be_read_does_not_stop_the_rest(work: Path) -> None:
    for mode, name in ((0o000, "closed"), (0o400, "listed")):
        (work / "plain" / name).mkdir()
        (work / "plain" / name / "file").write_bytes(b"x")
        (work / "plain" / name).chmod(mode)
    code, said = call_without_override("encrypt", "-k", "wrap-key", "plain", "encrypted")
    assert code == 1
    assert "plain/closed: Permission denied" in said
    assert "plain/listed/file: Permission denied" in said
    assert set(tree(work / "encrypted")) == {"a.txt", "sub/b.bin", "empty"}
    (work / "encrypted/closed").mkdir(mode=0o000, exist_ok=True)
    code, said = call_without_override("verify", "-k", "wrap-key", "encrypted")
    assert code == 3
    assert "encrypted/closed: Permission denied" in said
    for name in ("closed", "listed"):
        (work / "plain" / name).chmod(0o700)


def test_what_is_left_out_is_named_with_the_reason(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "plain/loop").symlink_to("sub")
    (work / "plain/broken").symlink_to("nowhere")
    os.mkfifo(work / "plain/pipe")
    assert run(["encrypt", "-k", "wrap-key", "plain", "encrypted"]) == 0
    said = capsys.readouterr().err
    assert "plain/loop: a link to a directory" in said
    assert "plain/broken: a link to nothing" in said
    assert "plain/pipe: neither file nor directory" in said


def test_rekey_goes_through_links_and_does_each_file_once(work: Path) -> None:
    run(["encrypt", "-k", "wrap-key", "plain", "encrypted"])
    run(["key", "new", "new-key"])
    (work / "outside").write_bytes(encrypt_bytes(b"outside", work / "wrap-key", "outside"))
    (work / "encrypted/link").symlink_to("a.txt")
    (work / "encrypted/far").symlink_to(work / "outside")
    code, output, _ = call("rekey", "-k", "wrap-key", "--new-key", "new-key", "encrypted")
    assert (code, output) == (0, b"4 files under the new key\n")
    assert (work / "encrypted/link").is_symlink()
    assert (work / "encrypted/far").is_symlink()
    assert decrypt_bytes((work / "outside").read_bytes(), work / "new-key") == b"outside"


def test_names_that_a_terminal_would_obey_are_shown_as_escapes(work: Path) -> None:
    strange = os.fsdecode(b"red\x1b[31m\nall good\xff")
    (work / "plain" / strange).write_bytes(b"x")
    code, _, said = call("verify", "-k", "wrap-key", "plain")
    assert code == 3
    assert "plain/red\\x1b[31m\\nall good\\udcff: not an encrypted file" in said
    (work / strange).write_bytes(b"x")
    code, _, said = call("decrypt", "-k", "wrap-key", strange, "out")
    assert code == 2
    assert "red\\x1b[31m\\nall good\\udcff" in said
    sealed = encrypt_bytes(b"x", work / "wrap-key", strange)
    (work / strange).write_bytes(sealed)
    code, output, _ = call("inspect", "-k", "wrap-key", strange)
    assert code == 0
    assert output.count(b"red\\x1b[31m\\nall good\\udcff\n") == 2  # its name and its path
    marked = bytearray(sealed)
    marked[58] |= 1
    (work / strange).write_bytes(marked)
    code, output, _ = call("recover", "-k", "wrap-key", strange)
    assert code == 0
    assert b"good\\udcff: put back" in output


def test_standard_input_is_read_from_where_it_stands(work: Path) -> None:
    (work / "file").write_bytes(b"header" + b"b" * 10_000)
    with (work / "file").open("rb", buffering=0) as stream:
        stream.read(6)
        subprocess.run(
            [*CLOISTER, "encrypt", "-k", "wrap-key", "-", "out"], stdin=stream, check=True
        )
    assert decrypt_bytes((work / "out").read_bytes(), work / "wrap-key") == b"b" * 10_000
