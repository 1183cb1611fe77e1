"""A network of dynamic convolutions: in each block K convolutions, weighed for every image by what it looks like.

After a neural-network coursework on CIFAR-10. Segments of blocks with max-pools between them, spatial average, and a
classifier of two linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import Tensor, nn

from ablate.errors import AblateError
from ablate.train.classification import train_classifier
from ablate.train.context import Context
from ablate.train.data import ImageData
from ablate.train.settings import Settings

Count = Annotated[int, Field(ge=1)]


class Shape(Settings):
    """The ``model:`` mapping.

    widths    output channels of each segment; a 2×2 max-pool stands between two segments
    blocks    how many blocks a segment has
    branches  K, the parallel convolutions of a block
    kernel    of these convolutions, odd; the padding is kernel // 2
    dropout   before the last linear layer
    outputs   of the last linear layer; null: as many as there are classes
    """

    widths: list[Count] = Field(min_length=1)
    blocks: Count
    branches: Count
    kernel: Count
    dropout: float = Field(ge=0, lt=1)
    outputs: Count | None

    @model_validator(mode="after")
    def _kernel_has_a_middle(self) -> Shape:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} is even: with padding kernel // 2 the image would grow")
        return self


class DynamicConv(nn.Module):
    """Σₖ wₖ(x) · relu(BatchNorm(Convₖ(x))), where w(x) = softmax(Linear(spatial average of x)); K = 1 has no w."""

    def __init__(self, inputs: int, outputs: int, shape: Shape) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, shape.kernel, padding=shape.kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU()
            )
            for _ in range(shape.branches)
        )
        self.weigh: nn.Module | None = None
        if shape.branches > 1:
            self.weigh = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, shape.branches), nn.Softmax(dim=1)
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.weigh is None:
            plain: Tensor = self.branches[0](x)
            return plain
        weights = self.weigh(x)[:, :, None, None, None]
        out: Tensor = sum(weights[:, k] * branch(x) for k, branch in enumerate(self.branches))
        return out


class DynamicConvNet(nn.Sequential):
    """Float images [B, channels, size, size] → logits [B, outputs]."""

    def __init__(self, model: Mapping[str, Any], *, channels: int, size: int, classes: int) -> None:
        """Build what ``model`` (see Shape) describes. Raises AblateError for settings that are wrong."""
        shape = Shape.read(model, "model")
        if size < 2 ** (len(shape.widths) - 1):
            raise AblateError(
                f"{len(shape.widths)} segments leave nothing of an image of {size}×{size} pixels",
                hint="use fewer `model.widths` or larger images (`data.size`)",
            )
        outputs = shape.outputs or classes
        if outputs < classes:
            raise AblateError(f"`model.outputs: {outputs}` are fewer than the {classes} classes")
        layers: list[nn.Module] = []
        width = channels
        for number, widths in enumerate(shape.widths):
            if number:
                layers.append(nn.MaxPool2d(2))
            for _ in range(shape.blocks):
                layers.append(DynamicConv(width, widths, shape))
                width = widths
        super().__init__(
            *layers,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 2 * width),
            nn.ReLU(),
            nn.Dropout(shape.dropout),
            nn.Linear(2 * width, outputs),
        )


def train(settings: Mapping[str, Any], context: Context) -> dict[str, float]:
    """The study's task: train the network as ``settings`` say and return its metrics."""

    def build(data: ImageData) -> DynamicConvNet:
        return DynamicConvNet(settings["model"], channels=data.channels, size=data.size, classes=data.classes)

    return train_classifier(settings, context, build)
