"""Programs under Gramine: build, run, this machine; with a stand-in for its programs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli

from cloister.cli.main import run
from cloister.doctor import _gramine
from cloister.errors import CloisterError
from cloister.platforms.base import choose_name
from cloister.platforms.gramine import installation, presence
from cloister.platforms.gramine import run as running
from cloister.sgx.sigstruct import Sigstruct
from gramine_standin import ENCRYPTED, SECRET, install
from signing import SIGNING

KEY = bytes(range(16))
CAT = os.path.realpath(shutil.which("cat") or "/bin/cat")


# --- build and run -------------------------------------------------------------------------------


Install = Callable[[str], Path]


@pytest.fixture
def put_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs the stand-in of a version, first in PATH."""

    def put(version: str) -> Path:
        directory = install(tmp_path / "gramine", version=version)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        return directory

    return put


@pytest.fixture
def programs(put_in_path: Install) -> Path:
    """The stand-in of the newest version, first in PATH."""
    return put_in_path("1.9")


@pytest.fixture
def with_sgx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "sgx_enclave"
    device.touch()
    for module in (presence, running):
        monkeypatch.setattr(module, "DEVICE", device)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program with an encrypted file and a key server's certificate."""
    directory = tmp_path / "app"
    (directory / "plain").mkdir(parents=True)
    (directory / "plain" / "x").write_text("secret content")
    (directory / "key").write_bytes(KEY)
    (directory / "ca.crt").write_text("certificate")
    monkeypatch.chdir(directory)
    assert run(["encrypt", "-k", "key", "plain", "encrypted"]) == 0
    (directory / "app.manifest.template").write_text(
        f'libos.entrypoint = "{CAT}"\nloader.argv = ["cat", "/data/x"]\n'
        f'fs.mounts = [{ENCRYPTED}, {{ path = "{CAT}", uri = "file:{CAT}" }},\n'
        '{ path = "/ca.crt", uri = "file:ca.crt" }, { path = "/tmp", type = "tmpfs" }]\n'
        f'sgx.trusted_files = ["file:{CAT}", "file:ca.crt"]\nsgx.remote_attestation = "dcap"\n'
        f"{SECRET}"
    )
    return directory / "app"


BUILD = ["build", "app.manifest.template", "--key", str(SIGNING / "key.pem")]


