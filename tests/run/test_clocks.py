"""Runners whose clocks are wrong: all go by the server's, and on one host the kernel's word comes before any."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.command import finish
from tests.postgres import Server
from tests.run.test_stops import wait_until
from tests.studies import TOY, write_study

LEASE_S = 10.0
TASK = TOY.replace(
    "    done, total",
    """    import pathlib
    while not pathlib.Path("go").exists():
        time.sleep(0.05)
    done, total""",
)

# a runner with leases of 10 s whose host has a clock of its own and, so that locks say nothing, another boot id
SKEWED = """
import sys, time
skew, boot = float(sys.argv.pop(1)), sys.argv.pop(1)
true = time.time
time.time = lambda: true() + skew
from ablate.run import liveness, locks, options, runner
if boot:
    for module in (liveness, locks, runner):
        module.boot_id = lambda: boot
original = options.Options
options.Options = lambda **values: original(**{**values, "lease_s": 10.0})
sys.argv[0] = "ablate"
from ablate.cli import main
main()
"""


def start_skewed(project: Path, store: str, *, skew_s: float, boot: str = "") -> subprocess.Popen[str]:
    words = ["run", "toy.yaml", "-j", "1", "--store", store]
    return subprocess.Popen(
        [sys.executable, "-c", SKEWED, str(skew_s), boot, *words],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def attempts(store: str) -> list[tuple[int, str, str | None]]:
    """Return (trial, runner, outcome) of all attempts; none while there is no store."""
    sql = "SELECT trial, runner, outcome FROM attempt ORDER BY id"
    try:
        if "://" in store:
            with psycopg.connect(store.replace("+psycopg", "")) as server:
                return server.execute(sql).fetchall()
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=30)) as file:
            return file.execute(sql).fetchall()
    except (psycopg.Error, sqlite3.Error):
        return []


def start_both(project: Path, store: str, *, skew_s: float) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Start a runner whose clock is right and one whose clock is not, and return once both hold a trial for a while."""
    write_study(project, task=TASK)
    boots = ("one", "two") if "://" in store else ("", "")
    right = start_skewed(project, store, skew_s=0.0, boot=boots[0])
    wait_until(lambda: attempts(store), seconds=120)
    wrong = start_skewed(project, store, skew_s=skew_s, boot=boots[1])
    wait_until(lambda: len({runner for _, runner, _ in attempts(store)}) == 2, seconds=120)
    time.sleep(LEASE_S / 2)  # each has looked for the dead twice
    return right, wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_clock_that_is_an_hour_fast_does_not_steal(kind: str, project: Path, request: pytest.FixtureRequest) -> None:
    """On the server as if on two hosts, which know each other by their leases; in a file on one, by their locks."""
    server: Server | None = request.getfixturevalue("postgres") if kind == "postgresql" else None
    store = server.new_database() if server else str(project / "runs" / "ablate.db")
    both = start_both(project, store, skew_s=3600.0)
    assert [outcome for _, _, outcome in attempts(store)] == [None, None], "both are at work, and nobody took anything"
    (project / "go").touch()
    for process in both:
        said = finish(process, timeout=240)
        assert process.returncode == 0, said
    made = attempts(store)
    assert sorted(trial for trial, _, _ in made) == [1, 2, 3, 4, 5, 6]
    assert {outcome for _, _, outcome in made} == {"ok"}


@pytest.mark.slow
def test_a_clock_that_is_an_hour_slow_loses_nothing_and_follows_the_dead(project: Path, postgres: Server) -> None:
    """Of a runner elsewhere all that is known is its lease."""
    store = postgres.new_database()
    right, wrong = start_both(project, store, skew_s=-3600.0)
    assert [outcome for _, _, outcome in attempts(store)] == [None, None]
    right.send_signal(signal.SIGKILL)
    finish(right)
    (project / "go").touch()
    said = finish(wrong, timeout=240)
    assert wrong.returncode == 0, said
    outcomes = [outcome for _, _, outcome in attempts(store)]
    assert (outcomes.count("ok"), outcomes.count("lost"), len(outcomes)) == (6, 1, 7)
