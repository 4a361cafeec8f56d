"""``cloister trace``: the proposed manifest builds, and the program then runs in its enclave."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import tomli

from applications import CLOISTER, PYTHON, SIGNING_KEY
from cloister.cli.main import run
from environments import bare_python

JOB = """\
import os, pathlib, sys, tempfile
text = pathlib.Path(sys.argv[1]).read_text()
with tempfile.TemporaryFile() as stream:
    stream.write(b"x")
pathlib.Path(sys.argv[2]).write_text(text.upper())
print(text, os.environ.get("WORD"), os.environ.get("HOME"))
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "in.txt").write_text("hello")
    (tmp_path / "out").mkdir()
    return tmp_path


def cloister(work: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*CLOISTER, *arguments], cwd=work, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == expect, done.stderr
    return done


def test_from_a_program_to_its_enclave(work: Path) -> None:
    command = ["--", PYTHON, "job.py", "in.txt", "out/result"]
    traced = cloister(
        work, "trace", "--test-key", "-e", "WORD=word", "-o", "t.manifest.template", *command,
    )  # fmt: skip
    assert traced.stdout == "hello word None\n"
    assert (work / "out" / "result").read_text() == "HELLO"
    proposed = (work / "t.manifest.template").read_text()
    manifest = tomli.loads(proposed)
    trusted = manifest["sgx"]["trusted_files"]
    assert {"file:job.py", "file:in.txt", f"file:{PYTHON}"} <= set(trusted)
    assert len(trusted) == len(set(trusted)) < 200
    assert "allowed_files" not in manifest["sgx"]

    assert "cloister: written in the clear by this run, remove before" in traced.stderr
    (work / "out" / "result").unlink()
    cloister(work, "build", "--key", str(SIGNING_KEY), "t.manifest.template")
    inside = cloister(work, "run", "t")
    assert inside.stdout == "hello word None\n"
    assert "denied" not in inside.stderr
    assert (work / "out" / "result").read_bytes().startswith(b"GRAFS_PF")


PROGRAM = """\
set -e
read -r first < in.txt
echo "$first" > state.tmp
mv state.tmp state.txt
echo "$first" >> log.txt
read -r rc < "$HOME/.rc"
: > /tmp/mark-of-this-test
rm /tmp/mark-of-this-test
echo "$first $rc $(cat state.txt)" | tr a-z A-Z
"""


def test_a_shell_script_with_configuration_and_files_beside_its_inputs(work: Path) -> None:
    """Nothing but what the notes ask for is done between the trace and the enclave."""
    (work / "job.sh").write_text(PROGRAM)
    (work / "home").mkdir()
    (work / "home" / ".rc").write_text("rc\n")
    (work / "in.txt").write_text("hello\n")
    environment = ["-e", f"HOME={work}/home", "-e", "PATH=/usr/bin:/bin"]
    command = ["--", "/bin/sh", "job.sh"]
    traced = cloister(
        work, "trace", "--test-key", *environment, "-o", "t.manifest.template", *command
    )
    assert traced.stdout == "HELLO RC HELLO\n"
    outputs = [work / "state.txt", work / "log.txt"]
    for output in outputs:
        assert str(output) in traced.stderr
        output.unlink()
    cloister(work, "build", "--key", str(SIGNING_KEY), "t.manifest.template")
    inside = cloister(work, "run", "t")
    assert inside.stdout == "HELLO RC HELLO\n"
    assert "refused" not in inside.stderr
    assert all(output.read_bytes().startswith(b"GRAFS_PF") for output in outputs)


def test_merging_what_another_run_opens(work: Path) -> None:
    cloister(work, "trace", "-o", "t.manifest", "--", "/bin/sh", "-c", "cat in.txt")
    text = (work / "t.manifest").read_text()
    assert "file:in.txt" in text
    (work / "t.manifest").write_text(text.replace('  "file:in.txt",\n', ""))
    merged = cloister(work, "trace", "--manifest", "t.manifest", "-o", "merged.manifest")
    assert "cloister: trusted now: file:in.txt" in merged.stderr
    old = tomli.loads((work / "t.manifest").read_text())
    new = tomli.loads((work / "merged.manifest").read_text())
    assert set(new["sgx"]["trusted_files"]) == {*old["sgx"]["trusted_files"], "file:in.txt"}
    assert new["fs"] == old["fs"]


