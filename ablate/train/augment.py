"""Random crops and flips of whole batches of uint8 images on the device, each image with draws of its own.

The result is bit-identical to torchvision's ``Compose([RandomCrop(size, padding), RandomHorizontalFlip(), ToTensor(),
Normalize(mean, std)])`` given the same draws; tests/train/test_augment.py holds it to that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from ablate.train.settings import Settings


class AugmentSettings(Settings):
    """The ``augment:`` mapping of a study: ``flip``, left–right with probability ½; ``crop``, the padding in pixels."""

    flip: bool
    crop: int = Field(ge=0)


@dataclass(frozen=True)
class Draws:
    """One epoch's draws, one per training image: ``flip`` bool [N], ``offset_y`` and ``offset_x`` int64 [N]."""

    flip: Tensor
    offset_y: Tensor
    offset_x: Tensor


def draw(settings: AugmentSettings, count: int, generator: torch.Generator) -> Draws:
    """Draw for ``count`` images; image i of the training set uses entry i, wherever in the epoch it is seen.

    All three are drawn whatever is switched on, flips first: arms that differ in one share the other.
    """
    flip = torch.rand(count, generator=generator) < 0.5
    offsets = torch.randint(0, 2 * settings.crop + 1, (2, count), generator=generator)
    return Draws(flip & settings.flip, offsets[0], offsets[1])


class Augmenter:
    """The training images, padded once, from which augmented batches are cut."""

    def __init__(self, images: Tensor, settings: AugmentSettings) -> None:
        """Pad uint8 [N, C, H, W] with ``settings.crop`` zeros on each side; the copy stays on the images' device."""
        self.settings = settings
        self._device = images.device
        self._count, _, height, width = images.shape
        padded = pad(images, [settings.crop] * 4) if settings.crop else images
        # a view: entry [i, :, y, x] is the H×W window of image i at offset (y, x)
        self._windows = padded.unfold(2, height, 1).unfold(3, width, 1)

    def draws(self, generator: torch.Generator) -> Draws:
        """Return one epoch's draws on the images' device, drawn on the CPU so that every device gets the same."""
        drawn = draw(self.settings, self._count, generator)
        return Draws(*(values.to(self._device) for values in (drawn.flip, drawn.offset_y, drawn.offset_x)))

    def batch(self, index: Tensor, draws: Draws) -> Tensor:
        """Return the images at ``index`` (int64 [B]), cropped and then flipped as drawn: uint8 [B, C, H, W]."""
        images = self._windows[index, :, draws.offset_y[index], draws.offset_x[index]]
        if not self.settings.flip:
            return images
        return torch.where(draws.flip[index, None, None, None], images.flip(3), images)


def normalise(images: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
    """Return uint8 [B, C, H, W] as float32: pixels / 255, then (x - mean) / std by channel where these are given."""
    scaled = images.float().div_(255)
    if mean is None or std is None:
        return scaled
    return scaled.sub_(mean[:, None, None]).div_(std[:, None, None])
