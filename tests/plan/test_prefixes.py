"""Arms that differ in epochs alone are found; whatever may look ahead is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate.plan.prefixes import Prefixes
from ablate.plan.trials import open_plan
from tests.studies import toy_plan, write_study

STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max}}
settings: {width: 8, train: {epochs: 4, schedule: constant, decay: 0}}
steps:
  - {name: short, set: {train.epochs: 2}}
  - {name: wide, set: {width: 16}}
  - {name: long, set: {train.epochs: 9}}
  - {name: longer, from: long, branch: true, set: {train.epochs: 20}}
seeds: 3
"""


def pairs(folder: Path, study: str = STUDY, **changes: str) -> list[tuple[str, str]]:
    for old, new in changes.items():
        study = study.replace(old, new)
    write_study(folder, study)
    found = Prefixes(open_plan(folder / "toy.yaml"))
    assert bool(found) is bool(list(found.pairs()))
    return [(longer.name, shorter.name) for longer, shorter in found.pairs()]


def test_each_arm_goes_on_from_the_longest_below_it(tmp_path: Path) -> None:
    assert pairs(tmp_path) == [("baseline", "short"), ("long", "wide"), ("longer", "long")]
    step = STUDY.replace("schedule: constant, decay: 0", "schedule: step, step_epochs: 1, step_factor: 0.5")
    assert len(pairs(tmp_path, step)) == 3


def test_the_longest_come_first(tmp_path: Path) -> None:
    write_study(tmp_path, STUDY)
    plan = open_plan(tmp_path / "toy.yaml")
    found = Prefixes(plan)
    assert [arm.name for arm in found.shorter(plan.arm("longer").settings)] == ["long", "wide"]
    assert found.has_longer(plan.arm("wide").settings)
    assert not found.has_longer(plan.arm("longer").settings)
    assert found.shorter(plan.arm("short").settings) == []


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "of-somebody's-own"])
def test_a_schedule_that_may_look_ahead_has_no_beginning(tmp_path: Path, schedule: str) -> None:
    assert pairs(tmp_path, constant=schedule) == []


def test_neither_commands_nor_tuned_arms_nor_other_settings_are_taken_for_it(tmp_path: Path) -> None:
    command = "task: {command: 'python toy.py {settings.json} --seed {seed}'}"
    assert pairs(tmp_path, STUDY.replace("task: toy:train", command)) == []
    tuned = f"{STUDY}tune: {{train.decay: {{low: 0, high: 1}}}}\nbudget: 4\n"
    assert pairs(tmp_path, tuned) == []
    assert pairs(tmp_path, STUDY.replace("train.epochs", "train.decay")) == []
    assert not Prefixes(toy_plan(tmp_path)), "a study without `train`"
