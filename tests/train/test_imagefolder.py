"""Image folders: the same images as torchvision's, parts that share none, and one line for what can't be read."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ablate.errors import AblateError, DataError
from ablate.train.data import load, mean_and_std
from ablate.train.imagefolder import decode, find

SIZES = [(40, 30), (30, 40), (37, 51), (64, 64), (33, 20), (25, 90)]


def write_image(path: Path, seed: int, *, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)


def write_classes(folder: Path, count: int, *, classes: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> Path:
    for label, name in enumerate(classes):
        for number in range(count):
            place = seed + 100 * label + number
            suffix = ("jpg", "png", "JPEG", "bmp", "webp")[number % 5]
            mode = "L" if number % 4 == 3 else "RGB"
            write_image(folder / name / f"{number}.{suffix}", place, size=SIZES[place % len(SIZES)], mode=mode)
    return folder


@pytest.fixture
def birds(data_home: Path) -> Path:
    """A data set in torchvision's layout below the data folder: 24 images to train on, 10 to test."""
    write_classes(data_home / "birds" / "train", 12)
    write_classes(data_home / "birds" / "test", 5, seed=1000)
    return data_home / "birds"


BIRDS = {"name": "folder", "path": "birds", "resize": 24, "size": 20, "split_seed": 0, "validation": 6}


def by_torchvision(folder: Path, resize: int, crop: int) -> tuple[torch.Tensor, list[int]]:
    steps = [transforms.Resize(resize), transforms.CenterCrop(crop), transforms.PILToTensor()]
    images, labels = zip(*ImageFolder(folder, transforms.Compose(steps)), strict=True)
    return torch.stack(images), list(labels)


def test_images_order_and_labels_are_those_of_torchvision(birds: Path) -> None:
    (birds / "train" / "cat" / "deeper").mkdir()
    write_image(birds / "train" / "cat" / "deeper" / "a.png", 77)
    (birds / "train" / "cat" / "notes.txt").write_text("passed over by both")
    (birds / "train" / "cat" / ".DS_Store").write_text("as is this")
    files, test = find(birds)
    assert test is not None
    for found, part in ((files, "train"), (test, "test")):
        for resize, crop in ((24, 20), (24, 24), (21, 7), (100, 64)):
            expected, labels = by_torchvision(birds / part, resize, crop)
            assert torch.equal(decode(found.paths, resize=resize, crop=crop), expected), (part, resize, crop)
        assert found.labels.tolist() == labels
        assert found.classes == ("cat", "dog")


def test_parts_are_what_torchvision_evaluates_and_share_no_image(birds: Path) -> None:
    data = load(BIRDS)
    assert (data.classes, data.channels, data.size) == (2, 3, 20)
    evaluated, labels = by_torchvision(birds / "train", 24, 20)
    stored, _ = by_torchvision(birds / "train", 24, 24)
    kept, held_out = data.train.ids, data.validation.ids
    assert (len(kept), len(held_out)) == (18, 6)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(24))
    assert torch.equal(data.train.images, stored[kept])
    assert torch.equal(data.validation.images, evaluated[held_out])
    assert data.train.labels.tolist() == [labels[i] for i in kept]
    assert data.validation.labels.tolist() == [labels[i] for i in held_out]
    test = data.read_test()
    expected, labels = by_torchvision(birds / "test", 24, 20)
    assert torch.equal(test.images, expected)
    assert test.labels.tolist() == labels
    for ours, theirs in zip((data.mean, data.std), mean_and_std(stored[kept]), strict=True):
        assert torch.equal(ours, theirs), "of the training part alone"


def test_val_stands_in_for_test(birds: Path) -> None:
    before = load(BIRDS).read_test().images
    (birds / "test").rename(birds / "val")
    assert torch.equal(load(BIRDS).read_test().images, before)
    write_classes(birds / "test", 1)
    with pytest.raises(DataError, match=r"has both test/ and val/"):
        load(BIRDS)


def test_classes_alone_are_split_by_the_seed(data_home: Path) -> None:
    write_classes(data_home / "birds", 15)
    settings = BIRDS | {"test": 8}
    data, again = load(settings), load(settings | {"subset": 5, "validation": 9})
    test = data.read_test()
    assert torch.equal(test.images, again.read_test().images), "whatever is drawn for the other parts"
    assert not torch.equal(test.images, load(settings | {"split_seed": 1}).read_test().images)
    everything, _ = by_torchvision(data_home / "birds", 24, 20)
    middle = data.train.images[:, :, 2:22, 2:22]
    rows = {row.numpy().tobytes() for part in (test.images, data.validation.images) for row in part}
    assert len(test) == 8
    assert len(rows) == 8 + 6
    assert rows <= {row.numpy().tobytes() for row in everything}
    assert not rows & {row.numpy().tobytes() for row in middle}


