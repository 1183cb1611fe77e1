"""Transfer learning: a pretrained network, its last layer replaced, the whole of it trained or that layer alone.

Networks are those of torchvision and timm by name, and two of this file: ``efficientnet-lite0``, whose ImageNet weights
a package on the index ships, and ``small``, which can be pretrained within seconds on half of a data set's own classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from ablate.errors import AblateError
from ablate.train.augment import normalise
from ablate.train.classification import train_classifier
from ablate.train.context import Context
from ablate.train.data import ImageData
from ablate.train.frozen import Frozen
from ablate.train.pretrained import backbone, load_weights, weights_file
from ablate.train.settings import Settings


class Shape(Settings):
    """The ``model:`` mapping of the study.

    backbone, weights  the network and what it begins with, as in ``ablate.train.pretrained.backbone``; null: at random;
                       ``half`` of ``small``: pretrained on the first half of the classes
    frozen             train the last layer alone; the network stays as it was, its BatchNorm in evaluation mode
    outputs            null: as many as there are classes
    """

    backbone: str
    weights: str | None = None
    frozen: bool
    outputs: int | None = Field(default=None, ge=1)


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: an odd pixel goes to the right and to the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
        return super().forward(pad(x, [width // 2, width - width // 2, height // 2, height - height // 2]))


def norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)  # TensorFlow's 0.99


class LiteBlock(nn.Module):
    """Expand, depthwise, project: MobileNetV2's inverted residual. Names are those of the published weights."""

    def __init__(self, inputs: int, outputs: int, *, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expand
        layers: list[tuple[str, nn.Module]] = []
        if expand > 1:
            layers = [("_expand_conv", SameConv(inputs, wide, 1, bias=False)), ("_bn0", norm(wide)), ("", nn.ReLU6())]
        depthwise = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        layers += [("_depthwise_conv", depthwise), ("_bn1", norm(wide)), ("", nn.ReLU6())]
        layers += [("_project_conv", SameConv(wide, outputs, 1, bias=False)), ("_bn2", norm(outputs))]
        self.order = [name or "relu6" for name, _ in layers]
        for name, layer in layers:
            self.add_module(name or "relu6", layer)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for name in self.order:
            out = getattr(self, name)(out)
        return out + x if self.adds else out


class EfficientNetLite0(nn.Sequential):
    """EfficientNet-lite0 without its last layer: float images [B, 3, H, W] → features [B, 1280].

    EfficientNet-B0 (Tan & Le 2019) without squeeze-and-excitation, with ReLU6 in the place of swish.
    """

    FEATURES = 1280
    STAGES = (  # blocks, kernel, stride of the first, expansion, outputs
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
    )  # fmt: skip

    def __init__(self) -> None:
        blocks: list[nn.Module] = []
        width = 32
        for count, kernel, stride, expand, outputs in self.STAGES:
            for number in range(count):
                first = stride if number == 0 else 1
                blocks.append(LiteBlock(width, outputs, expand=expand, kernel=kernel, stride=first))
                width = outputs
        super().__init__(
            OrderedDict(
                _conv_stem=SameConv(3, 32, 3, 2, bias=False),
                _bn0=norm(32),
                relu_stem=nn.ReLU6(),
                _blocks=nn.Sequential(*blocks),
                _conv_head=SameConv(width, self.FEATURES, 1, bias=False),
                _bn1=norm(self.FEATURES),
                relu_head=nn.ReLU6(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
            )
        )


def small(channels: int) -> tuple[nn.Module, int]:
    """Return three convolutions and their number of features, for a profile that downloads nothing."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 32


def pretrain(net: nn.Module, features: int, data: ImageData) -> None:
    """Teach ``net`` the first half of the classes, for eight epochs of the training images that are of one of them.

    It hangs on the data and on torch's own generator alone: equal in all arms of a seed.
    """
    half = data.classes // 2
    index = (data.train.labels < half).nonzero().flatten()
    images = normalise(data.train.images[index], data.mean, data.std)
    labels = data.train.labels[index]
    model = nn.Sequential(net, nn.Linear(features, half)).to(images.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(8):
        for batch in torch.randperm(len(index)).to(images.device).split(32):
            loss = cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def transfer(model: Mapping[str, Any], context: Context, data: ImageData) -> nn.Module:
    """Return what ``model`` (see Shape) describes: float images [B, channels, H, W] → logits [B, outputs]."""
    channels, classes = data.channels, data.classes
    shape = Shape.read(model, "model")
    outputs = shape.outputs or classes
    if outputs < classes:
        raise AblateError(
            f"`model.outputs: {outputs}` are fewer than the {classes} classes", hint="set it to null, or to more"
        )
    if shape.backbone == "small":
        if shape.weights not in (None, "half"):
            raise AblateError(f"`small` has no weights `{shape.weights}`", hint="set `model.weights` to half, or null")
        net, features = small(channels)
        if shape.weights:
            pretrain(net, features, data)
    elif channels != 3:
        raise AblateError(
            f"`{shape.backbone}` takes images of 3 channels, not of {channels}", hint="set `model.backbone: small`"
        )
    elif shape.backbone == "efficientnet-lite0":
        net, features = EfficientNetLite0(), EfficientNetLite0.FEATURES
        if shape.weights is not None:
            load_weights(net, weights_file(shape.weights), context)
    else:
        net, features = backbone(shape.backbone, shape.weights, context)
    return nn.Sequential(Frozen(net) if shape.frozen else net, nn.Linear(features, outputs))


def train(settings: Mapping[str, Any], context: Context) -> dict[str, float]:
    """The study's task: train the network as ``settings`` say and return its metrics."""

    def build(data: ImageData) -> nn.Module:
        return transfer(settings["model"], context, data)

    return train_classifier(settings, context, build)
