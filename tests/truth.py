"""The truth study: a store filled with numbers that we chose, so that every effect a report prints can be wrong.

A value is ``truth(steps) + shared(seed) + own(arm, seed)``. The shared part is the same in every arm and so cancels in
paired differences; the own part has mean zero over the seeds and cancels in the mean. With all seeds there, the mean
difference of two arms is exactly the difference of their truths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablate.plan.trials import Plan, make_plan
from ablate.store.claims import Claim, Ending, add_measurements, claim_trial, end_runner, finish, register_runner
from ablate.store.facts import StoredStudy, find_study, grown_plan, record_plan
from ablate.store.store import Store, open_store
from ablate.study.document import Document
from ablate.study.schema import Study, from_document

BASE = 30.0
GAINS = {"batchnorm": 8.0, "batchnorm-after-relu": 6.5, "depth-6": 4.0, "residual": 2.5, "residual-scale": 0.5}
SHARED = {1: 0.6, 2: -0.3, 3: 0.1, 4: -0.5, 5: 0.1}
OWN = (0.2, -0.3, 0.1, 0.25, -0.25)

STUDY: dict[str, Any] = {
    "schema": "ablate/v1",
    "name": "basenet",
    "question": "Which of the changes to BaseNet earn their place on CIFAR-100?",
    "task": "basenet:train",
    "metrics": {
        "val_acc": {"goal": "max", "unit": "%"},
        "macro_f1": {"goal": "max", "unit": "%"},
    },
    "settings": {
        "model": {"norm": "none", "depth": 4, "residual": False, "residual_scale": 1.0},
        "train": {"lr": 0.1, "epochs": 15},
    },
    "steps": [
        {"name": "batchnorm", "title": "BatchNorm after each conv, before ReLU", "set": {"model.norm": "before_relu"}},
        {
            "name": "batchnorm-after-relu",
            "title": "BatchNorm after each conv, after ReLU",
            "set": {"model.norm": "after_relu"},
            "from": "baseline",
            "branch": True,
        },
        {"name": "depth-6", "title": "depth 4 → 6", "set": {"model.depth": 6}},
        {"name": "residual", "title": "residual connections", "set": {"model.residual": True}},
        {
            "name": "residual-scale",
            "title": "residual scale 0.1",
            "set": {"model.residual_scale": 0.1},
            "requires": ["residual"],
        },
    ],
    "designs": ["ladder"],
    "seeds": 5,
}


def truth_study(**changes: Any) -> Study:
    """Return the truth study with some of its keys replaced; None takes a key away."""
    values = {key: value for key, value in {**STUDY, **changes}.items() if value is not None}
    return from_document(values, Document("basenet.yaml", values, {}), "")


def truth(steps: tuple[str, ...]) -> float:
    """Return the expected accuracy (%) of an arm with these steps; the steps do not interact."""
    return BASE + sum(GAINS.get(step, 1.0) for step in steps)


def metrics_of(steps: tuple[str, ...], seed: int, *, position: int) -> dict[str, float]:
    """Return what a trial measures. ``position`` is the arm's place in the plan."""
    own = OWN[(seed - 1 + position) % len(OWN)] * (-1) ** (position // len(OWN))
    accuracy = truth(steps) + SHARED.get(seed, 0.0) + own
    return {
        "val_acc": accuracy,
        "macro_f1": 0.95 * accuracy - 1 + own / 2,
        "val_loss": 4.6 - accuracy / 20,
        "parameters": 1.2e6 + 250_000 * len(steps),
        "flops": 35e6 + 10e6 * len(steps),
        "images_per_s": 5200.0,
    }


Measure = Callable[[Plan, str, int], dict[str, float]]


def measure_truth(plan: Plan, arm: str, seed: int) -> dict[str, float]:
    names = [each.name for each in plan.arms]
    return metrics_of(plan.arm(arm).steps, seed, position=names.index(arm))


def learnt(final: Mapping[str, float], epochs: int = 6) -> list[dict[str, Any]]:
    """Return what a trial records on its way: each epoch halves the distance to what it ends with, and the last is it.

    An epoch has the metrics, as a worker sends them; what a task counts beside them comes at the end.
    """
    names = [name for name in final if name not in ("parameters", "flops", "images_per_s")]
    return [
        {
            "epoch": epoch,
            "values": {name: final[name] * (1 - 0.5**epoch) if epoch < epochs else final[name] for name in names},
        }
        for epoch in range(1, epochs + 1)
    ]


@dataclass(frozen=True)
class Fate:
    """What becomes of one trial, where it is not that it finishes with what the truth says."""

    outcome: str = "ok"
    state: str = "done"
    reason: str | None = None
    metrics: Mapping[str, float] | None = None
    code: str = "c0de"
    seconds: float | None = None


DIVERGED = Fate("diverged", metrics={"val_acc": float("nan"), "val_loss": float("inf")})
FAILED = Fate("oom", "failed", reason="out of memory: 23.1 GiB of 24 GiB in use")
WAITING = Fate(state="waiting")


@dataclass(frozen=True)
class Filled:
    """A store that holds the study, ready to be analysed."""

    store: Store
    stored: StoredStudy
    plan: Plan = field(repr=False)


def fill(
    folder: Path,
    study: Study,
    fates: Mapping[tuple[str, int], Fate] | None = None,
    measure: Measure = measure_truth,
    *,
    epochs: int = 0,
) -> Filled:
    """Record the study's plan and run all of its trials as a runner would; ``fates`` go by (arm, seed).

    With ``epochs`` each trial, whatever becomes of it, records that many on its way.

    Where the learning rate is tuned, each arm is best at 0.1, and loses 12 points by a factor of ten.
    """
    store = open_store(folder / "ablate.db", create=True)
    plan = make_plan(study)
    study_id = record_plan(store, plan)
    facts = {"host": "here", "boot_id": "b", "lock_file": "l", "command": "ablate run"}
    register_runner(store, runner_id="r", study_id=study_id, facts=facts)
    put_back: list[Claim] = []
    while True:
        _run(store, study_id, plan, fates or {}, measure, put_back, epochs)
        known, plan = plan, grown_plan(store, study)
        if put_back or plan.trials().keys() == known.trials().keys():
            break
        record_plan(store, plan)
    for claim in put_back:
        finish(store, claim, Ending("interrupted", "waiting"))
    if all(fate.state != "running" for fate in (fates or {}).values()):
        end_runner(store, "r")
    return Filled(store, find_study(store, study.title), plan)


def _run(
    store: Store,
    study_id: int,
    plan: Plan,
    fates: Mapping[tuple[str, int], Fate],
    measure: Measure,
    put_back: list[Claim],
    epochs: int,
) -> None:
    of_trial = {(each.trial.fingerprint): (each.arm, each.seed) for each in reversed(plan.replicates)}
    by_trial = {r.trial.fingerprint: fate for r in plan.replicates if (fate := fates.get((r.arm, r.seed)))}
    while claim := claim_next(store, study_id):
        arm, seed = of_trial[claim.fingerprint]
        fate = by_trial.get(claim.fingerprint, Fate())
        metrics = measure(plan, arm, seed)
        if plan.study.tune:
            away = math.log10(json.loads(claim.settings_json)["train"]["lr"] / 0.1)
            metrics["val_acc"] -= 12 * away**2
        if epochs:
            add_measurements(store, [(claim, learnt(metrics, epochs))])
        if fate.state == "waiting":
            put_back.append(claim)
        elif fate.state != "running":
            _finish(store, claim, fate, metrics)


def claim_next(store: Store, study_id: int) -> Claim | None:
    return claim_trial(store, runner_id="r", study_id=study_id, arms=None, slot="cpu:0", lease_s=1e9)


def _finish(store: Store, claim: Claim, fate: Fate, metrics: Mapping[str, float]) -> None:
    from sqlalchemy import update

    from ablate.store.tables import attempt

    seconds = fate.seconds if fate.seconds is not None else 40.0 + 7.0 * (claim.seed % 1000)
    ending = Ending(fate.outcome, fate.state, reason=fate.reason, error=fate.reason, seconds=seconds)
    finish(store, claim, ending, fate.metrics if fate.metrics is not None else metrics)
    mine = (attempt.c.trial == claim.trial) & (attempt.c.claim == claim.number)
    store.write(lambda connection: connection.execute(update(attempt).where(mine).values(code_sha256=fate.code)))
