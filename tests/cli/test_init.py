"""``cloister init`` and ``cloister try``: from a user's script to the same result in an enclave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.project.kinds import kind_of
from environments import bare_python, cloister_with

SCRIPT = """\
import json, sys
from pathlib import Path
from helpers.count import words

here = Path(__file__).parent
numbers = words((here / "in" / "text.txt").read_text())
Path("result.json").write_text(json.dumps([numbers, sys.argv[1:]]))
"""
MODULE = "def words(text):\n    return len(text.split())\n"
SERVICE = """\
from pathlib import Path
from fastapi import FastAPI

app = FastAPI(title=Path("name.txt").read_text())

@app.get("/hello")
def hello() -> str:
    return "hello"
"""


def cloister(directory: Path, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cloister", *words],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's directory with a program of two modules and one input."""
    home = tmp_path / "home"
    (home / "helpers").mkdir(parents=True)
    (home / "in").mkdir()
    (home / "count.py").write_text(SCRIPT)
    (home / "helpers" / "count.py").write_text(MODULE)
    (home / "in" / "text.txt").write_text("three plain words")
    return home


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python without packages, so that enclaves around it are built in a second."""
    return bare_python(tmp_path_factory.mktemp("environment") / "bare")


def test_from_a_script_to_the_same_result_in_an_enclave(
    home: Path, hash_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Cloister's own Python and all its packages, as it is done where none is named."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(hash_cache))
    made = json.loads(cloister(home, "init", "--json", "count.py", "--fast", "x y").stdout)
    assert made["kind"] == "python"
    assert sorted(made["code"]) == ["count.py", "helpers/count.py"]
    assert made["data"] == ["in/text.txt"]
    assert made["results"] == ["result.json"]
    assert made["elsewhere"] == made["lost"] == []
    project = home / "count-confidential"
    assert (project / "plaintext" / "in" / "text.txt").read_text() == "three plain words"
    assert (project / "wrap-key").stat().st_mode & 0o777 == 0o600
    assert (project / "certs" / "server.key").stat().st_mode & 0o777 == 0o600
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}

    tried = json.loads(cloister(home, "try", "--json", "count-confidential").stdout)
    assert tried["results"] == ["result.json"]
    assert tried["different"] == []
    assert before == {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}


def test_directories_for_results_and_inputs_beside_the_script_s(home: Path, python: str) -> None:
    (home.parent / "shared").mkdir()
    (home.parent / "shared" / "names.txt").write_text("Ada")
    (home / "results" / "deep").mkdir(parents=True)
    (home / "greet.py").write_text(
        'text = open("../shared/names.txt").read()\n'
        'open("results/deep/greeting.txt", "w").write(f"Hello {text}")\n'
    )
    relative = os.path.relpath(python, home)
    made = json.loads(cloister(home, "init", "--json", "--python", relative, "greet.py").stdout)
    assert made["elsewhere"] == [str(home.parent / "shared" / "names.txt")]
    assert made["absolute"] == []
    tried = json.loads(cloister(home, "try", "--json", "greet-confidential").stdout)
    assert (tried["results"], tried["different"]) == (["results/deep/greeting.txt"], [])


def test_empty_directories_are_there(home: Path, python: str) -> None:
    (home / "inbox").mkdir()
    (home / "in" / "later").mkdir()
    (home / ".hidden").mkdir()
    (home / "count.py").write_text(
        SCRIPT + "Path('seen.txt').write_text(str([*Path('inbox').iterdir(),"
        " *Path('in/later').iterdir(), sorted(p.name for p in Path('in').iterdir())]))\n"
    )
    cloister(home, "init", "-o", "project", "--python", python, "count.py")
    assert (home / "project" / "plaintext" / "inbox").is_dir()
    assert not (home / "project" / "plaintext" / ".hidden").exists()
    done = cloister(home, "try", "--json", "project")
    assert json.loads(done.stdout)["different"] == []


def test_a_script_with_its_own_absolute_path_is_told(home: Path) -> None:
    (home / "fixed.py").write_text(f'open("{home}/in/text.txt").read()')
    said = cloister(home, "init", "fixed.py", f"--in={home}/in").stdout
    assert "note: fixed.py has the absolute path of its own directory" in said
    assert f"note: the argument --in={home}/in has" in said


def test_cleaning_keeps_the_only_copy_of_the_results(home: Path) -> None:
    cloister(home, "init", "-o", "project", "count.py")
    result = home / "project" / "encrypted" / "result.json"
    result.parent.mkdir()
    result.write_bytes(b"encrypted")
    subprocess.run(["make", "clean"], cwd=home / "project", check=True, capture_output=True)
    assert result.read_bytes() == b"encrypted"


def test_the_projects_own_commands_build_it_and_name_the_enclave(home: Path, python: str) -> None:
    cloister(home, "init", "-o", "project", "--python", python, "count.py")
    done = subprocess.run(
        ["make", "build", f"CLOISTER={sys.executable} -m cloister"],
        cwd=home / "project",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(
        cloister(home / "project", "sigstruct", "show", "--json", "count.sig").stdout
    )
    policy = (home / "project" / "policy.toml").read_text()
    assert f'mrenclave = "{shown["mr_enclave"]}"' in policy
    readme = (home / "project" / "README.md").read_text()
    assert "`result.json`" in readme
    assert "[[" not in readme
    assert "[%" not in readme


def test_a_service_is_imported_and_asked(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "name.txt").write_text("a service")
    python = Path(cloister_with(tmp_path / "environment", "fastapi")).with_name("python")
    words = ("--json", "--python", str(python), "service.py")
    made = json.loads(cloister(tmp_path, "init", *words).stdout)
    assert (made["kind"], made["data"]) == ("fastapi", ["name.txt"])
    tried = json.loads(cloister(tmp_path, "try", "--json", "service-confidential").stdout)
    assert tried["results"] == ["/openapi.json"]


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import torch.nn as nn", "pytorch"),
        ("from sklearn import svm", "sklearn"),
        ("import onnxruntime as ort", "onnxruntime"),
        ("def f():\n    import openvino", "openvino"),
        ("from keras import layers", "tensorflow"),
        ("import torch\nfrom fastapi import FastAPI", "fastapi"),
        ("from .torch import x\nimport numpy", "python"),
    ],
)
def test_kinds_are_told_by_imports(source: str, kind: str) -> None:
    assert kind_of(source).name == kind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.py"], "absent.py: there is no such script"),
        (["pytorch"], "which script?"),
        (["broken.py"], "the script is not valid Python"),
        (["-o", "in", "count.py"], "in: exists and is not empty"),
    ],
)
def test_wrong_usage_is_told(home: Path, words: list[str], message: str) -> None:
    (home / "broken.py").write_text("def")
    done = cloister(home, "init", *words, expect=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_that_fails_makes_no_project(home: Path) -> None:
    (home / "fails.py").write_text("raise SystemExit(7)")
    done = cloister(home, "init", "fails.py", expect=1)
    assert "fails.py: ended with code 7" in done.stderr
    assert not (home / "fails-confidential").exists()


def test_what_is_no_project_is_not_tried(home: Path) -> None:
    assert "expected one *.manifest.template" in cloister(home, "try", ".", expect=2).stderr


def test_runs_that_differ_are_told(home: Path, python: str) -> None:
    (home / "count.py").write_text(
        "import os, pathlib\npathlib.Path('out').write_text(os.urandom(8).hex())\n"
    )
    cloister(home, "init", "--python", python, "count.py")
    done = cloister(home, "try", "count-confidential", expect=1)
    assert "the two runs wrote different files: out" in done.stderr


@pytest.mark.parametrize("name", ["train it.py", "it's $x; y.py", "-x.py"])
def test_a_script_whose_name_is_no_plain_word(home: Path, name: str, python: str) -> None:
    """The project's commands are for shells and make."""
    (home / name).write_text(SCRIPT)
    made = json.loads(cloister(home, "init", "--json", "--python", python, f"./{name}").stdout)
    assert made["app"] == {"t": "train-it", "i": "it-s--x--y", "-": "x"}[name[0]]
    project = home / made["directory"]
    for word in name.removesuffix(".py").split():
        (project / word).mkdir()
    subprocess.run(["make", "clean"], cwd=project, check=True, stdout=subprocess.DEVNULL)
    assert all((project / word).is_dir() for word in name.removesuffix(".py").split())
    cloister(home, "try", made["directory"])


def test_a_cache_that_cannot_be_written_stops_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/there-is-no-such-place")
    (home / "app.manifest.template").write_text(
        'libos.entrypoint = "/bin/true"\nsgx.trusted_files = ["file:in/"]\n'
    )
    cloister(home, "measure", "app.manifest.template")
