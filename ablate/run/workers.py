"""The runner's end of the fork server: spawn a worker, hear that it ended, and end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.errors import EnvironmentFault
from ablate.failpoints import failpoint
from ablate.run.stopping import held_back

START_PATIENCE_S = 120.0
LOOP = "ablate.train.classification"  # what many tasks import; it takes a second


@dataclass(frozen=True)
class Exit:
    """The end of a worker process: its exit code, or the signal that ended it."""

    worker: int
    exit_code: int | None
    signal: int | None


@dataclass(frozen=True)
class Done:
    """The end of an attempt of a warm worker, which goes on."""

    worker: int
    folder: str


class Workers:
    """A fork server and its workers, each known by a number of ours. They die with this process, whatever ends it."""

    def __init__(self, log_file: Path) -> None:
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._commands = -1
        self._replies = -1
        self._buffer = b""
        self._events: list[Exit | Done] = []
        self._last = 0
        self._pids: dict[int, int] = {}
        self._asked: dict[int, float] = {}  # when the server was asked for a worker of which it has not told yet
        self._life = -1

    @property
    def folder(self) -> Path:
        """A folder for as long as the server runs, with its log."""
        return self._log_file.parent

    def start(self, modules: Sequence[str] = (LOOP,)) -> None:
        """Start the server without waiting for it: it imports torch while the runner opens the store.

        ``modules`` are what it imports besides before it forks.
        """
        command_read, self._commands = os.pipe2(os.O_CLOEXEC)
        self._replies, reply_write = os.pipe2(os.O_CLOEXEC)
        environment = {**os.environ, "ABLATE_PARENT": str(os.getpid()), "PYTHONHASHSEED": "0"}
        # one thread until a worker asks for more: a library that starts a pool at import would forbid the fork
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[variable] = "1"
        environment.pop("ABLATE_STORE", None)  # may hold a password, and a task may print what is around it
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # repeatable matrix products on a GPU
        # what is sent to every process of a job waits until the server has learnt to ignore it
        failpoint("server-log-begun")
        with self._log_file.open("ab") as log, held_back():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ablate.train.server", str(command_read), str(reply_write), *modules],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(command_read, reply_write),
                start_new_session=True,
            )
        self._life = os.pidfd_open(self._process.pid)
        os.close(command_read)
        os.close(reply_write)

    def spawn(self, folder: Path, environment: dict[str, str], *, warm: bool = False) -> int:
        """Start a worker on an attempt folder and return its number. Raises EnvironmentFault.

        A ``warm`` one goes on with the folders that ``go_on`` names, as long as its attempts end well.
        """
        if self._process is None:
            self.start()
        self._last += 1
        self._asked[self._last] = time.monotonic()
        self._command({"spawn": self._last, "folder": str(folder), "environment": environment, "warm": warm})
        return self._last

    def go_on(self, worker: int, folders: Sequence[Path]) -> None:
        """Give a warm worker more attempts. It may have ended before it takes them: these then never began."""
        self._command({"next": worker, "folders": [str(folder) for folder in folders]})

    def retire(self, worker: int) -> None:
        """Have a warm worker end when it has done what it was given."""
        self._command({"retire": worker})

    def wait(self, seconds: float) -> list[Exit | Done]:
        """Wait up to ``seconds`` for workers and attempts to end; return those that did. Raises EnvironmentFault."""
        if self._process is None:
            time.sleep(seconds)
        elif not self._events:
            self._read(seconds)
        ended, self._events = self._events, []
        return ended

    def signal(self, worker: int, number: signal.Signals) -> None:
        """Send a signal to one worker; SIGKILL goes to its whole process group."""
        while worker in self._asked:
            self._read(1.0)
        pid = self._pids.get(worker)
        if pid is None:
            return  # it has ended
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(pid, number)  # a worker leads a group of its own: its pid is the group's
            else:
                os.kill(pid, number)

    def close(self) -> None:
        """End the server, and with it whatever still runs."""
        if self._process is None:
            return
        os.close(self._commands)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._replies)
        os.close(self._life)
        self._process = None

    def _command(self, message: dict[str, Any]) -> None:
        try:
            os.write(self._commands, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise self._dead() from None

    def _read(self, seconds: float) -> None:
        # not by the end of the pipe alone: what a task has left behind may hold it open
        ready, _, _ = select.select([self._replies, self._life], [], [], seconds)
        if not ready:
            if self._asked and time.monotonic() > min(self._asked.values()) + START_PATIENCE_S:
                raise EnvironmentFault("the worker server does not answer", where=str(self._log_file))
            return
        data = os.read(self._replies, 65536) if self._replies in ready else b""
        if not data:
            raise self._dead()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"spawned": worker, "pid": pid}:
                    del self._asked[worker]
                    self._pids[worker] = pid
                case {"done": worker, "folder": folder}:
                    self._events.append(Done(worker, folder))
                case {"exited": worker, "status": status}:
                    del self._pids[worker]
                    self._events.append(_exit(worker, status))

    def _dead(self) -> EnvironmentFault:
        tail = self._log_file.read_text(errors="replace").strip().splitlines()
        why = tail[-1] if tail else "it left no message"
        hint = "look whether memory or disk are full, and run the same command again: it goes on from there"
        return EnvironmentFault(f"the worker server ended: {why}", where=str(self._log_file), hint=hint)


def _exit(worker: int, status: int) -> Exit:
    code = os.waitstatus_to_exitcode(status)
    return Exit(worker, code if code >= 0 else None, -code if code < 0 else None)
