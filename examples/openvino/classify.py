"""Classify ``input.jpg`` with ``model.xml``; write the five likeliest classes to ``result.txt``.

All files are in the current directory. This is an ordinary OpenVINO program that knows nothing
of enclaves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from PIL import Image


def main() -> None:
    """Read model, names and photograph, compute, write the result."""
    model = openvino.Core().compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = Path("classes.txt").read_text(encoding="utf-8").splitlines()
    scores = model(load_image())[0][0].astype(np.float64)
    percentages = 100 * np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    likeliest = percentages.argsort()[::-1][:5]
    lines = [f"{names[index]:<30} {percentages[index]:8.4f} %\n" for index in likeliest]
    Path("result.txt").write_text("".join(lines), encoding="utf-8")
    # Standard output leaves an enclave in the clear, so the classes are not printed.
    print("the five likeliest classes are in result.txt")


def load_image() -> NDArray[Any]:
    """Return the middle of the photograph as the network wants it: 1 x 3 x 224 x 224."""
    with Image.open("input.jpg") as file:
        image = file.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((224, 224), box=(left, top, left + side, top + side))
    pixels: NDArray[Any] = (np.asarray(image, dtype=np.float32) - 127) / 128
    batch: NDArray[Any] = pixels.transpose(2, 0, 1)[None]
    return batch


if __name__ == "__main__":
    main()