def test_what_the_images_are_is_known_by_their_hash(birds: Path) -> None:
    one = load(BIRDS)
    assert one.sha256() == load(BIRDS).sha256()
    first = find(birds)[0].paths[int(one.train.ids[0])]
    write_image(first, 4711)
    assert one.sha256() != load(BIRDS).sha256()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": None}, "error: `data`: an image folder needs `path` and `size`"),
        ({"size": None}, "error: `data`: an image folder needs `path` and `size`"),
        ({"resize": 16}, "error: `data`: resize 16 leaves no middle of size 20"),
        ({"test": 3}, "error: `data.test: 3` does nothing: `birds` has a test set of its own"),
        ({"labels": "fine"}, "error: `data`: only cifar100 has fine and coarse labels"),
        ({"name": "digits"}, "error: `data`: path is of an image folder, digits has none; remove it"),
        ({"validation": 24}, "error: `data.validation: 24` ask for more images than the 24"),
    ],
)
def test_settings_of_no_effect_or_sense_are_refused(change: dict[str, Any], message: str, birds: Path) -> None:
    assert birds.is_dir()
    with pytest.raises(AblateError) as failure:
        load(BIRDS | change)
    assert str(failure.value).startswith(message)
    assert failure.value.exit_code == 2


def test_a_folder_of_classes_alone_needs_a_number(data_home: Path) -> None:
    write_classes(data_home / "birds", 5)
    for test in (None, 10):
        with pytest.raises(AblateError, match=r"has no test set of its own, and `data.test: (None|10)` holds none out"):
            load(BIRDS | {"test": test})


# --- hostile folders ---------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as failure:
        load(BIRDS | {"path": str(path)})
    text = str(failure.value)
    assert text.startswith("error: ")
    assert text.count("\n") <= 1, "a line and a hint"
    return text


def test_a_missing_folder_says_where_it_is_looked_for(data_home: Path) -> None:
    assert refusal(data_home / "none").startswith(
        f"error: the image folder {data_home / 'none'} can't be read: No such"
    )
    (data_home / "file").parent.mkdir(exist_ok=True)
    (data_home / "file").write_text("")
    assert "can't be read: Not a directory" in refusal(data_home / "file")
    (data_home / "empty").mkdir()
    assert "has no folders in it" in refusal(data_home / "empty")


def test_empty_classes_and_other_classes_are_named(birds: Path) -> None:
    (birds / "train" / "emu").mkdir()
    (birds / "train" / "emu" / "readme.md").write_text("soon")
    assert f"the class {birds / 'train' / 'emu'} has no images" in refusal(birds)
    write_image(birds / "train" / "emu" / "1.png", 1)
    assert f"train/ and test/ of {birds} differ in their classes: emu" in refusal(birds)


def png_of(width: int, height: int) -> bytes:
    """A small PNG that claims a size; its pixels are never there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not an image", "cannot identify image file"),
        (b"", "cannot identify image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify image file"),
        (png_of(60_000, 60_000), "60000×60000 pixels are more than 67,108,864|decompression bomb"),
        (png_of(10_000, 10_000), "10000×10000 pixels are more than 67,108,864"),
        (png_of(10, 5_000_000), "12000000×24 pixels|24×12000000 pixels are more than"),
    ],
    ids=["text", "empty", "postscript", "bomb", "large", "long"],
)
def test_what_is_no_image_is_named(content: bytes, reason: str, birds: Path) -> None:
    bad = birds / "train" / "cat" / "bad.png"
    for place in birds.glob("train/*/*"):
        place.unlink()
    bad.write_bytes(content)
    for number in range(9):
        write_image(birds / "train" / "dog" / f"{number}.png", number)
        os.link(bad, birds / "train" / "cat" / f"{number}.jpg")
    said = refusal(birds)
    assert str(birds / "train" / "cat") in said
    assert any(each in said for each in reason.split("|")), said


def test_a_truncated_image_is_named(birds: Path) -> None:
    for path in birds.glob("train/cat/*.jpg"):
        path.write_bytes(path.read_bytes()[:-400])
    for path in birds.glob("train/cat/*.png"):
        path.write_bytes(path.read_bytes()[:200])
    assert "is not an image that can be read: " in refusal(birds)


def test_links_that_lead_out_are_refused(birds: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "secret.png", 1)
    link = birds / "train" / "cat" / "zz.png"
    link.symlink_to(tmp_path / "secret.png")
    assert f"{link} is a link to a file outside of {birds}" in refusal(birds)
    link.unlink()
    link.symlink_to(birds / "train" / "cat" / "0.jpg")
    assert len(load(BIRDS).train) == 19, "a link within is an image as any"
    link.unlink()
    around = birds / "train" / "cat" / "around"
    around.symlink_to(birds / "train")
    assert f"{around} is a link to a folder" in refusal(birds)
    around.unlink()
    os.mkfifo(birds / "train" / "cat" / "pipe.png")
    assert "pipe.png is not a file" in refusal(birds)


# --- training from a larger size ---------------------------------------------------------------------------------


@pytest.mark.data
def test_flowers_are_those_of_torchvision(real_data: Path) -> None:
    if not (real_data / "flowers5").is_dir():
        pytest.skip("ABLATE_TEST_DATA has no flowers5")
    files, test = find(real_data / "flowers5")
    assert test is None
    assert files.classes == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    reference = ImageFolder(
        real_data / "flowers5",
        transforms.Compose([transforms.Resize(110), transforms.CenterCrop(96), transforms.PILToTensor()]),
    )
    assert [str(path) for path in files.paths] == [path for path, _ in reference.samples]
    assert files.labels.tolist() == reference.targets
    some = torch.arange(0, len(files), 97)
    expected = torch.stack([reference[i][0] for i in some.tolist()])
    assert torch.equal(decode(files.take(some).paths, resize=110, crop=96), expected)
