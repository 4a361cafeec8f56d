"""What an enclave grants and refuses: trusted, allowed, encrypted and all other files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from applications import KEY, WITHOUT_LINKS, App


@pytest.fixture
def shell(app: App) -> App:
    """An enclave with a shell, a trusted file, an allowed directory and an encrypted one."""
    (app.directory / "trusted.txt").write_text("trusted content\n")
    (app.directory / "logs").mkdir()
    (app.directory / "secret").mkdir()
    app.mount("/logs", "file:logs")
    app.mount("/secret", "file:secret", "encrypted")
    app.settings["sgx.allowed_files"] = '["file:logs"]'
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.trusted.append("file:trusted.txt")
    return app


def test_an_enclave_says_that_it_is_simulated(shell: App) -> None:
    done = shell.enclave_shell("echo hello")
    assert done.stdout == "hello\n"
    assert "SIMULATED enclave" in done.stderr
    assert json.loads(shell.built)["mrenclave"] in done.stderr


def test_trusted_files_are_read_only(shell: App) -> None:
    script = """
cat /trusted.txt
echo x >> /trusted.txt
rm -f /trusted.txt
mv /trusted.txt /logs/moved
echo x > /logs/x && mv /logs/x /trusted.txt
cat /trusted.txt
"""
    done = shell.enclave_shell(script, expect=None)
    assert done.stdout == "trusted content\ntrusted content\n"
    assert done.stderr.count("denied: ") == 1
    assert "denied: write of file:trusted.txt: trusted files are read-only" in done.stderr
    assert (shell.directory / "trusted.txt").read_text() == "trusted content\n"


def test_an_unlisted_file_is_denied_once_with_its_mend(shell: App) -> None:
    (shell.directory / "unlisted").write_text("host")
    done = shell.enclave_shell("cat /unlisted; cat /unlisted; ls /unlisted", expect=0)
    assert done.stdout == "/unlisted\n"
    assert done.stderr.count("denied: read of file:unlisted") == 1
    assert 'hint: add "file:unlisted" to sgx.trusted_files and build again' in done.stderr
    denied = shell.enclave_shell("echo x > /new", expect=None)
    assert "denied: creation of file:new" in denied.stderr
    assert not (shell.directory / "new").exists()


def test_allowed_files_pass_through(shell: App) -> None:
    (shell.directory / "logs" / "in").write_text("from the host\n")
    done = shell.enclave_shell("cat /logs/in; mkdir /logs/d; echo out > /logs/d/out")
    assert done.stdout == "from the host\n"
    assert (shell.directory / "logs" / "d" / "out").read_text() == "out\n"


@pytest.mark.parametrize("when", ["before the start", "while it runs"])
def test_a_changed_trusted_file_is_never_served(shell: App, when: str) -> None:
    big = shell.directory / "big.bin"
    big.write_bytes(bytes(4_000_000))
    shell.trusted.append("file:big.bin")
    shell.build_shell()
    changed = bytearray(b"x" * 4_000_000)
    changed[:65536] = bytes(65536)  # the first chunk stays as it was signed
    script = "cat /big.bin > /logs/copy"
    if when == "before the start":
        big.write_bytes(changed)
        done = shell.run_shell(script, expect=1)
    else:
        wait = "while [ ! -e /logs/go ]; do sleep 0.05; done; "
        done = shell.run_shell(
            f"head -c 5 /big.bin | wc -c; echo ready > /logs/ready; {wait}{script}",
            expect=1,
            meanwhile=lambda: _change_when_ready(shell.directory, changed),
        )
    served = (shell.directory / "logs" / "copy").read_bytes()
    assert 65536 <= len(served) < 4_000_000
    assert served == bytes(len(served))
    assert "tampered: read of file:big.bin: bytes " in done.stderr
    assert "are not those that were signed" in done.stderr


def _change_when_ready(directory: Path, content: bytearray) -> None:
    import time

    while not (directory / "logs" / "ready").exists():
        time.sleep(0.05)
    (directory / "big.bin").write_bytes(content)
    (directory / "logs" / "go").touch()


def test_a_trusted_file_that_changes_all_the_time_is_never_served_changed(app: App) -> None:
    """Overwritten in place, cut short, replaced by another: while it is read and mapped."""
    for name in ("data", "out"):
        (app.directory / name).mkdir()
        app.mount(f"/{name}", f"file:{name}")
    big = app.directory / "data" / "big"
    big.write_bytes(b"A" * (4 << 20))
    app.trusted.append("file:data/big")
    app.settings |= {"sgx.allowed_files": '["file:out"]', "sgx.enclave_size": '"1G"'}
    done = app.enclave_python(
        "/programs/modified.py", meanwhile=lambda: _modify(big, app.directory / "out")
    )
    got = json.loads(done.stdout)
    assert got["changed"] == got["other"] == 0
    assert got["signed"] > 0
    assert got["refused"] + got["SIGBUS"] > 0
    assert "tampered: read of file:data/big: " in done.stderr


def _modify(big: Path, out: Path) -> None:
    import time

    original = big.read_bytes()
    other = big.with_name("other")
    while not (out / "ready").exists():
        time.sleep(0.01)
    while not (out / "done").exists():
        for change in (
            lambda: os.truncate(big, 100_000),
            lambda: big.write_bytes(b"B" * len(original)),
            lambda: (other.write_bytes(b"C" * len(original)), other.replace(big)),
            lambda: (other.write_bytes(b"D" + original[1:]), other.replace(big)),
        ):
            change()
            time.sleep(0.02)
            big.write_bytes(original)
            time.sleep(0.05)


@pytest.mark.parametrize("content", ["tru", "trusted content\nand more\n"])
def test_a_trusted_file_of_another_size_is_never_served(shell: App, content: str) -> None:
    shell.build_shell()
    (shell.directory / "trusted.txt").write_text(content)
    done = shell.run_shell("cat /trusted.txt", expect=1)
    assert done.stdout == ""
    reason = f"has {len(content)} bytes, but the signed file has 16"
    assert f"tampered: read of file:trusted.txt: {reason}" in done.stderr


def test_encrypted_files_are_ciphertext_outside(shell: App) -> None:
    marker = "MARKER-" + "x" * 5000
    shell.enclave_shell(f"cd /secret; echo {marker} > out; cat out | cmp - out; mv out moved")
    host = shell.directory / "secret" / "moved"
    assert b"MARKER" not in host.read_bytes()
    (shell.directory / "wrap-key").write_bytes(bytes.fromhex(KEY))
    (shell.directory / "wrap-key").chmod(0o600)
    done = shell.cloister("decrypt", "-k", "wrap-key", "secret/moved", "-")
    assert done.stdout == f"{marker}\n"


def test_a_plain_file_in_an_encrypted_mount_is_refused_with_the_reason(shell: App) -> None:
    (shell.directory / "secret" / "result.txt").write_text("plain")
    done = shell.enclave_shell("cat /secret/result.txt", expect=1)
    assert "refused: read of file:secret/result.txt:" in done.stderr
    assert "not an encrypted file" in done.stderr
    assert done.stderr.count("refused: ") == 1
    shell.enclave_shell("rm /secret/result.txt && echo new > /secret/result.txt")


def test_graphenes_protected_files(shell: App) -> None:
    """Protected files are encrypted wherever they are: whole directories and single files."""
    for name in ("vault", "mixed"):
        (shell.directory / name).mkdir()
    shell.mount("/vault", "file:vault")
    shell.mount("/mixed", "file:mixed")
    shell.settings["sgx.protected_files"] = '["file:vault", "file:mixed/secret"]'
    shell.settings["sgx.allowed_files"] = '["file:logs", "file:mixed"]'
    script = """
