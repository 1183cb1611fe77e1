"""What a task may tell its context."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ablate.train.context import Context
from ablate.train.folder import AttemptFolder


@pytest.mark.parametrize("epoch", [1 << 31, -(1 << 31), 1 << 70])
def test_an_epoch_that_no_database_counts_is_refused_where_it_is_recorded(tmp_path: Path, epoch: int) -> None:
    context = Context(seed=1, folder=tmp_path)
    with pytest.raises(ValueError, match="an epoch is a count below 2147483648"):
        context.record(epoch=epoch, acc=1.0)
    context.record(epoch=(1 << 31) - 1, acc=1.0)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_librarys_own_checkpoint_is_found_in_the_last_attempt_that_has_one(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in (3, 2, 1)]
    first, second = Context(seed=1, folder=folders[2]), Context(seed=1, folder=folders[1], earlier=[str(folders[2])])
    assert first.earlier("lib/epoch-*.ckpt") is None
    assert first.resumed_from == ""
    (first.folder / "lib").mkdir()
    for epoch in (9, 10):  # the newest, not the last of the alphabet
        first.record(epoch=epoch, acc=float(epoch))
        (first.folder / "lib" / f"epoch-{epoch}.ckpt").touch()
        os.utime(first.folder / "lib" / f"epoch-{epoch}.ckpt", ns=(epoch, epoch))
    (first.folder / "lib" / "empty").mkdir()
    assert second.earlier("lib/epoch-*.ckpt") == first.folder / "lib" / "epoch-10.ckpt"
    assert second.resumed_from == "1"
    second.record(epoch=11, acc=11.0)
    third = Context(seed=1, folder=folders[0], earlier=[str(folder) for folder in folders[1:]])
    assert third.earlier("lib/empty") is None
    assert third.earlier("lib") == first.folder / "lib"  # the second attempt died before it had one
    records, _ = AttemptFolder(second.folder).records()
    assert [(line["epoch"], line["values"]["acc"]) for line in records] == [(9, 9.0), (10, 10.0), (11, 11.0)]
