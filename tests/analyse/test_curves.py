from __future__ import annotations

import math
from pathlib import Path

import pytest
from sqlalchemy import event

from ablate.analyse.analysis import analyse
from ablate.analyse.curves import Curve, study_curves
from ablate.store.claims import Ending, add_measurements, finish, reopen
from tests.truth import DIVERGED, FAILED, STUDY, WAITING, Fate, Filled, claim_next, fill, truth_study


def curves_of(filled: Filled) -> tuple[Curve, ...]:
    return study_curves(filled.store, filled.stored, analyse(filled.store, filled.stored))


def by_trial(curves: tuple[Curve, ...]) -> dict[tuple[str, str, int, str], Curve]:
    return {(each.arm, each.role, each.seed, each.metric): each for each in curves}


def test_a_curve_per_trial_and_declared_metric_in_plan_order(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(seeds=2), epochs=4)
    curves = curves_of(filled)
    arms = [arm.name for arm in filled.plan.arms]
    assert [(each.arm, each.role, each.seed, each.metric) for each in curves] == [
        (arm, "main", seed, metric) for arm in arms for seed in (1, 2) for metric in ("val_acc", "macro_f1")
    ]
    first = curves[0]
    assert first.epochs == (1, 2, 3, 4)
    assert first.values == pytest.approx((15.4, 23.1, 26.95, 30.8))


def test_the_end_of_a_curve_is_what_the_table_has(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(seeds=3), epochs=3)
    found = analyse(filled.store, filled.stored)
    for curve in curves_of(filled):
        assert curve.values[-1] == found.arm(curve.arm, curve.role).cells[curve.metric].values[curve.seed]


def test_trials_without_a_result_have_none_and_a_diverged_one_has(tmp_path: Path) -> None:
    fates = {
        ("batchnorm", 1): FAILED,
        ("depth-6", 1): DIVERGED,
        ("residual", 1): WAITING,
        ("residual", 2): Fate("", "running"),
    }
    filled = fill(tmp_path, truth_study(seeds=2), fates, epochs=2)
    seeds = {(each.arm, each.seed) for each in curves_of(filled)}
    assert {("batchnorm", 1), ("residual", 1), ("residual", 2)}.isdisjoint(seeds)
    assert {("batchnorm", 2), ("depth-6", 1), ("depth-6", 2)} <= seeds


def test_only_the_attempt_that_stands_counts_with_its_gaps_and_infinities(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(seeds=1, steps=[STUDY["steps"][0]]), epochs=3)
    reopen(filled.store, filled.stored.id, states=["done"], arms=["batchnorm"])
    claim = claim_next(filled.store, filled.stored.id)
    assert claim is not None
    records = [{"epoch": 4, "values": {"val_acc": math.inf}}, {"epoch": 2, "values": {"val_acc": 1.5, "own": 3.0}}]
    add_measurements(filled.store, [(claim, records)])
    assert ("batchnorm", "main", 1, "val_acc") not in by_trial(curves_of(filled))
    finish(filled.store, claim, Ending("ok", "done"), {"val_acc": 2.0})
    found = by_trial(curves_of(filled))
    curve = found["batchnorm", "main", 1, "val_acc"]
    assert (curve.epochs, curve.values) == ((2, 4), (1.5, math.inf))
    assert ("batchnorm", "main", 1, "macro_f1") not in found
    assert ("batchnorm", "main", 1, "own") not in found


def test_seeds_that_confirm_have_a_role_and_candidates_have_no_curves(tmp_path: Path) -> None:
    tuned = fill(tmp_path / "tuned", truth_study(
        tune={"train.lr": {"low": 0.001, "high": 1.0, "log": True}}, budget={"candidates": 4}, seeds=2,
    ), epochs=2)  # fmt: skip
    assert {each.role for each in curves_of(tuned)} == {"main"}
    assert len(curves_of(tuned)) == 6 * 2 * 2
    path = fill(tmp_path / "path", truth_study(designs=["path"], seeds=2), epochs=2)
    assert {each.role for each in curves_of(path)} == {"main", "confirm"}


def test_what_became_of_each_trial_is_not_asked_once_more(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(seeds=5), {("depth-6", 1): DIVERGED}, epochs=2)
    analysis = analyse(filled.store, filled.stored)
    statements: list[str] = []
    event.listen(filled.store.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    assert len(study_curves(filled.store, filled.stored, analysis)) == 6 * 5 * 2
    assert sum(statement.startswith("SELECT") for statement in statements) == 1
