"""A run that is recorded, for tests of its record and its page: hostile names, denials, a key."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from shlex import quote
from typing import Any

from applications import CLOISTER, App
from example_project import free_port

MARKUP = '<img src="http:h.example" onerror=alert(1)>'
HOSTILE = "<b>&amp; \"'\x1b[31m\u202e.txt"
SCRIPT = f"""
read line < /data/in.txt
echo "$line" > /data/{quote(HOSTILE)}
cat {quote("/trusted/<script>alert(1).txt")} /open/given.txt > /open/taken.txt
echo 0123456789 > /tmp/a
echo 0123456789 > /tmp/b
cat /dev/attestation/quote /dev/attestation/quote > /dev/null
cat /trusted/unlisted.txt
cat /trusted/unlisted.txt
cat /etc/{quote(MARKUP)}
exit 3
"""


@dataclasses.dataclass
class Recorded:
    """A run that was recorded, and the owner's side of it."""

    directory: Path
    built: dict[str, Any]
    record: dict[str, Any]
    page: str
    errors: str

    def files(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the files of a kind by path."""
        (found,) = [files for files in self.record["files"] if files["kind"] == kind]
        return {file["path"]: file for file in found["listed"]}


def record_run(directory: Path) -> Recorded:
    """Let a shell in an enclave get its key from a key server and do what it may not."""
    app = App(directory)
    port = free_port()
    for name in ("plain", "trusted", "open", "etc"):
        (directory / name).mkdir()
    (directory / "plain" / "in.txt").write_text("the owner's line\n" * 1000)
    (directory / "trusted" / "<script>alert(1).txt").write_text("t" * 5000)
    (directory / "trusted" / "unlisted.txt").write_text("host")
    (directory / "open" / "given.txt").write_text("given")
    (directory / "etc" / MARKUP).write_text("host")
    app.cloister("key", "new", "wrap-key")
    app.cloister("encrypt", "-k", "wrap-key", "plain", "data")
    app.cloister("certs", "new", "certs")
    app.cloister("platform", "export", "platform.json")
    app.mount("/data", "file:data", "encrypted", key_name="data")
    app.mount("/trusted", "file:trusted")
    app.mount("/etc", "file:etc")
    app.mount("/open", "file:open")
    app.mount("/tmp", "", "tmpfs")
    app.settings["sgx.allowed_files"] = '["file:open"]'
    app.settings["sgx.remote_attestation"] = '"dcap"'
    app.settings["cloister.keys"] = (
        f'[{{ name = "data", servers = "localhost:{port}", ca = "/certs/ca.crt" }}]'
    )
    app.mount("/certs", "file:certs")
    app.trusted += ["file:certs/ca.crt", "file:trusted/<script>alert(1).txt"]
    app.build_shell()
    with subprocess.Popen(
        [*CLOISTER, "serve", "--key", "data=wrap-key", "--enclave", "app", "--audit", "audit.db",
         "--cert", "certs/server.crt", "--cert-key", "certs/server.key",
         "--listen", f"localhost:{port}", "--trust-simulated", "platform.json"],
        cwd=directory, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            assert any(line.startswith("listening") for line in server.stdout)
            done = app.cloister("run", "--record", "run.json", "app", "-c", SCRIPT, expect=3)
        finally:
            server.terminate()
    audit = app.cloister("audit", "show", "--store", "audit.db", "--json").stdout
    (directory / "audit.json").write_text(audit)
    app.cloister("report", "run.json", "--audit", "audit.json", "-o", "page.html")
    return Recorded(
        directory=directory,
        built=json.loads(app.built),
        record=json.loads((directory / "run.json").read_text()),
        page=(directory / "page.html").read_text(encoding="utf-8"),
        errors=done.stderr,
    )
