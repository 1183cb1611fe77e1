"""Who is to blame where memory runs out: the kernel's count of kills (Linux), and what others hold of a GPU."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

LITTLE = 0.05  # of a GPU's memory
QUERY_S = 10.0
ASK_S = 1.0

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


class OomKills:
    """The kernel's kills for want of memory, each of which accounts for one death."""

    def __init__(self) -> None:
        self._accounted = 0
        self._asked = 0.0
        self._seen = 0

    def lately(self) -> int:
        """Return how many there have been, as of a moment ago: to ask takes time."""
        if not self._asked or time.monotonic() > self._asked + ASK_S:
            self._asked, self._seen = time.monotonic(), oom_kills()
        return self._seen

    def accounts_for(self, before: int) -> bool:
        """Tell whether one of them accounts for a death, where there were ``before`` when its attempt began."""
        known = max(before, self._accounted)
        if oom_kills() <= known:
            return False
        self._accounted = known + 1
        return True


def others_on_gpu(uuid: str) -> str:
    """Return what others hold of a GPU once our worker has left it, as a message says it; empty where it is little.

    A driver may keep a few hundred MiB for itself. We ask for no processes: a container does not see its neighbours'.
    """
    command = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits", f"--id={uuid}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=True)
        used, total = (int(part) for part in done.stdout.split(","))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""  # some devices do not count their memory
    return f"others hold {used:,} of {total:,} MiB of this GPU" if used > total * LITTLE else ""


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