cd /vault; echo MARKER > one; mv one two; cat two
cd /mixed; echo MARKER > secret; echo plain > open; cat secret
mv secret moved && cat moved
mv moved /vault/three && cat /vault/three
mkdir /vault/d && mv /vault/d /vault/e
"""
    done = shell.enclave_shell(script, expect=None)
    assert done.stdout.split() == ["MARKER"] * 4
    assert b"MARKER" not in (shell.directory / "vault" / "two").read_bytes()
    assert b"MARKER" not in (shell.directory / "vault" / "three").read_bytes()
    assert (shell.directory / "mixed" / "open").read_text() == "plain\n"
    (shell.directory / "wrap-key").write_bytes(bytes.fromhex(KEY))
    (shell.directory / "wrap-key").chmod(0o600)
    for name in ("two", "three"):
        done = shell.cloister("decrypt", "-k", "wrap-key", f"vault/{name}", "-")
        assert done.stdout == "MARKER\n"


def test_an_existing_plain_result_says_what_to_do(shell: App) -> None:
    """The tutorial's case: result.txt is protected, and a plain one lies there."""
    (shell.directory / "result.txt").write_text("of a former run")
    shell.settings["sgx.protected_files"] = '["file:result.txt"]'
    done = shell.enclave_shell("echo new > /result.txt", expect=None)
    assert done.returncode != 0
    assert "not an encrypted file" in done.stderr
    assert "remove it if the program is to write it" in done.stderr
    assert (shell.directory / "result.txt").read_text() == "of a former run"


def test_a_file_moved_on_the_host_is_refused(shell: App) -> None:
    shell.enclave_shell("echo one > /secret/one")
    (shell.directory / "secret" / "one").rename(shell.directory / "secret" / "two")
    done = shell.enclave_shell("cat /secret/two", expect=1)
    assert "secret/one" in done.stderr
    assert "secret/two" in done.stderr


