"""Write the patients that diagnose.py learns from, and new ones, into plaintext/.

The 569 patients of the breast cancer data set that scikit-learn ships (W. Wolberg, W. Street and
O. Mangasarian, University of Wisconsin). The true diagnoses of the new ones stay with the owner, in
test-labels.npy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Split the data set and save its parts."""
    patients, benign = load_breast_cancer(return_X_y=True)
    known, new, diagnoses, truth = train_test_split(
        patients, 1 - benign, test_size=0.2, stratify=benign, random_state=0
    )
    plaintext = HERE / "plaintext"
    plaintext.mkdir(exist_ok=True)
    np.savetxt(plaintext / "patients.csv", np.column_stack([known, diagnoses]), delimiter=",")
    np.savetxt(plaintext / "new-patients.csv", new, delimiter=",")
    np.save(HERE / "test-labels.npy", truth)


if __name__ == "__main__":
    main()
