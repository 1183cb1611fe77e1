"""`execution: {fuse: K}`: K seeds of an arm in one worker, each with its attempt, its ending and its own resume."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from ablate.run.progress import HUNGRY
from ablate.run.slots import SlotPool
from ablate.study.schema import Resources
from tests.command import ablate, finish, query, results, start
from tests.studies import write_study

TASK = """
import os, signal
from pathlib import Path
from torch import nn
from ablate.train.classification import train_classifier

def train(settings, context):
    keep, here = context.checkpoint, Path(__file__).parent

    def checkpoint(state):
        keep(state)
        if (here / "kill").exists():  # once, when the first of the group has a checkpoint and the others have none
            (here / "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def build(data):
        width = settings["model"]["width"]
        layers = [nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, data.classes)]
        if context.seed == settings["model"]["explodes"]:
            layers[-1].weight.data.fill_(float("inf"))
        return nn.Sequential(*layers, *[nn.Dropout(0.1)] * settings["model"]["dropout"])

    context.checkpoint = checkpoint
    print("seed", context.seed)
    return train_classifier(settings, context, build)
"""

STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {val_acc: {goal: max}}
settings:
  model: {width: 8, dropout: 0, explodes: 0}
  data: {name: digits, split_seed: 0, validation: 100, subset: 100}
  augment: {flip: false, crop: 1}
  normalise: true
  train: {epochs: 3, batch: 32, optimizer: sgd, lr: 0.1, momentum: 0.9}
steps:
  - name: wide
    set: {model.width: 12}
seeds: 3
execution: {fuse: 2, isolation: warm}
"""


def attempts(project: Path) -> list[tuple[int, int, str, int | None]]:
    """Return seed, claim, outcome and from which attempt each went on."""
    return query(
        project,
        "SELECT t.seed, a.claim, a.outcome, a.resumed_from FROM attempt a JOIN trial t ON t.id = a.trial ORDER BY 1, 2",
    )


def test_a_fused_study_ends_in_the_same_numbers_after_a_kill(tmp_path: Path) -> None:
    """One seed of the killed group has a checkpoint and its mate has none: the latter catches up with it."""
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for project in (calm, rough):
        (project / ".git").mkdir(parents=True)
        write_study(project, STUDY, task=TASK)
    (rough / "kill").touch()
    for project in (calm, rough):
        ran = ablate("run", "toy.yaml", cwd=project)
        assert ran.returncode == 0, ran.stderr
    assert len(results(calm)) > 100
    assert results(rough) == results(calm)
    assert {outcome for _, _, outcome, _ in attempts(calm)} == {"ok"}
    killed = [seed for seed, _, outcome, _ in attempts(rough) if outcome == "killed"]
    assert sorted(killed) == [1, 2]
    assert [(seed, before) for seed, claim, _, before in attempts(rough) if claim == 2] == [(1, 1), (2, None)]
    # seeds 1 and 2 are one group, and seed 3 is one with a copy of itself
    logs = sorted(path.read_text() for path in (calm / "runs" / "trials").glob("*/1/stdout.log"))
    assert [log for log in logs if not log.startswith("ablate: trained in one model")] == [
        "seed 1\nseed 2\n", "seed 1\nseed 2\n", "seed 3\n", "seed 3\n"
    ]  # fmt: skip
    assert sum(log.startswith("ablate: trained in one model with others") for log in logs) == 2


