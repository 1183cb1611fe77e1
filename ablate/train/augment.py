"""Random crops, flips, colours and holes for whole batches of uint8 images on the device, each with draws of its own.

The operators are those of torchvision given the same draws: ``RandomHorizontalFlip``, ``RandomCrop`` with padding and
the holes bit for bit, ``RandomResizedCrop`` and ``ColorJitter`` up to rounding: tests/train/test_augment.py says how
far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import pad

from ablate.errors import AblateError
from ablate.train import colour
from ablate.train.settings import Settings

TRIES = 10  # of a resized crop to lie within the image, as in torchvision; then the largest in the middle is taken

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Range = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AugmentSettings(Settings):
    """The ``augment:`` mapping of a study. All but ``flip`` and ``crop`` may be left out, and is then off.

    flip            left–right with probability ½
    crop            the padding in pixels (black) of a random crop of the image's own size
    crop_scale, crop_ratio
                    of a random crop that is resized to the network's size (bilinear): the [least, most] share of
                    the area, and the [least, most] width / height; both [1, 1]: none
    brightness, contrast, saturation
                    colour jitter: a factor from 1 - value (not below 0) to 1 + value
    hue             a turn of the hue by up to ± this part of the circle, at most ½
    cutout          the side in pixels of a square hole around a random pixel, 0 after normalisation
    cutout_holes    how many of them
    """

    flip: bool
    crop: int = Field(ge=0)
    crop_scale: Range = Field(default=[1.0, 1.0])
    crop_ratio: Range = Field(default=[1.0, 1.0])
    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Strength = Field(default=0.0, le=0.5)
    cutout: int = Field(default=0, ge=0)
    cutout_holes: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _every_value_is_used(self) -> AugmentSettings:
        for name, given in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if given[0] > given[1]:
                raise ValueError(f"{name} is [least, most], not {given}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale is a share of the area, at most 1, not {self.crop_scale[1]}")
        if self.crop and self.resizes:
            raise ValueError(
                f"crop {self.crop} pads, crop_scale and crop_ratio resize; set crop to 0, or both others to [1.0, 1.0]"
            )
        if not self.cutout and self.cutout_holes != 1:
            raise ValueError(f"cutout_holes {self.cutout_holes} does nothing where cutout is 0")
        return self

    @property
    def resizes(self) -> bool:
        """Whether there is a resized crop."""
        return self.crop_scale != [1, 1] or self.crop_ratio != [1, 1]

    @property
    def jitter(self) -> tuple[float, ...]:
        """The strengths of the colour operators, in the order of ``colour.OPERATORS``."""
        return self.brightness, self.contrast, self.saturation, self.hue

    @property
    def views(self) -> int | None:
        """In how many ways an image may be seen: 1, 2 with the flip alone, None for too many to count."""
        if self.crop or self.resizes or any(self.jitter) or self.cutout:
            return None
        return 2 if self.flip else 1


@dataclass(frozen=True)
class Draws:
    """One epoch's draws, one per training image.

    flip                bool [N]
    offset_y, offset_x  int64 [N]: where the window of a padded crop begins
    box                 int64 [N, 4]: top, left, height, width of a resized crop
    factor              float64 [N, 4]: of each colour operator
    order               int64 [N, 4]: in which order the colour operators are applied
    hole_y, hole_x      int64 [N, holes]: the middle of each hole
    """

    flip: Tensor
    offset_y: Tensor
    offset_x: Tensor
    box: Tensor
    factor: Tensor
    order: Tensor
    hole_y: Tensor
    hole_x: Tensor


def draw(
    settings: AugmentSettings,
    count: int,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    output: tuple[int, int] | None = None,
) -> Draws:
    """Draw for ``count`` images of ``size`` (height, width), of which ``output`` (the same) is to come out.

    Image i of the training set uses entry i, wherever in the epoch it is seen. All are drawn whatever is switched on,
    in one order, and holes last, as their number varies: arms that differ in one share the others. Only where nothing
    behind flips and offsets is used, the rest, which is most of the work, is left undrawn.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    flip = torch.rand(count, generator=generator) < 0.5
    offsets = torch.randint(0, 2 * settings.crop + 1, (2, count), generator=generator)
    if not (settings.resizes or any(settings.jitter) or settings.cutout):
        return _undrawn(settings, count, size, flip & settings.flip, offsets)
    box = _boxes(settings, size, uniform(TRIES, 2, count), uniform(2, count))
    strength = torch.tensor(settings.jitter, dtype=torch.float64)
    middle = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)  # factors, but the hue is added
    least = torch.maximum(middle - strength, torch.tensor([0.0, 0.0, 0.0, -0.5]))
    factor = least + (middle + strength - least) * uniform(count, 4)
    order = uniform(count, 4).argsort(dim=1)
    holes = uniform(2, count, settings.cutout_holes)
    height, width = output or size
    return Draws(
        flip & settings.flip,
        offsets[0],
        offsets[1],
        box,
        factor,
        order,
        (holes[0] * height).long(),
        (holes[1] * width).long(),
    )


