"""Arms side by side in one run: interleaved rounds, ratios within each round, medians and their spread.

Machines are shared: seconds of one round may be twice those of the next, and what is compared must have been measured
in the same minute. CPU seconds (of this process and of all that it waited for) stand beside those of the clock.
"""

from __future__ import annotations

import datetime
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Spent:
    """What one arm took in one round."""

    wall_s: float
    cpu_s: float


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def spent(arm: Callable[[], object]) -> Spent:
    wall, cpu = time.perf_counter(), cpu_seconds()
    arm()
    return Spent(time.perf_counter() - wall, cpu_seconds() - cpu)


def measured(arms: Mapping[str, Callable[[], object]], rounds: int) -> list[dict[str, Spent]]:
    """Run each arm once a round, in turn; the order is turned round every time, so that no arm is always the first."""
    found = []
    for number in range(rounds):
        names = list(arms) if number % 2 == 0 else list(reversed(arms))
        taken = {name: spent(arms[name]) for name in names}
        found.append({name: taken[name] for name in arms})
    return found


def ratios(rounds: Sequence[Mapping[str, Spent]], base: str, arm: str, kind: str) -> list[float]:
    """Return how many times as long as ``arm`` the ``base`` took, round by round; ``kind`` is wall_s or cpu_s."""
    return [float(getattr(each[base], kind) / getattr(each[arm], kind)) for each in rounds]


def told(values: Sequence[float], digits: int = 1) -> str:
    """Return the median with the least and the most, as a cell of a table."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} … {max(values):.{digits}f})"


def heading(title: str, command: str) -> str:
    """Return the head of a page of results: what was run, when, and on what."""
    name = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return (
        f"# {title}\n\n`{command}`, {datetime.date.today()}, {len(os.sched_getaffinity(0))} cores ({name}), "
        f"Python {platform.python_version()}, torch {torch.__version__}; load {os.getloadavg()[0]:.1f} at the start.\n"
    )