ARGUMENT = "print(open('in.txt').read(), open('two words.txt').read())"
TEMPLATE = """\
# What the author wrote stays.
{% set python = python_environment(interpreter) %}
libos.entrypoint = "{{ python.executable }}"
loader.argv = ["{{ python.executable }}", "-c", "ARGUMENT"]
loader.env.PYTHONDONTWRITEBYTECODE = "1"
fs.start_dir = "/work"
fs.mounts = [
  { path = "/work", uri = "file:." },
{% for directory in python.directories %}
  { path = "{{ directory }}", uri = "file:{{ directory }}" },
{% endfor %}
]
TRUSTED[
{% for uri in python.trusted_files %}
  "{{ uri }}",
{% endfor %}
]
""".replace("ARGUMENT", ARGUMENT)


@pytest.mark.parametrize(
    "array",
    ["sgx.trusted_files = ", "[sgx]\ntrusted_files = ", 'sgx."trusted_files" = '],
    ids=["dotted", "table", "quoted"],
)
def test_merging_into_a_template(work: Path, array: str) -> None:
    """Files are added to the template, if that has the intended effect; else its author is told."""
    (work / "two words.txt").write_text("world")
    template = TEMPLATE.replace("TRUSTED", array)
    definition = ("-D", f"interpreter={bare_python(work / 'python')}")
    (work / "t.manifest.template").write_text(template)
    words = ["--manifest", "t.manifest.template", *definition]
    traced = cloister(work, "trace", *words, "-o", "new.manifest.template")
    merged = (work / "new.manifest.template").read_text()
    if '"' in array:
        assert merged == template
        assert "add to sgx.trusted_files yourself: file:in.txt" in traced.stderr
        return
    added = '  "file:in.txt",\n  "file:two words.txt",\n'
    assert merged == template.replace(array + "[\n", array + "[\n" + added + "\n")
    assert "trusted now: file:two words.txt" in traced.stderr
    cloister(work, "build", "--key", str(SIGNING_KEY), *definition, "new.manifest.template")
    assert cloister(work, "run", "new").stdout == "hello world\n"
    again = cloister(work, "trace", "--manifest", "new.manifest.template", *definition)
    assert again.stdout.endswith(merged)


HOSTILE = "{{ cycler.__init__.__globals__.os.popen('touch pwned').read() }}"
READ_ALL = "import os; [print(open(name).read()) for name in os.listdir() if '{' in name]"


def test_a_files_name_is_never_template_code(work: Path) -> None:
    """Whoever named a file of a data set must not run commands where it is traced or built."""
    (work / HOSTILE).write_text("content")
    definition = ("-D", f"interpreter={bare_python(work / 'python')}")
    template = TEMPLATE.replace("TRUSTED", "sgx.trusted_files = ")
    template = template.replace(ARGUMENT, READ_ALL)
    (work / "t.manifest.template").write_text(template)
    cloister(
        work, "trace", "--manifest", "t.manifest.template", *definition, "-o",
        "new.manifest.template",
    )  # fmt: skip
    cloister(work, "trace", "-o", "own.manifest.template", "--", PYTHON, "-c", READ_ALL)
    for app in ("new", "own"):
        merged = (work / f"{app}.manifest.template").read_text()
        assert "popen" in merged
        cloister(work, "build", "--key", str(SIGNING_KEY), *definition, f"{app}.manifest.template")
        assert cloister(work, "run", app).stdout == "content\n"
    assert not (work / "pwned").exists()


def test_the_programs_own_code_comes_out(work: Path) -> None:
    done = cloister(work, "trace", "-o", "t.manifest", "--", "/bin/sh", "-c", "exit 7", expect=7)
    assert "ended with code 7; what it had not yet opened is missing" in done.stderr
    assert (work / "t.manifest").exists()


def test_open_outputs_are_said_aloud(work: Path) -> None:
    command = ["/bin/sh", "-c", "echo x > out/y"]
    done = cloister(work, "trace", "--allow-outputs", "-o", "t.manifest", "--", *command)
    assert "cloister: INSECURE: what the program writes is open to the host" in done.stderr
    assert tomli.loads((work / "t.manifest").read_text())["sgx"]["allowed_files"] == ["file:out/y"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "which program? Give COMMAND, or --manifest"),
        (["no-such-program"], "no-such-program: there is no such program"),
        (["-e", "X", "true"], "--env 'X': expected NAME=VALUE"),
        (["--manifest", "none"], "none: there is no such manifest"),
        (["--manifest", "job.py", "-D", "a=b"], "job.py is no template, so that -D means nothing"),
        (["-D", "a=b", "--", "true"], "-D is for the template that --manifest names"),
        (["--manifest", "none", "-e", "A=b"], "--env, keys and --allow-outputs are for runs with"),
        (["--key-server", "x:1", "true"], "--key-server and --ca-chain go together"),
        (["--key-server", "x:1", "--ca-chain", "none", "true"], "none: there is no such file"),
    ],
)
def test_mistakes(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", *arguments]) == 2
    assert expected in capsys.readouterr().err
