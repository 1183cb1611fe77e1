"""What is exported of each trial: all that the store says of it. Every tool is given the same, in its own words."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.analyse.frames import differing
from ablate.analyse.results import results_from
from ablate.errors import AblateError, StoreError
from ablate.store.facts import StoredStudy, read_number
from ablate.store.history import whole_of
from ablate.store.store import Store
from ablate.study.schema import is_name
from ablate.study.settings import canonical, leaves


@dataclass(frozen=True)
class Record:
    """One finished trial: done or failed. ``settings`` are all by dotted path; those in ``varied`` differ among arms.

    ``facts``: what it ran on and what its content is known by. ``number`` is that of the attempt that counts, which
    began and ended at these Unix seconds; its own files lie in ``folder``.
    """

    study: str
    arm: str
    title: str
    role: str
    seed: int
    candidate: int | None
    state: str
    outcome: str
    reason: str
    number: int
    started: float
    ended: float
    settings: Mapping[str, Any]
    varied: tuple[str, ...]
    finals: Mapping[str, float]
    epochs: Mapping[int, Mapping[str, float]]
    facts: Mapping[str, str]
    folder: Path

    @property
    def name(self) -> str:
        """Its place in the study: ``batchnorm/seed-1``."""
        role = "" if self.role == "main" else f"{self.role}-"
        candidate = "" if self.candidate is None else f"/candidate-{self.candidate}"
        return f"{self.arm}/{role}seed-{self.seed}{candidate}"

    @property
    def key(self) -> str:
        """The same for the same result at the same place, for ever: by it an export finds what it wrote before."""
        told = [self.study, self.name, self.facts["fingerprint"], self.state, self.number]
        return hashlib.sha256(canonical(told).encode()).hexdigest()[:32]

    @property
    def last_epoch(self) -> int:
        return max(self.epochs, default=0)

    def own_files(self, folder: str, pattern: str = "*") -> list[Path]:
        """Return the files that the task left in a folder of its attempt; a link is none, as it may lead anywhere."""
        home = self.folder.resolve() / folder
        return sorted(path for path in home.glob(pattern) if path.is_file() and path.resolve() == path)

    def at(self, epoch: int) -> float:
        """Return when an epoch ended, in Unix seconds; the store has begin and end alone, and all are taken alike."""
        return self.started + (self.ended - self.started) * (epoch / self.last_epoch if self.last_epoch else 1.0)


def check_installed(library: str) -> None:
    """Raise AblateError where a library is missing."""
    if importlib.util.find_spec(library) is None:
        hint = f"pip install 'ablation-study[{library}]'"
        raise AblateError(f"the export needs {library}, which is not installed", hint=hint)


def records_of(store: Store, stored: StoredStudy) -> list[Record]:
    """Return the finished trials of a study version in plan order; one that two arms share stands under each."""
    if not all(map(is_name, stored.title.split("@"))):  # it becomes a folder
        raise StoreError(f"a study is called what no study can be: {stored.title!a:.100}", where=store.name)
    history, measured = whole_of(store, stored.id)
    plan, results = results_from(store, stored, history.trials)
    epochs: dict[int, dict[int, dict[str, float]]] = {}
    for each in measured:
        epochs.setdefault(each.trial, {}).setdefault(each.epoch, {})[each.metric] = read_number(each.value, each.kind)
    rows = {row.fingerprint: row for row in history.trials}
    # the attempt whose result stands, else the last one
    attempts = {each.trial: each for each in sorted(history.attempts, key=lambda each: (each.stands, each.id))}
    varied, trials = tuple(differing(plan)), plan.trials()
    titles = {arm.name: arm.title for arm in plan.arms}
    found = []
    for (arm, role), trials_of_arm in results.items():
        for result in trials_of_arm:
            row = rows.get(result.fingerprint)
            if row is None or row.state not in ("done", "failed"):
                continue
            attempt = attempts[row.trial]
            settings = dict(leaves(trials[result.fingerprint].settings))
            found.append(
                Record(
                    study=stored.title,
                    arm=arm,
                    title=titles[arm],
                    role=role,
                    seed=result.seed,
                    candidate=result.candidate,
                    state=row.state,
                    outcome=result.outcome or "",
                    reason=result.reason,
                    number=attempt.claim,
                    started=attempt.started,
                    ended=attempt.ended or attempt.started,
                    settings=settings,
                    varied=tuple(path for path in varied if path in settings),
                    finals=result.values,
                    epochs=epochs.get(row.trial, {}),
                    facts={
                        **result.environment,
                        **({"code_sha256": result.code_sha256} if result.code_sha256 else {}),
                        "fingerprint": result.fingerprint,
                        "source": row.source,
                        "attempts": str(row.attempts),
                    },
                    folder=store.path_of(attempt.folder),
                )
            )
    return found