def test_a_directory_moves_though_a_write_in_it_was_interrupted(shell: App) -> None:
    """The write is undone, and the recovery file has done its work."""
    shell.enclave_shell("mkdir /secret/old; echo content > /secret/old/file")
    file = shell.directory / "secret" / "old" / "file"
    complete = file.read_bytes()
    file.with_name("file.gramine.recovery").write_bytes(bytes(8) + complete)
    file.write_bytes(complete[:58] + b"\1" + bytes(4037))
    done = shell.enclave_shell("mv /secret/old /secret/new; cat /secret/new/file")
    assert done.stdout == "content\n"
    assert list((shell.directory / "secret" / "new").iterdir()) == [
        shell.directory / "secret" / "new" / "file"
    ]


def test_the_platform_refuses_a_manifest_that_was_not_signed(shell: App) -> None:
    shell.build_shell()
    signed = shell.directory / "app.manifest.sgx"
    signed.write_text(signed.read_text().replace("logs", "lugs"))
    done = shell.run_shell("echo started", expect=3)
    assert done.stdout == ""
    assert "MRENCLAVE" in done.stderr


def test_a_changed_index_is_refused(shell: App) -> None:
    shell.build_shell()
    index = shell.directory / "app.index"
    data = bytearray(index.read_bytes())
    data[-1] ^= 1
    index.write_bytes(data)
    done = shell.run_shell("echo started", expect=3)
    assert "index of trusted files" in done.stderr


def test_dev_attestation(shell: App) -> None:
    shell.settings["sgx.remote_attestation"] = '"dcap"'
    script = """
cd /dev/attestation
cat attestation_type; echo
wc -c < my_target_info; wc -c < report
ls keys
wc -c < keys/default; wc -c < keys/_sgx_mrenclave
printf short > keys/default || echo refused
cat keys/default > /logs/key
rm quote || echo refused
"""
    done = shell.enclave_shell(script)
    assert done.stdout.split() == [
        "dcap", "512", "432", "_sgx_mrenclave", "_sgx_mrsigner", "default", "16", "16",
        "refused", "refused",
    ]  # fmt: skip
    assert (shell.directory / "logs" / "key").read_bytes() == bytes.fromhex(KEY)


def test_report_and_quote_carry_what_the_process_wrote(app: App) -> None:
    app.settings["sgx.remote_attestation"] = '"dcap"'
    got = json.loads(app.enclave_python("/programs/attestation.py").stdout)
    mrenclave = bytes.fromhex(json.loads(app.built)["mrenclave"])
    for body in (bytes.fromhex(got["quote"])[48:], bytes.fromhex(got["report"])):
        assert body[64:96] == mrenclave
        assert body[320:384] == b"0123456789".ljust(64, b"\0")
    assert bytes.fromhex(got["my_target_info"])[:32] == mrenclave
    assert got["written values read empty"]
    assert got["a child starts with zeros"]


def test_without_remote_attestation_there_is_no_quote(shell: App) -> None:
    done = shell.enclave_shell(
        "cat /dev/attestation/attestation_type; ls /dev/attestation/quote", expect=2
    )
    assert done.stdout == "none"


def test_sealing_keys_differ_between_enclaves_and_last(shell: App) -> None:
    def keys(extra: str) -> list[str]:
        shell.settings["loader.env.EXTRA"] = f'"{extra}"'
        done = shell.enclave_shell(
            "for k in _sgx_mrenclave _sgx_mrsigner; do od -An -tx1 /dev/attestation/keys/$k; done"
        )
        return done.stdout.splitlines()

    first, again, other = keys("1"), keys("1"), keys("2")
    assert first == again
    assert first[0] != other[0]  # another measurement
    assert first[1] == other[1]  # the same signer
    assert first[0] != first[1]


def test_same_semantics_in_the_enclave(
    app: App, native_semantics: Callable[[], dict[str, object]]
) -> None:
    (app.directory / "files").mkdir()
    app.mount("/files", "file:files", "encrypted")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.settings["fs.start_dir"] = '"/files"'
    app.settings["sgx.max_threads"] = "16"
    done = app.enclave_python("/programs/semantics.py")
    assert json.loads(done.stdout) == native_semantics() | WITHOUT_LINKS


def test_a_trusted_file_that_changes_between_two_opens(shell: App) -> None:
    """What the kernel has of it stays good; what it has not is refused, and told by name."""
    content = os.urandom(4 << 20)
    (shell.directory / "big.bin").write_bytes(content)
    shell.mount("/big.bin", "file:big.bin")
    shell.trusted.append("file:big.bin")
    shell.build_shell()
    look = "head -c 4096 /big.bin | od -An -tx1 | head -n 1"
    done = shell.run_shell(
        f"{look}; : > /logs/ready; until test -e /logs/go; do sleep 0.1; done; {look}; "
        "cat /big.bin > /dev/null || echo refused",
        meanwhile=lambda: _change_when_ready(shell.directory, bytearray(content[:-1])),
    )
    first, second, last = done.stdout.splitlines()
    assert first == second == " " + content[:16].hex(" ")
    assert last == "refused"
    assert "file:big.bin: has 4194303 bytes, but the signed file has 4194304" in done.stderr
