"""``pf_crypt`` with the tutorial's command lines, and what the C tool says and returns."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.encrypted.stream import decrypt, encrypt
from cloister.graphene import pf_crypt
from cloister.graphene.options import Option, parse


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tutorial's directory: a key, and plaintext files in ``plaintext/``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "wrap-key").write_bytes(bytes(range(16)))
    (tmp_path / "plaintext" / "sub").mkdir(parents=True)
    (tmp_path / "plaintext" / "input.jpg").write_bytes(b"\xff\xd8 a photograph" * 9000)
    (tmp_path / "plaintext" / "sub" / "classes.txt").write_bytes(b"Labrador retriever\n")
    return tmp_path


KEY = ["-w", "files/wrap-key"]


def test_the_commands_of_the_tutorial(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*KEY, "-i", "plaintext/input.jpg", "-o", "input.jpg"]
    assert pf_crypt.run(["encrypt", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Encrypting: plaintext/input.jpg -> input.jpg\n")
    assert "'input.jpg'" in shown.out.splitlines()[1]
    assert shown.err == ""
    sealed = (work / "input.jpg").read_bytes()
    assert sealed[8] == 1  # Graphene reads no other version
    expected = (work / "plaintext" / "input.jpg").read_bytes()
    assert decrypt(sealed, bytes(range(16)), "input.jpg") == expected
    assert pf_crypt.run(["decrypt", *KEY, "-i", "input.jpg", "-o", "plaintext/back", "-V"]) == 0
    assert capsys.readouterr().out == "Decrypting: input.jpg -> plaintext/back\n"
    assert (work / "plaintext" / "back").read_bytes() == expected


def test_a_path_that_graphenes_tool_embedded_as_typed_verifies(work: Path) -> None:
    (work / "x").write_bytes(encrypt(b"content", bytes(range(16)), "./sub/../x", version=1))
    assert pf_crypt.run(["decrypt", *KEY, "-i", "./x", "-o", "back", "-V"]) == 0
    assert (work / "back").read_bytes() == b"content"


def test_directories_are_processed_with_all_below(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "plaintext" / "link").symlink_to("none")
    assert pf_crypt.run(["e", *KEY, "--input=plaintext/", "--output", "sealed/deep"]) == 0
    shown = capsys.readouterr().out
    assert "Skipping non-regular file plaintext/link" in shown
    sealed = (work / "sealed" / "deep" / "sub" / "classes.txt").read_bytes()
    assert decrypt(sealed, bytes(range(16)), "sealed/deep/sub/classes.txt").startswith(b"Labrador")
    assert pf_crypt.run(["d", *KEY, "-isealed/deep", "-oback", "-vV"]) == 0
    assert (work / "back" / "sub" / "classes.txt").read_bytes() == b"Labrador retriever\n"


def test_a_new_key_is_made_and_an_old_one_is_kept(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pf_crypt.run(["gen-key", "--wrap-key", "new-key"]) == 0
    assert capsys.readouterr().out == "Wrap key saved to: new-key\n"
    made = (work / "new-key").read_bytes()
    assert len(made) == 16
    assert (work / "new-key").stat().st_mode & 0o777 == 0o600
    assert pf_crypt.run(["gen-key", "-w", "new-key"]) == 255
    assert (work / "new-key").read_bytes() == made


def test_paths_are_normalised(work: Path) -> None:
    assert pf_crypt.run(["e", *KEY, "-i", "plaintext/input.jpg", "-o", "./files//../x"]) == 0
    decrypt((work / "x").read_bytes(), bytes(range(16)), "x")
    assert pf_crypt.run(["d", *KEY, "-V", "-i", "./x", "-o", "y"]) == 0


def test_a_renamed_file_fails_only_with_verify(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pf_crypt.run(["e", *KEY, "-i", "plaintext/input.jpg", "-o", "x"])
    (work / "x").rename(work / "z")
    capsys.readouterr()
    assert pf_crypt.run(["d", *KEY, "-i", "z", "-o", "y", "--verify"]) == 255
    assert "expected 'z', found 'x'" in capsys.readouterr().err
    assert not (work / "y").exists()
    assert pf_crypt.run(["d", *KEY, "-i", "z", "-o", "y"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 255, "Mode not specified"),
        (["-w", "k"], 255, "Mode not specified"),
        (["encrypt", "-i", "a", "-o", "b"], 255, "Wrap key path not specified"),
        (["gen-key"], 255, "Wrap key path not specified"),
        (["encrypt", *KEY, "-o", "b"], 255, "Input path not specified"),
        (["decrypt", *KEY, "-i", "a"], 255, "Output path not specified"),
        (["decrypt", *KEY, "-i", "a", "-o"], 255, "Unknown option: -o"),
        (["frobnicate", *KEY, "-i", "a", "-o", "b"], 255, "Invalid mode"),
        (["encrypt", *KEY, "-i", "none", "-o", "b"], 255, "no such file"),
        (["encrypt", "-w", "none", "-i", "plaintext", "-o", "b"], 255, "no such key file"),
        (["decrypt", *KEY, "-i", "plaintext/input.jpg", "-o", "b"], 255, "not an encrypted file"),
        (["-z", "e", *KEY, "-i", "plaintext/input.jpg", "-o", "b"], 0, "Unknown option: -z"),
        (["--zz", "e", *KEY, "-i", "plaintext/input.jpg", "-o", "b"], 0, "Unknown option: --zz"),
    ],
)
def test_wrong_use(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    assert pf_crypt.run(arguments) == code
    assert said in capsys.readouterr().err


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert pf_crypt.run(["--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.rstrip().splitlines()[-1].startswith("Example: pf_crypt encrypt")
    assert shown.err == ""


def test_one_bad_file_does_not_stop_a_directory(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pf_crypt.run(["e", *KEY, "-i", "plaintext", "-o", "sealed"])
    (work / "sealed" / "a-plain-file").write_bytes(b"x")
    assert pf_crypt.run(["d", *KEY, "-i", "sealed", "-o", "back"]) == 255
    assert "a-plain-file" in capsys.readouterr().err
    assert (work / "back" / "input.jpg").exists()


def test_options_are_read_as_getopt_reads_them() -> None:
    options = [Option("a", "alpha", True), Option("b", "beta", False)]
    parsed = parse(["x", "-b", "-afoo", "--beta", "--alpha=bar=z", "y", "--", "-b"], options)
    assert parsed.words == ["x", "y", "-b"]
    assert parsed.values == {"alpha": "bar=z", "beta": ""}
    assert parse(["-ba", "v", "-"], options).values == {"alpha": "v", "beta": ""}
    assert parse(["-bq", "--alpha"], options).unknown == ["-q", "--alpha"]
