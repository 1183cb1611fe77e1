"""What a cluster has left running: found by its folder, and ended to the last process before a test may be over."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

PATIENCE_S = 60


def remains(folder: Path) -> list[int]:
    """Return the processes that have a cluster's folder in their environment or command, or its logs open.

    Those that watch others come first: killed later, they would tell how the others have ended.
    """
    mark = str(folder).encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                words = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                if any(str(folder) in each for each in opened_by(int(entry.name))):
                    found.insert(0, int(entry.name))
                elif mark in words:
                    found.append(int(entry.name))
    return found


def environment_of(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def opened_by(pid: int) -> list[str]:
    """Return the files that a slurmstepd has open: it has overwritten its environment, and is known by its log."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text().startswith("slurmstepd"):
            return [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
    return []


def end_all(folder: Path) -> None:
    """Kill what is left, and what that starts meanwhile, until nothing is."""
    deadline = time.monotonic() + PATIENCE_S
    while found := remains(folder):
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
