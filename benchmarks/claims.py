"""Claims per second: how many runners one store can bear.

    python -m benchmarks.claims [--seconds 5] [--trials 10000]
    python -m benchmarks.claims --lengths 1000 100000

The second shows what one claim takes by the length of the queue, of one runner that does nothing else.

Runners are processes that claim a trial and finish it, without training anything, as fast as the store lets them;
each renews its lease as a real one does. SQLite in a file of this machine, PostgreSQL as a server of its own
on loopback with fsync on. Each figure is of a fresh store whose queue is longer than what is claimed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ablate.plan.trials import make_plan
from ablate.store import claims
from ablate.store.claims import Ending, Finished, Wanted
from ablate.store.facts import record_plan
from ablate.store.store import open_store
from ablate.study.document import Document
from ablate.study.schema import Study, from_document

RUNNERS = (1, 8, 32)
CLAIMS = 100  # by one runner, to tell what one takes


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


def work(location: str, study_id: int, folder: str, seconds: float) -> None:
    """Claim and finish until the time is over; print what was done, and how long each took."""
    store = open_store(location, folder=Path(folder))
    name = uuid.uuid4().hex
    facts = {"host": "h", "boot_id": "b", "lock_file": name, "command": "bench"}
    claims.register_runner(store, runner_id=name, study_id=study_id, facts=facts)
    sys.stdin.readline()  # all begin at once
    took: list[float] = []
    done: list[int] = []
    renewed = end = time.monotonic()
    end += seconds
    while (begun := time.monotonic()) < end:
        claim = claims.claim_trial(store, runner_id=name, study_id=study_id, arms=None, slot="cpu0")
        if claim is None:
            break
        claims.finish(store, claim, Ending("ok", "done", seconds=0.1), {"acc": 0.5})
        took.append(time.monotonic() - begun)
        done.append(claim.trial)
        if begun - renewed > claims.LEASE_S / 4:
            claims.renew(store, name)
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


@contextmanager
def places(folder: Path, count: int) -> Iterator[list[tuple[str, list[str]]]]:
    """Yield so many empty stores of each kind."""
    from tests.postgres import server

    with server() as database:
        database.sql("ALTER SYSTEM SET fsync = on", "SELECT pg_reload_conf()")
        files = [str(folder / f"{number}" / "ablate.db") for number in range(count)]
        yield [("SQLite", files), ("PostgreSQL", [database.new_database() for _ in range(count)])]


@dataclass(frozen=True)
class Length:
    """What a queue of so many trials takes, in milliseconds: to be read once, and then each claim with a finish."""

    store: str
    trials: int
    read: float
    fastest: float
    median: float


def by_length(kind: str, location: str, folder: Path, trials: int) -> Length:
    """Claim as a runner does, that keeps the ids of what waits: a finish and the next claim are one transaction."""
    store = open_store(location, folder=folder, create=True)
    study_id = record_plan(store, make_plan(queue_of(trials)))
    facts = {"host": "h", "boot_id": "b", "lock_file": "l", "command": "bench"}
    claims.register_runner(store, runner_id="r", study_id=study_id, facts=facts)
    begun = time.monotonic()
    waiting = claims.waiting_trials(store, study_id)
    read = time.monotonic() - begun
    took: list[float] = []
    ended: list[Finished] = []
    for done in range(CLAIMS):
        begun = time.monotonic()
        wanted = Wanted("r", [("cpu0", {})], waiting[done : done + 1 + claims.CHUNK])
        _, (claim,) = claims.exchange(store, ended, wanted)
        took.append(time.monotonic() - begun)
        ended = [Finished(claim, Ending("ok", "done", seconds=0.1), {"acc": 0.5})]
    store.close()
    took.sort()
    return Length(kind, trials, 1000 * read, 1000 * took[0], 1000 * took[len(took) // 2])


def lengths_table(found: Sequence[Length]) -> str:
    lines = ["| store | waiting trials | read once | fastest claim | median |", "|:--|--:|--:|--:|--:|"]
    lines += [
        f"| {each.store} | {each.trials:,} | {each.read:,.0f} ms | {each.fastest:.1f} ms | {each.median:.1f} ms |"
        for each in found
    ]
    return "\n".join(lines)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--lengths", type=int, nargs="+", default=())
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        location, study_id, folder = given.work
        work(location, int(study_id), folder, given.seconds)
        return
    if given.lengths:
        with tempfile.TemporaryDirectory() as name, places(Path(name), len(given.lengths)) as stores:
            found = [
                by_length(kind, location, Path(name), trials)
                for kind, locations in stores
                for trials, location in zip(given.lengths, locations, strict=True)
            ]
        print(lengths_table(found))
        return
    figures = []
    with tempfile.TemporaryDirectory() as name, places(Path(name), len(RUNNERS)) as stores:
        for kind, locations in stores:
            for runners, location in zip(RUNNERS, locations, strict=True):
                size = {"runners": runners, "trials": given.trials, "seconds": given.seconds}
                figures.append(measure(kind, location, Path(name), **size))
                print(figures[-1], flush=True)
    assert not any(each.twice for each in figures), "a trial was claimed twice"
    print(table(figures))


if __name__ == "__main__":
    main()
