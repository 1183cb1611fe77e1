"""The Optuna mirror: one Optuna study per study version, one Optuna trial per trial, in an SQLite file of its own.

Trials stand in the order in which they were begun and carry their fingerprint, so that whatever happened in between
(a crash, a user who deleted something in the dashboard) is found by comparing. What can't be changed in place, as a
finished trial that was retried, makes the whole Optuna study be drawn again under its name. A trial appears when it is
begun and not before: only when it makes a trial does Optuna take a true start. How much of a plan is left is for
`ablate status`.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.pool import NullPool

from ablate.errors import AblateError, EnvironmentFault
from ablate.failpoints import failpoint
from ablate.mirror.facts import Stamp, Version, changed_trials, versions
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
    over,
    times_of,
)
from ablate.mirror.place import mirror_file, no_place_for_it
from ablate.store.store import Store

BUSY_TIMEOUT_S = 1.0  # a dashboard reads for some 10 ms

_ROOM = "free some space, or make it writable; `ablate mirror` then brings the mirror up to date"
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_REFUSED = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
}

T = TypeVar("T")

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
    """An Optuna study as we know it to be: by fingerprint, its trials' numbers, and what they show."""

    id: int
    numbers: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, TrialPicture] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)


class _OtherVersion(Exception):
    """The file was made by an Optuna that this one can't read."""


class Mirror:
    """The mirror of one store. Remembers what it has written, so that a sync costs what has changed."""

    def __init__(self, store: Store, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []  # what the user should hear of, each once
        self._store = store
        self._frames: dict[int, tuple[Version, Frame]] = {}
        self._drawn: dict[str, _Drawn] = {}
        self._storage: RDBStorage | None = None

    def sync(self) -> Synced:
        """Make the mirror show what the store says. Doing it twice is the same as doing it once.

        A damaged file is set aside and drawn anew. Raises EnvironmentFault where the file is locked or can't be
        written, and StoreError.
        """
        return self._tried(self._sync)

    def write_notes(self) -> None:
        """Give each study that has none its note, which optuna-dashboard shows. Raises like ``sync``.

        Not when it is drawn: a run would load optuna-dashboard, which takes a second, for a page that nobody may open.
        """
        self._tried(self._write_notes)

    def clear(self) -> None:
        """Delete all studies of ablate from the mirror, so that the next sync draws them again. Raises like ``sync``.

        The file itself stays: a dashboard may have it open.
        """
        self._tried(self._clear)

    def storage(self) -> RDBStorage:
        """Return Optuna's storage of the mirror file, for a dashboard. Raises like ``sync``."""
        return self._tried(self._open)

    # --- one sync

    def _sync(self) -> Synced:
        storage = self._open()
        frames = self._read_frames()
        found = {each.study_name: each.user_attrs for each in storage.get_all_studies()}
        for name, attributes in found.items():
            expected = frames[name][1].attributes if name in frames else None
            if name in frames and attributes == expected:
                continue
            if name in frames or SPEC in attributes:
                self._delete(storage, name)  # of another store, or its making was cut short
        written, redrawn = 0, []
        for name, (version, frame) in frames.items():
            if name not in found:
                self._drawn.pop(name, None)
            count = self._update(storage, version, frame)
            if count is None:
                redrawn.append(name)
                self._delete(storage, name)
                count = self._update(storage, version, frame) or 0
            written += count
        trials = sum(len(drawn.stamps) for drawn in self._drawn.values())
        return Synced(len(frames), trials, written, tuple(redrawn))

    def _read_frames(self) -> dict[str, tuple[Version, Frame]]:
        known = {number: version for number, (version, _) in self._frames.items()}
        self._frames = {
            each.id: self._frames[each.id] if known.get(each.id) is each else (each, frame_of(each))
            for each in versions(self._store, known)
        }
        return {frame.name: (version, frame) for version, frame in self._frames.values()}

    def _update(self, storage: RDBStorage, version: Version, frame: Frame) -> int | None:
        """Write what has changed of one study and return how many trials that were; None where it must be redrawn."""
        drawn = self._drawn.get(frame.name) or _read(storage, frame)
        self._drawn[frame.name] = drawn
        order, facts = changed_trials(self._store, version, drawn.stamps)
        if list(drawn.numbers) != order[: len(drawn.numbers)]:
            return None
        written = 0
        for key, trial in facts.items():
            new = draw(version, frame, trial)
            failpoint("mirror-trial-begun", meets_disk=True)
            if key not in drawn.numbers:
                storage.create_new_trial(drawn.id, _template(frame, new, times_of(version, trial)))
                drawn.numbers[key] = len(drawn.numbers)
                written += 1
            elif (part := changes(drawn.pictures[key], new)) is None:
                return None
            else:
                written += _write(storage, drawn, key, part)
                new = over(drawn.pictures[key], new)
            drawn.pictures[key] = new
            drawn.stamps[key] = trial.stamp
        return written

    def _write_notes(self) -> None:
        from optuna_dashboard import get_note, save_note

        storage = self._open()
        frames = self._read_frames()
        for name in {study.study_name for study in storage.get_all_studies()} & frames.keys():
            study = optuna.load_study(study_name=name, storage=storage)
            if not get_note(study):
                save_note(study, frames[name][1].note)

    def _clear(self) -> None:
        storage = self._open()
        names = self._read_frames()
        for found in storage.get_all_studies():
            if found.study_name in names or SPEC in found.user_attrs:
                self._delete(storage, found.study_name)

    def _delete(self, storage: RDBStorage, name: str) -> None:
        self._drawn.pop(name, None)
        failpoint("mirror-delete-begun", meets_disk=True)
        storage.delete_study(storage.get_study_id_from_name(name))

    # --- the file

    def _open(self) -> RDBStorage:
        if self._storage is None:
            try:
                self._storage = _storage(self.path)
            except RuntimeError as error:
                raise _OtherVersion(str(error)) from error
        return self._storage

    def _tried(self, work: Callable[[], T]) -> T:
        """Do ``work``; where it fails, once more with nothing remembered: the file may have been replaced under us."""
        try:
            return work()
        except Exception as error:
            self._forget()
            if (fault := _fault(error, self.path)) is not None:
                raise fault from error
            if isinstance(error, _OtherVersion) or _sqlite_code(error) in _DAMAGED:
                self._set_aside()
        try:
            return work()
        except Exception as error:
            self._forget()
            if (fault := _fault(error, self.path)) is not None:
                raise fault from error
            raise

    def _forget(self) -> None:
        self._storage = None
        self._drawn = {}

    def _set_aside(self) -> None:
        failpoint("mirror-aside-begun")
        aside = self.path.with_name(f"{self.path.name}.damaged")
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, aside)
        for suffix in ("-journal", "-wal", "-shm"):  # they would be played back into the new file
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.notes.append(f"the mirror could not be read and is drawn anew; the old file is {aside}")


