"""What ablate adds to the user's code: for a trial, a recorded number, a command's start, and in memory.

    python -m benchmarks.overhead [--rounds 5] [--peers PYTHON] > benchmarks/results/overhead.md

The trials do nothing, so that all of their time is overhead. Systems take turns within each round, so that a busy
machine is busy for all; the table shows medians over rounds, and the least and the most. Peers run in the interpreter
that ``--peers`` names (``pip install -e '.[bench]'``); one that is not installed there has no number.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from ablate.plan.trials import open_plan
from ablate.store.claims import attempt_folder, end_runner, register_runner
from ablate.store.facts import record_plan, stored_metrics
from ablate.store.store import journal_mode, open_store
from ablate.store.tables import attempt, trial

ABLATE = [sys.executable, "-m", "ablate"]
PEERS = Path(__file__).with_name("peers.py")
FIRST = 40  # attempts that are left out: the start of the worker server, and its first forks
ROWS = 20_000
ARMS = 20  # of the study whose last trials are measured
PATIENCE_S = 600.0  # of a peer that takes longer, this is its time

STUDY = """
schema: ablate/v1
name: noop
task: noop:train
metrics: {acc: {goal: max}}
settings: {level: 0, rows: 0, pause: 0.0, beats: 0}
steps:
  - {name: one, set: {level: 1}}
seeds: 1
"""
TASK = """
import time

def train(settings, context):
    if settings["pause"]:
        time.sleep(settings["pause"])
    began = time.perf_counter()
    for epoch in range(1, settings["rows"] + 1):
        context.record(epoch=epoch, acc=1.0)
    took = time.perf_counter() - began
    for epoch in range(1, settings["beats"] + 1):
        context.record(epoch=epoch, acc=time.time())
        time.sleep(0.05)
    return {"acc": settings["level"] + context.seed / 7, "took": took}
