"""A trial that is resumed repeats what it measured since its checkpoint; where it does not, the report says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import ablate
from tests.studies import write_study

STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max}}
settings: {noise: false}
seeds: [1, 2]
"""

# dies once, after the record of epoch 2 and before its checkpoint; "noise" is what no seed governs
TASK = """
import os, signal

def train(settings, context):
    state = context.resume() or {"epoch": 0}
    for epoch in range(state["epoch"] + 1, 5):
        free = os.getpid() / 1e9 if settings["noise"] and epoch == 2 else 0.0
        context.record(epoch=epoch, acc=epoch + context.seed / 10 + free, seconds=os.getpid())
        if epoch == 2 and context.seed == 1 and context.folder.name == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        context.checkpoint({"epoch": epoch})
    return {"acc": 4 + context.seed / 10}
"""


@pytest.mark.parametrize("noise", [False, True])
def test_a_number_that_a_resumed_trial_does_not_repeat_is_shown(project: Path, noise: bool) -> None:
    path = write_study(project, STUDY.replace("false", str(noise).lower()), task=TASK)
    done = ablate("run", str(path), cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(ablate("report", "--json", cwd=project).stdout)["arms"][0]
    assert [each["attempts"] for each in found["trials"]] == [2, 1]
    note = "seed 1 was resumed and did not repeat itself bit for bit: acc of epoch 2 was 2.1"
    assert (note in " ".join(ablate("report", "--markdown", cwd=project).stdout.split())) is noise
    if not noise:
        assert found["mismatches"] == []
        return
    [mismatch] = found["mismatches"]
    assert (mismatch["seed"], mismatch["metric"], mismatch["epoch"], mismatch["count"]) == (1, "acc", 2, 1)
    assert mismatch["first"]["value"] != mismatch["again"]["value"]

    # trained afresh by other code: what the former training did no longer matters
    task = project / "toy.py"
    task.write_text(task.read_text().replace("free = os.getpid() / 1e9", "free = os.getpid() / 1e8"))
    assert ablate("run", str(path), "--fresh", cwd=project).returncode == 0
    found = json.loads(ablate("report", "--json", cwd=project).stdout)["arms"][0]
    assert found["mismatches"] == []
