"""A study that was edited: what changed is said before it runs, what is unchanged is kept, the rest is new."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate.plan.edits import SHOWN, edits
from tests.command import ablate, query
from tests.studies import write_study

TASK = """
def train(settings, context):
    return {"acc": settings["model"]["width"] + context.seed / 10, "loss": 1.0}
"""

STUDY = """\
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max}, loss: {goal: min}}
settings: {model: {width: 1, deep: false}}
steps:
  - name: wide
    set: {model.width: 2}
  - name: deep
    set: {model.deep: true}
seeds: 2
"""


def test_what_an_edit_changed_is_said_and_only_what_it_changed_is_trained(project: Path) -> None:
    path = write_study(project, STUDY, task=TASK)
    first = ablate("run", str(path), cwd=project)
    assert first.returncode == 0, first.stderr
    assert "has changed" not in first.stderr
    again = ablate("run", str(path), cwd=project)
    assert "has changed" not in again.stderr

    path.write_text(
        STUDY.replace("seeds: 2", "seeds: 3")
        .replace("{model.width: 2}", "{model.width: 4}")
        .replace("acc: {goal: max}", "acc: {goal: max, margin: 0.5}")
    )
    asked = ablate("plan", str(path), cwd=project)
    told = """\
toy has changed since it was last run (version 1):
  metrics.acc.margin: null → 0.5
  seeds: [1, 2] → [1, 2, 3]
  step wide: set.model.width: 2 → 4
  2 trials kept, 7 to train, 4 not part of it now (`ablate report toy:1`)
"""
    assert told in asked.stderr
    edited = ablate("run", str(path), cwd=project)
    assert edited.returncode == 0, edited.stderr
    assert told in edited.stderr
    assert "9 trials done (7 attempts)" in edited.stderr
    assert query(project, "SELECT count(*), max(claim) FROM trial WHERE state = 'done'") == [(13, 1)]
    assert "has changed" not in ablate("run", str(path), cwd=project).stderr

    back = write_study(project, STUDY, task=TASK)  # undone: nothing is trained again
    undone = ablate("run", str(back), cwd=project)
    assert "  6 trials kept, 0 to train, 7 not part of it now (`ablate report toy:2`)" in undone.stderr
    assert "toy: 6 trials done (trained nothing new)" in undone.stderr


BEFORE = {
    "name": "toy",
    "metrics": {"acc": {"goal": "max"}, "loss": {"goal": "min"}},
    "settings": {"lr": 0.1},
    "steps": [{"name": "a", "title": "A", "set": {"lr": 1}}, {"name": "b", "title": "B", "set": {"lr": 2}}],
}


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({}, []),
        ({"settings": {"lr": 0.2}}, ["settings.lr: 0.1 → 0.2"]),
        ({"steps": BEFORE["steps"][:1]}, ["step removed: b"]),
        ({"steps": [*BEFORE["steps"], {"name": "c"}]}, ["step added: c"]),
        ({"steps": BEFORE["steps"][::-1]}, ["the order of the steps: b, a"]),
        ({"steps": [{**BEFORE["steps"][0], "title": "new"}, BEFORE["steps"][1]]}, ["step a: title: A → new"]),
        ({"metrics": dict(reversed(BEFORE["metrics"].items()))}, ["the primary metric: acc → loss"]),
    ],
)
def test_a_change_is_told_in_the_words_of_the_file(change: dict[str, object], lines: list[str]) -> None:
    assert edits(BEFORE, {**BEFORE, **change}) == lines


def test_of_very_many_changes_the_first_are_told() -> None:
    settings = {f"s{number}": number for number in range(40)}
    lines = edits(BEFORE, {**BEFORE, "settings": settings})
    assert len(lines) == SHOWN + 1
    assert lines[-1] == "and 29 more changes"
