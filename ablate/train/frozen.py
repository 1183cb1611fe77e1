"""Networks that learn nothing more, below a head that does: what they make of an image is computed once, if it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A network whose weights stay as they are, and the statistics of its BatchNorm as well: always in evaluation mode.

    ``nn.Sequential(Frozen(backbone), head)`` trains the head alone. The loop then computes the backbone's features
    once for each image and view (``AugmentSettings.views``), and keeps no frozen weights in checkpoints.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def parted(model: nn.Module) -> tuple[Frozen | None, nn.Module]:
    """Return the frozen part that a model begins with, if it does, and what learns."""
    if isinstance(model, nn.Sequential) and len(model) > 1 and isinstance(model[0], Frozen):
        return model[0], model[1:]
    return None, model


def in_batches(function: Callable[[Tensor], Tensor], count: int, batch: int) -> Tensor:
    """Return what ``function`` makes of the indices 0…count - 1 (int64 [≤ batch]), in their order."""
    return torch.cat([function(torch.arange(start, min(start + batch, count))) for start in range(0, count, batch)])
