"""A study version in Optuna's words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from ablate.mirror.facts import Stamp, TrialFacts, Try, Version
from ablate.mirror.picture import MAX_LEVELS, TrialPicture, changes, draw, frame_of

ARMS: dict[str, dict[str, Any]] = {
    "baseline": {"model": {"norm": None, "depth": 4}, "lr": 0.1},
    "null-as-text": {"model": {"norm": "null", "depth": 4}, "lr": 0.1},
    "deeper": {"model": {"norm": "null", "depth": 6}, "lr": 0.1},
}


def version(**changed: Any) -> Version:
    values: dict[str, Any] = {
        "id": 1,
        "title": "toy@quick",
        "number": 2,
        "spec_sha256": "ab",
        "question": "Which?",
        "primary": "acc",
        "goal": "max",
        "created": 1000.0,
        "seeds": (1, 2),
        "arms": ARMS,
        "titles": {name: name for name in changed.get("arms", ARMS)},
    }
    return Version(**{**values, **changed})


def facts(state: str = "done", outcome: str | None = "ok", **changed: Any) -> TrialFacts:
    tried = Try(1, "cpu:0", 2000.0, 2010.0 if outcome else None, outcome, 9.5, None)
    values: dict[str, Any] = {
        "fingerprint": "f00d",
        "seed": 1,
        "stamp": Stamp(("deeper",), state, 1, 1 if state == "done" else None),
        "reason": None,
        "tries": (tried,),
        "finals": {"acc": 0.5, "loss": 2.0},
        "epochs": {1: 0.25, 2: 0.5},
    }
    return TrialFacts(**{**values, **changed})


def drawn(**changed: Any) -> TrialPicture:
    return draw(version(), frame_of(version()), facts(**changed))


def test_the_levels_are_text_from_fixed_lists_and_stay_distinct() -> None:
    frame = frame_of(version())
    assert frame.name == "toy@quick v2"
    assert (frame.direction, frame.metric) == ("maximize", "acc")
    assert frame.levels == {
        "arm": ("baseline", "null-as-text", "deeper"),
        "seed": ("1", "2"),
        "model.norm": ("null", '"null"'),
        "model.depth": ("4", "6"),
    }
    assert frame_of(version(goal="min")).direction == "minimize"


def test_numbers_of_different_kinds_are_different_levels() -> None:
    arms: dict[str, Any] = {str(n): {"x": value} for n, value in enumerate([True, 1, 1.0, "1", [1], "", {}])}
    levels = frame_of(version(arms=arms)).levels["x"]
    assert len(set(levels)) == 7
    assert all(isinstance(level, str) for level in levels)


def test_settings_may_be_called_like_our_own_parameters() -> None:
    arms = {"one": {"arm": "left", "seed": 1}, "two": {"arm": "right", "seed": 2}}
    picture = draw(version(arms=arms), frame_of(version(arms=arms)), facts(stamp=Stamp(("two",), "done", 1, 1)))
    assert picture.levels == {"arm": "two", "seed": "1", "setting arm": "right", "setting seed": "2"}


def test_a_list_of_levels_that_is_too_long_to_repeat_per_trial_is_told_as_an_attribute_only() -> None:
    frame = frame_of(version(seeds=tuple(range(MAX_LEVELS + 1))))
    assert "seed" not in frame.levels
    picture = draw(version(), frame, facts())
    assert "seed" not in picture.levels
    assert picture.attributes["seed"] == 1


@pytest.mark.parametrize(
    ("state", "outcome", "finals", "shown", "value"),
    [
        ("waiting", None, {}, "WAITING", None),
        ("running", None, {}, "RUNNING", None),
        ("done", "ok", {"acc": 0.5}, "COMPLETE", 0.5),
        ("done", "diverged", {"acc": 0.5}, "FAIL", None),
        ("done", "ok", {"acc": math.nan}, "FAIL", None),
        ("done", "ok", {"acc": -math.inf}, "FAIL", None),
        ("failed", "oom", {}, "FAIL", None),
    ],
)
def test_states(state: str, outcome: str | None, finals: dict[str, float], shown: str, value: float | None) -> None:
    picture = drawn(state=state, outcome=outcome, finals=finals)
    assert (picture.state, picture.value) == (shown, value)
    assert picture.attributes["state"] == state


def test_what_is_no_number_is_told_as_text_since_the_dashboard_reads_json() -> None:
    picture = drawn(outcome="diverged", finals={"acc": math.nan, "loss": math.inf, "f1": 0.25})
    assert picture.attributes["acc"] == "nan"
    assert picture.attributes["loss"] == "inf"
    assert picture.attributes["f1"] == 0.25
    assert picture.attributes["outcome"] == "diverged"


def test_a_metric_may_be_called_like_one_of_our_attributes() -> None:
    attributes = drawn(finals={"acc": 0.5, "seed": 9.0, "state": 3.0}).attributes
    assert (attributes["seed"], attributes["state"]) == (1, "done")
    assert (attributes["metric seed"], attributes["metric state"]) == (9.0, 3.0)


def test_attempts_are_a_list_on_one_trial() -> None:
    first = Try(1, "cpu:0", 1900.0, 1950.0, "killed", None, None)
    second = Try(2, "cpu:1", 2000.0, 2010.0, "error", 9.5, "ValueError: boom")
    picture = drawn(state="failed", tries=(first, second), stamp=Stamp(("deeper",), "failed", 2, None))
    assert picture.attributes["attempts"] == [
        {"outcome": "killed", "slot": "cpu:0", "seconds": None},
        {"outcome": "error", "slot": "cpu:1", "seconds": 9.5},
    ]
    assert picture.attributes["reason"] == "ValueError: boom"


def test_what_optuna_can_be_brought_to_in_place_and_what_it_can_not() -> None:
    waiting = drawn(state="waiting", outcome=None, finals={}, epochs={})
    running = drawn(state="running", outcome=None, finals={}, epochs={1: 0.25})
    done, failed = drawn(), drawn(state="failed", outcome="error")

    assert changes(done, done) == TrialPicture("COMPLETE", {}, {}, {}, 0.5)
    part = changes(running, done)
    assert part is not None
    assert part.epochs == {2: 0.5}
    assert part.attributes["outcome"] == "ok"
    assert changes(waiting, running) is not None
    assert changes(running, waiting) is not None, "a killed run: its trial waits again"
    assert changes(failed, waiting) is None, "a retry: finished trials are final in Optuna"
    assert changes(done, replace(done, value=0.75)) is None
    assert changes(done, replace(done, epochs={1: 0.25})) is None
    assert changes(running, replace(running, levels={"arm": "baseline"})) is None

    restarted = drawn(state="running", outcome=None, finals={}, epochs={})
    assert changes(running, restarted) is not None, "the next attempt will record that epoch again"
    assert changes(running, drawn(epochs={})) is None, "it did not"
