"""The two image classifiers of this example, in plain PyTorch.

EfficientNet-Lite0 is EfficientNet-B0 (Tan and Le, "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks", 2019, table 1) with the changes that make the Lite family: no
squeeze-and-excitation, ReLU6 instead of Swish. AlexNet is the single-tower variant of Krizhevsky,
"One weird trick for parallelizing convolutional neural networks", 2014.

Parameter names are those of the published weights, so that their state dicts load as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 1000  # of the ImageNet challenge, for both networks
BATCH_NORM_EPSILON = 1e-3


class SameConv2d(nn.Conv2d):
    """A convolution whose output has ``ceil(size / stride)`` pixels a side.

    The zeros are split as TensorFlow's "SAME" splits them (an odd one goes right and below),
    because the weights were trained there.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pad, then convolve."""
        left_right = _same_padding(x.shape[-1], self.kernel_size[1], self.stride[1])
        top_bottom = _same_padding(x.shape[-2], self.kernel_size[0], self.stride[0])
        return super().forward(functional.pad(x, (*left_right, *top_bottom)))


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPSILON)


class InvertedResidual(nn.Module):
    """MBConv without squeeze-and-excitation: expand, filter each channel, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion != 1
        self.adds_input = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = SameConv2d(inputs, hidden, 1, bias=False)
            self._bn0 = _batch_norm(hidden)
        self._depthwise_conv = SameConv2d(
            hidden, hidden, kernel, stride=stride, groups=hidden, bias=False
        )
        self._bn1 = _batch_norm(hidden)
        self._project_conv = SameConv2d(hidden, outputs, 1, bias=False)
        self._bn2 = _batch_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        hidden = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = functional.relu6(self._bn1(self._depthwise_conv(hidden)))
        y: Tensor = self._bn2(self._project_conv(hidden))
        return x + y if self.adds_input else y


@dataclass(frozen=True)
class Stage:
    """A row of the paper's table 1; only the first block of a stage has its stride."""

    expansion: int
    kernel: int
    stride: int
    outputs: int
    blocks: int


STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
STAGES = (
    Stage(expansion=1, kernel=3, stride=1, outputs=16, blocks=1),
    Stage(expansion=6, kernel=3, stride=2, outputs=24, blocks=2),
    Stage(expansion=6, kernel=5, stride=2, outputs=40, blocks=2),
    Stage(expansion=6, kernel=3, stride=2, outputs=80, blocks=3),
    Stage(expansion=6, kernel=5, stride=1, outputs=112, blocks=3),
    Stage(expansion=6, kernel=5, stride=2, outputs=192, blocks=4),
    Stage(expansion=6, kernel=3, stride=1, outputs=320, blocks=1),
)


class EfficientNetLite0(nn.Module):
    """Four and a half million parameters; images of 224 by 224 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, 3, stride=2, bias=False)
        self._bn0 = _batch_norm(STEM_CHANNELS)
        self._blocks = nn.Sequential(*_blocks(STEM_CHANNELS, STAGES))
        self._conv_head = SameConv2d(STAGES[-1].outputs, HEAD_CHANNELS, 1, bias=False)
        self._bn1 = _batch_norm(HEAD_CHANNELS)
        self._fc = nn.Linear(HEAD_CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        x = self._blocks(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self._fc(x)
        return logits


def _blocks(channels: int, stages: tuple[Stage, ...]) -> list[InvertedResidual]:
    blocks = []
    for stage in stages:
        for index in range(stage.blocks):
            stride = stage.stride if index == 0 else 1
            blocks.append(
                InvertedResidual(channels, stage.outputs, stage.kernel, stride, stage.expansion)
            )
            channels = stage.outputs
    return blocks


class AlexNet(nn.Module):
    """Sixty-one million parameters; images of 224 by 224 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()),
            nn.Linear(4096, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = functional.adaptive_avg_pool2d(self.features(x), 6)
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


@dataclass(frozen=True)
class Network:
    """What is needed to use a state dict: its architecture and how it wants its images."""

    name: str
    build: Callable[[], nn.Module]
    signature: str  # a parameter that no other network here has
    resampling: Image.Resampling
    mean: tuple[float, float, float]  # of red, green and blue, where 1.0 is full brightness
    deviation: tuple[float, float, float]
    resize: int = 256  # pixels of the shorter side, before the centre is cut out
    crop: int = 224  # pixels a side


EFFICIENTNET_LITE0 = Network(
    name="EfficientNet-Lite0",
    build=EfficientNetLite0,
    signature="_conv_stem.weight",
    resampling=Image.Resampling.BICUBIC,
    mean=(127 / 255,) * 3,
    deviation=(128 / 255,) * 3,
)
ALEXNET = Network(
    name="AlexNet",
    build=AlexNet,
    signature="classifier.6.weight",
    resampling=Image.Resampling.BILINEAR,
    mean=(0.485, 0.456, 0.406),
    deviation=(0.229, 0.224, 0.225),
)
NETWORKS = (EFFICIENTNET_LITE0, ALEXNET)


def recognise(state: Mapping[str, Tensor]) -> Network:
    """Return the network that a state dict belongs to.

    Raises:
        ValueError: none of ours.
    """
    for network in NETWORKS:
        if network.signature in state:
            return network
    known = ", ".join(network.name for network in NETWORKS)
    raise ValueError(f"not the weights of a known network ({known})")


def load(state: Mapping[str, Tensor]) -> tuple[Network, nn.Module]:
    """Return the network of a state dict and a module that computes it, ready to classify.

    Raises:
        ValueError: the state dict is not of a network that we know.
        RuntimeError: it lacks parameters, or their shapes differ.
    """
    network = recognise(state)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        module = network.build()
    module.load_state_dict(state, assign=True)
    return network, module.eval()
