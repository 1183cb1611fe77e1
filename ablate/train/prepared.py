"""Parts of data sets as they are trained on, each in a file that all workers of a machine map into their memory.

Such a part is read, decoded, split and resized once, not once per trial, and stands in memory once however many trials
run. The files lie in ``prepared/`` of the data folder. They can be removed at any time: what is missing is made anew.

A file is a header (JSON, padded to a page), then labels, places and images as they lie in memory. Its name is the hash
of all that the part was made from, and the header holds the hash of all that follows, which is checked whenever a part
is opened. One that nobody opened for ``UNUSED_S`` is removed when another one is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablate.errors import EnvironmentFault
from ablate.failpoints import failpoint
from ablate.study.settings import canonical
from ablate.train.cifar import only_one
from ablate.train.folder import open_plain, write_whole
from ablate.train.images import Images

FORMAT = 1
HEADER = 4096  # bytes; the images begin at a multiple of 8, as torch wants of the labels
UNUSED_S = 14 * 86_400
LEFT = 4  # times its own size is what a part must find free on the disk: a cache is not what fills it


def prepared(folder: Path, made_from: Mapping[str, Any], make: Callable[[], Images]) -> Images:
    """Return the part that ``make`` returns (on the CPU), mapped from its file in ``folder``, which is filled once.

    ``made_from`` is all that the part hangs on, as plain values. Where the disk takes no file, the part is in this
    process's own memory, and the log says so. Raises what ``make`` raises.
    """
    name = hashlib.sha256(canonical({"format": FORMAT, **made_from}).encode()).hexdigest()
    path = folder / f"{name}.part"
    if found := _mapped(path):
        return found
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_one(path.with_suffix(".lock")))
        except OSError as refused:
            return _unkept(path, refused.strerror, make())
        if found := _mapped(path):  # another worker was quicker
            return found
        made = make()
        try:
            _write(path, made)
            _sweep(folder)
        except (OSError, EnvironmentFault) as refused:
            return _unkept(path, str(refused).removeprefix("error: ").splitlines()[0], made)
    return _mapped(path) or made


def _unkept(path: Path, reason: str | None, made: Images) -> Images:
    print(f"ablate: {path.parent} takes no data ({reason}); this trial has its own copy", file=sys.stderr)
    return made


def _mapped(path: Path) -> Images | None:
    """Return the part in a file; None where there is none, or not what was written."""
    try:
        with open_plain(path) as file:
            header = json.loads(file.read(HEADER))
            count, *shape = map(int, header["shape"])
            size = HEADER + 16 * count + count * math.prod(shape)
            if os.fstat(file.fileno()).st_size != size:
                return None
            # private to this process is only what it would write; reading alone shares the kernel's own copy
            whole = np.memmap(file, np.uint8, mode="c", offset=HEADER, shape=(size - HEADER,))
        with contextlib.suppress(OSError):  # of another user
            os.utime(path)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):  # of any other file
        return None
    numbers = torch.from_numpy(whole[: 16 * count].copy()).view(torch.int64).view(2, count)
    images = torch.from_numpy(whole[16 * count :]).view(count, *shape)
    part = Images(images, numbers[0], numbers[1])
    return part if _digests(part) == (header["sha256"], header["places_sha256"]) else None


def _digests(part: Images) -> tuple[str, str]:
    return part.sha256, hashlib.sha256(part.ids.numpy().data).hexdigest()


def _write(path: Path, part: Images) -> None:
    pieces = [part.labels.numpy(), part.ids.numpy(), part.images.contiguous().numpy()]
    needed, free = sum(piece.nbytes for piece in pieces), shutil.disk_usage(path.parent).free
    if free < LEFT * needed:
        raise OSError(f"{needed:,} bytes to be written, and {free:,} free")
    sha256, places_sha256 = _digests(part)
    header = {"shape": list(part.images.shape), "sha256": sha256, "places_sha256": places_sha256}
    write_whole(path, json.dumps(header).encode().ljust(HEADER), *(piece.data for piece in pieces), what="prepared")


def _sweep(folder: Path) -> None:
    """Remove parts that were not opened for long; who has one mapped keeps it."""
    before = time.time() - UNUSED_S
    for path in (*folder.glob("*.part"), *folder.glob("*.lock")):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps as well
            if path.stat().st_mtime < before:
                failpoint("prepared-swept")
                path.unlink()
