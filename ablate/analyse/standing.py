"""How far a study has come: what `ablate status` tells."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ablate.analyse.findings import Counts, TrialResult, count, counts_of
from ablate.analyse.results import Results, failed_results, results_from
from ablate.plan.outcomes import Status, status_of
from ablate.store.claims import LEASE_S, SILENT_S
from ablate.store.facts import StoredStudy, stored_study
from ablate.store.history import Pile, StoredAttempt, StoredRunner, arms_of, history_of, tally_of
from ablate.store.store import Store
from ablate.study.words import from_here

SILENT_AFTER_S, LOST_AFTER_S = SILENT_S, LEASE_S  # without a renewal of a runner's leases


@dataclass(frozen=True)
class ArmStanding:
    name: str
    counts: Counts


@dataclass(frozen=True)
class RunnerStanding:
    """A runner that is at work, or that died: ``trials`` are those it holds, as (arm, seed)."""

    machine: str
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
    return _tallied(store, stored, is_alive) or _planned(store, stored, is_alive)


def _planned(store: Store, stored: StoredStudy, is_alive: Callable[[StoredRunner], bool]) -> Standing:
    """Return the standing from the plan as far as it has grown: what it asks for may not be in the store yet."""
    history = history_of(store, stored.id)
    plan, results = results_from(store, stored, history.trials)
    return Standing(
        title=stored.title,
        version=stored.version,
        command=run_command(stored, history.runners),
        counts=count(trial for trials in results.values() for trial in trials),
        arms=tuple(
            ArmStanding(
                arm.name, count(trial for (name, _), trials in results.items() if name == arm.name for trial in trials)
            )
            for arm in plan.arms
        ),
        runners=_runners(history.attempts, history.runners, is_alive),
        failures=_failures(results),
    )


def _tallied(store: Store, stored: StoredStudy, is_alive: Callable[[StoredRunner], bool]) -> Standing | None:
    """Return the same as counted by the store, where all that is planned stands there; else None."""
    study = stored_study(stored)
    if study.grows:
        return None
    planned = len(arms_of(store, stored.id)) * (len(study.seeds.numbers) + len(study.fresh_seeds))
    tally = tally_of(store, stored.id, study.primary)
    if sum(pile.places for pile in tally.piles) < planned:
        return None
    return Standing(
        title=stored.title,
        version=stored.version,
        command=run_command(stored, tally.runners),
        counts=_counts((pile, pile.trials) for pile in tally.piles),
        arms=tuple(
            ArmStanding(name, _counts((pile, pile.places) for pile in piles))
            for name, piles in groupby(tally.piles, key=lambda pile: pile.arm)
        ),
        runners=_runners(tally.attempts, tally.runners, is_alive),
        failures=_failures(failed_results(tally.failed, study.primary)),
    )


def _counts(piles: Iterable[tuple[Pile, int]]) -> Counts:
    found: Counter[Status] = Counter()
    for pile, number in piles:
        found[status_of(pile.state, pile.outcome, pile.value)] += number
    return counts_of(found)


def run_command(stored: StoredStudy, runners: Sequence[StoredRunner]) -> str:
    """Return the command that goes on with a study from here: the one last run, with its overrides, for all arms.

    What was left to agents, or was last with one, goes on with an agent. A study that was declared in Python has no
    file: the program that last ran it goes on with it.
    """
    if not stored.file:
        return runners[-1].command if runners else plain_command(stored)
    file = from_here(stored.file)
    try:
        words = shlex.split(runners[-1].command) if runners else []
    except ValueError:  # not what we wrote
        words = []
    if "--queue" in words or words[1:2] == ["agent"]:
        return shlex.join(["ablate", "agent", stored.title, *_parted(words, "--store")[0]])
    if "run" not in words[1:2] or Path(stored.file).name not in (Path(word).name for word in words):
        return plain_command(stored)
    words = [file if Path(word).name == Path(stored.file).name else word for word in words]
    return shlex.join(["ablate", *_parted(words[1:], "--only")[1]])


def plain_command(stored: StoredStudy) -> str:
    """Return the command that runs a study as its file has it."""
    if not stored.file:
        return "the program that declares it"
    profile = ["--profile", stored.profile] if stored.profile else []
    return shlex.join(["ablate", "run", from_here(stored.file), *profile])


def _parted(words: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Return the words that give an option, and the others."""
    its: list[str] = []
    others: list[str] = []
    is_value = False
    for word in words:
        (its if is_value or word == option or word.startswith(f"{option}=") else others).append(word)
        is_value = word == option
    return its, others


def _runners(
    attempts: Sequence[StoredAttempt], runners: Sequence[StoredRunner], is_alive: Callable[[StoredRunner], bool]
) -> tuple[RunnerStanding, ...]:
    """Return those at work and the dead that still hold trials; if nobody is at work, the last one where it died."""
    held: dict[str, list[StoredAttempt]] = {}
    for attempt in attempts:
        if attempt.ended is None:
            held.setdefault(attempt.runner, []).append(attempt)
    living = {runner.id for runner in runners if is_alive(runner)}
    found = []
    for runner in runners:
        its = held.get(runner.id, [])
        trials = tuple((attempt.arm, attempt.seed) for attempt in its)
        machine = its[0].machine if its else runner.host
        alive = runner.id in living
        is_last_and_died = not living and runner is runners[-1] and runner.ended is None
        if alive or trials or is_last_and_died:
            found.append(RunnerStanding(machine, alive, runner.started, runner.heartbeat, trials))
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
