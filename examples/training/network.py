"""The classifier that train.py trains and predict.py uses."""

from torch import nn


def build() -> nn.Module:
    """Return an untrained network: images of 8 by 8 pixels in, scores of the ten digits out."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip
