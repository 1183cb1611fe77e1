"""Arms that differ in epochs alone: the longer goes on from the end of the shorter, and nothing else comes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ablate.plan.trials import open_plan
from ablate.run.shorter import Shorter
from ablate.store import claims
from ablate.store.facts import find_study, record_plan, trials_of
from ablate.store.store import open_store
from tests.command import Call, ablate, query, results
from tests.studies import TOY_STUDY, write_study

TASK = """
import hashlib
from torch import nn
from ablate.train.classification import train_classifier

def train(settings, context):
    nets = []
    def build(data):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, settings["model"]["width"]), nn.ReLU(), nn.Dropout(0.1))
        nets.append(net.append(nn.Linear(settings["model"]["width"], data.classes)))
        return nets[0]
    metrics = train_classifier(settings, context, build)
    bits = b"".join(value.numpy().tobytes() for value in nets[0].state_dict().values())
    context.fact("weights", hashlib.sha256(bits).hexdigest())
    return metrics
"""
# the longer arm stands first, and is put off until the shorter has ended
STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {val_acc: {goal: max}}
settings:
  model: {width: 8}
  data: {name: digits, split_seed: 0, validation: 300, subset: 200}
  augment: {flip: true, crop: 0}
  normalise: true
  train: {epochs: 4, batch: 50, lr: 0.1, optimizer: sgd, momentum: 0.9}
steps:
  - {name: short, set: {train.epochs: 2}}
  - {name: wide, set: {model.width: 16}}
seeds: 1
"""


def attempts(project: Path) -> list[tuple[int, int, int, dict[str, str]]]:
    """Return (width, epochs, seed, facts) of every attempt, in the order in which they were claimed."""
    columns = "t.settings_json, t.seed, a.environment_json"
    rows = query(project, f"SELECT {columns} FROM attempt a JOIN trial t ON t.id = a.trial ORDER BY a.id")
    read = [(json.loads(settings), seed, json.loads(facts)) for settings, seed, facts in rows]
    return [(settings["model"]["width"], settings["train"]["epochs"], seed, facts) for settings, seed, facts in read]


