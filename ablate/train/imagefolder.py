"""Folders of images as torchvision's ``ImageFolder`` reads them: a folder for each class, decoded by PIL.

What is refused besides: links that lead elsewhere, files that are no images, and images that would fill the memory.
Hidden files and folders (``.DS_Store``, ``.ipynb_checkpoints``) are passed over, as are files of other suffixes.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ablate.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # of the many that PIL reads, some by calling other programs
LARGEST = 1 << 26  # pixels of an image, as it is filed and as it is resized


@dataclass(frozen=True)
class Files:
    """Image files in torchvision's order, their labels (int64 [N]) and the classes' names."""

    paths: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> Files:
        """Return the files at ``index`` (int64 [M]), in its order."""
        return Files(tuple(self.paths[i] for i in index.tolist()), self.labels[index], self.classes)


def find(folder: Path) -> tuple[Files, Files | None]:
    """Return the training files and the test files of a folder, or all of its files and None.

    It holds ``train/`` and ``test/`` (or ``val/`` in its place), each with a folder for each class; or such class
    folders themselves. Raises DataError for a folder that is missing, not so, or has an empty class.
    """
    names = _folders_in(folder)
    tests = [name for name in ("test", "val") if name in names]
    if "train" not in names or not tests:
        return _files(folder, root=folder), None
    if len(tests) == 2:
        raise DataError(
            f"{folder} has both test/ and val/", hint="keep one of them; the validation part is drawn from train/"
        )
    train, test = (_files(folder / name, root=folder) for name in ("train", tests[0]))
    if train.classes != test.classes:
        other = ", ".join(sorted({*train.classes} ^ {*test.classes}))
        raise DataError(f"train/ and {tests[0]}/ of {folder} differ in their classes: {other}")
    return train, test


def hashes(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file. Raises DataError for one that can't be read."""
    found = []
    for path in paths:
        try:
            with path.open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as failure:
            raise DataError(
                f"{path} is not an image that can be read: {failure}", hint="mend it or remove it"
            ) from None
    return found


def decode(paths: Sequence[Path], *, resize: int, crop: int) -> Tensor:
    """Return the images as uint8 [N, 3, crop, crop]: the shorter side resized to ``resize``, then the middle.

    Bit for bit what torchvision's ``Resize(resize)`` and ``CenterCrop(crop)`` make of a PIL image. Raises DataError
    for a file that is damaged, no image, or too large.
    """
    assert crop <= resize
    images = torch.empty((len(paths), 3, crop, crop), dtype=torch.uint8)
    for place, path in enumerate(paths):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _resized_size has a stricter limit
                with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
                    width, height = _resized_size(image.size, resize)
                    pixels = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        except Exception as failure:  # a damaged image can fail in any way
            raise DataError(
                f"{path} is not an image that can be read: {failure}", hint="mend it or remove it"
            ) from None
        left, top = round((width - crop) / 2), round((height - crop) / 2)
        square = np.asarray(pixels.crop((left, top, left + crop, top + crop)))
        images[place] = torch.from_numpy(square.copy()).permute(2, 0, 1)
    return images


class _TooLarge(Exception):
    pass


def _resized_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side resized, the longer rounded down, as torchvision has it."""
    width, height = size
    scaled = (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
    for w, h in (size, scaled):
        if w * h > LARGEST:
            raise _TooLarge(f"{w}×{h} pixels are more than {LARGEST:,}")
    return scaled


def _files(folder: Path, *, root: Path) -> Files:
    classes = _folders_in(folder)
    if not classes:
        raise DataError(f"{folder} has no folders in it", hint="each class is a folder of images")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = list(_images_in(folder / name, root=root))
        if not found:
            raise DataError(
                f"the class {folder / name} has no images",
                hint=f"remove the folder, or put images in it: {', '.join(SUFFIXES)}",
            )
        paths += found
        labels += [label] * len(found)
    return Files(tuple(paths), torch.tensor(labels, dtype=torch.int64), tuple(classes))


def _folders_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as failure:
        raise DataError(
            f"the image folder {folder} can't be read: {failure.strerror}",
            hint="`data.path` is absolute, or lies in the folder that --data-dir or ABLATE_DATA names",
        ) from None


def _images_in(folder: Path, *, root: Path) -> Iterator[Path]:
    def unreadable(failure: OSError) -> None:
        raise DataError(f"{failure.filename} can't be read: {failure.strerror}")

    _refuse_link(folder, root)
    for place, folders, names in sorted(os.walk(folder, onerror=unreadable)):
        for name in folders:
            _refuse_link(Path(place, name), root)
        if any(part.startswith(".") for part in Path(place).relative_to(folder).parts):
            continue
        for name in sorted(names):
            if name.startswith(".") or not name.lower().endswith(SUFFIXES):
                continue
            path = Path(place, name)
            _refuse_link(path, root)
            if not path.is_file():  # a pipe would never end
                raise DataError(f"{path} is not a file", hint="remove it")
            yield path


def _refuse_link(path: Path, root: Path) -> None:
    """Refuse links to folders, which may go round in circles, and to anything outside of the data's own folder."""
    if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(root.resolve())):
        raise DataError(
            f"{path} is a link to {'a folder' if path.is_dir() else 'a file outside of ' + str(root)}",
            hint="put the images themselves there",
        )
