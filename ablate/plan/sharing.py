"""How many trials share a GPU, by how long an iteration takes beside others and by what each holds of its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ablate.plan.fusing import WORTH, Paces, length
from ablate.study.schema import MOST_PER_GPU

MARGIN = 0.1  # of a GPU's memory, for what trials come to hold beyond their first iterations

Shared = Mapping[int, Paces]  # what was measured, by how many were on the GPU at once


def candidates(*, held: int, total: int, cores: int) -> list[int]:
    """Return the numbers of trials on one GPU to measure: 1, 2, 4, … up to the most that there is room for, and that.

    ``held`` is what the hungriest trial has of the ``total`` bytes of memory, ``cores`` for how many trials there are.
    """
    most = max(1, min(int((1 - MARGIN) * total / max(held, 1)), cores, MOST_PER_GPU))
    return [*(number for number in (1, 2, 4, 8, 16, 32) if number < most), most]


def chosen(shared: Shared, seeds: Mapping[str, Sequence[int]], *, gpus: int, fuse: int) -> int:
    """Return the number of trials on one GPU with which the whole study is done first; of equal ones the smallest.

    ``fuse`` seeds are in one model. More than the best so far must save what is worth saving.
    """
    best = 1
    for number in sorted(shared):
        if length_of(shared, seeds, number, gpus, fuse) < WORTH * length_of(shared, seeds, best, gpus, fuse):
            best = number
    return best


def length_of(shared: Shared, seeds: Mapping[str, Sequence[int]], number: int, gpus: int, fuse: int) -> float:
    """Return how long the study takes with so many trials on each GPU, in units of iterations."""
    return length(shared[number], seeds, gpus * number, fuse)
