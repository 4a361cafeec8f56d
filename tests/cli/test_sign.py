"""``cloister sign``, ``signing-key`` and ``sigstruct``, against Gramine's signer and OpenSSL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from cloister.cli.main import run
from cloister.errors import InputError
from cloister.files import config_home
from cloister.manifest.sign import rule_for_make
from cloister.sgx.sigstruct import Sigstruct

SIGNING = Path(__file__).resolve().parent.parent / "data" / "signing"
COMMON = ["--libpal", "pal.so", "--date", "2026-11-22"]


@pytest.fixture(autouse=True)
def folder(copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = copy_of(SIGNING)
    for name in ("app.sig", "app.manifest.sgx", "app-edmm.sig"):
        (copy / name).unlink()
    monkeypatch.chdir(copy)
    return copy


def openssl(*arguments: str) -> bytes:
    return subprocess.run(["openssl", *arguments], capture_output=True, check=True).stdout


# --- cloister sign -------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["app", "app-edmm"])
def test_output_and_files_are_gramines(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, output = f"{app}.manifest", f"{app}.manifest.sgx"
    assert run(["sign", "-m", manifest, "-o", output, "-k", "key.pem", *COMMON]) == 0
    assert capsys.readouterr().out == (SIGNING / f"{app}.out").read_text()
    assert Path(f"{app}.sig").read_bytes() == (SIGNING / f"{app}.sig").read_bytes()
    assert Path(output).read_bytes() == Path(manifest).read_bytes()
    assert not Path(f"{app}.index").exists()


def test_sigfile_and_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", "app.manifest", "-o", "o", "-k", "key.pem", "-s", "other", "-q", *COMMON]
    assert run(["sign", *arguments]) == 0
    assert capsys.readouterr().out == ""
    assert Path("other").read_bytes() == (SIGNING / "app.sig").read_bytes()


@pytest.mark.parametrize(
    "names",
    [
        ["-o", "key.pem"],
        ["-o", "o", "-s", "./key.pem"],
        ["-o", "o", "-s", "o"],
        ["-o", "o", "-s", "pal.so"],
        ["-o", "o", "--depfile", "o"],
        ["-o", "trusted.manifest"],
        ["-o", "o", "-s", "trusted.manifest"],
        ["-o", "o", "-s", "o.index"],
        ["-o", "model.bin"],
        ["-o", "o", "--depfile", "model.bin"],
    ],
    ids=" ".join,
)
def test_no_file_replaces_another_one(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    trusted = (
        'libos.entrypoint = "/x"\nsgx.enclave_size = "64M"\n'
        'sgx.trusted_files = ["file:pal.so", "file:model.bin"]'
    )
    Path("trusted.manifest").write_text(trusted)
    Path("model.bin").write_bytes(b"model")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    signing = ["sign", "-m", "trusted.manifest", "-k", "key.pem", *COMMON]
    assert run([*signing, *names]) == 2
    assert "would replace another file" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


def test_a_signed_manifest_is_signed_again_in_place() -> None:
    arguments = ["-m", "app.manifest", "-o", "app.manifest", "-k", "key.pem", "-q", *COMMON]
    assert run(["sign", *arguments]) == 0
    assert Path("app.sig").read_bytes() == (SIGNING / "app.sig").read_bytes()


def test_verbose_and_depfile(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", "app.manifest", "-o", "o", "-k", "key.pem", "-v", "--depfile", "o.d"]
    assert run(["sign", *arguments, *COMMON]) == 0
    assert capsys.readouterr().out == (SIGNING / "app.out").read_text()
    assert Path("o.d").read_text() == (
        "o: \\\n\ta.txt \\\n\tdir/b.txt \\\n\tdir/sub/c.txt \\\n\tpal.so \\\n\tkey.pem\n"
    )


@pytest.mark.parametrize(
    "name", ["two words", "#1", "$HOME", "a\\b", "a\\ b", "100%", "a:b", "ünï", "\udcff"]
)
def test_make_reads_the_names_of_a_depfile_back(folder: Path, name: str) -> None:
    directory = folder / name
    directory.mkdir()
    (directory / "x").touch()
    Path("odd.d").write_bytes(os.fsencode(rule_for_make([Path("o")], [Path(name, "x")])))
    Path("o").touch()
    asked = ["make", "-q", "-f", "odd.d", "o"]
    assert subprocess.run(asked, check=False).returncode == 0
    (directory / "x").unlink()
    missing = subprocess.run(asked, capture_output=True, check=False)
    assert b"No rule to make target" in missing.stderr


def test_make_can_have_no_name_with_a_line_break() -> None:
    with pytest.raises(InputError, match="line breaks"):
        rule_for_make([Path("o")], [Path("a\nb")])


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", "app.manifest", "-o", "o", "-k", "key.pem", "--json", *COMMON]
    assert run(["sign", *arguments]) == 0
    facts = json.loads(capsys.readouterr().out)
    expected = json.loads((SIGNING / "app.sig.json").read_text())
    assert facts["mrenclave"] == expected["mr_enclave"]


def test_files_without_hash_get_one_in_an_index(folder: Path) -> None:
    Path("new.manifest").write_text(
        'libos.entrypoint = "/x"\nsgx.trusted_files = ["file:dir/", "file:a.txt"]\n'
    )
    signing = ["-m", "new.manifest", "-o", "out/new.manifest.sgx", "-k", "key.pem", "-q", *COMMON]
    (folder / "out").mkdir()
    assert run(["sign", *signing]) == 0
    assert Path("out/new.index").exists()
    assert Path("new.sig").exists()

    again = ["-m", "out/new.manifest.sgx", "-o", "copy.manifest.sgx", "-k", "key.pem", "-q"]
    assert run(["sign", *again, *COMMON]) == 0
    assert Path("copy.manifest.sgx").read_bytes() == Path("out/new.manifest.sgx").read_bytes()
    assert Path("copy.index").read_bytes() == Path("out/new.index").read_bytes()
    assert Path("out/new.sig").read_bytes() == Path("new.sig").read_bytes()


def test_an_index_that_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("new.manifest").write_text('libos.entrypoint = "/x"\nsgx.trusted_files = ["file:a.txt"]\n')
    assert run(["sign", "-m", "new.manifest", "-o", "new.manifest.sgx", "-q", *COMMON]) == 0
    Path("new.index").write_bytes(b"other")
    again = ["sign", "-m", "new.manifest.sgx", "-o", "n", *COMMON]
    assert run(again) == 3
    assert "new.index: its SHA-256 is not the one in new.manifest.sgx" in capsys.readouterr().err
    Path("new.index").unlink()
    assert run(again) == 2
    assert "new.index: missing, but new.manifest.sgx refers to it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "none"], "none: there is no such manifest"),
        (["-m", "pal.so"], "pal.so: not UTF-8 text"),
        (["-m", "app.manifest", "-k", "none"], "none: there is no such signing key"),
        (["-m", "app.manifest", "-k", "a.txt"], "a.txt: not a private key in PEM"),
        (["-m", "app.manifest", "-d", "2026-13-01"], "date '2026-13-01': expected"),
        (["-m", "app.manifest", "-l", "a.txt"], "runtime image: 6 bytes, too short"),
        (["-m", "app.manifest", "--to-be-signed", "t"], "--to-be-signed and --public-key go"),
        (
            ["-m", "app.manifest", "--to-be-signed", "t", "--public-key", "key.pem"],
            "key.pem: not a public key",
        ),
    ],
)
def test_mistakes(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sign", *COMMON, *arguments, "-o", "out.sgx"]) == 2
    assert expected in capsys.readouterr().err
    assert not Path("out.sgx").exists()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (["genrsa", "-3", "-out", "bad.pem", "2048"], "expected an RSA key of 3072 bits, got 2048"),
        (["genrsa", "-out", "bad.pem", "3072"], "expected public exponent 3, got 65537"),
        (
            ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "bad.pem"],
            "expected an RSA private key, found another kind",
        ),
    ],
)
def test_keys_that_sgx_cannot_use(
    make: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    openssl(*make)
    assert run(["sign", "-m", "app.manifest", "-o", "o", "-k", "bad.pem", *COMMON]) == 2
    assert f"bad.pem: {expected}" in capsys.readouterr().err


# --- passphrases ---------------------------------------------------------------------------------


def test_passphrases(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("secret").write_text("correct horse\nrest\n")
    openssl("rsa", "-in", "key.pem", "-aes256", "-passout", "file:secret", "-out", "locked.pem")
    signing = ["sign", "-m", "app.manifest", "-o", "o", "-q", *COMMON, "-k"]
    assert run([*signing, "locked.pem", "--passphrase-file", "secret"]) == 0
    assert Path("app.sig").read_bytes() == (SIGNING / "app.sig").read_bytes()

    assert run([*signing, "locked.pem"]) == 2
    assert "locked.pem: the key is encrypted\nhint: " in capsys.readouterr().err
    Path("wrong").write_text("wrong")
    assert run([*signing, "locked.pem", "--passphrase-file", "wrong"]) == 2
    said = capsys.readouterr().err
    assert "this passphrase does not open it" in said
    assert "--passphrase-file" in said
    assert "signing-key new" not in said
    assert run([*signing, "key.pem", "--passphrase-file", "secret"]) == 2
    assert "key.pem: the key is not encrypted" in capsys.readouterr().err
    Path("empty").write_text("\n")
    assert run([*signing, "locked.pem", "--passphrase-file", "empty"]) == 2
    assert "empty: the first line is empty" in capsys.readouterr().err

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "prompt", lambda *_, **options: "correct horse")
    Path("app.sig").unlink()
    assert run([*signing, "locked.pem"]) == 0
    assert Path("app.sig").exists()


def test_build_takes_a_passphrase_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("secret").write_text("correct horse\n")
    openssl("rsa", "-in", "key.pem", "-aes256", "-passout", "file:secret", "-out", "locked.pem")
    Path("new.manifest.template").write_text('libos.entrypoint = "/x"\n')
    building = ["build", "new.manifest.template", "--libpal", "pal.so", "--key", "locked.pem"]
    assert run([*building, "--passphrase-file", "secret"]) == 0
    expected = json.loads((SIGNING / "app.sig.json").read_text())["mr_signer"]
    assert f"MRSIGNER    {expected}\n" in capsys.readouterr().out
    assert run(building) == 2
    assert "hint: give its passphrase: --passphrase-file" in capsys.readouterr().err


def test_new_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["signing-key", "new", "sub/new.pem"]) == 0
    printed = capsys.readouterr().out
    path = Path("sub/new.pem")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN RSA PRIVATE KEY-----")
    text = openssl("rsa", "-in", str(path), "-noout", "-text").decode()
    assert "3072 bit" in text
    assert "publicExponent: 3 (0x3)" in text
    before = path.read_bytes()
    assert run(["signing-key", "new", str(path)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run(["signing-key", "show", str(path)]) == 0
    assert capsys.readouterr().out == printed.splitlines()[1] + "\n"
    assert run(["signing-key", "new", "-f", str(path)]) == 0
    assert path.read_bytes() != before


def test_new_key_with_passphrase() -> None:
    Path("secret").write_text("correct horse\n")
    assert run(["signing-key", "new", "--passphrase-file", "secret", "locked.pem"]) == 0
    assert b"ENCRYPTED PRIVATE KEY" in Path("locked.pem").read_bytes()
    openssl("rsa", "-in", "locked.pem", "-passin", "file:secret", "-noout")


def test_own_key() -> None:
    assert run(["signing-key", "new"]) == 0
    assert (config_home() / "enclave-key.pem").exists()


# --- two steps -----------------------------------------------------------------------------------


def test_two_steps_give_the_same_signature(capsys: pytest.CaptureFixture[str]) -> None:
    openssl("rsa", "-in", "key.pem", "-pubout", "-out", "public.pem")
    first = ["-m", "app.manifest", "-o", "app.manifest.sgx", "--to-be-signed", "app.tbs"]
    assert run(["sign", *first, "--public-key", "public.pem", "-q", *COMMON]) == 0
    assert not Path("app.sig").exists()
    openssl("dgst", "-sha256", "-sign", "key.pem", "-out", "signature", "app.tbs")
    second = ["app.tbs", "--public-key", "public.pem", "--signature", "signature"]
    assert run(["sigstruct", "attach", *second, "-o", "app.sig"]) == 0
    assert Path("app.sig").read_bytes() == (SIGNING / "app.sig").read_bytes()

    Path("app.sig").unlink()
    for wrong in (bytes(384), b"\xff" * 384):
        Path("signature").write_bytes(wrong)
        assert run(["sigstruct", "attach", *second, "-o", "app.sig"]) == 3
        assert "the signature is wrong" in capsys.readouterr().err
    Path("app.tbs").write_bytes(bytes(256))
    assert run(["sigstruct", "attach", *second, "-o", "app.sig"]) == 3
    assert "to be signed: SIGSTRUCT: header is" in capsys.readouterr().err
    assert not Path("app.sig").exists()


def test_public_key_may_be_a_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    openssl("req", "-x509", "-key", "key.pem", "-subj", "/CN=x", "-out", "certificate.pem")
    assert run(["signing-key", "show", "--public", "certificate.pem"]) == 0
    expected = json.loads((SIGNING / "app.sig.json").read_text())["mr_signer"]
    assert capsys.readouterr().out == f"MRSIGNER  {expected}\n"


# --- cloister sigstruct --------------------------------------------------------------------------


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(SIGNING / "app.sig", "app.sig")
    assert run(["sigstruct", "show", "--json", "app.sig"]) == 0
    expected = json.loads((SIGNING / "app.sig.json").read_text())
    assert json.loads(capsys.readouterr().out) == expected
    assert run(["sigstruct", "show", "app.sig"]) == 0
    assert f"mr_enclave            {expected['mr_enclave']}\n" in capsys.readouterr().out


def test_verify(capsys: pytest.CaptureFixture[str]) -> None:
    data = (SIGNING / "app.sig").read_bytes()
    Path("app.sig").write_bytes(data)
    found = Sigstruct.unpack(data)
    assert run(["sigstruct", "verify", "app.sig", "--mrenclave", found.mr_enclave.hex()]) == 0
    assert found.mr_signer.hex() in capsys.readouterr().out
    assert run(["sigstruct", "verify", "--json", "app.sig"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True

    assert run(["sigstruct", "verify", "app.sig", "--mrsigner", "00" * 32]) == 3
    assert "MRSIGNER is d4ee5066" in capsys.readouterr().err
    assert run(["sigstruct", "verify", "app.sig", "--mrsigner", "xyz"]) == 2
    for position, expected in ((960, "signature is wrong"), (1040, "Q1 or Q2"), (1500, "Q1 or")):
        Path("app.sig").write_bytes(data[:position] + b"\x5a" + data[position + 1 :])
        assert run(["sigstruct", "verify", "app.sig"]) == 3
        assert expected in capsys.readouterr().err
    Path("app.sig").write_bytes(data[:-1])
    assert run(["sigstruct", "verify", "app.sig"]) == 3
    assert "app.sig: SIGSTRUCT: 1807 bytes" in capsys.readouterr().err
    assert run(["sigstruct", "show", "none.sig"]) == 2
