"""The mount tree: every type of root and mount, one inside and over another, devices, names."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from applications import CLOISTER, KEY, PYTHON, App
from cloister.encrypted import decrypt
from cloister.runtime.names import resolver_configuration

OTHER_KEY = KEY[::-1]


def _script(app: App, script: str, **options: object) -> str:
    return app.direct(["/bin/sh", "-c", script], **options).stdout


def test_a_root_in_memory(app: App) -> None:
    (app.directory / "data").mkdir()
    (app.directory / "data" / "file").write_text("chroot\n")
    app.settings["fs.root"] = '{ type = "tmpfs" }'
    app.mount("/deep/er/data", "file:data")
    app.mount("/deep/mem", kind="tmpfs")
    script = """
cat /deep/er/data/file; echo x > /x; cat /x; echo y > /deep/mem/y; cat /deep/mem/y
echo z > /deep/er/data/z; mkdir /new && echo made;
stat -f -c %T / /deep/er/data | tr '\\n' ' '; echo
ls -a / | tr '\\n' ' '; echo; ls -d /dev/null /dev/shm /dev/attestation /proc/self/fd /sys/devices
"""
    lines = _script(app, script).splitlines()
    assert lines[:4] == ["chroot", "x", "y", "made"]
    assert lines[4].split() in (["tmpfs", "fuseblk"], ["tmpfs", "fuse"])  # as stat calls it
    assert ".cloister" not in lines[5]
    assert len(lines) == 11
    assert (app.directory / "data" / "z").read_text() == "z\n"
    assert not (app.directory / "x").exists()


def test_an_encrypted_root_and_several_keys(app: App) -> None:
    for name in ("root", "one", "two"):
        (app.directory / name).mkdir()
    app.settings["fs.root"] = '{ type = "encrypted", uri = "file:root", key_name = "first" }'
    app.settings["fs.insecure__keys.first"] = f'"{KEY}"'
    app.settings["fs.insecure__keys.second"] = f'"{OTHER_KEY}"'
    app.mount("/one", "file:one", "encrypted", key_name="first")
    app.mount("/two", "file:two", "encrypted", key_name="second")
    script = """
for d in / /one/ /two/; do echo MARKER > ${d}file; cat ${d}file; done
mv /one/file /two/moved; cat /two/moved; ls /dev/attestation/keys
"""
    done = app.enclave_shell(script)
    assert (
        done.stdout.split()
        == [
            *["MARKER"] * 4,  # mv copies where renaming is refused
            *("_sgx_mrenclave", "_sgx_mrsigner", "first", "second"),
        ]
        or done.stdout.split()[:3] == ["MARKER"] * 3
    )
    (app.directory / "second").write_bytes(bytes.fromhex(OTHER_KEY))
    (app.directory / "second").chmod(0o600)
    for name in ("file", "moved"):
        assert app.cloister("decrypt", "-k", "second", f"two/{name}", "-").stdout == "MARKER\n"
    for path in app.directory.glob("*/*"):
        assert b"MARKER" not in path.read_bytes()


def test_mounts_inside_and_over_each_other(app: App) -> None:
    for name in ("outer/inner", "other/deep", "late", "single"):
        (app.directory / name).mkdir(parents=True)
    (app.directory / "outer" / "inner" / "hidden").write_text("hidden")
    (app.directory / "outer" / "seen").write_text("seen\n")
    (app.directory / "other" / "deep" / "file").write_text("other\n")
    (app.directory / "late" / "late").write_text("late\n")
    app.mount("/outer", "file:outer")
    app.mount("/outer/inner", "file:other")  # over a directory of the host
    app.mount("/outer/inner/deep/synthetic/mem", kind="tmpfs")  # a way that does not exist
    app.mount("/outer/inner/deep/one", "file:late/late")  # a single file where there was none
    app.mount("/mem", kind="tmpfs")
    app.mount("/mem/a", "file:other")
    app.mount("/mem/a/deep", "file:late")  # below a mount that is below a tmpfs
    app.mount("/covered/tmp", kind="tmpfs")
    app.mount("/covered", "file:late")  # hides the tmpfs
    script = """
cat /outer/seen; ls /outer/inner /outer/inner/deep; cat /outer/inner/deep/file /outer/inner/deep/one
stat -c '%a %F' /outer/inner/deep/synthetic;
mkdir /outer/inner/deep/synthetic/x 2>&1 | grep -c denied
echo m > /outer/inner/deep/synthetic/mem/m && cat /outer/inner/deep/synthetic/mem/m
ls /mem/a /mem/a/deep; ls /covered; rmdir /outer/inner 2>&1 | grep -ci busy
"""
    assert _script(app, script).split("\n") == [
        "seen", "/outer/inner:", "deep", "", "/outer/inner/deep:", "file", "one", "synthetic",
        "other", "late", "555 directory", "1", "m", "/mem/a:", "deep", "", "/mem/a/deep:", "late",
        "late", "1", "",
    ]  # fmt: skip
    assert sorted(path.name for path in (app.directory / "other" / "deep").iterdir()) == ["file"]


def test_devices_and_shared_memory(app: App) -> None:
    shared = Path(f"/dev/shm/cloister-test-{os.getpid()}")
    shared.write_text("shared\n")
    try:
        app.mount("/null", "dev:/dev/null")
        app.mount("/terminal", "dev:tty")
        app.mount("/dev/zero-again", "dev:/dev/zero")
        app.mount("/shared", "dev:/dev/shm", "untrusted_shm")
        app.settings["sgx.allowed_files"] = f'["dev:{shared}"]'
        script = f"""
