"""``cloister manifest`` as a person uses it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.cli.main import run

GOOD = 'libos.entrypoint = "{{ program }}"\nsgx.trusted_files = ["file:file"]\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file").touch()
    (tmp_path / "app.manifest.template").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_render(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["manifest", "render", "app.manifest.template", "-D", "program=/x"]) == 0
    rendered = capsys.readouterr().out
    assert rendered == GOOD.replace("{{ program }}", "/x")
    arguments = ["manifest", "render", "app.manifest.template", "-D", "program=/x", "-o", "app"]
    assert run(arguments) == 0
    assert (here / "app").read_text() == rendered


def test_render_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{{ 1 + 1 }}\n")))
    assert run(["manifest", "render", "-"]) == 0
    assert capsys.readouterr().out == "2\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n{{ x }}\n")))
    assert run(["manifest", "render", "-"]) == 2
    assert "standard input:2: template: 'x' is undefined" in capsys.readouterr().err


def test_check_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["manifest", "check", "app.manifest.template", "-D", "program=/x"]) == 0
    assert capsys.readouterr().out == "app.manifest.template: ok\n"


def test_check_reports_everything(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.manifest").write_text("sgx.debug = 1\nsgx.isvsvn = -1\nq = 1\n")
    assert run(["manifest", "check", "bad.manifest"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "cloister: error: bad.manifest: libos: missing, but needed",
        "cloister: error: bad.manifest:1: sgx.debug: expected true or false, without quotes",
        "cloister: error: bad.manifest:2: sgx.isvsvn: -1 is out of range, expected at least 0",
        "cloister: error: bad.manifest:3: q: unknown key; known here: cloister, fs, libos, loader,"
        " sgx, sys",
    ]


def test_check_looks_for_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        'libos.entrypoint = "/x"\nsgx.trusted_files = [\n"file:one",\n"file:file",\n"file:two"]\n'
    )
    (here / "bad.manifest").write_text(text)
    assert run(["manifest", "check", "bad.manifest"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": file:")[0] for line in lines] == [
        "cloister: error: bad.manifest:3: sgx.trusted_files[0]",
        "cloister: error: bad.manifest:5: sgx.trusted_files[2]",
    ]
    assert run(["manifest", "check", "--no-files", "bad.manifest"]) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["check", "none"], "none: there is no such file"),
        (["check", "file", "-D", "a=b"], "-D a=b: file is no template"),
        (["explain", "app.manifest.template"], "app.manifest.template:1: template: 'program' is"),
        (["convert", "app.manifest.template"], "Missing option '--to'"),
    ],
)
def test_mistakes(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["manifest", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_not_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "latin.manifest").write_bytes(b"\xe9")
    assert run(["manifest", "check", "latin.manifest"]) == 2
    assert "latin.manifest: not UTF-8 text" in capsys.readouterr().err


@settings(max_examples=60)
@given(data=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
@pytest.mark.parametrize("name", ["fuzz.manifest", "fuzz.manifest.template"])
def test_no_input_makes_a_traceback(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(data)
    for command in (["check"], ["explain", "--json"], ["convert", "--to", "gramine"]):
        assert run(["manifest", *command, str(file)]) in (0, 2)


def test_explain(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "app.manifest").write_text('libos.entrypoint = "/x"\nsgx.debug = true\n')
    assert run(["manifest", "explain", "app.manifest"]) == 0
    assert "  line 2: sgx.debug: the host reads" in capsys.readouterr().out
    assert run(["manifest", "explain", "--json", "app.manifest"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [remark["key"] for remark in facts["insecure"]] == ["sgx.debug"]


@pytest.mark.parametrize(
    ("mounts", "said"),
    [
        ('{ type = "encrypted", path = "/p", uri = "file:enc/p" }', "encrypted"),
        ('{ type = "encrypted", path = "/all", uri = "file:." }', "encrypted"),
        (
            '{ type = "encrypted", path = "/p", uri = "file:enc" },'
            ' { path = "/q", uri = "file:enc" }',
            "checked",
        ),
    ],
)
def test_explain_says_what_counts_for_a_trusted_file_that_is_encrypted(
    here: Path, capsys: pytest.CaptureFixture[str], mounts: str, said: str
) -> None:
    (here / "app.manifest").write_text(
        f'libos.entrypoint = "/x"\nfs.root.type = "tmpfs"\nfs.mounts = [{mounts}]\n'
        f'sgx.trusted_files = [{{ uri = "file:enc/p", sha256 = "{"0" * 64}" }}]\n'
    )
    assert run(["manifest", "explain", "app.manifest"]) == 0
    told = capsys.readouterr().out
    assert ("whose content is checked" in told) == (said == "checked")
    assert ("the key authenticates" in told) == (said == "encrypted")


def test_explain_knows_an_encrypted_mount_of_everything(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "app.manifest").write_text(
        'libos.entrypoint = "/x"\nfs.root = { type = "encrypted", uri = "file:." }\n'
        f'sgx.trusted_files = [{{ uri = "file:enc/p", sha256 = "{"0" * 64}" }}]\n'
    )
    assert run(["manifest", "explain", "app.manifest"]) == 0
    told = capsys.readouterr().out
    assert "whose content is checked" not in told
    assert "/enc/p, encrypted: the key authenticates" in told


def test_no_new_names_below_proc(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "app.manifest").write_text(
        'libos.entrypoint = "/x"\nfs.mounts = [{ path = "/proc/new/x", uri = "file:." }]\n'
    )
    assert run(["manifest", "check", "app.manifest"]) == 2
    assert "takes no new ones below /proc" in capsys.readouterr().err


def test_gramines_library_that_is_not_installed_is_passed_over(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most of Gramine's manifests trust it; what is to run under Gramine needs it."""
    (here / "app.manifest.template").write_text(
        'libos.entrypoint = "/x"\nsgx.trusted_files = ["file:/nowhere/libsysdb.so", "file:a"]\n'
    )
    (here / "a").write_text("a")
    assert run(["build", "--json", "app.manifest.template"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["trusted_files"] == 1
    assert "passed over: file:/nowhere/libsysdb.so, Gramine's library OS" in told.err
    assert run(["manifest", "check", "app.manifest.template"]) == 0
    assert run(["build", "--format", "gramine", "app.manifest.template"]) == 2
    assert "leave the line out" in capsys.readouterr().err


def test_convert(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "old.manifest").write_text('libos.entrypoint = "/x"\nsgx.thread_num = 8\n')
    arguments = ["manifest", "convert", "old.manifest", "--to", "gramine", "-o", "new.manifest"]
    assert run(arguments) == 0
    assert tomli.loads((here / "new.manifest").read_text())["sgx"]["max_threads"] == 8
    assert "note: sgx.debug is off now" in capsys.readouterr().err
    assert run(["manifest", "convert", "new.manifest", "--to", "graphene"]) == 0
    assert tomli.loads(capsys.readouterr().out)["sgx"]["thread_num"] == 8
