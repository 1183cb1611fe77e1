"""How to run: what the command line, or a scheduler, tells the runner."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ablate.store.claims import LEASE_S


@dataclass(frozen=True)
class Allocation:
    """The time that a scheduler has given us, from when to when (Unix seconds)."""

    began: float
    ends: float

    def has_room(self, seconds: float) -> bool:
        """Tell whether a trial of so many seconds can end in what is left of it.

        One that is longer than the whole could end in no other either: it goes from one to the next by its checkpoints.
        """
        return seconds > self.ends - self.began or time.time() + seconds < self.ends


@dataclass(frozen=True)
class Options:
    """How to run, as the command line gives it. ``leaves_others``: what living runners hold is theirs to end."""

    jobs: int | None = None
    arms: tuple[str, ...] | None = None
    data_dir: Path | None = None
    grace_s: float = 10.0
    lease_s: float = LEASE_S
    leaves_others: bool = False
    max_trials: int | None = None
    allocation: Allocation | None = None
