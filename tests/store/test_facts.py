"""Studies and plans as rows: versions, shared trials, and what a report reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from ablate.errors import StoreError
from ablate.plan.trials import open_plan
from ablate.store.facts import (
    find_study,
    known_seconds,
    read_number,
    record_plan,
    states_of,
    stored_number,
    trials_of,
)
from ablate.store.store import Store
from tests.studies import TOY_STUDY, toy_plan, write_study


@pytest.fixture
def store(empty: Store) -> Store:
    return empty


def count(store: Store, table: str) -> int:
    return int(store.read(lambda connection: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()))


def test_recording_a_plan_twice_is_recording_it_once(store: Store, tmp_path: Path) -> None:
    plan = toy_plan(tmp_path)
    assert record_plan(store, plan) == record_plan(store, plan)
    assert (count(store, "study"), count(store, "plan"), count(store, "arm"), count(store, "trial")) == (1, 1, 3, 6)


def test_trials_come_in_plan_order_seed_by_seed(store: Store, tmp_path: Path) -> None:
    study_id = record_plan(store, toy_plan(tmp_path))
    places = [(each.seed, each.arm) for each in trials_of(store, study_id)]
    assert places == [(s, a) for s in (1, 2) for a in ("baseline", "two", "three")]


def test_an_edited_study_is_a_new_version_that_shares_its_trials(store: Store, tmp_path: Path) -> None:
    first = record_plan(store, toy_plan(tmp_path))
    path = write_study(tmp_path, TOY_STUDY.replace("seeds: 2", "seeds: 3"))
    second = record_plan(store, open_plan(path))
    assert second != first
    assert count(store, "trial") == 9
    assert find_study(store, "toy").version == 2
    shared = {each.trial for each in trials_of(store, first)} & {each.trial for each in trials_of(store, second)}
    assert len(shared) == 6


def test_a_study_edited_back_is_its_old_version(store: Store, tmp_path: Path) -> None:
    first = record_plan(store, toy_plan(tmp_path))
    record_plan(store, open_plan(write_study(tmp_path, TOY_STUDY.replace("seeds: 2", "seeds: 3"))))
    assert record_plan(store, toy_plan(tmp_path)) == first


def test_only_adds_the_other_arms_when_they_are_asked_for(store: Store, tmp_path: Path) -> None:
    study_id = record_plan(store, toy_plan(tmp_path, only=["two"]))
    assert {each.arm for each in trials_of(store, study_id)} == {"baseline", "two"}
    assert record_plan(store, toy_plan(tmp_path)) == study_id
    places = [(each.seed, each.arm) for each in trials_of(store, study_id)]
    assert places == [(s, a) for s in (1, 2) for a in ("baseline", "two", "three")]


def test_equal_content_in_two_studies_is_one_trial(store: Store, tmp_path: Path) -> None:
    record_plan(store, toy_plan(tmp_path))
    other = TOY_STUDY.replace("name: toy", "name: other").replace("- name: two", "- name: deux")
    record_plan(store, open_plan(write_study(tmp_path, other, name="other")))
    assert count(store, "trial") == 6
    assert count(store, "replicate") == 12


def test_an_unknown_study_is_said_with_the_nearest_name(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no study was run yet"):
        find_study(store)
    record_plan(store, toy_plan(tmp_path))
    with pytest.raises(StoreError, match="did you mean `toy`"):
        find_study(store, "tay")


def test_states_and_seconds_are_asked_in_any_number(store: Store, tmp_path: Path) -> None:
    plan = toy_plan(tmp_path, overrides=["seeds=500"])
    record_plan(store, plan)
    assert set(states_of(store, [*plan.trials(), "unknown"]).values()) == {"waiting"}
    assert len(states_of(store, list(plan.trials()))) == 1500
    assert known_seconds(store, list(plan.trials())) == {}


@given(st.floats())
def test_a_stored_number_comes_back_as_it_was(value: float) -> None:
    assert repr(read_number(**stored_number(value))) == repr(value) or (
        value == 0 and read_number(**stored_number(value)) == 0
    )