@pytest.mark.parametrize("isolation", ["process", pytest.param("warm", marks=pytest.mark.slow)])
def test_the_longer_arm_goes_on_from_the_shorter_to_the_same_bits(call: Call, tmp_path: Path, isolation: str) -> None:
    project, alone = tmp_path / "both", tmp_path / "alone"
    execution = f"execution: {{isolation: {isolation}}}\n"
    for folder in (project, alone):
        (folder / ".git").mkdir(parents=True)
    path = write_study(project, STUDY + execution, task=TASK)
    planned = call("plan", str(path), cwd=project)
    assert "baseline goes on from the end of short if that has ended: 2 of 4 epochs" in planned.stdout
    done = ablate("run", str(path), "-j", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    made = attempts(project)
    assert [(width, epochs) for width, epochs, *_ in made].index((8, 4)) > 0, "the shorter was claimed first"
    assert [facts.get("reused_epochs") for _, epochs, _, facts in made if epochs == 4] == ["2"]
    assert not any("reused_epochs" in facts for _, epochs, _, facts in made if epochs == 2)
    ends = list(project.glob("runs/trials/*/1/end/manifest.json"))
    assert len(ends) == 1, "kept where another arm can go on from it: of `short`, not of `wide`"

    from_start, _, _ = STUDY.partition("steps:")
    path = write_study(alone, f"{from_start}seeds: 1\n{execution}", task=TASK)
    done = ablate("run", str(path), "-j", "1", cwd=alone)
    assert done.returncode == 0, done.stderr
    expected = results(alone)
    prints = {row[0] for row in expected}
    assert len(prints) == 1
    assert [row for row in results(project) if row[0] in prints] == expected, "every metric of every epoch"
    weights = {seed: facts["weights"] for _, _, seed, facts in attempts(alone)}
    assert {seed: facts["weights"] for _, epochs, seed, facts in made if epochs == 4} == weights

    shown = call("show", "baseline", cwd=project).stdout
    assert "went on from the end of short at this seed: 2 epochs" in shown
    assert "Of 1 trial, the first epochs were those of a shorter trial, to the same bits" in " ".join(
        call("report", "--markdown", cwd=project).stdout.split()
    )
    seconds_are_whole_in_rows_and_spent_in_the_total(json.loads(call("report", "--json", cwd=project).stdout))
    nothing_is_taken_from_what_was_trained_otherwise(project)


def seconds_are_whole_in_rows_and_spent_in_the_total(report: dict[str, Any]) -> None:
    arms = {arm["name"]: arm for arm in report["arms"]}
    reused = sum(float(trial["environment"]["reused_seconds"]) for trial in arms["baseline"]["trials"])
    spent = sum(trial["seconds"] for trial in arms["baseline"]["trials"])
    assert reused > 0
    assert arms["baseline"]["seconds"] == pytest.approx(spent + reused)
    every = sum(trial["seconds"] for arm in arms.values() for trial in arm["trials"])
    assert report["designs"][0]["seconds"] == pytest.approx(every)


def nothing_is_taken_from_what_was_trained_otherwise(project: Path) -> None:
    plan = open_plan(project / "toy.yaml")
    store = open_store(project / "runs" / "ablate.db")
    study = find_study(store, "toy")
    made = next(each for each in trials_of(store, study.id) if each.arm == "short")
    facts = json.loads(made.environment_json or "{}")
    settings = plan.arm("baseline").settings

    def found(code: str, **noted: str) -> int:
        return len(Shorter(store, plan, study.id, code=code).folders(settings, made.seed, {**facts, **noted}))

    code = made.code_sha256 or ""
    assert found(code) == 1
    assert found("of other code") == 0
    assert found(code, cpu="another") == 0
    assert found(code, torch="9.9") == 0
    for end in project.glob("runs/trials/*/1/end"):
        shutil.rmtree(end)
    assert found(code) == 0, "cleared away"


def test_what_would_profit_from_a_trial_that_is_not_done_is_claimed_last(project: Path) -> None:
    plan = open_plan(write_study(project, STUDY.replace("seeds: 1", "seeds: 2"), task=TASK))
    store = open_store(project / "runs" / "ablate.db", create=True)
    study = record_plan(store, plan)
    names = {each.trial: (each.arm, each.seed) for each in trials_of(store, study)}
    assert list(names.values()) == [(arm, seed) for seed in (1, 2) for arm in ("baseline", "short", "wide")]
    shorter = Shorter(store, plan, study, code="")

    def order() -> list[tuple[str, int]]:
        waiting = [trial for (trial,) in claims.waiting_trials(store, study)]
        return [names[each] for each in shorter.in_order(waiting)]

    def ended(state: str) -> None:
        _, claimed = claims.exchange(store, (), claims.Wanted("me", [("cpu0", {})], [short]))
        assert order()[-2:] == [("baseline", 1), ("baseline", 2)], "while it is at work"
        claims.finish(store, claimed[0], claims.Ending("ok", state), {"val_acc": 1.0})

    facts = {"host": "h", "boot_id": "b", "lock_file": "", "command": ""}
    claims.register_runner(store, runner_id="me", study_id=study, facts=facts)
    last = [("baseline", 1), ("baseline", 2)]
    assert order() == [("short", 1), ("wide", 1), ("short", 2), ("wide", 2), *last]
    short = next(each for each, name in names.items() if name == ("short", 1))
    ended("waiting")
    assert order() == [("short", 1), ("wide", 1), ("short", 2), ("wide", 2), *last], "it is to be tried again"
    ended("done")
    assert order() == [("baseline", 1), ("wide", 1), ("short", 2), ("wide", 2), ("baseline", 2)]


@pytest.mark.parametrize(
    ("task", "schedule"),
    [("import torch", "constant"), ("from ablate.train.classification import train_classifier", "cosine")],
)
def test_a_plan_says_nothing_of_loops_of_others_and_of_schedules_that_look_ahead(
    call: Call, project: Path, task: str, schedule: str
) -> None:
    study = STUDY.replace("momentum: 0.9", f"momentum: 0.9, schedule: {schedule}")
    write_study(project, study, task=f"{task}\ndef train(settings, context):\n    return {{}}\n")
    planned = call("plan", "toy.yaml", cwd=project)
    assert planned.returncode == 0, planned.stderr
    assert "goes on from" not in planned.stdout


def test_a_command_is_given_no_other_trials_folder(project: Path) -> None:
    command = "task: {command: 'python toy.py --epochs {train.epochs} --seed {seed}'}"
    study, _, _ = TOY_STUDY.replace("task: toy:train", command).partition("settings:")
    study += "settings: {train: {epochs: 1}}\nsteps: [{name: longer, set: {train.epochs: 2}}]\nseeds: 1\n"
    write_study(project, study, task="print('{\"acc\": 1.0}')")
    done = ablate("run", "toy.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    works = [json.loads(path.read_text()) for path in project.glob("runs/trials/*/1/trial.json")]
    assert [(each["shorter"], each["keeps_end"]) for each in works] == [({}, False)] * 2
