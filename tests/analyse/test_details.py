"""What a page tells beside the findings, against the truth study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from ablate.analyse.analysis import analyse
from ablate.analyse.arm_details import arm_details
from ablate.analyse.details import StudyDetails, study_details
from ablate.store.claims import Ending, add_measurements, claim_trial, finish
from tests.truth import DIVERGED, FAILED, SHARED, STUDY, WAITING, Fate, Filled, fill, truth_study


def details_of(filled: Filled, log: Sequence[str] = ()) -> StudyDetails:
    return study_details(filled.store, filled.stored, analyse(filled.store, filled.stored), log_of=lambda _: log)


def test_arms_are_what_show_tells_of_each(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(), {("depth-6", 1): FAILED})
    details = details_of(filled)
    assert [arm.name for arm in details.arms] == [arm.name for arm in filled.plan.arms]
    for arm in details.arms:
        assert arm == arm_details(filled.store, filled.stored, arm.name)
    assert details.command == "ablate run"


def test_a_course_is_the_mean_over_seeds_with_a_t_interval(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(), epochs=3)
    baseline = details_of(filled).courses[0]
    assert (baseline.arm, baseline.metric, baseline.n, baseline.epochs) == ("baseline", "val_acc", 5, (1, 2, 3))
    assert [mean.mean for mean in baseline.means] == pytest.approx([15.0, 22.5, 30.0])
    assert set(baseline.seeds) == set(SHARED)
    last = baseline.means[-1]
    cell = analyse(filled.store, filled.stored).arm("baseline").cells["val_acc"]
    assert cell.se is not None
    assert last.high - last.mean == pytest.approx(2.776445 * cell.se, rel=1e-6)  # t of 4 degrees of freedom
    assert last.mean - last.low == pytest.approx(last.high - last.mean)


def test_a_course_ends_where_its_first_seed_does(tmp_path: Path) -> None:
    """A mean over those that went on would flatter: at once diverged is no course at all."""
    fates = {("batchnorm", 2): WAITING, ("depth-6", 2): WAITING, ("depth-6", 1): FAILED, ("residual", 3): DIVERGED}
    filled = fill(tmp_path, truth_study(), fates, epochs=4)
    _ends(filled, "batchnorm", [1.0, 2.0, math.nan])
    _ends(filled, "depth-6", [math.inf])
    details = details_of(filled)
    courses = {course.arm: course for course in details.courses}
    assert (courses["batchnorm"].n, courses["batchnorm"].epochs) == (5, (1, 2))
    assert (courses["depth-6"].n, courses["depth-6"].epochs) == (4, ())
    assert courses["residual"].epochs == (1, 2, 3, 4)
    assert {cost.arm for cost in details.costs} == {arm.name for arm in details.arms} - {
        "batchnorm",
        "depth-6",
        "residual",
    }


def _ends(filled: Filled, arm: str, values: list[float]) -> None:
    """Let the waiting trial of an arm diverge, having measured these on its way."""
    claim = claim_trial(filled.store, runner_id="r", study_id=filled.stored.id, arms=[arm], slot="cpu:0", lease_s=1e9)
    assert claim is not None
    records = [{"epoch": epoch, "values": {"val_acc": value}} for epoch, value in enumerate(values, start=1)]
    add_measurements(filled.store, [(claim, records)])
    finish(filled.store, claim, Ending("diverged", "done"), {"val_acc": math.nan})


def test_of_many_epochs_a_part_is_kept_with_both_ends(tmp_path: Path) -> None:
    details = details_of(fill(tmp_path, truth_study(seeds=2, steps=STUDY["steps"][:1]), epochs=500))
    for course in details.courses:
        assert len(course.epochs) == 60
        assert (course.epochs[0], course.epochs[-1]) == (1, 500)
        assert list(course.epochs) == sorted(set(course.epochs))
        assert all(len(values) == 60 for values in course.seeds.values())


def test_below_three_seeds_a_mean_has_no_interval(tmp_path: Path) -> None:
    details = details_of(fill(tmp_path, truth_study(seeds=2), epochs=2))
    means = [mean for course in details.courses for mean in course.means] + [cost.value for cost in details.costs]
    assert all(mean.low == mean.mean == mean.high for mean in means)


def test_a_failure_is_told_of_once_with_the_end_of_its_log(tmp_path: Path) -> None:
    steps = [*STUDY["steps"][:1]]
    study = truth_study(steps=steps, designs=["ladder", "one-at-a-time"])
    details = details_of(fill(tmp_path, study, {("batchnorm", 2): FAILED}), log=["last words"])
    (failure,) = details.failures
    assert (failure.arm, failure.seed, failure.outcome, failure.attempts) == ("batchnorm", 2, "oom", 1)
    assert failure.reason == FAILED.reason
    assert failure.log == ("last words",)


def test_costs_have_intervals_of_the_metric_and_of_time(tmp_path: Path) -> None:
    fates = {("batchnorm", seed): Fate(seconds=10.0) for seed in range(1, 6)}
    costs = {cost.arm: cost for cost in details_of(fill(tmp_path, truth_study(), fates)).costs}
    equal, other = costs["batchnorm"].seconds, costs["baseline"].seconds
    assert equal is not None
    assert other is not None
    assert (equal.low, equal.mean, equal.high) == (10.0, 10.0, 10.0)
    assert other.mean == pytest.approx(61.0)
    assert other.high - other.mean == pytest.approx(2.776445 * 7 * (2.5**0.5) / 5**0.5, rel=1e-6)
    assert costs["baseline"].parameters == 1.2e6
