"""Claims per second: how many runners one store can bear, and what a long queue costs each of them.

    python -m benchmarks.claims [--seconds 5] [--trials 10000] [--runners 1 8 32] [--queues 1000 10000 100000]

Runners are processes that claim a trial and finish it, without training anything, as fast as the store lets them;
each asks as a real one does: for a trial of its list of those that wait, in one transaction with the end of the one
before, and renews its lease. SQLite in a file of this machine, PostgreSQL as a server of its own on loopback with
fsync on. Each figure is of a fresh store whose queue is longer than what is claimed. The second table is of one runner.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ablate.plan.trials import make_plan
from ablate.store import claims
from ablate.store.claims import Claim, Ending, Finished, Wanted
from ablate.store.facts import record_plan
from ablate.store.store import Store, open_store
from ablate.study.document import Document
from ablate.study.schema import Study, from_document

TIMES = 25  # that a call is measured; the fastest is told, for machines are shared


@dataclass(frozen=True)
class Figure:
    """What one combination came to. Times are of one claim with its finish, in milliseconds."""

    store: str
    runners: int
    trials: int
    per_second: float
    median: float
    p99: float
    longest: float
    fewest: int  # by one runner
    most: int
    twice: int


def queue_of(trials: int) -> Study:
    """Return a study of so many trials: ten arms, as many seeds as it takes."""
    steps = [{"name": f"width-{number}", "set": {"model.width": number}} for number in range(1, 10)]
    values = {
        "schema": "ablate/v1",
        "name": "queue",
        "task": "queue:train",
        "metrics": {"acc": {"goal": "max"}},
        "settings": {"model": {"width": 0}},
        "steps": steps,
        "designs": ["one-at-a-time"],
        "seeds": math.ceil(trials / 10),
    }
    return from_document(values, Document("queue.yaml", values, {}), "")


class Claimer:
    """Claims one trial after the other and finishes each with the next claim, as a runner with one slot does."""

    def __init__(self, store: Store, study_id: int) -> None:
        self.name = uuid.uuid4().hex
        self._store, self._study_id = store, study_id
        self._waiting: deque[int] = deque()
        self._ended: list[Finished] = []
        facts = {"host": "h", "boot_id": "b", "lock_file": self.name, "command": "bench"}
        claims.register_runner(store, runner_id=self.name, study_id=study_id, facts=facts)

    def look(self) -> None:
        self._waiting = deque(trial for (trial,) in claims.waiting_trials(self._store, self._study_id))

    def next(self) -> Claim | None:
        """Claim a trial; None where none waits."""
        while True:
            if not self._waiting:
                self.look()
            if not self._waiting:
                return None
            among = list(itertools.islice(self._waiting, 1 + claims.CHUNK))
            _, claimed = claims.exchange(self._store, self._ended, Wanted(self.name, [("cpu0", {})], among))
            self._ended = []
            for _ in range(among.index(claimed[0].trial) + 1 if claimed else len(among)):
                self._waiting.popleft()
            if claimed:
                self._ended = [Finished(claimed[0], Ending("ok", "done", seconds=0.1), {"acc": 0.5})]
                return claimed[0]


def work(location: str, study_id: int, folder: str, seconds: float) -> None:
    """Claim and finish until the time is over; print what was done, and how long each took."""
    store = open_store(location, folder=Path(folder))
    claimer = Claimer(store, study_id)
    sys.stdin.readline()  # all begin at once
    took: list[float] = []
    done: list[int] = []
    renewed = end = time.monotonic()
    end += seconds
    while (begun := time.monotonic()) < end:
        claim = claimer.next()
        if claim is None:
            break
        took.append(time.monotonic() - begun)
        done.append(claim.trial)
        if begun - renewed > claims.LEASE_S / 4:
            claims.renew(store, claimer.name)
            renewed = begun
    print(json.dumps({"took": took, "done": done}))
    store.close()


def measure(kind: str, location: str, folder: Path, *, runners: int, trials: int, seconds: float) -> Figure:
    store = open_store(location, folder=folder, create=True)
    study_id = record_plan(store, make_plan(queue_of(trials)))
    store.close()
    command = [sys.executable, "-m", "benchmarks.claims", "--work", location, str(study_id), str(folder)]
    processes = [
        subprocess.Popen(
            [*command, "--seconds", str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(runners)
    ]
    time.sleep(2 + runners * 0.8)  # for all imports: two cores
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [json.loads(process.communicate()[0]) for process in processes]
    took = sorted(1000 * each for one in told for each in one["took"])
    done = [trial for one in told for trial in one["done"]]
    counts = [len(one["done"]) for one in told]
    assert len(done) < trials, "the queue was empty before the time was over"
    return Figure(
        kind,
        runners,
        trials,
        len(done) / seconds,
        took[len(took) // 2],
        took[math.ceil(0.99 * len(took)) - 1],
        took[-1],
        min(counts),
        max(counts),
        len(done) - len(set(done)),
    )


@dataclass(frozen=True)
class Queue:
    """What calls of a runner take while so many trials wait, in milliseconds: the fastest of several."""

    store: str
    waiting: int
    look: float  # for its list of those that wait
    claim: float  # with the end of the trial before
    held: float  # for what all runners hold: a tenth of the queue, at most 10,000 trials


def measure_queue(kind: str, location: str, folder: Path, *, waiting: int) -> Queue:
    store = open_store(location, folder=folder, create=True)
    study_id = record_plan(store, make_plan(queue_of(waiting)))
    claimer = Claimer(store, study_id)
    look = _fastest(claimer.look, 5)
    claim = _fastest(claimer.next, TIMES)
    others = Claimer(store, study_id)
    among = [trial for (trial,) in claims.waiting_trials(store, study_id)[: min(waiting // 10, 10_000)]]
    for start in range(0, len(among), 500):
        part = among[start : start + 500]
        claims.exchange(store, (), Wanted(others.name, [("cpu0", {})] * len(part), part))
    held = _fastest(lambda: claims.held_trials(store), 5)
    store.close()
    return Queue(kind, waiting, look, claim, held)


def _fastest(call: Callable[[], object], times: int) -> float:
    def once() -> float:
        begun = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - begun)

    return min(once() for _ in range(times))


@contextmanager
def places(folder: Path, count: int) -> Iterator[list[tuple[str, list[str]]]]:
    """Yield for each kind of store as many empty ones as are measured."""
    from tests.postgres import server

    with server() as database:
        database.sql("ALTER SYSTEM SET fsync = on", "SELECT pg_reload_conf()")
        files = [str(folder / f"{number}" / "ablate.db") for number in range(count)]
        yield [("SQLite", files), ("PostgreSQL", [database.new_database() for _ in range(count)])]


def table(figures: Sequence[Figure]) -> str:
    lines = [
        "| store | runners | trials/s | median | p99 | longest | a runner's share |",
        "|:--|--:|--:|--:|--:|--:|:--|",
    ]
    lines += [
        f"| {each.store} | {each.runners} | {each.per_second:,.0f} | {each.median:.1f} ms | {each.p99:.0f} ms "
        f"| {each.longest:,.0f} ms | {each.fewest:,} to {each.most:,} |"
        for each in figures
    ]
    return "\n".join(lines)


def table_of_queues(figures: Sequence[Queue]) -> str:
    lines = ["| store | waiting trials | list of them | claim and finish | all that is held |", "|:--|--:|--:|--:|--:|"]
    lines += [
        f"| {each.store} | {each.waiting:,} | {each.look:,.1f} ms | {each.claim:.1f} ms | {each.held:.1f} ms |"
        for each in figures
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--runners", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--queues", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        location, study_id, folder = given.work
        work(location, int(study_id), folder, given.seconds)
        return
    figures, queues = [], []
    with tempfile.TemporaryDirectory() as name, places(Path(name), len(given.runners + given.queues)) as stores:
        for kind, locations in stores:
            rest = iter(locations)
            for runners, location in zip(given.runners, rest, strict=False):
                size = {"runners": runners, "trials": given.trials, "seconds": given.seconds}
                figures.append(measure(kind, location, Path(name), **size))
                print(figures[-1], flush=True)
            for waiting, location in zip(given.queues, rest, strict=True):
                queues.append(measure_queue(kind, location, Path(name), waiting=waiting))
                print(queues[-1], flush=True)
    assert not any(each.twice for each in figures), "a trial was claimed twice"
    print(table(figures), table_of_queues(queues), sep="\n\n")


if __name__ == "__main__":
    main()
