"""``cloister build`` as a person uses it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from applications import CLOISTER
from cloister.cli.main import run
from cloister.files import config_home
from cloister.sgx.sigstruct import Sigstruct

SIGNING = Path(__file__).resolve().parent.parent / "data" / "signing"
FIXED = ["--key", str(SIGNING / "key.pem"), "--libpal", str(SIGNING / "pal.so")]


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file").write_text("content")
    path = tmp_path / "app.manifest.template"
    path.write_text(
        'libos.entrypoint = "{{ program }}"\nsgx.trusted_files = ["file:file"]\n'
        "sgx.isvprodid = 5\nsgx.debug = {{ debug | default('false') }}\n"
    )
    monkeypatch.chdir(tmp_path)
    return path


def test_prints_how_others_recognise_the_enclave(
    template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", str(template), "-D", "program=/x", *FIXED, "--date", "2026-11-22"]
    assert run(arguments) == 0
    sigstruct = Sigstruct.unpack((template.parent / "app.sig").read_bytes())
    printed = capsys.readouterr().out
    assert f"MRENCLAVE   {sigstruct.mr_enclave.hex()}\n" in printed
    assert f"MRSIGNER    {sigstruct.mr_signer.hex()}\n" in printed
    assert "product id  5\n" in printed
    assert "SVN         0\n" in printed
    assert sigstruct.date == 0x20261122
    assert "DEBUG" not in printed


def test_debug_is_said_aloud(template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", str(template), "-D", "program=/x", "-D", "debug=true", *FIXED]) == 0
    assert "anybody on the machine can read this enclave's memory" in capsys.readouterr().out


def test_json(template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", str(template), "-D", "program=/x", *FIXED, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["trusted_files"] == facts["hashed_files"] == 1
    assert facts["trusted_bytes"] == 7
    assert facts["isv_prod_id"] == 5
    assert facts["files"] == [
        str(template.parent / name)
        for name in ("app.manifest", "app.index", "app.sig", "app.manifest.sgx")
    ]


def test_own_key_is_made_once(template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", str(template), "-D", "program=/x", "--libpal", str(SIGNING / "pal.so")]
    assert run(arguments) == 0
    key = config_home() / "enclave-key.pem"
    assert f"made a signing key: {key}" in capsys.readouterr().err
    assert key.stat().st_mode & 0o777 == 0o600
    first = (template.parent / "app.sig").read_bytes()
    assert run(arguments) == 0
    assert capsys.readouterr().err == ""
    assert (template.parent / "app.sig").read_bytes() == first


def test_first_builds_side_by_side_have_one_key(template: Path) -> None:
    command = [*CLOISTER, "build", "-D", "program=/x", "--json"]
    builds = []
    for number in range(4):
        copy = shutil.copy(template, template.with_name(f"app{number}.manifest.template"))
        builds.append(
            subprocess.Popen([*command, copy], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    told = [build.communicate() for build in builds]
    assert [build.returncode for build in builds] == [0] * 4, told
    assert len({json.loads(output)["mrsigner"] for output, _ in told}) == 1
    assert b"".join(errors for _, errors in told).count(b"made a signing key") == 1


def test_own_runtime_is_measured_by_default(
    template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = []
    for libpal in ([], FIXED[2:]):
        arguments = ["build", str(template), "-D", "program=/x", *FIXED[:2], *libpal, "--json"]
        assert run(arguments) == 0
        measured.append(json.loads(capsys.readouterr().out)["mrenclave"])
    assert measured[0] != measured[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["app.manifest.template"], "app.manifest.template:1: template: 'program' is undefined"),
        (["none.manifest.template"], "none.manifest.template: there is no such file"),
        (["app.toml"], "app.toml: the name of a template ends with .manifest.template"),
        (["app.manifest.template", "-D", "program=/x", "--date", "soon"], "date 'soon': expected"),
        (["app.manifest.template", "-D", "1x=2"], "'1x' cannot be a name in a template"),
        (
            ["app.manifest.template", "-D", "program=/x", "--key", "none.pem"],
            "none.pem: there is no such signing key",
        ),
        (
            ["app.manifest.template", "-D", "program=/x", "--libpal", "none.so"],
            "none.so: there is no such runtime image",
        ),
        (
            ["app.manifest.template", "-D", "program=/x", "--libpal", "file"],
            "runtime image: 7 bytes, too short for an ELF file",
        ),
    ],
)
def test_mistakes(
    template: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert run(["build", *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert not (template.parent / "app.sig").exists()


def test_direct_mode(template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "--mode", "direct", str(template), "-D", "program=/x"]) == 0
    assert capsys.readouterr().out == f"wrote       {template.parent / 'app.manifest'}\n"
    assert not (template.parent / "app.sig").exists()


def test_as_a_program_of_its_own(template: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "build", template.name, "-D", "program=/x", *FIXED],
        cwd=template.parent,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "MRENCLAVE" in done.stdout


SURROUNDINGS = [
    {"LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "1"},
    {"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "2", "COLUMNS": "30"},
]


def test_surroundings_leave_no_trace(tmp_path: Path) -> None:
    """Umask, locale, time zone, hash seed, order of the directory, and where it lies."""
    names = ["b", "B", "é", "a/x", "a.b", "a/é", "_"]
    results = []
    for number, (environment, umask) in enumerate(zip(SURROUNDINGS, (0o022, 0o077), strict=True)):
        work = tmp_path / f"{number}" / "work"
        for name in names if number else reversed(names):
            (work / "dir" / name).parent.mkdir(parents=True, exist_ok=True)
            (work / "dir" / name).write_text(name)
        (work / "app.manifest.template").write_text(
            'libos.entrypoint = "/x"\nsgx.trusted_files = ["file:dir/", "file:dir/b"]\n'
            "{% for name in ['B', 'a', 'c'] | sort %}loader.env.{{ name }} = '1'\n{% endfor %}"
        )
        for form in ("gramine", "cloister"):
            options = [*FIXED, "--date", "2026-11-22", "--format", form]
            subprocess.run(
                [sys.executable, "-m", "cloister", "build", "app.manifest.template", *options],
                cwd=work,
                env=os.environ | environment,
                umask=umask,
                check=True,
                capture_output=True,
            )
            results.append({path.name: path.read_bytes() for path in work.glob("app.*")})
    assert results[:2] == results[2:]
    assert results[0]["app.manifest.sgx"].count(b"[[sgx.trusted_files]]") == len(names)


def test_rendering_in_a_second_process_changes_nothing(template: Path) -> None:
    """As a command of its own, a build renders ahead; mistakes are told all the same."""
    command = [sys.executable, "-m", "cloister", "build", template.name, *FIXED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "app.manifest.template:1: template: 'program' is undefined" in done.stderr
    command += ["-D", "program=/x", "-D", "debug=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "app.manifest.template:4: sgx.debug: expected true or false" in done.stderr
    command[-1] = "debug=true"
    subprocess.run(command, check=True, capture_output=True)
    ahead = (template.parent / "app.manifest.sgx").read_bytes()
    assert run(["build", template.name, *FIXED, "-D", "program=/x", "-D", "debug=true"]) == 0
    assert (template.parent / "app.manifest.sgx").read_bytes() == ahead


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv (util-linux)")
def test_what_the_builder_may_not_read_is_told_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "files").mkdir()
    for name in ("open", "closed"):
        (tmp_path / "files" / name).write_text(name)
    (tmp_path / "files" / "closed").chmod(0)
    (tmp_path / "m.manifest.template").write_text(
        'libos.entrypoint = "/x"\nsgx.enclave_size = "64M"\nsgx.trusted_files = ["file:files/"]\n'
    )
    obedient = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    words = [*(obedient if os.geteuid() == 0 else ()), *CLOISTER, "build", "m.manifest.template"]
    for _ in range(2):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "note: not trusted, because you may not read it: " in done.stderr
        assert "files/closed" in done.stderr
        assert "trusted     1 files" in done.stdout
