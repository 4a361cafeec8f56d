"""The examples as their users meet them: a copy of the directory, make, a key server, runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
CLOISTER = str(Path(sys.executable).with_name("cloister"))
_NOT_COPIED = ("plaintext", "native", "encrypted", "decrypted", "certs", "wrap-key", "__pycache__")


class Project:
    """A copy of one example, with keys, caches and a port of its own.

    Args:
        name: directory below ``examples/``.
        directory: an empty one for the copy.
        cache: hash cache, so that the packages are hashed once for all examples.
    """

    def __init__(self, name: str, directory: Path, cache: Path) -> None:
        for shared in ("common.mk", "demo.sh", "roles.sh"):
            shutil.copy(EXAMPLES / shared, directory)
        shutil.copytree(EXAMPLES / "pytorch" / "plaintext", directory / "pytorch" / "plaintext")
        ignored = shutil.ignore_patterns(*_NOT_COPIED, "*.manifest", "*.sgx", "*.sig", "*.index")
        shutil.copytree(EXAMPLES / name, directory / name, ignore=ignored)
        self.directory = directory / name
        self.key_server = f"localhost:{free_port()}"
        self.environment = {
            **{name: os.environ[name] for name in ("HOME", "PATH")},
            "XDG_CONFIG_HOME": str(directory / "config"),
            "XDG_DATA_HOME": str(directory / "data"),
            "XDG_CACHE_HOME": str(cache),
            "NO_COLOR": "1",
        }

    def make(self, *targets: str) -> str:
        """Run make as a user would; return what it printed."""
        variables = {"CLOISTER": CLOISTER, "PYTHON": sys.executable, "KEY_SERVER": self.key_server}
        settings = [f"{name}={value}" for name, value in variables.items()]
        return self.call("make", "--no-print-directory", *targets, *settings)

    def cloister(self, *arguments: str) -> str:
        """Run ``cloister``; return what it printed."""
        return self.call(CLOISTER, *arguments)

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.directory, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command whose standard output will be read."""
        return subprocess.Popen(
            command,
            cwd=self.directory, env=self.environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    @contextlib.contextmanager
    def serving_key(self, *apps: str) -> Iterator[None]:
        """Release the wrap key to built enclaves while the block runs."""
        enclaves = [word for app in apps for word in ("--enclave", app)]
        with self.start(
            CLOISTER, "serve", "--key", "wrap-key", *enclaves, "--listen", self.key_server,
            "--cert", "certs/server.crt", "--cert-key", "certs/server.key",
            "--trust-simulated", "platform.json",
        ) as server:  # fmt: skip
            assert server.stdout is not None
            try:
                assert any(line.startswith("listening") for line in server.stdout)
                yield
            finally:
                server.terminate()

    def wait_for(self, port: int) -> None:
        """Wait until something listens there."""
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
                return
            time.sleep(0.1)
        raise TimeoutError(f"nothing listens on port {port}")

    def require_same_results(self, *results: str) -> None:
        """What the enclave left, decrypted, is what the native run left, byte for byte."""
        native = files_in(self.path("native"))
        assert files_in(self.path("decrypted")) == native
        assert set(results) == native.keys() - files_in(self.path("plaintext")).keys()

    def require_ciphertext_only(self) -> None:
        """No 64 bytes from the middle of any file are on the platform."""
        encrypted = files_in(self.path("encrypted"))
        together = b"".join(encrypted.values())
        plain = files_in(self.path("native"))
        assert encrypted.keys() == plain.keys()
        for name, content in plain.items():
            middle = len(content) // 2
            assert content[middle : middle + 64] not in together, name

    def path(self, *parts: str) -> Path:
        return self.directory.joinpath(*parts)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def files_in(directory: Path) -> dict[str, bytes]:
    """Return every file below ``directory``: relative name -> content."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}
