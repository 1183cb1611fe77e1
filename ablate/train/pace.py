"""How long an iteration takes with one seed, with several in one model, and beside others: by the loops themselves."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Never

import torch

from ablate.train.classification import train_classifier
from ablate.train.context import Context, Diverged, Interrupted
from ablate.train.folder import AttemptFolder
from ablate.train.fused import Unfusable
from ablate.train.memory import memory_of
from ablate.train.together import Asked, check_together, train_together

TURNS = 3
FEWEST, MOST = 4, 400  # iterations of a candidate, of which the first does not count
NO_BETTER = 1.5  # of the time of a seed in a smaller group: beyond that, larger ones are not tried
UNFUSABLE = "unfusable"


class Stopwatch:
    """Asked at each iteration whether to stop, and so knows when each began. Stops after ``seconds``, or MOST."""

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._times: list[float] = []

    def __call__(self) -> bool:
        self._times.append(self._clock())
        count, took = len(self._times), self._times[-1] - self._times[0]
        return count > MOST or (count > FEWEST and took > self._seconds)

    def pace(self) -> float:
        """Return the seconds of an iteration, once the last one has ended."""
        times = [*self._times, self._clock()]
        took = [after - before for before, after in itertools.pairwise(times)]
        return statistics.median(took[1:] or took)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return what time is told by, in seconds.

    A thread that trains alone on a CPU is told by its own time: what it would take if nothing else ran beside it.
    """
    if device.type == "cpu":
        return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def measure(asked: Asked, candidates: Sequence[int], seconds: float) -> Never:
    """Note as facts of its context how long an iteration takes with each number of seeds; then raise Interrupted.

    Or why its seeds can't be trained in one model, which is all that is asked with 0 ``seconds``. These are for all
    candidates; one that would take longer than is left is not tried, nor is one that is larger than one which did not
    help.
    """
    try:
        check_together([asked], 2)
    except Unfusable as error:
        asked.context.fact(UNFUSABLE, error.faults[0].message)
        raise Interrupted from None
    except Interrupted:
        if not seconds:
            raise
    clock = clock_of(asked.context.device)
    for fuse, pace in _paces(asked, candidates, clock, clock() + seconds).items():
        asked.context.fact(str(fuse), repr(pace))
    raise Interrupted


def _paces(asked: Asked, candidates: Sequence[int], clock: Callable[[], float], deadline: float) -> dict[int, float]:
    """Return the seconds of an iteration with each number of seeds, measured in turns, as other work comes and goes.

    The least of the turns: nothing makes an iteration quicker than it is.
    """
    paces: dict[int, float] = {}
    slice_s = (deadline - clock()) / TURNS / len(candidates)
    for turn in range(TURNS):
        before = 0
        for fuse in candidates if not turn else tuple(paces):
            expected = paces.get(fuse) or (paces[before] / before * fuse if before else 0.0)
            if FEWEST * expected > deadline - clock():
                return paces
            pace = _pace(asked, fuse, Stopwatch(clock, slice_s))
            paces[fuse] = min(pace, paces.get(fuse, pace))
            if before and paces[fuse] / fuse > NO_BETTER * paces[before] / before:
                break
            before = fuse
    return paces


def _pace(asked: Asked, fuse: int, watch: Stopwatch) -> float:
    _train(asked, fuse, watch)
    return watch.pace()


def _train(asked: Asked, fuse: int, watch: Callable[[], bool]) -> None:
    """Train, with so many seeds in one model, until ``watch`` says to stop or the training has ended."""
    group = [replace(asked, context=_context(asked.context, fuse, place, watch)) for place in range(fuse)]
    with contextlib.suppress(Interrupted, Diverged):
        if fuse == 1:
            train_classifier(asked.settings, group[0].context, asked.build_model)
        else:
            train_together(group, fuse)


class Beside:
    """Asked at each iteration whether to stop, counts those from when all ``peers`` have begun until ``seconds`` later.

    Each shows by a first record that it has: what is shared is then built, and caches are warm. By the clock on the
    wall, since it is waiting for others that is measured, in turns of which the middle one counts, and with the device
    waited for at their ends alone, as its queue may be long.
    """

    def __init__(self, context: Context, peers: Sequence[str], seconds: float) -> None:
        self._context = context
        self._missing = [AttemptFolder(peer).metrics_file for peer in peers]
        self._seconds = seconds
        self._count = 0
        self._since: float | None = None
        self._paces: list[float] = []  # seconds of an iteration, by turn

    def __call__(self) -> bool:
        self._count += 1
        if self._since is None:
            if self._count == FEWEST:
                self._context.record(epoch=1)
            self._missing = [file for file in self._missing if not file.exists()]
            if not self._missing:
                self._since, self._count = self._now(), 0
            return False
        if self.pace is None and time.perf_counter() - self._since >= self._seconds / TURNS:
            now = self._now()
            self._paces.append((now - self._since) / self._count)
            self._since, self._count = now, 0
        return self.pace is not None

    @property
    def pace(self) -> float | None:
        """The seconds of an iteration; None while they are not known."""
        return statistics.median(self._paces) if len(self._paces) == TURNS else None

    def _now(self) -> float:
        if self._context.device.type == "cuda":
            torch.cuda.synchronize(self._context.device)
        return time.perf_counter()


def measure_beside(asked: Asked, fuse: int, peers: Sequence[str], seconds: float) -> Never:
    """Note as facts of its context how long an iteration takes beside ``peers``; then raise Interrupted.

    And how much of the device's memory is held. ``fuse`` seeds are in one model. A training that ends before, begins
    anew, as trials do.
    """
    watch = Beside(asked.context, peers, seconds)
    while watch.pace is None:
        _train(asked, fuse, watch)
    held, total = memory_of(asked.context.device)
    for name, value in {"pace": repr(watch.pace), "held": str(held), "total": str(total)}.items():
        asked.context.fact(name, value)
    raise Interrupted


def _context(context: Context, fuse: int, place: int, watch: Callable[[], bool]) -> Context:
    """Return the context of a seed with this place in its model."""
    return Context(
        seed=context.seed * fuse + place,
        folder=context.folder / f"{fuse}-{place}",
        device=context.device,
        dtype=context.dtype,
        memory_format=context.memory_format,
        metrics=context.metrics,
        stop_requested=watch,
    )