@contextlib.contextmanager
def sole_writer(path: Path, *, patience_s: float) -> Iterator[bool]:
    """Hold the mirror's lock. Gives False where another process keeps it for longer than ``patience_s``."""
    if reason := no_place_for_it(path.parent):
        raise EnvironmentFault(reason, where=str(path), hint="keep the runs folder on a local disk to have one")
    lock = path.with_suffix(".lock")
    try:
        failpoint("mirror-lock-begun")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise EnvironmentFault(f"the mirror can't be written: {error.strerror}", where=str(lock), hint=_ROOM) from None
    try:
        yield _locked(descriptor, time.monotonic() + patience_s)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.05)


def refresh(store: Store, *, rebuild: bool = False, say: Callable[[str], None]) -> Synced | None:
    """Bring the mirror of a store up to date, or draw it again from nothing; None where another process keeps it.

    Raises EnvironmentFault where the file is locked or can't be written.
    """
    mirror = Mirror(store, mirror_file(store))
    with sole_writer(mirror.path, patience_s=0.0) as ours:
        if not ours and rebuild:
            hint = "run the same command again when that has ended"
            raise EnvironmentFault("a run or a dashboard keeps the mirror just now", where=str(mirror.path), hint=hint)
        if not ours:
            return None
        if rebuild:
            mirror.clear()
        synced = mirror.sync()
    for note in mirror.notes:
        say(f"note: {note}")
    return synced


# --- Optuna


def _storage(path: Path) -> RDBStorage:
    def connect() -> sqlite3.Connection:
        failpoint("mirror-opened", meets_disk=True)
        # not by URL: Optuna and SQLAlchemy each give a meaning to some characters that a path may have
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA synchronous=OFF")  # what a power cut may spoil is drawn again from the store
        return connection

    # no pool: a connection that is kept would go on writing into a file that was deleted
    return RDBStorage("sqlite://", engine_kwargs={"creator": connect, "poolclass": NullPool})