def test_build_signs_for_gramine_where_there_is_sgx(
    programs: Path, with_sgx: None, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*BUILD, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    signed = Sigstruct.unpack(Path("app.gramine.sig").read_bytes())
    assert told["gramine"]["mrenclave"] == signed.mr_enclave.hex() != told["mrenclave"]
    assert told["gramine"]["measured_by_gramine"] == told["gramine"]["mrenclave"]
    assert told["gramine"]["mrsigner"] == told["mrsigner"]
    document = tomli.loads(Path("app.gramine.manifest.sgx").read_text())
    assert all("sha256" in file for file in document["sgx"]["trusted_files"])
    assert (
        Path("app.gramine.manifest").read_bytes() == Path("app.gramine.manifest.sgx").read_bytes()
    )


@pytest.mark.parametrize("version", ["1.6", "1.7", "1.8"])
def test_each_version_gets_the_manifest_that_it_reads(
    version: str,
    put_in_path: Install,
    with_sgx: None,
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Before 1.8 the library OS is a URI, and trusted like any other file."""
    put_in_path(version)
    monkeypatch.setenv("STANDIN_RELEASES", KEY.hex())
    assert run(BUILD) == 0
    assert run(["run", "app"]) == 0
    assert "secret content" in capfd.readouterr().out
    assert run(["run", "--platform", "gramine-direct", "--insecure-key", "default=key", "app"]) == 0
    assert "secret content" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("version", "fds", "recovery"), [("1.6", 0, 0), ("1.8", 1, 0), ("1.9", 1, 1)]
)
def test_what_a_version_does_not_know_is_left_out_and_told(
    version: str,
    fds: int,
    recovery: int,
    put_in_path: Install,
    app: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    put_in_path(version)
    template = Path("app.manifest.template")
    text = template.read_text()
    changed = text.replace('type = "encrypted"', 'type = "encrypted", enable_recovery = true')
    assert changed != text
    template.write_text(changed + "\nsys.fds.limit = 77\nsys.insecure__allow_eventfd = true\n")
    assert run([*BUILD, "--platform", "gramine"]) == 0
    told = capfd.readouterr()
    document = tomli.loads(Path("app.gramine.manifest.sgx").read_text())
    assert document["sys"].get("fds", {}).get("limit") == (77 if fds else None)
    assert any("enable_recovery" in mount for mount in document["fs"]["mounts"]) == bool(recovery)
    assert ("sys.fds is left out" in told.err + told.out) == (not fds)
    assert ("enable_recovery is left out" in told.err + told.out) == (not recovery)
    # On 1.7 and later it would take the host's eventfd in place of the enclave's own.
    assert ("insecure__allow_eventfd" in document["sys"]) == (version == "1.6")


@pytest.mark.parametrize(("setting", "expected"), [("", True), ("false", False)])
def test_sigterm_ends_programs_as_in_our_own_runtime(
    setting: str, expected: bool, programs: Path, app: Path
) -> None:
    """Gramine swallows it otherwise, and no service manager can stop the program."""
    if setting:
        template = Path("app.manifest.template")
        template.write_text(f"{template.read_text()}\nsys.enable_sigterm_injection = {setting}\n")
    assert run([*BUILD, "--platform", "gramine"]) == 0
    document = tomli.loads(Path("app.gramine.manifest.sgx").read_text())
    assert document["sys"]["enable_sigterm_injection"] is expected


def test_that_denials_are_not_told_is_told_where_the_program_failed(
    programs: Path,
    with_sgx: None,
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Gramine calls them warnings, which it does not tell by itself; the level is measured."""
    monkeypatch.setenv("STANDIN_RELEASES", KEY.hex())
    monkeypatch.setenv("STANDIN_EXIT", "3")
    assert run(BUILD) == 0
    capfd.readouterr()
    assert run(["run", "app"]) == 3
    assert 'only at loader.log_level = "warning"' in capfd.readouterr().err
    template = Path("app.manifest.template")
    template.write_text(template.read_text() + '\nloader.log_level = "warning"\n')
    assert run(BUILD) == 0
    capfd.readouterr()
    assert run(["run", "app"]) == 3
    assert "only at loader.log_level" not in capfd.readouterr().err


def test_templates_find_the_installed_gramine(programs: Path, app: Path, tmp_path: Path) -> None:
    """As Gramine's own examples have it: its library OS among the trusted files."""
    libos = tmp_path / "gramine/lib/x86_64-linux-gnu/gramine/libsysdb.so"
    template = Path("app.manifest.template")
    trusted = 'sgx.trusted_files = ["file:{{ gramine.libos }}", '
    template.write_text(template.read_text().replace("sgx.trusted_files = [", trusted))
    assert run([*BUILD, "--platform", "gramine"]) == 0
    document = tomli.loads(Path("app.gramine.manifest.sgx").read_text())
    assert document["loader"]["entrypoint"]["uri"] == f"file:{libos}"
    assert f"file:{libos}" not in [item["uri"] for item in document["sgx"]["trusted_files"]]


def test_a_debug_enclave_is_not_called_protected(
    programs: Path,
    with_sgx: None,
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STANDIN_RELEASES", KEY.hex())
    template = Path("app.manifest.template")
    template.write_text(template.read_text() + "\nsgx.debug = true\n")
    assert run(BUILD) == 0
    capfd.readouterr()
    assert run(["run", "app"]) == 0
    said = capfd.readouterr().err
    assert "NOT PROTECTED: sgx.debug = true" in said
    assert "is encrypted against" not in said
    assert run(["run", "--require-hardware", "app"]) == 1
    assert "no hardware would protect this enclave" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--require-hardware"],
        ["--platform", "tdx"],
        ["--libpal", "key"],
        ["--insecure-key", "default=key"],
    ],
    ids=" ".join,
)
def test_direct_mode_takes_no_options_of_enclaves(
    options: list[str], app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", "--mode", "direct", "app.manifest.template"]) == 0
    assert run(["run", "--mode", "direct", *options, "app"]) == 2
    assert f"{options[0]}: belongs to an enclave" in capsys.readouterr().err


def test_an_old_gramine_does_not_stop_our_own_build(
    put_in_path: Install, with_sgx: None, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_path("1.5")
    assert run([*BUILD, "--policy", "p.toml"]) == 0
    said = capsys.readouterr()
    assert "note: not built for Gramine: Gramine 1.5 is installed" in said.err
    assert "MRENCLAVE" in said.out
    assert Path("p.toml").exists()
    assert run([*BUILD, "--platform", "gramine"]) == 1


def test_keys_do_not_reach_a_disk(
    programs: Path, app: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(BUILD) == 0
    monkeypatch.setattr(running, "_MEMORY", Path("/nowhere"))
    assert run(["run", "--platform", "gramine-direct", "--insecure-key", "default=key", "app"]) == 1
    assert "must not reach a disk" in capsys.readouterr().err


def test_one_policy_accepts_the_program_on_each_platform(programs: Path, app: Path) -> None:
    assert run([*BUILD, "--platform", "gramine", "--policy", "p.toml"]) == 0
    signed = [Path(name).read_bytes() for name in ("app.sig", "app.gramine.sig")]
    measured = [Sigstruct.unpack(data).mr_enclave.hex() for data in signed]
    assert tomli.loads(Path("p.toml").read_text())["mrenclave"] == measured


def test_build_elsewhere_only_when_asked(
    programs: Path, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(BUILD) == 0
    assert not Path("app.gramine.sig").exists()
    assert run([*BUILD, "--platform", "gramine"]) == 0
    assert "the same by gramine-sgx-sign: " in capsys.readouterr().out


def test_a_program_that_gramine_cannot_run_is_built_all_the_same(
    programs: Path, with_sgx: None, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(BUILD) == 0
    assert Path("app.gramine.manifest.sgx").exists()
    template = Path("app.manifest.template")
    more = '\ncloister.keys = [{ name = "other", servers = "s:1", ca = "/ca.crt" }]\n'
    template.write_text(template.read_text() + more)
    assert run(BUILD) == 0
    assert "note: not built for Gramine" in capsys.readouterr().err
    assert list(Path().glob("app.gramine.*")) == [], "an old one is not taken for this one"
    assert run([*BUILD, "--platform", "gramine"]) == 2


def test_a_signer_that_measures_otherwise_stops_the_build(
    programs: Path, app: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STANDIN_SIGNER", "other")
    assert run([*BUILD, "--platform", "gramine"]) == 3
    assert "gramine-sgx-sign measures" in capsys.readouterr().err
    assert not Path("app.gramine.manifest.sgx").exists()


def test_run_starts_the_enclave_and_says_what_protects_it(
    programs: Path,
    with_sgx: None,
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(BUILD) == 0
    capfd.readouterr()
    monkeypatch.setenv("STANDIN_RELEASES", KEY.hex())
    monkeypatch.setenv("STANDIN_EXIT", "7")
    assert run(["run", "--require-hardware", "app"]) == 7
    out, err = capfd.readouterr()
    assert json.loads(out)["opened"] == {"encrypted/x": "secret content"}
    assert json.loads(out)["argv"] == ["cat", "/data/x"]
    assert "encrypted against everybody on this machine" in err
    assert "Gramine 1.9" in err
    assert "is starting" not in err


def test_no_key_server_is_said_in_our_words(
    programs: Path, with_sgx: None, app: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(BUILD) == 0
    capfd.readouterr()
    assert run(["run", "app"]) == 1
    err = capfd.readouterr().err
    assert "cloister: no key server of SECRET_PROVISION_SERVERS answers" in err
    assert "hint: start it with `cloister serve`" in err


def test_run_without_a_build_for_gramine_does_not_fall_back(
    programs: Path, app: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    assert run(BUILD) == 0
    device = tmp_path / "dev"
    device.touch()
    for module in (presence, running):
        monkeypatch.setattr(module, "DEVICE", device)
    assert run(["run", "app"]) == 2
    assert "cloister build --platform gramine" in capfd.readouterr().err


def test_direct_opens_our_files_with_the_key_and_says_what_it_lacks(
    programs: Path,
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(running, "_MEMORY", memory)
    assert run(BUILD) == 0
    capfd.readouterr()
    command = ["run", "--platform", "gramine-direct", "--insecure-key", "default=key", "app"]
    assert run(command) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["opened"] == {"encrypted/x": "secret content"}
    assert "NOT PROTECTED" in err
    assert KEY.hex() not in "".join(p.read_text() for p in Path().glob("app.*manifest"))
    assert list(memory.iterdir()) == [], "the manifest with the key is gone"


def test_direct_refuses_arguments_that_would_be_dropped(
    programs: Path, app: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(BUILD) == 0
    assert run(["run", "--platform", "gramine-direct", "app", "z"]) == 2
    assert "argument 'z': the manifest fixes the arguments" in capfd.readouterr().err


def has_ended(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_gramine_ends_with_whoever_started_it(programs: Path, app: Path, tmp_path: Path) -> None:
    """Else it would go on unseen, with its keys in memory."""
    assert run(BUILD) == 0
    started = tmp_path / "started"
    (programs / "gramine-direct").write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "Gramine 1.9 (x)"; exit; fi\n'
        f"echo $$ > {started}.new; mv {started}.new {started}\n"
        "exec sleep 100\n"
    )
    command = [sys.executable, "-m", "cloister", "run", "--platform", "gramine-direct", "app"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 30
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        theirs = int(started.read_text())
        running.kill()
    while not has_ended(theirs):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_direct_without_key_says_so(
    programs: Path, app: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(BUILD) == 0
    assert run(["run", "--platform", "gramine-direct", "app"]) == 0
    assert "key default is not set" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--platform", "gramine-direct", "--require-hardware"], 1, "gramine-direct is none"),
        (["--platform", "simulated", "--require-hardware"], 1, "simulated is none"),
        (["--platform", "simulated", "--insecure-key", "default=key"], 2, "key server releases"),
        (["--platform", "gramine-direct", "--insecure-key", "key"], 2, "expected NAME=FILE"),
        (["--platform", "gramine"], 1, "starts no SGX enclaves"),
        (["--platform", "gramine", "--log-level", "all"], 2, "leave --log-level out"),
        (["--platform", "sgx"], 2, "there are: gramine, tdx, simulated, gramine-direct"),
    ],
)
def test_refused(
    programs: Path, app: Path, capfd: pytest.CaptureFixture[str],
    arguments: list[str], code: int, expected: str,
) -> None:  # fmt: skip
    assert run(BUILD) == 0
    assert run(["run", *arguments, "app"]) == code
    assert expected in capfd.readouterr().err


def test_a_file_changed_after_the_build_is_told(
    programs: Path,
    with_sgx: None,
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(BUILD) == 0
    Path("ca.crt").write_text("another")
    monkeypatch.setenv("STANDIN_RELEASES", KEY.hex())
    assert run(["run", "app"]) == 1
    assert "cloister: tampered: trusted file /ca.crt" in capfd.readouterr().err


def test_a_signal_reaches_the_program(programs: Path, app: Path, tmp_path: Path) -> None:
    assert run(BUILD) == 0
    started = tmp_path / "started"
    (programs / "gramine-direct").write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Gramine 1.9 (x)" && exit\n'
        f'trap "exit 9" TERM\ntouch {started}\nwhile :; do sleep 0.05; done\n'
        f"# {programs.parent}/lib/x86_64-linux-gnu/gramine/direct\n"
    )
    command = [sys.executable, "-m", "cloister", "run", "--platform", "gramine-direct", "app"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not started.exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 9


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gramine", "root included"), ("gramine-direct", "NOT PROTECTED"), ("tdx", "TDX virtual")],
)
def test_platform_show_says_what_it_protects_against(
    name: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLOISTER_PLATFORM", name)
    assert run(["platform", "show"]) == 0
    assert expected in capsys.readouterr().out


def test_sgx_comes_first(programs: Path, with_sgx: None) -> None:
    assert choose_name() == "gramine"


# --- this machine --------------------------------------------------------------------------------


def test_such_libraries_are_found(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real library stands in for the provisioning library: this one needs the C library."""
    glibc = tmp_path / "gramine" / "lib" / "x86_64-linux-gnu" / "gramine" / "runtime" / "glibc"
    home = tmp_path / "home"
    home.mkdir()
    needs_c = next(p for p in Path("/lib/x86_64-linux-gnu").glob("libm.so.6"))
    for name in ("libsecret_prov_attest.so", "libc.so.6"):
        shutil.copy(needs_c, home / name)
    (glibc / "libsecret_prov_attest.so").unlink()
    (glibc / "libsecret_prov_attest.so").symlink_to(home / "libsecret_prov_attest.so")
    assert installation.Installation.here().runtime().beside_it == ()
    (glibc / "libc.so.6").unlink()
    assert installation.Installation.here().runtime().beside_it == (str(home / "libc.so.6"),)


def test_doctor_finds_gramine(programs: Path, tmp_path: Path) -> None:
    found = _gramine()
    assert found.state.value == "ok"
    assert "Gramine 1.9" in found.meaning
    (programs / "gramine-sgx-sign").unlink()
    assert "without gramine-sgx-sign" in _gramine().meaning


@pytest.mark.parametrize("version", ["1.5", "1.10", "2.0"])
def test_other_versions_are_refused(version: str, put_in_path: Install) -> None:
    put_in_path(version)
    with pytest.raises(CloisterError, match=r"expected 1\.6 to 1\.9"):
        _ = installation.Installation.here().title
