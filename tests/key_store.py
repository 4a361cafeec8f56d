"""A key server's store for tests, and what they wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cloister.cli.main import run
from cloister.provision.audit import AuditLog
from cloister.provision.database import open_database
from cloister.provision.store_key import load_store_key
from key_server import Server, Setting


class Store:
    """A store, its key, and the commands that fill it."""

    def __init__(self, setting: Setting, url: str) -> None:
        self.directory = setting.directory
        self.root = setting.platform.trust_anchor().fingerprint
        self.options = ["--store", url, "--store-key", f"file:{self.directory / 'store.key'}"]
        self.url = url
        assert run(["secret", "new-key", str(self.directory / "store.key")]) == 0

    def policy(self, mrenclave: bytes, *lines: str) -> Path:
        path = self.directory / f"{mrenclave.hex()[:8]}.toml"
        fixed = ["version = 1", f'roots = ["{self.root}"]', f'mrenclave = "{mrenclave.hex()}"']
        path.write_text("\n".join([*fixed, *lines]) + "\n")
        return path

    def put(self, name: str, value: bytes, mrenclave: bytes, *extra: str) -> int:
        source = self.directory / f"{name}.secret"
        source.write_bytes(value)
        policy = self.policy(mrenclave)
        arguments = ["secret", "put", name, str(source), "--policy", str(policy)]
        return run([*arguments, *self.options, *extra])

    def log(self) -> AuditLog:
        key = load_store_key(self.options[3])
        return AuditLog(open_database(self.url), key)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 15 seconds"
        time.sleep(0.1)


def admin_url(server: Server) -> str:
    return f"http://localhost:{server.announced['admin'][1]}"
