"""The examples of other frameworks: `make demo` of each, and whether its answer is right."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from example_project import Project

CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}
LINE = re.compile(r"(?P<name>\S.*?) +(?P<percentage>\d{1,3}\.\d{4}) %")


def risks_are_right(project: Project) -> None:
    truth = np.load(project.path("test-labels.npy"))
    risks = np.loadtxt(project.path("decrypted", "risks.txt"))
    assert roc_auc_score(truth, risks) > 0.95


def digits_are_right(project: Project) -> None:
    digits = np.loadtxt(project.path("decrypted", "digits.txt"), dtype=int)
    assert (digits == np.load(project.path("test-labels.npy"))).mean() > 0.95


def photograph_is_a_cat(project: Project) -> None:
    lines = project.path("decrypted", "result.txt").read_text().splitlines()
    found = [match for line in lines if (match := LINE.fullmatch(line))]
    assert len(found) == len(lines) == 5
    assert sum(float(each["percentage"]) for each in found if each["name"] in CATS) > 80


def diabetes_is_found(project: Project) -> None:
    answer = project.path("decrypted", "answer.txt").read_text().splitlines()
    assert "drinks four litres a day" in answer[0]
    documents = project.path("plaintext", "documents.txt").read_text().splitlines()
    assert sorted(line.split(maxsplit=1)[1] for line in answer) == sorted(documents)


RESULTS: dict[str, tuple[set[str], Callable[[Project], None]]] = {
    "sklearn": ({"model.joblib", "report.txt", "risks.txt"}, risks_are_right),
    "onnxruntime": ({"result.txt"}, photograph_is_a_cat),
    "openvino": ({"result.txt"}, photograph_is_a_cat),
    "transformer": ({"answer.txt"}, diabetes_is_found),
    "tensorflow": ({"model.weights.h5", "digits.txt"}, digits_are_right),
}
"""Example -> what it leaves, and who says whether that is right."""

TENSORFLOW = pytest.param(
    "tensorflow",
    marks=[
        pytest.mark.long,
        pytest.mark.skipif(
            importlib.util.find_spec("tensorflow") is None,
            reason="TensorFlow is not installed: requirements/tensorflow.txt",
        ),
    ],
)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [*sorted(RESULTS.keys() - {"tensorflow"}), TENSORFLOW])
def test_native_and_enclave_agree(name: str, tmp_path: Path, hash_cache: Path) -> None:
    results, require_right = RESULTS[name]
    project = Project(name, tmp_path, hash_cache)
    printed = project.make("demo")
    assert "every file is the same, byte for byte" in printed
    project.require_same_results(*results)
    project.require_ciphertext_only()
    require_right(project)
