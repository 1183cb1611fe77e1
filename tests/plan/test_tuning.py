"""What is tuned: candidates for every arm alike, the best of them, and nothing that hangs on who asks when."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from ablate.plan.outcomes import Told
from ablate.plan.trials import Plan, make_plan
from ablate.plan.tuning import GENERATION, STARTUP, edge
from ablate.plan.tuning import tune as search
from ablate.study.schema import FIRST_TUNING_SEED, Range, Study
from ablate.study.settings import canonical, get
from tests import plans

SETTINGS = {"a": False, "b": False, "lr": 0.01, "width": 8, "kind": "x", "free": None}
LR = {"lr": {"low": 1e-3, "high": 1, "log": True}}
OPTIMUM = {False: -2.0, True: -1.0}  # log10 of the best learning rate, without and with the step


def tuned(*designs: Any, tune: dict[str, Any] = LR, budget: Any = 16, steps: Any = "a", **changes: Any) -> Study:
    return plans.study(*designs, steps=steps, settings=SETTINGS, tune=tune, budget=budget, **changes)


def accuracy(settings: dict[str, Any], seed: int) -> float:
    away = math.log10(settings["lr"]) - OPTIMUM[settings["a"]]
    return 70 + 2 * settings["a"] - 12 * away**2 + random.Random(f"{seed} {settings['a']}").gauss(0, 0.3)


def outcomes(made: Plan) -> dict[str, Told]:
    return {
        each.trial.fingerprint: Told("finished", accuracy(each.trial.settings, each.seed)) for each in made.replicates
    }


def finished(study: Study) -> Plan:
    made = make_plan(study)
    while (more := make_plan(study, outcomes(made))).trials().keys() != made.trials().keys():
        made = more
    return more


def of_role(made: Plan, role: str) -> list[Any]:
    return [each for each in made.replicates if each.role == role]


def test_nothing_is_measured_before_it_is_chosen() -> None:
    made = make_plan(tuned())
    assert {each.role for each in made.replicates} == {"tune"}
    assert {each.seed for each in made.replicates} == {FIRST_TUNING_SEED}
    assert len(made.replicates) == 2 * STARTUP
    assert [each.candidate for each in made.replicates[:4]] == [1, 1, 2, 2]  # the first of every arm first


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_every_arm_has_the_whole_budget_and_then_its_seeds(sampler: str) -> None:
    made = finished(tuned(budget={"candidates": 16, "sampler": sampler}, seeds=3))
    for arm in ("baseline", "a"):
        assert len({each.trial.fingerprint for each in of_role(made, "tune") if each.arm == arm}) == 16
        assert [each.seed for each in of_role(made, "main") if each.arm == arm] == [1, 2, 3]
        assert made.tuned[arm].is_complete


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
@pytest.mark.parametrize(
    ("ranges", "size"),
    [
        ({"kind": {"choices": ["x", "y"]}}, 2),
        ({"width": {"low": 1, "high": 6}}, 6),
        ({"width": {"low": 1, "high": 2}, "lr": {"low": 0.01, "high": 0.05, "step": 0.01}}, 10),
        ({**LR, "kind": {"choices": ["x", "y"]}}, 12),
    ],
)
def test_a_budget_beyond_all_that_there_is_tries_that(ranges: dict[str, Any], size: int, sampler: str) -> None:
    study = tuned(tune=ranges, budget={"candidates": 12, "sampler": sampler})
    assert study.candidates == size
    assert [len(each.candidates) for each in finished(study).tuned.values()] == [size, size]


def test_every_arm_tries_the_last_points_too() -> None:
    """By itself TPE asks for the same ones again: arms would have unequal budgets."""
    tune = {"lr": {"low": 0.01, "high": 0.08, "step": 0.01}, "width": {"low": 1, "high": 8}}

    def tell(candidate: dict[str, Any]) -> dict[int, Told]:
        away = (candidate["width"] - 3) ** 2 / 50 + (candidate["lr"] - 0.03) ** 2
        return {FIRST_TUNING_SEED: Told("finished", -away)}

    found = search(tuned(tune=tune, budget=64), tell)
    assert found.is_complete
    assert len({canonical(each) for each in found.candidates}) == len(found.candidates) == 64


def test_what_is_compared_is_the_best_of_each_arm() -> None:
    made = finished(tuned(seeds=3))
    for arm, best in (("baseline", 0.01), ("a", 0.1)):
        chosen = made.tuned[arm].chosen
        assert chosen is not None
        means = made.tuned[arm].means
        assert means[made.tuned[arm].best or 0] == max(means.values())
        assert 0.5 * best < chosen["lr"] < 2 * best
        assert {get(each.trial.settings, "lr") for each in of_role(made, "main") if each.arm == arm} == {chosen["lr"]}
    assert made.arm("a").settings["lr"] == 0.01  # what is compared is known by what the study says


def test_the_untuned_comparison_is_wrong_and_the_tuned_one_right() -> None:
    def effect(made: Plan) -> float:
        told = outcomes(made)
        values = {(each.arm, each.seed): told[each.trial.fingerprint].value or 0.0 for each in of_role(made, "main")}
        return sum(values["a", seed] - values["baseline", seed] for seed in (1, 2, 3, 4, 5)) / 5

    untuned = plans.plan(steps="a", settings=SETTINGS, seeds=5)
    assert effect(untuned) < -9  # the truth is +2
    assert effect(finished(tuned(seeds=5))) == pytest.approx(2, abs=0.7)


def test_whoever_asks_in_whatever_order_is_given_the_same() -> None:
    study = tuned(tune={**LR, "width": {"low": 1, "high": 64, "log": True}})
    whole = finished(study)
    for order in range(3):
        told: dict[str, Told] = {}
        while waiting := [each for each in make_plan(study, told).replicates if each.trial.fingerprint not in told]:
            one = random.Random(f"{order} {len(told)}").choice(waiting)
            told[one.trial.fingerprint] = Told("finished", accuracy(one.trial.settings, one.seed))
        assert make_plan(study, told).replicates == whole.replicates


def test_a_generation_waits_for_all_of_the_one_before() -> None:
    study = tuned()
    made = make_plan(study)
    told = outcomes(made)
    last = made.replicates[-1]
    assert (
        len(make_plan(study, {**told, last.trial.fingerprint: Told("running")}).replicates) == 2 * STARTUP + GENERATION
    )
    assert len(make_plan(study, told).replicates) == 2 * (STARTUP + GENERATION)


def test_rows_of_equal_settings_share_their_candidates() -> None:
    made = make_plan(tuned("ladder", "leave-one-out", steps="ab"))
    prints = {arm: [each.trial.fingerprint for each in made.replicates if each.arm == arm] for arm in ("b", "full")}
    assert prints["b"] == prints["full"]


def test_quasi_random_points_are_the_same_for_every_arm_and_fill_the_range() -> None:
    made = make_plan(tuned(budget={"candidates": 16, "sampler": "qmc"}))
    rates = {arm: [each["lr"] for each in made.tuned[arm].candidates] for arm in ("baseline", "a")}
    assert rates["baseline"] == rates["a"]
    places = sorted(int((math.log10(rate) + 3) / 3 * 16) for rate in rates["a"])
    assert places == list(range(16))  # one in each sixteenth: what Sobol's points are for


def test_a_grid_has_all_its_points() -> None:
    tune = {"width": {"low": 8, "high": 32, "step": 8}, "kind": {"choices": ["x", "y"]}}
    study = tuned(tune=tune, budget={"sampler": "grid"})
    assert study.candidates == 8
    made = make_plan(study)
    found = [(each["width"], each["kind"]) for each in made.tuned["a"].candidates]
    assert found == [(width, kind) for width in (8, 16, 24, 32) for kind in "xy"]


def test_integers_stay_integers_and_choices_what_they_are() -> None:
    tune = {
        "width": {"low": 1, "high": 64, "log": True},
        "free": {"choices": [None, True, 1, 1.0, [64, 128]]},
        "lr": {"low": 0.125, "high": 1.0, "step": 0.125},
    }
    candidates = finished(tuned(tune=tune, budget=40)).tuned["a"].candidates
    assert all(type(each["width"]) is int and 1 <= each["width"] <= 64 for each in candidates)
    kinds = {canonical(each["free"]) for each in candidates}
    assert kinds <= {"null", "true", "1", "1.0", "[64,128]"}
    assert len(kinds) >= 4
    assert all((8 * each["lr"]).is_integer() for each in candidates)
    assert len({canonical(each) for each in candidates}) == 40


def test_a_small_space_is_searched_to_its_end() -> None:
    made = finished(tuned(tune={"kind": {"choices": ["x", "y", "z"]}}, budget=16))
    assert sorted(each["kind"] for each in made.tuned["a"].candidates) == ["x", "y", "z"]
    assert made.tuned["a"].is_complete
    assert of_role(made, "main")


def test_numbers_have_few_digits_and_stay_in_their_range() -> None:
    made = finished(tuned(tune={"lr": {"low": 0.099996, "high": 0.100004}}, budget=6))
    rates = [each["lr"] for each in made.tuned["a"].candidates]
    assert rates == [0.1]  # all that four digits tell apart
    rates = [each["lr"] for each in finished(tuned()).tuned["a"].candidates]
    assert all(float(f"{rate:.4g}") == rate and 1e-3 <= rate <= 1 for rate in rates)


def test_candidates_are_judged_by_their_mean_over_the_tuning_seeds() -> None:
    study = tuned(budget={"candidates": 4, "seeds": 2, "sampler": "qmc"})
    made = make_plan(study)
    assert {each.seed for each in made.replicates} == {FIRST_TUNING_SEED, FIRST_TUNING_SEED + 1}
    told = {}
    for each in made.replicates:
        value = float(each.candidate or 0) * (-3 if each.seed == FIRST_TUNING_SEED else 1)
        told[each.trial.fingerprint] = Told("finished", value)
    assert make_plan(study, told).tuned["a"].best == 0
    assert make_plan(study, told).tuned["a"].means == {0: -1.0, 1: -2.0, 2: -3.0, 3: -4.0}


@pytest.mark.parametrize("status", ["failed", "diverged", "pruned"])
def test_a_candidate_without_a_value_is_not_chosen(status: str) -> None:
    study = tuned(budget={"candidates": 4, "sampler": "qmc"})
    made = make_plan(study)
    without = Told("finished") if status == "pruned" else Told(status)  # type: ignore[arg-type]
    told = {each.trial.fingerprint: Told("finished", 1.0) for each in made.replicates}
    told |= {each.trial.fingerprint: without for each in made.replicates if each.candidate == 1}
    assert make_plan(study, told).tuned["a"].best == 1
    told = dict.fromkeys(made.trials(), without)
    made = make_plan(study, told)
    assert made.tuned["a"].is_complete
    assert made.tuned["a"].chosen is None
    assert not of_role(made, "main")


def test_a_diverged_candidate_counts_with_the_declared_value() -> None:
    study = tuned(budget={"candidates": 4, "sampler": "qmc"}, metric={"on_diverged": 10.0})
    made = make_plan(study)
    told = {
        each.trial.fingerprint: Told("diverged" if each.candidate == 1 else "finished", 5.0) for each in made.replicates
    }
    told |= {each.trial.fingerprint: Told("diverged") for each in made.replicates if each.candidate == 1}
    assert make_plan(study, told).tuned["a"].means[0] == 10.0


def test_tpe_keeps_away_from_where_training_diverges() -> None:
    study = tuned(tune={"lr": {"low": 1e-4, "high": 100, "log": True}}, budget=40)
    made = make_plan(study)
    while True:
        told = {
            each.trial.fingerprint: Told("diverged")
            if each.trial.settings["lr"] > 0.3
            else Told("finished", accuracy(each.trial.settings, each.seed))
            for each in made.replicates
        }
        more = make_plan(study, told)
        if more.trials().keys() == made.trials().keys():
            break
        made = more
    rates = [each["lr"] for tuning in made.tuned.values() for each in tuning.candidates[STARTUP:]]
    assert sum(rate > 0.3 for rate in rates) <= 18  # of 64; at random it would be 27


def test_more_seeds_tune_nothing_anew() -> None:
    few, many = finished(tuned(seeds=3)), finished(tuned(seeds=10))
    assert few.trials().keys() < many.trials().keys()
    assert [each for each in many.replicates if each.role == "tune"] == of_role(few, "tune")


def test_looks_and_paths_go_on_from_what_is_tuned() -> None:
    looks = finished(tuned(seeds={"looks": [3, 5]}))
    assert {each.seed for each in of_role(looks, "main")} == {1, 2, 3}  # the effect is plain at once
    path = finished(tuned("path", steps="ab", seeds=3))
    assert {each.arm for each in of_role(path, "tune")} == {arm.name for arm in path.arms}
    assert {each.seed for each in of_role(path, "confirm")} == {4, 5, 6}


def test_an_untuned_study_is_kept_as_before() -> None:
    untuned = plans.plan(steps="a", settings=SETTINGS)
    assert not {"tune", "budget"} & {*untuned.study.spec(), *untuned.frozen()}
    frozen = make_plan(tuned()).frozen()
    assert frozen["tune"] == LR
    assert frozen["budget"] == {"candidates": 16, "sampler": "tpe", "seeds": [FIRST_TUNING_SEED], "prune": False}


@pytest.mark.parametrize(
    ("found", "value", "expected"),
    [
        ({"low": 1e-3, "high": 1, "log": True}, 0.0013, "low"),
        ({"low": 1e-3, "high": 1, "log": True}, 0.002, None),
        ({"low": 1e-3, "high": 1, "log": True}, 0.9, "high"),
        ({"low": 0, "high": 1}, 0.04, "low"),
        ({"low": 0, "high": 1}, 0.06, None),
        ({"low": 1, "high": 64, "log": True}, 64, "high"),
        ({"low": 8, "high": 32, "step": 8}, 8, "low"),
        ({"low": 8, "high": 32, "step": 8}, 16, None),
        ({"choices": [0.1, 0.01, 1.0]}, 1.0, "high"),
        ({"choices": [0.1, 0.01, 1.0]}, 0.1, None),
        ({"choices": ["x", "y", "z"]}, "x", None),
        ({"choices": [1, 2]}, 1, None),
    ],
)
def test_the_edge_of_a_range(found: dict[str, Any], value: Any, expected: str | None) -> None:
    assert edge(Range.model_validate({**found, "choices": tuple(found.get("choices", ()))}), value) == expected
