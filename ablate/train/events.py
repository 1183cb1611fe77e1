"""TensorBoard event files of one attempt: every recorded number by epoch, and validation images with predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ablate.errors import AblateError
from ablate.failpoints import failpoint
from ablate.train.folder import refusals
from ablate.train.images import Images

FOLDER = "tensorboard"  # within the attempt folder
SHOWN = 32  # validation images, the first ones
SIDE = 96  # pixels of a shown image, at least
CAPTION = 14  # pixels below it


def writer_class() -> Any:
    """Return what writes event files. Raises AblateError where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise AblateError(
            "`write: [tensorboard]` needs tensorboard, which is not installed",
            hint="pip install 'ablation-study[tensorboard]'",
        ) from None
    return SummaryWriter


class Events:
    """The event files of ``folder``/tensorboard. What is written is there for a live TensorBoard at once."""

    def __init__(self, folder: Path) -> None:
        """Begin a file. Raises AblateError where tensorboard is not installed."""
        writer = writer_class()
        self._folder = folder / FOLDER
        self._done = 0
        with self._refusals():
            self._writer = writer(str(self._folder))

    def scalars(self, records: Sequence[dict[str, Any]]) -> None:
        """Write the records that are new; ``val_loss`` becomes val/loss, so that curves of a part stand together."""
        with self._refusals():
            for record in records[self._done :]:
                for name, value in record.items():
                    part, _, rest = name.partition("_")
                    tag = f"{part}/{rest}" if part in ("train", "val") else name
                    if name != "epoch":
                        self._writer.add_scalar(tag, float(value), record["epoch"])
            self._writer.flush()
        self._done = len(records)

    def predictions(self, part: Images, guesses: npt.NDArray[np.int64], *, epoch: int) -> None:
        """Write the first images of ``part`` as one picture, each with its class and what it was taken for."""
        labels = part.labels[:SHOWN].tolist()
        shown = [
            captioned(image, f"{label} as {guess}", right=label == guess)
            for image, label, guess in zip(part.images[:SHOWN].cpu(), labels, guesses.tolist(), strict=False)
        ]
        with self._refusals():
            self._writer.add_images("val/predictions", torch.stack(shown), epoch)
            self._writer.flush()

    def close(self) -> None:
        with self._refusals():
            self._writer.close()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        with refusals(self._folder, "the event file"):
            failpoint("events-begun")
            yield


def captioned(image: Tensor, caption: str, *, right: bool) -> Tensor:
    """Return uint8 [C, H, W] enlarged, as uint8 [3, …] with the caption below: green where right, else red."""
    times = max(1, -(-SIDE // image.shape[2]))
    large = image.repeat_interleave(times, 1).repeat_interleave(times, 2).expand(3, -1, -1)
    strip = Image.new("RGB", (large.shape[2], CAPTION))
    ImageDraw.Draw(strip).text((2, 1), caption, fill=(96, 255, 96) if right else (255, 96, 96))
    return torch.cat([large, torch.from_numpy(np.array(strip)).permute(2, 0, 1)], dim=1)
