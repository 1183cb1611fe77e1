"""Image data sets, resident on the device as uint8: a training part, a validation part, and a test set kept apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import PIL
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import interpolate

from ablate.errors import AblateError
from ablate.train import cifar, imagefolder
from ablate.train.images import Images
from ablate.train.prepared import prepared
from ablate.train.seeding import stream_seed
from ablate.train.settings import Settings

CHUNK = 256  # images widened at once: they fit a cache, and it changes no value
DIGITS_TEST_PER_CLASS = 36


class DataSettings(Settings):
    """The ``data:`` mapping of a study.

    name        ``cifar10``, ``cifar100``, ``digits`` (scikit-learn's 1,797 grey 8×8 images) or ``folder``
    labels      ``fine`` (100 classes, the default) or ``coarse`` (20); only CIFAR-100 has both
    size        resize every image once to size×size pixels, bilinear; null: as they are. Of an image folder, needed:
                the size that the network is given, cut from the middle
    split_seed  which images are held out for validation; the same for every replicate
    validation  number of images held out of the training set
    subset      number of images kept of those that are left; null: all
    path        of an image folder, absolute or below ``cifar.data_folder()``: see ``imagefolder.find``
    resize      of an image folder: what the shorter side is resized to before the middle is cut out; training images
                are kept as squares of this size, for a resized crop to choose from. null: ``size``
    test        of an image folder of classes alone: number of images held out as the test set
    """

    name: Literal["cifar10", "cifar100", "digits", "folder"]
    labels: Literal["fine", "coarse"] | None = None
    size: int | None = Field(default=None, ge=1, le=4096)
    split_seed: int = Field(ge=0)
    validation: int = Field(ge=1)
    subset: int | None = Field(default=None, ge=1)
    path: str | None = None
    resize: int | None = Field(default=None, ge=1, le=4096)
    test: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _labels_are_cifar100s(self) -> DataSettings:
        if self.labels is not None and self.name != "cifar100":
            raise ValueError(f"only cifar100 has fine and coarse labels, {self.name} has one kind; remove `labels`")
        return self

    @model_validator(mode="after")
    def _a_folder_has_a_path(self) -> DataSettings:
        if self.name != "folder":
            for name in ("path", "resize", "test"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is of an image folder, {self.name} has none; remove it")
        elif not self.path or self.size is None:
            raise ValueError("an image folder needs `path` and `size`")
        elif self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize {self.resize} leaves no middle of size {self.size}")
        return self


@dataclass(frozen=True)
class ImageData:
    """One data set, split. ``mean`` and ``std`` (float32 [C]) are those of the training part's pixels in 0…1.

    ``size`` is that of the images that the network is given; the training part may be kept larger, to be cropped.
    """

    train: Images
    validation: Images
    classes: int
    channels: int
    size: int
    mean: Tensor
    std: Tensor
    read_test: Callable[[], Images]
    """Read the test set: a function, so that it is read once, when nothing is chosen any more."""

    def sha256(self) -> str:
        """Return the SHA-256 over the training part's images and labels, as they lie on the device."""
        return self.train.sha256


def load(settings: Mapping[str, Any], *, device: str | torch.device = "cpu") -> ImageData:
    """Return the data set that ``settings`` (see DataSettings) asks for, resident on ``device``.

    CIFAR is looked for in ``cifar.data_folder()`` and downloaded into it where it is missing; every file that is read
    is checked against its published SHA-256. The split is a random permutation drawn from ``split_seed``: first the
    validation images, then the training images. Parts of CIFAR and of image folders are kept, see ``prepared``. Raises
    AblateError for wrong settings, DataError for wrong data.
    """
    chosen = DataSettings.read(settings, "data")
    if chosen.name == "folder":
        return _folder(chosen, device)
    source = _digits() if chosen.name == "digits" else _cifar(chosen)
    # torch's resizing may differ in its last bit elsewhere
    resizing = {"size": chosen.size, "device": torch.device(device).type, "torch": torch.__version__}
    drawn = {"split_seed": chosen.split_seed, "validation": chosen.validation}

    @cache
    def parts() -> tuple[Images, Images]:
        pool = source.read()
        kept, held_out = split(len(pool), subset=chosen.subset, **drawn)
        return pool.take(kept), pool.take(held_out)

    def place(read: Callable[[], Images], files: Sequence[str], **how: Any) -> Images:
        def make() -> Images:
            part = read()
            return Images(resized(part.images, chosen.size, device), part.labels.to(device), part.places)

        if not files:
            return make()
        made_from = {"files": files, "column": source.column, **how, **(resizing if chosen.size else {})}
        return prepared(_prepared_folder(), made_from, lambda: make().to("cpu")).to(device)

    train = place(lambda: parts()[0], source.files, **drawn, subset=chosen.subset)
    mean, std = mean_and_std(train.images)
    return ImageData(
        train=train,
        validation=place(lambda: parts()[1], source.files, **drawn),
        classes=source.classes,
        channels=train.images.shape[1],
        size=train.images.shape[2],
        mean=mean,
        std=std,
        read_test=lambda: place(source.read_test, source.test_files),
    )


def split(count: int, *, validation: int, subset: int | None, split_seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices (int64) of the training and of the validation images among ``count``. They share none.

    A smaller ``subset`` of one split is a prefix of a larger one. Raises AblateError where there are too few images.
    """
    left = count - validation
    if left < (subset or 1):
        wanted = f"`data.validation: {validation}`" + (f" and `data.subset: {subset}`" if subset else "")
        room = f"at most {left} remain for `data.subset`" if left > 0 else "none would be left to train on"
        raise AblateError(
            f"{wanted} ask for more images than the {count} of the training set", hint=f"{room}; lower one of them"
        )
    generator = torch.Generator().manual_seed(stream_seed(split_seed, "split"))
    shuffled = torch.randperm(count, generator=generator)
    return shuffled[validation:][: subset or left], shuffled[:validation]


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation (÷ N) of each channel of uint8 [N, C, H, W], scaled to 0…1.

    Both are float32 [C]. The sums are whole numbers below 2⁵³, exact in float64, so that they depend neither on the
    device nor on the order of summation.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64, device=images.device)
    squares = torch.zeros_like(total)
    for start in range(0, len(images), CHUNK):
        wide = images[start : start + CHUNK].flatten(2).double()
        total += wide.sum(dim=2).sum(dim=0)
        squares += wide.square_().sum(dim=2).sum(dim=0)
    count = images.numel() // images.shape[1]
    mean = total / count
    variance = squares / count - mean.square()
    return (mean / 255).float(), (variance.sqrt() / 255).float()


def resized(images: Tensor, size: int | None, device: str | torch.device) -> Tensor:
    """Return uint8 [N, C, size, size] on ``device``: bilinear, antialiased where it shrinks, rounded to whole numbers.

    With ``size`` None the images keep theirs.
    """
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images.to(device)
    out = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8, device=device)
    for start in range(0, len(images), CHUNK):
        wide = images[start : start + CHUNK].to(device).float()
        wide = interpolate(wide, (size, size), mode="bilinear", align_corners=False, antialias=True)
        out[start : start + CHUNK] = wide.round_().clamp_(0, 255)
    return out


def _folder(chosen: DataSettings, device: str | torch.device) -> ImageData:
    assert chosen.path is not None
    assert chosen.size is not None
    size, resize = chosen.size, chosen.resize or chosen.size
    files, test = imagefolder.find(cifar.data_folder() / chosen.path)
    if test and chosen.test:
        raise AblateError(
            f"`data.test: {chosen.test}` does nothing: `{chosen.path}` has a test set of its own",
            hint="set `data.test` to null",
        )
    if not test:
        files, test = _test_held_out(files, chosen)
    kept, held_out = split(len(files), validation=chosen.validation, subset=chosen.subset, split_seed=chosen.split_seed)

    def read(part: imagefolder.Files, places: Tensor | None, side: int) -> Images:
        made_from = {
            "files": imagefolder.hashes(part.paths),
            "labels": part.labels.tolist(),
            "places": None if places is None else places.tolist(),
            "resize": resize,
            "crop": side,
            "pillow": PIL.__version__,
        }

        def make() -> Images:
            return Images(imagefolder.decode(part.paths, resize=resize, crop=side), part.labels, places)

        return prepared(_prepared_folder(), made_from, make).to(device)

    train = read(files.take(kept), kept, resize)
    mean, std = mean_and_std(train.images)
    return ImageData(
        train=train,
        validation=read(files.take(held_out), held_out, size),
        classes=len(files.classes),
        channels=3,
        size=size,
        mean=mean,
        std=std,
        read_test=lambda: read(test, None, size),
    )


def _test_held_out(files: imagefolder.Files, chosen: DataSettings) -> tuple[imagefolder.Files, imagefolder.Files]:
    """Return the files less a test set that hangs on ``split_seed`` alone, and the test set."""
    if chosen.test is None or chosen.test >= len(files):
        raise AblateError(
            f"`{chosen.path}` has no test set of its own, and `data.test: {chosen.test}` holds none out",
            hint=f"set `data.test` to a number of its {len(files)} images, or make folders train/ and test/",
        )
    generator = torch.Generator().manual_seed(stream_seed(chosen.split_seed, "test"))
    shuffled = torch.randperm(len(files), generator=generator)
    return files.take(shuffled[chosen.test :].sort().values), files.take(shuffled[: chosen.test].sort().values)


@dataclass(frozen=True)
class _Source:
    """A data set as it is filed; ``files`` and ``test_files`` are hashes of what is read. Without, no part is kept."""

    read: Callable[[], Images]
    read_test: Callable[[], Images]
    classes: int
    column: int = 0
    files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()


def _prepared_folder() -> Path:
    return cifar.data_folder() / "prepared"


def _cifar(chosen: DataSettings) -> _Source:
    source = cifar.SOURCES[chosen.name]
    folder = cifar.data_folder()
    cifar.provide(source, folder)
    classes, column = 10, 0
    if chosen.name == "cifar100":
        classes, column = (20, 0) if chosen.labels == "coarse" else (100, 1)

    def read(files: tuple[tuple[str, str], ...]) -> Images:
        records = torch.from_numpy(cifar.read(source, files, folder))
        images = records[:, len(source.label_keys) :].view(-1, 3, 32, 32)
        return Images(images, records[:, column].long())

    return _Source(
        read=lambda: read(source.train),
        read_test=lambda: read(source.test),
        classes=classes,
        column=column,
        files=tuple(cifar.SHA256[binary] for binary, _ in source.train),
        test_files=tuple(cifar.SHA256[binary] for binary, _ in source.test),
    )


def _digits() -> _Source:
    """The digits, of which there are too few for a file of their own."""
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)  # values 0…16
    images = torch.from_numpy((pixels * (255 / 16)).round().astype("uint8")).view(-1, 1, 8, 8)
    everything = Images(images, torch.from_numpy(targets.astype("int64")))
    is_test = torch.zeros(len(everything), dtype=torch.bool)
    for digit in range(10):
        # evenly spaced within each class: a fixed test set that hangs on no seed and on no random generator
        members = (everything.labels == digit).nonzero().flatten()
        is_test[members[torch.arange(DIGITS_TEST_PER_CLASS) * len(members) // DIGITS_TEST_PER_CLASS]] = True
    pool, test = (everything.take(mask.nonzero().flatten()) for mask in (~is_test, is_test))
    return _Source(read=lambda: pool, read_test=lambda: test, classes=10)
