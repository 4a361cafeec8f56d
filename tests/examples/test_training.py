"""Training in the enclave: the same weights as outside, also after a kill, and only encrypted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from example_project import CLOISTER, Project, files_in

KILLED_AFTER = 3
EPOCHS = 12


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, hash_cache: Path) -> tuple[Project, str]:
    """The example after ``make demo``, and what that printed."""
    project = Project("training", tmp_path_factory.mktemp("example"), hash_cache)
    return project, project.make("demo")


def weights(path: Path) -> str:
    """SHA-256 over the names, shapes and numbers of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in torch.load(path, weights_only=True).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.timeout(400)
def test_native_and_enclave_runs_give_identical_weights(demo: tuple[Project, str]) -> None:
    project, _ = demo
    native, decrypted = project.path("native"), project.path("decrypted")
    assert weights(decrypted / "model.pt") == weights(native / "model.pt")
    assert files_in(decrypted) == files_in(native)
    assert {"checkpoint.pt", "model.pt", "digits.txt"} <= files_in(decrypted).keys()


def test_the_model_that_the_enclave_trained_reads_digits(demo: tuple[Project, str]) -> None:
    project, _ = demo
    digits = np.loadtxt(project.path("decrypted", "digits.txt"), dtype=int)
    labels = np.load(project.path("test-labels.npy"))
    assert (digits == labels).mean() > 0.95


def test_progress_is_shown_and_nothing_else(demo: tuple[Project, str]) -> None:
    _, printed = demo
    progress = [f"epoch {epoch} of {EPOCHS}" for epoch in range(1, EPOCHS + 1)]
    assert [line for line in printed.splitlines() if line.startswith("epoch")] == 2 * progress


def test_the_platform_sees_only_ciphertext(demo: tuple[Project, str]) -> None:
    project, _ = demo
    assert files_in(project.path("encrypted")).keys() == files_in(project.path("native")).keys()
    encrypted = b"".join(files_in(project.path("encrypted")).values())
    for name, content in files_in(project.path("native")).items():
        middle = len(content) // 2
        assert content[middle : middle + 64] not in encrypted, name


@pytest.mark.timeout(400)
def test_a_killed_training_goes_on_and_ends_with_the_same_weights(
    demo: tuple[Project, str], tmp_path: Path
) -> None:
    project, _ = demo
    for path in ("model.pt", "checkpoint.pt", "digits.txt"):
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
    model = tmp_path / "model.pt"
    project.cloister("decrypt", "-k", "wrap-key", "encrypted/model.pt", str(model))
    assert weights(model) == weights(project.path("native", "model.pt"))
