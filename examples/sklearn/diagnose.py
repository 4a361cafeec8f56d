"""Learn from ``patients.csv``; write the risks of ``new-patients.csv`` to ``risks.txt``.

All files are in the current directory. The forest is kept in ``model.joblib``, and in
``report.txt`` what cross-validation says of it. This is an ordinary program that
knows nothing of enclaves.
"""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score


def main() -> None:
    """Read patients, train in two processes, write model, report and risks."""
    table = np.loadtxt("patients.csv", delimiter=",")
    patients, ill = table[:, :-1], table[:, -1]
    forest = RandomForestClassifier(n_estimators=100, random_state=1)
    scores = cross_val_score(forest, patients, ill, cv=5, scoring="roc_auc", n_jobs=2)
    print(f"cross-validation of {len(scores)} forests is done", flush=True)
    Path("report.txt").write_text(f"area under the ROC curve: {scores}\n", encoding="utf-8")
    forest.fit(patients, ill)
    joblib.dump(forest, "model.joblib")
    new = np.loadtxt("new-patients.csv", delimiter=",")
    np.savetxt("risks.txt", forest.predict_proba(new)[:, 1], fmt="%.6f")
    print(f"the risks of {len(new)} patients are in risks.txt")


if __name__ == "__main__":
    main()
