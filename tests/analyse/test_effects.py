"""The truth study's effects are known: see tests/truth.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ablate.analyse.analysis import analyse
from ablate.analyse.findings import Analysis, Comparison
from ablate.plan.trials import Plan
from tests.truth import DIVERGED, FAILED, GAINS, OWN, WAITING, Fate, Filled, Measure, fill, measure_truth, truth_study


def analysed(folder: Path, fates: dict[tuple[str, int], Fate] | None = None, **changes: object) -> Analysis:
    filled = fill(folder, truth_study(**changes), fates)
    return analyse(filled.store, filled.stored)


def rows(analysis: Analysis, design: int = 0) -> dict[str, Comparison]:
    return {comparison.arm: comparison for comparison in analysis.designs[design].comparisons}


def means(analysis: Analysis, design: int = 0) -> dict[str, float]:
    found = {name: each.effects["val_acc"].mean for name, each in rows(analysis, design).items()}
    return {name: mean for name, mean in found.items() if mean is not None}


def test_a_ladder_finds_the_effects_that_were_put_in(tmp_path: Path) -> None:
    analysis = analysed(tmp_path)
    assert means(analysis) == pytest.approx(GAINS)
    total = analysis.designs[0].total
    assert total is not None
    gain = sum(value for name, value in GAINS.items() if name != "batchnorm-after-relu")
    assert total.effects["val_acc"].mean == pytest.approx(gain)
    assert (total.minuend, total.subtrahend) == ("residual-scale", "baseline")


def test_what_all_arms_share_at_a_seed_is_no_noise_of_a_difference(tmp_path: Path) -> None:
    analysis = analysed(tmp_path)
    effect = rows(analysis)["depth-6"].effects["val_acc"]
    places = {name: index for index, name in enumerate(("baseline", "batchnorm", "batchnorm-after-relu", "depth-6"))}
    own = [OWN[(s + places["depth-6"]) % 5] - OWN[(s + places["batchnorm"]) % 5] for s in range(5)]
    sd = math.sqrt(sum(d**2 for d in own) / 4)
    assert effect.sd == pytest.approx(sd)
    assert effect.interval is not None
    assert effect.interval.high - 4.0 == pytest.approx(2.7764451 * sd / math.sqrt(5), abs=1e-6)
    assert effect.interval.level == 0.95


def test_leave_one_out_subtracts_the_row_from_the_full_model(tmp_path: Path) -> None:
    analysis = analysed(tmp_path, designs=["leave-one-out"])
    assert means(analysis) == pytest.approx(
        {
            "without-batchnorm": 8.0,
            "without-depth-6": 4.0,
            "without-residual": 3.0,  # its dependent residual-scale goes with it
            "without-residual-scale": 0.5,
        }
    )
    assert rows(analysis)["without-residual"].note == "residual-scale removed with it"


def test_one_at_a_time_subtracts_the_baseline_or_what_a_step_requires(tmp_path: Path) -> None:
    analysis = analysed(tmp_path, designs=["one-at-a-time"])
    assert [round(value, 9) for value in means(analysis).values()] == [8.0, 6.5, 4.0, 2.5, 0.5]
    assert rows(analysis)["only-residual-scale"].other == "only-residual"


def test_a_missing_seed_leaves_both_sides_of_a_comparison(tmp_path: Path) -> None:
    analysis = analysed(tmp_path, {("batchnorm", 2): FAILED, ("baseline", 4): WAITING})
    effect = rows(analysis)["batchnorm"].effects["val_acc"]
    assert list(effect.differences) == [1, 3, 5]
    assert effect.dropped == (2, 4)
    cells = {arm.name: arm.cells["val_acc"] for arm in analysis.arms}
    expected = sum(cells["batchnorm"].values[s] - cells["baseline"].values[s] for s in (1, 3, 5)) / 3
    assert effect.mean == pytest.approx(expected)
    assert (cells["batchnorm"].n, cells["baseline"].n) == (4, 4)


def test_nothing_is_compared_with_an_arm_that_diverged(tmp_path: Path) -> None:
    """The mean of the seeds that did not diverge flatters the arm."""
    analysis = analysed(tmp_path, {("depth-6", 3): DIVERGED})
    arm = analysis.arm("depth-6")
    assert arm.cells["val_acc"].undefined == (3,)
    assert arm.cells["val_acc"].n == 4
    for name in ("depth-6", "residual"):
        effect = rows(analysis)[name].effects["val_acc"]
        assert (effect.mean, effect.interval, effect.withheld) == (None, None, ("depth-6",))
    assert rows(analysis)["batchnorm"].effects["val_acc"].mean == pytest.approx(8.0)
    total = analysis.designs[0].total
    assert total is not None
    assert total.effects["val_acc"].mean == pytest.approx(15.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_no_number_counts_as_diverged(tmp_path: Path, value: float) -> None:
    analysis = analysed(tmp_path, {("depth-6", 3): Fate(metrics={"val_acc": value, "macro_f1": 1.0})})
    assert analysis.counts.diverged == 1
    assert analysis.arm("depth-6").cells["val_acc"].undefined == (3,)


def test_a_secondary_metric_that_is_no_number_spoils_only_itself(tmp_path: Path) -> None:
    analysis = analysed(tmp_path, {("depth-6", 3): Fate(metrics={"val_acc": 42.0, "macro_f1": math.nan})})
    effects = rows(analysis)["depth-6"].effects
    assert effects["val_acc"].n == 5
    assert effects["val_acc"].mean is not None
    assert effects["macro_f1"].withheld == ("depth-6",)


def test_a_task_that_does_not_return_the_primary_metric_has_failed(tmp_path: Path) -> None:
    analysis = analysed(tmp_path, {("depth-6", 3): Fate(metrics={"macro_f1": 40.0})})
    assert analysis.arm("depth-6").failure == "the task returned no val_acc"
    assert analysis.counts.failed == 1


def constant(value: float) -> Measure:
    def measure(plan: Plan, arm: str, seed: int) -> dict[str, float]:
        return {**measure_truth(plan, arm, seed), **({"val_acc": value, "macro_f1": value} if arm == "depth-6" else {})}

    return measure


def measured(folder: Path, measure: Measure) -> tuple[Filled, Analysis]:
    filled = fill(folder, truth_study(), measure=measure)
    return filled, analyse(filled.store, filled.stored)


def test_seeds_that_change_nothing_are_said_and_give_no_interval(tmp_path: Path) -> None:
    _, analysis = measured(tmp_path, constant(40.0))
    assert [arm.name for arm in analysis.arms if arm.identical_seeds] == ["depth-6"]
    assert rows(analysis)["depth-6"].effects["val_acc"].interval is None
    assert rows(analysis)["residual"].effects["val_acc"].interval is None
    assert rows(analysis)["batchnorm"].effects["val_acc"].interval is not None


def test_an_accuracy_at_its_floor_is_no_sign_of_identical_seeds(tmp_path: Path) -> None:
    def measure(plan: Plan, arm: str, seed: int) -> dict[str, float]:
        return {**measure_truth(plan, arm, seed), **({"val_acc": 1.0} if arm == "depth-6" else {})}

    _, analysis = measured(tmp_path, measure)
    assert not any(arm.identical_seeds for arm in analysis.arms)
    assert rows(analysis)["depth-6"].effects["val_acc"].interval is not None


def test_a_change_that_changes_no_bit_is_found(tmp_path: Path) -> None:
    def measure(plan: Plan, arm: str, seed: int) -> dict[str, float]:
        return measure_truth(plan, "depth-6" if arm == "residual" else arm, seed)

    _, analysis = measured(tmp_path, measure)
    assert [name for name, row in rows(analysis).items() if row.identical] == ["residual"]
    effect = rows(analysis)["residual"].effects["val_acc"]
    assert (effect.mean, effect.interval) == (0.0, None)


def test_a_tie_of_the_primary_metric_alone_is_no_sign_of_a_dead_change(tmp_path: Path) -> None:
    def measure(plan: Plan, arm: str, seed: int) -> dict[str, float]:
        tied = measure_truth(plan, "depth-6", seed)["val_acc"] if arm == "residual" else None
        return {**measure_truth(plan, arm, seed), **({} if tied is None else {"val_acc": tied})}

    _, analysis = measured(tmp_path, measure)
    assert not any(row.identical for row in rows(analysis).values())


@pytest.mark.parametrize("shift", [100.0, -17.5])
def test_adding_a_constant_to_every_value_leaves_all_effects(tmp_path: Path, shift: float) -> None:
    def measure(plan: Plan, arm: str, seed: int) -> dict[str, float]:
        return {name: value + shift for name, value in measure_truth(plan, arm, seed).items()}

    _, analysis = measured(tmp_path, measure)
    assert means(analysis) == pytest.approx(GAINS)


def test_more_seeds_than_one_are_needed_for_an_interval(tmp_path: Path) -> None:
    one = rows(analysed(tmp_path / "1", seeds=1))["batchnorm"].effects["val_acc"]
    two = rows(analysed(tmp_path / "2", seeds=2))["batchnorm"].effects["val_acc"]
    assert (one.n, one.sd, one.interval) == (1, None, None)
    assert two.interval is not None
