"""How many seeds each arm is given: at declared looks, for a declared precision, and to confirm."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ablate.plan.arms import Arm
from ablate.plan.outcomes import Told
from ablate.plan.replication import Reached
from ablate.plan.trials import Plan, make_plan
from tests.plans import Outcome, plan, seeds_of, stages, step, study, tell

# what is added to a seed's value: by arm and seed, without a pattern between arms
NOISE = {
    "baseline": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "a": [0.03, -0.01, 0.02, -0.04, 0.01, 0.0, -0.02, 0.03],
    "b": [-0.5, 0.7, -0.1, 0.4, -0.6, 0.2, 0.3, -0.4],
    "c": [0.01, 0.02, -0.01, 0.0, 0.02, -0.02, 0.01, 0.0],
}
ONE = {"looks": [3, 5, 8], "weights": [0.2, 0.3, 0.5]}


def worth(gains: dict[str, float], *, bad: dict[tuple[str, int], str] | None = None) -> Outcome:
    def outcome(arm: Arm, seed: int) -> float | str:
        last = arm.steps[-1] if arm.steps else "baseline"
        return (bad or {}).get((arm.name, seed), sum(gains[name] for name in arm.steps) + NOISE[last][seed - 1])

    return outcome


def counts(made: Plan) -> dict[str, int]:
    return {arm: len(seeds) for arm, seeds in seeds_of(made).items()}


def stops(made: Plan) -> list[str]:
    return [f"{each.stopped or 'open'} at {each.look}" for each in made.reached.values()]


# --- looks ---------------------------------------------------------------------------------------------------------

FLAT = [step(name, branch=True, **{"from": "baseline"}) for name in "abc"]  # each compared with the baseline
SHOWN = {"a": 5.0, "b": 0.05, "c": 0.0}


@pytest.mark.parametrize(
    ("steps", "metric", "bad", "expected", "reached"),
    [
        # a is shown at the first look; the noisy b never; c has small effects, yet no margin that it could be below
        (FLAT, {}, {}, {"baseline": 8, "a": 3, "b": 8, "c": 8}, ["effect at 0", "open at 2", "open at 2"]),
        # with a margin, c is shown to be nothing
        (FLAT, {"margin": 0.3}, {}, {"baseline": 8, "a": 3, "b": 8, "c": 3},
         ["effect at 0", "open at 2", "no effect at 0"]),
        # in a ladder b is compared with a, so that a goes on for its sake, and the baseline does not
        ("ab", {}, {}, {"baseline": 3, "a": 8, "b": 8}, ["effect at 0", "open at 2"]),
        # what diverged without a declared value is no comparison, and no seeds make it one
        (FLAT, {}, {("b", 2): "diverged"}, {"baseline": 8, "a": 3, "b": 3, "c": 8},
         ["effect at 0", "no comparison at 0", "open at 2"]),
        (FLAT, {"on_diverged": 0.0}, {("b", 2): "diverged"}, {"baseline": 8, "a": 3, "b": 8, "c": 8},
         ["effect at 0", "open at 2", "open at 2"]),
        # without a result of the baseline no comparison is left
        (FLAT, {}, {("baseline", 1): "diverged"}, {"baseline": 3, "a": 3, "b": 3, "c": 3}, ["no comparison at 0"] * 3),
        # a failed trial is missing: two pairs are none at the first look, and enough at the second
        (FLAT, {}, {("a", 1): "failed"}, {"baseline": 8, "a": 5, "b": 8, "c": 8},
         ["effect at 1", "open at 2", "open at 2"]),
    ],
)  # fmt: skip
def test_looks(steps: Any, metric: Any, bad: Any, expected: dict[str, int], reached: list[str]) -> None:
    made = stages(study(steps=steps, metric=metric, seeds=ONE), worth(SHOWN, bad=bad))[-1]
    assert counts(made) == expected
    assert stops(made) == reached


def test_the_seeds_of_each_look() -> None:
    asked = [counts(each) for each in stages(study(steps=FLAT, seeds=ONE), worth(SHOWN))]
    assert asked == [
        {"baseline": 3, "a": 3, "b": 3, "c": 3},
        {"baseline": 5, "a": 3, "b": 5, "c": 5},
        {"baseline": 8, "a": 3, "b": 8, "c": 8},
    ]
    assert seeds_of(plan(steps=FLAT, seeds=ONE)) == dict.fromkeys(["baseline", "a", "b", "c"], (1, 2, 3))


def test_what_is_reached() -> None:
    """p* is the least p/w of the looks so far, of the paired t test of the seeds of each look."""
    first, second, third = stages(study(steps=FLAT, seeds=ONE), worth(SHOWN))
    key = list(third.family)[1]
    ps = [stats.ttest_1samp([0.05 + each for each in NOISE["b"][:n]], 0).pvalue for n in ONE["looks"]]
    assert first.reached == {}
    for look, made in enumerate((make_plan(first.study, tell(first, worth(SHOWN))), third), start=0):
        got = made.reached[key]
        shares = [p / w for p, w in zip(ps, ONE["weights"], strict=True)][: got.look + 1]
        assert got == Reached([0, 2][look], pytest.approx(min(1.0, *shares)), None)
    assert second.reached[key].look == 0


def test_a_look_waits_for_every_trial() -> None:
    of = study(steps=FLAT, seeds=ONE)
    told = tell(make_plan(of), worth(SHOWN))
    for name in told:
        made = make_plan(of, {**told, name: Told("running")})
        assert (set(counts(made).values()), made.reached) == ({3}, {})


def test_a_verdict_at_a_look_is_corrected_for_all_that_is_planned() -> None:
    """p/w = 0.0054/0.2 is enough for one comparison, and not for the first of three."""
    noise = worth({"a": 0.15, "b": 0.0, "c": 0.0})
    p = stats.ttest_1samp([0.15 + each for each in NOISE["a"][:3]], 0).pvalue / ONE["weights"][0]
    assert 0.05 / 3 < p < 0.05
    for steps, found in ((FLAT[:1], "effect at 0"), (FLAT, "open at 0")):
        first = plan(steps=steps, seeds=ONE)
        assert stops(make_plan(first.study, tell(first, noise)))[0] == found


def test_looks_over_more_than_two_arms() -> None:
    """A main effect needs all models, so that one that is not settled asks for seeds of each."""
    made = stages(study({"factorial": ["a", "b"]}, seeds=ONE), worth({"a": 5.0, "b": 0.05}))[-1]
    assert counts(made) == dict.fromkeys(["baseline", "only-a", "only-b", "only-a+b"], 8)


@given(st.lists(st.floats(-1, 1), min_size=32, max_size=32), st.sampled_from(["seed", "none"]))
@settings(max_examples=50)
def test_seeds_beyond_a_look_change_nothing(values: list[float], pairing: str) -> None:
    def outcome(arm: Arm, seed: int) -> float:
        return values[8 * ["baseline", "a", "b", "c"].index(arm.name) + seed - 1]

    of = study(steps=FLAT, seeds=ONE, analysis={"pairing": pairing}, metric={"margin": 0.5})
    every = tell(plan(steps=FLAT, seeds=8), outcome)
    made = stages(of, outcome)
    assert make_plan(of, every) == make_plan(of, dict(reversed(every.items()))) == made[-1]
    for before, after in pairwise(made):
        assert before.trials().keys() < after.trials().keys()
        assert before.frozen() == after.frozen()


# --- a declared precision ------------------------------------------------------------------------------------------


def stein(differences: list[float], half_width: float) -> int:
    n = len(differences)
    sd = stats.tstd(differences)
    return max(n, ceil((stats.t.ppf(0.975, n - 1) * sd / half_width) ** 2))


def test_stein_by_hand() -> None:
    """Three differences −1, 0, 1 have s = 1, and t = 4.303: (4.303/1)² = 18.5."""
    seeds = {"mode": "precision", "half_width": 1, "pilot": 3}
    of = study(steps="a", seeds=seeds)
    made = stages(of, lambda arm, seed: (seed - 2) * len(arm.steps) if seed <= 3 else 0.0)[-1]
    assert counts(made) == {"baseline": 19, "a": 19}


@pytest.mark.parametrize("half_width", [5.0, 0.4, 0.3, 0.2])
def test_precision(half_width: float) -> None:
    """Each arm has the seeds of its widest comparison; an interval that is narrow enough needs the pilot alone."""
    seeds = {"mode": "precision", "half_width": half_width, "pilot": 4, "most": 60}
    made = stages(study(steps=FLAT, seeds=seeds), lambda arm, seed: worth(SHOWN)(arm, min(seed, 8)))[-1]
    wanted = {name: min(60, stein(NOISE[name][:4], half_width)) for name in "abc"}
    assert counts(made) == {"baseline": max(wanted.values()), **wanted}
    assert set(counts(plan(steps=FLAT, seeds=seeds)).values()) == {4}


def test_what_a_pilot_can_not_tell() -> None:
    """An arm that diverged, or two that make fewer than three pairs, ask for nothing more, and no arm beyond most."""
    seeds = {"mode": "precision", "half_width": 1e-6, "pilot": 3, "most": 9}
    of = study(steps=FLAT, seeds=seeds)
    bad = {("a", 2): "diverged", ("b", 2): "failed"}
    made = stages(of, lambda arm, seed: worth(SHOWN, bad=bad)(arm, min(seed, 8)))[-1]
    assert counts(made) == {"baseline": 9, "a": 3, "b": 3, "c": 9}
    huge = stages(of, lambda arm, seed: 1e299 * len(arm.steps) * seed)[-1]
    assert set(counts(huge).values()) == {9}, "what is almost divergence is no fault of ablate"


# --- fresh seeds ---------------------------------------------------------------------------------------------------


def test_confirm_seeds() -> None:
    made = plan(steps="a", seeds=[4, 2], confirm_seeds=2)
    assert seeds_of(made) == dict.fromkeys(["baseline", "a"], (4, 2))
    assert seeds_of(made, "confirm") == dict.fromkeys(["baseline", "a"], (5, 6))
    assert [(each.role, each.seed) for each in made.replicates] == [
        ("main", 4), ("main", 4), ("main", 2), ("main", 2), ("confirm", 5), ("confirm", 5), ("confirm", 6),
        ("confirm", 6),
    ]  # fmt: skip
    assert len(made.trials()) == 8
    assert stages(made.study, worth({"a": 1.0}))[-1] == made
    assert seeds_of(made.restricted(["a"]), "confirm") == {"a": (5, 6)}
