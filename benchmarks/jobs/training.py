"""Train a small network for two epochs on JPEG files; save it: ``training.py DIRECTORY``."""

import sys
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Photographs(Dataset):
    """JPEG files; the class of each is the number before the dash in its name."""

    def __init__(self, directory):
        self.paths = sorted(Path(directory).glob("*.jpg"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        with Image.open(path) as image:
            pixels = torch.from_numpy(numpy.array(image.convert("RGB")))
        return pixels.permute(2, 0, 1) / 255, int(path.name.partition("-")[0])


def main():
    directory = Path(sys.argv[1])
    torch.manual_seed(1)
    torch.set_num_threads(1)
    loader = DataLoader(Photographs(directory), batch_size=50, shuffle=True, num_workers=2)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10)),
    )
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(2):
        for images, classes in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images), classes).backward()
            optimiser.step()
    torch.save(network.state_dict(), directory.parent / "trained.pt")


main()
