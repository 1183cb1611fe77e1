"""What a task may tell its context."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate.train.context import Context


@pytest.mark.parametrize("epoch", [1 << 31, -(1 << 31), 1 << 70])
def test_an_epoch_that_no_database_counts_is_refused_where_it_is_recorded(tmp_path: Path, epoch: int) -> None:
    context = Context(seed=1, folder=tmp_path)
    with pytest.raises(ValueError, match="an epoch is a count below 2147483648"):
        context.record(epoch=epoch, acc=1.0)
    context.record(epoch=(1 << 31) - 1, acc=1.0)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
