"""What `ablate run` keeps of a task's scores, and of results that were trained afresh."""

from __future__ import annotations

import json
from pathlib import Path

from ablate.store.facts import earlier_results_of, find_study, trials_of
from ablate.store.integrity import store_flaws
from ablate.store.scores import scores_of
from ablate.store.store import Store, open_store
from tests.command import ablate
from tests.studies import write_study

STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max}}
settings: {level: 1, give: right}
steps:
  - name: two
    set: {level: 2}
  - name: torn
    set: {give: torn}
  - name: skewed
    set: {give: skewed}
  - name: diverged
    set: {give: diverged}
designs: [one-at-a-time]
seeds: 2
"""

TASK = """
import math

def train(settings, context):
    level, give = settings["level"], settings["give"]
    context.record(epoch=1, acc=0.0)
    values = [100.0 * (each < 3 + level) for each in range(10)]
    context.scores(range(10), values)
    acc = sum(values) / 10
    if give == "torn":
        (context.folder / "scores.npz").write_bytes(b"PK\\x1b")
    return {"acc": {"skewed": acc + 1, "diverged": math.nan}.get(give, acc)}
"""


def stored(project: Path) -> Store:
    return open_store(project / "runs" / "ablate.db", read_only=True)


def test_scores_are_kept_with_the_result_and_earlier_results_after_a_fresh_run(project: Path) -> None:
    path = write_study(project, STUDY, task=TASK)
    done = ablate("run", str(path), cwd=project)
    assert done.returncode == 0, done.stderr
    store = stored(project)
    study = find_study(store, "toy")
    found = scores_of(store, study.id)
    assert set(found) == {(arm, "main", seed) for arm in ("baseline", "only-two", "only-skewed") for seed in (1, 2)}
    assert found["only-two", "main", 1].ids.tolist() == list(range(10))
    assert found["only-two", "main", 1].values.tolist() == [100.0] * 5 + [0.0] * 5
    notes = {each.arm: json.loads(each.environment_json or "{}").get("scores") for each in trials_of(store, study.id)}
    assert notes == {
        "baseline": None,
        "only-two": None,
        "only-torn": "not readable: File is not a zip file",
        "only-skewed": "their mean is 40, and acc is 41",
        "only-diverged": None,
    }
    assert earlier_results_of(store, study.id) == []
    assert store_flaws(store) == []
    store.close()

    (project / "toy.py").write_text(TASK.replace("3 + level", "5 + level"))
    done = ablate("run", str(path), "--fresh", cwd=project)
    assert done.returncode == 0, done.stderr
    store = stored(project)
    earlier = {(each.arm, each.seed): each for each in earlier_results_of(store, study.id)}
    assert len(earlier) == 10
    before, after = earlier["baseline", 1], trials_of(store, study.id)[0]
    assert (before.arm, before.role, before.seed, before.claim, before.outcome) == ("baseline", "main", 1, 1, "ok")
    assert before.code_sha256 not in (None, after.code_sha256)
    assert before.metrics == {"acc": 40.0}
    assert before.seconds is not None
    assert "python" in json.loads(before.environment_json or "")
    assert earlier["only-diverged", 1].outcome == "diverged"
    assert scores_of(store, study.id)["baseline", "main", 1].values.tolist() == [100.0] * 6 + [0.0] * 4
    assert store_flaws(store) == []
