"""`fuse: auto` chooses what is done first, for the whole study, and leaves it where nothing is gained."""

from __future__ import annotations

import pytest

from ablate.plan.fusing import CANDIDATES, Paces, chosen, groups_of, length, measured

TINY = {"a": {1: 1.0, 2: 1.2, 4: 1.6, 8: 3.2}}  # dispatch dominates up to four
WIDE = {"a": {1: 1.0, 2: 2.1}}  # computing dominates
SEEDS = {"a": range(1, 9)}


@pytest.mark.parametrize(
    ("paces", "count", "slots", "best"),
    [
        (TINY, 8, 1, 4),  # 4 of 4 are as fast as 8 of 8, and fewer
        (TINY, 2, 1, 2),  # two seeds in a model of four have copies beside them
        (TINY, 4, 4, 1),  # each has a slot of its own
        (TINY, 4, 2, 2),
        (WIDE, 8, 1, 1),
        ({"a": {1: 1.0, 2: 1.95}}, 8, 1, 1),  # less than 3 %
        ({"a": {1: 1.0, 2: 1.9}}, 8, 1, 2),
        (TINY | {"b": {1: 1.0, 2: 2.1}}, 8, 1, 2),  # the study as a whole, and 4 was not measured for both
    ],
)
def test_the_choice_is_for_the_study_on_its_slots(paces: Paces, count: int, slots: int, best: int) -> None:
    seeds = dict.fromkeys(paces, range(count))
    assert chosen(paces, seeds, slots) == best


def test_a_choice_is_never_longer_than_one_by_one() -> None:
    for slots in range(1, 6):
        for count in range(1, 12):
            seeds = {"a": range(count), "b": range(count), "c": range(count)}
            fuse = chosen(TINY, seeds, slots)
            assert length(TINY, seeds, slots, fuse) <= length(TINY, seeds, slots, 1)


def test_seeds_of_one_remainder_need_models_of_their_own() -> None:
    assert [groups_of([1, 2, 3, 4, 5], fuse) for fuse in CANDIDATES] == [5, 3, 2, 1]
    assert [groups_of([8, 16, 24], fuse) for fuse in CANDIDATES] == [3, 3, 3, 3]


def test_an_arm_that_was_not_measured_is_like_the_others() -> None:
    both = {"a": range(4), "unknown": range(4)}
    assert length(TINY, both, 1, 4) == pytest.approx(2 * length(TINY, {"a": range(4)}, 1, 4))
    assert measured(TINY | {"b": {1: 1.0, 2: 1.0}}) == [1, 2]
