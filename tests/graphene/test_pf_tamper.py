"""``pf_tamper`` writes the 72 damaged files, and ``pf_crypt`` opens none of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloister.encrypted.keys import read_wrap_key
from cloister.encrypted.stream import encrypt
from cloister.graphene import pf_crypt, pf_tamper

KEY = bytes(range(16))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "victim").write_bytes(encrypt(b"v" * 1_048_577, KEY, "victim"))
    return tmp_path


def test_no_damaged_file_is_decrypted_under_its_own_name(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is put in the original's place: a wrong name must not be what makes it fail."""
    assert pf_tamper.run(["-w", "key", "-i", "victim", "-o", "damaged"]) == 0
    printed = capsys.readouterr().out.splitlines()
    damaged = sorted((work / "damaged").iterdir())
    assert sorted(printed) == [f"[*] damaged/{path.name}" for path in damaged]
    assert len(damaged) == 72
    decrypt = ["decrypt", "-w", "key", "-i", "victim", "-o", "plain", "-V"]
    assert pf_crypt.run(decrypt) == 0
    (work / "plain").unlink()
    for path in damaged:
        shutil.copy(path, work / "victim")
        assert pf_crypt.run(decrypt) == 255, path.name
        assert not (work / "plain").exists()


def test_the_lengths_are_those_of_the_published_table() -> None:
    """Places where Gramine's tool cuts a version 2 file."""
    lengths = {
        name: len(content)
        for name, content in pf_tamper.cases(encrypt(b"v" * 1_048_577, KEY, "v"), KEY)
        if name.startswith("trunc_")
    }
    published = {
        "meta_plain": [0, 4, 8, 9, 10, 26, 42, 50],
        "meta_enc": [59, 445, 831, 835, 839, 847, 855, 863, 871, 2407],
        "meta_pad": [3943, 4019],
        "mht": [4096 + place for place in (0, 8, 16, 24, 32, 3072, 3080, 3088, 3096, 3104)],
        "data": [8192, 10240, 12288, 14336],
    }
    assert lengths == {
        f"trunc_{name}_{number}": place
        for name, places in published.items()
        for number, place in enumerate(places)
    }


def test_damage_is_made_of_files_of_gramine_too(data: Path) -> None:
    key = read_wrap_key(data / "encrypted" / "wrap-key")
    file = (data / "encrypted" / "files" / "396289.bin").read_bytes()
    assert len(list(pf_tamper.cases(file, key))) == 72


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "input not specified"),
        (["-w", "key", "-i", "none", "-o", "d"], "none"),
        (["-w", "key", "-i", "small", "-o", "d"], "expected two or more"),
        (["-w", "key", "-i", "key", "-o", "d"], "not an encrypted file"),
        (["-x"], "Unknown option: -x"),
    ],
)
def test_wrong_use(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (work / "small").write_bytes(encrypt(b"v", KEY, "small"))
    assert pf_tamper.run(arguments) == 255
    assert said in capsys.readouterr().err
