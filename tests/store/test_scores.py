"""Scores per example: small, and back as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from ablate.errors import StoreError
from ablate.store import claims
from ablate.store.claims import Ending, KeptScores
from ablate.store.facts import record_plan
from ablate.store.integrity import store_flaws
from ablate.store.scores import pack, scores_of, unpack_ids, unpack_values
from ablate.store.store import Store
from tests.studies import toy_plan

DONE = Ending("ok", "done", seconds=1.0)
IDS = st.integers(-(2**63), 2**63 - 1)
LARGEST = float(np.finfo(np.float32).max)
VALUES = st.floats(-LARGEST, LARGEST)


@given(st.lists(st.tuples(IDS, VALUES), min_size=1, unique_by=lambda pair: pair[0]))
def test_scores_come_back_by_rising_id_rounded_to_float32(pairs: list[tuple[int, float]]) -> None:
    ids, values = pack(np.array([i for i, _ in pairs]), np.array([v for _, v in pairs]))
    assert unpack_ids(ids).tolist() == sorted(i for i, _ in pairs)
    expected = np.array([v for _, v in sorted(pairs)])
    if len(np.unique(expected)) > 2:
        expected = expected.astype(np.float32).astype(np.float64)
    assert unpack_values(values, len(pairs)).tolist() == expected.tolist()


@given(VALUES, VALUES, st.lists(st.booleans(), min_size=1))
def test_two_values_are_bits_and_come_back_exactly(low: float, high: float, which: list[bool]) -> None:
    values = np.where(which, high, low)
    _, packed = pack(np.arange(len(which)), values)
    assert packed.kind == "bits"
    assert unpack_values(packed, len(which)).tolist() == values.tolist()


def test_ten_thousand_scores_take_little_room() -> None:
    rng = np.random.default_rng(1)
    ids, values = pack(rng.permutation(10_000), rng.choice([0.0, 100.0], 10_000, p=[0.3, 0.7]))
    assert len(ids.ids) < 150  # kept once, for all trials
    assert len(values.data) < 1_300
    _, values = pack(np.arange(10_000), rng.exponential(size=10_000))
    assert values.kind == "float32"
    assert len(values.data) < 40_100


@pytest.fixture
def store(empty: Store, tmp_path: Path) -> Store:
    record_plan(empty, toy_plan(tmp_path))
    facts = {"host": "h", "boot_id": "b", "lock_file": "l", "command": "test"}
    claims.register_runner(empty, runner_id="r", study_id=1, facts=facts)
    return empty


def train(store: Store, ids: list[int], values: list[float], *, metric: str = "acc", ending: Ending = DONE) -> None:
    claim = claims.claim_trial(store, runner_id="r", study_id=1, arms=None, slot="")
    assert claim is not None
    scores = KeptScores(metric, *pack(np.array(ids), np.array(values)))
    claims.finish(store, claim, ending, {"acc": float(np.mean(values))}, scores)


def count(store: Store, table: str) -> int:
    return int(store.read(lambda connection: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()))


def test_trials_of_equal_examples_share_their_ids(store: Store) -> None:
    train(store, [3, 1, 2], [0.3, 0.1, 0.2])
    train(store, [1, 2, 3], [1.0, 0.0, 1.0])
    train(store, [1, 2], [1.0, 0.0])
    found = scores_of(store, 1)
    assert list(found) == [("baseline", "main", 1), ("two", "main", 1), ("three", "main", 1)]
    first, second, third = found.values()
    assert first.values.tolist() == [float(np.float32(value)) for value in (0.1, 0.2, 0.3)]
    assert second.values.tolist() == [1.0, 0.0, 1.0]
    assert first.ids is second.ids
    assert third.ids.tolist() == [1, 2]
    assert count(store, "example_set") == 2
    assert store_flaws(store) == []


def test_only_results_that_stand_are_given_and_earlier_ones_kept(store: Store) -> None:
    train(store, [1, 2], [1.0, 0.0])
    train(store, [1, 2], [1.0, 0.0], ending=Ending("error", "failed", reason="boom"))
    claims.reopen(store, 1, states=["done"])
    assert scores_of(store, 1) == {}
    train(store, [1, 2], [1.0, 1.0])
    assert [each.values.tolist() for each in scores_of(store, 1).values()] == [[1.0, 1.0]]
    assert count(store, "score") == 2


def test_scores_of_another_metric_are_not_taken_for_the_primary_one(store: Store) -> None:
    train(store, [1, 2], [1.0, 0.0], metric="loss")
    assert scores_of(store, 1) == {}


@pytest.mark.parametrize(
    ("damage", "flaw", "said"),
    [
        ("UPDATE score SET data = :nothing", "1 scores per example are damaged (trial 1)", "damaged (0 bytes"),
        ("UPDATE example_set SET size = 9", "1 scores per example are damaged (trial 1)", "damaged (24 bytes"),
        (
            "UPDATE example_set SET sha256 = 'x'",
            "example set 1: the ids of an example set do not",
            "not have their hash",
        ),
        ("UPDATE score SET claim = 7", "1 trials have scores of an attempt that is not there (trial 1)", ""),
        (
            "INSERT INTO measurement (trial, claim, metric, epoch, value, kind) VALUES (1, 7, 'acc', 1, 0.5, 'num')",
            "1 trials have measurements of an attempt that is not there",
            "",
        ),
    ],
)
def test_damage_is_found_and_said(store: Store, damage: str, flaw: str, said: str) -> None:
    train(store, [1, 2, 3], [0.3, 0.1, 0.2])
    store.write(lambda connection: connection.execute(text(damage), {"nothing": b"\0"}))
    assert any(flaw in each for each in store_flaws(store)), store_flaws(store)
    if said:
        with pytest.raises(StoreError, match="the scores of `baseline` seed 1") as caught:
            scores_of(store, 1)
        assert said in str(caught.value)


def test_no_more_is_unpacked_than_is_expected() -> None:
    _, packed = pack(np.arange(1_000_000), np.arange(1_000_000) / 7)
    with pytest.raises(ValueError, match="13 bytes where 12 are expected"):
        unpack_values(packed, 3)
    with pytest.raises(ValueError, match="damaged"):
        unpack_values(replace(packed, data=packed.data[:-1]), 1_000_000)
