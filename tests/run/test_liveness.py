"""How often a runner looks for the dead: where there are many runners, each leaves it to the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate.run.liveness import Owners
from ablate.store.claims import Held
from tests.truth import fill, truth_study


def held_by(owner: int, trial: int) -> Held:
    """Return a trial of a runner on another machine that has just renewed its lease."""
    return Held(trial, 1, f"r{owner}", "there", "other", "/nowhere", 60.0, 0.0, "runs/t", 0, 0)


@pytest.mark.parametrize(("owners", "trials", "seconds"), [(0, 0, 1.0), (1, 8, 1.0), (10, 80, 1.0), (10_000, 1, 1000)])
def test_all_together_look_ten_times_a_second(tmp_path: Path, owners: int, trials: int, seconds: float) -> None:
    found = Owners(fill(tmp_path, truth_study()).store)
    assert (
        found.gone([held_by(owner, owner * trials + number) for owner in range(owners) for number in range(trials)])
        == []
    )
    assert found.look_s == seconds