"""


class Project:
    """A project folder of its own, with the study that does nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ".git").mkdir()
        (folder / "tmp").mkdir()
        (folder / "noop.py").write_text(textwrap.dedent(TASK))
        (folder / "noop.yaml").write_text(STUDY)
        self.store = folder / "runs" / "ablate.db"

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TMPDIR": str(self.folder / "tmp")}
        return subprocess.Popen(
            [*ABLATE, *words], cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def run(self, *words: str) -> float:
        """Run `ablate …` to its end and return the CPU seconds that it and all its processes took."""
        before = os.times()
        process = self.start(*words)
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(said.decode())
        after = os.times()
        used = after.children_user - before.children_user, after.children_system - before.children_system
        return sum(used)

    def query(self, sql: str) -> list[tuple[float, ...]]:
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(sql).fetchall()

    def seconds_per_trial(self, first: int = FIRST) -> float:
        """Return wall seconds per attempt once the run is under way, as the store has them."""
        rows = self.query("SELECT ended FROM attempt WHERE seconds IS NOT NULL AND slot <> 'filled' ORDER BY ended")
        first = min(first, len(rows) // 2 - 1)
        return (rows[-1][0] - rows[first][0]) / (len(rows) - 1 - first)


Taken = tuple[float, float]  # seconds by the wall clock, and of CPU
Found = dict[str, list[Taken]]


def in_project(measure: Callable[[Project], Any]) -> Any:
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as folder:
        return measure(Project(Path(folder)))


def run_noop(*, isolation: str, slots: int, trials: int) -> Taken:
    """Return seconds per trial of a run of so many that do nothing."""

    def run(project: Project, number: int) -> Taken:
        words = ("-j", str(slots), "--set", f"seeds={number // 2}", "--set", *isolated(isolation))
        cpu = project.run("run", "noop.yaml", "--no-mirror", *words)
        assert project.query("SELECT count(*) FROM trial WHERE state = 'done'") == [(number,)], (
            "every trial has its row"
        )
        return project.seconds_per_trial(), cpu

    _, start = in_project(lambda project: run(project, 2 * slots))
    wall, cpu = in_project(lambda project: run(project, trials))
    return wall, (cpu - start) / (trials - 2 * slots)


def make_files(trials: int) -> Taken:
    """Return what the file system alone takes for the two folders and three files of an attempt."""

    def make(project: Project) -> Taken:
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(trials):
            folder = project.folder / f"{number:064x}" / "1"
            folder.mkdir(parents=True)
            for name in ("trial.json", "result.json"):
                (folder / f".{name}").write_bytes(b"x" * 900)
                os.replace(folder / f".{name}", folder / name)
            (folder / "stdout.log").touch()
        return (time.perf_counter() - wall) / trials, (time.process_time() - cpu) / trials

    return cast(Taken, in_project(make))


def isolated(isolation: str) -> list[str]:
    return [f"execution.isolation={isolation}"]


def run_late(project: Project, *, planned: int, trials: int) -> float:
    """Return seconds per warm trial of the last so many of a study."""
    filled, seeds = planned - trials, planned // ARMS
    steps = "".join(f"  - {{name: level-{level}, set: {{level: {level}}}}}\n" for level in range(1, ARMS))
    (project.folder / "noop.yaml").write_text(STUDY.replace("  - {name: one, set: {level: 1}}\n", steps))
    words = ("--set", f"seeds={seeds}", "--set", *isolated("warm"))
    plan = open_plan(project.folder / "noop.yaml", overrides=[f"seeds={seeds}", *isolated("warm")])
    store = open_store(project.store, create=True)
    study_id = record_plan(store, plan)
    facts = {"host": "here", "boot_id": "b", "lock_file": "l", "command": "ablate run"}
    register_runner(store, runner_id="r", study_id=study_id, facts=facts)
    with store.engine.begin() as connection:
        rows = connection.execute(trial.select().order_by(trial.c.id).limit(filled)).all()
        values = trial.update().where(trial.c.id <= rows[-1].id)
        connection.execute(values.values(state="done", claim=1, result_claim=1))
        connection.execute(attempt.insert(), [
            {"trial": row.id, "claim": 1, "runner": "r", "slot": "filled", "started": 1e9, "ended": 1e9,
             "folder": attempt_folder(row.fingerprint, 1), "outcome": "ok", "seconds": 1.0, "environment_json": "{}",
             "metrics_json": stored_metrics({"acc": row.seed / 7})}
            for row in rows
        ])  # fmt: skip
    end_runner(store, "r")
    store.close()
    project.run("run", "noop.yaml", "--no-mirror", "-j", "2", "--keep", *words)
    return project.seconds_per_trial()


def record_rows(project: Project) -> float:
    """Return seconds per recorded number, in the user's code."""
    project.run("run", "noop.yaml", "--no-mirror", "--only", "baseline", "--set", f"rows={ROWS}")
    ((took,),) = project.query("SELECT json_extract(metrics_json, '$.took') FROM attempt")
    return took / ROWS


def durable_after(project: Project) -> float:
    """Return the longest time from a number's record to its durable row, looked for every few milliseconds."""
    process = project.start("run", "noop.yaml", "--no-mirror", "--only", "baseline", "--set", "beats=60")
    seen: dict[float, float] = {}
    while process.poll() is None:
        if project.store.exists():
            try:
                for epoch, written in project.query("SELECT epoch, value FROM measurement"):
                    seen.setdefault(epoch, time.time() - written)
            except sqlite3.OperationalError:  # the tables are being made
                pass
        time.sleep(0.005)
    assert process.stderr is not None
    process.stderr.close()
    return max(seen.values())


def peer(python: str, name: str, number: int, workers: int = 2) -> Taken | None:
    """Return seconds per trial of another system, or None where it is not installed."""
    try:
        done = subprocess.run(
            [python, PEERS, name, str(number), str(workers)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return PATIENCE_S / number, math.nan
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if lines:
        return float(lines[0][1]), float(lines[0][2])
    if "not installed" not in done.stderr:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return None


# --- starts


def started(words: list[str], folder: Path) -> Taken:
    """Return the seconds of a command that is started, does its work and ends."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(words, cwd=folder, capture_output=True, check=True)
    wall, after = time.perf_counter() - began, os.times()
    return wall, after.children_user - before.children_user + after.children_system - before.children_system


def starts(rounds: int) -> Found:
    """Return what commands take on a study that has been run, beside what no command can go below."""
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as made:
        project = Project(Path(made))
        for level in (1, 2):
            project.run("run", "noop.yaml", "--no-mirror", "--set", "seeds=3", "--set", f"rows={level}")
        floors = ("pass", "import click", "from pydantic import BaseModel", "import sqlalchemy", "import torch")
        commands = {f"`python -c '{code}'`": [sys.executable, "-c", code] for code in floors}
        asked = ("--help", "plan noop.yaml", "status", "report", "watch", "logs", "show one", "compare noop:1 noop:2")
        commands |= {f"`ablate {words}`": [*ABLATE, *words.split()] for words in asked}
        return rounds_of(
            {name: lambda words=words: started(words, project.folder) for name, words in commands.items()}, rounds
        )


# --- memory


def memory(slots: int) -> dict[str, float]:
    """Return MiB in use with so many workers at work: PSS, which shares out what processes share."""
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as made:
        project = Project(Path(made))
        words = ("--no-mirror", "-j", str(slots), "--set", f"seeds={slots}", "--set", "pause=8.0")
        process = project.start("run", "noop.yaml", *words, "--only", "baseline")
        logs = f"{project.folder}/runs/trials/*/1/stdout.log"
        while len(list(Path("/").glob(logs[1:]))) < slots:
            time.sleep(0.05)
        time.sleep(1.5)
        children = _children()
        server = children[process.pid][0]
        workers = children[server]
        found = {
            "runner": _pss(process.pid),
            "server": _pss(server),
            "worker": statistics.mean(map(_pss, workers)),
            "in all": sum(map(_pss, (process.pid, server, *workers))),
        }
        process.kill()
        process.communicate()
        return found


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found.setdefault(int(fields[1]), []).append(int(status.parent.name))
    return found


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


# --- tables


def rounds_of(measures: dict[str, Callable[[], Taken | float | None]], rounds: int) -> Found:
    """Take every measure once in each round, in turn; what gives none is left out."""
    found: Found = {name: [] for name in measures}
    for number in range(rounds):
        for name, measure in measures.items():
            value = measure()
            print(f"{number + 1}/{rounds} {name}: {value}", file=sys.stderr, flush=True)
            if value is not None:
                found[name].append((value, math.nan) if isinstance(value, float) else value)
    return found


def table(found: Found, *, of: str, unit: float, than: str) -> Iterator[str]:
    """Yield the lines of a table: median, least and most, CPU, and how many times as long as ``than`` in each round."""
    yield f"| {of} | median | least … most | × {than} | CPU |"
    yield "|:--|--:|--:|--:|--:|"
    for name, values in found.items():
        if not values:
            yield f"| {name} | not installed | | | |"
            continue
        wall, cpu = [value for value, _ in values], statistics.median(value for _, value in values)
        ratio = statistics.median(mine / its for mine, (its, _) in zip(wall, found[than], strict=False))
        median, least, most = (f"{unit * each:.3g}" for each in (statistics.median(wall), min(wall), max(wall)))
        used = "" if math.isnan(cpu) else f"{unit * cpu:.3g}"
        yield f"| {name} | {median} | {least} … {most} | {ratio:.3g} | {used} |"


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    store = f"SQLite {sqlite3.sqlite_version} ({journal_mode()} journal, synchronous FULL)"
    at = datetime.now(UTC).date()
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return (
        f"{at}, {os.cpu_count()} cores ({cpu}), Linux {platform.release()}, Python {platform.python_version()}, "
        f"{store}. Load when this began: {load}."
    )


def print_dispatch(given: argparse.Namespace) -> None:
    def of_ablate(isolation: str, slots: int, trials: int) -> Callable[[], Taken]:
        return lambda: run_noop(isolation=isolation, slots=slots, trials=trials)

    print("## A trial that does nothing\n")
    print(
        "Milliseconds per trial once the run is under way; every trial has its durable row. CPU: of all its processes."
    )
    print("Goals: 25 ms with a process each (15 as a stretch), 1 ms warm.\n")
    dispatch = rounds_of(
        {
            "ablate, a process each, 1 slot": of_ablate("process", 1, given.forked),
            "ablate, a process each, 2 slots": of_ablate("process", 2, given.forked),
            "ablate, warm, 1 slot": of_ablate("warm", 1, given.trials),
            "ablate, warm, 2 slots": of_ablate("warm", 2, given.trials),
            "folders and files of a trial alone": lambda: make_files(given.trials),
            "`python -c 'import torch'`": lambda: peer(sys.executable, "subprocess", 3, 1),
            "Optuna, SQLite, 2 workers": lambda: peer(given.peers, "optuna-sqlite", 200),
            "Optuna, journal, 2 workers": lambda: peer(given.peers, "optuna-journal", 400),
            "Ray Tune, 2 CPUs": lambda: peer(given.peers, "ray-tune", 16),
            "Hydra, joblib, 2 jobs": lambda: peer(given.peers, "hydra-joblib", 24),
        },
        given.rounds,
    )
    print(*table(dispatch, of="ms per trial", unit=1e3, than="ablate, a process each, 1 slot"), sep="\n")


def print_late(given: argparse.Namespace) -> None:
    def late(planned: int) -> Callable[[], float]:
        return lambda: in_project(lambda project: run_late(project, planned=planned, trials=400))

    print("\n## The last trials of a small study, and of a large one\n")
    flat = rounds_of({"of 1,000 trials": late(1000), f"of {given.late:,} trials": late(given.late)}, given.rounds)
    print(*table(flat, of="ms per warm trial, 2 slots: the last 400", unit=1e3, than="of 1,000 trials"), sep="\n")


def print_records(given: argparse.Namespace) -> None:
    print("\n## A recorded number\n\nGoal: 20 µs.\n")
    numbers = rounds_of(
        {
            "ablate, `context.record`": lambda: in_project(record_rows),
            "Optuna, SQLite, `trial.report`": lambda: peer(given.peers, "optuna-sqlite-report", 300),
            "Optuna, journal, `trial.report`": lambda: peer(given.peers, "optuna-journal-report", 1000),
        },
        given.rounds,
    )
    print(*table(numbers, of="µs per number", unit=1e6, than="ablate, `context.record`"), sep="\n")
    durable = rounds_of({"until it is durable": lambda: in_project(durable_after)}, min(given.rounds, 3))
    print(f"\nIn the store after at most {max(durable['until it is durable'])[0]:.2f} s (goal: 1 s).")


def print_starts(given: argparse.Namespace) -> None:
    print("\n## The start of a command\n")
    print(*table(starts(2 * given.rounds + 1), of="ms", unit=1e3, than="`python -c 'pass'`"), sep="\n")
    print("\nGoals, over the interpreter's own start: 60 ms for `--help`, 150 ms for the others.")


def print_memory(_: argparse.Namespace) -> None:
    print("\n## Memory\n\nMiB (PSS: what processes share is shared out) while workers that have imported torch wait.\n")
    print("| slots | runner | server | a worker | in all |\n|--:|--:|--:|--:|--:|")
    for slots in (1, 4, 8):
        used = memory(slots)
        print(
            f"| {slots} | {used['runner']:.0f} | {used['server']:.0f} | {used['worker']:.0f} | {used['in all']:.0f} |"
        )
    print("\nGoal: a runner below 150 MiB.")


PARTS = {
    "dispatch": print_dispatch,
    "late": print_late,
    "records": print_records,
    "starts": print_starts,
    "memory": print_memory,
}


def main() -> None:
    """Measure, and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--trials", type=int, default=1000, help="warm trials in each run")
    parser.add_argument("--forked", type=int, default=120, help="trials of a process each in each run")
    parser.add_argument("--late", type=int, default=100_000, help="trials of the large study")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    given = parser.parse_args()
    print(f"# Overhead\n\n`python -m benchmarks.overhead --rounds {given.rounds}`, {machine()}\n")
    for part in given.parts:
        PARTS[part](given)


if __name__ == "__main__":
    main()
