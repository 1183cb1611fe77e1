"""The Optuna mirror: one Optuna study per study version, one Optuna trial per trial, in an SQLite file of its own.

Trials stand in the order of the plan and carry their fingerprint, so that whatever happened in between (a crash, two
mirrors at once, a user who deleted something in the dashboard) is found by comparing. What can't be changed in place,
as a finished trial that was retried, makes the whole Optuna study be drawn again under its name.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.pool import NullPool

from ablate.errors import EnvironmentFault
from ablate.mirror.facts import Stamp, TrialFacts, Version, changed_trials, versions
from ablate.mirror.picture import (
    KEY,
    SPEC,
    Frame,
    Times,
    TrialPicture,
    changes,
    draw,
    frame_of,
    is_finished,
    times_of,
)
from ablate.store.store import Store

BUSY_TIMEOUT_S = 2.0

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_REFUSED = {
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM
}  # fmt: skip

optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # it announces each study that it makes; faults reach us anyway


@dataclass(frozen=True)
class Synced:
    """What a sync found and did: studies and trials in the mirror, trials written, and studies drawn again."""

    studies: int
    trials: int
    written: int
    redrawn: tuple[str, ...]


@dataclass
class _Drawn:
    """An Optuna study as we know it to be."""

    id: int
    frame: Frame
    stamps: dict[str, Stamp] = field(default_factory=dict)
    trial_ids: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, TrialPicture] = field(default_factory=dict)


class Mirror:
    """The mirror of one store. Remembers what it has written, so that a sync costs what has changed."""

    def __init__(self, store: Store, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []  # what the user should hear of, once
        self._store = store
        self._versions: dict[int, Version] = {}
        self._drawn: dict[str, _Drawn] = {}
        self._storage: RDBStorage | None = None

    def sync(self) -> Synced:
        """Make the mirror show what the store says. Doing it twice is the same as doing it once.

        A damaged file is set aside and drawn anew. Raises EnvironmentFault where the file is locked or can't be
        written, and StoreError.
        """
        try:
            return self._sync()
        except Exception as error:
            self._forget()
            self._heal(error)
        try:
            return self._sync()
        except Exception as error:
            self._forget()
            if (fault := _fault_of(error, self.path)) is not None:
                raise fault from error
            raise

    def clear(self) -> None:
        """Delete the studies of this store from the mirror, so that the next sync draws all of them."""
        storage = self._open()
        with _as_faults(self.path):
            names = {frame_of(version).name for version in versions(self._store, {})}
            for found in storage.get_all_studies():
                if found.study_name in names or SPEC in found.user_attrs:
                    _delete(storage, found.study_name)
        self._forget()

    def storage(self) -> RDBStorage:
        """Return Optuna's storage of the mirror file, as a dashboard wants it."""
        return self._open()

    # --- one sync

    def _sync(self) -> Synced:
        storage = self._open()
        known = versions(self._store, self._versions)
        self._versions = {version.id: version for version in known}
        frames = {frame.name: (frame, version) for version in known for frame in [self._frame(version)]}
        found = {each.study_name: each for each in storage.get_all_studies()}
        for name in found:
            if name not in frames and SPEC in found[name].user_attrs:
                _delete(storage, name)  # of a store that is no more
        written, redrawn = 0, []
        for name, (frame, version) in frames.items():
            if name in found and found[name].user_attrs.get(SPEC) != version.spec_sha256:
                _delete(storage, name)  # of another store, or a study whose making was cut short
                del found[name]
            if name not in found:
                self._drawn.pop(name, None)
            count = self._update(storage, frame, version)
            if count is None:
                redrawn.append(name)
                _delete(storage, name)
                self._drawn.pop(name, None)
                count = self._update(storage, frame, version) or 0
            written += count
        self._drawn = {name: drawn for name, drawn in self._drawn.items() if name in frames}
        trials = sum(len(drawn.stamps) for drawn in self._drawn.values())
        return Synced(len(frames), trials, written, tuple(redrawn))

    def _frame(self, version: Version) -> Frame:
        drawn = next((each for each in self._drawn.values() if each.frame.attributes[SPEC] == version.spec_sha256), None)
        return drawn.frame if drawn else frame_of(version)

    def _update(self, storage: RDBStorage, frame: Frame, version: Version) -> int | None:
        """Write what has changed of one study, and return how many trials that were; None where it must be redrawn."""
        drawn = self._drawn.get(frame.name) or _read(storage, frame)
        order, facts = changed_trials(self._store, version, drawn.stamps)
        drawn.stamps = {key: stamp for key, stamp in drawn.stamps.items() if key in drawn.trial_ids}
        if list(drawn.trial_ids) != order[: len(drawn.trial_ids)]:
            return None
        written = 0
        for key in order:
            if key not in facts:
                continue
            new = draw(version, frame, facts[key])
            if key not in drawn.trial_ids:
                template = _template(frame, new, times_of(version, facts[key]))
                drawn.trial_ids[key] = storage.create_new_trial(drawn.id, template)
                written += 1
            else:
                part = changes(drawn.pictures[key], new)
                if part is None:
                    return None
                if _write(storage, drawn.trial_ids[key], drawn.pictures[key], part):
                    written += 1
            drawn.pictures[key] = new
            drawn.stamps[key] = facts[key].stamp
        self._drawn[frame.name] = drawn
        return written

    # --- the file

    def _open(self) -> RDBStorage:
        if self._storage is None:
            with _as_faults(self.path, damaged_too=False):
                self._storage = _storage(self.path)
        return self._storage

    def _forget(self) -> None:
        self._storage = None
        self._drawn = {}

    def _heal(self, error: BaseException) -> None:
        """Make a second try possible, or raise where it would be in vain."""
        if (fault := _fault_of(error, self.path)) is not None:
            raise fault from error
        if _is_damaged(error):
            aside = self.path.with_name(f"{self.path.name}.damaged")
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path, aside)
            for suffix in ("-journal", "-wal", "-shm"):  # they would be played back into the new file
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self.notes.append(f"the mirror {self.path} was damaged: it is drawn anew, the old file is {aside.name}")


@contextlib.contextmanager
def sole_writer(path: Path, *, patience_s: float) -> Iterator[bool]:
    """Hold the mirror's lock. Gives False where another process keeps it for longer than ``patience_s``."""
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    deadline = time.monotonic() + patience_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.05)
            else:
                yield True
                return
    finally:
        os.close(descriptor)


def mirror_file(store: Store) -> Path:
    return store.folder / "mirror.db"
