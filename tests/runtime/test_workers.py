"""What Python's libraries make of processes: multiprocessing, asyncio, subprocess, terminals."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from applications import KEY, PROGRAMS, PYTHON, App

TORCH = """\
import json, os, torch
from torch.utils.data import DataLoader, Dataset

class Images(Dataset):
    def __init__(self):
        self.names = sorted(n for n in os.listdir(".") if n.endswith(".pt"))
    def __len__(self):
        return len(self.names)
    def __getitem__(self, n):
        return torch.load(self.names[n])

if __name__ == "__main__":
    for n in range(24):
        torch.save(torch.full((3, 64, 64), float(n)), f"{n:03}.pt")
    results = {}
    for method in ("fork", "spawn"):
        loader = DataLoader(Images(), batch_size=4, num_workers=2, multiprocessing_context=method)
        results[method] = [float(batch.mean()) for batch in loader]
    shared = torch.zeros(10).share_memory_()
    pid = os.fork()
    if pid == 0:
        shared[3] = 7
        os._exit(0)
    os.waitpid(pid, 0)
    results["shared"] = shared.tolist()
    print(json.dumps(results))
"""


@pytest.fixture
def secret(app: App) -> App:
    """An application that works in an encrypted directory."""
    (app.directory / "files").mkdir()
    app.mount("/files", "file:files", "encrypted")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.settings["fs.start_dir"] = '"/files"'
    app.settings["sgx.max_threads"] = "512"
    app.settings["sgx.enclave_size"] = '"1G"'  # the C library sets address space apart for threads
    return app


def test_same_as_native_in_the_enclave(secret: App, tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    native = subprocess.run(
        [PYTHON, str(PROGRAMS / "workers.py")],
        cwd=tmp_path / "native",
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(native.stdout)
    assert len(expected) > 8
    assert "Error" not in native.stdout
    assert json.loads(secret.enclave_python("/programs/workers.py").stdout) == expected


@pytest.mark.long
def test_torch_data_loaders_over_encrypted_files(secret: App, tmp_path: Path) -> None:
    """Workers read the files and hand tensors over in shared memory."""
    import sys

    import torch

    program = secret.directory / "loaders.py"
    program.write_text(TORCH)
    site = Path(torch.__file__).parent.parent
    secret.mount(str(site), f"file:{site}")
    secret.mount("/loaders.py", "file:loaders.py")
    secret.settings["loader.env.PYTHONPATH"] = json.dumps(str(site))
    done = secret.direct([PYTHON, "/loaders.py"])
    assert sys.version_info[:2] == tuple(
        map(int, site.parent.name.removeprefix("python").split("."))
    )
    got = json.loads(done.stdout)
    means = [4 * batch + 1.5 for batch in range(6)]
    assert got["fork"] == got["spawn"] == means
    assert got["shared"] == [0, 0, 0, 7, 0, 0, 0, 0, 0, 0]
    assert not [
        path for path in (secret.directory / "files").iterdir() if b"PK" in path.read_bytes()[:2]
    ]
