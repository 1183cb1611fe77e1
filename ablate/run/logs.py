"""The log of an attempt: which one is meant, and its lines, also while they are written."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from ablate.errors import AblateError, EnvironmentFault
from ablate.run.liveness import is_alive
from ablate.store.facts import IMPORTED, StoredStudy, find_study, trials_of
from ablate.store.history import StoredAttempt, arms_of, attempts_of, runners_of, titles_of
from ablate.store.store import Store
from ablate.study.words import did_you_mean
from ablate.train.folder import AttemptFolder, as_shown, open_plain

POLL_S = 0.2
LOOK_S = 1.0
BLOCK = 1 << 16
TAIL = 20
LONGEST = 1 << 20  # characters of a line: one without end is shown in pieces


def named(store: Store, words: Sequence[str]) -> tuple[StoredStudy, str | None]:
    """Return the study and the arm that `[NAME] [ARM]` mean; a lone word may be either, an arm before a study.

    Raises AblateError where it is neither.
    """
    if len(words) != 1:
        stored = find_study(store, words[0] if words else None)
        return stored, (words[1] if words else None)
    word = words[0]
    titles = titles_of(store)
    stored = find_study(store, None)
    arms = [arm.name for arm in arms_of(store, stored.id)]
    if word in arms or word not in titles:
        if word not in arms:
            hint = did_you_mean(word, [*arms, *titles])
            raise AblateError(f"`{word}` is neither an arm of `{stored.title}` nor a study", hint=hint)
        return stored, word
    return find_study(store, word), None


def chosen_attempt(
    store: Store,
    stored: StoredStudy,
    *,
    arm: str | None,
    seed: int | None,
    number: int | None,
    candidate: int | None = None,
) -> StoredAttempt:
    """Return the attempt that is asked for; where that leaves a choice, the last one of a failed trial.

    Failing that, of a running one, else the last of all. Raises AblateError where there is none.
    """
    trials = trials_of(store, stored.id)
    arms = [each.name for each in arms_of(store, stored.id)]
    if arm is not None and arm not in arms:
        raise AblateError(f"`{stored.title}` has no arm `{arm}`", hint=did_you_mean(arm, arms))
    trials = [trial for trial in trials if arm in (None, trial.arm) and candidate in (None, trial.candidate)]
    if candidate is not None and not trials:
        hint = "`ablate show ARM` lists those that were tried; without `tune` there are none"
        raise AblateError(f"{arm or stored.title} has no candidate {candidate}", hint=hint)
    seeds = list(dict.fromkeys(trial.seed for trial in trials))
    if seed is not None and seeds and seed not in seeds:
        raise AblateError(f"{arm or stored.title} has no seed {seed}", hint=f"known: {', '.join(map(str, seeds))}")
    wanted = {trial.trial: trial for trial in trials if seed in (None, trial.seed)}
    attempts = [attempt for attempt in attempts_of(store, stored.id) if attempt.trial in wanted]
    if not attempts:
        where = " ".join(part for part in (arm, f"seed {seed}" if seed is not None else "") if part)
        raise AblateError(f"nothing of {where or stored.title} was started yet", hint="`ablate status` shows what was")
    states = {trial: row.state for trial, row in wanted.items()}
    return _numbered(attempts, _most_telling(attempts, states), number)


def _most_telling(attempts: Sequence[StoredAttempt], states: dict[int, str]) -> int:
    """Return the trial: the first that failed, else the first that runs, else the one begun last."""
    for state in ("failed", "running"):
        for trial, its in states.items():
            if its == state and any(attempt.trial == trial for attempt in attempts):
                return trial
    return attempts[-1].trial


def _numbered(attempts: Sequence[StoredAttempt], trial: int, number: int | None) -> StoredAttempt:
    of_trial = [attempt for attempt in attempts if attempt.trial == trial]
    if number is None:
        return of_trial[-1]
    for attempt in of_trial:
        if attempt.claim == number:
            return attempt
    numbers = ", ".join(str(attempt.claim) for attempt in of_trial)
    name = f"{of_trial[0].arm} seed {of_trial[0].seed}"
    raise AblateError(f"{name} has no attempt {number}", hint=f"known: {numbers}")


def log_file(store: Store, attempt: StoredAttempt, *, wanted: bool = True) -> Path:
    """Return where an attempt's log lies. Raises EnvironmentFault where it is ``wanted`` and not there."""
    if attempt.slot == IMPORTED:
        raise AblateError(f"`{attempt.arm}` seed {attempt.seed} was imported: it has no log here")
    path = AttemptFolder(store.path_of(attempt.folder)).log_file
    if wanted and not os.path.lexists(path):
        hint = f"the attempt ran on {attempt.host}; look there, or share the folder {store.folder}"
        raise EnvironmentFault("the log is not here", where=str(path), hint=hint)
    return path


