"""A study for engines: trials that say what they were given, and whose numbers are known to the last bit."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from sqlalchemy import select

from ablate.plan.trials import open_plan
from ablate.store.store import Store, open_store
from ablate.store.tables import attempt, measurement, trial
from tests.numbers import numbers_of_results
from tests.studies import TOY, write_study

ARMS = 3
STUDY = """
schema: ablate/v1
name: {name}
task: toy:train
metrics: {{acc: {{goal: max}}}}
settings: {{level: 1, epochs: {epochs}, pause: {pause}, extra: 0}}
steps:
  - {{name: two, set: {{level: 2}}}}
  - {{name: three, set: {{level: 3}}}}
seeds: {seeds}
resources: {{gpus: {gpus}, per_gpu: {per_gpu}}}
"""
TASK = TOY.replace(
    "def train(settings, context):",
    """def train(settings, context):
    import os
    context.fact("visible", os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    context.fact("omp", os.environ.get("OMP_NUM_THREADS", "none"))""",
).replace(
    'time.sleep(settings["pause"])',
    'time.sleep(0 if os.path.exists(os.path.dirname(__file__) + "/hurry") else settings["pause"])',
)


def write(
    folder: Path, *, seeds: int, epochs: int, pause: float, gpus: int = 1, per_gpu: int = 1, name: str = "toy"
) -> Path:
    study = STUDY.format(name=name, seeds=seeds, epochs=epochs, pause=pause, gpus=gpus, per_gpu=per_gpu)
    return write_study(folder, study, name=name, task=TASK)


def hurry(folder: Path) -> None:
    """Let the trials of a study pause no longer: what was to happen while they run has happened."""
    (folder / "hurry").touch()


class _Listener:
    """What a trial records where nothing disturbs it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.values: dict[int | None, float] = {}

    def resume(self) -> None: ...

    def raise_if_stopped(self) -> None: ...

    def fact(self, *_: str) -> None: ...

    def checkpoint(self, _: dict[str, Any]) -> None: ...

    def record(self, *, epoch: int, epochs: int, acc: float) -> None:  # noqa: ARG002
        self.values[epoch] = acc


def expected(path: Path) -> dict[tuple[str, int | None], float]:
    """Return every number of a study, by trial and epoch, as its task computes them one after the other."""
    space: dict[str, Any] = {"__file__": str(path.parent / "hurry" / "toy.py")}
    exec(TASK.replace("time.sleep(", "(lambda _: None)("), space)
    found = {}
    for each in open_plan(path).trials().values():
        listener = _Listener(each.seed)
        listener.values[None] = space["train"](dict(each.settings), listener)["acc"]
        found.update({(each.fingerprint, epoch): value for epoch, value in listener.values.items()})
    return found


class Told:
    """What a store tells of a study."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder

    def rows(self, query: Any) -> list[Any]:
        store: Store = open_store(self._url, folder=self._folder, read_only=True)
        try:
            return store.read(lambda connection: list(connection.execute(query)))
        finally:
            store.close()

    def attempts(self) -> list[Any]:
        return self.rows(select(attempt).order_by(attempt.c.trial, attempt.c.claim))

    def states(self) -> Counter[str]:
        return Counter(row.state for row in self.rows(select(trial.c.state)))

    def epochs(self) -> int:
        return len(self.rows(select(measurement.c.id)))

    def running(self, *, past: int = 0) -> list[str]:
        """Return the slots in which trials run now, of those that have recorded ``past`` epochs."""
        query = select(attempt.c.slot).join(trial, (trial.c.id == attempt.c.trial) & (trial.c.claim == attempt.c.claim))
        if past:
            its = (measurement.c.trial == trial.c.id) & (measurement.c.claim == trial.c.claim)
            query = query.join(measurement, its & (measurement.c.epoch == past))
        return [row.slot for row in self.rows(query.where(trial.c.state == "running"))]

    def check_shared(self) -> None:
        """Each attempt had a part of a GPU, and saw that GPU alone."""
        for row in self.attempts():
            gpu, _, part = row.slot.partition("#")
            assert part in ("1", "2")
            assert json.loads(row.environment_json)["visible"] == gpu

    def numbers(self) -> dict[tuple[str, int | None], float]:
        numbers = numbers_of_results(self.rows)
        return {
            (name, epoch): value for name, metric, epoch, value, _ in numbers if metric == "acc" and value is not None
        }

    def check(self, path: Path) -> None:
        """Nothing is lost, nothing was done twice, and every number is the one that a quiet run gives, to the bit."""
        numbers = expected(path)
        prints = {fingerprint for fingerprint, _ in numbers}
        assert self.states() == {"done": len(prints)}
        done = Counter(row.trial for row in self.attempts() if row.outcome == "ok")
        assert (len(done), set(done.values())) == (len(prints), {1})
        for _, group in itertools.groupby(self.attempts(), key=lambda row: row.trial):
            claims = [row.claim for row in group]
            assert claims == list(range(1, len(claims) + 1))
        assert self.numbers() == numbers
