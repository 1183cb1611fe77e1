"""Scores per example, from the task to the file that the runner reads."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablate.train import scores
from ablate.train.context import Context


def test_scores_are_read_as_they_were_given(tmp_path: Path) -> None:
    context = Context(seed=1, folder=tmp_path)
    context.scores([7, -3], [0.5, 1e-300])
    context.scores(torch.tensor([5, 9]), torch.tensor([True, False]))  # type: ignore[arg-type]
    ids, values = scores.read(tmp_path / "scores.npz")
    assert (ids.tolist(), values.tolist()) == ([5, 9], [1.0, 0.0])
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npz"]


@pytest.mark.parametrize(
    ("ids", "values", "message"),
    [
        ([1, 2], [1.0], r"ids of shape \(2,\) but values of shape \(1,\)"),
        ([[1]], [[1.0]], "ids of shape"),
        ([], [], "no example was scored"),
        ([1.0], [1.0], "an id is a whole number, not "),
        ([4, 5, 4], [1.0, 1.0, 1.0], "the id 4 is there twice"),
        ([4, 5], [1.0, float("nan")], "the score of id 5 is nan; it must be finite"),
        ([4, 5], [float("-inf"), 1.0], "the score of id 4 is -inf"),
        ([4], [1e39], "the score of id 4 is .*as float32"),
    ],
)
def test_what_is_no_score_is_refused(tmp_path: Path, ids: Any, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"scores: {message}"):
        Context(seed=1, folder=tmp_path).scores(ids, values)
    assert list(tmp_path.iterdir()) == []


def save(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def torn(path: Path) -> None:
    scores.write(path, scores.checked([1, 2], [1.0, 0.0]))
    path.write_bytes(path.read_bytes()[:-30])


def flipped(path: Path) -> None:
    scores.write(path, scores.checked([1, 2], [1.0, 0.0]))
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


def claims_too_much(path: Path) -> None:
    """A header that announces 8 TB."""
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ids.npy", array)
        file.writestr("values.npy", array)


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ids.npy", b"\0" * 50_000_000)
        file.writestr("values.npy", b"\0" * 50_000_000)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (torn, "not a zip file"),
        (flipped, "Bad CRC-32"),
        (lambda path: path.write_bytes(b""), "not a zip file"),
        (lambda path: path.mkdir(), "Not a plain file"),
        (save(ids=np.arange(2)), "values.npy"),
        (save(ids=np.array([object()]), values=np.ones(1)), "ids.npy holds no list of numbers"),
        (save(ids=np.ones((2, 2), int), values=np.ones((2, 2))), "ids.npy holds no list of numbers"),
        (save(ids=np.array([1, 1]), values=np.ones(2)), "the id 1 is there twice"),
        (save(ids=np.arange(2), values=np.array([1.0, np.nan])), "must be finite"),
        (claims_too_much, "ids.npy holds no list of numbers"),
        (bomb, "100,000,000 bytes, more than 67,108,864"),
    ],
)
def test_a_torn_or_foreign_file_is_a_reason_and_no_crash(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / "scores.npz")
    with pytest.raises(ValueError, match=message):
        scores.read(tmp_path / "scores.npz")
