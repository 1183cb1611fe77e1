from __future__ import annotations

from pathlib import Path

import pytest

from ablate.analyse.frames import trials_frame
from tests.truth import DIVERGED, FAILED, STUDY, WAITING, fill, truth_study


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
