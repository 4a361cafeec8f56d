"""Score the patients of ``/data/patients.csv`` with ``/model/model.pt``; write ``/data/risk.csv``.

An ordinary PyTorch program. It runs in an enclave that may read both directories, while neither
owner can read the other's.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from network import FEATURES, SCALES, network

MODEL = Path("/model/model.pt")
PATIENTS = Path("/data/patients.csv")
RISKS = Path("/data/risk.csv")


def main() -> None:
    """Read both owners' files, compute, write the data owner's result."""
    torch.set_num_threads(1)
    model = network()
    model.load_state_dict(torch.load(MODEL, weights_only=True))
    with PATIENTS.open(newline="") as stream:
        patients = list(csv.DictReader(stream))
    values = [[float(patient[name]) for name in FEATURES] for patient in patients]
    with torch.inference_mode():
        risks = model(torch.tensor(values) / torch.tensor(SCALES)).flatten().tolist()
    with RISKS.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["patient", "risk"])
        for patient, risk in zip(patients, risks, strict=True):
            writer.writerow([patient["patient"], f"{risk:.3f}"])
    print(f"{len(patients)} patients scored")


if __name__ == "__main__":
    main()
