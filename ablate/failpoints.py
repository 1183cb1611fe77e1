"""Named places at which a test makes this process fail, next to every write. They do nothing unless asked to.

``ABLATE_FAILPOINT=exchange-committed:kill`` kills the process there; ``…:kill@3`` at its third pass; more of them
are separated by commas. What may happen at a failpoint:

kill    SIGKILL: nothing is flushed, no handler runs
raise   RuntimeError: a mistake of our own
eio     OSError, EIO: the disk gives an error, once
full    OSError, ENOSPC: the disk is full, from here to the end of the process
sleep   nothing for a minute, or until a test takes the file away that tells of it (below)

With ``ABLATE_FAILPOINT_HIT=FOLDER`` each happens once among all processes that share the folder: the first to come
there leaves a file of its name in it. Without, it happens in every process that comes there.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from dataclasses import dataclass

VARIABLE, HIT = "ABLATE_FAILPOINT", "ABLATE_FAILPOINT_HIT"
MODES = ("kill", "raise", "eio", "full", "sleep")
SLEEP_S = 60.0


@dataclass
class _Armed:
    """What is to happen at one failpoint, and after how many passes."""

    mode: str
    passes: int


def failpoint(name: str, *, meets_disk: bool = False) -> None:
    """Fail here, if this failpoint is armed. ``meets_disk``: what follows finds out by itself that the disk is full."""
    if _armed:
        _pass(name, meets_disk=meets_disk)


def _pass(name: str, *, meets_disk: bool) -> None:
    global _is_full
    if _is_full and not meets_disk:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    armed = _armed.get(name)
    if armed is None:
        return
    armed.passes -= 1
    if armed.passes != 0 or not _is_first(name):
        return
    match armed.mode:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise RuntimeError(f"failpoint {name}")
        case "eio":
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        case "sleep":
            _sleep(name)
        case "full":
            _is_full = True
            # SQLite writes by itself: from now on no file takes another byte from this process
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            if not meets_disk:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)


def _sleep(name: str) -> None:
    mark, until = _mark(name), time.monotonic() + SLEEP_S
    while time.monotonic() < until and (mark is None or os.path.exists(mark)):
        time.sleep(0.01)


def _mark(name: str) -> str | None:
    folder = os.environ.get(HIT)
    return os.path.join(folder, name) if folder else None


def _is_first(name: str) -> bool:
    mark = _mark(name)
    if mark is None:
        return True
    try:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        return False
    return True


def _read(text: str) -> dict[str, _Armed]:
    """Return what the environment arms. Raises ValueError where it makes no sense: it must not fail to fail."""
    armed = {}
    for part in filter(None, text.split(",")):
        name, _, mode = part.rpartition(":")
        mode, _, passes = mode.partition("@")
        if not name or mode not in MODES or not (passes or "1").isdecimal():
            raise ValueError(f"{VARIABLE}={text}: expected NAME:MODE or NAME:MODE@N; modes are {', '.join(MODES)}")
        armed[name] = _Armed(mode, int(passes or "1"))
    return armed


_armed = _read(os.environ.get(VARIABLE, ""))
_is_full = False
