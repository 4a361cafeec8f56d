"""Training in the enclave: the same weights as outside, also after a kill, and only encrypted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from example_project import CLOISTER, Project

KILLED_AFTER = 3
EPOCHS = 12


def weights(path: Path) -> str:
    """SHA-256 over the names, shapes and numbers of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in torch.load(path, weights_only=True).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def project(tmp_path: Path, hash_cache: Path) -> Project:
    return Project("training", tmp_path, hash_cache)


# One test, since `make demo` takes long and each process of the tests would run it anew.
@pytest.mark.timeout(600)
def test_training(project: Project) -> None:
    printed = project.make("demo")
    project.require_same_results("checkpoint.pt", "model.pt", "digits.txt")
    project.require_ciphertext_only()
    native = weights(project.path("native", "model.pt"))
    assert weights(project.path("decrypted", "model.pt")) == native

    progress = [f"epoch {epoch} of {EPOCHS}" for epoch in range(1, EPOCHS + 1)]
    assert [line for line in printed.splitlines() if line.startswith("epoch")] == 2 * progress

    digits = np.loadtxt(project.path("decrypted", "digits.txt"), dtype=int)
    labels = np.load(project.path("test-labels.npy"))
    assert (digits == labels).mean() > 0.95

    train_killed_and_resumed(project)
    project.cloister("decrypt", "-k", "wrap-key", "encrypted/model.pt", "resumed.pt", "--any-path")
    assert weights(project.path("resumed.pt")) == native


def train_killed_and_resumed(project: Project) -> None:
    for path in ("model.pt", "checkpoint.pt"):
        project.path("encrypted", path).unlink()
    with project.serving_key("train"):
        with project.start(CLOISTER, "run", "train") as training:
            assert training.stdout is not None
            assert f"epoch {KILLED_AFTER} of {EPOCHS}\n" in training.stdout
            training.kill()
        assert not project.path("encrypted", "model.pt").exists()
        printed = project.cloister("run", "train").splitlines()
    resumed = int(printed[0].removeprefix("resuming after epoch "))
    assert KILLED_AFTER <= resumed < EPOCHS
    assert printed[1:] == [f"epoch {n} of {EPOCHS}" for n in range(resumed + 1, EPOCHS + 1)]
