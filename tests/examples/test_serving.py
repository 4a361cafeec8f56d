"""The service in its enclave: the same answers as natively, and a client that is not deceived."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from example_project import CLOISTER, Project, free_port


@pytest.mark.timeout(400)
def test_serving(tmp_path: Path, hash_cache: Path) -> None:
    project = Project("serving", tmp_path, hash_cache)
    port = free_port()
    printed = project.make("demo", f"LISTEN={port}")
    assert "the same answer as natively" in printed
    answer = project.path("answer.txt").read_text()
    assert "Egyptian cat" in answer.splitlines()[0]
    assert answer == project.path("native", "answer.txt").read_text()
    refuses_what_is_not_the_enclave(project, port)


def refuses_what_is_not_the_enclave(project: Project, port: int) -> None:
    """The same program without an enclave, with an ordinary certificate; then another enclave."""
    service = (
        sys.executable, "-m", "uvicorn", "service:app", "--app-dir", str(project.directory),
        "--port", str(port), "--ssl-certfile", "../certs/server.crt",
        "--ssl-keyfile", "../certs/server.key",
    )  # fmt: skip
    with subprocess.Popen(
        service, cwd=project.path("plaintext"), stderr=subprocess.PIPE, text=True
    ) as outside:
        assert outside.stderr is not None
        assert any("running on" in line for line in outside.stderr)
        refusal = client(project, port)
        assert "MRENCLAVE" not in refusal  # there is no quote that could have one
        outside.terminate()
        assert "POST" not in outside.stderr.read()

    with project.serving_key("service"), project.start(CLOISTER, "run", "service") as inside:
        project.wait_for(port)
        signature = project.path("service.sig")
        signed = bytearray(signature.read_bytes())
        signed[960] ^= 1  # the first byte of MRENCLAVE
        signature.write_bytes(signed)
        assert "MRENCLAVE" in client(project, port)
        inside.terminate()


def client(project: Project, port: int) -> str:
    """Let the client fail; return its one line."""
    url = f"https://localhost:{port}/classify"
    photograph = "../pytorch/plaintext/input.jpg"
    done = subprocess.run(
        [sys.executable, "client.py", url, photograph],
        cwd=project.directory, env=project.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("client.py: refused, nothing was sent: "), done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr
