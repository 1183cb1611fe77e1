"""The fork server: a process that has imported torch and run nothing, and forks workers.

A fork costs 5 ms where a new interpreter that imports torch costs 1,700 ms. It is safe because this process has one
thread, no CUDA context and no thread pool; where that does not hold, the worker is a fresh interpreter instead.

Commands come as JSON lines, ``{"spawn": key, "folder": …, "environment": {…}, "warm": …}``; to a warm worker also
``{"next": key, "folders": […]}`` and ``{"retire": key}``, after which it ends. Replies go out as ``{"ready": pid}``,
``{"spawned": key, "pid": …}``, ``{"done": key, "folder": …}`` (by a warm worker, of each attempt that it goes on from)
and ``{"exited": key, "status": …}`` (a wait status). The server ends when its command pipe closes, and the workers end
with the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from typing import Any

from ablate.errors import EXIT_BUG
from ablate.failpoints import failpoint
from ablate.train.folder import STACKS, UNWRITTEN, AttemptFolder
from ablate.train.process import Orders, die_with, redirect, tell_stacks
from ablate.train.worker import live

ALWAYS = ("numpy.random",)  # imported at its first use, by every attempt
MADV_COLLAPSE = 25
HUGE = 1 << 21
MANY = 16  # forks after which it pays to make the next ones quicker
# what every optimizer of torch imports when it is made, and every trial on digits: 1.3 s of CPU and 100 MiB in each
# worker. Loaded before the first trial where the task is sure to make one, after the fork that checks it; else while
# the first trials run and nothing is asked of us, so that a run of quick trials does not pay for it
LATER = ("torch._dynamo", "torch._inductor.config", "sklearn.datasets")
LOOP = "ablate.train.classification"
IDLE_S = 1.0
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # of a scheduler; workers go on ignoring them, and so do their children


def serve(commands: int, replies: int, *modules: str) -> None:
    """Serve until the command pipe closes. ``commands`` and ``replies`` are file descriptors.

    ``modules`` are what the task imports of ablate: loaded once here instead of in each attempt.
    """
    for number in (*_STOPPING, *_WARNINGS, STACKS):
        signal.signal(number, signal.SIG_IGN)  # the runner decides; a stop may be sent to every process of a job
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOPPING, *_WARNINGS))
    _load(*ALWAYS, *modules)
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _reply(replies, {"ready": os.getpid()})
    server = _Server(replies, (commands, wake, waker))
    buffer = b""
    later = () if "ablate.train.command" in modules else LATER
    while True:
        ready, _, _ = select.select([commands, wake], [], [], IDLE_S if later and server.has_forked else None)
        if not ready:
            _load(*later)
            later = ()
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            server.reap()
        if commands in ready:
            data = os.read(commands, 65536)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for command in map(json.loads, lines):
                if later and LOOP in modules and server.has_forked and "spawn" in command:
                    _load(*later)
                    later = ()
                server.obey(command)


def _load(*modules: str) -> None:
    for module in modules:
        __import__(module)
    gc.collect()
    gc.freeze()  # the collector would otherwise touch, and so copy, every inherited page


class _Server:
    """The workers of a server: their keys by process id, and the pipes to those that are warm by key."""

    def __init__(self, replies: int, private: tuple[int, ...]) -> None:
        self._replies = replies
        self._private = private
        self._keys: dict[int, int] = {}
        self._orders: dict[int, int] = {}
        self._spawned = 0

    @property
    def has_forked(self) -> bool:
        return self._spawned > 0

    def obey(self, command: dict[str, Any]) -> None:
        match command:
            case {"spawn": key, "folder": folder, "environment": environment, "warm": warm}:
                orders = -1
                if warm:
                    orders, self._orders[key] = os.pipe2(os.O_CLOEXEC)
                pid = self._spawn(key, folder, environment, orders)
                self._keys[pid] = key
                _reply(self._replies, {"spawned": key, "pid": pid})
                if warm:
                    os.close(orders)
                self._spawned += 1
                if self._spawned == MANY:
                    _use_huge_pages()
            case {"next": key, "folders": folders} if key in self._orders:
                with contextlib.suppress(BrokenPipeError):  # it has just ended, which the runner will hear
                    os.write(self._orders[key], "".join(json.dumps(each) + "\n" for each in folders).encode())
            case {"retire": key} if key in self._orders:
                os.close(self._orders.pop(key))

    def _spawn(self, key: int, folder: str, environment: dict[str, str], orders: int) -> int:
        server = os.getpid()
        if len(os.listdir("/proc/self/task")) > 1:
            return self._spawn_fresh(key, folder, environment, orders)
        pid = os.fork()
        if pid:
            return pid
        status = EXIT_BUG
        try:
            os.setsid()
            die_with(server)
            self._forget()
            redirect(AttemptFolder(folder))
            tell_stacks()
            os.environ.update(environment)
            warm = Orders(key, orders=orders, replies=self._replies, environment=os.environ) if orders >= 0 else None
            if warm is None:
                os.close(self._replies)
            status = live(folder, warm)
        except OSError:
            status = UNWRITTEN  # the disk refused the log
        except Exception:
            traceback.print_exc()
        finally:
            # no return into the server's loop, no exit handlers of the server
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _spawn_fresh(self, key: int, folder: str, environment: dict[str, str], orders: int) -> int:
        """Start a fresh interpreter: 1.3 s dearer, the same bits."""
        pipes = (orders, self._replies) if orders >= 0 else ()
        failpoint("log-opened-fresh")
        with AttemptFolder(folder).log_file.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ablate.train.worker", folder, str(key), *map(str, pipes)],
                env={**os.environ, **environment, "ABLATE_PARENT": str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=pipes,
            )
        process.returncode = 0  # reaped in `reap`; keeps Popen from warning or waiting
        return process.pid

    def _forget(self) -> None:
        """Be no server any more: a worker has a life of its own."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_STOPPING):
            signal.signal(number, signal.SIG_DFL)
        for descriptor in (*self._private, *self._orders.values()):
            os.close(descriptor)

    def reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            # what a task or a command has left behind holds memory, and the device that the next trial is to have
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ended.si_pid, signal.SIGKILL)
            pid, status = os.waitpid(ended.si_pid, 0)
            key = self._keys.pop(pid, None)
            if key in self._orders:
                os.close(self._orders.pop(key))
            if key is not None:
                _reply(self._replies, {"exited": key, "status": status})


def _use_huge_pages() -> None:
    """Have the kernel keep our memory in pages of 2 MiB, as far as it likes to: a fork has 500 times fewer to note.

    It makes a fork and its end 3 to 5 times quicker (21 → 4 ms with torch alone), and takes about half a second, once.
    Linux has it since 6.1; before, nothing happens.
    """
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with open("/proc/self/maps") as maps:
        lines = [line.split() for line in maps]
    for span, rights, _, _, inode, *name in lines:
        if inode == "0" and "w" in rights and name != ["[stack]"]:
            begin, end = (int(bound, 16) for bound in span.split("-"))
            for page in range(-(-begin // HUGE) * HUGE, end // HUGE * HUGE, HUGE):
                madvise(page, HUGE, MADV_COLLAPSE)


def _reply(replies: int, message: dict[str, Any]) -> None:
    try:
        os.write(replies, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        os._exit(0)  # the runner is gone


if __name__ == "__main__":
    die_with(int(os.environ["ABLATE_PARENT"]))
    serve(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    os._exit(0)  # the runner waits, and an interpreter takes half a second to take torch apart
