"""``cloister doctor``: this machine, and machines that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from applications import CLOISTER
from cloister.doctor import Finding, Machine, State, can_run, diagnose
from cloister.errors import SandboxError

HELPER = Path(__file__).parent.parent / "as_ordinary_user.py"
Describe = Callable[..., Machine]


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """Return a function that describes a machine: good, but for what is set otherwise."""
    files = {
        "proc/sys/kernel/seccomp/actions_avail": "kill_process errno allow",
        "proc/cpuinfo": "flags\t\t: fpu sgx\n",
        "proc/self/ns/user": "",
        **{f"proc/sys/user/max_{kind}_namespaces": "100" for kind in ("user", "mnt", "pid")},
        "dev/fuse": "",
    }

    def machine(changed: dict[str, str | None] | None = None, **fields: object) -> Machine:
        for name, text in {**files, **(changed or {})}.items():
            if text is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
        usual = {"release": "6.8.0-31-generic", "system": "Linux", "architecture": "x86_64"}
        return Machine(tmp_path, **{**usual, "is_root": False, **fields})  # type: ignore[arg-type]

    return machine


def missing(machine: Machine) -> dict[str, Finding]:
    """What stops a run there."""
    findings = list(diagnose(machine, None))
    found = {f.name: f for f in findings if f.needed and f.state is State.MISSING}
    assert can_run(findings) == (not found)
    return found


def test_here() -> None:
    done = subprocess.run(
        [*CLOISTER, "doctor", "--json"], capture_output=True, text=True, check=True, timeout=60
    )
    told = json.loads(done.stdout)
    states = {check["name"]: check["state"] for check in told["checks"]}
    assert told["can_run"]
    assert states["a run"] == "ok"
    assert {"SGX", "TDX", "PyTorch"} <= set(states)


def test_a_good_machine(describe: Describe) -> None:
    assert missing(describe()) == {}


@pytest.mark.parametrize(
    ("files", "fields", "name", "mend"),
    [
        ({}, {"system": "Darwin"}, "system", "run on a Linux machine"),
        ({}, {"release": "4.19.0-x"}, "kernel", "newer kernel"),
        ({"dev/fuse": None}, {}, "/dev/fuse", "sudo modprobe fuse"),
        ({"dev/fuse": None, ".dockerenv": ""}, {}, "/dev/fuse", "--device /dev/fuse"),
        ({"proc/self/ns/user": None}, {}, "user namespaces", "CONFIG_USER_NS"),
        (
            {"proc/sys/user/max_user_namespaces": "0"},
            {},
            "user namespaces",
            "sudo sysctl -w user.max_user_namespaces=",
        ),
        (
            {"proc/sys/kernel/unprivileged_userns_clone": "0"},
            {},
            "kernel.unprivileged_userns_clone",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            {"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"},
            {},
            "kernel.apparmor_restrict_unprivileged_userns",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            {"proc/sys/kernel/seccomp/actions_avail": "kill_thread"},
            {},
            "seccomp",
            "CONFIG_SECCOMP_FILTER",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_mend(
    describe: Describe,
    files: dict[str, str | None],
    fields: dict[str, object],
    name: str,
    mend: str,
) -> None:
    found = missing(describe(files, **fields))
    assert list(found) == [name]
    assert mend in str(found[name].mend)


def own_directories(machine: Machine) -> Finding:
    (found,) = (item for item in diagnose(machine, None) if item.name == "own directories")
    return found


def test_directories_that_cannot_be_made(
    describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    found = own_directories(describe())
    assert found.state is State.MISSING
    assert found.meaning.startswith("/proc/nowhere/.local/share/cloister cannot be written: ")
    assert "XDG_DATA_HOME" in str(found.mend)


def test_a_user_without_a_home(describe: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert own_directories(describe()).meaning.startswith("this user has no home directory")
    assert missing(describe()) == {}, "direct mode needs none"


def test_what_binds_ordinary_users_does_not_bind_root(describe: Describe) -> None:
    restricted = {"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"}
    assert missing(describe(dict(restricted), is_root=True)) == {}


SGX, PROVISION = "dev/sgx_enclave", "dev/sgx_provision"
REGISTER = "sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"
REPORT = "sys/kernel/config/tsm/report/x"


@pytest.mark.parametrize(
    ("files", "name", "is_there", "words"),
    [
        ([], "SGX", False, "driver is not loaded"),
        (["dev/isgx"], "SGX", False, "driver is not loaded"),
        ([PROVISION], "SGX", False, "driver is not loaded"),
        ([SGX], "SGX", False, "get no quotes"),
        ([SGX, PROVISION], "SGX", True, "aesmd"),
        ([], "TDX", False, "no TDX virtual machine"),
        ([REPORT], "TDX", False, "no TDX virtual machine"),
        (["dev/tdx_guest"], "TDX", False, "no reports in configfs"),
        ([REGISTER], "TDX", False, "no reports in configfs"),
        (["dev/tdx_guest", REPORT], "TDX", False, "RTMR 3 cannot be read or extended"),
        ([REGISTER, REPORT], "TDX", True, "TDX virtual machine"),
    ],
)
def test_hardware_is_there_if_a_run_would_use_it(
    describe: Describe, files: list[str], name: str, is_there: bool, words: str
) -> None:
    machine = describe(dict.fromkeys(files, ""), is_root=True)
    (found,) = (item for item in diagnose(machine, None) if item.name == name)
    assert (found.state is State.OK) == is_there
    assert words in found.meaning


@pytest.mark.parametrize(
    ("options", "is_there"), [("rw,nosuid", True), ("rw,nosuid,noexec", False)]
)
def test_enclaves_are_executed_from_dev(describe: Describe, options: str, is_there: bool) -> None:
    mounts = (
        f"22 1 0:5 / /dev/shm rw,noexec - tmpfs x rw\n23 1 0:6 / /dev {options} - devtmpfs x rw"
    )
    machine = describe({SGX: "", PROVISION: "", "proc/self/mountinfo": mounts})
    (found,) = (item for item in diagnose(machine, None) if item.name == "SGX")
    assert (found.state is State.OK) == is_there
    assert ("remount,exec /dev" in (found.mend or "")) == (not is_there)


def test_a_device_that_only_root_may_open_in_a_container(
    describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode is the machine's, which nobody inside of the container can change."""
    machine = describe({".dockerenv": ""})
    monkeypatch.setattr(os, "access", lambda path, mode: path != machine.root / "dev/fuse")
    (found,) = [f for f in diagnose(machine, lambda: None) if f.name == "/dev/fuse"]
    assert found.mend == (
        "outside of the Docker container, then start it anew: sudo chmod 666 /dev/fuse"
    )


def test_a_run_that_fails_is_explained(describe: Describe) -> None:
    def fails() -> None:
        raise SandboxError("mount: Operation not permitted")

    def last(machine: Machine) -> Finding:
        (found,) = [f for f in diagnose(machine, fails) if f.name == "a run"]
        return found

    assert last(describe()).state is State.MISSING
    in_container = last(describe({".dockerenv": ""}))
    assert "--security-opt systempaths=unconfined" in str(in_container.mend)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take /dev/fuse away for a test")
def test_an_ordinary_user_without_dev_fuse() -> None:
    done = subprocess.run(
        [sys.executable, str(HELPER), "600", *CLOISTER, "doctor"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "missing  /dev/fuse: may not be opened by this user" in done.stdout
    assert "sudo chmod 666 /dev/fuse\n" in done.stdout
    assert "programs CANNOT run here" in done.stdout


def test_inside_a_user_namespace() -> None:
    """As in an unprivileged container: root of a namespace only, no capability outside."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", *CLOISTER, "doctor"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert "ok       a run" in done.stdout
