"""What is told of a trial, and the number that it enters a comparison with: to diverge never helps."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.plan.outcomes import Scored, Told, scored, status_of
from ablate.study.schema import Metric

GOOD = {1: Told("finished", 3.0), 2: Told("finished", 5.0)}
BAD = Told("diverged")
FULL = Told("failed", oom=True)  # of memory


@pytest.mark.parametrize(
    ("metric", "more", "expected"),
    [
        ({"goal": "max"}, {}, Scored({1: 3.0, 2: 5.0})),
        ({"goal": "max"}, {3: BAD}, Scored({1: 3.0, 2: 5.0}, (), (3,))),
        ({"goal": "max", "on_diverged": 1.0}, {3: BAD}, Scored({1: 3.0, 2: 5.0, 3: 1.0}, (3,))),
        ({"goal": "max", "on_diverged": 4.0}, {3: BAD}, Scored({1: 3.0, 2: 5.0, 3: 3.0}, (3,))),
        ({"goal": "min", "on_diverged": 4.0}, {3: BAD}, Scored({1: 3.0, 2: 5.0, 3: 5.0}, (3,))),
        ({"goal": "min", "on_diverged": 9.0}, {0: BAD, 3: BAD}, Scored({0: 9.0, 1: 3.0, 2: 5.0, 3: 9.0}, (0, 3))),
        ({"goal": "max"}, {3: Told("finished", math.nan)}, Scored({1: 3.0, 2: 5.0}, (), (3,))),
        ({"goal": "max", "on_diverged": 1.0}, {3: Told("finished", 1e301)}, Scored({1: 3.0, 2: 5.0, 3: 1.0}, (3,))),
        ({"goal": "max", "on_diverged": 1.0}, {3: Told("failed"), 4: Told("running"), 5: Told("waiting"),
                                               6: Told("finished")}, Scored({1: 3.0, 2: 5.0})),
        ({"goal": "max", "on_diverged": 1.0}, {3: FULL}, Scored({1: 3.0, 2: 5.0})),
        ({"goal": "max", "on_oom": 2.0}, {3: FULL}, Scored({1: 3.0, 2: 5.0, 3: 2.0}, (3,))),
        ({"goal": "min", "on_oom": 4.0}, {0: FULL}, Scored({0: 5.0, 1: 3.0, 2: 5.0}, (0,))),
        ({"goal": "max", "on_oom": 2.0}, {3: BAD, 4: FULL}, Scored({1: 3.0, 2: 5.0, 4: 2.0}, (4,), (3,))),
        ({"goal": "max", "on_oom": 2.0, "on_diverged": 1.0}, {3: FULL, 4: BAD},
         Scored({1: 3.0, 2: 5.0, 3: 2.0, 4: 1.0}, (3, 4))),
    ],
)  # fmt: skip
def test_scored(metric: dict[str, Any], more: dict[int, Told], expected: Scored) -> None:
    assert scored({**GOOD, **more}, Metric(**metric)) == expected


def test_an_arm_that_only_diverged_has_the_declared_value() -> None:
    assert scored({1: BAD}, Metric(goal="min", on_diverged=7.0)) == Scored({1: 7.0}, (1,))


values = st.floats(-1e3, 1e3)


@given(st.lists(values, min_size=1, max_size=5), values, st.sampled_from(["max", "min"]), st.integers(1, 3))
def test_to_diverge_never_helps(finished: list[float], declared: float, goal: Any, diverged: int) -> None:
    metric = Metric(goal=goal, on_diverged=declared)
    told = {seed: Told("finished", value) for seed, value in enumerate(finished)}
    for seed in range(100, 100 + diverged):
        before = fmean(scored(told, metric).values.values())
        told[seed] = BAD
        after = fmean(scored(told, metric).values.values())
        slack = 1e-9 * (1 + abs(before))
        assert after <= before + slack if goal == "max" else after >= before - slack
        assert len(scored(told, metric).values) == len(told)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (("waiting", None, None), "waiting"), (("running", None, None), "running"),
        (("failed", "error", None), "failed"),
        (("failed", "oom", 3.0), "failed"), (("done", "ok", 3.0), "finished"), (("done", "ok", None), "failed"),
        (("done", "diverged", None), "diverged"), (("done", "diverged", 3.0), "diverged"),
        (("done", "ok", math.nan), "diverged"), (("done", "ok", math.inf), "diverged"),
        (("done", "ok", -1e301), "diverged"),
    ],
)  # fmt: skip
def test_what_became_of_a_trial(facts: tuple[Any, ...], expected: str) -> None:
    assert status_of(*facts) == expected
