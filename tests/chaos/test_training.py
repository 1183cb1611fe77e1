"""Chaos on real training: convolutions, BatchNorm, dropout, AdamW, a schedule and augmentation end in the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.chaos import Chaos
from tests.chaos.evidence import Ended, examine
from tests.chaos.sizes import SIZES, chaos_seed, keep
from tests.chaos.studies import EPOCHS, write_training

ARMS = 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_in_training(tmp_path: Path) -> None:
    size = SIZES["training on SQLite"]
    trials = ARMS * size.seeds
    for name in ("quiet", "chaos"):
        (tmp_path / name / ".git").mkdir(parents=True)
    calm = Chaos(write_training(tmp_path / "quiet", seeds=size.seeds), epochs=trials * EPOCHS)
    quiet = Ended(calm, calm.run())
    study = write_training(tmp_path / "chaos", seeds=size.seeds)
    wild = Chaos(study, epochs=trials * EPOCHS, kills=size.kills, seed=chaos_seed())
    noisy = Ended(wild, wild.run())
    keep(examine("training", noisy, quiet, trials=trials, epochs=EPOCHS))