@pytest.mark.slow
def test_a_stop_ends_each_seed_of_a_group_with_its_checkpoint(tmp_path: Path) -> None:
    study = STUDY.replace("epochs: 3", "epochs: 60").replace("seeds: 3", "seeds: 2")
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    for project in (calm, stopped):
        (project / ".git").mkdir(parents=True)
        write_study(project, study, task=TASK)
    assert ablate("run", "toy.yaml", "--only", "baseline", cwd=calm).returncode == 0
    process = start("run", "toy.yaml", "--only", "baseline", cwd=stopped)
    deadline = time.monotonic() + 120
    while not list(stopped.glob("runs/trials/*/1/checkpoint/manifest.json")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert process.returncode == 130, said
    assert [(seed, outcome) for seed, _, outcome, _ in attempts(stopped)] == [(1, "interrupted"), (2, "interrupted")]
    assert ablate("run", "toy.yaml", "--only", "baseline", cwd=stopped).returncode == 0
    assert [(seed, before) for seed, claim, _, before in attempts(stopped) if claim == 2] == [(1, 1), (2, 1)]
    assert results(stopped) == results(calm)


def test_a_seed_that_diverges_is_done_and_so_are_its_mates(project: Path) -> None:
    study = STUDY.replace("explodes: 0", "explodes: 2").replace("seeds: 3", "seeds: 2").replace("fuse: 2", "fuse: 4")
    write_study(project, study, task=TASK)
    ran = ablate("run", "toy.yaml", "--only", "baseline", cwd=project)
    assert ran.returncode == 0, ran.stderr
    assert [(seed, outcome) for seed, _, outcome, _ in attempts(project)] == [(1, "ok"), (2, "diverged")]
    assert query(project, "SELECT state, COUNT(*) FROM trial GROUP BY 1 ORDER BY 1") == [("done", 2)]


def test_where_one_arm_cannot_be_fused_none_is(project: Path) -> None:
    study = STUDY.replace("seeds: 3", "  - name: dropout\n    set: {model.dropout: 1}\nseeds: 3")
    write_study(project, study, task=TASK)
    ran = ablate("run", "toy.yaml", cwd=project)
    assert ran.returncode == 2
    assert ran.stderr.partition("\n")[2] == (
        "error: toy.yaml:18: the arm `dropout` can't be trained with `fuse: 2`: the seeds of this network can't be "
        "trained in one model: `5` is Dropout(p=0.1, inplace=False)\n"
        "hint: take `fuse` out: all arms of a study are trained alike\n"
    )
    assert not (project / "runs").exists()


def test_a_task_with_a_loop_of_its_own_is_refused(project: Path) -> None:
    write_study(project, STUDY, task="def train(settings, context):\n    return {'val_acc': 1.0}\n")
    ran = ablate("run", "toy.yaml", cwd=project)
    assert ran.returncode == 2
    assert "the task did not call train_classifier" in ran.stderr


AUTO = STUDY.replace("fuse: 2", "fuse: auto").replace("epochs: 3", "epochs: 1")


def test_auto_measures_once_and_keeps_its_choice(project: Path) -> None:
    """A later run goes on with it, and its trials are those of the number that it names."""
    write_study(project, AUTO, task=TASK)
    ran = ablate("run", "toy.yaml", "--only", "baseline", cwd=project)
    assert ran.returncode == 0, ran.stderr
    told = re.search(r"^fuse: (\d) \(against seeds one by one, (.*); measured in (\d+) s\)$", ran.stderr, re.MULTILINE)
    assert told, ran.stderr
    [(kept,)] = query(project, "SELECT plan_json FROM plan")
    fusing = json.loads(kept)["fusing"]
    assert fusing["fuse"] == int(told[1])
    assert set(fusing["paces"]) == {"baseline"}
    assert {"1", "2"} <= set(fusing["paces"]["baseline"])
    assert all(pace > 0 for pace in fusing["paces"]["baseline"].values())
    for words in ((), ("--set", f"execution.fuse={told[1]}")):
        again = ablate("run", "toy.yaml", "--only", "baseline", *words, cwd=project)
        assert again.returncode == 0, again.stderr
        assert "3 trials done (trained nothing new)" in again.stderr
        assert "measured in" not in again.stderr
    assert "6 trials: 3 done, 3 to do" in ablate("plan", "toy.yaml", cwd=project).stdout


def test_auto_leaves_a_study_one_by_one_where_an_arm_cannot_be_fused(project: Path) -> None:
    study = AUTO.replace("seeds: 3", "  - name: dropout\n    set: {model.dropout: 1}\nseeds: 1")
    write_study(project, study, task=TASK)
    ran = ablate("run", "toy.yaml", "--only", "baseline,dropout", cwd=project)
    assert ran.returncode == 0, ran.stderr
    why = "the arm `dropout`: the seeds of this network can't be trained in one model: `5` is Dropout"
    assert f"fuse: 1 ({why}" in ran.stderr
    assert {outcome for _, _, outcome, _ in attempts(project)} == {"ok"}


def test_auto_waits_for_a_slot_where_another_run_holds_them_all(project: Path) -> None:
    write_study(project, AUTO, task=TASK)
    pool = SlotPool(Resources(), threads=1)
    held = [slot for slot in (pool.acquire() for _ in range(pool.size)) if slot is not None]
    run = start("run", "toy.yaml", "--only", "baseline", "-j", "1", cwd=project)
    assert run.stderr is not None
    lines = iter(run.stderr.readline, "")
    said = next((line for line in lines if HUNGRY in line), "")
    for slot in held:
        pool.release(slot)
    rest = finish(run)
    assert said, rest
    assert run.returncode == 0, rest
    assert "fuse: " in rest


def test_auto_is_not_measured_where_the_trials_do_not_run(project: Path) -> None:
    write_study(project, AUTO, task=TASK)
    (project / "results.csv").write_text("arm,seed,val_acc\nbaseline,1,70\n")
    for words in (("run", "toy.yaml", "--queue"), ("import", "toy.yaml", "--csv", "results.csv")):
        refused = ablate(*words, cwd=project)
        assert refused.returncode == 2
        assert "`fuse: auto` has not been measured yet" in refused.stderr
    assert not (project / "runs").exists()
