"""Images with their labels: a part of a data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images uint8 [N, C, H, W] and their labels int64 [N], both on the device.

    ``places`` (int64 [N], on the CPU) are those in the data set's own files, so that an image is known by one number
    however a part was drawn; None for images as they are filed.
    """

    images: Tensor
    labels: Tensor
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ids(self) -> Tensor:
        """The number that each image is known by: int64 [N]."""
        return torch.arange(len(self)) if self.places is None else self.places

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 over the images and then the labels, as they lie in memory."""
        digest = hashlib.sha256(self.images.contiguous().cpu().numpy().data)
        digest.update(self.labels.contiguous().cpu().numpy().data)
        return digest.hexdigest()

    def take(self, index: Tensor) -> Images:
        """Return the images at ``index`` (int64 [M]), in its order, as a copy."""
        return Images(self.images.index_select(0, index), self.labels[index], self.ids[index.cpu()])

    def to(self, device: str | torch.device) -> Images:
        """Return the images on ``device``: themselves, where they are there."""
        if self.images.device == torch.device(device):
            return self
        moved = Images(self.images.to(device), self.labels.to(device), self.places)
        moved.__dict__["sha256"] = self.sha256  # of the same bytes; they need not come back to be hashed
        return moved
