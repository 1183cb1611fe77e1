"""What a worker's process is to an attempt, and how it is made anew between two attempts of a warm worker."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Mapping

import numpy as np
import torch

from ablate.failpoints import failpoint
from ablate.train.folder import STACKS, AttemptFolder
from ablate.train.seeding import stream_seed

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GROWTH = 256 << 20  # bytes that a warm worker may come to hold over what its first trial left: after that, a new one
PEAK_RESIDENT = "5"  # what of its counters the kernel is asked to begin anew


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when ``parent`` dies; end at once where it is dead already (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def tell_stacks() -> None:
    """Print the stacks of all threads to the log at a fatal signal, and where the runner asks for them.

    By handlers in C: code that never lets go of the interpreter can't keep them waiting.
    """
    faulthandler.enable(file=2)
    faulthandler.register(STACKS, file=2, all_threads=True)


def redirect(folder: AttemptFolder) -> None:
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


def prepare(seed: int, threads: int) -> None:
    """Set what torch reads from the process: threads (they change the bits), and the global generators."""
    torch.set_num_threads(threads)
    seed_all(stream_seed(seed, "init"))


def seed_all(stream: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(stream)
    np.random.seed(stream % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(stream)
    else:  # which would keep this for devices that might come, with the stack of each call, for ever
        torch.default_generator.manual_seed(stream)


class Orders:
    """The attempts of a warm worker after its first: a folder a line, from a pipe that the server writes.

    ``environment`` is what each attempt finds. Between two attempts, the process is set back to what it was when this
    was made, and the end of the former one is told by a line to ``replies``, in the words of the server.
    """

    def __init__(self, key: int, *, orders: int, replies: int, environment: Mapping[str, str]) -> None:
        self._key = key
        self._orders = open(orders, "rb")  # noqa: SIM115
        self._replies = replies
        os.set_inheritable(replies, False)
        self._environment = dict(environment)
        self._folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._first: int | None = None  # bytes that the first attempt left
        # orphans of a task come to us, so that they are seen
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def after(self, ended: str) -> str | None:
        """Tell that an attempt has ended and return the folder of the next; None where this worker must end itself.

        What it leaves running would be in the way of the next, and so would memory that each attempt leaves taken: then
        the end of the process is that of the attempt.
        """
        if threading.active_count() > 1 or _has_children() or self._has_grown():
            return None
        sys.stdout.flush()
        os.write(self._replies, json.dumps({"done": self._key, "folder": ended}).encode() + b"\n")
        line = self._orders.readline()
        if not line:
            return None
        folder: str = json.loads(line)
        self._set_back()
        redirect(AttemptFolder(folder))
        tell_stacks()
        return folder

    def _has_grown(self) -> bool:
        if self._first is None:
            self._first = held_bytes()
        if held_bytes() - self._first <= GROWTH:
            return False
        gc.collect()  # what is only not collected yet is no growth
        return held_bytes() - self._first > GROWTH

    def _set_back(self) -> None:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()  # what torch keeps for the next trial, others on this GPU may need
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if dict(os.environ) != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)
        os.fchdir(self._folder)
        os.umask(self._umask)
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as counters:
            counters.write(PEAK_RESIDENT)


def held_bytes() -> int:
    """Return how much memory this process holds by itself: without files that are mapped, such as prepared data."""
    with open("/proc/self/statm") as file:
        _, resident, of_files, *_ = map(int, file.read().split())
    return (resident - of_files) * os.sysconf("SC_PAGE_SIZE")


def _has_children() -> bool:
    """Tell whether a child still runs; those that have ended are reaped."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return False
    return True
