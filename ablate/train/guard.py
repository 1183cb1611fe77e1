"""The guard: a process beside a command, which outlives the worker and ends what the command has left behind.

A launcher such as torchrun gives its processes sessions of their own: no signal to the worker's group reaches them, and
where a kill takes worker and launcher at once, nobody tells them. They would keep the GPU that the next trial is given.
All of them have inherited the variable that names their attempt's folder, and are known by it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROUNDS = 200  # of killing: what forks meanwhile is found in the next
PAUSE_S = 0.01
_DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def guarded(mark: str) -> Iterator[None]:
    """End all processes that have ``mark`` (``NAME=value``) in their environment when this ends, or this process dies.

    The guard holds what its parent has open, locks included: until all are gone, nobody takes the attempt's device.
    """
    ears, mouth = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            os.close(mouth)
            _listen(ears, mark.encode())
        finally:
            os._exit(0)
    os.close(ears)
    try:
        yield
    finally:
        os.close(mouth)
        os.waitpid(pid, 0)


def _listen(ears: int, mark: bytes) -> None:
    os.setsid()
    for number in _DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.read(ears, 1)  # nobody writes: it returns when the other end is closed
    for _ in range(ROUNDS):
        found = list(_marked(mark))
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(PAUSE_S)


def _marked(mark: bytes) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if mark in (entry / "environ").read_bytes().split(b"\0"):  # a zombie has none
                    yield int(entry.name)
