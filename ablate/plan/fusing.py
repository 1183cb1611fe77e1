"""How many seeds of an arm to train in one model, by how long an iteration of so many takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

CANDIDATES = (1, 2, 4, 8)
WORTH = 0.97  # of the time of smaller groups: what larger ones must save to be worth other bits

Paces = Mapping[str, Mapping[int, float]]  # seconds of an iteration, by arm and the seeds in one model


def chosen(paces: Paces, seeds: Mapping[str, Sequence[int]], slots: int) -> int:
    """Return the number of seeds in one model with which the whole study is done first; of equal ones the smallest.

    ``seeds`` are those of each arm. Only a number that was measured for all arms of ``paces`` can be chosen.
    """
    best = 1
    for fuse in measured(paces):
        if length(paces, seeds, slots, fuse) < WORTH * length(paces, seeds, slots, best):
            best = fuse
    return best


def measured(paces: Paces) -> list[int]:
    """Return the candidates that were measured for all arms."""
    return [fuse for fuse in CANDIDATES if all(fuse in found for found in paces.values())]


def length(paces: Paces, seeds: Mapping[str, Sequence[int]], slots: int, fuse: int) -> float:
    """Return how long the study takes, in units of iterations: all slots are busy, or the longest group still runs.

    An arm that was not measured is taken to be like the mean of the others.
    """
    like = fmean(found[fuse] for found in paces.values())
    groups = [paces.get(arm, {}).get(fuse, like) for arm in seeds for _ in range(groups_of(seeds[arm], fuse))]
    return max(sum(groups) / slots, max(groups))


def groups_of(seeds: Iterable[int], fuse: int) -> int:
    """Return how many models it takes: a seed has one place in its model, its remainder by ``fuse``."""
    return max(Counter(seed % fuse for seed in set(seeds)).values())
