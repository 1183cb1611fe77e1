"""Chaos on a study without torch: many short trials, many kills, on SQLite and on a server that restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.chaos import Chaos
from tests.chaos.evidence import Ended, examine
from tests.chaos.sizes import SIZES, chaos_seed, keep
from tests.chaos.studies import EPOCHS, write_toy
from tests.postgres import Server

ARMS = 4
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def study(folder: Path, *, seeds: int, isolation: str = "process") -> Path:
    (folder / ".git").mkdir(parents=True)
    return write_toy(folder, seeds=seeds, isolation=isolation)


@pytest.mark.parametrize(("name", "isolation"), [("toy on SQLite", "process"), ("warm toy on SQLite", "warm")])
def test_kills_on_sqlite(tmp_path: Path, name: str, isolation: str) -> None:
    size = SIZES[name]
    trials = ARMS * size.seeds
    calm = Chaos(study(tmp_path / "quiet", seeds=size.seeds, isolation=isolation), epochs=trials * EPOCHS)
    quiet = Ended(calm, calm.run())
    wild = Chaos(
        study(tmp_path / "chaos", seeds=size.seeds, isolation=isolation),
        epochs=trials * EPOCHS,
        kills=size.kills,
        seed=chaos_seed(),
    )
    noisy = Ended(wild, wild.run())
    keep(examine(name.partition(" on ")[0], noisy, quiet, trials=trials, epochs=EPOCHS))


def test_kills_and_restarts_on_postgresql(tmp_path: Path, postgres: Server) -> None:
    size = SIZES["toy on PostgreSQL"]
    trials = ARMS * size.seeds
    calm = Chaos(study(tmp_path / "quiet", seeds=size.seeds), epochs=trials * EPOCHS, url=postgres.new_database())
    quiet = Ended(calm, calm.run())
    wild = Chaos(
        study(tmp_path / "chaos", seeds=size.seeds),
        epochs=trials * EPOCHS,
        kills=size.kills,
        seed=chaos_seed(),
        url=postgres.new_database(),
        server=postgres,
        restarts=size.restarts,
    )
    noisy = Ended(wild, wild.run())
    keep(examine("toy", noisy, quiet, trials=trials, epochs=EPOCHS))
