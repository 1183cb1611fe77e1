"""Slots: the places where attempts run, one per GPU or per group of CPU cores, shared fairly with other runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ablate.errors import EnvironmentFault
from ablate.run.locks import FileLock, host_locks
from ablate.study.schema import Resources

YIELD_S = 0.25  # several times as long as a hungry runner takes to look again


@dataclass(frozen=True)
class Gpu:
    uuid: str
    index: str
    name: str


@dataclass
class Slot:
    """A place that is ours until released. ``occupied`` are lock files that the worker itself holds while it lives."""

    name: str
    environment: dict[str, str]
    occupied: tuple[str, ...] = ()
    locks: list[FileLock] = field(default_factory=list, repr=False)

    def release(self) -> None:
        for lock in self.locks:
            lock.release()
        self.locks.clear()


class SlotPool:
    """Hands out slots, each held by a host-wide lock for one attempt, so that runs on one host take turns.

    A run that holds no slot and finds none free is hungry, and shows it by a lock; one that gives a slot back while
    another is hungry does not take it again at once. Without that, the first run would keep all it has to its end.
    """

    def __init__(self, resources: Resources, *, threads: int, jobs: int | None = None) -> None:
        self._folder = host_locks()
        self._threads = threads
        self._used: set[str] = set()
        self._hunger: FileLock | None = None
        self._yield_until = 0.0
        self._hunger_file = self._folder / f"hungry-{'gpu' if resources.gpus else 'cpu'}.lock"
        if resources.gpus:
            self._units = [(gpu.uuid, {"CUDA_VISIBLE_DEVICES": gpu.uuid}) for gpu in usable_gpus()]
            self.size = min(len(self._units), jobs or len(self._units))
            self._group = 1
        else:
            self._units = [(f"cpu{core}", {"CUDA_VISIBLE_DEVICES": ""}) for core in usable_cores()]
            self._group = min(resources.cpus or threads, len(self._units))
            self.size = jobs or max(1, len(self._units) // self._group)
        self._on_gpu = bool(resources.gpus)

    def acquire(self) -> Slot | None:
        """Return a free slot, or None where all are taken, by us or by other runs, or it is another run's turn."""
        if len(self._used) >= self.size or time.monotonic() < self._yield_until:
            return None
        slot = self._take()
        if slot is not None:
            self.rest()
        elif not self._used and self._hunger is None:
            self._hunger = FileLock.try_take(self._hunger_file, shared=True)
        return slot

    def release(self, slot: Slot) -> None:
        self._used.discard(slot.name)
        slot.release()
        if self.others_are_hungry():
            self._yield_until = time.monotonic() + YIELD_S

    @property
    def is_hungry(self) -> bool:
        """Tell whether we hold no slot because other runs hold all there are."""
        return self._hunger is not None

    def rest(self) -> None:
        """Want no slot for now: other runs need not leave us one."""
        if self._hunger is not None:
            self._hunger.release()
            self._hunger = None

    def others_are_hungry(self) -> bool:
        """Tell whether another run holds no slot and waits for one."""
        alone = FileLock.try_take(self._hunger_file)
        if alone is not None:
            alone.release()
        return alone is None

    def _take(self) -> Slot | None:
        taken: list[tuple[str, dict[str, str], FileLock]] = []
        for unit, environment in self._units:
            lock = None if unit in self._names() else FileLock.try_take(self._folder / f"{unit}.lock")
            if lock is not None:
                taken.append((unit, environment, lock))
            if len(taken) == self._group:
                return self._slot(taken)
        for _, _, lock in taken:
            lock.release()
        if not self._on_gpu and self._all_ours():
            return self._slot([])  # `--jobs` asked for more slots than there are cores
        return None

    def _names(self) -> set[str]:
        return {unit for name in self._used for unit in name.split("+")}

    def _all_ours(self) -> bool:
        """Tell whether our own attempts hold all the slots that the cores give: the rest is oversubscription."""
        held = sum(not name.startswith("extra") for name in self._used)
        return held >= max(1, len(self._units) // self._group)

    def _slot(self, taken: Iterable[tuple[str, dict[str, str], FileLock]]) -> Slot:
        taken = list(taken)
        extras = (f"extra{number}" for number in itertools.count(len(self._units)))
        name = "+".join(unit for unit, _, _ in taken) or next(name for name in extras if name not in self._used)
        environment = dict(taken[0][1]) if taken else {"CUDA_VISIBLE_DEVICES": ""}
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
            environment[variable] = str(self._threads)
        occupied = (str(self._folder / f"{name}.worker"),) if self._on_gpu else ()
        self._used.add(name)
        return Slot(name, environment, occupied, [lock for _, _, lock in taken])


def usable_cores() -> list[int]:
    """Return the cores that this process may use, less what a container's quota takes away."""
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = cores[: max(1, int(quota) // int(period))]
    return cores


def usable_gpus() -> list[Gpu]:
    """Return the GPUs that an inherited CUDA_VISIBLE_DEVICES leaves. Raises EnvironmentFault where there are none."""
    gpus = listed_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [entry.strip() for entry in visible.split(",") if entry.strip()]
        gpus = [gpu for entry in wanted for gpu in gpus if entry == gpu.index or gpu.uuid.startswith(entry)]
    if not gpus:
        why = "CUDA_VISIBLE_DEVICES leaves none" if visible is not None else "nvidia-smi finds none"
        hint = "run a profile for the CPU (--profile …), or add --set resources.gpus=0"
        raise EnvironmentFault(f"the study asks for a GPU and {why}", hint=hint)
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
