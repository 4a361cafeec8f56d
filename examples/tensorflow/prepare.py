"""Write the data set that train.py learns from into plaintext/.

The 1,797 handwritten digits that scikit-learn ships: four in five to learn from, the others to be
classified. The labels of those stay with the owner, in test-labels.npy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Split the data set and save its parts as NumPy arrays."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    plaintext = HERE / "plaintext"
    plaintext.mkdir(exist_ok=True)
    for name, part in zip(("train-images", "test-images", "train-labels"), parts, strict=False):
        np.save(plaintext / f"{name}.npy", part)
    np.save(HERE / "test-labels.npy", parts[3])


if __name__ == "__main__":
    main()
