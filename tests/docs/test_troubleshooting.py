"""Every situation of docs/troubleshooting.md: its commands are run, and print what it shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from applications import PYTHON, SIGNING_KEY, App
from cloister.encrypted.keys import read_wrap_key
from cloister.platforms.simulated import SimulatedPlatform
from environments import bare_python
from signing import IMAGE, PARAMETERS, signed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
ANYTHING = "…"


def situations() -> dict[str, list[tuple[str, list[str]]]]:
    """Return the page's commands with what it says they print: heading -> (command, lines)."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        commands = found.setdefault(section.partition("\n")[0], [])
        for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
            for line in block.splitlines():
                if line.startswith("$ "):
                    commands.append((line[2:], []))
                else:
                    commands[-1][1].append(line)
    return found


SITUATIONS = situations()
ENVIRONMENTS = {
    "The CA's certificate is missing": {"CA": "/certs/ca.crt", "SERVERS": "localhost:1"},
    "The key server's name does not fit its certificate": {"SERVERS": "127.0.0.1:{port}"},
    "The key server cannot be reached": {"SERVERS": "localhost:1"},
}
"""What the platform, not the manifest, chooses in these: the servers and the CA's path."""


class Project:
    """One directory in which everything lies that the page speaks of."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "NO_COLOR": "1",
            **{
                name: str(directory.parent / name.lower())
                for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
            },
        }
        self.files()
        self.manifests()
        self.quotes()

    def call(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cloister", *arguments],
            cwd=self.directory, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def shell(self, command: str, variables: dict[str, str]) -> list[str]:
        """Run a command as the page shows it; return the lines of both streams."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        return done.stdout.splitlines()

    def files(self) -> None:
        data = self.directory / "data"
        data.mkdir()
        for name in ("labels.csv", "config.json", "model.bin"):
            (data / name).write_text(f"{name}\n")
        (data / "helper.py").write_text("X = 1\n")
        subprocess.run([PYTHON, "-m", "compileall", "-q", str(data)], check=True)
        (self.directory / "photo.jpg").write_bytes(bytes(range(256)))
        for key in ("wrap-key", "other-key"):
            self.call("key", "new", key)
        encrypted = self.directory / "encrypted"
        encrypted.mkdir()
        self.call("encrypt", "-k", "wrap-key", "photo.jpg", "encrypted/photo.jpg")
        shutil.copy(encrypted / "photo.jpg", encrypted / "renamed.jpg")
        for name in ("notes.txt", "result.txt"):
            (encrypted / name).write_text("plain\n")
        self.call("certs", "new", "certs", "--host", "localhost")
        (self.directory / "certs" / "ca.crt").rename(self.directory / "certs" / "real-ca.crt")

    def manifests(self) -> None:
        entry = 'libos.entrypoint = "/bin/cat"\n'
        tree = ", ".join(f'{{ path = "/{d}", uri = "file:/{d}" }}' for d in ("bin", "lib", "lib64"))
        for name, text in {
            "typo.manifest": f'{entry}loader.argv = ["cat"]\nsgx.enclave_sise = "256M"\n'
            'sgx.trusted_file = ["file:data/labels.csv"]\n',
            "proc.manifest": f'{entry}fs.mounts = [{{ path = "/proc", uri = "file:/proc" }}]\n',
            "fixed.manifest": f"{entry}fs.mounts = [{tree}]\n",
            "small.manifest.template": f'{entry}sgx.enclave_size = "1M"\nsgx.max_threads = 64\n',
            "bare.manifest.template": f'{entry}fs.mounts = [{{ path = "/bin", uri = "file:/bin" }}]'
            '\nsgx.trusted_files = ["file:/bin/cat"]\n',
        }.items():
            (self.directory / name).write_text(text)
        self.call("build", "--key", str(SIGNING_KEY), "bare.manifest.template")
        self.python()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            self.shells()
        with (self.directory / "data" / "model.bin").open("a") as stream:
            stream.write("retrained\n")

    def python(self) -> None:
        app = App(self.directory)
        python = bare_python(self.directory / "python")
        app.settings |= {
            "libos.entrypoint": f'"{python}"',
            "loader.insecure__use_cmdline_argv": "true",
            "loader.env.PYTHONPATH": '"/data"',
            "loader.env.PYTHONDONTWRITEBYTECODE": '"1"',
            "loader.env.MALLOC_ARENA_MAX": '"1"',  # threads are to run out before memory does
            "sgx.enclave_size": '"256M"',
            "sgx.max_threads": "8",
        }
        app.mount("/data", "file:data")
        app.trusted = ["file:data/helper.py"]
        text = app.text(
            prologue=f"{{% set python = python_environment('{python}') %}}",
            mounts="{% for d in python.directories %}"
            '{ path = "{{ d }}", uri = "file:{{ d }}" }, {% endfor %}',
            trusted='{% for f in python.trusted_files %}"{{ f }}", {% endfor %}',
        )
        (self.directory / "python.manifest.template").write_text(text)
        self.call("build", "--key", str(SIGNING_KEY), "python.manifest.template")

    def shells(self) -> None:
        """Build ``app``, whose key is in its manifest, and ``protected``, which fetches it."""
        key = read_wrap_key(self.directory / "wrap-key").hex()
        for name, settings in {
            "protected": {
                "sgx.remote_attestation": '"dcap"',
                "loader.env.SECRET_PROVISION_CONSTRUCTOR": '"1"',
                "loader.env.SECRET_PROVISION_SET_KEY": '"default"',
                "loader.env.SECRET_PROVISION_SERVERS": "{ passthrough = true }",
                "loader.env.SECRET_PROVISION_CA_CHAIN_PATH": "{ passthrough = true }",
            },
            "app": {"fs.insecure__keys.default": f'"{key}"'},
        }.items():
            app = App(self.directory)
            app.settings |= settings
            app.mount("/data", "file:data")
            app.mount("/certs", "file:certs")
            app.mount("/encrypted", "file:encrypted", kind="encrypted", key_name="default")
            absolute = self.directory / "data" / "config.json"
            app.trusted = ["file:certs/real-ca.crt", "file:data/model.bin", f"file:{absolute}"]
            app.build_shell()
            if name != "app":
                for built in self.directory.glob("app.*"):
                    built.rename(built.with_name(built.name.replace("app", name, 1)))

    def quotes(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_DATA_HOME", self.environment["XDG_DATA_HOME"])
            platform = SimulatedPlatform.of_this_machine()
            for name, flags in (("quote.bin", 4), ("debug.bin", 6)):
                enclave = platform.start(
                    manifest=b"m", sigstruct=signed(b"m", flags=flags).pack(), image=IMAGE,
                    **PARAMETERS,
                )  # fmt: skip
                (self.directory / name).write_bytes(enclave.quote(bytes(64)))
        self.call("platform", "export", "platform.json")
        self.call("platform", "export", "out-of-date.json", "--tcb-status", "OutOfDate")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    directory = tmp_path_factory.mktemp("troubleshooting") / "project"
    directory.mkdir()
    return Project(directory)


@pytest.fixture(scope="module")
def key_server(project: Project) -> Iterator[int]:
    """A key server whose certificate is for localhost alone; yields its port."""
    with subprocess.Popen(
        [
            sys.executable, "-m", "cloister", "serve", "--key", "wrap-key",
            "--enclave", "protected", "--cert", "certs/server.crt",
            "--cert-key", "certs/server.key", "--listen", "127.0.0.1:0",
            "--trust-simulated", "platform.json", "--json",
        ],
        cwd=project.directory, env=project.environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["port"]
        finally:
            process.terminate()


def variables(title: str, port: int) -> dict[str, str]:
    chosen = ENVIRONMENTS.get(title, {})
    return {
        "SECRET_PROVISION_CA_CHAIN_PATH": chosen.get("CA", "/certs/real-ca.crt"),
        "SECRET_PROVISION_SERVERS": chosen.get("SERVERS", "").format(port=port),
    }


def assert_printed(printed: list[str], expected: list[str]) -> None:
    """Compare line by line; ``…`` is any text in a line, or any lines when it stands alone."""
    pattern = "".join(
        r"(?:.*\n)*?"
        if line == ANYTHING
        else ".+?".join(map(re.escape, line.split(ANYTHING))) + r"\n"
        for line in expected
    )
    text = "".join(f"{line}\n" for line in printed)
    assert re.fullmatch(pattern, text), f"the page says\n{expected}\nbut this was printed\n{text}"


def test_there_are_twenty() -> None:
    assert len(SITUATIONS) == 20
    assert all(SITUATIONS.values())
    assert set(ENVIRONMENTS) <= set(SITUATIONS)


@pytest.mark.parametrize("title", SITUATIONS)
def test_the_page_shows_what_is_printed(title: str, project: Project, key_server: int) -> None:
    for command, expected in SITUATIONS[title]:
        assert_printed(project.shell(command, variables(title, key_server)), expected)


def test_the_protected_enclave_gets_its_key_when_nothing_is_wrong(
    project: Project, key_server: int
) -> None:
    """So that the three situations about key servers fail for the reason that they name."""
    printed = project.shell(
        "cloister run protected -c true",
        {
            "SECRET_PROVISION_CA_CHAIN_PATH": "/certs/real-ca.crt",
            "SECRET_PROVISION_SERVERS": f"localhost:{key_server}",
        },
    )
    assert printed[1:] == [f"cloister: key default released by localhost:{key_server}"]
