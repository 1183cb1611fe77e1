"""The weights of a trial do not depend on what runs it: alone, forked, warm, resumed, beside others, in any number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ablate, query
from tests.studies import write_study

TASK = """
import hashlib, os
from torch import nn
from ablate.train.classification import train_classifier

def train(settings, context):
    built, width = [], settings["model"]["width"]

    def build(data):
        built.append(nn.Sequential(
            nn.Conv2d(data.channels, width, 3, padding=1), nn.BatchNorm2d(width),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.1),
            nn.Linear(width * (data.size // 2) ** 2, data.classes),
        ))
        return built[-1]

    metrics = train_classifier(settings, context, build)
    weights = b"".join(tensor.numpy().tobytes() for tensor in built[-1].state_dict().values())
    digest = hashlib.sha256(weights).hexdigest()
    context.fact("weights", digest)
    context.fact("pid", str(os.getpid()))
    return metrics
"""

SETTINGS = {
    "data": {"name": "digits", "split_seed": 0, "validation": 300, "subset": 400},
    "augment": {"flip": True, "crop": 1},
    "normalise": True,
    "model": {"width": 4},
    "train": {"epochs": 3, "batch": 32, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
}

STUDY = f"""
schema: ablate/v1
name: honest
task: toy:train
metrics: {{val_acc: {{goal: max}}}}
settings: {json.dumps(SETTINGS)}
steps:
  - {{name: wide, set: {{model.width: 8}}}}
seeds: 2
"""

ALONE = f"""
import json, sys, torch
from ablate.train.context import Context
from ablate.train.process import prepare
import toy

width, seed = int(sys.argv[1]), int(sys.argv[2])
settings = json.loads({json.dumps(SETTINGS)!r})
settings["model"]["width"] = width
prepare(seed, 1)
context = Context(seed=seed)
toy.train(settings, context)
print(context.facts["weights"])
"""


def weights(project: Path) -> dict[tuple[int, int], str]:
    """Return the SHA-256 of the weights of every trial that is done, by width and seed."""
    rows = query(
        project,
        """SELECT t.settings_json, t.seed, a.environment_json FROM trial t
           JOIN attempt a ON a.trial = t.id AND a.claim = t.result_claim WHERE t.state = 'done'""",
    )
    return {(json.loads(text)["model"]["width"], seed): json.loads(facts)["weights"] for text, seed, facts in rows}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], str]:
    """The weights of two of the trials by a function call in an interpreter of its own."""
    folder = tmp_path_factory.mktemp("alone")
    write_study(folder, STUDY, task=TASK)
    found = {}
    for width, seed in ((4, 1), (8, 2)):
        command = [sys.executable, "-c", ALONE, str(width), str(seed)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        found[width, seed] = done.stdout.split()[-1]
    return found


@pytest.mark.parametrize(
    ("isolation", "slots", "interrupted"),
    [("process", 1, False), ("process", 4, False), ("process", 2, True), ("warm", 1, False), ("warm", 2, True)],
)
def test_the_weights_are_the_same(
    project: Path, alone: dict[tuple[int, int], str], isolation: str, slots: int, interrupted: bool
) -> None:
    path = write_study(project, STUDY, task=TASK)
    words = ("run", str(path), "--no-mirror", "-j", str(slots), "--set", f"execution.isolation={isolation}")
    (project / "hits").mkdir()
    kill = {"ABLATE_FAILPOINT": "checkpoint-durable:kill@2", "ABLATE_FAILPOINT_HIT": str(project / "hits")}
    done = ablate(*words, cwd=project, timeout=240, **(kill if interrupted else {}))
    assert done.returncode == 0, done.stderr
    found = weights(project)
    assert {trial: found[trial] for trial in alone} == alone
    assert len(set(found.values())) == 4, "a hash that no setting and no seed changes would show nothing"
    resumed = query(project, "SELECT count(*) FROM attempt WHERE resumed_from IS NOT NULL")
    assert resumed == [(int(interrupted),)]
    if isolation == "warm" and slots == 1:
        pids = {json.loads(text)["pid"] for (text,) in query(project, "SELECT environment_json FROM attempt")}
        assert len(pids) == 1
