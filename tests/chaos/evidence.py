"""What must be true of a study after chaos, and the figures of what it took."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import select, text

from ablate.store.tables import attempt, trial
from ablate.train import checkpoint
from ablate.train.folder import AttemptFolder
from tests.chaos.chaos import Chaos, Story, processes
from tests.command import ablate
from tests.numbers import numbers_of_results
from tests.run.test_stops import wait_until

TIMINGS = ("train_seconds", "images_per_s", "peak_memory_mb")  # all that may differ from the quiet run
WITNESS_S = 2.0  # a runner looks every second for others that are dead
_KINDS_OF_KILLS = ("worker_kills", "runner_kills", "lonely_runner_kills")
NOT_THE_TRIALS_FAULT = {"ok", "killed", "lost", "fenced", "interrupted"}


@dataclass(frozen=True)
class Figures:
    """What a run of chaos came to. Every 0 here was required."""

    study: str
    store: str
    seed: int
    kills: int
    blows: dict[str, int]
    restarts: int
    turned_away: int
    trials: int
    attempts: int
    resumed: int
    epochs: int
    replayed: int
    mismatches: int
    lost: int
    duplicated: int
    orphans: int
    set_aside: int
    numbers: int
    tensors: int
    worker_kills: tuple[float, ...]
    worker_kills_taken_up: tuple[float, ...]
    runner_kills: tuple[float, ...]
    runner_kills_taken_up: tuple[float, ...]
    lonely_runner_kills: tuple[float, ...]
    lonely_runner_kills_taken_up: tuple[float, ...]
    seconds: float
    quiet_seconds: float

    def keep(self, folder: Path) -> None:
        (folder / f"{self.study}-{self.store}.json").write_text(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Ended:
    """A finished run."""

    chaos: Chaos
    story: Story

    def rows(self, query: Any) -> list[Any]:
        store = self.chaos.open_store()
        try:
            return store.read(lambda connection: list(connection.execute(query)))
        finally:
            store.close()


def examine(name: str, noisy: Ended, quiet: Ended, *, trials: int, epochs: int) -> Figures:
    """Check that chaos has changed nothing, and return the figures."""
    project = noisy.chaos.project
    wait_until(lambda: not processes(noisy.chaos.canary), seconds=10)  # orphans
    states = noisy.rows(
        select(trial.c.id, trial.c.fingerprint, trial.c.state, trial.c.claim, trial.c.result_claim, trial.c.errors)
    )
    attempts = noisy.rows(select(attempt).order_by(attempt.c.trial, attempt.c.claim))
    claims, results = defaultdict(list), defaultdict(list)
    for row in attempts:
        claims[row.trial].append(row.claim)
        if row.outcome == "ok":
            results[row.trial].append(row.claim)
    lost = trials - sum(row.state == "done" and row.result_claim in results[row.id] for row in states)
    duplicated = sum(len(found) > 1 for found in results.values())
    assert (len(states), lost, duplicated) == (trials, 0, 0)
    assert all(results[row.id] == [row.result_claim] for row in states)
    assert all(claims[row.id] == list(range(1, row.claim + 1)) for row in states)
    assert {row.outcome for row in attempts} <= NOT_THE_TRIALS_FAULT, Counter(row.outcome for row in attempts)
    assert not any(row.errors for row in states), "a death has used up a retry of the user's"
    numbers = _numbers(noisy)
    assert numbers == _numbers(quiet)
    tensors = equal_states(project, quiet.chaos.project, _result_folders(noisy), _result_folders(quiet))
    rerun, mismatches, resumed = replays(project)
    assert mismatches == 0
    assert _half_written(project) == []
    _doctor_is_content(noisy)
    return Figures(
        study=name,
        store="PostgreSQL" if noisy.chaos.url else "SQLite",
        seed=noisy.story.seed,
        kills=noisy.story.kills,
        blows=dict(Counter(blow.kind for blow in noisy.story.blows)),
        restarts=len(noisy.story.restarts),
        turned_away=noisy.story.turned_away,
        trials=trials,
        attempts=len(attempts),
        resumed=resumed,
        epochs=trials * epochs,
        replayed=rerun,
        mismatches=mismatches,
        lost=lost,
        duplicated=duplicated,
        orphans=len(processes(noisy.chaos.canary)),
        set_aside=len(noisy.story.set_aside),
        numbers=len(numbers),
        tensors=tensors,
        **recovery(noisy.story, attempts),
        seconds=noisy.story.seconds,
        quiet_seconds=quiet.story.seconds,
    )


def _numbers(ended: Ended) -> dict[tuple[str, str, int | None], tuple[float | None, str]]:
    """Return every number of every result that must not depend on how it was run."""
    numbers = numbers_of_results(ended.rows)
    return {tuple(where): (value, kind) for *where, value, kind in numbers if where[1] not in TIMINGS}


def _result_folders(ended: Ended) -> dict[str, str]:
    query = select(trial.c.fingerprint, attempt.c.folder)
    query = query.join(attempt, (attempt.c.trial == trial.c.id) & (attempt.c.claim == trial.c.result_claim))
    return {row.fingerprint: row.folder for row in ended.rows(query)}


def equal_states(noisy: Path, quiet: Path, noisy_folders: dict[str, str], quiet_folders: dict[str, str]) -> int:
    """Check the last checkpoint and the final weights of every trial bit by bit; return how many tensors were equal."""
    tensors = 0
    assert noisy_folders.keys() == quiet_folders.keys()
    for fingerprint in quiet_folders:
        here, there = noisy / "runs" / noisy_folders[fingerprint], quiet / "runs" / quiet_folders[fingerprint]
        tensors += equal(_last_state(here.parent, fingerprint), _last_state(there.parent, fingerprint), fingerprint)
        kept = sorted(path.name for path in (there / "artifacts").glob("*"))
        assert kept == sorted(path.name for path in (here / "artifacts").glob("*"))
        for name in kept:
            tensors += equal(
                *(torch.load(each / "artifacts" / name, weights_only=True) for each in (here, there)), name
            )
    return tensors


def _last_state(folder: Path, fingerprint: str) -> dict[str, Any]:
    """Return the state that the trial's last checkpoint kept; it may lie with an attempt before the one that ended."""
    found = [
        checkpoint.load(each / "checkpoint", fingerprint=fingerprint) for each in folder.iterdir() if each.is_dir()
    ]
    state: dict[str, Any] = max((each["state"] for each in found if each), key=lambda state: state["epoch"])
    return {key: value for key, value in state.items() if key != "seconds"}


