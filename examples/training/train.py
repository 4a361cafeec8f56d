"""Train a classifier on ``train-images.npy`` and ``train-labels.npy``; leave it in ``model.pt``.

All files are in the current directory. After each epoch the whole state is kept in
``checkpoint.pt``: a run that was killed goes on from there and ends with the same weights as one
that was not. This is an ordinary PyTorch program that knows nothing of enclaves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from network import build
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

SEED = 1
EPOCHS = 12
BATCH = 32
WORKERS = 2
CHECKPOINT = Path("checkpoint.pt")
MODEL = Path("model.pt")


class Images(Dataset[tuple[Tensor, int]]):
    """Images with their labels, read from the files by the DataLoader's worker processes."""

    def __init__(self) -> None:
        self.images = np.load("train-images.npy", mmap_mode="r")
        self.labels = np.load("train-labels.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.images[index].copy()), int(self.labels[index])


def main() -> None:
    """Train from the beginning, or from the last checkpoint."""
    # The order in which threads add floating-point numbers up changes the last digits.
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    network = build()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    done = resume(network, optimizer)
    order = torch.Generator()
    batches = DataLoader(Images(), BATCH, shuffle=True, generator=order, num_workers=WORKERS)
    for epoch in range(done + 1, EPOCHS + 1):
        # Shuffling and dropout depend on the epoch alone, not on what this process did before.
        torch.manual_seed(SEED + epoch)
        order.manual_seed(SEED + epoch)
        train(network, optimizer, batches)
        state = {"epoch": epoch, "network": network.state_dict()}
        save(state | {"optimizer": optimizer.state_dict()}, CHECKPOINT)
        # Standard output leaves an enclave in the clear, so there is no loss in it.
        print(f"epoch {epoch} of {EPOCHS}", flush=True)
    save(network.state_dict(), MODEL)


def resume(network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the last checkpoint, if there is one; return how many epochs it has behind it."""
    if not CHECKPOINT.exists():
        return 0
    state = torch.load(CHECKPOINT, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"resuming after epoch {state['epoch']}", flush=True)
    return int(state["epoch"])


def train(network: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader[Any]) -> None:
    """Show the network every image once."""
    network.train()
    for images, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()


def save(state: dict[str, Any], path: Path) -> None:
    """Replace ``path`` as a whole: whoever kills this leaves the old file or the new one."""
    new = path.with_suffix(".new")
    with new.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)


if __name__ == "__main__":
    main()
