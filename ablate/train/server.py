"""The fork server: a process that has imported torch and run nothing, and forks a fresh worker for each attempt.

A fork costs 20 ms where a new interpreter that imports torch costs 1,700 ms. It is safe because this process has one
thread, no CUDA context and no thread pool; where that does not hold, the worker is a fresh interpreter instead.

Commands come as JSON lines, ``{"spawn": key, "folder": …, "environment": {…}}``; replies go out as
``{"ready": pid}``, ``{"spawned": key, "pid": …}`` and ``{"exited": pid, "status": …}`` (a wait status). The server ends
when its command pipe closes, and the workers end with the server.
"""

from __future__ import annotations

import contextlib
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
from ablate.train.worker import die_with, live, tell_stacks

# what most tasks import; loaded once here instead of in each attempt
PRELOADED = ("ablate.train.classification",)
# what every optimizer of torch imports when it is made, and every trial on digits: 1.3 s of CPU in each worker. Loaded
# while the first trials run and nothing is asked of us, so that a run of quick trials, or of none, does not pay for it
LATER = ("torch._dynamo", "torch._inductor.config", "sklearn.datasets")
IDLE_S = 1.0
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # of a scheduler; workers go on ignoring them, and so do their children


def serve(commands: int, replies: int) -> None:
    """Serve until the command pipe closes. ``commands`` and ``replies`` are file descriptors."""
    for number in (*_STOPPING, *_WARNINGS, STACKS):
        signal.signal(number, signal.SIG_IGN)  # the runner decides; a stop may be sent to every process of a job
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOPPING, *_WARNINGS))
    _load(PRELOADED)
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _reply(replies, {"ready": os.getpid()})
    private = (commands, replies, wake, waker)
    buffer, has_forked = b"", False
    later: tuple[str, ...] = LATER
    while True:
        ready, _, _ = select.select([commands, wake], [], [], IDLE_S if later and has_forked else None)
        if not ready:
            _load(later)
            later = ()
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            _reap(replies)
        if commands in ready:
            data = os.read(commands, 65536)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                command = json.loads(line)
                pid = _spawn(command["folder"], command["environment"], private)
                has_forked = True
                _reply(replies, {"spawned": command["spawn"], "pid": pid})


def _load(modules: tuple[str, ...]) -> None:
    for module in modules:
        __import__(module)
    gc.collect()
    gc.freeze()  # the collector would otherwise touch, and so copy, every inherited page


def _spawn(folder: str, environment: dict[str, str], private: tuple[int, ...]) -> int:
    server = os.getpid()
    if len(os.listdir("/proc/self/task")) > 1:
        return _spawn_fresh(folder, environment, server)
    pid = os.fork()
    if pid:
        return pid
    status = EXIT_BUG
    try:
        os.setsid()
        die_with(server)
        _forget_server(private)
        _redirect(AttemptFolder(folder))
        tell_stacks()
        os.environ.update(environment)
        status = live(folder)
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


def _spawn_fresh(folder: str, environment: dict[str, str], server: int) -> int:
    """Start a fresh interpreter: 1.3 s dearer, the same bits."""
    failpoint("log-opened-fresh")
    with AttemptFolder(folder).log_file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ablate.train.worker", folder],
            env={**os.environ, **environment, "ABLATE_PARENT": str(server)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    process.returncode = 0  # reaped in `_reap`; keeps Popen from warning or waiting
    return process.pid


def _forget_server(private: tuple[int, ...]) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, *_STOPPING):
        signal.signal(number, signal.SIG_DFL)
    for descriptor in private:
        os.close(descriptor)
    gc.unfreeze()


def _redirect(folder: AttemptFolder) -> None:
    """Send stdout and stderr to the attempt's log, and give the task an empty stdin."""
    failpoint("log-opened")
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(folder.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)
    # the standard streams were buffers of the server's own; these write through, so that a kill loses no line
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def _reap(replies: int) -> None:
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
        _reply(replies, {"exited": pid, "status": status})


def _reply(replies: int, message: dict[str, Any]) -> None:
    try:
        os.write(replies, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        os._exit(0)  # the runner is gone


if __name__ == "__main__":
    die_with(int(os.environ["ABLATE_PARENT"]))
    serve(int(sys.argv[1]), int(sys.argv[2]))
