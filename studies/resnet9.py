"""ResNet-9: nine weighted layers, three of them in residual pairs, after a deep-learning course project on CIFAR-100.

conv1, conv2 + pool, res1; conv3 + pool, conv4 + pool, res2; conv5 + pool, res3; pool, flatten, linear. Each conv is
Conv3×3, BatchNorm, ReLU; each res two of them, around which the input is added to the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from ablate.errors import AblateError
from ablate.train.classification import train_classifier
from ablate.train.context import Context
from ablate.train.data import ImageData
from ablate.train.settings import Settings

Count = Annotated[int, Field(ge=1)]
SMALLEST = 32  # five pools


class Shape(Settings):
    """The ``model:`` mapping: ``widths`` of conv1 to conv5; ``residual``, whether a res adds what it is given."""

    widths: list[Count] = Field(min_length=5, max_length=5)
    residual: bool


def conv(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Pair(nn.Module):
    """Two convs of one width: F(x) + x, or F(x) where it is not residual."""

    def __init__(self, width: int, *, residual: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out + x if self.residual else out


class ResNet9(nn.Sequential):
    """Float images [B, channels, size, size] → logits [B, classes]."""

    def __init__(self, model: Mapping[str, Any], *, channels: int, size: int, classes: int) -> None:
        """Build what ``model`` (see Shape) describes. Raises AblateError for settings that are wrong."""
        shape = Shape.read(model, "model")
        if size < SMALLEST:
            raise AblateError(
                f"five pools leave nothing of an image of {size}×{size} pixels",
                hint=f"set `data.size` to {SMALLEST} or more",
            )
        one, two, three, four, five = shape.widths
        super().__init__(
            conv(channels, one),
            conv(one, two, pool=True),
            Pair(two, residual=shape.residual),
            conv(two, three, pool=True),
            conv(three, four, pool=True),
            Pair(four, residual=shape.residual),
            conv(four, five, pool=True),
            Pair(five, residual=shape.residual),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(five * (size // 32) ** 2, classes),
        )


def train(settings: Mapping[str, Any], context: Context) -> dict[str, float]:
    """The study's task: train ResNet-9 as ``settings`` say and return its metrics."""

    def build(data: ImageData) -> ResNet9:
        return ResNet9(settings["model"], channels=data.channels, size=data.size, classes=data.classes)

    return train_classifier(settings, context, build)
