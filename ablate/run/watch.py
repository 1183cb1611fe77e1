"""Following attempts from outside: what the store and the attempt folders tell, as events for a ``Progress``."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ablate.run.liveness import is_alive
from ablate.run.progress import Progress
from ablate.store.facts import StoredTrial
from ablate.store.history import Moment, StoredAttempt, final_values, moment_of, recorded_values
from ablate.store.store import Store
from ablate.train.folder import AttemptFolder, printable

LOOK_S = 1.0
SHARE = 0.05  # of our time at most that goes into reading the store
POLL_S = 0.1
PATIENCE_S = 3.0  # a runner ends and the next one starts: that long nobody is at work

ALONE = "nobody is at work on it now; waits for agents that were started from here (`ablate agents status` shows them)"
WATCH_FOOTER = "Ctrl-C ends the watching; the study runs on"


@dataclass
class _Open:
    """An attempt at work, and how far its records were read."""

    attempt: StoredAttempt
    folder: AttemptFolder
    offset: int = 0


class Follower:
    """Tells a progress what other processes do at a study version. Attempts of the runner ``mine`` are left out."""

    def __init__(self, store: Store, study_id: int, progress: Progress, *, mine: str = "") -> None:
        self._store = store
        self._study_id = study_id
        self._progress = progress
        self._mine = mine
        self._open: dict[int, _Open] = {}
        self._last = 0
        self._next_look = 0.0
        self._moment: Moment | None = None

    def look(self) -> Moment:
        """Read what is new, the records at each call, the store about once a second; return its last moment."""
        if self._moment is None or time.monotonic() >= self._next_look:
            began = time.monotonic()
            self._moment = self._look_at_store()
            ended = time.monotonic()
            self._next_look = ended + max(LOOK_S, (ended - began) / SHARE)
        for each in self._open.values():
            self._listen(each)
        return self._moment

    def _look_at_store(self) -> Moment:
        is_new = self._moment is None
        moment = moment_of(self._store, self._study_id, after=self._last, among=list(self._open))
        trials = {trial.trial: trial for trial in moment.trials}
        now = max((runner.now for runner in moment.runners), default=0.0)
        heard = {runner.id: runner.heartbeat for runner in moment.runners}
        if not self._mine:
            self._progress.extend(moment.trials)
        self._progress.refresh_states({each.trial: (each.state, each.outcome) for each in moment.trials})
        for attempt in moment.attempts:
            self._last = max(self._last, attempt.id)
            if attempt.runner == self._mine or not self._progress.knows(attempt.trial):
                continue
            if attempt.ended is None:
                self._begin(attempt, now)
                self._progress.silent(attempt.trial, now - heard.get(attempt.runner, now))
            else:
                known = self._open.pop(attempt.id, None)
                if not is_new:  # else it ended before we came
                    self._end(attempt, trials[attempt.trial], known)
        return moment

    def _begin(self, attempt: StoredAttempt, now: float) -> None:
        if attempt.id in self._open:
            if not self._open[attempt.id].folder.path.exists():
                epoch, values = recorded_values(self._store, attempt.trial, attempt.claim)
                if epoch is not None:  # it runs on another machine, and its folder is not shared
                    self._progress.recorded(attempt.trial, {"epoch": epoch, "values": values})
            return
        self._open[attempt.id] = _Open(attempt, AttemptFolder(self._store.path_of(attempt.folder)))
        self._progress.started(attempt.trial, attempt.slot, machine=attempt.machine, spent=now - attempt.started)

    def _end(self, attempt: StoredAttempt, trial: StoredTrial, known: _Open | None) -> None:
        state = trial.state if trial.attempts == attempt.claim else "waiting"  # else the next attempt has begun
        self._progress.ended(
            attempt.trial,
            state,
            attempt.outcome or "",
            metrics=final_values(self._store, attempt.trial) if state == "done" else {},
            seconds=attempt.seconds or 0.0,
            why=printable((trial.reason if state == "failed" else None) or attempt.error or ""),
            folder=None if self._mine else (known.folder if known else self._folder(attempt)),
            quiet=bool(self._mine),
        )

    def _folder(self, attempt: StoredAttempt) -> AttemptFolder:
        return AttemptFolder(self._store.path_of(attempt.folder))

    def _listen(self, each: _Open) -> None:
        records, each.offset = each.folder.records(each.offset)
        for record in records:
            self._progress.recorded(each.attempt.trial, record)
        if not each.offset:
            for line in each.folder.log_tail(1, size=4096):
                self._progress.logged(each.attempt.trial, line)


def follow_study(store: Store, study_id: int, progress: Progress, *, patience_s: float = PATIENCE_S) -> None:
    """Show a study version until all its trials are settled, or nobody has been at work on it for so long."""
    follower = Follower(store, study_id, progress)
    busy = time.monotonic()
    told = False
    with progress:
        while True:
            moment = follower.look()
            alive = [runner for runner in moment.runners if is_alive(runner, store)]
            if alive:
                busy = time.monotonic()
                progress.began(max(runner.now - runner.started for runner in alive))
            progress.show()
            # whoever is at work on a settled study is about to end, or to ask for what its results call for
            settled = not alive and all(trial.state in ("done", "failed") for trial in moment.trials)
            idle_s = time.monotonic() - busy
            if settled or idle_s > patience_s:
                return
            if idle_s > PATIENCE_S and not told:
                told = True
                progress.say(ALONE)
            time.sleep(POLL_S)
