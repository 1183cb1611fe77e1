"""Parts of data sets in files that all workers map: the same bits, made once, held once, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ablate.train import prepared as module
from ablate.train.data import load
from ablate.train.images import Images
from ablate.train.prepared import UNUSED_S, prepared

ABOUT = {"files": ["0" * 64], "split_seed": 0}


def some_images(count: int = 5, size: int = 7) -> Images:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % 3, torch.randperm(count, generator=generator))


def never() -> Images:
    raise AssertionError("it was there already")


def is_mapped(tensor: Tensor) -> bool:
    """Tell whether a tensor lies in a mapped part, by the kernel's own list."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return ".part" in line
    return False


def same(one: Images, other: Images) -> bool:
    pairs = ((one.images, other.images), (one.labels, other.labels), (one.ids, other.ids))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_a_part_is_made_once_and_then_mapped(tmp_path: Path) -> None:
    made = some_images()
    first = prepared(tmp_path / "prepared", ABOUT, lambda: made)
    again = prepared(tmp_path / "prepared", ABOUT, never)
    for part in (first, again):
        assert same(part, made)
        assert is_mapped(part.images)
        assert part.sha256 == made.sha256
    assert not is_mapped(made.images)


def test_what_it_is_made_from_tells_parts_apart(tmp_path: Path) -> None:
    prepared(tmp_path, ABOUT, some_images)
    other = prepared(tmp_path, ABOUT | {"split_seed": 1}, lambda: some_images(9))
    assert len(other) == 9
    assert len(prepared(tmp_path, ABOUT, never)) == 5


def test_who_writes_into_its_part_writes_for_itself_alone(tmp_path: Path) -> None:
    part = prepared(tmp_path, ABOUT, some_images)
    part.images.zero_()
    assert same(prepared(tmp_path, ABOUT, never), some_images())


@pytest.mark.parametrize("place", [10, module.HEADER + 3, module.HEADER + 45, -1])
def test_a_byte_that_is_not_what_was_written_has_the_part_made_anew(tmp_path: Path, place: int) -> None:
    prepared(tmp_path, ABOUT, some_images)
    (path,) = tmp_path.glob("*.part")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    made = []
    part = prepared(tmp_path, ABOUT, lambda: made.append(1) or some_images())  # type: ignore[func-returns-value]
    assert made == [1]
    assert same(part, some_images())
    assert same(prepared(tmp_path, ABOUT, never), some_images())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[1]", b"null", b'{"shape": [-1, 3], "sha256": ""}', b"\xff" * 5000, b'{"shape": ["a"]}',
        b'{"shape": [9999999999, 3, 32, 32], "sha256": "", "places_sha256": ""}', b"[" * 4096,
    ],
)  # fmt: skip
def test_what_no_worker_wrote_is_passed_over(tmp_path: Path, content: bytes) -> None:
    prepared(tmp_path, ABOUT, some_images)
    (path,) = tmp_path.glob("*.part")
    path.write_bytes(content)
    assert same(prepared(tmp_path, ABOUT, some_images), some_images())


def test_a_link_or_a_pipe_in_its_place_is_not_followed(tmp_path: Path) -> None:
    prepared(tmp_path / "real", ABOUT, some_images)
    (path,) = (tmp_path / "real").glob("*.part")
    for number, make in enumerate((lambda place: place.symlink_to(path), os.mkfifo)):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder / path.name)
        made = []
        assert same(prepared(folder, ABOUT, lambda made=made: made.append(1) or some_images()), some_images())
        assert made == [1]


def test_a_folder_that_cannot_be_made_is_said_and_does_no_harm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prepared").write_text("a file where the folder should be")
    part = prepared(tmp_path / "prepared", ABOUT, some_images)
    assert same(part, some_images())
    assert not is_mapped(part.images)
    said = f"ablate: {tmp_path / 'prepared'} takes no data (File exists); this trial has its own copy\n"
    assert capsys.readouterr().err == said


def test_a_disk_that_it_would_fill_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEFT", 1e15)
    assert same(prepared(tmp_path, ABOUT, some_images), some_images())
    assert not list(tmp_path.glob("*.part"))
    assert "takes no data (815 bytes to be written, and " in capsys.readouterr().err