def _read(storage: RDBStorage, frame: Frame) -> _Drawn:
    """Return what the mirror holds of a study, making its Optuna study where there is none."""
    try:
        drawn = _Drawn(storage.get_study_id_from_name(frame.name))
    except KeyError:
        return _Drawn(_create(storage, frame))
    distributions = _distributions(frame)
    for trial in storage.get_all_trials(drawn.id, deepcopy=False):
        key = trial.user_attrs.get(KEY)
        if key in drawn.numbers or any(distributions.get(name) != own for name, own in trial.distributions.items()):
            key = None
        # one that is not ours, or there twice, is in nobody's plan: the study will be drawn again
        key = key or f"number {trial.number}"
        drawn.numbers[key] = trial.number
        drawn.pictures[key] = TrialPicture(
            state=trial.state.name,
            levels=trial.params,
            attributes=trial.user_attrs,
            epochs=trial.intermediate_values,
            value=trial.value,
        )
    return drawn


def _create(storage: RDBStorage, frame: Frame) -> int:
    failpoint("mirror-study-begun", meets_disk=True)
    study_id = storage.create_new_study([StudyDirection[frame.direction.upper()]], study_name=frame.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.load_study(study_name=frame.name, storage=storage).set_metric_names([frame.metric])
    failpoint("mirror-study-made", meets_disk=True)
    for key, value in frame.attributes.items():
        storage.set_study_user_attr(study_id, key, value)
    return study_id


def _template(frame: Frame, picture: TrialPicture, times: Times) -> FrozenTrial:
    distributions = _distributions(frame)
    trial = create_trial(
        state=TrialState[picture.state],
        value=picture.value,
        params=dict(picture.levels),
        distributions={name: distributions[name] for name in picture.levels},
        user_attrs=dict(picture.attributes),
        intermediate_values=dict(picture.epochs),
    )
    if picture.state != "WAITING":
        trial.datetime_start = datetime.datetime.fromtimestamp(times.started)
    if is_finished(picture.state):
        trial.datetime_complete = datetime.datetime.fromtimestamp(times.ended)
    return trial


def _write(storage: RDBStorage, drawn: _Drawn, key: str, part: TrialPicture) -> bool:
    """Write a part over a trial, the state last: what is cut short is still open, and is completed by the next sync."""
    former = drawn.pictures[key].state
    if part.state == former and not part.attributes and not part.epochs:
        return False
    trial_id = storage.get_trial_id_from_study_id_trial_number(drawn.id, drawn.numbers[key])
    if former == "WAITING" and part.state != "WAITING":
        storage.set_trial_state_values(trial_id, TrialState.RUNNING)  # this is what gives it a start
    for name, value in part.attributes.items():
        storage.set_trial_user_attr(trial_id, name, value)
    for epoch, value in part.epochs.items():
        storage.set_trial_intermediate_value(trial_id, epoch, value)
    failpoint("mirror-trial-changed", meets_disk=True)
    if part.state not in (former, "RUNNING"):
        values = None if part.value is None else [part.value]
        storage.set_trial_state_values(trial_id, TrialState[part.state], values)
    return True


@functools.lru_cache(maxsize=32)
def _distributions(frame: Frame) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(levels) for name, levels in frame.levels.items()
    }
    for path, each in frame.ranges.items():
        found[path] = (
            IntDistribution(int(each.low), int(each.high), log=each.log)
            if each.whole
            else FloatDistribution(each.low, each.high, log=each.log)
        )
    return found


# --- what went wrong


def _fault(error: BaseException, path: Path) -> AblateError | None:
    """Return what a user can act on, where the error is that the file is held or refused, and not that it is bad."""
    if isinstance(error, AblateError):
        return error
    code = _sqlite_code(error)
    if code in _BUSY:
        hint = "close it; `ablate mirror` then brings the mirror up to date"
        return EnvironmentFault("another program holds the mirror locked", where=str(path), hint=hint)
    if code in _REFUSED:
        return EnvironmentFault(f"the mirror can't be written: {_sqlite_error(error)}", where=str(path), hint=_ROOM)
    return None


def _sqlite_code(error: BaseException) -> int | None:
    """Return SQLite's primary code of the error that is at the root of this one."""
    found = _sqlite_error(error)
    code = getattr(found, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _sqlite_error(error: BaseException | None) -> BaseException | None:
    while error is not None:
        if isinstance(error, sqlite3.Error):
            return error
        error = error.__cause__ or error.__context__
    return None
