"""How much chaos: a share in `make slow`, the whole with ``ABLATE_TEST_SOAK=1``, as `make chaos` asks for it."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.chaos.evidence import Figures
from tests.chaos.table import markdown

SOAK = bool(os.environ.get("ABLATE_TEST_SOAK"))
KILLS = os.environ.get("ABLATE_TEST_CHAOS_KILLS")  # of each study, in place of the numbers below
FIGURES = os.environ.get("ABLATE_TEST_CHAOS_FIGURES")  # a folder for them


@dataclass(frozen=True)
class Size:
    """So many kills among so many seeds of a study."""

    kills: int
    seeds: int
    restarts: int = 0


def _size(*, share: Size, whole: Size) -> Size:
    size = whole if SOAK else share
    return Size(int(KILLS), size.seeds, size.restarts) if KILLS else size


SIZES = {
    "toy on SQLite": _size(share=Size(60, 12), whole=Size(500, 80)),
    "warm toy on SQLite": Size(20, 5),
    "training on SQLite": _size(share=Size(10, 1), whole=Size(60, 6)),
    "toy on PostgreSQL": _size(share=Size(40, 8, 2), whole=Size(300, 48, 10)),
}


@cache
def chaos_seed() -> int:
    seed = int(os.environ.get("ABLATE_TEST_CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"chaos seed {seed}: replay with ABLATE_TEST_CHAOS_SEED={seed}")
    return seed


def keep(figures: Figures) -> None:
    """Print the figures, and keep them for the table where one is wanted."""
    print(markdown([figures]))
    if FIGURES:
        figures.keep(Path(FIGURES))
