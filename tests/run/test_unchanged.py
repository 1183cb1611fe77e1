"""A step that does not reach the code is said at its first trial, and one that merely ties is not."""

from __future__ import annotations

from pathlib import Path

from tests.command import ablate
from tests.studies import write_study

STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max}, loss: {goal: min}}
settings: {level: 1, typo: 0, tie: 0, few: 0}
steps:
  - {name: typo, set: {typo: 1}}
  - {name: level, set: {level: 2}}
  - {name: tie, set: {tie: 1}}
designs: [one-at-a-time]
seeds: 2
"""

TASK = """
def train(settings, context):
    for epoch in range(1, 4):
        own = settings["tie"] * (epoch == 2) * 1e-15
        acc = epoch * settings["level"] + context.seed / 10
        context.record(epoch=epoch, acc=acc, loss=1 / epoch + own, other=id(own))
    return {"acc": 3 * settings["level"] + context.seed / 10, "loss": 1 / 3}
"""


def test_a_step_that_does_not_reach_the_code_is_said_once(project: Path) -> None:
    done = ablate("run", str(write_study(project, STUDY, task=TASK)), "-j", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: only-typo seed 1 is bit-identical to baseline: the change is probably not reaching the code"
    ]
    place = done.stderr.index(warnings[0])
    assert place < done.stderr.index("seed 2"), "at the first trial that shows it"


def test_one_number_may_tie_by_chance(project: Path) -> None:
    task = "def train(settings, context):\n    return {'acc': 50.0, 'loss': 1.0}\n"
    done = ablate("run", str(write_study(project, STUDY, task=task)), "-j", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


def test_a_setting_that_there_is_not_is_said_with_the_one_that_was_meant(project: Path) -> None:
    task = "def train(settings, context):\n    return {'acc': settings['levle'], 'loss': 1.0}\n"
    done = ablate("run", str(write_study(project, STUDY, task=task)), "--only", "baseline", cwd=project)
    assert done.returncode == 1
    assert "failed: baseline seed 1: error: KeyError: 'levle'; the settings have `level`" in done.stderr
