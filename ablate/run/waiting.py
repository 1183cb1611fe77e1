"""The trials of a study that wait: which ones, in plan order, and how a runner claims them."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from ablate.plan.trials import Plan
from ablate.run.options import Options
from ablate.run.provenance import git_facts, gpu_facts, machine_facts
from ablate.run.shorter import Shorter
from ablate.run.slots import Slot
from ablate.store import claims
from ablate.store.claims import Claim, Finished, Wanted
from ablate.store.facts import longest_seconds
from ablate.store.store import Store

LENGTHS_S = 30.0  # how long what is known of a trial's length may be old

Group = Sequence[int]  # trials that are trained in one model, by id: one, where none are fused


class Waiting:
    """The trials that waited when we last asked, and the claims on them by one runner.

    ``code`` is the hash of the task's source, which is noted with each attempt.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        study_id: int,
        options: Options,
        *,
        runner: str,
        code: str,
        study_folder: Path,
    ) -> None:
        self._store = store
        self._plan = plan
        self._study_id = study_id
        self._options = options
        self._runner = runner
        self._code = code
        self._fuse = plan.study.execution.members
        self._trials: deque[Group] = deque()
        self._arms: Sequence[str] | None = None  # that they are of
        self.shorter = Shorter(store, plan, study_id, code=code)
        self._next_lengths = 0.0
        self._lengths: dict[str, float] = {}  # of a trial of each arm, in seconds, as far as that is known
        self._facts = machine_facts() | git_facts(study_folder, store.folder / "diffs")
        self._gpu_facts: dict[tuple[str, ...], dict[str, str]] = {}

    def __bool__(self) -> bool:
        """True where there are some that we know of."""
        return bool(self._trials)

    def forget(self) -> None:
        """Ask the store the next time: there may be others."""
        self._trials.clear()

    def grow(self, plan: Plan) -> None:
        """Take in that the plan has grown."""
        self._plan = plan
        self.shorter = Shorter(self._store, plan, self._study_id, code=self._code)

    def put_first(self, trial: int) -> None:
        """Take in that a trial waits again, before any other."""
        if self._fuse > 1:
            self._trials.clear()  # those that may be trained with it have to be found
        else:
            self._trials.appendleft([trial])

    def exchange(
        self, finished: Sequence[Finished], slots: Sequence[Slot], *, most: int | None = None
    ) -> tuple[list[Claim], list[Sequence[Claim]]]:
        """Keep what has ended and claim for each slot what is trained in one model, as far as trials wait.

        All in one transaction, except that groups of several take one each; ``most`` bounds their trials. Returns the
        claims of those that were fenced, and the new ones.
        """
        if self._fuse > 1:
            return self._exchange_groups(finished, slots, most)
        wanted = self._wanted(slots) if slots else None
        if not finished and wanted is None:
            return [], []
        fenced, claimed = claims.exchange(self._store, finished, wanted)
        if wanted is not None:
            last = max((wanted.among.index(claim.trial) for claim in claimed), default=len(wanted.among) - 1)
            gone = set(wanted.among[: last + 1])  # the ones between are others' by now
            asked = [self._trials.popleft() for _ in wanted.among]
            self._trials.extendleft(each for each in reversed(asked) if each[0] not in gone)
        return fenced, [[claim] for claim in claimed]

    def _exchange_groups(
        self, finished: Sequence[Finished], slots: Sequence[Slot], most: int | None
    ) -> tuple[list[Claim], list[Sequence[Claim]]]:
        fenced = claims.exchange(self._store, finished, None)[0] if finished else []
        claimed: list[Sequence[Claim]] = []
        for slot in slots:
            left = None if most is None else most - sum(map(len, claimed))
            group: list[Claim] = []
            while not group and left != 0 and self._ask():
                among = list(self._trials.popleft())[:left]
                noted = [(slot.name, self.noted_of(slot))] * len(among)
                wanted = Wanted(self._runner, noted, among, self._code, self._options.lease_s)
                _, group = claims.exchange(self._store, (), wanted)  # none, where others have taken them
            if group:
                claimed.append(group)
        return fenced, claimed

    def arms_in_time(self) -> Sequence[str] | None:
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

    def _ask(self) -> bool:
        """Ask the store, where we know of no trials that wait. True where there are some."""
        arms = self.arms_in_time()
        if not self._trials or arms != self._arms:  # the time of an allocation runs out for more and more arms
            self._trials = deque(claims.waiting_trials(self._store, self._study_id, arms=arms, fuse=self._fuse))
            self._arms = arms
        return bool(self._trials)

    def _wanted(self, slots: Sequence[Slot]) -> Wanted | None:
        if not self._ask():
            return None
        waiting = [trial for (trial,) in itertools.islice(self._trials, len(slots) + claims.CHUNK)]
        among = self.shorter.in_order(waiting)
        noted = [(slot.name, self.noted_of(slot)) for slot in slots]
        return Wanted(self._runner, noted, among, self._code, self._options.lease_s)

    def noted_of(self, slot: Slot) -> dict[str, str]:
        """Return what is noted with each attempt in a slot: versions, machine, code."""
        threads = str(self._plan.study.execution.threads)
        return {**self._facts, **self._facts_of(slot), "slot": slot.name, "threads": threads}

    def _facts_of(self, slot: Slot) -> dict[str, str]:
        """Ask for a GPU's model and driver once; the query takes a second on some hosts."""
        if not slot.gpus:
            return {}
        if slot.gpus not in self._gpu_facts:
            several = {"gpus": str(len(slot.gpus))} if len(slot.gpus) > 1 else {}
            self._gpu_facts[slot.gpus] = gpu_facts(slot.gpus[0]) | several
        return self._gpu_facts[slot.gpus]