echo x > /null && ls /shared; cat /shared/{shared.name}; echo more >> /shared/{shared.name}
head -c 2 /dev/zero-again | wc -c; ls /dev/; echo new > /shared/new || echo refused
"""
        done = app.enclave_shell(script)
        lines = done.stdout.split()
        assert lines[:3] == [shared.name, "shared", "2"]
        assert lines[-1] == "refused"
        assert shared.read_text() == "shared\nmore\n"
    finally:
        shared.unlink()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"uri": "dev:/dev/no-such"}, "fs.mounts[0]: /dev/no-such: No such file"),
        ({"uri": "dev:/etc/passwd"}, "expected a path below /dev"),
        ({"uri": "file:no-such"}, "fs.mounts[0]: file:no-such does not exist"),
        ({"path": "/proc", "uri": "file:."}, "/proc is the kernel's view"),
        ({"path": "/proc/new/x", "uri": "file:."}, "fs.mounts[0]: /proc/new/x: the kernel has no"),
    ],
)
def test_mounts_that_cannot_be(app: App, fields: dict[str, str], message: str) -> None:
    app.mount(**({"path": "/x"} | fields))
    done = app.direct(["/bin/true"], expect=2)
    assert message in done.stderr


def test_an_encrypted_file_that_is_mounted_may_be_made_by_the_program(app: App) -> None:
    """As a result in a mount of its own; Gramine's sealed files are mounted so."""
    app.mount("/out/result", "file:result", "encrypted")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    made = app.enclave_shell(
        "ls /out; cat /out/result; mkdir /out/result; echo text > /out/result; cat /out/result;"
        " ls /out; echo more >> /out/result; rm /out/result; mv /out/result /out/other",
        expect=None,
    )
    assert made.stdout == "text\nresult\n"
    stored = (app.directory / "result").read_bytes()
    assert decrypt(stored, bytes.fromhex(KEY), "result") == b"text\nmore\n"
    assert app.run_shell("cat /out/result").stdout == "text\nmore\n"


def test_a_start_directory_that_is_missing(app: App) -> None:
    app.settings["fs.start_dir"] = '"/nowhere"'
    done = app.direct(["/bin/true"], expect=1)
    assert "fs.start_dir = /nowhere: No such file or directory" in done.stderr


@pytest.mark.parametrize("extra", [False, True])
def test_names_of_the_host(app: App, extra: bool) -> None:
    app.settings["sys.enable_extra_runtime_domain_names_conf"] = json.dumps(extra)
    app.settings["fs.root"] = '{ type = "tmpfs" }'
    for path in ("/usr", "/lib", "/lib64", "/bin"):
        app.mount(path, f"file:{path}")
    app.settings["libos.entrypoint"] = '"/bin/sh"'
    script = "uname -n; cat /etc/hostname /etc/resolv.conf; echo x > /etc/hostname"
    app.settings["loader.argv"] = json.dumps(["/bin/sh", "-c", script])
    (app.directory / "app.manifest").write_text(app.text())
    done = app.cloister("run", "--mode", "direct", "app", expect=None)
    if extra:
        name = socket.gethostname()
        expected = resolver_configuration(Path("/etc/resolv.conf")).decode()
        assert done.stdout == f"{name}\n{name}\n{expected}"
        assert "nameserver" in expected or "nameserver" not in Path("/etc/resolv.conf").read_text()
    else:
        assert done.stdout == "localhost\n"
    assert done.returncode != 0


def test_a_hosts_resolver_configuration_is_cleaned(tmp_path: Path) -> None:
    hostile = tmp_path / "resolv.conf"
    hostile.write_text(
        "# comment\nnameserver 10.0.0.1\nnameserver evil;rm\nnameserver fe80::1%eth0\n"
        "nameserver ::1\nnameserver 1.1.1.1\nnameserver 9.9.9.9\nsearch a.example bad/one b.\n"
        "options ndots:2 rotate evil:1 timeout:999\nsortlist 1.2.3.4\noptions edns0\n"
    )
    assert resolver_configuration(hostile).decode().splitlines() == [
        "nameserver 10.0.0.1",
        "nameserver fe80::1%eth0",
        "nameserver ::1",
        "search a.example b.",
        "options ndots:2 rotate edns0",
    ]
    assert resolver_configuration(tmp_path / "absent") == b""


def test_the_sandbox_leaves_the_hosts_directories_alone(app: App) -> None:
    """Mount points that do not exist are made up in the tree, never made on the host."""
    (app.directory / "data").mkdir(mode=0o755)
    app.mount("/data", "file:data")
    app.mount("/data/missing/mem", kind="tmpfs")
    app.mount("/data/missing/file", "file:/etc/passwd")
    _script(app, "echo x > /data/missing/mem/x")
    assert list((app.directory / "data").iterdir()) == []
    assert stat.S_IMODE((app.directory / "data").stat().st_mode) == 0o755


def test_a_mount_that_vanished_hides_no_other(app: App) -> None:
    for name in ("gone", "here"):
        (app.directory / name).mkdir()
        app.mount(f"/data/{name}", f"file:{name}")
    script = "import os; print('ready', flush=True); input(); print(os.listdir('/data'))"
    assert app.direct([PYTHON, "-c", script], input="\n").stdout == "ready\n['gone', 'here']\n"
    process = subprocess.Popen(
        [*CLOISTER, "run", "--mode", "direct", "app"], cwd=app.directory, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (app.directory / "gone").rmdir()
    assert process.communicate("\n", timeout=30)[0] == "['here']\n"
