"""Colour jitter: brightness, contrast, saturation and hue of uint8 images [B, C, H, W], each image by its own factor.

The formulas and their rounding are those of torchvision's ``ColorJitter`` on uint8 tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def jittered(images: Tensor, strengths: Sequence[float], factor: Tensor, order: Tensor) -> Tensor:
    """Return images changed by each operator of ``OPERATORS`` whose strength is not 0, in each image's own order.

    ``factor`` is float64 [B, 4], by operator; ``order`` int64 [B, 4] lists the operators. Every operator is computed
    for the whole batch at every place of the order: nothing waits for the device to tell which images it is to have.
    """
    for place in range(len(OPERATORS)):
        turn = order[:, place, None, None, None]
        changed = images
        for number, (operator, strength) in enumerate(zip(OPERATORS, strengths, strict=True)):
            if strength:
                changed = torch.where(turn == number, operator(images, factor[:, number, None, None, None]), changed)
        images = changed
    return images


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images).float().mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images), factor)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Return the images with their hue turned by a part of the circle, saturation and value as they were."""
    red, green, blue = (images.float() / 255).unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    spread = torch.where(chroma == 0, 1.0, chroma)
    sixth = torch.where(
        value == red,
        (green - blue) / spread,
        torch.where(value == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    sixth = sixth + 6 * turn[:, 0].float()
    places = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]
    distance = (places + sixth[:, None]) % 6
    share = torch.minimum(distance, 4 - distance).clamp_(0, 1)
    out = value[:, None] - chroma[:, None] * share
    return (out * (256 - 1e-3)).to(torch.uint8)


OPERATORS = (brightness, contrast, saturation, hue)


def _grey(images: Tensor) -> Tensor:
    """Return uint8 [B, 1, H, W]: the luma of ITU-R BT.601, rounded down; grey images as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8)[:, None]


def _blend(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    """Return factor · images + (1 - factor) · others, kept to 0…255 and rounded down; in float32, as torchvision."""
    return (factor.float() * images + (1 - factor).float() * others).clamp_(0, 255).to(torch.uint8)
