from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from sqlalchemy import insert

from ablate.analyse.analysis import analyse
from ablate.analyse.frames import effects_frame, measurements_frame, trials_frame
from ablate.store.facts import stored_number, trials_of
from ablate.store.tables import measurement
from tests.truth import DIVERGED, FAILED, GAINS, STUDY, WAITING, Filled, fill, truth_study


def test_one_row_per_arm_and_seed(tmp_path: Path) -> None:
    fates = {("batchnorm", 2): FAILED, ("depth-6", 3): DIVERGED, ("residual", 1): WAITING}
    filled = fill(tmp_path, truth_study(), fates)
    frame = trials_frame(filled.store, filled.stored).set_index(["arm", "seed"])
    assert len(frame) == 6 * 5
    assert frame.index.is_unique
    assert frame.loc[("baseline", 1), "val_acc"] == pytest.approx(30.8)
    assert frame.loc[("batchnorm", 2), "state":"reason"].dropna().to_dict() == {
        "state": "failed",
        "outcome": "oom",
        "attempts": 1,
        "seconds": 54.0,
        "model.depth": 4,
        "model.norm": "before_relu",
        "model.residual": "false",
        "model.residual_scale": 1.0,
        "reason": "out of memory: 23.1 GiB of 24 GiB in use",
    }
    assert frame.loc[("depth-6", 3), "outcome"] == "diverged"
    assert frame.loc[("depth-6", 3), "val_loss"] == float("inf")
    assert frame.loc[("residual", 1), "outcome"] == "interrupted"


def test_only_settings_that_differ_are_columns(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(seeds=1))
    columns = list(trials_frame(filled.store, filled.stored).columns)
    assert [name for name in columns if name.startswith(("model.", "train."))] == [
        "model.norm",
        "model.depth",
        "model.residual",
        "model.residual_scale",
    ]
    assert columns[:8] == ["arm", "title", "seed", "role", "state", "outcome", "attempts", "seconds"]
    assert columns[-1] == "fingerprint"


def test_a_metric_or_setting_with_the_name_of_a_column_gets_a_prefix(tmp_path: Path) -> None:
    study = truth_study(
        metrics={**STUDY["metrics"], "seconds": {"goal": "min"}},
        settings={"title": "a", "val_acc": 0},
        steps=[{"name": "b", "set": {"title": "b", "val_acc": 1}}],
        seeds=1,
    )
    filled = fill(tmp_path, study)
    columns = list(trials_frame(filled.store, filled.stored).columns)
    assert len(columns) == len(set(columns))
    assert {"metric:seconds", "setting:title", "setting:val_acc"} <= set(columns)


def test_one_row_per_comparison_and_metric(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(), {("depth-6", 3): DIVERGED})
    frame = effects_frame(analyse(filled.store, filled.stored)).set_index(["design", "row", "metric"])
    assert frame.index.is_unique
    assert len(frame) == (len(GAINS) + 1) * 2  # each step and the total, of two metrics
    batchnorm = frame.loc[("ladder", "batchnorm", "val_acc")]
    assert (batchnorm.arm, batchnorm.other, batchnorm.n) == ("batchnorm", "baseline", 5)
    assert batchnorm["mean"] == pytest.approx(GAINS["batchnorm"])
    assert batchnorm.low < GAINS["batchnorm"] < batchnorm.high
    assert batchnorm.verdict == "better"
    assert 0 < batchnorm.p < batchnorm.adjusted < 0.05
    diverged = frame.loc[("ladder", "depth-6", "val_acc")]
    assert diverged.verdict == "not tested"
    assert math.isnan(diverged["mean"])
    assert frame.xs("macro_f1", level="metric").verdict.isna().all()  # only the primary metric is tested


def test_one_row_per_number_recorded_on_the_way(tmp_path: Path) -> None:
    filled = fill(tmp_path, truth_study(seeds=1), {("batchnorm", 1): FAILED})
    record_epochs(filled, {"val_acc": [10.0, math.nan, 30.0], "lr": [0.1, 0.1, 0.01]})
    frame = measurements_frame(filled.store, filled.stored)
    assert list(frame.columns) == ["arm", "role", "seed", "metric", "epoch", "value"]
    assert "batchnorm" not in set(frame.arm)  # it has no result
    baseline = frame[(frame.arm == "baseline") & (frame.metric == "val_acc")]
    assert list(baseline.epoch) == [1, 2, 3]
    assert list(baseline.value.fillna(-1)) == [10.0, -1, 30.0]
    assert frame.dtypes.astype(str)[["seed", "epoch", "value"]].tolist() == ["int64", "int64", "float64"]


def record_epochs(filled: Filled, curves: Mapping[str, Sequence[float]]) -> None:
    """Let every finished trial have recorded these values, from epoch 1 on."""
    rows = [
        {"trial": each.trial, "claim": 1, "metric": metric, "epoch": epoch, **stored_number(value)}
        for each in trials_of(filled.store, filled.stored.id)
        if each.state == "done"
        for metric, values in curves.items()
        for epoch, value in enumerate(values, start=1)
    ]
    filled.store.write(lambda connection: connection.execute(insert(measurement), rows))
