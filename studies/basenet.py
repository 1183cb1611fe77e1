"""BaseNet: the network of a deep-learning course project on CIFAR-100, with every change that its ablation made.

One class covers all rungs. Layers: [stem] blocks (with 2×2 max-pools between them), flatten, Linear(hidden),
[BatchNorm1d], ReLU, Linear(classes), [BatchNorm1d]. Convolutions keep their bias even where a BatchNorm follows and
makes it idle: an arm with BatchNorm and one without then begin from the same initial draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

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

    stem            width of a first Conv3×3-BN-ReLU; 0: none
    widths          output channels of each block
    kernel, padding of the blocks' convolutions
    pool_after      the blocks, counted from 1, that a 2×2 max-pool follows
    norm            where BatchNorm stands after each of the blocks' convolutions
    convs           how many convolutions, each with its ReLU, a block has
    groups          of every block convolution whose widths it divides; never of the one that sees the image
    residual        add a block's input to its output, through a 1×1 convolution where the widths differ
    residual_scale  x = scale · F(x) + shortcut(x)
    hidden          width of the first Linear
    hidden_norm, output_norm  BatchNorm1d after the first, after the last Linear
    """

    stem: int = Field(ge=0)
    widths: list[Count] = Field(min_length=1)
    kernel: Count
    padding: int = Field(ge=0)
    pool_after: list[Count]
    norm: Literal["none", "before_relu", "after_relu"]
    convs: int = Field(ge=1, le=2)
    groups: Count
    residual: bool
    residual_scale: float = Field(allow_inf_nan=False)
    hidden: Count
    hidden_norm: bool
    output_norm: bool

    @model_validator(mode="after")
    def _every_value_is_used(self) -> Shape:
        if len(set(self.pool_after)) < len(self.pool_after) or max(self.pool_after, default=0) > len(self.widths):
            raise ValueError(f"pool_after {self.pool_after} must name each block once, of 1 to {len(self.widths)}")
        if self.residual and 2 * self.padding != self.kernel - 1:
            raise ValueError(f"a residual block needs padding (kernel - 1) / 2, not {self.padding} of {self.kernel}")
        if not self.residual and self.residual_scale != 1:
            raise ValueError(f"residual_scale {self.residual_scale} does nothing where residual is false")
        return self


class Block(nn.Module):
    """Conv-ReLU, once or twice, with the shape's norm; as a residual block, scale · F(x) + shortcut(x)."""

    def __init__(self, inputs: int, outputs: int, shape: Shape) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (inputs, outputs)[: shape.convs]:
            groups = shape.groups if width > 3 and width % shape.groups == outputs % shape.groups == 0 else 1
            layers.append(nn.Conv2d(width, outputs, shape.kernel, padding=shape.padding, groups=groups))
            if shape.norm == "before_relu":
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
            if shape.norm == "after_relu":
                layers.append(nn.BatchNorm2d(outputs))
        self.body = nn.Sequential(*layers)
        self.scale = shape.residual_scale
        self.shortcut: nn.Module | None = None
        if shape.residual:
            self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out if self.shortcut is None else self.scale * out + self.shortcut(x)


class BaseNet(nn.Module):
    """Float images [B, channels, size, size] → logits [B, classes]."""

    def __init__(self, model: Mapping[str, Any], *, channels: int, size: int, classes: int) -> None:
        """Build what ``model`` (see Shape) describes. Raises AblateError for settings that are wrong or do nothing."""
        super().__init__()
        shape = Shape.read(model, "model")
        layers: list[nn.Module] = []
        if shape.stem:
            layers += [nn.Conv2d(channels, shape.stem, 3, padding=1), nn.BatchNorm2d(shape.stem), nn.ReLU()]
        width = shape.stem or channels
        for number, outputs in enumerate(shape.widths, start=1):
            layers.append(Block(width, outputs, shape))
            width = outputs
            size += shape.convs * (2 * shape.padding - shape.kernel + 1)
            if number in shape.pool_after:
                layers.append(nn.MaxPool2d(2))
                size //= 2
            if size < 1:
                raise AblateError(
                    f"nothing is left of the image after block {number} of `model.widths`",
                    hint="use fewer pools, a smaller kernel, more padding, or larger images (`data.size`)",
                )
        self.body = nn.Sequential(*layers)
        if shape.groups > 1 and not any(getattr(layer, "groups", 1) > 1 for layer in self.body.modules()):
            raise AblateError(
                f"`model.groups: {shape.groups}` divides the widths of no convolution, so it does nothing",
                hint="choose a number that divides neighbouring `model.widths`",
            )
        head: list[nn.Module] = [nn.Flatten(), nn.Linear(width * size * size, shape.hidden)]
        if shape.hidden_norm:
            head.append(nn.BatchNorm1d(shape.hidden))
        head += [nn.ReLU(), nn.Linear(shape.hidden, classes)]
        if shape.output_norm:
            head.append(nn.BatchNorm1d(classes))
        self.head = nn.Sequential(*head)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


def train(settings: Mapping[str, Any], context: Context) -> dict[str, float]:
    """The study's task: train BaseNet as ``settings`` say and return its metrics."""

    def build(data: ImageData) -> BaseNet:
        return BaseNet(settings["model"], channels=data.channels, size=data.size, classes=data.classes)

    return train_classifier(settings, context, build)
