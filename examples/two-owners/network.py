"""The network that the model's owner sells: four measurements of a patient in, a risk out."""

from __future__ import annotations

from torch import nn

FEATURES = ("age", "systolic", "cholesterol", "smoker")
SCALES = (100.0, 200.0, 10.0, 1.0)
"""What each feature is divided by."""


def network() -> nn.Sequential:
    """Return it without weights."""
    return nn.Sequential(nn.Linear(len(FEATURES), 8), nn.Tanh(), nn.Linear(8, 1), nn.Sigmoid())
