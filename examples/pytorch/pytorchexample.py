"""Classify ``input.jpg`` with ``model.pt``; write the five likeliest classes to ``result.txt``.

All files are in the current directory. This is an ordinary PyTorch program: it knows nothing of
enclaves, and the same file runs natively, in direct mode and inside an enclave.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import torch
from networks import CLASSES, Network, load
from PIL import Image
from torch import Tensor, nn

MODEL = Path("model.pt")
IMAGE = Path("input.jpg")
NAMES = Path("classes.txt")
RESULT = Path("result.txt")
TOP = 5
# What reading a file that is absent, refused or not what it should be can raise.
UNUSABLE = (OSError, RuntimeError, TypeError, ValueError)


def main() -> None:
    """Read the three inputs, compute, write the result."""
    # The order in which threads add floating-point numbers up changes the last digits.
    torch.set_num_threads(1)
    with naming(MODEL):
        network, module = load_model(MODEL)
    with naming(NAMES):
        names = load_names(NAMES)
    with naming(IMAGE):
        image = load_image(IMAGE, network)
    likeliest = classify(module, image, names)
    with naming(RESULT):
        RESULT.write_text(render(likeliest), encoding="utf-8")
    # Standard output leaves an enclave in the clear, so the classes are not printed.
    print(f"{network.name}: the {TOP} likeliest classes are in {RESULT}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """End the program with one line that names ``path`` when it cannot be used."""
    try:
        yield
    except UNUSABLE as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        sys.exit(f"pytorchexample.py: error: {path}: {reason}")


def load_model(path: Path) -> tuple[Network, nn.Module]:
    """Return the network whose state dict is at ``path``."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # A broken pickle raises anything, and PyTorch's text for it advises weights_only=False,
        # which would run code from the file.
        raise ValueError("not a whole PyTorch state dict") from error
    if not isinstance(state, dict):
        raise TypeError("not a state dict")
    return load(state)


def load_names(path: Path) -> list[str]:
    """Return the class names, one a line, in the order of the network's outputs."""
    names = path.read_text(encoding="utf-8").splitlines()
    if len(names) != CLASSES:
        raise ValueError(f"{len(names)} lines; expected a class name on each of {CLASSES}")
    return names


def load_image(path: Path, network: Network) -> Tensor:
    """Return the centre of the image as a batch of one, scaled as the network wants it."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    image = cut_centre(resize(image, network.resize, network.resampling), network.crop)
    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255
    mean = torch.tensor(network.mean).view(3, 1, 1)
    deviation = torch.tensor(network.deviation).view(3, 1, 1)
    return ((pixels - mean) / deviation).unsqueeze(0)


def resize(image: Image.Image, shorter: int, resampling: Image.Resampling) -> Image.Image:
    """Scale so that the shorter side has ``shorter`` pixels."""
    scale = shorter / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    return image.resize((width, height), resampling)


def cut_centre(image: Image.Image, side: int) -> Image.Image:
    """Cut the square of ``side`` pixels out of the middle."""
    left = (image.width - side) // 2
    top = (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def classify(module: nn.Module, image: Tensor, names: list[str]) -> list[tuple[str, float]]:
    """Return the likeliest classes and their percentages, the likeliest first."""
    with torch.inference_mode():
        percentages = 100 * module(image)[0].double().softmax(dim=0)
    values, indices = percentages.topk(TOP)
    pairs = zip(indices.tolist(), values.tolist(), strict=True)
    return [(names[index], value) for index, value in pairs]


def render(likeliest: list[tuple[str, float]]) -> str:
    """Return the text of the result: a line for each class."""
    return "".join(f"{name:<30} {percentage:8.4f} %\n" for name, percentage in likeliest)


if __name__ == "__main__":
    main()
