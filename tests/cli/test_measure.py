"""``cloister measure``: the same digest as a build, and the cause when it is another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.cli.main import run
from cloister.sgx.sigstruct import Sigstruct

SIGNING = Path(__file__).resolve().parent.parent / "data" / "signing"
LIBPAL = ["--libpal", str(SIGNING / "pal.so")]
TEMPLATE = """\
libos.entrypoint = "/x"
loader.env.LANG = "{{ lang | default('C') }}"
sgx.trusted_files = ["file:dir/"]
"""


@pytest.fixture(autouse=True)
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").mkdir()
    for name in "abc":
        (tmp_path / "dir" / name).write_text(name)
    (tmp_path / "app.manifest.template").write_text(TEMPLATE)
    key = ["--key", str(SIGNING / "key.pem")]
    assert run(["build", "app.manifest.template", *LIBPAL, *key]) == 0
    return tmp_path


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[list[str]]]:
    capsys.readouterr()
    code = run(["measure", "app.manifest.template", "--json", "--against", "app", *arguments])
    found = json.loads(capsys.readouterr().out)["differences"]
    return code, [[item["input"], item["text"]] for item in found]


def test_same_as_the_build(capsys: pytest.CaptureFixture[str]) -> None:
    built = f"MRENCLAVE   {Sigstruct.unpack(Path('app.sig').read_bytes()).mr_enclave.hex()}"
    before = sorted(Path().iterdir())
    for file in ("app.manifest.template", "app.manifest", "app.manifest.sgx"):
        assert run(["measure", file, *LIBPAL]) == 0
        assert capsys.readouterr().out == built + "\n"
    assert sorted(Path().iterdir()) == before
    assert run(["measure", "app.manifest.template", *LIBPAL, "--against", "app"]) == 0
    assert capsys.readouterr().out == f"{built}\nsame        as app was signed for\n"


def test_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dir/a").write_text("A")
    Path("dir/b").unlink()
    Path("dir/new").touch()
    assert measured(capsys, *LIBPAL) == (
        3,
        [
            ["file", "dir/a: changed"],
            ["file", "dir/b: gone"],
            ["file", "dir/new: new"],
        ],
    )


def test_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    assert measured(capsys) == (3, [["runtime", "the runtime image is another one"]])


def test_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    assert measured(capsys, *LIBPAL, "-D", "lang=de") == (
        3,
        [["manifest", "loader.env.LANG: was 'C', is 'de'"]],
    )
    Path("app.manifest.template").write_text(TEMPLATE + "sgx.isvsvn = 1\nsgx.max_threads = 8\n")
    assert measured(capsys, *LIBPAL) == (
        3,
        [
            ["manifest", "sgx.isvsvn: was absent, is 1"],
            ["manifest", "sgx.max_threads: was absent, is 8"],
        ],
    )


def test_everything_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dir/a").write_text("A")
    code, found = measured(capsys, "-D", "lang=de")
    assert code == 3
    assert [item[0] for item in found] == ["runtime", "manifest", "file"]


def test_other_words(capsys: pytest.CaptureFixture[str]) -> None:
    lines = TEMPLATE.splitlines()
    Path("app.manifest.template").write_text("\n".join(reversed(lines)))
    ((cause, text),) = measured(capsys, *LIBPAL)[1]
    assert cause == "manifest"
    assert "in other words" in text


def test_against_gramines_signed_files(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(SIGNING / "app.manifest"), *LIBPAL, "--against", str(SIGNING / "app")]
    assert run(["measure", *arguments]) == 0


def test_big_files_in_both_formats(capsys: pytest.CaptureFixture[str]) -> None:
    """An index knows big files by their chunks, Gramine's manifest as a whole."""
    Path("dir/big").write_bytes(bytes(100_000))
    key = ["--key", str(SIGNING / "key.pem")]
    assert run(["build", "app.manifest.template", *LIBPAL, *key]) == 0
    assert measured(capsys, *LIBPAL) == (0, [])
    assert run(["build", "app.manifest.template", *LIBPAL, *key, "--format", "gramine"]) == 0
    assert measured(capsys, *LIBPAL, "--format", "gramine") == (0, [])
    assert all(item[0] == "manifest" for item in measured(capsys, *LIBPAL)[1])
    Path("dir/big").write_bytes(bytes(100_001))
    assert ["file", "dir/big: changed"] in measured(capsys, *LIBPAL)[1]
    assert ["file", "dir/big: changed"] in measured(capsys, *LIBPAL, "--format", "gramine")[1]


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["measure", "none.manifest"]) == 2
    assert run(["measure", "app.manifest", "-D", "a=b"]) == 2
    assert "app.manifest is no template" in capsys.readouterr().err
    assert run(["measure", "app.manifest.template", "--against", "none"]) == 2