def tail(folder: str) -> list[str]:
    """Return the last lines that the attempt of this folder printed; none where its log is not here."""
    return AttemptFolder(folder).log_tail(TAIL)


def lines(path: Path, *, last: int | None = None) -> Iterator[str]:
    """Yield the lines of a log, or the last of them, with control characters escaped. Reads any size piece by piece."""
    reader = _Reader(path, _start_of_last(path, last) if last is not None else 0)
    yield from reader.read()
    yield from reader.rest()


def follow(
    path: Path, *, last: int | None, ended: Callable[[], bool], wait: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Yield the lines of a log as they come, until the attempt has ``ended``."""
    reader = _Reader(path, _start_of_last(path, last) if last is not None else 0)
    while True:
        over = ended()  # asked before reading: what is written after it is not missed
        yield from reader.read()
        if over:
            break
        wait(POLL_S)
    yield from reader.rest()


def end_of(store: Store, stored: StoredStudy, attempt: StoredAttempt) -> Callable[[], bool]:
    """Return a question: has the attempt ended, or died with its runner? The store is asked about once a second."""
    next_look = 0.0
    over = False

    def ask() -> bool:
        nonlocal next_look, over
        if not over and time.monotonic() >= next_look:
            next_look = time.monotonic() + LOOK_S
            now = attempts_of(store, stored.id, among=[attempt.id])[0]
            runners = [runner for runner in runners_of(store, stored.id) if runner.id == attempt.runner]
            over = now.ended is not None or not any(is_alive(runner, store) for runner in runners)
        return over

    return ask


class _Reader:
    """Reads a file that grows, in whole lines."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path = path
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = ""

    def read(self) -> Iterator[str]:
        file = _opened(self._path)
        if file is None:
            return
        with file:
            if file.seek(0, 2) < self._offset:  # the runner has cut out the middle of a flood
                self._offset = file.tell()
            file.seek(self._offset)
            while block := file.read(BLOCK):
                self._offset += len(block)
                *whole, self._open = (self._open + self._decoder.decode(block)).split("\n")
                yield from map(as_shown, whole)
                if len(self._open) > LONGEST:
                    yield from self.rest()

    def rest(self) -> Iterator[str]:
        """Yield what stands after the last line end."""
        if self._open:
            yield as_shown(self._open)
            self._open = ""


def _opened(path: Path) -> IO[bytes] | None:
    """Open a log; None where there is none. Raises EnvironmentFault where it is a link, a pipe, or not ours to read."""
    try:
        return open_plain(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EnvironmentFault(f"the log can't be read: {error.strerror}", where=str(path)) from None


def _start_of_last(path: Path, lines: int) -> int:
    """Return the byte at which the last lines of a file begin."""
    file = _opened(path)
    if file is None:
        return 0
    with file:
        end = size = file.seek(0, 2)
        if not lines:
            return size
        found = 0
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            block = file.read(end - start)
            if end == size and block.endswith(b"\n"):
                found -= 1  # the end of the last line begins none
            for at in range(len(block) - 1, -1, -1):
                if block[at] == 0x0A:
                    found += 1
                    if found == lines:
                        return start + at + 1
            end = start
        return 0