def equal(one: Any, other: Any, where: str) -> int:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        assert torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (one, other))), where
        return 1
    if isinstance(one, dict):
        assert list(one) == list(other), where
        return sum(equal(one[key], other[key], f"{where}.{key}") for key in one)
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        return sum(
            equal(left, right, f"{where}.{index}") for index, (left, right) in enumerate(zip(one, other, strict=True))
        )
    assert one == other, where
    return 0


def replays(project: Path) -> tuple[int, int, int]:
    """Return how many epochs ran more than once, how many gave other numbers then, and how many attempts resumed.

    By the attempt folders: an attempt that resumes repeats what its checkpoint held, with the times of then.
    """
    rerun = mismatches = resumed = 0
    for folder in (project / "runs" / "trials").iterdir():
        runs: dict[int, dict[float, dict[str, Any]]] = defaultdict(dict)
        for each in sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: int(path.name)):
            records, _ = AttemptFolder(each).records()
            if records and records[0]["time"] in runs[records[0]["epoch"]]:
                resumed += 1
            for record in records:
                values = {name: value for name, value in record["values"].items() if name not in TIMINGS}
                runs[record["epoch"]][record["time"]] = values
        for found in runs.values():
            first, *others = found.values()
            rerun += len(others)
            mismatches += sum(values != first for values in others)
    return rerun, mismatches, resumed


def _half_written(project: Path) -> list[Path]:
    """Return what was left half written, but for two files of some hundred bytes that are written without the lock."""
    left = (project / "runs" / "trials").rglob(".*")
    return [path for path in left if not path.name.startswith((".trial.json.", ".result.json."))]


def _doctor_is_content(ended: Ended) -> None:
    done = ablate("doctor", "--verify", cwd=ended.chaos.project, **ended.chaos.environment)
    assert done.returncode == 0, done.stdout
    if not ended.chaos.url:
        assert [row[0] for row in ended.rows(text("PRAGMA integrity_check"))] == ["ok"]


def recovery(story: Story, attempts: Sequence[Any]) -> dict[str, tuple[float, ...]]:
    """Return the seconds from each kill until the trial was waiting again, and until it was claimed again.

    Kills while the database server was away are left out, and those of workers whose runner was frozen or killed before
    it could answer. A runner's are told apart by whether another one was at work and left in peace.
    """
    ended = {"/".join(Path(row.folder).parts[-2:]): (row.trial, row.claim, row.ended) for row in attempts}
    begun = {(row.trial, row.claim): row.started for row in attempts}
    found: dict[str, list[float]] = {f"{kind}{end}": [] for kind in _KINDS_OF_KILLS for end in ("", "_taken_up")}

    def in_peace(who: int, start: float, stop: float) -> bool:
        return not any(each == who and begin < stop and start < end for each, begin, end in story.hindered)

    for blow in story.blows:
        for name in blow.attempts if blow.is_kill else ():
            number, claim, end = ended[name]
            if end < blow.at or not in_peace(0, blow.at, end):
                continue  # where it had ended before, it did so by itself
            kind = "worker_kills"
            if blow.kind != "worker":
                has_witness = any(in_peace(other, blow.at, blow.at + WITNESS_S) for other in blow.others)
                kind = "runner_kills" if has_witness else "lonely_runner_kills"
            elif not blow.runner or not in_peace(blow.runner, blow.at, end):
                continue
            found[kind].append(end - blow.at)
            if (number, claim + 1) in begun and name not in story.set_aside:
                found[f"{kind}_taken_up"].append(begun[number, claim + 1] - blow.at)
    return {name: tuple(sorted(values)) for name, values in found.items()}


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the sorted values do not exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan
