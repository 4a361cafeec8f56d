"""The tutorial's commands around signing, by their old names and options."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli

from cloister.graphene import get_token, manifest, sgx_sign, sigstruct_view
from cloister.manifest.signed import load_signed
from cloister.sgx.sigstruct import Sigstruct

SIGNING = Path(__file__).resolve().parent.parent / "data" / "signing"

TUTORIAL = """\
loader.preload = "file:{{ graphene.libos }}"
libos.entrypoint = "/usr/bin/python3"
loader.log_level = "{{ graphene_log_level }}"
loader.argv0_override = "python3"
fs.mount.lib.type = "chroot"
fs.mount.lib.path = "/lib"
fs.mount.lib.uri = "file:dir"
sgx.thread_num = 8
sgx.enclave_size = "64M"
sgx.remote_attestation = true
sgx.trusted_files.lib = "file:dir"
sgx.trusted_files.a = "file:a.txt"
sgx.protected_files.classes = "file:classes.txt"
sgx.allowed_files.result = "file:result.txt"
"""


@pytest.fixture(autouse=True)
def folder(copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = copy_of(SIGNING)
    (copy / "app.manifest.sgx").unlink()
    (copy / "py.manifest.template").write_text(TUTORIAL)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def rendered() -> None:
    arguments = ["-Dgraphene_log_level=error", "py.manifest.template", "py.manifest"]
    assert manifest.run(arguments) == 0


# --- graphene-manifest ---------------------------------------------------------------------------


def test_manifest(rendered: None) -> None:
    assert tomli.loads(Path("py.manifest").read_text())["loader"]["log_level"] == "error"


def test_manifest_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert manifest.run(["--define", "x=1", "-c", "a = {{ x }}\n"]) == 0
    assert capsys.readouterr().out == "a = 1\n"


@pytest.mark.parametrize("arguments", [[], ["-c", "x", "py.manifest.template"]])
def test_manifest_needs_one_source(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert manifest.run(arguments) == 2
    assert "specify exactly one of (infile, -c)" in capsys.readouterr().err


def test_manifest_with_undefined_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert manifest.run(["py.manifest.template", "out"]) == 2
    assert "py.manifest.template:3: template: 'graphene_log_level'" in capsys.readouterr().err
    assert not Path("out").exists()


# --- graphene-sgx-sign ---------------------------------------------------------------------------


@pytest.mark.parametrize("dash", ["-", "--"])
def test_sign(rendered: None, dash: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["output", "py.manifest.sgx", "manifest", "py.manifest", "key", "key.pem"]
    options = [dash + word if place % 2 == 0 else word for place, word in enumerate(arguments)]
    assert sgx_sign.run([*options, f"{dash}libpal", "pal.so"]) == 0
    lines = capsys.readouterr().out.splitlines()
    signed = load_signed(Path("py"))
    sigstruct = Sigstruct.unpack(signed.sigstruct)
    sigstruct.verify()
    assert lines[:9] == [
        "Attributes:",
        "    size:        0x4000000",
        "    thread_num:  8",
        "    isv_prod_id: 0",
        "    isv_svn:     0",
        "    attr.flags:  0x4",
        "    attr.xfrm:   0x3",
        "    misc_select: 0x0",
        lines[8],
    ]
    assert lines[8].startswith("    date:        20")
    assert lines[9:12] == ["SGX remote attestation:", "    DCAP/ECDSA", "Memory:"]
    assert lines[-2:] == ["Measurement:", f"    {sigstruct.mr_enclave.hex()}"]
    assert sorted(signed.trusted) == ["a.txt", "dir/b.txt", "dir/sub/c.txt"]
    assert signed.manifest.sgx.protected_files == ["file:classes.txt"]


def test_dependencies(rendered: None) -> None:
    arguments = ["--manifest", "py.manifest", "--key", "key.pem", "--libpal", "pal.so", "--depend"]
    assert sgx_sign.run([*arguments, "--output", "py.manifest.sgx.d"]) == 0
    assert Path("py.manifest.sgx.d").read_text() == (
        "py.manifest.sgx py.sig: \\\n"
        "\tdir/b.txt \\\n\tdir/sub/c.txt \\\n\ta.txt \\\n\tpal.so \\\n\tkey.pem\n"
    )
    assert not Path("py.sig").exists()


def test_sign_says_what_is_missing(rendered: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").unlink()
    arguments = ["--output", "py.manifest.sgx", "--manifest", "py.manifest", "--key", "key.pem"]
    assert sgx_sign.run(arguments) == 2
    message = "py.manifest:12: sgx.trusted_files.a: file:a.txt does not exist"
    assert message in capsys.readouterr().err
    assert sgx_sign.run(["--manifest", "py.manifest"]) == 2


def test_sign_says_that_it_is_not_toml(rendered: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("py.manifest").write_text("loader.log_level = \n")
    arguments = ["--output", "py.manifest.sgx", "--manifest", "py.manifest", "--key", "key.pem"]
    assert sgx_sign.run(arguments) == 1
    assert capsys.readouterr().err == (
        "Parsing py.manifest as TOML failed: Invalid value (at line 1, column 20)\n"
    )
    assert not Path("py.manifest.sgx").exists()


# --- graphene-sgx-get-token, graphene-sgx-sigstruct-view, graphene-argv-serializer ---------------


def test_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_token.run(["-sig", "app.sig", "-output", "app.token"]) == 0
    token = Path("app.token").read_bytes()
    assert len(token) == 304
    assert token[48:64].hex() == "0400000000000000e700000000000000"
    view = json.loads(Path("app.sig.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert f"    mr_enclave:  {view['mr_enclave']}" in lines
    assert "    attr.xfrm:   00000000000000e7" in lines
    assert "    date:        2026-11-22" in lines
    data = Path("app.sig").read_bytes()
    assert f"    modulus:     {data[128:144].hex()}..." in lines
    assert f"    signature:   {data[516:532].hex()}..." in lines


def test_without_output_a_token_is_only_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_token.run(["--sig", "app.sig"]) == 0
    assert "    mr_enclave:  " in capsys.readouterr().out
    assert not list(Path().glob("*.token"))


def test_view(capsys: pytest.CaptureFixture[str]) -> None:
    view = json.loads(Path("app.sig.json").read_text())
    assert sigstruct_view.run(["app.sig"]) == 0
    assert capsys.readouterr().out == (
        "Attributes:\n"
        f"    mr_signer: {view['mr_signer']}\n"
        f"    mr_enclave: {view['mr_enclave']}\n"
        "    isv_prod_id: 7\n    isv_svn: 3\n    debug_enclave: False\n"
    )
    assert sigstruct_view.run(["-v", "app.sig"]) == 0
    assert "    attribute_xfrms: 0xe7\n" in capsys.readouterr().out
    assert sigstruct_view.run(["--output-format", "json", "app.sig", "out"]) == 0
    assert Path("out").read_bytes() == Path("app.sig.json").read_bytes()
    assert sigstruct_view.run(["--output-format", "toml", "app.sig"]) == 0
    assert tomli.loads(capsys.readouterr().out) == view


def test_view_of_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert sigstruct_view.run(["a.txt"]) == 3
    assert "a.txt: SIGSTRUCT: 6 bytes, expected exactly 1808" in capsys.readouterr().err


SERIALIZER = [sys.executable, "-c", "from cloister.graphene.argv_serializer import main; main()"]


def test_arguments() -> None:
    arguments = [b"a b", b"", b"line\nfeed", b"latin-\xe9"]
    done = subprocess.run([*SERIALIZER, *arguments], capture_output=True, check=True)
    assert done.stdout == b"a b\0\0line\nfeed\0latin-\xe9\0"
    assert done.stderr == b""


def test_arguments_to_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*SERIALIZER, "x"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "graphene-argv-serializer: error: No space left on device\n"
