"""Three runners at work on one study, and a seeded hand that kills, freezes and replaces them until enough is done.

Blows are paced by work: kill k of n falls once k/n of nine tenths of the epochs are in the store. So all of them fall
before the study is done, and a slow machine gets no more kills per epoch than a fast one.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Select, func, select

from ablate.store.store import Store, open_store
from ablate.store.tables import measurement, trial
from tests.command import ablate
from tests.postgres import Server
from tests.run.leased import LEASED

CANARY = "ABLATE_TEST_CANARY"
LEASE_S = 2.0
RUNNERS = 3
JOBS = 2
LOOK_S = 0.2
SPREAD_S = 0.3  # a blow that is due falls at a random moment within so long
PATIENCE_S = 600  # for the rest of a study to finish in peace
# what is done, and how often: a runner that must start again costs three seconds of a core
KINDS = {"worker": 74, "runner": 7, "server": 4, "session": 4, "frozen runner": 5, "frozen worker": 6}


class Process(NamedTuple):
    """A living process of ours. ``attempt`` is ``<fingerprint>/<claim>`` where it is a worker at work."""

    pid: int
    parent: int
    attempt: str


@dataclass(frozen=True)
class Blow:
    """One blow that hit: its kind, when (Unix seconds), the runner it concerned, and the attempts at work below it.

    ``others`` are the other runners that had a worker then.
    """

    kind: str
    at: float
    runner: int
    attempts: tuple[str, ...]
    others: tuple[int, ...] = ()

    @property
    def is_kill(self) -> bool:
        return not self.kind.startswith("frozen")


@dataclass
class Story:
    """What happened: the blows, from when to when what was frozen or gone, and how long the whole took."""

    seed: int
    seconds: float = 0.0
    starts: int = 0
    set_aside: list[str] = field(default_factory=list)  # folders of third deaths in a row before a checkpoint
    blows: list[Blow] = field(default_factory=list)
    hindered: list[tuple[int, float, float]] = field(default_factory=list)  # runner (0: all of them), from, to
    restarts: list[str] = field(default_factory=list)
    turned_away: int = 0  # runs that began while the database server was away, and ended with exit code 3

    @property
    def kills(self) -> int:
        return sum(blow.is_kill for blow in self.blows)


@dataclass
class _Started:
    """A runner that we started."""

    process: subprocess.Popen[bytes]
    said: Path
    killed: bool = False
    server_killed: bool = False
    at_work: bool = False  # was seen with a worker at some blow

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None


def processes(canary: str) -> list[Process]:
    """Return all living processes that inherited the canary, whoever their parent is now."""
    return list(_processes(f"{CANARY}={canary}".encode()))


def _processes(mark: bytes) -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is nobody's we know
                if mark in (entry / "environ").read_bytes():  # a dead one that nobody has reaped has none
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    yield Process(int(entry.name), parent, _attempt_of(os.readlink(entry / "fd" / "1")))


def _attempt_of(stdout: str) -> str:
    return stdout.partition("/runs/trials/")[2].removesuffix("/stdout.log")


class Chaos:
    """One run of a study under blows; none where ``kills`` is 0: the quiet run to compare with."""

    def __init__(
        self,
        study: Path,
        *,
        epochs: int,
        kills: int = 0,
        seed: int = 0,
        url: str = "",
        server: Server | None = None,
        restarts: int = 0,
    ) -> None:
        self.project = study.parent
        self.url = url
        self.canary = uuid.uuid4().hex
        self.story = Story(seed)
        self._study = study
        self._epochs = epochs
        self._kills = kills
        self._server = server
        self._restarts = restarts
        self._chance = random.Random(seed)
        self._store: Store | None = None
        self._runners: list[_Started] = []
        self._thaws: list[threading.Timer] = []
        self._settled = False
        self._looked, self._done = 0.0, 0

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find the store."""
        return {"ABLATE_STORE": self.url} if self.url else {}

    def open_store(self) -> Store:
        location = self.url or self.project / "runs" / "ablate.db"
        return open_store(location, folder=self.project / "runs", read_only=True)

    def run(self) -> Story:
        """Run the study to its end. Raises AssertionError where a runner ends as none should."""
        began = time.monotonic()
        try:
            while self.story.kills < self._kills:
                self._turn()
                for _ in range(min(self._due(), self._kills) - self.story.kills):
                    time.sleep(self._chance.uniform(0, SPREAD_S))
                    self._turn()
                    self._strike()
                    self._restart_server()
                self._reopen()
                time.sleep(LOOK_S / 4)
            self._finish()
        finally:
            for thaw in self._thaws:
                thaw.join()
            for runner in self._runners:
                runner.process.kill()
                runner.process.wait()
            if self._store is not None:
                self._store.close()
        self.story.seconds = time.monotonic() - began
        return self.story

    # --- keeping it going

    def _turn(self) -> None:
        """Put a new runner where one is gone."""
        for runner in [each for each in self._runners if not each.is_alive]:
            self._runners.remove(runner)
            self._settled |= self._judge(runner)
        places = {runner.said.stem for runner in self._runners}
        for place in (str(number) for number in range(RUNNERS)):
            if place not in places and not self._settled:
                self._runners.append(self._start(place))

    def _start(self, place: str) -> _Started:
        """Start a runner with device locks of its own, as if it had a host of its own: all three work at once."""
        locks = self.project / f"host-{place}"
        locks.mkdir(exist_ok=True)
        said = self.project / f"{place}.said"
        self.story.starts += 1
        environment = os.environ | self.environment | {CANARY: self.canary, "TMPDIR": str(locks)}
        environment["ABLATE_TEST_LEASE_S"] = str(LEASE_S)
        with said.open("wb") as file:
            process = subprocess.Popen(
                [*LEASED, "run", str(self._study), "--jobs", str(JOBS)],
                cwd=self.project,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )
        return _Started(process, said)

    def _judge(self, runner: _Started) -> bool:
        """Tell whether a runner ended because the study is settled. Raises where it ended as it should not."""
        code, said = runner.process.returncode, runner.said.read_text()
        assert "Traceback" not in said, said
        if runner.killed and code == -signal.SIGKILL:
            return False
        if runner.server_killed and code == 4 and "the worker server ended" in said:
            return False
        if self._server is not None and not runner.at_work and code == 3 and "the store can't be used" in said:
            self.story.turned_away += 1  # it came while the server was away, and asked for three seconds
            return False
        assert code in (0, 1), f"a runner ended with exit code {code}:\n{said}"
        return True

    def _reopen(self) -> None:
        """Retry what was set aside as poison: whoever is hit at random three times in a row looks like it."""
        if self._settled and not self._runners:
            failed = self._failed()
            assert failed, f"the study was done after {self.story.kills} of {self._kills} kills"
            assert {row.reason for row in failed} == {"died 3 times in a row without progress"}
            done = ablate("retry", cwd=self.project, **self.environment)
            assert done.returncode == 0, done.stderr
            self.story.set_aside += [f"{row.fingerprint[:16]}/{row.claim}" for row in failed]
            self._settled = False

    def _finish(self) -> None:
        """Let the runners end in peace, and with them the study."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < deadline, f"not done {PATIENCE_S} s after the last kill"
            self._turn()
            if self._settled and not self._runners:
                if not self._failed():
                    break
                self._reopen()
            time.sleep(LOOK_S / 4)

    def _due(self) -> int:
        """Return how many kills the work that is done allows."""
        if time.monotonic() > self._looked + LOOK_S:
            epochs = select(measurement.c.trial, measurement.c.epoch).distinct()
            self._done = sum(
                row.number for row in self._look(select(func.count().label("number")).select_from(epochs.subquery()))
            )
            self._looked = time.monotonic()
        return math.ceil(self._done / (0.9 * self._epochs) * self._kills)

    def _failed(self) -> list[Any]:
        return self._look(select(trial.c.fingerprint, trial.c.claim, trial.c.reason).where(trial.c.state == "failed"))

    def _look(self, query: Select[Any]) -> list[Any]:
        """Return rows of the store; none before there is one."""
        if self._store is None:
            if not any(self.project.glob("runs/locks/*")):  # a runner makes the store, and then takes its lock
                return []
            self._store = self.open_store()
        return self._store.read(lambda connection: list(connection.execute(query)))

    # --- blows

    def _strike(self) -> None:
        kind = self._chance.choices(list(KINDS), list(KINDS.values()))[0]
        alive = processes(self.canary)
        for runner in self._runners:
            runner.at_work |= bool(_attempts_below(runner.pid, alive))
        targets: dict[str, Callable[[list[Process]], Blow | None]] = {
            "worker": self._kill_worker,
            "runner": self._kill_runner,
            "server": self._kill_server,
            "session": self._kill_session,
            "frozen runner": self._freeze_runner,
            "frozen worker": self._freeze_worker,
        }
        if any(runner.is_alive for runner in self._runners) and (blow := targets[kind](alive)) is not None:
            self.story.blows.append(blow)

    def _kill_worker(self, alive: list[Process]) -> Blow | None:
        workers = [process for process in alive if process.attempt]
        if not workers:
            return None
        victim = self._chance.choice(workers)
        blow = Blow("worker", time.time(), self._runner_of(victim, alive), (victim.attempt,))
        return blow if _send(victim.pid, signal.SIGKILL) else None

    def _kill_runner(self, alive: list[Process]) -> Blow | None:
        runner = self._some_runner()
        blow = self._blow("runner", runner, alive)
        runner.killed = True
        self._gone(runner)
        runner.process.kill()
        return blow if runner.process.wait() == -signal.SIGKILL else None

    def _kill_server(self, alive: list[Process]) -> Blow | None:
        runner = self._some_runner()
        servers = [process for process in alive if process.parent == runner.pid]
        if not servers:
            return None
        blow = self._blow("server", runner, alive)
        runner.server_killed = True
        self._gone(runner)
        return blow if _send(servers[0].pid, signal.SIGKILL) else None

    def _kill_session(self, alive: list[Process]) -> Blow | None:
        """Kill a runner with its server and its workers, in no order: as a scheduler or a container does."""
        runner = self._some_runner()
        blow = self._blow("session", runner, alive)
        everyone = [runner.pid, *(process.pid for process in _below(runner.pid, alive))]
        self._chance.shuffle(everyone)
        runner.killed = runner.server_killed = True
        self._gone(runner)
        for pid in everyone:
            _send(pid, signal.SIGKILL)
        return blow

    def _freeze_runner(self, alive: list[Process]) -> Blow | None:
        """For half a lease up to three: one that is alive and late keeps its trials for two."""
        runner = self._some_runner()
        blow = self._blow("frozen runner", runner, alive)
        seconds = self._chance.uniform(0.5, 3) * LEASE_S
        self._freeze(runner.pid, seconds)
        self.story.hindered.append((runner.pid, blow.at, blow.at + seconds + LOOK_S))
        return blow

    def _freeze_worker(self, alive: list[Process]) -> Blow | None:
        workers = [process for process in alive if process.attempt]
        if not workers:
            return None
        victim = self._chance.choice(workers)
        blow = Blow("frozen worker", time.time(), self._runner_of(victim, alive), (victim.attempt,))
        self._freeze(victim.pid, self._chance.uniform(0.1, 1) * LEASE_S)
        return blow

    def _blow(self, kind: str, runner: _Started, alive: list[Process]) -> Blow:
        others = (each.pid for each in self._runners if each is not runner and _attempts_below(each.pid, alive))
        return Blow(kind, time.time(), runner.pid, _attempts_below(runner.pid, alive), tuple(others))

    def _freeze(self, pid: int, seconds: float) -> None:
        """Stop a process for a while. By a clock of its own: frozen amid a write, it holds the store even for us."""
        if _send(pid, signal.SIGSTOP):
            thaw = threading.Timer(seconds, _send, (pid, signal.SIGCONT))
            thaw.start()
            self._thaws.append(thaw)

    def _gone(self, runner: _Started) -> None:
        self.story.hindered.append((runner.pid, time.time(), math.inf))

    def _some_runner(self) -> _Started:
        return self._chance.choice([runner for runner in self._runners if runner.is_alive])

    def _runner_of(self, worker: Process, alive: list[Process]) -> int:
        """Return a worker's runner; 0 where that is dead, and the worker about to follow it."""
        parent = next((process.parent for process in alive if process.pid == worker.parent), 0)
        return parent if any(runner.pid == parent and runner.is_alive for runner in self._runners) else 0

    def _restart_server(self) -> None:
        """Restart the database server at even distances, with one more blow while it is away."""
        if self._server is None or len(self.story.restarts) >= self._restarts:
            return
        if self.story.kills < self._kills * (len(self.story.restarts) + 1) / (self._restarts + 1):
            return
        mode = ("immediate", "fast")[len(self.story.restarts) % 2]
        began = time.time()
        self._server.stop(mode)
        time.sleep(self._chance.uniform(0, 1))
        self._strike()
        self._server.start()
        self.story.restarts.append(mode)
        self.story.hindered.append((0, began, time.time() + 1))


def _below(pid: int, alive: list[Process]) -> list[Process]:
    """Return the server of a runner and its workers."""
    servers = {process.pid for process in alive if process.parent == pid}
    return [process for process in alive if process.pid in servers or process.parent in servers]


def _attempts_below(pid: int, alive: list[Process]) -> tuple[str, ...]:
    return tuple(process.attempt for process in _below(pid, alive) if process.attempt)


def _send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False where nobody is there any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
