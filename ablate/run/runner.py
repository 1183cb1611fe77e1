"""The runner: one process, one loop claims trials, starts workers, keeps what they record and decides what follows.

The loop does everything in turn, heartbeat included: there is no thread that could die and leave the rest running.
Beside it lie ``waiting`` (which trials wait, and how they are claimed), ``crew`` (workers and their attempts),
``endings`` (how an attempt has ended) and ``takeover`` (what dead runners have left).
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from ablate.errors import EXIT_ENVIRONMENT, EnvironmentFault, Fault, StoreError
from ablate.failpoints import failpoint
from ablate.plan.trials import Plan, Replicate
from ablate.run.attempts import Attempt, Worker
from ablate.run.crew import Crew
from ablate.run.endings import Closed, is_crowded_out, last_word, never_begun, read_endings
from ablate.run.liveness import Owners
from ablate.run.locks import FileLock, boot_id
from ablate.run.options import Options
from ablate.run.progress import Progress
from ablate.run.provenance import command_line
from ablate.run.pruning import Pruner
from ablate.run.slots import Slot
from ablate.run.stopping import STOPPING
from ablate.run.takeover import leave_all, take_back_lost
from ablate.run.unchanged import Unchanged
from ablate.run.waiting import Waiting
from ablate.run.watch import SHARE, Follower
from ablate.run.workers import Done, Exit, Workers
from ablate.store import claims
from ablate.store.claims import Claim
from ablate.store.facts import StoredTrial, grown_plan, record_plan, trials_of
from ablate.store.store import Store
from ablate.train.folder import AttemptFolder, Work, make_folder, printable

POLL_S = 0.05
FLUSH_S = 0.5
ELSEWHERE_S = 1.0
PARTING_S = 3.0  # for a store that fails to take our last word


@dataclass(frozen=True)
class Summary:
    """What a run left behind: its trials, how many attempts it made, and the signal that stopped it, if one did."""

    trials: tuple[StoredTrial, ...]
    attempts: int
    stopped_by: int | None = None

    def count(self, *states: str) -> int:
        return len({each.trial for each in self.trials if each.state in states})


class Runner:
    """Runs the trials of one study version until all are settled, or it is told to stop."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        study_id: int,
        *,
        workers: Workers,
        study_folder: Path,
        options: Options,
        code: str,
        progress: Callable[[Sequence[StoredTrial]], Progress],
    ) -> None:
        self.id = uuid.uuid4().hex
        self._store = store
        self._plan = plan
        self._study_id = study_id
        self._workers = workers
        self._study_folder = study_folder
        self._options = options
        self._crew = Crew(workers, plan.study, options, begun=self._begun)
        self._progress = progress(self._mine(trials_of(store, study_id)))
        self._waiting = Waiting(store, plan, study_id, options, runner=self.id, code=code, study_folder=study_folder)
        self._owners = Owners(store, lease_s=options.lease_s)
        self._others = Follower(store, study_id, self._progress, mine=self.id)
        self._closed: list[Closed] = []
        self._taken = 0  # trials claimed
        self._made = 0  # attempts begun
        self._unchanged = Unchanged(plan, store)
        self._warned: set[str] = set()
        self._pruner: Pruner | None = None
        self._has_news = False  # results that may call for more
        self._signals: list[int] = []
        self._fault: Fault | None = None
        self._next_flush = self._next_renewal = self._next_recovery = 0.0
        self._next_claim = self._next_look = self._next_ear = 0.0

    def run(self) -> Summary:
        """Run until every trial of the plan is done or failed. Raises EnvironmentFault where no trial could run."""
        lock = self._register()
        former = {number: signal.signal(number, self._on_signal) for number in STOPPING}
        try:
            with self._progress:
                self._recover()
                while self._turn():
                    pass
                self._stop()
        except BaseException:
            self._abandon()
            raise
        finally:
            if not self._signals:  # once stopped, a further signal must not cut short what is left to say
                for number, handler in former.items():
                    signal.signal(number, handler)
            lock.release()
        claims.end_runner(self._store, self.id)
        failpoint("run-ended")
        lock.path.unlink(missing_ok=True)
        if self._fault is not None:
            raise EnvironmentFault(self._fault.message, where=self._fault.where, hint=self._fault.hint)
        trials = tuple(trials_of(self._store, self._study_id))
        return Summary(trials, self._made, self._signals[0] if self._signals else None)

    # --- the loop

    def _turn(self) -> bool:
        """Do one round of everything. False once there is nothing more to do here."""
        for end in self._workers.wait(POLL_S):
            self._hear(end)
        if self._signals or self._fault:
            self._exchange([])
            return False
        now = time.monotonic()
        if now >= self._next_ear:
            self._listen()
            self._next_ear = now + POLL_S
        self._crew.watch_limits()
        if now >= self._next_renewal:
            claims.renew(self._store, self.id, lease_s=self._options.lease_s)
            self._next_renewal = now + self._options.lease_s / 4
        if now >= self._next_recovery:
            self._recover()
            self._next_recovery = now + self._owners.look_s
        self._fill_slots()
        self._progress.hungry(self._crew.slots.is_hungry)
        if self._progress.is_live:
            self._others.look()
            self._progress.show()
        return bool(self._crew) or (self._room != 0 and (self._others_are_at_it() or self._grow()))

    @property
    def _room(self) -> int | None:
        """The number of trials that we may still take; None for any."""
        return None if self._options.max_trials is None else self._options.max_trials - self._taken

    def _fill_slots(self) -> None:
        """Keep what has ended and claim trials in its place, in one transaction; start these."""
        places = self._crew.places(self._room) if time.monotonic() >= self._next_claim else []
        claimed = self._exchange([place.slot for place in places])
        for worker in {id(place): place for place in places}.values():
            given = [group for place, group in zip(places, claimed, strict=False) if place is worker]
            self._crew.give(worker, [self._prepared(group, worker) for group in given])
        if places and not claimed and not self._waiting:
            self._crew.slots.rest()
            self._next_claim = time.monotonic() + ELSEWHERE_S
            if self._has_news:
                self._grow()  # a slot is idle: what is called for need not wait until all are
        # what has just come back is for those that are there
        self._crew.retire_idle(trials_wait=bool(self._waiting) and self._room != 0)

    def _exchange(self, slots: Sequence[Slot]) -> list[Sequence[Claim]]:
        """Keep what has ended and claim for each slot what is trained in one model there, as far as trials wait."""
        closed, self._closed = self._closed, []
        fenced, claimed = self._waiting.exchange([each.finished for each in closed], slots, most=self._room)
        for each in closed:
            self._kept(each, is_fenced=each.finished.claim in fenced)
        return claimed

    def _prepared(self, claimed: Sequence[Claim], worker: Worker) -> Attempt:
        """Make the folders of attempts that are trained in one model, and return the first one."""
        folders = [self._store.folder / claims.attempt_folder(each.fingerprint, each.number) for each in claimed]
        group = [
            Attempt(claim, AttemptFolder(path), worker.number) for claim, path in zip(claimed, folders, strict=True)
        ]
        for attempt in reversed(group):  # the first one's names the others
            attempt.group = group
            mates = tuple(map(str, folders[1:])) if attempt is group[0] else ()
            attempt.folder.create(self._work(attempt, worker, mates))
        self._taken += len(group)
        return group[0]

    def _work(self, attempt: Attempt, worker: Worker, mates: tuple[str, ...]) -> Work:
        study, claim, shorter = self._plan.study, attempt.claim, self._waiting.shorter
        settings = json.loads(claim.settings_json)
        return Work(
            task=claim.task,
            study_folder=str(self._study_folder),
            settings=settings,
            seed=claim.seed,
            fingerprint=claim.fingerprint,
            device="cuda" if study.resources.gpus else "cpu",
            dtype=study.execution.dtype,
            memory_format=study.execution.memory_format,
            compile=study.execution.compile,
            graphs=study.execution.graphs,
            threads=study.execution.threads,
            metrics=tuple(study.metrics),
            earlier=tuple(str(self._store.path_of(earlier)) for earlier in claim.earlier),
            locks=(str(attempt.folder.path.parent / "lock"), *worker.slot.occupied),
            shared=worker.slot.shared,
            fuse=study.execution.members,
            mates=mates,
            shorter=shorter.folders(settings, claim.seed, self._waiting.noted_of(worker.slot)),
            keeps_end=shorter.has_longer(settings),
        )

    def _begun(self, attempt: Attempt, slot: Slot) -> None:
        """Say that a worker is at an attempt."""
        self._made += 1
        trial = attempt.claim.trial
        if not self._progress.knows(trial):  # another runner has recorded what the results call for
            self._progress.extend(self._mine(trials_of(self._store, self._study_id)))
        self._progress.started(trial, slot.name)
        earlier = [self._store.path_of(folder) for folder in attempt.claim.earlier]
        if earlier and not any(folder.exists() for folder in earlier):
            self._progress.say(
                f"{self._progress.name(trial)}: earlier attempts left their checkpoints on another machine, "
                f"and {self._store.folder} is not shared with it: it starts afresh"
            )

    # --- what workers record

    def _listen(self) -> None:
        """Read what the workers recorded, and put it into the store about twice a second."""
        for attempt in self._crew.running():
            records, attempt.offset = attempt.folder.records(attempt.offset)
            for record in records:
                self._crew.heard(attempt)
                self._keep(attempt, record)
                self._prune(attempt, record)
                self._progress.recorded(attempt.claim.trial, record)
            attempt.folder.cap_log()
            if not attempt.offset:
                for line in attempt.folder.log_tail(1, size=4096):
                    self._progress.logged(attempt.claim.trial, line)
        if time.monotonic() >= self._next_flush:
            self._flush()
            self._next_flush = time.monotonic() + FLUSH_S

    def _keep(self, attempt: Attempt, record: Mapping[str, Any]) -> None:
        attempt.unsaved.append(record)
        value = record["values"].get(self._plan.study.primary)
        if value is not None:
            attempt.values[record["epoch"]] = float(value)

    def _prune(self, attempt: Attempt, record: Mapping[str, Any]) -> None:
        """End a candidate that is behind the others, if the study has it so."""
        budget = self._plan.study.budget
        if budget is None or not budget.prune or attempt.ended_by or record["epoch"] not in attempt.values:
            return
        if self._pruner is None:
            self._pruner = Pruner(self._plan, self._store)
        is_last = record["epoch"] == record.get("epochs")  # it has ended by itself, and knows its value
        if not is_last and self._pruner.is_behind(attempt.claim.fingerprint, attempt.values):
            self._crew.end(attempt, "pruned")

    def _flush(self) -> None:
        batch = [(attempt.claim, attempt.unsaved) for attempt in self._crew.running() if attempt.unsaved]
        if not batch:
            return
        fenced = claims.add_measurements(self._store, batch)
        for attempt in self._crew.running():
            attempt.unsaved = []
            if attempt.claim in fenced:
                self._crew.fence(attempt)

    # --- the end of an attempt

    def _hear(self, end: Exit | Done) -> None:
        """Take in that a worker has ended an attempt, or itself."""
        worker = self._crew.find(end.worker)
        if worker is None:
            return
        if isinstance(end, Done):
            self._close(worker, Exit(end.worker, None, None))
            self._crew.go_on(worker)
            return
        self._crew.drop(worker)
        if worker.has_begun:
            self._close(worker, end)
        if worker.queue and not (self._signals or self._fault) and self._crew.slots.may_stay(worker.slot):
            self._crew.start(worker)
        else:
            self._crew.slots.release(worker.slot)
            self._closed += [never_begun(attempt) for first in worker.queue for attempt in first.group]

    def _close(self, worker: Worker, end: Exit) -> None:
        """Read how a worker's attempt has ended, and those in one model with it; they are kept with what else has."""
        group = worker.queue.popleft().group
        worker.ended += 1
        for attempt in group:
            attempt.folder.cap_log()
            while (found := attempt.folder.records(attempt.offset))[1] != attempt.offset:
                for record in found[0]:
                    self._keep(attempt, record)
                attempt.offset = found[1]
        told = [(attempt, last_word(attempt.folder, end)) for attempt in group]
        stopping, kills = bool(self._signals), self._crew.kills
        ended = read_endings(
            told, worker.slot, end, study=self._plan.study, stopping=stopping, kills=kills, crowd=worker.crowd
        )
        self._closed += ended
        if any(is_crowded_out(result, worker.crowd) for _, result in told):
            self._back_off(worker)
        for closed, (attempt, result) in zip(ended, told, strict=True):
            if result is not None:
                self._crew.took(result.seconds)
                is_error = closed.finished.ending.outcome == "error"
                if result.exit_code == EXIT_ENVIRONMENT and is_error and not attempt.fenced:
                    self._fault = Fault(result.error, hint=result.hint)

    def _back_off(self, worker: Worker) -> None:
        [gpu] = worker.slot.gpus
        left = self._crew.slots.back_off(gpu, worker.ours)
        if left is not None:
            at_once = "1 trial" if left == 1 else f"{left} trials"
            self._progress.say(f"{gpu} has no memory for {worker.crowd} trials at once: from now on {at_once}")

    def _kept(self, closed: Closed, *, is_fenced: bool) -> None:
        """Say what has become of an attempt, once that is in the store."""
        attempt, ending, metrics = closed.attempt, closed.finished.ending, closed.finished.metrics
        trial = attempt.claim.trial
        if is_fenced or attempt.fenced:
            claims.fence(self._store, attempt.claim)
            ending = replace(ending, outcome="fenced", state="waiting")
        elif ending.state == "waiting":
            self._waiting.put_first(trial)
        if not self._crew:
            self._next_look = 0.0  # what others do, and what the results call for, is asked at once
        why = printable(ending.reason or ending.error or "")
        self._progress.ended(
            trial,
            ending.state,
            ending.outcome,
            metrics=metrics,
            seconds=ending.seconds or 0.0,
            why=why,
            folder=attempt.folder,
        )
        self._has_news = self._has_news or ending.state in ("done", "failed")
        if ending.outcome == "oom" and ending.state == "failed":
            self._hint_at_memory()
        if ending.outcome == "ok":
            self._warn_of_no_pruning(attempt)
            self._warn_of_no_change(attempt.claim.fingerprint)

    def _hint_at_memory(self) -> None:
        """Say once what takes less memory of a GPU."""
        study = self._plan.study
        if study.resources.gpus and "memory" not in self._warned:
            less = "" if study.execution.dtype == "bfloat16" else ", or `execution: {dtype: bfloat16}`,"
            self._progress.say(f"hint: a smaller batch{less} takes less memory; all arms are then trained anew")
            self._warned.add("memory")

    def _warn_of_no_pruning(self, attempt: Attempt) -> None:
        budget, primary = self._plan.study.budget, self._plan.study.primary
        if budget is not None and budget.prune and not attempt.values and "prune" not in self._warned:
            self._progress.say(f"warning: `prune` has nothing to go by: the task records no {primary} at each epoch")
            self._warned.add("prune")

    def _warn_of_no_change(self, fingerprint: str) -> None:
        for text in self._unchanged.said_of(fingerprint):
            self._progress.say(f"warning: {text}")

    # --- plans that grow

    def _grow(self) -> bool:
        """Ask the plan what the results call for: further seeds, the next step of a path. False if nothing."""
        self._has_news = False
        if not self._plan.study.grows:
            return False
        known = set(self._plan.trials())
        self._plan = grown_plan(self._store, self._plan.study).restricted(self._options.arms)
        new = [each for each in self._plan.replicates if each.trial.fingerprint not in known]
        if not new:
            return False
        record_plan(self._store, self._plan)
        self._pruner = None  # there are more to judge
        self._unchanged = Unchanged(self._plan, self._store, said=self._unchanged)
        self._progress.extend(self._mine(trials_of(self._store, self._study_id)))
        self._progress.say(_growth(new))
        self._waiting.grow(self._plan)
        self._ask_again()
        return True

    # --- other runners

    def _others_are_at_it(self) -> bool:
        """Tell whether other runners hold trials of this plan. We wait for them, and take over where they die."""
        now = time.monotonic()
        if now < self._next_look:
            return True
        self._recover()
        mine = self._mine(trials_of(self._store, self._study_id))
        ended = time.monotonic()
        self._next_look = ended + max(self._owners.look_s, (ended - now) / SHARE)
        self._progress.refresh_states({each.trial: (each.state, each.outcome) for each in mine})
        in_time = self._waiting.arms_in_time()
        waiting = any(each.state == "waiting" and (in_time is None or each.arm in in_time) for each in mine)
        if waiting:
            self._ask_again()
        return waiting or any(each.state == "running" and not self._is_left_to_others(each) for each in mine)

    def _is_left_to_others(self, running: StoredTrial) -> bool:
        """Tell whether we may go while a trial runs elsewhere: nobody might be left to take it from a dead runner."""
        return self._options.leaves_others and self._owners.has_shown_life(running.trial, running.attempts)

    def _mine(self, trials: Sequence[StoredTrial]) -> list[StoredTrial]:
        return [each for each in trials if self._options.arms is None or each.arm in self._options.arms]

    def _recover(self) -> None:
        """Give back to the queue what dead runners held, and what we hold without knowing: a claim's reply was lost."""
        ours = [*self._crew.given(), *(each.attempt for each in self._closed)]
        known = {(attempt.claim.trial, attempt.claim.number) for attempt in ours}
        if take_back_lost(self._store, self._owners, runner=self.id, known=known):
            self._ask_again()

    def _ask_again(self) -> None:
        """There are trials that wait, and of which we may not know."""
        self._next_claim = 0.0
        self._waiting.forget()

    # --- start and stop

    def _register(self) -> FileLock:
        folder = self._store.folder / "locks"
        make_folder(folder)
        lock = FileLock.try_take(folder / f"{self.id}.lock")
        assert lock is not None, "a random name is nobody else's"
        facts = {
            "host": socket.gethostname(),
            "boot_id": boot_id(),
            "lock_file": str(lock.path),
            "command": command_line(),
        }
        claims.register_runner(self._store, runner_id=self.id, study_id=self._study_id, facts=facts)
        return lock

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _abandon(self) -> None:
        """After a fault of ours, or of the store: leave nothing running, and give back what the store still lets us.

        Where it lets us not, the next run finds our lock free and takes it.
        """
        self._crew.abandon()
        self._store.retry_deadline_s = PARTING_S
        with contextlib.suppress(StoreError):
            leave_all(self._store, runner=self.id)
            claims.end_runner(self._store, self.id)

    def _stop(self) -> None:
        """Let the workers write a checkpoint and end; at a Ctrl-C after the first signal, or after the grace, end them.

        Only a person's impatience counts: a scheduler repeats its warnings, and means the same by them.
        """
        if self._crew:
            self._progress.say("stopping: the running trials are asked to end; a second Ctrl-C ends them at once")
        while self._crew:
            self._crew.stop()
            if signal.SIGINT in self._signals[1:]:
                self._crew.lose_patience()
            self._crew.watch_limits()
            for end in self._workers.wait(POLL_S):
                self._hear(end)
            self._exchange([])
        self._recover()


def _growth(new: Sequence[Replicate]) -> str:
    """Say what the results have called for."""
    trials = len({each.trial.fingerprint for each in new})
    arms = list(dict.fromkeys(each.arm for each in new))
    some = ", ".join(arms[:4]) + (f" and {len(arms) - 4} more" if len(arms) > 4 else "")
    roles = {each.role for each in new}
    what = {"confirm": "on fresh seeds", "tune": "to tune"}.get("".join(roles), "that the results call for")
    return f"{trials} more trial{'' if trials == 1 else 's'} {what}: {some}"
