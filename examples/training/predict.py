"""Classify ``test-images.npy`` with ``model.pt``; write the digits to ``digits.txt``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from network import build


def main() -> None:
    """Read the trained model and the images, write a digit a line."""
    torch.set_num_threads(1)
    network = build()
    network.load_state_dict(torch.load("model.pt", weights_only=True))
    network.eval()
    images = torch.from_numpy(np.load("test-images.npy"))
    with torch.inference_mode():
        digits = network(images).argmax(dim=1).tolist()
    Path("digits.txt").write_text("".join(f"{digit}\n" for digit in digits), encoding="utf-8")
    print(f"{len(digits)} images are classified in digits.txt")


if __name__ == "__main__":
    main()