def _undrawn(settings: AugmentSettings, count: int, size: tuple[int, int], flip: Tensor, offsets: Tensor) -> Draws:
    """Return the draws of an epoch that flips and shifts alone: in all else, each image as it is."""
    return Draws(
        flip,
        offsets[0],
        offsets[1],
        torch.tensor([0, 0, *size]).expand(count, 4),
        torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64).expand(count, 4),
        torch.arange(4).expand(count, 4),
        *torch.zeros(2, 1, 1, dtype=torch.int64).expand(2, count, settings.cutout_holes),
    )


def _boxes(settings: AugmentSettings, size: tuple[int, int], tries: Tensor, place: Tensor) -> Tensor:
    """Return int64 [N, 4] from uniform draws [TRIES, 2, N] and [2, N]: the first try that lies within the image."""
    height, width = size
    (smallest, largest), (narrow, wide) = settings.crop_scale, settings.crop_ratio
    area = height * width * (smallest + (largest - smallest) * tries[:, 0])
    ratio = torch.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * tries[:, 1])
    heights, widths = (area / ratio).sqrt().round().long(), (area * ratio).sqrt().round().long()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first, any_fits = fits.int().argmax(dim=0, keepdim=True), fits.any(dim=0)
    nearest = min(max(width / height, narrow), wide)
    middle_h, middle_w = min(height, round(width / nearest)), min(width, round(height * nearest))
    box_h = torch.where(any_fits, heights.gather(0, first)[0], middle_h)
    box_w = torch.where(any_fits, widths.gather(0, first)[0], middle_w)
    top = torch.where(any_fits, (place[0] * (height - box_h + 1)).long(), (height - middle_h) // 2)
    left = torch.where(any_fits, (place[1] * (width - box_w + 1)).long(), (width - middle_w) // 2)
    return torch.stack([top, left, box_h, box_w], dim=1)


class Augmenter:
    """The training images, from which augmented batches are cut. No copy of them is made."""

    def __init__(self, images: Tensor, settings: AugmentSettings, *, size: int | None = None) -> None:
        """Take uint8 [N, C, H, W]; batches are cut on the images' device.

        With ``size``, batches are of size×size: a resized crop of the whole image, else of its middle.

        Raises AblateError for settings that do nothing to these images.
        """
        self.settings = settings
        self._device = images.device
        self._count, channels, height, width = images.shape
        self._size = height, width
        if channels != 3 and (settings.saturation or settings.hue):
            raise AblateError(
                f"`augment.saturation` and `augment.hue` do nothing to images of {channels} channel",
                hint="set both to 0; grey images have brightness and contrast",
            )
        self._images = images
        self._output = (size, size) if size else self._size
        self._middles = centre(images, self._output)  # a view

    def draws(self, generator: torch.Generator) -> Draws:
        """Return one epoch's draws on the images' device, drawn on the CPU so that every device gets the same."""
        drawn = draw(self.settings, self._count, self._size, generator, output=self._output)
        return Draws(*(getattr(drawn, field.name).to(self._device) for field in fields(Draws)))

    def batch(self, index: Tensor, draws: Draws, drawn: Tensor | None = None) -> Tensor:
        """Return the images at ``index`` (int64 [B]), cropped, flipped, then coloured as drawn: uint8 [B, C, H, W].

        ``drawn`` (int64 [B]) says which of the draws are theirs, where these are of several epochs or seeds.
        """
        drawn = index if drawn is None else drawn
        if self.settings.resizes:
            images = resized(self._images.index_select(0, index), draws.box[drawn], self._output)
        else:
            images = self._middles.index_select(0, index)
            if self.settings.crop:
                images = shifted(images, self.settings.crop, draws.offset_y[drawn], draws.offset_x[drawn])
        if self.settings.flip:
            images = flipped(images, draws.flip[drawn])
        if any(self.settings.jitter):
            images = colour.jittered(images, self.settings.jitter, draws.factor[drawn], draws.order[drawn])
        return images

    def view(self, index: Tensor, *, flip: bool) -> Tensor:
        """Return the images at ``index``, flipped or not, and else as they are: all there is where ``views`` is 2."""
        images = self._middles.index_select(0, index.to(self._device))
        return images.flip(3) if flip else images

    def cut_out(self, images: Tensor, index: Tensor, draws: Draws) -> Tensor:
        """Return the normalised images at ``index`` (float [B, C, H, W]) with their holes, which are 0."""
        if not self.settings.cutout:
            return images
        rows = self._holed(draws.hole_y[index], images.shape[2])
        columns = self._holed(draws.hole_x[index], images.shape[3])
        holes = (rows[:, :, :, None] & columns[:, :, None, :]).any(dim=1)
        return images.masked_fill(holes[:, None], 0.0)

    def _holed(self, middle: Tensor, size: int) -> Tensor:
        """Return bool [B, holes, size]: which rows or columns a hole covers, as far as it lies in the image."""
        first = middle[:, :, None] - self.settings.cutout // 2
        place = torch.arange(size, device=middle.device)
        return (first <= place) & (place < first + self.settings.cutout)


def centre(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the middle of images [N, C, H, W], cut to ``size`` (height, width): a view."""
    top, left = (round((have - want) / 2) for have, want in zip(images.shape[2:], size, strict=True))
    return images[:, :, top : top + size[0], left : left + size[1]]


def shifted(images: Tensor, padding: int, offset_y: Tensor, offset_x: Tensor) -> Tensor:
    """Return windows of the images [B, C, H, W], each of their own size and at its offset in the padded image.

    Rows are copied whole: ``windows`` begins a row of the result at each byte of the padded images.
    """
    batch, channels, height, width = images.shape
    padded = pad(images, [padding] * 4)
    row, plane = padded.shape[3], padded.shape[2] * padded.shape[3]
    windows = padded.view(-1).as_strided((padded.numel() - width + 1, width), (1, 1))
    device = images.device
    image = torch.arange(batch, device=device) * (channels * plane) + offset_y * row + offset_x
    rows = torch.arange(channels, device=device)[:, None] * plane + torch.arange(height, device=device) * row
    return windows.index_select(0, (image[:, None] + rows.view(-1)).view(-1)).view(images.shape)


def flipped(images: Tensor, chosen: Tensor) -> Tensor:
    """Return images [B, …, W] of which those that are ``chosen`` (bool [B]) are flipped left–right.

    Both kinds are made and one is taken by its place, several times as fast on a CPU as ``torch.where``.
    """
    place = torch.arange(len(images), device=images.device) + chosen * len(images)
    return torch.cat([images, images.flip(-1)]).index_select(0, place)


def resized(images: Tensor, box: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return the ``box`` (int64 [B, 4]) of each image of uint8 [B, C, H, W], resized to ``size`` or H×W and rounded.

    Bilinear, antialiased where it shrinks, as two small matrix products for each image: every batch is one operation,
    whatever its boxes.
    """
    height, width = size or images.shape[2:]
    rows = _weights(box[:, 0], box[:, 2], images.shape[2], height)
    columns = _weights(box[:, 1], box[:, 3], images.shape[3], width)
    out = rows[:, None] @ images.float() @ columns[:, None].mT
    return out.round_().clamp_(0, 255).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, size: int, wanted: int) -> Tensor:
    """Return float32 [B, wanted, size]: what each pixel (last) gives to each pixel of the result.

    A triangle as wide as the step between two pixels, of the image or of the result, whichever is the longer.
    """
    step = length / wanted
    place = torch.arange(size, device=start.device) + 0.5
    middle = (torch.arange(wanted, device=start.device) + 0.5)[:, None] * step[:, None, None]
    found = place - start[:, None, None]
    inside = (found > 0) & (found < length[:, None, None])
    weights = (1 - (found - middle).abs() / step.clamp(min=1)[:, None, None]).clamp_(min=0) * inside
    return weights / weights.sum(dim=2, keepdim=True)


def normalise(images: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
    """Return uint8 [B, C, H, W] as float32: pixels / 255, then (x - mean) / std by channel where these are given."""
    scaled = images.float().div_(255)
    if mean is None or std is None:
        return scaled
    return scaled.sub_(mean[:, None, None]).div_(std[:, None, None])
