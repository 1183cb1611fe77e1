"""The CIFAR ResNet of 6n + 2 layers (He et al. 2016, section 4.2) as a university assignment built it: with a 1×1 stem.

Stem conv, BatchNorm, ReLU; three stages of n blocks on maps of 32, 16 and 8 pixels; global average pool; linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ablate.train.classification import train_classifier
from ablate.train.context import Context
from ablate.train.data import ImageData
from ablate.train.settings import Settings

Count = Annotated[int, Field(ge=1)]


class Shape(Settings):
    """The ``model:`` mapping.

    stem    kernel of the first convolution
    depth   number of layers with weights, 6n + 2: the stem, 6n convolutions in blocks, the linear layer
    widths  channels of the three stages; the stem has those of the first
    """

    stem: Literal[1, 3]
    depth: int = Field(ge=8)
    widths: list[Count] = Field(min_length=3, max_length=3)

    @model_validator(mode="after")
    def _depth_makes_whole_blocks(self) -> Shape:
        if self.depth % 6 != 2:
            below = self.depth - (self.depth - 2) % 6
            raise ValueError(f"depth {self.depth} is not 6n + 2; {below} and {below + 6} are")
        return self


class Block(nn.Module):
    """relu(F(x) + shortcut(x)), where F is Conv3×3, BatchNorm, ReLU, Conv3×3, BatchNorm.

    The first convolution halves the map where ``stride`` is 2. The shortcut is the identity, or a 1×1 convolution with
    BatchNorm where the shapes differ.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


class CifarResNet(nn.Sequential):
    """Float images [B, channels, H, W] → logits [B, classes]."""

    def __init__(self, model: Mapping[str, Any], *, channels: int, classes: int) -> None:
        """Build what ``model`` (see Shape) describes. Raises AblateError for settings that are wrong."""
        shape = Shape.read(model, "model")
        width = shape.widths[0]
        stem = nn.Conv2d(channels, width, shape.stem, padding=shape.stem // 2, bias=False)
        layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU()]
        for stage, outputs in enumerate(shape.widths):
            for number in range((shape.depth - 2) // 6):
                layers.append(Block(width, outputs, stride=2 if stage and not number else 1))
                width = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def train(settings: Mapping[str, Any], context: Context) -> dict[str, float]:
    """The study's task: train the ResNet as ``settings`` say and return its metrics."""

    def build(data: ImageData) -> CifarResNet:
        return CifarResNet(settings["model"], channels=data.channels, classes=data.classes)

    return train_classifier(settings, context, build)
