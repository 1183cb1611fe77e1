"""Slots: the places where attempts run, each of some GPUs, a part of one, or some CPU cores, shared fairly by runs."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ablate.errors import EnvironmentFault
from ablate.run.locks import FileLock, host_locks, is_free
from ablate.study.schema import Resources

YIELD_S = 0.25  # several times as long as a hungry runner takes to look again
ALLOTTED = "ABLATE_CORES"  # how many cores an agent of ours was given, by a scheduler that does not hold it to them


@dataclass(frozen=True)
class Gpu:
    uuid: str
    index: str
    name: str


@dataclass
class Slot:
    """A place that is ours until released, with the UUIDs of its GPUs.

    ``occupied`` are lock files that the worker itself holds while it lives; ``shared`` are held by the workers in all
    parts of its GPU, where it is one of these.
    """

    name: str
    environment: dict[str, str]
    gpus: tuple[str, ...] = ()
    occupied: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    locks: list[FileLock] = field(default_factory=list, repr=False)

    @property
    def own_gpus(self) -> tuple[str, ...]:
        """The GPUs that no other slot has a part of."""
        return () if self.shared else self.gpus

    def release(self) -> None:
        for lock in self.locks:
            lock.release()
        self.locks.clear()


class SlotPool:
    """Hands out slots, each held by a host-wide lock for one attempt, so that runs on one host take turns.

    A run that holds no slot and finds none free is hungry, and shows it by a lock; one that gives a slot back while
    another is hungry does not take it again at once. Without that, the first run would keep all it has to its end.

    A GPU that several trials share has numbered parts, which runs share as well: all who have a part hold the GPU's
    own lock together, and who wants it whole holds that alone. A hungry run that wants one whole wishes for one, and no
    further part of that is taken until all have been given back: one by one, they would never be free together.
    """

    def __init__(self, resources: Resources, *, threads: int, jobs: int | None = None) -> None:
        self._folder = host_locks()
        self._threads = threads
        self._used: dict[str, Slot] = {}
        self._hunger: FileLock | None = None
        self._wish: FileLock | None = None
        self._yield_until = 0.0
        self._hunger_file = self._folder / f"hungry-{'gpu' if resources.gpus else 'cpu'}.lock"
        if resources.gpus:
            self._units = [gpu.uuid for gpu in usable_gpus(resources.gpus)]
            self._group = resources.gpus
            self._parts = resources.sharers
            number = len(self._units) // self._group * self._parts
            self.size = min(number, jobs or number)
        else:
            self._units = [f"cpu{core}" for core in usable_cores()]
            self._group = min(resources.cpus or threads, len(self._units))
            self._parts = 1
            self.size = jobs or max(1, allotted_cores() // self._group)
        self._on_gpu = bool(resources.gpus)
        self._most = dict.fromkeys(self._units, self._parts)  # slots of ours in one unit

    def acquire(self) -> Slot | None:
        """Return a free slot, or None where all are taken, by us or by other runs, or it is another run's turn."""
        if len(self._used) >= self.size or time.monotonic() < self._yield_until:
            return None
        slot = self._take()
        if slot is not None:
            self.rest()
        elif not self._used:
            self._hunger = self._hunger or FileLock.try_take(self._hunger_file, shared=True)
            self._wish = self._wish or self._wished()
        return slot

    def release(self, slot: Slot) -> None:
        self._used.pop(slot.name, None)
        slot.release()
        if self.others_are_hungry():
            self._yield_until = time.monotonic() + YIELD_S

    @property
    def is_hungry(self) -> bool:
        """Tell whether we hold no slot because other runs hold all there are."""
        return self._hunger is not None

    def rest(self) -> None:
        """Want no slot for now: other runs need not leave us one."""
        for lock in (self._hunger, self._wish):
            if lock is not None:
                lock.release()
        self._hunger = self._wish = None

    def others_are_hungry(self) -> bool:
        """Tell whether another run holds no slot and waits for one."""
        alone = FileLock.try_take(self._hunger_file)
        if alone is not None:
            alone.release()
        return alone is None

    # --- GPUs that several trials share

    def back_off(self, gpu: str, ours: int) -> int | None:
        """Take fewer slots of a GPU than so many, as it had no memory for them; return how many, if that is news."""
        before = self._most[gpu]
        self._most[gpu] = max(1, min(before, ours - 1))
        return self._most[gpu] if self._most[gpu] < before else None

    def may_stay(self, slot: Slot) -> bool:
        """Tell whether a slot may be used again: since it was taken, its GPU may have come to take fewer."""
        return all(self._ours_on(gpu) <= self._most[gpu] for gpu in slot.gpus if slot.shared)

    def others_on(self, gpu: str) -> int:
        """Return how many parts of a GPU other runs hold."""
        parts = self._folder.glob(f"{glob.escape(gpu)}#*.lock")
        return sum(part.stem not in self._used and not is_free(part) for part in parts)

    def _take_one(self) -> Slot | None:
        """Take a part of the GPU on which we have the fewest; all of one that bears no other trial beside ours."""
        ours = {gpu: self._ours_on(gpu) for gpu in self._units}
        for gpu in sorted((gpu for gpu in self._units if ours[gpu] < self._most[gpu]), key=ours.__getitem__):
            slot = self._take_whole(gpu) if self._most[gpu] == 1 else self._take_part(gpu)
            if slot is not None:
                return slot
        return None

    def _ours_on(self, gpu: str) -> int:
        return sum(gpu in slot.gpus for slot in self._used.values())

    def _take_whole(self, gpu: str) -> Slot | None:
        lock = FileLock.try_take(self._folder / f"{gpu}.lock")
        return self._slot({gpu: lock}, (gpu,)) if lock is not None else None

    def _take_part(self, gpu: str) -> Slot | None:
        unused = FileLock.try_take(self._folder / f"{gpu}.lock")
        if unused is not None:
            unused.release()  # nobody has any of it, and who comes first has it
        elif self._is_wished(gpu):
            return None
        whole = FileLock.try_take(self._folder / f"{gpu}.lock", shared=True)
        if whole is None:
            return None
        for number in range(1, self._parts + 1):
            name = f"{gpu}#{number}"
            lock = None if name in self._used else FileLock.try_take(self._folder / f"{name}.lock")
            if lock is not None:
                return self._slot({name: lock}, (gpu,), whole=whole)
        whole.release()
        return None

    def _is_wished(self, gpu: str) -> bool:
        wish = self._folder / f"{gpu}.wish"
        return wish.exists() and not is_free(wish)

    def _wished(self) -> FileLock | None:
        """Wish for a GPU that other runs share, if we take only whole ones."""
        for gpu in self._units if self._on_gpu and self._group == 1 else ():
            lock = FileLock.try_take(self._folder / f"{gpu}.lock", shared=True) if self._most[gpu] == 1 else None
            if lock is not None:
                lock.release()
                return FileLock.try_take(self._folder / f"{gpu}.wish")
        return None

    # --- GPUs and cores that are one trial's

    def _take(self) -> Slot | None:
        if self._on_gpu and self._group == 1:
            return self._take_one()
        taken: dict[str, FileLock] = {}
        for unit in self._units:
            lock = None if unit in self._names() else FileLock.try_take(self._folder / f"{unit}.lock")
            if lock is not None:
                taken[unit] = lock
            if len(taken) == self._group:
                return self._slot(taken, tuple(taken) if self._on_gpu else ())
        for lock in taken.values():
            lock.release()
        if not self._on_gpu and self._all_ours():
            return self._slot({})  # `--jobs` asked for more slots than there are cores
        return None

    def _names(self) -> set[str]:
        return {unit for name in self._used for unit in name.split("+")}

    def _all_ours(self) -> bool:
        """Tell whether our own attempts hold all the slots that the cores give: the rest is oversubscription."""
        held = sum(not name.startswith("extra") for name in self._used)
        return held >= max(1, len(self._units) // self._group)

    def _slot(self, taken: Mapping[str, FileLock], gpus: Sequence[str] = (), *, whole: FileLock | None = None) -> Slot:
        """Return the slot of the units or the part that were ``taken``; ``whole`` is the lock of that part's GPU."""
        extras = (f"extra{number}" for number in itertools.count(len(self._units)))
        name = "+".join(taken) or next(name for name in extras if name not in self._used)
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
            environment[variable] = str(self._threads)
        occupied, shared = (
            tuple(str(self._folder / f"{name}.worker") for name in names)
            for names in (taken if gpus else (), gpus if whole else ())
        )
        locks = [*taken.values(), *([whole] if whole else [])]
        slot = self._used[name] = Slot(name, environment, tuple(gpus), occupied, shared, locks)
        return slot


def shortage(resources: Resources, *, threads: int) -> str:
    """Return why no trial that asks for so much can run here; empty where one can."""
    if resources.gpus:
        try:
            usable_gpus(resources.gpus)
        except EnvironmentFault as fault:
            return fault.faults[0].message
        return ""
    wanted, there = resources.cpus or threads, allotted_cores()
    return f"a trial asks for {wanted} CPU cores, and there are {there}" if wanted > there else ""


def allotted_cores() -> int:
    """Return how many of the usable cores are ours: a scheduler may have given us fewer, and not said which."""
    share = os.environ.get(ALLOTTED) or os.environ.get("SLURM_CPUS_PER_TASK", "")
    usable = len(usable_cores())
    return min(usable, int(share)) if share.isdecimal() and int(share) else usable


def usable_cores() -> list[int]:
    """Return the cores that this process may use, less what a container's quota takes away."""
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = cores[: max(1, int(quota) // int(period))]
    return cores


def usable_gpus(wanted: int = 1) -> list[Gpu]:
    """Return the GPUs that an inherited CUDA_VISIBLE_DEVICES leaves. Raises EnvironmentFault where they are too few."""
    gpus = listed_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [entry.strip() for entry in visible.split(",") if entry.strip()]
        gpus = [gpu for entry in named for gpu in gpus if entry == gpu.index or gpu.uuid.startswith(entry)]
    if not gpus:
        why = "CUDA_VISIBLE_DEVICES leaves none" if visible is not None else "nvidia-smi finds none"
        hint = "run a profile for the CPU (--profile …), or add --set resources.gpus=0"
        raise EnvironmentFault(f"the study asks for a GPU and {why}", hint=hint)
    if len(gpus) < wanted:
        hint = f"run it where there are {wanted}, or add --set resources.gpus={len(gpus)}"
        raise EnvironmentFault(f"a trial asks for {wanted} GPUs, and there are {len(gpus)}", hint=hint)
    return gpus


def listed_gpus() -> list[Gpu]:
    """Return the GPUs that nvidia-smi finds; none where there is no nvidia-smi, or it fails."""
    command = ["nvidia-smi", "--query-gpu=uuid,index,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(", ", 2) for line in done.stdout.splitlines() if line.count(", ") >= 2]
    return [Gpu(uuid, index, name) for uuid, index, name in rows] if done.returncode == 0 else []
