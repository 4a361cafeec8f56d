"""The files of ``/dev/attestation``: what each sentence of their description promises."""

from __future__ import annotations

import json
import os
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from applications import App
from cloister.errors import PlatformError
from cloister.fuse.filesystem import Caller
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.runtime.attestation import attestation_directory
from cloister.runtime.directory import HostDirectory
from cloister.runtime.keyring import Keyring
from cloister.runtime.policy import DirectRules
from cloister.runtime.scene import Scene
from cloister.runtime.view import View

CALLER = Caller(os.getuid(), os.getgid(), os.getpid())


def test_every_sentence(app: App) -> None:
    app.settings |= {
        "sgx.remote_attestation": '"dcap"',
        "fs.insecure__keys.default": '"00112233445566778899aabbccddeeff"',
    }
    (app.directory / "spare").mkdir()
    app.mount("/spare", "file:spare", "encrypted", key_name="spare")
    got = json.loads(app.enclave_python("/programs/attestation_files.py").stdout)
    readable, writable = ["0o444", 0], ["0o666", 0]
    assert got.pop("modes") == {
        "attestation_type": readable,
        "keys": ["0o555", 0],
        "my_target_info": readable,
        "protected_files_key": writable,
        "quote": readable,
        "report": readable,
        "target_info": writable,
        "user_report_data": writable,
    }
    assert got == {
        "keys": ["_sgx_mrenclave", "_sgx_mrsigner", "default", "spare"],
        "first target is zero, then the own": 0,
        "short is padded": b"short".ljust(64, b"\0").hex(),
        "long is cut": True,
        "written is read back on the descriptor": "two",
        "each write is the whole value": b"two\0\0\0".hex(),
        "made at open": "two",
        "threads share": "later",
        "a child has zeros": bytes(5).hex(),
        "a key of 0 bytes": 0,  # no write reaches the file
        "a key of 15 bytes": "EACCES",
        "a key of 17 bytes": "EACCES",
        "an unset key": 0,
        "a key is set": [16, "0123456789abcdef"],
        "a sealing key is written": "EACCES",
        "an unknown key": "ENOENT",
        "a new key": "EACCES",
        "a new file": "EACCES",
        "unlink": "EACCES",
        "write a report": "EACCES",
        "graphene unset": bytes(32).hex(),
        "graphene short": "EACCES",
        "graphene newline": "EACCES",
        "graphene not hex": "EACCES",
        "graphene set": [32, "0f" * 16, "0f" * 16],
    }


COPIES = """\
import json, os, shutil, sys
got = []
for word in (b"one", b"two"):
    with open("/dev/attestation/user_report_data", "wb") as file:
        file.write(word)
    shutil.copyfile("/dev/attestation/quote", "/spare/copy")  # by sendfile
    with open("/dev/attestation/quote", "rb") as file, open("/spare/copy", "rb") as copy:
        quote, copied = file.read(), copy.read()
    got.append((len(copied) == len(quote) > 1000, word in copied))
def written(word):
    with open("/dev/attestation/user_report_data", "wb") as file:
        file.write(word)
    return os.open("/dev/attestation/quote", os.O_RDONLY)
def sent(descriptor):
    os.fstat(descriptor)
    copy = os.open("/plain/copy", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.sendfile(copy, descriptor, 0, 100_000)
    return os.pread(copy, 100_000, 0)
one, two = written(b"first"), written(b"second")
got.append([b"second" in sent(two), b"first" in sent(one), b"first" in os.read(one, 100_000)])
pid = os.fork()
if pid == 0:
    os._exit(0 if b"child's" in sent(written(b"child's")) else 1)
got.append(os.waitpid(pid, 0)[1])
got.append([b"second" in sent(two), b"first" in sent(one)])
same = os.path.samestat(os.stat("/dev/attestation/quote"), os.fstat(one))
got.append([same, os.lseek(one, 0, os.SEEK_END) == len(sent(one))])
shutil.copyfile("/proc/sys/kernel/pid_max", "/spare/copy")
got.append(int(open("/spare/copy").read()) > 0)
got.append(os.stat("/dev/attestation/quote").st_size)
print(json.dumps(got))
"""


def test_copies_that_the_kernel_makes_are_whole(app: App) -> None:
    app.settings |= {
        "sgx.remote_attestation": '"dcap"',
        "fs.insecure__keys.default": '"00112233445566778899aabbccddeeff"',
    }
    for name in ("spare", "plain", "code"):
        (app.directory / name).mkdir()
    (app.directory / "code" / "copies.py").write_text(COPIES)
    app.mount("/spare", "file:spare", "encrypted")
    app.mount("/plain", "file:plain")
    app.mount("/code", "file:code")
    app.settings["sgx.allowed_files"] = '["file:plain/"]'
    app.trusted.append("file:code/copies.py")
    got = json.loads(app.enclave_python("/code/copies.py").stdout)
    assert got == [
        *([True, True], [True, True]),
        *([True, True, True], 0, [True, True]),
        *([True, True], True, 0),
    ]


def test_a_hundred_thousand_opens_leave_nothing(
    simulated: SimulatedPlatform, start_enclave: Callable[..., SimulatedEnclave]
) -> None:
    enclave = start_enclave(simulated)
    told: list[str] = []
    files = attestation_directory(enclave, Keyring(["k"]), told.append, remote_attestation=True)
    view = View(files)
    before = len(list(Path("/proc/self/fd").iterdir()))
    node = view.lookup(1, b"user_report_data").node
    _open_often(view, node, 1000)
    tracemalloc.start()
    _open_often(view, node, 100_000)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert told == []


def _open_often(view: View, node: int, times: int) -> None:
    for _ in range(times):
        view.release(node, view.open(node, os.O_RDONLY, CALLER).handle)


def test_values_of_processes_that_ended_are_forgotten(
    simulated: SimulatedPlatform, start_enclave: Callable[..., SimulatedEnclave]
) -> None:
    enclave = start_enclave(simulated)
    files = attestation_directory(enclave, Keyring([]), print, remote_attestation=False)
    written = files.mounted[b"user_report_data"]
    for _ in range(300):
        child = subprocess.Popen(["/bin/sleep", "10"])
        try:
            caller = CALLER._replace(pid=child.pid)
            written.open(os.O_WRONLY, caller).write(0, memoryview(b"x"))
        finally:
            child.kill()
            child.wait()
    mine = files.mounted[b"report"].open(os.O_RDONLY, CALLER).read(320, 64)
    assert bytes(mine) == bytes(64)


def test_a_quote_that_cannot_be_made_is_told(
    simulated: SimulatedPlatform, start_enclave: Callable[..., SimulatedEnclave]
) -> None:
    enclave = start_enclave(simulated)
    told: list[str] = []

    def broken(report_data: bytes) -> bytes:
        raise PlatformError("no quoting enclave")

    enclave.quote = broken  # type: ignore[method-assign]
    files = attestation_directory(enclave, Keyring([]), told.append, remote_attestation=True)
    with pytest.raises(PermissionError):
        files.mounted[b"quote"].open(os.O_RDONLY, CALLER)
    assert told == ["/dev/attestation/quote: no quoting enclave"]


def test_syncing_a_directory_reaches_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    scene = Scene(DirectRules(), lambda path, intent, error: None)
    View(HostDirectory(scene, str(tmp_path), "x")).fsyncdir(1)
    assert synced == [str(tmp_path)]
