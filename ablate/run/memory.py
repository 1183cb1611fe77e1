"""Whether the kernel has killed for want of memory: the counter of our cgroup, else that of the host (Linux)."""

from __future__ import annotations

import re
from pathlib import Path

_VMSTAT = Path("/proc/vmstat")
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory: here if that is counted, else anywhere.

    A cgroup counts its own processes, whether its limit or the whole host ran out. 0 where nothing is counted.
    """
    for file in (*_counters(), _VMSTAT):
        try:
            found = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0


def _counters() -> list[Path]:
    """Return the files of our cgroup that may count: of version 2, of version 1, and of a container's own view."""
    try:
        lines = [line.split(":", 2) for line in _GROUPS.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for number, controllers, path in lines:
        if number == "0":
            found += [_MOUNT / path.lstrip("/") / "memory.events", _MOUNT / "memory.events"]
        elif "memory" in controllers.split(","):
            memory = _MOUNT / "memory"
            found += [memory / path.lstrip("/") / "memory.oom_control", memory / "memory.oom_control"]
    return found