def test_parts_that_nobody_opens_are_removed_when_another_is_made(tmp_path: Path) -> None:
    for number in range(3):
        prepared(tmp_path, ABOUT | {"split_seed": number}, some_images)
    mapped = prepared(tmp_path, ABOUT, never)
    long_ago = time.time() - UNUSED_S - 60
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    prepared(tmp_path, ABOUT | {"split_seed": 1}, never)
    prepared(tmp_path, ABOUT | {"split_seed": 9}, some_images)
    assert len(list(tmp_path.glob("*.part"))) == 2
    prepared(tmp_path, ABOUT | {"split_seed": 1}, never)
    assert same(mapped, some_images()), "whoever has one mapped keeps it"


# what a worker does: it maps a part and reads all of it; says how much memory is its own, after it alone did so
WORKER = """
import os, sys, time
from pathlib import Path
import torch
from ablate.train.images import Images
from ablate.train.prepared import prepared

def own_kib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))

def make():
    with open(sys.argv[2], "a") as file:
        file.write("made\\n")
    return Images(torch.ones(20_000, 3, 32, 32, dtype=torch.uint8), torch.zeros(20_000, dtype=torch.int64))

part = prepared(Path(sys.argv[1]), {"files": []}, make)
before = own_kib()
print("mapped", flush=True)
sys.stdin.readline()
part.images.sum()
print(own_kib() - before, flush=True)
sys.stdin.readline()
"""


def test_workers_side_by_side_make_it_once_and_hold_it_once(tmp_path: Path) -> None:
    command: list[Any] = [sys.executable, "-c", WORKER, tmp_path / "prepared", tmp_path / "made"]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        for worker in workers:
            assert worker.stdout
            assert worker.stdout.readline() == "mapped\n"
        assert (tmp_path / "made").read_text() == "made\n"
        own = []
        for worker in workers:
            assert worker.stdin
            assert worker.stdout
            worker.stdin.write("\n")
            worker.stdin.flush()
            own.append(int(worker.stdout.readline()))
        assert max(own) < 6_000, f"of 60,000 KiB of images, each has {own} KiB to itself"
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


# --- data sets


@pytest.fixture
def birds(data_home: Path) -> Path:
    folder = data_home / "birds"
    for number in range(12):
        place = folder / ("jay" if number % 2 else "owl")
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


BIRDS = {"name": "folder", "path": "birds", "size": 8, "resize": 10, "split_seed": 0, "validation": 3, "test": 2}


@pytest.mark.usefixtures("birds")
def test_images_of_a_folder_are_decoded_once(data_home: Path) -> None:
    data = load(BIRDS)
    found = [data.train, data.validation, data.read_test()]
    assert all(is_mapped(part.images) for part in found)
    parts = sorted((path.name, path.stat().st_ino) for path in (data_home / "prepared").glob("*.part"))
    again = load(BIRDS)
    assert all(map(same, found, [again.train, again.validation, again.read_test()]))
    assert sorted((path.name, path.stat().st_ino) for path in (data_home / "prepared").glob("*.part")) == parts
    assert len(parts) == 3


def test_an_image_that_was_changed_is_seen_whatever_its_name_size_and_time(birds: Path) -> None:
    before = load(BIRDS)
    paths = sorted(birds.rglob("*.png"))
    contents, times = [path.read_bytes() for path in paths], [path.stat() for path in paths]
    for path, content, time_ in zip(paths, [*contents[1:], contents[0]], times, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(time_.st_atime_ns, time_.st_mtime_ns))
    after = load(BIRDS)
    assert not torch.equal(before.train.images, after.train.images)
    assert torch.equal(before.train.labels, after.train.labels)


def test_few_digits_need_no_file(data_home: Path) -> None:
    data = load({"name": "digits", "split_seed": 0, "validation": 300})
    assert not is_mapped(data.train.images)
    assert not data_home.exists()


@pytest.mark.data
@pytest.mark.usefixtures("real_data")
def test_real_subsets_share_their_validation_part() -> None:
    settings = {"name": "cifar100", "split_seed": 0, "validation": 2000, "subset": 100}
    small, large = load(settings), load(settings | {"subset": 200})
    assert same(small.validation, large.validation)
    assert torch.equal(small.train.images, large.train.images[:100])
    assert is_mapped(small.train.images)
