"""How far a study has come: what `ablate status` tells."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablate.analyse.findings import Counts, TrialResult, count
from ablate.analyse.results import Results, results_from
from ablate.store.facts import StoredStudy
from ablate.store.history import History, StoredRunner, history_of
from ablate.store.store import Store
from ablate.study.words import from_here


@dataclass(frozen=True)
class ArmStanding:
    name: str
    counts: Counts


@dataclass(frozen=True)
class RunnerStanding:
    """A runner that is at work, or that died: ``trials`` are those it holds, as (arm, seed)."""

    host: str
    alive: bool
    started: float
    heartbeat: float
    trials: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Failure:
    """A failed trial, with the number of attempts that were made at it."""

    arm: str
    seed: int
    outcome: str
    attempts: int
    reason: str
    candidate: int | None = None


@dataclass(frozen=True)
class Standing:
    """One moment of a study version. ``command`` runs what is missing of it."""

    title: str
    version: int
    command: str
    counts: Counts
    arms: tuple[ArmStanding, ...]
    runners: tuple[RunnerStanding, ...]
    failures: tuple[Failure, ...]

    @property
    def orphans(self) -> int:
        """Trials whose runner died: the next run takes them over."""
        return sum(len(runner.trials) for runner in self.runners if not runner.alive)


def standing(store: Store, stored: StoredStudy, *, is_alive: Callable[[StoredRunner], bool]) -> Standing:
    """Return how far a study version has come, as of one moment of the store."""
    history = history_of(store, stored.id)
    plan, results = results_from(store, stored, history.trials, history.measurements)
    return Standing(
        title=stored.title,
        version=stored.version,
        command=run_command(stored, history),
        counts=count(trial for trials in results.values() for trial in trials),
        arms=tuple(
            ArmStanding(
                arm.name, count(trial for (name, _), trials in results.items() if name == arm.name for trial in trials)
            )
            for arm in plan.arms
        ),
        runners=_runners(history, is_alive),
        failures=_failures(results),
    )


def run_command(stored: StoredStudy, history: History) -> str:
    """Return the command that goes on with a study from here: the one last run, with its overrides, for all arms.

    A study that was declared in Python has no file: the program that last ran it goes on with it.
    """
    if not stored.file:
        return history.runners[-1].command if history.runners else plain_command(stored)
    file = from_here(stored.file)
    try:
        words = shlex.split(history.runners[-1].command) if history.runners else []
    except ValueError:  # not what we wrote
        words = []
    if "run" not in words[1:2] or Path(stored.file).name not in (Path(word).name for word in words):
        return plain_command(stored)
    words = [file if Path(word).name == Path(stored.file).name else word for word in words]
    return shlex.join(["ablate", *_without(words[1:], "--only")])


def plain_command(stored: StoredStudy) -> str:
    """Return the command that runs a study as its file has it."""
    if not stored.file:
        return "the program that declares it"
    profile = ["--profile", stored.profile] if stored.profile else []
    return shlex.join(["ablate", "run", from_here(stored.file), *profile])


def _without(words: Sequence[str], option: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != option and not word.startswith(f"{option}="):
            kept.append(word)
        skip = word == option
    return kept


def _runners(history: History, is_alive: Callable[[StoredRunner], bool]) -> tuple[RunnerStanding, ...]:
    """Return those at work and the dead that still hold trials; if nobody is at work, the last one where it died."""
    held: dict[str, list[tuple[str, int]]] = {}
    for attempt in history.attempts:
        if attempt.ended is None:
            held.setdefault(attempt.runner, []).append((attempt.arm, attempt.seed))
    found = []
    for runner in history.runners:
        trials = tuple(held.get(runner.id, ()))
        alive = is_alive(runner)
        is_last_and_died = runner is history.runners[-1] and runner.ended is None
        if alive or trials or is_last_and_died:
            found.append(RunnerStanding(runner.host, alive, runner.started, runner.heartbeat, trials))
    return tuple(found)


def _failures(results: Results) -> tuple[Failure, ...]:
    """Return the failed trials in plan order; one that two arms share is told of once."""
    seen: dict[str, Failure] = {}
    for (arm, _), trials in results.items():
        for trial in trials:
            if trial.status == "failed":
                seen.setdefault(trial.fingerprint, _failure(arm, trial))
    return tuple(seen.values())


def _failure(arm: str, trial: TrialResult) -> Failure:
    return Failure(arm, trial.seed, trial.outcome or "", trial.attempts, trial.reason, trial.candidate)
