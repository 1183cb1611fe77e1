"""Scores per example: what a task may give, and ``scores.npz``, which takes them to the runner. No torch here."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import ArrayLike, NDArray

from ablate.train.folder import open_plain, write_whole

LIMIT = 64 * 2**20  # bytes of the arrays: four million examples
LARGEST = float(np.finfo(np.float32).max)

Arrays = tuple[NDArray[np.int64], NDArray[np.float64]]


def checked(ids: Sequence[int] | ArrayLike, values: Sequence[float] | ArrayLike) -> Arrays:
    """Return ids (int64 [N]) and values (float64 [N]) as arrays. Raises ValueError where they are no scores."""
    names, numbers = np.asarray(ids), np.asarray(values, np.float64)
    if names.ndim != 1 or numbers.ndim != 1 or len(names) != len(numbers):
        raise ValueError(f"scores: ids of shape {names.shape} but values of shape {numbers.shape}")
    if not len(names):
        raise ValueError("scores: no example was scored")
    if names.dtype.kind not in "iu":
        raise ValueError(f"scores: an id is a whole number, not {names[0]!r}")
    rising, counts = np.unique(names, return_counts=True)
    if len(rising) < len(names):
        raise ValueError(f"scores: the id {rising[counts > 1][0]} is there twice")
    bad = ~(np.abs(numbers) <= LARGEST)
    if bad.any():
        raise ValueError(f"scores: the score of id {names[bad][0]} is {numbers[bad][0]}; it must be finite, as float32")
    return names.astype(np.int64), numbers


def write(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, ids=arrays[0], values=arrays[1])
    write_whole(path, buffer.getbuffer(), what="scores")


def read(path: Path) -> Arrays:
    """Return ids and values of a ``scores.npz``, whoever wrote it. Raises ValueError with the reason where it can't.

    Nothing is unpickled, and nothing is unpacked beyond ``LIMIT``.
    """
    try:
        with open_plain(path) as data, zipfile.ZipFile(data) as file:
            parts = [file.getinfo(f"{name}.npy") for name in ("ids", "values")]
            size = sum(part.file_size for part in parts)
            if size > LIMIT:
                raise ValueError(f"{size:,} bytes, more than {LIMIT:,}")
            ids, values = (_array(file, part) for part in parts)
            return checked(ids, values)
    except Exception as error:  # a torn or foreign file fails in many ways, and none may end the run
        raise ValueError(str(error) or type(error).__name__) from error


def _array(file: zipfile.ZipFile, part: zipfile.ZipInfo) -> NDArray[Any]:
    """Return the numbers of an ``.npy`` file; ``numpy.load`` would make room for any shape that its header claims."""
    with file.open(part) as stream:
        data = io.BytesIO(stream.read(part.file_size))
    if npy.read_magic(data) != (1, 0):
        raise ValueError(f"{part.filename} is not as numpy.savez writes it")
    shape, _, dtype = npy.read_array_header_1_0(data)
    if len(shape) != 1 or dtype not in (np.int64, np.float64) or shape[0] * 8 != part.file_size - data.tell():
        raise ValueError(f"{part.filename} holds no list of numbers")
    return np.frombuffer(data.read(), dtype)
