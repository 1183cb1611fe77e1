"""The runner: one process, one loop claims trials, starts workers, keeps what they record and decides what follows.

The loop does everything in turn, heartbeat included: there is no thread that could die and leave the rest running.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from ablate.errors import EXIT_ENVIRONMENT, AblateError, EnvironmentFault, Fault, StoreError
from ablate.failpoints import failpoint
from ablate.plan.trials import Plan, Replicate
from ablate.run.energy import Meter, energy_facts, read_meter, total
from ablate.run.liveness import Owners
from ablate.run.locks import FileLock, boot_id
from ablate.run.memory import oom_kills, others_on_gpu
from ablate.run.outcomes import decide
from ablate.run.progress import FAILURE_LINES, Progress
from ablate.run.provenance import command_line, git_facts, gpu_facts, machine_facts
from ablate.run.pruning import Pruner
from ablate.run.slots import Slot, SlotPool
from ablate.run.stopping import STOPPING
from ablate.run.unchanged import Unchanged
from ablate.run.watch import Follower
from ablate.run.workers import Done, Exit, Workers
from ablate.store import claims
from ablate.store.claims import Claim, Ending, Finished, Held, KeptScores, Wanted
from ablate.store.facts import StoredTrial, grown_plan, longest_seconds, record_plan, trials_of
from ablate.store.store import Store
from ablate.train.folder import (
    FREE_SPACE,
    STACKS,
    UNWRITTEN,
    AttemptFolder,
    Result,
    Work,
    make_folder,
    printable,
    room_left,
)

POLL_S = 0.05
FLUSH_S = 0.5
ELSEWHERE_S = 1.0
LENGTHS_S = 30.0  # how long what is known of a trial's length may be old
PARTING_S = 3.0  # for a store that fails to take our last word
PRUNE_GRACE_S = 1.0
STACKS_S = 0.5  # for a worker to print its stacks, before it is asked to end
AHEAD_S = 0.1  # of work that a warm worker is given at a time, so that many short attempts share a transaction
AHEAD = 64  # and the most attempts
PACE = 0.2  # weight of the last attempt in what the next ones should take


@dataclass(frozen=True)
class Allocation:
    """The time that a scheduler has given us, from when to when (Unix seconds)."""

    began: float
    ends: float

    def has_room(self, seconds: float) -> bool:
        """Tell whether a trial of so many seconds can end in what is left of it.

        One that is longer than the whole could end in no other either: it goes from one to the next by its checkpoints.
        """
        return seconds > self.ends - self.began or time.time() + seconds < self.ends


@dataclass(frozen=True)
class Options:
    """How to run, as the command line gives it. ``leaves_others``: what living runners hold is theirs to end."""

    jobs: int | None = None
    arms: tuple[str, ...] | None = None
    data_dir: Path | None = None
    grace_s: float = 10.0
    lease_s: float = claims.LEASE_S
    leaves_others: bool = False
    max_trials: int | None = None
    allocation: Allocation | None = None


@dataclass(frozen=True)
class Summary:
    """What a run left behind: its trials, how many attempts it made, and the signal that stopped it, if one did."""

    trials: tuple[StoredTrial, ...]
    attempts: int
    stopped_by: int | None = None

    def count(self, *states: str) -> int:
        return len({each.trial for each in self.trials if each.state in states})


@dataclass
class _Attempt:
    """An attempt that a worker is at, or that it has been given to go on with."""

    claim: Claim
    folder: AttemptFolder
    worker: int = 0
    started: float = 0.0
    heard: float = 0.0
    offset: int = 0
    unsaved: list[Mapping[str, Any]] = field(default_factory=list)
    ended_by: str = ""  # the outcome, where we ended it
    oom_kills: int = 0  # of the kernel's, before it began
    meter: Meter | None = None  # of its GPU, before it began
    values: dict[int, float] = field(default_factory=dict)  # the primary metric by epoch
    ask_at: float | None = None
    kill_at: float | None = None
    fenced: bool = False


@dataclass
class _Worker:
    """A worker in its slot, and its attempts: it is at the first one. ``ended`` counts those that it did before."""

    number: int
    slot: Slot
    queue: deque[_Attempt]
    ended: int = 0
    retired: bool = False


@dataclass(frozen=True)
class _Closed:
    """An attempt that has ended, and is still to be kept."""

    attempt: _Attempt
    finished: Finished


def check_task(plan: Plan, workers: Workers, study_folder: Path) -> None:
    """Import the task in a worker without calling it. Raises AblateError where that fails; no trial is touched."""
    failpoint("check-begun")
    with tempfile.TemporaryDirectory(prefix="ablate-check-") as name:
        folder = AttemptFolder(name)
        folder.create(Work(str(plan.study.task), str(study_folder), {}, 0, "", check_only=True))
        worker, end = workers.spawn(folder.path, {"CUDA_VISIBLE_DEVICES": ""}), None
        while end is None:
            end = next((each for each in workers.wait(1.0) if isinstance(each, Exit) and each.worker == worker), None)
        result = last_word(folder, end)
        if result is not None and result.exit_code == EXIT_ENVIRONMENT:
            raise EnvironmentFault(result.error, hint=result.hint)
        if result is None or result.outcome != "ok":
            why = result.error if result else "the process died while importing it"
            lines = "\n".join(f"    {line}" for line in folder.log_tail(FAILURE_LINES))
            hint = (result.hint if result else "") or f"its last lines were:\n{lines}"
            done = "imported" if plan.study.task.function else "run"
            raise AblateError(
                f"the task `{plan.study.task.label}` can't be {done}: {why}",
                where=plan.study.where("task"),
                hint=hint,
            )


def last_word(folder: AttemptFolder, end: Exit) -> Result | None:
    """Return how an attempt ended by the worker's word; where the disk refused that, what the worker meant to say."""
    result = folder.result()
    if result is None and end.exit_code == UNWRITTEN:
        error = f"{folder.path}: the disk refused the worker's last word ({room_left(folder.path)})"
        return Result("error", error=error, hint=FREE_SPACE, exit_code=EXIT_ENVIRONMENT)
    return result


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
        resources, execution = plan.study.resources, plan.study.execution
        self._slots = SlotPool(resources, threads=execution.threads, jobs=options.jobs)
        self._progress = progress(self._mine(trials_of(store, study_id)))
        self._owners = Owners(store, lease_s=options.lease_s)
        self._others = Follower(store, study_id, self._progress, mine=self.id)
        self._at_work: dict[int, _Worker] = {}
        self._closed: list[_Closed] = []
        self._waiting: deque[int] = deque()  # trials that waited when we last asked, in plan order
        self._arms_waiting: Sequence[str] | None = None  # the arms that they are of
        self._is_warm = execution.isolation == "warm"
        self._pace: float | None = None  # seconds of an attempt
        self._taken = 0  # trials claimed
        self._made = 0  # attempts begun
        self._oom_kills = 0  # that were accounted for
        self._seen_kills = (0.0, 0)  # when we last asked the kernel, and what it said
        self._unchanged = Unchanged(plan, store)
        self._warned: set[str] = set()
        self._pruner: Pruner | None = None
        self._has_news = False  # results that may call for more
        self._signals: list[int] = []
        self._fault: Fault | None = None
        self._next_flush = self._next_renewal = self._next_recovery = 0.0
        self._next_claim = self._next_look = self._next_ear = 0.0
        self._next_lengths = 0.0
        self._lengths: dict[str, float] = {}  # of a trial of each arm, in seconds, as far as that is known
        self._facts = machine_facts() | git_facts(study_folder, store.folder / "diffs")
        self._gpu_facts: dict[str, dict[str, str]] = {}
        self._code = code

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
        self._watch_limits()
        if now >= self._next_renewal:
            claims.renew(self._store, self.id, lease_s=self._options.lease_s)
            self._next_renewal = now + self._options.lease_s / 4
        if now >= self._next_recovery:
            self._recover()
            self._next_recovery = now + ELSEWHERE_S
        self._fill_slots()
        self._progress.hungry(self._slots.is_hungry)
        if self._progress.is_live:
            self._others.look()
            self._progress.show()
        return bool(self._at_work) or (self._room != 0 and (self._others_are_at_it() or self._grow()))

    @property
    def _room(self) -> int | None:
        """The number of trials that we may still take; None for any."""
        return None if self._options.max_trials is None else self._options.max_trials - self._taken

    def _fill_slots(self) -> None:
        """Keep what has ended and claim trials in its place, in one transaction; start these."""
        places: list[_Worker] = []
        if time.monotonic() >= self._next_claim:
            places = list(itertools.islice(itertools.chain(self._hungry_workers(), self._new_workers()), self._room))
        claimed = self._exchange([place.slot for place in places])
        for worker in {id(place): place for place in places}.values():
            given = [claim for place, claim in zip(places, claimed, strict=False) if place is worker]
            new = [self._prepared(claim, worker) for claim in given]
            is_idle = not worker.queue
            worker.queue.extend(new)
            if not worker.number and new:
                self._spawn(worker)
            elif not worker.number:
                self._slots.release(worker.slot)
            elif new:
                self._workers.go_on(worker.number, [attempt.folder.path for attempt in new])
                if is_idle:
                    self._begin(new[0], worker.slot)
        if places and not claimed and not self._waiting:
            self._slots.rest()
            self._next_claim = time.monotonic() + ELSEWHERE_S
            if self._has_news:
                self._grow()  # a slot is idle: what is called for need not wait until all are
        for worker in self._at_work.values():
            if self._is_warm and not worker.queue and not worker.retired:
                self._workers.retire(worker.number)
                worker.retired = True

    def _hungry_workers(self) -> Iterator[_Worker]:
        """Yield warm workers that have little to do, once for each attempt that they may be given."""
        for worker in self._at_work.values():
            has_room = self._is_warm and not worker.retired and len(worker.queue) <= self._depth // 2
            if has_room and not self._slots.others_are_hungry():
                yield from itertools.repeat(worker, self._depth - len(worker.queue))

    def _new_workers(self) -> Iterator[_Worker]:
        while (slot := self._slots.acquire()) is not None:
            yield from itertools.repeat(_Worker(0, slot, deque()), self._depth)

    @property
    def _depth(self) -> int:
        """The number of attempts that a worker is given at a time: one, unless it is warm and they are short."""
        if not self._is_warm or self._pace is None:
            return 1
        return max(1, min(AHEAD, int(AHEAD_S / max(self._pace, 1e-6))))

    def _exchange(self, slots: Sequence[Slot]) -> list[Claim]:
        """Keep what has ended and claim a trial for each slot, as far as trials wait."""
        wanted = self._wanted(slots) if slots else None
        closed, self._closed = self._closed, []
        if not closed and wanted is None:
            return []
        fenced, claimed = claims.exchange(self._store, [each.finished for each in closed], wanted)
        if wanted is not None:
            last = max((wanted.among.index(claim.trial) for claim in claimed), default=len(wanted.among) - 1)
            for _ in range(last + 1):
                self._waiting.popleft()  # the ones between are others' by now
        for each in closed:
            self._kept(each, is_fenced=each.finished.claim in fenced)
        return claimed

    def _wanted(self, slots: Sequence[Slot]) -> Wanted | None:
        arms = self._arms_in_time()
        if not self._waiting or arms != self._arms_waiting:  # an allocation's time runs out for more and more arms
            self._waiting = deque(claims.waiting_trials(self._store, self._study_id, arms=arms))
            self._arms_waiting = arms
        if not self._waiting:
            return None
        among = list(itertools.islice(self._waiting, len(slots) + claims.CHUNK))
        return Wanted(self.id, [(slot.name, self._noted_of(slot)) for slot in slots], among, self._code,
                      self._options.lease_s)  # fmt: skip

    def _noted_of(self, slot: Slot) -> dict[str, str]:
        threads = str(self._plan.study.execution.threads)
        return {**self._facts, **self._facts_of(slot), "slot": slot.name, "threads": threads}

    def _arms_in_time(self) -> Sequence[str] | None:
        """Return the arms whose trials can end before our allocation does; None where any may be claimed."""
        allocation = self._options.allocation
        if allocation is None:
            return self._options.arms
        if time.monotonic() >= self._next_lengths:
            self._lengths = longest_seconds(self._store, self._study_id)
            self._next_lengths = time.monotonic() + LENGTHS_S
        unknown = max(self._lengths.values(), default=0.0)
        arms = self._options.arms or [each.name for each in self._plan.arms]
        return [each for each in arms if allocation.has_room(self._lengths.get(each, unknown) + self._options.grace_s)]

    def _facts_of(self, slot: Slot) -> dict[str, str]:
        """Ask for a GPU's model and driver once; the query takes a second on some hosts."""
        if not slot.gpus:
            return {}
        if slot.name not in self._gpu_facts:
            several = {"gpus": str(len(slot.gpus))} if len(slot.gpus) > 1 else {}
            self._gpu_facts[slot.name] = gpu_facts(slot.gpus[0]) | several
        return self._gpu_facts[slot.name]

    def _prepared(self, claim: Claim, worker: _Worker) -> _Attempt:
        """Make the folder of an attempt."""
        study = self._plan.study
        folder = AttemptFolder(self._store.folder / claims.attempt_folder(claim.fingerprint, claim.number))
        work = Work(
            task=claim.task,
            study_folder=str(self._study_folder),
            settings=json.loads(claim.settings_json),
            seed=claim.seed,
            fingerprint=claim.fingerprint,
            device="cuda" if study.resources.gpus else "cpu",
            dtype=study.execution.dtype,
            memory_format=study.execution.memory_format,
            threads=study.execution.threads,
            metrics=tuple(study.metrics),
            earlier=tuple(str(self._store.path_of(earlier)) for earlier in claim.earlier),
            locks=(str(folder.path.parent / "lock"), *worker.slot.occupied),
        )
        folder.create(work)
        self._taken += 1
        return _Attempt(claim, folder, worker.number)

    def _spawn(self, worker: _Worker) -> None:
        """Start a worker's process on its first attempt, and give it the others."""
        environment = dict(worker.slot.environment)
        if self._options.data_dir:
            environment["ABLATE_DATA"] = str(self._options.data_dir.resolve())
        first, *others = worker.queue
        worker.number = self._workers.spawn(first.folder.path, environment, warm=self._is_warm)
        worker.ended = 0
        for attempt in worker.queue:
            attempt.worker = worker.number
        if others:
            self._workers.go_on(worker.number, [attempt.folder.path for attempt in others])
        self._at_work[worker.number] = worker
        self._begin(first, worker.slot)

    def _begin(self, attempt: _Attempt, slot: Slot) -> None:
        attempt.started = attempt.heard = time.monotonic()
        attempt.oom_kills, attempt.meter = self._kills(), self._meter(slot)
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

    def _kills(self) -> int:
        """Return how many processes the kernel has killed for want of memory, as of a moment ago: to ask takes time."""
        asked, _ = self._seen_kills
        if not asked or time.monotonic() > asked + ELSEWHERE_S:
            self._seen_kills = time.monotonic(), oom_kills()
        return self._seen_kills[1]

    def _running(self) -> list[_Attempt]:
        """Return the attempts that workers are at."""
        return [worker.queue[0] for worker in self._at_work.values() if worker.queue]

    def _listen(self) -> None:
        """Read what the workers recorded, and put it into the store about twice a second."""
        for attempt in self._running():
            records, attempt.offset = attempt.folder.records(attempt.offset)
            for record in records:
                attempt.heard = time.monotonic()
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

    def _keep(self, attempt: _Attempt, record: Mapping[str, Any]) -> None:
        attempt.unsaved.append(record)
        value = record["values"].get(self._plan.study.primary)
        if value is not None:
            attempt.values[record["epoch"]] = float(value)

    def _prune(self, attempt: _Attempt, record: Mapping[str, Any]) -> None:
        """End a candidate that is behind the others, if the study has it so."""
        budget = self._plan.study.budget
        if budget is None or not budget.prune or attempt.ended_by or record["epoch"] not in attempt.values:
            return
        if self._pruner is None:
            self._pruner = Pruner(self._plan, self._store)
        is_last = record["epoch"] == record.get("epochs")  # it has ended by itself, and knows its value
        if not is_last and self._pruner.is_behind(attempt.claim.fingerprint, attempt.values):
            self._end(attempt, "pruned")

    def _flush(self) -> None:
        batch = [(attempt.claim, attempt.unsaved) for attempt in self._running() if attempt.unsaved]
        if not batch:
            return
        fenced = claims.add_measurements(self._store, batch)
        for attempt in self._running():
            attempt.unsaved = []
            if attempt.claim in fenced:
                self._fence(attempt)

    def _watch_limits(self) -> None:
        limits = self._plan.study.resources
        now = time.monotonic()
        for attempt in self._running():
            if attempt.kill_at is not None and now >= attempt.kill_at:
                self._workers.signal(attempt.worker, signal.SIGKILL)
            elif attempt.ask_at is not None and now >= attempt.ask_at:
                self._workers.signal(attempt.worker, signal.SIGTERM)
                attempt.ask_at = None
            elif attempt.ended_by:
                continue
            elif limits.timeout and now - attempt.started > limits.timeout:
                self._end(attempt, "timeout")
            elif limits.stall_timeout and now - attempt.heard > limits.stall_timeout:
                self._end(attempt, "stalled")

    def _end(self, attempt: _Attempt, outcome: str) -> None:
        attempt.ended_by = outcome
        attempt.ask_at = time.monotonic()
        if outcome in _STUCK:
            if self._plan.study.task.command is not None:  # whose threads are not the worker's
                attempt.folder.note_in_log(_STUCK[outcome])
            else:
                attempt.folder.note_in_log(f"{_STUCK[outcome]}; this is where its threads are:")
                self._workers.signal(attempt.worker, STACKS)
                attempt.ask_at += STACKS_S
        # what is pruned is not gone on with: it needs no time for a checkpoint
        grace = min(PRUNE_GRACE_S, self._options.grace_s) if outcome == "pruned" else self._options.grace_s
        attempt.kill_at = attempt.ask_at + grace

    def _fence(self, attempt: _Attempt) -> None:
        attempt.fenced = True
        attempt.ended_by = "fenced"
        self._workers.signal(attempt.worker, signal.SIGKILL)

    # --- the end of an attempt

    def _hear(self, end: Exit | Done) -> None:
        """Take in that a worker has ended an attempt, or itself."""
        worker = self._at_work.get(end.worker)
        if worker is None:
            return
        if isinstance(end, Done):
            self._close(worker, Exit(end.worker, None, None))
            if worker.queue:
                self._begin(worker.queue[0], worker.slot)
            return
        del self._at_work[end.worker]
        # of an attempt that it did not come to, a warm worker's end says nothing
        if worker.queue and (worker.ended == 0 or worker.queue[0].folder.log_file.exists()):
            self._close(worker, end)
        if not worker.queue:
            self._slots.release(worker.slot)
        elif self._signals or self._fault:
            self._slots.release(worker.slot)
            for attempt in worker.queue:
                claim = attempt.claim
                kept = Ending("interrupted", "waiting", errors=claim.errors, idle_deaths=claim.idle_deaths)
                self._closed.append(_Closed(attempt, Finished(claim, kept)))
        else:
            self._spawn(worker)

    def _close(self, worker: _Worker, end: Exit) -> None:
        """Read how a worker's attempt has ended; it is kept with what else has."""
        attempt = worker.queue.popleft()
        worker.ended += 1
        attempt.folder.cap_log()
        while (found := attempt.folder.records(attempt.offset))[1] != attempt.offset:
            for record in found[0]:
                self._keep(attempt, record)
            attempt.offset = found[1]
        result = last_word(attempt.folder, end)
        ending = self._ending(attempt, worker.slot, end, result)
        metrics = result.metrics if result else {}
        ending, scores = self._scored(attempt, ending, metrics)
        ending = replace(ending, facts={**ending.facts, **energy_facts(attempt.meter, self._meter(worker.slot))})
        if result is not None:
            self._pace = result.seconds if self._pace is None else (1 - PACE) * self._pace + PACE * result.seconds
            if result.exit_code == EXIT_ENVIRONMENT and ending.outcome == "error" and not attempt.fenced:
                self._fault = Fault(result.error, hint=result.hint)
        finished = Finished(attempt.claim, ending, metrics, tuple(attempt.unsaved), scores)
        self._closed.append(_Closed(attempt, finished))

    def _kept(self, closed: _Closed, *, is_fenced: bool) -> None:
        """Say what has become of an attempt, once that is in the store."""
        attempt, ending = closed.attempt, closed.finished.ending
        if is_fenced or attempt.fenced:
            claims.fence(self._store, attempt.claim)
            ending = replace(ending, outcome="fenced", state="waiting")
        elif ending.state == "waiting":
            self._waiting.appendleft(attempt.claim.trial)
        if not self._at_work:
            self._next_look = 0.0  # what others do, and what the results call for, is asked at once
        self._report(attempt, ending, closed.finished.metrics)
        self._has_news = self._has_news or ending.state in ("done", "failed")
        if ending.outcome == "ok":
            self._warn_of_no_pruning(attempt)
            self._warn_of_no_change(attempt.claim.fingerprint)

    def _ending(self, attempt: _Attempt, slot: Slot, end: Exit, result: Result | None) -> Ending:
        claim = attempt.claim
        if result is None:
            # a stop request may go to every process of a job step, and reach a worker before us
            ended_by = attempt.ended_by or ("stop" if self._signals else "")
            outcome = _BY_US.get(ended_by, "killed")
            ending = Ending(outcome, "", exit_code=end.exit_code, signal=end.signal, seconds=_since(attempt.started))
            if outcome == "killed" and end.signal is None:
                # it left without a word and without a signal: os._exit in the task
                ending = replace(ending, outcome="error", error=f"ended with exit code {end.exit_code} and no result")
            elif outcome == "killed" and end.signal == signal.SIGKILL and self._was_for_memory(attempt):
                ending = replace(ending, outcome="oom", error="killed by the kernel, which had no memory left")
        else:
            outcome = (
                _BY_US.get(attempt.ended_by, result.outcome) if result.outcome == "interrupted" else result.outcome
            )
            resumed_from = int(result.resumed_from) if result.resumed_from else None
            ending = Ending(
                outcome, "", error=result.error or None, exit_code=end.exit_code, signal=end.signal,
                seconds=result.seconds, resumed_from=resumed_from, facts=result.facts,
            )  # fmt: skip
        if result is not None and result.exit_code == EXIT_ENVIRONMENT:
            # not the trial's fault: it waits until the data or the machine is there
            return replace(ending, state="waiting", errors=claim.errors, idle_deaths=claim.idle_deaths)
        others = self._others_on(slot) if ending.outcome == "oom" else ""
        if others:
            ending = replace(ending, error=f"{ending.error}; {others}")
        return decide(
            ending,
            shared=bool(others),
            retries=self._plan.study.resources.retries,
            errors=claim.errors,
            idle_deaths=claim.idle_deaths,
            progressed=(attempt.folder.checkpoints / "manifest.json").exists(),
        )

    def _others_on(self, slot: Slot) -> str:
        """Ask what other programs than ablate hold of a slot's GPUs: no two of our workers share one."""
        return next((found for gpu in slot.gpus if (found := others_on_gpu(gpu))), "")

    def _meter(self, slot: Slot) -> Meter | None:
        """Return what a slot's GPUs have used so far, where all of them count."""
        return total([read_meter(gpu) for gpu in slot.gpus])

    def _was_for_memory(self, attempt: _Attempt) -> bool:
        """Tell whether the kernel's count of kills for want of memory accounts for this death. Each counts once."""
        known = max(attempt.oom_kills, self._oom_kills)
        if oom_kills() <= known:
            return False
        self._oom_kills = known + 1
        return True

    def _scored(
        self, attempt: _Attempt, ending: Ending, metrics: Mapping[str, float]
    ) -> tuple[Ending, KeptScores | None]:
        """Return the ending with what is to be noted of the scores per example, and those of an ``ok`` attempt."""
        primary = next(iter(self._plan.study.metrics))
        if ending.outcome != "ok" or primary not in metrics or not attempt.folder.scores_file.exists():
            return ending, None
        from ablate.run.scores import kept_scores  # numpy, which nothing else here needs

        kept, note = kept_scores(attempt.folder, primary, metrics[primary])
        return (replace(ending, facts={**ending.facts, "scores": note}) if note else ending), kept

    def _report(self, attempt: _Attempt, ending: Ending, metrics: Mapping[str, float]) -> None:
        trial, seconds = attempt.claim.trial, ending.seconds or 0.0
        why = printable(ending.reason or ending.error or "")
        self._progress.ended(
            trial,
            ending.state,
            ending.outcome,
            metrics=metrics,
            seconds=seconds,
            why=why,
            folder=attempt.folder,
        )

    def _warn_of_no_pruning(self, attempt: _Attempt) -> None:
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
        self._ask_again()
        return True

    # --- other runners

    def _others_are_at_it(self) -> bool:
        """Tell whether other runners hold trials of this plan. We wait for them, and take over where they die."""
        now = time.monotonic()
        if now < self._next_look:
            return True
        self._next_look = now + ELSEWHERE_S
        self._recover()
        mine = self._mine(trials_of(self._store, self._study_id))
        self._progress.refresh_states({each.trial: (each.state, each.outcome) for each in mine})
        in_time = self._arms_in_time()
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
        held = claims.held_trials(self._store)
        ours = [*(each for worker in self._at_work.values() for each in worker.queue)]
        ours += [each.attempt for each in self._closed]
        at_work = {(attempt.claim.trial, attempt.claim.number) for attempt in ours}
        for each in held:
            if (
                each.owner == self.id and (each.trial, each.claim) not in at_work
            ):  # nobody began: the trial is as it was
                self._take_back(each, Ending("lost", "waiting", errors=each.errors, idle_deaths=each.idle_deaths))
        for each in self._owners.gone([each for each in held if each.owner != self.id]):
            folder = AttemptFolder(self._store.path_of(each.folder))
            ending = decide(
                Ending("lost", ""),
                retries=0,
                errors=each.errors,
                idle_deaths=each.idle_deaths,
                progressed=(folder.checkpoints / "manifest.json").exists(),
            )
            self._take_back(each, ending)

    def _take_back(self, held: Held, ending: Ending) -> None:
        if claims.take_back(self._store, held, ending):
            self._ask_again()

    def _ask_again(self) -> None:
        """There are trials that wait, and of which we may not know."""
        self._next_claim = 0.0
        self._waiting.clear()

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
        for worker in self._at_work.values():
            self._workers.signal(worker.number, signal.SIGKILL)
            worker.slot.release()
        self._store.retry_deadline_s = PARTING_S
        with contextlib.suppress(StoreError):
            for held in claims.held_trials(self._store):
                if held.owner == self.id:
                    # not the trial's fault, so none of its deaths
                    kept = Ending("interrupted", "waiting", errors=held.errors, idle_deaths=held.idle_deaths)
                    claims.take_back(self._store, held, kept)
            claims.end_runner(self._store, self.id)

    def _stop(self) -> None:
        """Let the workers write a checkpoint and end; at a Ctrl-C after the first signal, or after the grace, end them.

        Only a person's impatience counts: a scheduler repeats its warnings, and means the same by them.
        """
        if self._at_work:
            self._progress.say("stopping: the running trials are asked to end; a second Ctrl-C ends them at once")
        for worker in self._at_work.values():
            if worker.queue:
                self._end(worker.queue[0], "stop")
            else:
                self._workers.retire(worker.number)
        while self._at_work:
            if signal.SIGINT in self._signals[1:]:
                for attempt in self._running():
                    attempt.kill_at = 0.0
            self._watch_limits()
            for end in self._workers.wait(POLL_S):
                self._hear(end)
            self._exchange([])
        self._recover()


# how an attempt is called that we ended ourselves, by why we did
_STUCK = {"timeout": "the attempt ran into its timeout", "stalled": "nothing was recorded within the stall timeout"}
_BY_US = {"timeout": "timeout", "stalled": "stalled", "pruned": "pruned", "stop": "interrupted"}


def _growth(new: Sequence[Replicate]) -> str:
    """Say what the results have called for."""
    trials = len({each.trial.fingerprint for each in new})
    arms = list(dict.fromkeys(each.arm for each in new))
    some = ", ".join(arms[:4]) + (f" and {len(arms) - 4} more" if len(arms) > 4 else "")
    roles = {each.role for each in new}
    what = {"confirm": "on fresh seeds", "tune": "to tune"}.get("".join(roles), "that the results call for")
    return f"{trials} more trial{'' if trials == 1 else 's'} {what}: {some}"


def _since(started: float) -> float:
    return time.monotonic() - started
