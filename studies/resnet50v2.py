"""ResNet-50 V2 (He et al. 2016, "Identity mappings") in Keras's layout, and a dense head, after a course project.

Upsampling; 7×7 conv, max-pool; four stacks of pre-activated bottleneck blocks; BatchNorm, ReLU; global average pool;
dropout, dense, activation, BatchNorm, dense. Layers of the backbone are called as in Keras, so that Keras's weights
are found by name: see keras_weights.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import keras_weights
from pydantic import Field
from torch import Tensor, nn

from ablate.train.classification import train_classifier
from ablate.train.context import Context
from ablate.train.data import ImageData
from ablate.train.settings import Settings

Count = Annotated[int, Field(ge=1)]
Activation = Literal["relu", "leaky-relu", "sigmoid"]
ACTIVATIONS = {"relu": nn.ReLU, "leaky-relu": lambda: nn.LeakyReLU(0.01), "sigmoid": nn.Sigmoid}


class Shape(Settings):
    """The ``model:`` mapping.

    upsample             how many times wider and higher the images are made, bilinear
    blocks, widths       of the four stacks; a block puts out 4 × its width
    weights              a file of the backbone's weights: Keras's (.h5, .keras) or converted (.pt), at a path from the
                         data folder; ``none``: random ones
    frozen               the backbone stays as it is, its BatchNorm statistics too
    backbone_activation  in the backbone
    dropout, hidden      before the first dense layer; how wide that is
    activation           after it
    norm_momentum        how far a batch moves BatchNorm's running statistics, everywhere; 1 - Keras's momentum
    """

    upsample: Count
    blocks: list[Count] = Field(min_length=4, max_length=4)
    widths: list[Count] = Field(min_length=4, max_length=4)
    weights: str = Field(min_length=1)
    frozen: bool
    backbone_activation: Activation
    dropout: float = Field(ge=0, lt=1)
    hidden: Count
    activation: Activation
    norm_momentum: float = Field(gt=0, le=1)


class Block(nn.ModuleDict):
    """F(a) + x, where a is x after BatchNorm and activation, and F a 1×1, a 3×3 and a 1×1 convolution.

    Where it is ``projected``, x is replaced by a 1×1 convolution of a; else by every ``stride``-th pixel of x.
    """

    def __init__(self, inputs: int, width: int, *, stride: int, projected: bool, shape: Shape) -> None:
        super().__init__()
        self.stride = stride
        self["preact_bn"] = batch_norm(inputs, shape)
        if projected:
            self["0_conv"] = nn.Conv2d(inputs, 4 * width, 1, stride=stride)
        self["1_conv"] = nn.Conv2d(inputs, width, 1, bias=False)
        self["1_bn"] = batch_norm(width, shape)
        self["2_conv"] = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self["2_bn"] = batch_norm(width, shape)
        self["3_conv"] = nn.Conv2d(width, 4 * width, 1)
        self["activation"] = ACTIVATIONS[shape.backbone_activation]()

    def forward(self, x: Tensor) -> Tensor:
        activation = self["activation"]
        out = activation(self["preact_bn"](x))
        shortcut = self["0_conv"](out) if "0_conv" in self else x[:, :, :: self.stride, :: self.stride]
        out = activation(self["1_bn"](self["1_conv"](out)))
        out = activation(self["2_bn"](self["2_conv"](out)))
        total: Tensor = self["3_conv"](out) + shortcut
        return total


class Backbone(nn.Sequential):
    """Float images [B, channels, H, W] → feature maps [B, 4 × the last width, about H / 32, about W / 32]."""

    def __init__(self, shape: Shape, *, channels: int) -> None:
        super().__init__()
        width = shape.widths[0]
        self.add_module("conv1_conv", nn.Conv2d(channels, width, 7, stride=2, padding=3))
        self.add_module("pool1_pad", nn.ZeroPad2d(1))  # zeros, which may be the largest: nothing is activated yet
        self.add_module("pool1_pool", nn.MaxPool2d(3, stride=2))
        for stack, (blocks, outputs) in enumerate(zip(shape.blocks, shape.widths, strict=True), start=2):
            for number in range(1, blocks + 1):
                stride = 2 if number == blocks and stack < 5 else 1  # halved at the end of a stack, not at its start
                block = Block(width, outputs, stride=stride, projected=number == 1, shape=shape)
                self.add_module(f"conv{stack}_block{number}", block)
                width = 4 * outputs
        self.add_module("post_bn", batch_norm(width, shape))
        self.add_module("post_relu", ACTIVATIONS[shape.backbone_activation]())


class TransferNet(nn.Sequential):
    """Float images [B, channels, H, W] → logits [B, classes]."""

    def __init__(self, model: Mapping[str, Any], *, channels: int, classes: int) -> None:
        """Build what ``model`` (see Shape) describes, with random weights. Raises AblateError for wrong settings."""
        shape = Shape.read(model, "model")
        super().__init__()
        self.add_module("upsampling", nn.Upsample(scale_factor=shape.upsample, mode="bilinear"))
        self.backbone = Backbone(shape, channels=channels)
        self.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        self.add_module("dropout", nn.Dropout(shape.dropout))
        self.add_module("dense", nn.Linear(4 * shape.widths[3], shape.hidden))
        self.add_module("activation", ACTIVATIONS[shape.activation]())
        self.add_module("norm", nn.BatchNorm1d(shape.hidden, eps=1e-3, momentum=shape.norm_momentum))
        self.add_module("logits", nn.Linear(shape.hidden, classes))
        self.apply(initialise)
        self.backbone.requires_grad_(not shape.frozen)
        self.frozen = shape.frozen
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()  # else its BatchNorm would follow the batches
        return self


def batch_norm(channels: int, shape: Shape) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1.001e-5, momentum=shape.norm_momentum)


def initialise(layer: nn.Module) -> None:
    """Draw weights as Keras does: Glorot's uniform ones, and biases of 0."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def train(settings: Mapping[str, Any], context: Context) -> dict[str, float]:
    """The study's task: train the head, and the backbone unless it is frozen, and return the metrics."""
    chosen = Shape.read(settings["model"], "model").weights
    weights = None if chosen == "none" else keras_weights.find(chosen)  # before the data: it may be a long download

    def build(data: ImageData) -> TransferNet:
        net = TransferNet(settings["model"], channels=data.channels, classes=data.classes)
        if weights:
            keras_weights.load(net.backbone, weights)
            context.fact("weights_sha256", keras_weights.sha256(weights))
        return net

    return train_classifier(settings, context, build)
