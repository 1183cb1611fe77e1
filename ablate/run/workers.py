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
from dataclasses import dataclass
from pathlib import Path

from ablate.errors import EnvironmentFault
from ablate.failpoints import failpoint
from ablate.run.stopping import held_back

START_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Exit:
    """The end of a worker process: its exit code, or the signal that ended it."""

    pid: int
    exit_code: int | None
    signal: int | None


class Workers:
    """A fork server and its workers. They die with this process, whatever ends it."""

    def __init__(self, log_file: Path) -> None:
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._commands = -1
        self._replies = -1
        self._buffer = b""
        self._exits: list[Exit] = []
        self._spawned: dict[str, int] = {}

    def start(self) -> None:
        """Start the server without waiting for it: it imports torch while the runner opens the store."""
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
                [sys.executable, "-m", "ablate.train.server", str(command_read), str(reply_write)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(command_read, reply_write),
                start_new_session=True,
            )
        os.close(command_read)
        os.close(reply_write)

    def spawn(self, folder: Path, environment: dict[str, str]) -> int:
        """Start a worker on an attempt folder and return its process id. Raises EnvironmentFault."""
        if self._process is None:
            self.start()
        key = str(folder)
        message = {"spawn": key, "folder": key, "environment": environment}
        try:
            os.write(self._commands, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise self._dead() from None
        while key not in self._spawned:
            self._read(START_PATIENCE_S)
        return self._spawned.pop(key)

    def wait(self, seconds: float) -> list[Exit]:
        """Wait up to ``seconds`` for workers to end, and return those that did."""
        if self._process is None:
            time.sleep(seconds)
        elif not self._exits:
            self._read(seconds, patient=False)
        ended, self._exits = self._exits, []
        return ended

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to one worker; SIGKILL goes to its whole process group."""
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
        self._process = None

    def _read(self, seconds: float, *, patient: bool = True) -> None:
        ready, _, _ = select.select([self._replies], [], [], seconds)
        if not ready:
            if patient:
                raise EnvironmentFault("the worker server does not answer", where=str(self._log_file))
            return
        data = os.read(self._replies, 65536)
        if not data:
            raise self._dead()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "spawned" in message:
                self._spawned[message["spawned"]] = message["pid"]
            elif "exited" in message:
                self._exits.append(_exit(message["exited"], message["status"]))

    def _dead(self) -> EnvironmentFault:
        tail = self._log_file.read_text(errors="replace").strip().splitlines()
        why = tail[-1] if tail else "it left no message"
        hint = "look whether memory or disk are full, and run the same command again: it goes on from there"
        return EnvironmentFault(f"the worker server ended: {why}", where=str(self._log_file), hint=hint)


def _exit(pid: int, status: int) -> Exit:
    code = os.waitstatus_to_exitcode(status)
    return Exit(pid, code if code >= 0 else None, -code if code < 0 else None)
