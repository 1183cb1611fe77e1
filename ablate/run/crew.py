"""The workers of a runner, each in its slot: they are started, given attempts, watched for limits, and ended."""

from __future__ import annotations

import itertools
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ablate.run.attempts import Attempt, Worker
from ablate.run.energy import read_meters
from ablate.run.memory import OomKills
from ablate.run.options import Options
from ablate.run.slots import Slot, SlotPool
from ablate.run.workers import Workers
from ablate.study.schema import Study
from ablate.train.folder import STACKS

PRUNE_GRACE_S = 1.0
STACKS_S = 0.5  # for a worker to print its stacks, before it is asked to end
AHEAD_S = 0.1  # of work that a warm worker is given at a time, so that many short attempts share a transaction
AHEAD = 64  # and the most attempts
LATELY_S = 10.0  # for who was on a GPU as well when memory was refused: we hear of it when the process has ended
PACE = 0.2  # weight of the last attempt in what the next ones should take

_STUCK = {"timeout": "the attempt ran into its timeout", "stalled": "nothing was recorded within the stall timeout"}


class Crew:
    """The workers at work and their attempts. ``begun`` is called with each attempt that a worker comes to."""

    def __init__(
        self, workers: Workers, study: Study, options: Options, *, begun: Callable[[Attempt, Slot], None]
    ) -> None:
        self.slots = SlotPool(study.resources, threads=study.execution.threads, jobs=options.jobs)
        self.kills = OomKills()
        self._workers = workers
        self._limits = study.resources
        self._is_command = study.task.command is not None
        self._is_warm = study.execution.isolation == "warm"
        self._is_fused = study.execution.members > 1
        self._data = {"ABLATE_DATA": str(options.data_dir.resolve())} if options.data_dir else {}
        self._grace_s = options.grace_s
        self._begun = begun
        self._at_work: dict[int, Worker] = {}
        self._crowds: dict[str, list[tuple[float, int]]] = {}  # by GPU: when one ended lately, and of how many of ours
        self._pace: float | None = None  # seconds of an attempt

    def __len__(self) -> int:
        return len(self._at_work)

    def find(self, number: int) -> Worker | None:
        return self._at_work.get(number)

    def running(self) -> list[Attempt]:
        """Return the attempts that workers are at."""
        return [attempt for worker in self._at_work.values() if worker.queue for attempt in worker.queue[0].group]

    def given(self) -> list[Attempt]:
        """Return all attempts that workers have been given."""
        return [attempt for worker in self._at_work.values() for first in worker.queue for attempt in first.group]

    # --- what workers are given

    def places(self, most: int | None) -> list[Worker]:
        """Return workers that lack attempts, once for each that they may be given; new ones have taken their slots."""
        return list(itertools.islice(itertools.chain(self._hungry(), self._new()), most))

    def _hungry(self) -> Iterator[Worker]:
        """Yield warm workers that have little to do, once for each attempt that they may be given."""
        for worker in self._at_work.values():
            has_room = self._is_warm and not worker.retired and len(worker.queue) <= self._depth // 2
            if has_room and not self.slots.others_are_hungry():
                yield from itertools.repeat(worker, self._depth - len(worker.queue))

    def _new(self) -> Iterator[Worker]:
        while (slot := self.slots.acquire()) is not None:
            yield from itertools.repeat(Worker(0, slot, deque()), self._depth)

    @property
    def _depth(self) -> int:
        """The number of attempts that a worker is given at a time: one, unless it is warm and they are short.

        Of those that are trained in one model, one group: it is as long as they are together.
        """
        if not self._is_warm or self._pace is None or self._is_fused:
            return 1
        return max(1, min(AHEAD, int(AHEAD_S / max(self._pace, 1e-6))))

    def took(self, seconds: float) -> None:
        """Take in how long an attempt was."""
        self._pace = seconds if self._pace is None else (1 - PACE) * self._pace + PACE * seconds

    def give(self, worker: Worker, attempts: Sequence[Attempt]) -> None:
        """Give attempts to a worker; one that is not started yet, and gets none, gives its slot back."""
        is_idle = not worker.queue
        worker.queue.extend(attempts)
        if not worker.number and attempts:
            self.start(worker)
        elif not worker.number:
            self.slots.release(worker.slot)
        elif attempts:
            self._workers.go_on(worker.number, [attempt.folder.path for attempt in attempts])
            if is_idle:
                self.go_on(worker)

    def start(self, worker: Worker) -> None:
        """Start a worker's process on its first attempt, and give it the others."""
        first, *others = worker.queue
        worker.number = self._workers.spawn(
            first.folder.path, {**worker.slot.environment, **self._data}, warm=self._is_warm
        )
        worker.ended, worker.began = 0, time.monotonic()
        for attempt in (attempt for leader in worker.queue for attempt in leader.group):
            attempt.worker = worker.number
        if others:
            self._workers.go_on(worker.number, [attempt.folder.path for attempt in others])
        self._at_work[worker.number] = worker
        self.go_on(worker)

    def go_on(self, worker: Worker) -> None:
        """Take in that a worker has come to its next attempt, if it has one."""
        for attempt in worker.queue[0].group if worker.queue else ():
            attempt.started = attempt.heard = time.monotonic()
            attempt.oom_kills, attempt.meter = self.kills.lately(), read_meters(worker.slot.own_gpus)
            self._begun(attempt, worker.slot)

    def retire_idle(self, *, trials_wait: bool = False) -> None:
        """Have warm workers end that there was nothing for; while trials wait, only to leave other runs their slots."""
        for worker in self._at_work.values():
            is_idle = self._is_warm and not worker.queue and not worker.retired
            if is_idle and (not trials_wait or self.slots.others_are_hungry()):
                self._workers.retire(worker.number)
                worker.retired = True

    def drop(self, worker: Worker) -> None:
        """Take in that a worker's process has ended; its slot is still ours."""
        del self._at_work[worker.number]
        if worker.slot.shared:
            [gpu] = worker.slot.gpus
            worker.ours, worker.others = self._ours_with(worker, gpu), self.slots.others_on(gpu)

    def _ours_with(self, worker: Worker, gpu: str) -> int:
        """Return how many workers of ours shared a GPU with one that has just ended, itself among them."""
        now = time.monotonic()
        ours = 1 + sum(gpu in each.slot.gpus for each in self._at_work.values())
        lately = [(left, before) for left, before in self._crowds.get(gpu, ()) if left > now - LATELY_S]
        self._crowds[gpu] = [*lately, (now, ours)]
        return max([ours, *(before for left, before in lately if left > worker.began)])

    # --- limits, and how workers are ended

    def watch_limits(self) -> None:
        now = time.monotonic()
        for attempt in self.running():
            if attempt.kill_at is not None and now >= attempt.kill_at:
                self._workers.signal(attempt.worker, signal.SIGKILL)
            elif attempt.ask_at is not None and now >= attempt.ask_at:
                self._workers.signal(attempt.worker, signal.SIGTERM)
                attempt.ask_at = None
            elif attempt.ended_by:
                continue
            elif self._limits.timeout and now - attempt.started > self._limits.timeout:
                self.end(attempt, "timeout")
            elif self._limits.stall_timeout and now - attempt.heard > self._limits.stall_timeout:
                self.end(attempt, "stalled")

    def end(self, attempt: Attempt, why: str) -> None:
        """Ask an attempt to end, with time for a checkpoint: ``timeout``, ``stalled``, ``pruned`` or ``stop``.

        Those that are trained in one model with it end as well, for the same reason.
        """
        for each in attempt.group:
            each.ended_by = why
        attempt.ask_at = time.monotonic()
        if why in _STUCK:
            if self._is_command:  # whose threads are not the worker's
                attempt.folder.note_in_log(_STUCK[why])
            else:
                attempt.folder.note_in_log(f"{_STUCK[why]}; this is where its threads are:")
                self._workers.signal(attempt.worker, STACKS)
                attempt.ask_at += STACKS_S
        # what is pruned is not gone on with: it needs no time for a checkpoint
        grace = min(PRUNE_GRACE_S, self._grace_s) if why == "pruned" else self._grace_s
        attempt.kill_at = attempt.ask_at + grace

    def fence(self, attempt: Attempt) -> None:
        """End an attempt at once whose trial was taken over. Those in one model with it wait for another turn."""
        for each in attempt.group:
            each.ended_by = each.ended_by or "stop"
        attempt.fenced = True
        attempt.ended_by = "fenced"
        self._workers.signal(attempt.worker, signal.SIGKILL)

    def heard(self, attempt: Attempt) -> None:
        """Take in that an attempt has recorded something: those that are trained with it are not stuck either."""
        for each in attempt.group:
            each.heard = time.monotonic()

    def stop(self) -> None:
        """Ask all workers to end. Called again, those that have meanwhile ended an attempt by themselves."""
        for attempt in self.running():
            if not attempt.ended_by:
                self.end(attempt, "stop")
        self.retire_idle()

    def lose_patience(self) -> None:
        """Let what was asked to end do so at once."""
        for attempt in self.running():
            attempt.kill_at = 0.0

    def abandon(self) -> None:
        """End all workers at once and give their slots back, whatever comes of it."""
        for worker in self._at_work.values():
            self._workers.signal(worker.number, signal.SIGKILL)
            worker.slot.release()
