"""Small studies for tests, written as a user would write them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from ablate.plan.trials import Plan, open_plan

# a task without torch: its numbers depend on settings, seed and epoch alone, and it checkpoints every epoch
TOY = """
import hashlib, time

def draw(*key):
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "big") / 2**32

def train(settings, context):
    state = context.resume() or {"epoch": 0, "sum": 0.0}
    done, total = state["epoch"], state["sum"]
    for epoch in range(done + 1, settings["epochs"] + 1):
        time.sleep(settings["pause"])
        context.raise_if_stopped()
        total += draw(settings["level"], context.seed, epoch)
        context.record(epoch=epoch, epochs=settings["epochs"], acc=total / epoch)
        context.checkpoint({"epoch": epoch, "sum": total})
    return {"acc": settings["level"] + total / settings["epochs"]}
"""

TOY_STUDY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {acc: {goal: max}}
settings: {level: 1, epochs: 3, pause: 0.0, extra: 0}
steps:
  - name: two
    set: {level: 2}
  - name: three
    set: {level: 3}
seeds: 2
"""


def write_study(folder: Path, study: str = TOY_STUDY, *, name: str = "toy", task: str = TOY) -> Path:
    """Write ``name.yaml`` and ``toy.py`` into a folder and return the study's path."""
    (folder / "toy.py").write_text(textwrap.dedent(task))
    path = folder / f"{name}.yaml"
    path.write_text(textwrap.dedent(study))
    return path


def toy_plan(folder: Path, **options: Any) -> Plan:
    return open_plan(write_study(folder), **options)
